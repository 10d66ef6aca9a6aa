"""Where batches come from: data that fits lives on the device, data that does not streams."""

from __future__ import annotations

import atexit
import copy
import weakref
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.data.info import BLOCK_BYTES, Examples, example_bytes
from foldax.data.protocol import Block, EvalBlock
from foldax.data.shuffle import shuffled

Batch = dict[str, jax.Array]
MAX_BATCHES = 64  # in a block of a stream
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


class DeviceFeed(NamedTuple):
    """How a step's batch is drawn from data on the device; static under jit."""

    num_examples: int
    batch_size: int

    def batch(self, data: Batch, key: jax.Array, step: jax.Array, start: jax.Array) -> Batch:
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
        self.device: Any = None
        self.feed = DeviceFeed(len(indices), batch_size)
        self._examples, self._indices = examples, indices

    @cached_property
    def _data(self) -> Batch:
        return jax.device_put(self._examples.read(self._indices), self.device)

    def examples(self) -> Batch:
        """Returns the whole training split, arrays `[N, ...]`."""
        return self._data

    def blocks(self, seed: int, step: int, cursor: dict[str, Any] | None = None) -> Iterator[Block]:
        """Yields the one block that serves every step."""
        del seed, step, cursor
        yield Block(self._data, 0, None, None)


class StreamFeed(NamedTuple):
    """How a step's batch is found in a block; static under jit."""

    batches: int

    def batch(self, data: Batch, key: jax.Array, step: jax.Array, start: jax.Array) -> Batch:
        """Returns the step's batch `[B, ...]` of a block `[K, B, ...]` that begins at step `start`."""
        del key
        return {name: jax.lax.dynamic_index_in_dim(array, step - start, keepdims=False) for name, array in data.items()}


class StreamSource:
    """The training split, read in blocks of batches `[K, B, ...]` that go to the device ahead of their use."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int, workers: int = 0) -> None:
        self.device: Any = None
        self.feed = StreamFeed(_batches_per_block(examples, batch_size))
        self._examples, self._indices = examples, indices
        self._batch_size, self._workers = batch_size, workers

    def examples(self) -> Batch:
        """Returns the first batch of the split, `[B, ...]`."""
        return jax.device_put(self._examples.read(self._indices[: self._batch_size]), self.device)

    def blocks(self, seed: int, step: int, cursor: dict[str, Any] | None = None) -> Iterator[Block]:
        """Yields the block that contains `step`, then the ones after it, for ever.

        Each epoch has an order of its own, which follows from the seed; what is left of an epoch and
        fills no batch is dropped. Close the iterator to end its threads and processes.

        Args:
          seed: determines the order.
          step: a step in the first block.
          cursor: that block's `cursor`. A block's start is all the state there is: what was read ahead
            does not count, and a run may go on with another number of workers.
        """
        blocks = self._blocks(seed, step, cursor)
        _OPEN.add(blocks)
        return blocks

    def _blocks(self, seed: int, step: int, cursor: dict[str, Any] | None) -> Iterator[Block]:
        size = self.feed.batches
        start = int(cursor["start"]) if cursor is not None else step // size * size
        iterator = iter(self._pipeline(seed, start // size))
        try:
            while True:
                yield Block(next(iterator), start, start + size, {"start": start})
                start += size
        finally:
            iterator.close()

    def _pipeline(self, seed: int, first: int) -> Any:
        """Returns blocks from block `first` on; shuffles positions, because grain would read examples one by one."""
        import grain

        # Neighbouring seeds would give neighbouring epochs' orders, so they are scattered first.
        scattered = int(np.random.SeedSequence(seed).generate_state(1)[0])
        positions = grain.MapDataset.range(len(self._indices)).shuffle(scattered)
        batches = positions.batch(self._batch_size, drop_remainder=True).repeat().batch(self.feed.batches)
        blocks = batches[first:].map(partial(_read, self._examples, self._indices))
        dataset = blocks.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if self._workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which only absl's own `app.run` parses
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            dataset = dataset.mp_prefetch(options)
        return grain.experimental.device_put(dataset, self.device, cpu_buffer_size=1, device_buffer_size=1)


class Split:
    """An evaluation split: whole on the device (put there at its first use), or read in blocks."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int, *, whole: bool) -> None:
        self.device: Any = None
        self.num_examples, self.batch_size = len(indices), batch_size
        self._examples, self._indices = examples, indices
        batches = -(-len(indices) // batch_size)
        self._batches = batches if whole else min(batches, _batches_per_block(examples, batch_size))

    @cached_property
    def _first(self) -> EvalBlock:
        return self._block(0)

    def blocks(self, newest: Any = None) -> Iterator[EvalBlock]:
        """Yields blocks of one shape that hold every example exactly once, in the order of their indices.

        Padding repeats the split's first example; what is there does not depend on the `newest` state.
        """
        del newest
        starts = range(0, self.num_examples, self._batches * self.batch_size)
        yield from [self._first] if len(starts) == 1 else map(self._block, starts)

    def examples(self) -> dict[str, np.ndarray]:
        """Returns every example, arrays `[N, ...]` on the host by key."""
        blocks = [(jax.device_get(block.batches), np.asarray(block.mask)) for block in self.blocks()]
        return {key: np.concatenate([batches[key][mask] for batches, mask in blocks]) for key in blocks[0][0]}

    def _block(self, start: int) -> EvalBlock:
        positions = start + np.arange(self._batches * self.batch_size).reshape(self._batches, self.batch_size)
        mask = positions < self.num_examples
        batches = _read(self._examples, self._indices, np.where(mask, positions, 0))
        return jax.device_put(EvalBlock(batches, mask), self.device)


def placed(source: Any, device: Any) -> Any:
    """Returns the same source of data for another device (or sharding); what is on a device already stays there."""
    other = copy.copy(source)
    other.device = device
    for cached in ("_data", "_first"):
        other.__dict__.pop(cached, None)
    return other


def _batches_per_block(examples: Examples, batch_size: int) -> int:
    """Returns how many batches make a block of about 32 MiB."""
    return max(1, min(MAX_BATCHES, BLOCK_BYTES // max(1, batch_size * example_bytes(examples))))


def _read(examples: Examples, indices: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Reads the examples at positions `[K, B]` of a split; a function, so that worker processes can restore it."""
    rows = examples.read(indices[positions.reshape(-1)])
    return {key: array.reshape(positions.shape + array.shape[1:]) for key, array in rows.items()}


@atexit.register
def _close_all() -> None:
    """Ends what was left open while the modules that it needs are still there."""
    for blocks in list(_OPEN):
        blocks.close()
