"""Data that fits lives on the device: the batch of a step is a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.data.info import Examples
from foldax.data.shuffle import shuffled


class Block(NamedTuple):
    """Data of some training steps.

    Attributes:
      data: pytree of device arrays, the first argument of the source's `feed.batch`.
      start: its first step.
      end: the step after its last one; None if it serves for ever.
      cursor: JSON-able state of the source's iterator at the start of the block; None if there is none.
    """

    data: Any
    start: int
    end: int | None
    cursor: dict[str, Any] | None


class EvalBlock(NamedTuple):
    """Examples of an evaluation split.

    Attributes:
      batches: arrays `[K, B, ...]` by key.
      mask: bool `[K, B]`, False for padding (which repeats the split's first example).
    """

    batches: dict[str, Any]
    mask: Any


class DeviceFeed(NamedTuple):
    """How a step's batch is drawn from data on the device; static under jit."""

    num_examples: int
    batch_size: int

    def batch(
        self, data: dict[str, jax.Array], key: jax.Array, step: jax.Array, start: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the step's batch `[B, ...]`: the next rows of its epoch's random order.

        What is left of an epoch and fills no batch is dropped; another epoch has another order.
        """
        del start
        steps_per_epoch = self.num_examples // self.batch_size
        epoch, position = step // steps_per_epoch, step % steps_per_epoch
        positions = position * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        rows = shuffled(key, epoch, positions, self.num_examples)
        return {name: array.at[rows].get(mode="promise_in_bounds") for name, array in data.items()}


class DeviceSource:
    """The training split, whole, on the device (put there at its first use)."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int) -> None:
        self.feed = DeviceFeed(len(indices), batch_size)
        self._examples, self._indices = examples, indices

    @cached_property
    def _data(self) -> dict[str, jax.Array]:
        return jax.device_put(self._examples.read(self._indices))

    def examples(self) -> dict[str, jax.Array]:
        """Returns the whole training split, arrays `[N, ...]`."""
        return self._data

    def blocks(self, seed: int, step: int, cursor: dict[str, Any] | None = None) -> Iterator[Block]:
        """Yields the one block that serves every step."""
        del seed, step, cursor
        yield Block(self._data, 0, None, None)


class DeviceSplit:
    """An evaluation split, whole, on the device (put there at its first use)."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int) -> None:
        self.num_examples, self.batch_size = len(indices), batch_size
        self._examples, self._indices = examples, indices

    @cached_property
    def _block(self) -> EvalBlock:
        return jax.device_put(
            eval_block(self._examples, self._indices, 0, -(-len(self._indices) // self.batch_size), self.batch_size)
        )

    def blocks(self) -> Iterator[EvalBlock]:
        """Yields one block that holds every example exactly once, in the order of their indices."""
        yield self._block


def eval_block(examples: Examples, indices: np.ndarray, first: int, batches: int, batch_size: int) -> EvalBlock:
    """Reads `batches` batches of a split from its example `first` on, padded with its first example."""
    positions = first + np.arange(batches * batch_size)
    mask = positions < len(indices)
    rows = examples.read(indices[np.where(mask, positions, 0)])
    shape = (batches, batch_size)
    return EvalBlock({key: array.reshape(shape + array.shape[1:]) for key, array in rows.items()}, mask.reshape(shape))
