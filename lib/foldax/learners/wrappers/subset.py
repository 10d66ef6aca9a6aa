"""Learning with few labels: train a learner on a small class-balanced subset that the run's key draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.data.info import Info
from foldax.data.shuffle import shuffled_indices
from foldax.errors import ExperimentError
from foldax.learner import Batch, Evaluation, Key, Learner, Metrics, State


class SubsetState(NamedTuple):
    """State of a learner on a subset.

    Attributes:
      learner: state of the wrapped learner.
      examples: the subset, `[size, ...]` by name.
    """

    learner: State
    examples: dict[str, jax.Array]


def subset(learner: Learner, examples_per_class: int, info: Info) -> Learner:
    """Trains a learner on `examples_per_class` random examples of each class of the training split.

    `init` draws the subset with its key, so every seed of a sweep has another one and all share one compiled program.
    Batches keep their size: a batch has no repetitions if the subset is larger, else each example about equally often.

    Args:
      learner: a learner of batches with integer "targets" `[B]`.
      examples_per_class: examples of each class, from 1 to the size of the smallest class.
      info: facts of the training split, which must live on the device.

    Raises:
      ExperimentError: the data has no classes, or a class has fewer examples; while tracing, the split is streamed.

    >>> import optax
    >>> from foldax import data, learners, models
    >>> arrays = {"inputs": jnp.zeros((40, 5)), "targets": jnp.arange(40) % 2}
    >>> dataset = data.from_arrays(arrays, batch_size=4)
    >>> learner = subset(learners.classifier(models.MLP((2,)), optax.sgd(0.1)), 3, dataset.info)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), dataset.train.examples())
    >>> state.examples["inputs"].shape
    (6, 5)
    """
    counts = info.class_counts
    if not counts:
        raise ExperimentError("subset: the dataset has no classes to sample examples from")
    if not 1 <= examples_per_class <= min(counts):
        rarest = counts.index(min(counts))
        bounds = f"at least 1 and at most {min(counts)}, the number of training examples of class {rarest}"
        raise ExperimentError(f"subset: examples_per_class={examples_per_class} must be {bounds}")
    size = examples_per_class * len(counts)

    def init(key: Key, examples: Batch) -> SubsetState:
        if not isinstance(examples, Mapping) or len(examples["targets"]) < sum(counts):
            raise ExperimentError('subset: the training split must live on the device (source="device")')
        order_key, init_key = jax.random.split(key)
        # Of each class, the examples with the smallest random numbers.
        order = jax.random.uniform(order_key, examples["targets"].shape)

        def rows_of_class(label: jax.Array) -> jax.Array:
            return jnp.argsort(jnp.where(examples["targets"] == label, order, jnp.inf))[:examples_per_class]

        rows = jax.lax.map(rows_of_class, jnp.arange(len(counts))).reshape(-1)
        chosen = {name: values[rows] for name, values in examples.items()}
        return SubsetState(learner.init(init_key, chosen), chosen)

    def update(state: SubsetState, batch: Batch, key: Key) -> tuple[SubsetState, Metrics]:
        # The batch says only how many examples to draw.
        shuffle_key, update_key = jax.random.split(key)
        rows = shuffled_indices(shuffle_key, 0, jnp.arange(len(batch["targets"]), dtype=jnp.int32) % size, size)
        subset_batch = {name: values[rows] for name, values in state.examples.items()}
        inner, metrics = learner.update(state.learner, subset_batch, update_key)
        return state._replace(learner=inner), metrics

    def evaluate(state: SubsetState, batch: Batch, key: Key) -> Evaluation | dict[str, Any]:
        return learner.evaluate(state.learner, batch, key)

    return learner.with_inner(lambda state: state.learner, init=init, update=update, evaluate=evaluate)
