"""SimCLR (Chen et al., 2020): an image's two views are to be like each other, and unlike all others of the batch.

Batches are `{"inputs": [B, ...]}`; "targets" `[B]`, where there are some, are passed on and teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation, chain
from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners import tasks
from foldax.learners.losses import normalized
from foldax.learners.self_supervised.views import aligned, alignment, apart, pairs, passed_on
from foldax.learners.tasks import Batch, Options, Task, Values


def simclr(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    views: Augmentation,
    temperature: Any = 0.5,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of features that tell an image's views from those of others.

    `update` reports "loss" (`nt_xent`, in nats), "alignment" and "gradient_norm". `evaluate` reports what does not
    depend on the rest of a batch: "alignment" `[B]` (the squared distance of two views' normalised projections, 0 to 4:
    Wang & Isola, 2020), "features" `[B, D]`, "projections" `[B, P]` and "targets" where there are some. `predict` gives
    a `Represented`.

    A bias before a batch normalisation has a gradient of rounding errors, of which Adam with its usual `eps` of 1e-8
    makes steps as large as all others; 1e-4 keeps it still.

    Args:
      model: a `models.Projected`, or what gives a `Represented` likewise.
      optimizer: of optax; its rates may be traced.
      views: `(key, batch) -> batch` (see `foldax.augment`), which draws a view of each image; called twice.
      temperature: of `nt_xent`; may be traced.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      **options: those of `network.Options`. `augment` changes the image before its views are drawn; with `accumulate`
        an image is only told from those of its part of the batch.

    Raises:
      ConfigError: while tracing, a batch (or its part) has one image alone.
    """

    def training(outputs: Any, batch: Batch) -> Values:
        first, second = apart(outputs.projections)
        return {"loss": nt_xent(first, second, temperature), "alignment": alignment(first, second)}

    task = Task(("inputs",), tasks.inputs_of(model, preprocess), training, passed_on)
    options["augment"] = chain(*(step for step in (options.get("augment"), pairs(views)) if step is not None))
    return aligned(tasks.learner(model, optimizer, task, **options), views)


def nt_xent(first: jax.Array, second: jax.Array, temperature: Any = 0.5) -> jax.Array:
    """Returns the normalised temperature-scaled cross-entropy `[2 * B]` of Chen et al. (2020), in nats.

    Each view is to be told to be the pair of its image's other one, among all 2 B - 1 others, by cosine similarity.

    Args:
      first: projections `[B, P]` of one view of each image.
      second: of the other one.
      temperature: divides the similarities; above 0; may be traced.

    Raises:
      ConfigError: B is 1.
    """
    if len(first) < 2:
        raise ConfigError(
            "contrastive: a batch of one image has no other to tell it from; batch_size (or what `accumulate` leaves "
            "of it) must be 2 or more"
        )
    views = normalized(jnp.concatenate([first, second]))
    others = jnp.where(jnp.eye(len(views), dtype=bool), -jnp.inf, views @ views.T)
    logits = others * jnp.reciprocal(jnp.asarray(temperature, jnp.float32))
    pair = jnp.roll(jnp.arange(len(views)), len(first))
    return optax.softmax_cross_entropy_with_integer_labels(logits, pair)
