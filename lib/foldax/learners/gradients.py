"""One gradient step: what all learners that descend a loss have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import parameter_paths
from foldax.errors import ExperimentError

Loss = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
"""`(params, model_state, batch, key) -> (loss, (model_state, metrics))`, means over the batch."""


class TrainState(NamedTuple):
    """Parameters and all that moves with them.

    Attributes:
      params: what the optimizer changes.
      model_state: the model's other collections by name, such as running batch statistics.
      optimizer_state: optax's.
      ema_params: exponential moving average of `params`, or None.
    """

    params: Any
    model_state: Any
    optimizer_state: Any
    ema_params: Any = None

    @property
    def averaged(self) -> Any:
        """The parameters to evaluate with: their moving average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create(
    params: Any,
    optimizer: optax.GradientTransformation,
    model_state: Any = None,
    *,
    ema_decay: Any = None,
    frozen: Sequence[str] = (),
) -> TrainState:
    """Returns the state before the first step; a moving average starts as a copy of `params`.

    Raises:
      ConfigError: a pattern in `frozen` matches no parameter.
    """
    parameter_paths.check_patterns(frozen, parameter_paths.leaves_by_path(params), "frozen")
    trained, _ = parameter_paths.split(params, frozen)
    average = None if ema_decay is None else jax.tree.map(jnp.copy, params)
    return TrainState(params, {} if model_state is None else model_state, optimizer.init(trained), average)


def step(
    state: TrainState,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch: Any,
    key: jax.Array,
    *,
    accumulate: int = 1,
    ema_decay: Any = None,
    frozen: Sequence[str] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step down the loss of a batch.

    Args:
      state: what `create` or the last `step` returned.
      loss: `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
      optimizer: its `update` is also given `value=loss` where it takes extra arguments.
      batch: a tree of arrays `[B, ...]`.
      key: randomness of the loss.
      accumulate: number of microbatches `[B / accumulate, ...]` over which gradients are averaged.
      ema_decay: weight of the past in the moving average; as given to `create`; may be traced.
      frozen: patterns of paths (see `foldax.parameter_paths`), as given to `create`: such parameters stay as they are,
        their gradients are not computed, and the optimizer never sees them. Statistics of these names stay too.

    Returns:
      The new state, and the loss's metrics with "gradient_norm".

    Raises:
      ExperimentError: if `accumulate` does not divide the batch.
    """
    trained, fixed = parameter_paths.split(state.params, frozen)

    def of_trained(trained: Any, *rest: Any) -> Any:
        return loss(parameter_paths.merge(trained, fixed), *rest)

    value, gradients, model_state, metrics = value_and_gradients(
        state._replace(params=trained), of_trained, batch, key, accumulate
    )
    update = optax.with_extra_args_support(optimizer).update
    updates, optimizer_state = update(gradients, state.optimizer_state, trained, value=value)
    params = parameter_paths.merge(optax.apply_updates(trained, updates), fixed)
    if frozen:
        model_state = {name: _kept(state.model_state[name], new, frozen) for name, new in model_state.items()}
    average = state.ema_params
    if ema_decay is not None:
        average = optax.incremental_update(params, average, 1.0 - ema_decay)
    metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
    return TrainState(params, model_state, optimizer_state, average), metrics


def value_and_gradients(
    state: TrainState, loss: Loss, batch: Any, key: jax.Array, accumulate: int = 1
) -> tuple[jax.Array, Any, Any, dict[str, jax.Array]]:
    """Returns loss, gradients, model state and metrics, averaged over `accumulate` equal parts of the batch.

    Raises:
      ExperimentError: if `accumulate` does not divide the batch.
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, (model_state, metrics)), gradients = differentiate(state.params, state.model_state, batch, key)
        return value, gradients, model_state, metrics
    parts = jax.tree.map(lambda leaf: _split(leaf, accumulate), batch)

    def one(model_state: Any, part: Any) -> tuple[Any, Any]:
        (value, (model_state, metrics)), gradients = differentiate(state.params, model_state, *part)
        return model_state, (value, gradients, metrics)

    # Summed in the carry, so that memory holds one set of gradients and not `accumulate` of them.
    def body(carry: Any, part: Any) -> tuple[Any, None]:
        model_state, total = carry
        model_state, terms = one(model_state, part)
        return (model_state, jax.tree.map(jnp.add, total, terms)), None

    keys = jax.random.split(key, accumulate)
    shapes = jax.eval_shape(one, state.model_state, jax.tree.map(lambda leaf: leaf[0], (parts, keys)))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (model_state, total), _ = jax.lax.scan(body, (state.model_state, zeros), (parts, keys))
    value, gradients, metrics = jax.tree.map(lambda leaf: leaf * (1.0 / accumulate), total)
    return value, gradients, model_state, metrics


def _kept(before: Any, after: Any, frozen: Sequence[str]) -> Any:
    return parameter_paths.merge(parameter_paths.split(after, frozen)[0], parameter_paths.split(before, frozen)[1])


def _split(leaf: jax.Array, parts: int) -> jax.Array:
    if parts < 1 or leaf.shape[0] % parts:
        raise ExperimentError(f"accumulate={parts} does not divide the batch of {leaf.shape[0]} into equal parts")
    return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])
