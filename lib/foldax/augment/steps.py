"""What an augmentation is, and how several make one.

An augmentation is a pure function `(key, batch) -> batch` on batches {"inputs": `[B, ...]`, "targets", ...}. It runs in
the compiled training step, on the inputs as the dataset has them: before `preprocess`. Every example draws for itself.
Inputs keep shape and dtype: integers are worked on as float32, then rounded and clipped to their range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError, DataError

Batch = dict[str, Any]
Step = Callable[[jax.Array, Batch], Batch]


def chain(*steps: Step) -> Step:
    """Returns the augmentation that does one after the other, each with a key of its own; none at all changes nothing."""

    def step(key: jax.Array, batch: Batch) -> Batch:
        for own, each in zip(jax.random.split(key, len(steps)), steps) if steps else ():
            batch = each(own, batch)
        return batch

    return step


def sometimes(augmentation: Step, probability: Any = 0.5) -> Step:
    """Returns the augmentation that changes each example with a probability in [0, 1], which may be traced.

    Raises:
      DataError: the augmentation changes shapes or dtypes, as `mixup` does with classes (`soft_targets` first helps).
    """

    def step(key: jax.Array, batch: Batch) -> Batch:
        coin, own = jax.random.split(key)
        changed = augmentation(own, batch)
        chosen = jax.random.bernoulli(coin, probability, batch["inputs"].shape[:1])

        def select(new: jax.Array, old: jax.Array) -> jax.Array:
            if (new.shape, new.dtype) != (jnp.shape(old), jnp.result_type(old)):
                raise DataError(
                    f"sometimes: {jnp.result_type(old)}{list(jnp.shape(old))} became {new.dtype}{list(new.shape)}, so "
                    "some examples cannot stay as they are; put augment.soft_targets(num_classes) first, or do it always"
                )
            return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return {name: select(changed[name], leaf) for name, leaf in batch.items()}

    return step


def on_inputs(name: str, axes: str, change: Callable[[jax.Array, jax.Array], jax.Array]) -> Step:
    """Returns the augmentation that changes the inputs alone.

    Args:
      name: of the augmentation, for errors.
      axes: what the inputs must have, such as "[B, H, W, C]".
      change: `(key, inputs) -> inputs`.
    """

    def step(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "inputs": change(key, inputs_of(name, axes, batch))}

    return step


def inputs_of(name: str, *axes: str, batch: Batch) -> jax.Array:
    """Returns the inputs of a batch.

    Raises:
      DataError: there are none, or they have not the `axes`, one of the forms such as "[B, T, C]".
    """


def in_floats(change: Callable[..., jax.Array], inputs: jax.Array) -> jax.Array:
    """Returns `change(inputs)`, computed in float32, in the dtype that the inputs have."""
