"""BYOL (Grill et al., 2020): predict the target network's projection of one view of an image from another view.

Batches are `{"inputs": [B, ...]}`; optional "targets" `[B]` do not affect training and are returned by `evaluate`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation
from foldax.errors import ConfigError
from foldax.learner import Evaluation, Key, Learner, Metrics, Model, Params
from foldax.learners import tasks
from foldax.learners.gradients import TrainState, moving_average
from foldax.learners.losses import l2_normalize
from foldax.learners.self_supervised import views as view_pairs
from foldax.models import SSLOutput
from foldax.models.adapters.checks import check_model

Schedule = Callable[[jax.Array], jax.Array]  # of the step, int32


class BYOLState(NamedTuple):
    """Training state of BYOL.

    Attributes:
      online: the online network.
      target_params: parameters of the target network, the moving average of those of the online network.
      step: int32, updates done.
    """

    online: TrainState
    target_params: Params
    step: jax.Array


def byol(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    views: Augmentation,
    momentum: chex.Numeric | Schedule = 0.99,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """Bootstrap your own latent (Grill et al., 2020): self-supervised learning without negative examples.

    `update` reports "loss" (summed over both directions, 2 - 2 cos each: 0 to 8), "gradient_norm" and
    "projection_std", whose fall to 0 shows a collapsed representation. `evaluate` and `predict` use the online
    network and return the same metrics and outputs as those of `simclr`.

    Args:
      model: a `models.ProjectionNetwork` with a predictor. The paper's heads have batch normalisation.
      optimizer: an optax optimizer; its learning rate may be traced.
      views: `(key, batch) -> batch` (see `foldax.augment`), which draws a random view of each image.
      momentum: tau, the weight of the past in the target network's moving average, in [0, 1]: a number, which may be
        traced, or a function of the step such as `byol_momentum_schedule`.
      preprocess: elementwise function of the inputs, such as `info.standardize`; None converts them to float32.
      **options: see `learners.NetworkOptions`; without `ema_decay`, because the target network is the average.

    Raises:
      ConfigError: the model has no predictor, or `ema_decay` is set; while tracing, `microbatches` does not divide the
        number of images.

    >>> from foldax import augment, models
    >>> heads = models.MLP((2,)), models.MLP((2,))
    >>> model = models.ProjectionNetwork(models.MLP((8, 4)), *heads)
    >>> learner = byol(model, optax.sgd(0.1), views=augment.gaussian_noise(0.1))
    >>> batch = {"inputs": jnp.zeros((6, 3))}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> sorted(jax.eval_shape(learner.update, state, batch, jax.random.key(1))[1])
    ['gradient_norm', 'loss', 'projection_std']
    """
    check_model(model)
    if getattr(model, "predictor", None) is None:
        raise ConfigError("byol: the model has no predictor; use models.ProjectionNetwork(encoder, head, predictor)")
    if options.get("ema_decay") is not None:
        raise ConfigError("byol: ema_decay cannot be set; the moving average is the target network, see `momentum`")
    network_options: dict[str, Any] = dict(options)
    augment = network_options.pop("augment", None)

    def train_metrics(output: SSLOutput, batch: tasks.Batch) -> Metrics:
        assert output.predictions is not None
        # Equation 2, symmetrised: each view's prediction against the target's projection of the other view.
        predictions = view_pairs.split_views(output.predictions)
        targets = view_pairs.split_views(batch["target_projections"])
        loss = view_pairs.alignment(predictions[0], targets[1]) + view_pairs.alignment(predictions[1], targets[0])
        return {"loss": loss, "projection_std": projection_std(output.projections)}

    task = tasks.Task(("inputs",), tasks.input_function(model, preprocess), train_metrics, view_pairs.ssl_outputs)

    learner = tasks.network_learner(model, optimizer, task, **network_options)

    def init(key: Key, examples: tasks.Batch) -> BYOLState:
        online = learner.init(key, examples)
        # The target network starts as a copy; donated states must not share buffers.
        return BYOLState(online, jax.tree.map(jnp.copy, online.params), jnp.zeros((), jnp.int32))

    def update(state: BYOLState, batch: tasks.Batch, key: Key) -> tuple[BYOLState, Metrics]:
        augment_key, views_key, online_key, dropout_key = jax.random.split(key, 4)
        # 1. Views: two augmentations of each image, in adjacent rows [2B, ...].
        batch = batch if augment is None else augment(augment_key, batch)
        pairs = view_pairs.make_view_pairs(views, options.get("microbatches", 1))(views_key, batch)
        # 2. Target projections of both views, without a gradient. The target network also normalises by the statistics
        #    of this batch; its changes of the running statistics are dropped.
        variables = {"params": state.target_params, **state.online.model_state}
        rngs, mutable = {"dropout": dropout_key}, list(state.online.model_state)
        target_output, _ = model.apply(variables, task.inputs(pairs), train=True, rngs=rngs, mutable=mutable)
        # 3. One optimizer step of the online network, then the target network moves towards it (equation 1).
        tau = momentum(state.step) if callable(momentum) else momentum
        pairs = {**pairs, "target_projections": jax.lax.stop_gradient(target_output.projections)}
        online, metrics = learner.update(state.online, pairs, online_key)
        target_params = moving_average(online.params, state.target_params, 1.0 - tau, online.optimizer_state)
        return BYOLState(online, target_params, state.step + 1), metrics

    def evaluate(state: BYOLState, batch: tasks.Batch, key: Key) -> Evaluation | dict[str, Any]:
        return learner.evaluate(state.online, batch, key)

    def predict(state: BYOLState, inputs: tasks.Batch, key: Key) -> SSLOutput:
        assert learner.predict is not None
        return learner.predict(state.online, inputs, key)

    return view_pairs.with_alignment_metric(Learner(init, update, evaluate, predict), views)


def byol_momentum_schedule(base_momentum: chex.Numeric, steps: int) -> Schedule:
    """Cosine schedule of the target's momentum, 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 (Grill et al., 2020).

    Args:
      base_momentum: tau_base, the momentum at step 0, in [0, 1]; may be traced.
      steps: K, the step from which the momentum is 1.

    Returns:
      `step -> momentum`.

    >>> momentum = byol_momentum_schedule(0.9, steps=100)
    >>> [round(float(momentum(step)), 3) for step in (0, 50, 100)]
    [0.9, 0.95, 1.0]
    """

    def momentum(step: jax.Array) -> jax.Array:
        progress = jnp.minimum(jnp.asarray(step, jnp.float32) * (1.0 / steps), 1.0)
        return 1.0 - (1.0 - base_momentum) * (jnp.cos(jnp.pi * progress) + 1.0) * 0.5

    return momentum


def projection_std(projections: jax.Array) -> jax.Array:
    """Standard deviation over the batch of L2-normalised projections, averaged over their P components.

    It is 0 for a collapsed representation and at most 1 / sqrt(P).

    Args:
      projections: `[B, P]`; no gradient passes through.

    Returns:
      `[B]`, the same value for every example, so that microbatches can average it.

    >>> projection_std(jnp.ones((3, 2))).tolist()
    [0.0, 0.0, 0.0]
    """
    chex.assert_rank(projections, 2)
    std = l2_normalize(jax.lax.stop_gradient(projections)).std(axis=0).mean()
    return jnp.broadcast_to(std, projections.shape[:1])
