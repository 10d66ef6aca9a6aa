"""Data that does not fit streams: blocks of batches, read ahead of the training."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.data.device import Block, EvalBlock, eval_block
from foldax.data.info import BLOCK_BYTES, Examples, example_bytes

MAX_BATCHES = 64
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends what was left open while the modules that it needs are still there."""
    for blocks in list(_OPEN):
        blocks.close()


def batches_per_block(examples: Examples, batch_size: int) -> int:
    """Returns how many batches make a block of about 32 MiB."""
    return max(1, min(MAX_BATCHES, BLOCK_BYTES // max(1, batch_size * example_bytes(examples))))


class StreamFeed(NamedTuple):
    """How a step's batch is found in a block; static under jit."""

    batches: int

    def batch(
        self, data: dict[str, jax.Array], key: jax.Array, step: jax.Array, start: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the step's batch `[B, ...]` of a block `[K, B, ...]` that begins at step `start`."""
        del key
        return {name: jax.lax.dynamic_index_in_dim(array, step - start, keepdims=False) for name, array in data.items()}


class _Read:
    """Reads the examples at positions `[K, B]` of a split; can be pickled, for worker processes."""

    def __init__(self, examples: Examples, indices: np.ndarray) -> None:
        self.examples, self.indices = examples, indices

    def __call__(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        rows = self.examples.read(self.indices[positions.reshape(-1)])
        return {key: array.reshape(positions.shape + array.shape[1:]) for key, array in rows.items()}


class StreamSource:
    """The training split, read in blocks of batches `[K, B, ...]` that go to the device ahead of their use."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int, workers: int = 0) -> None:
        self.feed = StreamFeed(batches_per_block(examples, batch_size))
        self._examples, self._indices = examples, indices
        self._batch_size, self._workers = batch_size, workers

    def examples(self) -> dict[str, jax.Array]:
        """Returns the first batch of the split, `[B, ...]`."""
        return jax.device_put(self._examples.read(self._indices[: self._batch_size]))

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
        """Returns blocks from block `first` on, for ever.

        Positions are shuffled, not examples: grain would read examples one by one, `_Read` a block at a time.
        """
        import grain

        # Neighbouring seeds would give neighbouring epochs' orders, so they are scattered first.
        scattered = int(np.random.SeedSequence(seed).generate_state(1)[0])
        positions = grain.MapDataset.range(len(self._indices)).shuffle(scattered)
        batches = positions.batch(self._batch_size, drop_remainder=True).repeat().batch(self.feed.batches)
        blocks = batches[first:].map(_Read(self._examples, self._indices))
        dataset = blocks.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if self._workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which only absl's own `app.run` parses
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            dataset = dataset.mp_prefetch(options)
        return grain.experimental.device_put(dataset, None, cpu_buffer_size=1, device_buffer_size=1)


class StreamSplit:
    """An evaluation split, read in blocks."""

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int) -> None:
        self.num_examples, self.batch_size = len(indices), batch_size
        self._examples, self._indices = examples, indices

    def blocks(self) -> Iterator[EvalBlock]:
        """Yields blocks of one shape that hold every example exactly once, in the order of their indices."""
        needed = -(-self.num_examples // self.batch_size)
        batches = min(needed, batches_per_block(self._examples, self.batch_size))
        for first in range(0, self.num_examples, batches * self.batch_size):
            yield jax.device_put(eval_block(self._examples, self._indices, first, batches, self.batch_size))
