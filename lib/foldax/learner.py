"""What learns: a few pure functions, the same four for every kind of learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax
import jax.numpy as jnp

State: TypeAlias = chex.ArrayTree  # what `update` changes
Params: TypeAlias = chex.ArrayTree  # Flax's "params" collection
Batch: TypeAlias = chex.ArrayTree  # arrays with a leading axis [B, ...]; None where there is no dataset
Key: TypeAlias = chex.PRNGKey
Metrics: TypeAlias = "dict[str, jax.Array | Average]"  # of `update`: scalars, or `Average`s


class Model(Protocol):
    """A network as a pair of pure functions; every Flax Linen module is one.

    `init(rngs, *inputs, **options)` returns the variables, `{"params": ..., ...}`; `apply(variables, *inputs,
    **options)` returns the outputs, and with `mutable=[...]` also the changed variables.
    """

    def init(self, rngs: Any, *args: Any, **options: Any) -> Any:
        """Returns the initial variables."""
        ...

    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Returns the outputs."""
        ...


class Average(NamedTuple):
    """A mean that can be merged, for what is not there at every step (an episode's return).

    `total` and `count` have the same shape; a count of 0 means "absent" and is never a NaN.
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class Evaluation(NamedTuple):
    """Results of `Learner.evaluate` for one batch.

    Attributes:
      metrics: values per example `[B]`, or `Average`s `[B]`, by name; reported as means over all examples of a split.
      outputs: arrays `[B, ...]` by name, kept per example for `Experiment.summarize` and `Experiment.figures`.
    """

    metrics: dict[str, jax.Array | Average]
    outputs: dict[str, jax.Array] = {}  # noqa: RUF012  # a NamedTuple's default; nobody writes to it


class Acts(NamedTuple):
    """How much an agent acts, in steps of all copies of its environment together, as a config counts it.

    Attributes:
      first: before the first update.
      update: in each.
    """

    first: int
    update: int


class Learner(NamedTuple):
    """One way to learn, as pure functions of arrays (compare optax's `GradientTransformation`).

    Attributes:
      init: `(key, examples) -> state`. `examples` is the whole training split where it lives on the
        device, else one batch, and None where there is no dataset. Most look only at its shapes.
      update: `(state, batch, key) -> (state, metrics)` consumes one batch; metrics are scalars or
        `Average`s by name. The key is `fold_in(update key, step)`: store no key in the state.
      evaluate: `(state, batch, key) -> {name: values}`. Float values `[B]` and `Average`s `[B]` become
        means over every example; all else (integers, `[B, ...]`) goes only to `Experiment.summarize`
        and `Experiment.figures`.
      predict: `(state, inputs, key) -> outputs`, what the trained thing does.
      acts: of agents, how much; must be what a run's config counts.
    """

    init: Callable[[Key, Batch], State]
    update: Callable[[State, Batch, Key], tuple[State, dict[str, Any]]]
    evaluate: Callable[[State, Batch, Key], dict[str, Any]]
    predict: Callable[[State, Any, Key], Any] | None = None
    acts: Acts | None = None


def as_average(value: Any) -> Average:
    """Returns `value` as an `Average` of float32: itself, or a mean over its one occurrence."""
    if isinstance(value, Average):
        return Average(jnp.asarray(value.total, jnp.float32), jnp.asarray(value.count, jnp.float32))
    value = jnp.asarray(value, jnp.float32)
    return Average(value, jnp.ones_like(value))
