"""Sources of batches: splits that fit are kept on the device, larger ones are streamed."""

import atexit
import contextlib
import copy
import gc
import multiprocessing
import os
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from foldax.data.info import BLOCK_BYTES, Examples, example_bytes, memory_mapped, temporary_folders
from foldax.data.processes import starting_processes
from foldax.data.protocol import DataBlock, EvaluationBlock, Policy
from foldax.data.sampling import TRANSFORM_STREAM, WeightedFeed, batch_generator, draw_rows, sampling_bounds
from foldax.data.shuffle import shuffled_indices
from foldax.errors import DataError
from foldax.mesh import BatchPart, batch_part, num_shards, put, put_batch, replicate, replicated

Batch = dict[str, jax.Array]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
MAX_BATCHES = 64  # batches in a block of a stream
# Examples in a block of a stream: grain shuffles positions one by one, 50,000 a second, and a stream that is closed
# waits for the blocks that are being read.
MAX_EXAMPLES = 2**15
MAX_STEPS = 2**40  # batches of a stream without epochs
RELEASE_SECONDS = 1.0  # at most, at exit
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


class DeviceFeed(NamedTuple):
    """Selects the batch of a step from data on the device; static under jit."""

    num_examples: int
    batch_size: int

    def batch(self, data: Batch, key: jax.Array, step: jax.Array, start: jax.Array) -> Batch:
        """Selects the batch `[B, ...]` of a step: the next rows in the random order of its epoch.

        The order depends only on the key and the epoch, so a resumed run needs no iterator state. An incomplete last
        batch of an epoch is dropped.
        """
        # Integer division drops the incomplete last batch.
        steps_per_epoch = self.num_examples // self.batch_size
        epoch, position = step // steps_per_epoch, step % steps_per_epoch
        positions = position * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        # Positions are unique within an epoch, and the shuffle is a bijection, so no example occurs twice.
        rows = replicate(shuffled_indices(key, epoch, positions, self.num_examples))
        return {name: array.at[rows].get(mode="promise_in_bounds") for name, array in data.items()}


class DeviceSource:
    """The whole training split on the device; transferred at its first use.

    Args:
      examples: all examples of the dataset.
      indices: int `[N]`, those of the split.
      batch_size: examples per batch.
      weights: float `[N]`, of examples that are sampled with replacement; None shuffles them every epoch.
    """

    def __init__(
        self, examples: Examples, indices: np.ndarray, batch_size: int, weights: np.ndarray | None = None
    ) -> None:
        self.device: Any = None
        self.feed: DeviceFeed | WeightedFeed = DeviceFeed(len(indices), batch_size)
        self.bounds = None
        if weights is not None:
            self.feed, self.bounds = WeightedFeed(len(indices), batch_size), sampling_bounds(weights)
        self.all_examples, self.indices = examples, indices

    @cached_property
    def _data(self) -> tuple[Batch, jax.Array | None]:
        # Over several devices rows are divided; the first ones again fill up the last device, and are never drawn.
        shards = num_shards(self.device)
        rows = np.resize(self.indices, -(-len(self.indices) // shards) * shards)
        data = _read_and_put(self.all_examples.read, rows, self.device)
        return data, None if self.bounds is None else put(self.bounds, replicated(self.device))

    def examples(self) -> Batch:
        """The whole training split, arrays `[N, ...]`."""
        if len(self.indices) % num_shards(self.device) == 0:
            return self._data[0]
        whole = {name: array[: len(self.indices)] for name, array in self._data[0].items()}
        return put(whole, replicated(self.device))

    def blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        """Yields the one block that serves every step."""
        yield DataBlock(self._data[0] if self.bounds is None else self._data)


class StreamFeed(NamedTuple):
    """Selects the batch of a step from a block; static under jit."""

    batches: int

    def batch(self, data: Batch, key: jax.Array, step: jax.Array, start: jax.Array) -> Batch:
        """Selects the batch `[B, ...]` of a step from a block `[K, B, ...]` that begins at step `start`."""
        return {name: jax.lax.dynamic_index_in_dim(array, step - start, keepdims=False) for name, array in data.items()}


class StreamSource:
    """The training split, read in blocks of batches `[K, B, ...]` and prefetched to the device.

    Args:
      examples: all examples of the dataset.
      indices: int `[N]`, those of the split.
      batch_size: examples per batch.
      workers: processes that read ahead; 0 reads in threads of this process.
      weights: float `[N]`, of examples that are sampled with replacement; None shuffles them every epoch.
      transform: changes every batch where it is read, given a random generator of its own.
    """

    def __init__(
        self,
        examples: Examples,
        indices: np.ndarray,
        batch_size: int,
        workers: int = 0,
        weights: np.ndarray | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.device: Any = None
        self.transform = transform
        self.bounds = None if weights is None else sampling_bounds(weights)
        self.feed = StreamFeed(max(1, min(_batches_per_block(examples, batch_size), MAX_EXAMPLES // batch_size)))
        self.all_examples, self.indices = memory_mapped(examples) if workers else examples, indices
        self._batch_size, self.workers = batch_size, workers

    def examples(self) -> Batch:
        """The first batch of the split, `[B, ...]`."""
        batch = self.all_examples.read(self.indices[: self._batch_size])
        if self.transform is not None:
            batch = transform_batch(self.transform, batch, batch_generator(0, 0, TRANSFORM_STREAM))
        return put_batch(batch, self.device)

    def blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        """Yields the block that contains `step`, then the blocks after it, without end.

        The seed determines the random order of every epoch; an incomplete last batch of an epoch is dropped. Close the
        iterator to end its threads and processes.

        Args:
          seed: seed of the order.
          step: a training step in the first block. A run may resume with another number of workers, and with blocks of
            another size.
        """
        return close_at_exit(self._blocks(seed, step))

    def _blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        size = self.feed.batches
        start = step // size * size
        with contextlib.ExitStack() as stack:
            with starting_processes(self.workers) if self.workers else contextlib.nullcontext():
                iterator = iter(self._pipeline(seed, start // size))
                stack.callback(iterator.close)
                block = _next_block(iterator)
            while True:
                yield DataBlock(block, start, start + size)
                start, block = start + size, _next_block(iterator)

    def _pipeline(self, seed: int, first: int) -> Any:
        """Iterates over blocks from `first` on; shuffles positions, because grain would read examples one by one."""
        import grain

        # Grain adds the epoch to the seed, so neighbouring seeds would share orders; hash the seed first.
        scattered = int(np.random.SeedSequence(seed).generate_state(1)[0])
        if self.bounds is None:
            positions = grain.MapDataset.range(len(self.indices)).shuffle(scattered)
            # First batches of an epoch, then blocks of batches, which may span two epochs.
            batches = positions.batch(self._batch_size, drop_remainder=True, batch_fn=np.array).repeat()
        else:
            draw = partial(draw_rows, self.bounds, scattered, self._batch_size)
            batches = grain.MapDataset.range(MAX_STEPS).map(draw)
        read = partial(_read, self.all_examples, self.indices)
        # Each process reads its part of every batch; a transform needs all of it.
        part = batch_part(self.device, self._batch_size) if self.transform is None else None
        if self.transform is None:
            blocks = batches.batch(self.feed.batches)[first:].map(partial(_read_part, read, part))
        else:
            transformed = partial(_read_transformed, read, self.transform, scattered)
            blocks = batches.batch(self.feed.batches).map_with_index(transformed)[first:]
        dataset = blocks.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if self.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which only `app.run` parses
            options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=1)
            end_with_parent = partial(_end_with_parent, temporary_folders(self.all_examples))
            dataset = dataset.mp_prefetch(options, worker_init_fn=end_with_parent)
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)
        if part is None:
            dataset = dataset.map(partial(put_batch, device=self.device, axis=1))
        else:
            dataset = dataset.map(partial(part.put, device=self.device, axis=1))
        return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)


class Split:
    """An evaluation split: whole on the device, transferred at its first use, or read in blocks.

    Args:
      examples: all examples of the dataset.
      indices: int `[N]`, those of the split.
      batch_size: examples per batch.
      whole: keep the whole split on the device; else read it in blocks.
    """

    def __init__(self, examples: Examples, indices: np.ndarray, batch_size: int, *, whole: bool) -> None:
        self.device: Any = None
        self.num_examples, self.batch_size, self.is_whole = len(indices), batch_size, whole
        self.all_examples, self.indices = examples, indices
        batches = -(-len(indices) // batch_size)
        self._batches = batches if whole else min(batches, _batches_per_block(examples, batch_size))

    @cached_property
    def _first(self) -> EvaluationBlock:
        return self._block(0)

    def blocks(self, policy: Any = None) -> Iterator[EvaluationBlock]:
        """Yields blocks of one shape that hold every example exactly once, in order; padding repeats the first one."""
        starts = range(0, self.num_examples, self._batches * self.batch_size)
        yield from [self._first] if len(starts) == 1 else map(self._block, starts)

    def block_spec(self) -> EvaluationBlock:
        """Shapes and dtypes of a block, without reading any data."""
        shape = (self._batches, self.batch_size)
        batches = {
            name: jax.ShapeDtypeStruct((*shape, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype))
            for name, leaf in self.all_examples.spec.items()
        }
        return EvaluationBlock(batches, jax.ShapeDtypeStruct(shape, np.bool_))

    def examples(self) -> dict[str, np.ndarray]:
        """All examples, arrays `[N, ...]` on the host by key."""
        blocks = [(jax.device_get(block.batches), np.asarray(block.mask)) for block in self.blocks()]
        return {key: np.concatenate([batches[key][mask] for batches, mask in blocks]) for key in blocks[0][0]}

    def _block(self, start: int) -> EvaluationBlock:
        positions = start + np.arange(self._batches * self.batch_size).reshape(self._batches, self.batch_size)
        # Padding repeats example 0; its outputs are masked out.
        mask = positions < self.num_examples
        read = partial(_read, self.all_examples, self.indices)
        batches = _read_and_put(read, np.where(mask, positions, 0), self.device, axis=1)
        return EvaluationBlock(batches, put_batch(mask, self.device, axis=1))


def on_device(source: Any, device: Any) -> Any:
    """Returns a copy of a source for another device, or for the sharding of a batch `[B, ...]` over several.

    Arrays already transferred are not copied. A source that is divided like this already is returned as it is.
    """
    if isinstance(device, NamedSharding) and source.device == device:
        return source
    other = copy.copy(source)
    other.device = device
    for cached in ("_data", "_first"):
        other.__dict__.pop(cached, None)
    return other


def _batches_per_block(examples: Examples, batch_size: int) -> int:
    """Number of batches in a block of about 32 MiB."""
    return max(1, min(MAX_BATCHES, BLOCK_BYTES // max(1, batch_size * example_bytes(examples))))


def _read(examples: Examples, indices: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Reads the examples at positions `[K, B]` of a split; a module-level function, so that workers can unpickle it."""
    rows = examples.read(indices[positions.reshape(-1)])
    return {key: array.reshape(positions.shape + array.shape[1:]) for key, array in rows.items()}


def _read_part(
    read: Callable[[np.ndarray], dict[str, np.ndarray]], part: BatchPart | None, positions: np.ndarray
) -> dict[str, np.ndarray]:
    """Reads this process's part of a block of batches, at positions `[K, B]`."""
    return read(positions if part is None else part.take(positions, axis=1))


def _read_and_put(
    read: Callable[[np.ndarray], dict[str, np.ndarray]], rows: np.ndarray, device: Any, axis: int = 0
) -> Batch:
    """Reads a batch and puts it onto a device, or several; of several processes, each reads the rows of its devices."""
    part = batch_part(device, rows.shape[axis])
    if part is None:
        return put_batch(read(rows), device, axis)
    return part.put(read(part.take(rows, axis)), device, axis)


def _read_transformed(
    read: Callable[[np.ndarray], dict[str, np.ndarray]],
    transform: Transform,
    seed: int,
    block: int,
    positions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Reads a block and transforms its batches, each by a generator that depends on the seed and its number alone."""
    rows, first = read(positions), block * len(positions)
    batches = []
    for k in range(len(positions)):
        # Another stream than the one that may have chosen the rows.
        random = batch_generator(seed, first + k, TRANSFORM_STREAM)
        batches.append(transform_batch(transform, {key: array[k] for key, array in rows.items()}, random))
    return {key: np.stack([batch[key] for batch in batches]) for key in rows}


def close_at_exit(blocks: Generator[DataBlock, Policy | None, None]) -> Generator[DataBlock, Policy | None, None]:
    """Returns an iterator that is closed at exit if it is still open then, or its threads would block the exit."""
    _OPEN.add(blocks)
    return blocks


def transform_batch(
    transform: Transform, batch: dict[str, np.ndarray], random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Applies a transform on the host to a batch `[B, ...]`.

    Raises:
      DataError: the result has other keys, shapes or dtypes.
    """

    def specs(arrays: dict[str, Any]) -> str:
        return ", ".join(f"{key!r} {arrays[key].dtype}{list(arrays[key].shape)}" for key in sorted(arrays))

    expected = specs(batch)
    result = transform(batch, random)
    found = type(result).__name__
    if isinstance(result, dict):
        result = {key: np.asarray(value) for key, value in result.items()}
        found = specs(result)
    if found != expected:
        remedy = "change shapes and dtypes of all splits before the dataset is made"
        raise DataError(f"transform: it must return arrays as it gets, {expected}; it returned {found}; {remedy}")
    return result


def _next_block(iterator: Iterator[Batch]) -> Batch:
    try:
        return next(iterator)
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        remedy = "it may have been killed for want of memory: each holds the blocks that it reads ahead, so take fewer "
        remedy += "workers, or 0"
        raise DataError(f"a process that reads the stream ended ({str(error).split('.')[0]}); {remedy}") from error


def _end_with_parent(folders: list[str], worker: int, num_workers: int) -> None:
    """Lets a worker process end when its parent does, also if that was killed; removes folders of the parent."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@atexit.register
def _close_all() -> None:
    """Closes open iterators at exit, while the modules that they need are still loaded."""
    for blocks in list(_OPEN):
        blocks.close()
    if "multiprocessing.shared_memory" in sys.modules:
        _await_release()


def _await_release() -> None:
    """Waits until memory that workers share is released: else Python would report it as leaked."""
    from multiprocessing.shared_memory import SharedMemory

    # JAX gives memory that it borrowed back at the next collection of garbage, and grain then frees it in a thread.
    gc.collect()
    end = time.monotonic() + RELEASE_SECONDS
    while any(type(one) is SharedMemory for one in gc.get_objects()) and time.monotonic() < end:
        time.sleep(0.01)
