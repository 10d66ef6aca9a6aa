"""BYOL (Grill et al., 2020): a network foretells what a slower copy of itself makes of another view; no negatives.

Batches are `{"inputs": [B, ...]}`; "targets" `[B]`, where there are some, are passed on and teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation
from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners import tasks
from foldax.learners.gradients import TrainState
from foldax.learners.losses import normalized
from foldax.learners.self_supervised.views import aligned, alignment, apart, pairs, passed_on
from foldax.learners.tasks import Batch, Options, Task, Values


class ByolState(NamedTuple):
    """The online network, with the target network as its moving average `ema_params`, and steps done (int32)."""

    online: TrainState
    step: jax.Array


def byol(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    views: Augmentation,
    decay: Any = 0.99,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of features that foretell another view's projections by the target network.

    `update` reports "loss" (for both views, 2 - 2 cos each: 0 to 8), "gradient_norm" and "spread", the projections'
    standard deviation after normalisation, which is 0 if they have collapsed and at most 1 / sqrt(P). `evaluate`
    reports what `simclr` does, of the online network. `predict` gives a `Represented`.

    Args:
      model: a `models.Projected` with a predictor. The paper's heads have batch normalisation.
      optimizer: of optax; its rates may be traced.
      views: `(key, batch) -> batch` (see `foldax.augment`), which draws a view of each image; called twice.
      decay: weight of the past in the target network: a number, which may be traced, or a function of the step such as
        `slowing`.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      **options: those of `network.Options`, without `ema_decay`: the average is the target network here.

    Raises:
      ConfigError: the model has no predictor, or `ema_decay` is given.
    """
    if getattr(model, "predictor", None) is None:
        raise ConfigError("byol: the model needs a predictor: models.Projected(encoder, head, predictor)")
    if options.get("ema_decay") is not None:
        raise ConfigError("byol: ema_decay is `decay` here; the moving average is the target network")
    others: dict[str, Any] = dict(options)
    augment = others.pop("augment", None)

    def training(outputs: Any, batch: Batch) -> Values:
        foretold, goals = apart(outputs.predictions), apart(batch["goals"])
        loss = alignment(foretold[0], goals[1]) + alignment(foretold[1], goals[0])
        return {"loss": loss, "spread": spread(outputs.projections)}

    task = Task(("inputs",), tasks.inputs_of(model, preprocess), training, passed_on)

    def online(decay: Any) -> Learner:
        return tasks.learner(model, optimizer, task, **{**others, "ema_decay": decay})

    def init(key: jax.Array, examples: Any) -> ByolState:
        return ByolState(online(1.0).init(key, examples), jnp.zeros((), jnp.int32))

    def update(state: ByolState, batch: Any, key: jax.Array) -> tuple[ByolState, Values]:
        first, draws, own, noise = jax.random.split(key, 4)
        both = pairs(views)(draws, batch if augment is None else augment(first, batch))
        variables = {"params": state.online.ema_params, **state.online.model_state}
        # The target normalises by its batch too, as in training; what that does to running statistics is dropped.
        settings = dict(train=True, rngs={"dropout": noise}, mutable=list(state.online.model_state))
        goals = model.apply(variables, task.inputs(both), **settings)[0].projections
        weight = decay(state.step) if callable(decay) else decay
        after, metrics = online(weight).update(state.online, {**both, "goals": jax.lax.stop_gradient(goals)}, own)
        return ByolState(after, state.step + 1), metrics

    inner = online(1.0)

    def evaluate(state: ByolState, batch: Any, key: jax.Array) -> Values:
        return inner.evaluate(state.online._replace(ema_params=None), batch, key)

    def predict(state: ByolState, inputs: Any, key: jax.Array) -> Any:
        assert inner.predict is not None
        return inner.predict(state.online._replace(ema_params=None), inputs, key)

    return aligned(Learner(init, update, evaluate, predict), views)


def slowing(decay: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the paper's schedule of the target's decay, which rises to 1: 1 - (1 - decay) (cos(pi k / K) + 1) / 2."""

    def at(step: jax.Array) -> jax.Array:
        share = jnp.minimum(jnp.asarray(step, jnp.float32) * (1.0 / steps), 1.0)
        return 1.0 - (1.0 - decay) * (jnp.cos(jnp.pi * share) + 1.0) * 0.5

    return at


def spread(projections: jax.Array) -> jax.Array:
    """Returns the mean standard deviation, over the batch, of normalised projections' numbers, for each row `[B]`."""
    deviation = normalized(jax.lax.stop_gradient(projections)).std(axis=0).mean()
    return jnp.broadcast_to(deviation, projections.shape[:1])
