"""Learning from a few examples: a learner of its own small training set, drawn from the split by the run's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.data.shuffle import shuffled
from foldax.errors import ExperimentError
from foldax.learner import Learner


class SubsetState(NamedTuple):
    """A learner's state, and the examples that it learns from, `[size, ...]` by key."""

    learner: Any
    examples: Any


def subset(learner: Learner, per_class: int, info: Any) -> Learner:
    """Returns the same learner, which learns from `per_class` examples of each class only.

    `init` draws them with its key, so every seed of a sweep has examples of its own and all share one program. A batch
    holds as many examples as one of the split's, without repetition if there are as many, else each about equally
    often. The split must live on the device.

    Args:
      learner: of batches with integer "targets" `[B]`.
      per_class: number of examples of each class.
      info: facts of the training split.

    Raises:
      ExperimentError: there are no classes, or one has fewer examples; while tracing, if the split is streamed.
    """
    counts = info.class_counts
    if not counts:
        raise ExperimentError("subset: needs a dataset with classes")
    if not 1 <= per_class <= min(counts):
        rarest = counts.index(min(counts))
        raise ExperimentError(
            f"subset: per_class={per_class} must be at least 1 and at most {min(counts)}, "
            f"the number of training examples of class {rarest}"
        )
    size = per_class * len(counts)

    def init(key: jax.Array, examples: Any) -> SubsetState:
        if not isinstance(examples, Mapping) or len(examples["targets"]) < sum(counts):
            raise ExperimentError('subset: the training split must live on the device (source="device")')
        draw, own = jax.random.split(key)
        order = jax.random.uniform(draw, examples["targets"].shape)

        def rows_of(label: jax.Array) -> jax.Array:
            return jnp.argsort(jnp.where(examples["targets"] == label, order, jnp.inf))[:per_class]

        rows = jax.lax.map(rows_of, jnp.arange(len(counts))).reshape(-1)
        few = {name: values[rows] for name, values in examples.items()}
        return SubsetState(learner.init(own, few), few)

    def update(state: SubsetState, batch: Any, key: jax.Array) -> Any:
        draw, own = jax.random.split(key)
        positions = jnp.arange(len(batch["targets"]), dtype=jnp.int32) % size
        rows = shuffled(draw, 0, positions, size)
        few = {name: values[rows] for name, values in state.examples.items()}
        inner, metrics = learner.update(state.learner, few, own)
        return state._replace(learner=inner), metrics

    def evaluate(state: SubsetState, batch: Any, key: jax.Array) -> Any:
        return learner.evaluate(state.learner, batch, key)

    def predict(state: SubsetState, inputs: Any, key: jax.Array) -> Any:
        assert learner.predict is not None
        return learner.predict(state.learner, inputs, key)

    return Learner(init, update, evaluate, None if learner.predict is None else predict)
