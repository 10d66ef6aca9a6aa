"""SimCLR, contrastive learning of representations (Chen et al., 2020): identify the other view of the same image.

Batches are `{"inputs": [B, ...]}`; optional "targets" `[B]` do not affect training and are returned by `evaluate`.
"""

from collections.abc import Callable
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation, chain
from foldax.errors import ConfigError
from foldax.learner import Learner, Metrics, Model
from foldax.learners import tasks
from foldax.learners.losses import l2_normalize
from foldax.learners.self_supervised import views as view_pairs
from foldax.models import SSLOutput


def simclr(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    views: Augmentation,
    temperature: chex.Numeric = 0.5,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """SimCLR (Chen et al., 2020, algorithm 1): the NT-Xent loss on the projections of two views of each image.

    `update` reports "loss" (NT-Xent, in nats), "alignment" and "gradient_norm". `evaluate` reports only metrics that
    do not depend on the other examples of a batch: "alignment" `[B]`, between two random views. Its outputs are
    "features" `[B, D]`, "projections" `[B, P]` and, if the batch has them, "targets" `[B]`. `predict` returns an
    `SSLOutput`.

    With Adam, use an `eps` of 1e-4: the gradient of a bias before batch normalisation is rounding error, which the
    usual 1e-8 would scale up to steps of full size.

    Args:
      model: a `models.ProjectionNetwork`, or any model that returns an `SSLOutput`.
      optimizer: an optax optimizer; its learning rate may be traced.
      views: `(key, batch) -> batch` (see `foldax.augment`), which draws a random view of each image.
      temperature: tau of `nt_xent`, above 0; may be traced.
      preprocess: elementwise function of the inputs, such as `info.standardize`; None converts them to float32.
      **options: see `learners.NetworkOptions`. `augment` is applied once, before the two views. With
        `microbatches`, the negatives of an image come from its own microbatch only.

    Raises:
      ConfigError: while tracing, a batch (or microbatch) holds a single image, or `microbatches` does not divide the
        number of images.

    >>> from foldax import augment, models
    >>> model = models.ProjectionNetwork(encoder=models.MLP((8, 4)), head=models.MLP((2,)))
    >>> learner = simclr(model, optax.adam(1e-3, eps=1e-4), views=augment.gaussian_noise(0.1))
    >>> batch = {"inputs": jnp.zeros((6, 3))}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> sorted(jax.eval_shape(learner.update, state, batch, jax.random.key(1))[1])
    ['alignment', 'gradient_norm', 'loss']
    """
    # 1. Views: two augmentations t, t' ~ T of each image, in adjacent rows [2B, ...].
    make_pairs = view_pairs.make_view_pairs(views, options.get("microbatches", 1))
    options["augment"] = chain(options.get("augment"), make_pairs)

    # 2. Representations h = f(x), projections z = g(h), and the contrastive loss on z.
    def train_metrics(output: SSLOutput, batch: tasks.Batch) -> Metrics:
        first, second = view_pairs.split_views(output.projections)
        return {"loss": nt_xent(first, second, temperature), "alignment": view_pairs.alignment(first, second)}

    # 3. Update of f and g: one step of the optimizer on the mean loss over all 2B views.
    task = tasks.Task(("inputs",), tasks.input_function(model, preprocess), train_metrics, view_pairs.ssl_outputs)
    return view_pairs.with_alignment_metric(tasks.network_learner(model, optimizer, task, **options), views)


def nt_xent(first: jax.Array, second: jax.Array, temperature: chex.Numeric = 0.5) -> jax.Array:
    """Normalised temperature-scaled cross-entropy (NT-Xent; Chen et al., 2020, equation 1).

    l(i, j) = -log (exp(sim(z_i, z_j) / tau) / sum_{k != i} exp(sim(z_i, z_k) / tau)), with the cosine similarity
    sim(u, v) = u.v / (|u| |v|), for the view i and the other view j of the same image, among 2 B views in all.

    Args:
      first: projections `[B, P]` of the first views.
      second: projections `[B, P]` of the second views.
      temperature: tau, above 0; may be traced.

    Returns:
      `[2 * B]`, in nats: the losses of the first views, then of the second views.

    Raises:
      ConfigError: B is 1, so there are no negatives.

    >>> z = jnp.eye(4)
    >>> jax.jit(nt_xent)(z, z, 0.05).max().round(3).item()
    0.0
    """
    chex.assert_rank([first, second], 2)
    chex.assert_equal_shape([first, second])
    if len(first) < 2:
        remedy = "batch_size (divided by `microbatches`) must be at least 2"
        raise ConfigError(f"simclr: a batch of one image has no negatives; {remedy}")
    z = l2_normalize(jnp.concatenate([first, second]))
    # Multiplied by a reciprocal, not divided: XLA rewrites traced divisions differently in a sweep.
    logits = (z @ z.T) * jnp.reciprocal(jnp.asarray(temperature, jnp.float32))
    # Without k = i. After the product, whose gradient by the temperature would otherwise be 0 * -inf.
    logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
    positives = jnp.roll(jnp.arange(len(z)), len(first))
    return optax.softmax_cross_entropy_with_integer_labels(logits, positives)
