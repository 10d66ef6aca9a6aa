"""Checksums of arrays that are the same however an array is divided over devices, hosts and processes.

The bits of an array are a sequence of 32-bit words. A checksum is the sum modulo 2^32 of every word after mixing it
with its position, by two rounds of MurmurHash3's finalizer (Appleby, 2011). Mixing is one to one, so a change of a
single word is always found; any other one is missed with a probability of about 2^-32. A sum has no order, so each
device, and each process, adds up the words that it holds.
"""

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio, as in Fibonacci hashing: spreads the positions
ROUNDS = ((15, 0x85EBCA6B), (13, 0xC2B2AE35))  # of MurmurHash3's finalizer
THREADED_BYTES, MAX_THREADS = 1 << 24, 4  # NumPy lets other threads work; starting them costs as much as 1 MB
BLOCK_WORDS = 1 << 14  # what NumPy mixes at once, in the processor's cache


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Computes a checksum of each array, on the devices that hold it.

    Args:
      arrays: NumPy or JAX arrays by name, of any dtype but random keys; JAX's may be divided over devices and
        processes, which must all call this.

    Returns:
      Unsigned 32-bit integers by name.

    >>> checksums({"bias": np.arange(3.0)}) == checksums({"bias": jnp.arange(3.0, dtype=float)})
    False
    >>> checksums({"bias": np.ones(3, np.int8)}) == checksums({"bias": jnp.ones(3, jnp.int8)})
    True
    """
    on_devices = {name: array for name, array in arrays.items() if not is_in_host_memory(array)}
    sums = jax.device_get(device_checksums(on_devices)) if on_devices else {}
    on_host = {name: array for name, array in arrays.items() if name not in on_devices}

    def host_checksum(array: Any) -> int:
        return sum(map(_piece_checksum, _pieces(array))) % 2**32

    if sum(array.nbytes for array in on_host.values()) < THREADED_BYTES:
        sums |= {name: host_checksum(array) for name, array in on_host.items()}
    else:
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            sums |= dict(zip(on_host, pool.map(host_checksum, on_host.values()), strict=True))
    return {name: int(sums[name]) for name in arrays}


def is_in_host_memory(array: Any) -> bool:
    """Whether NumPy can read an array where it is: of JAX's, those of this process on CPUs or copied to the host.

    >>> is_in_host_memory(np.zeros(3))
    True
    """
    if not isinstance(array, jax.Array):
        return True
    is_on_cpus = all(device.platform == "cpu" for device in array.devices())
    return array.is_fully_addressable and (is_on_cpus or str(array.sharding.memory_kind).endswith("_host"))


def host_pieces(array: Any) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Lists the parts of an array in host memory, without copying them, as `(index, part)`; each element is in one."""
    if not isinstance(array, jax.Array):
        return [((slice(None),) * np.ndim(array), np.asarray(array))]
    return [(shard.index, np.asarray(shard.data)) for shard in array.addressable_shards if shard.replica_id == 0]


@jax.jit
def device_checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes the checksums of JAX arrays in one compiled program, as uint32 [] by name."""
    return {name: _device_checksum(array) for name, array in arrays.items()}


def _device_checksum(array: jax.Array) -> jax.Array:
    words = _device_words(array)
    position, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        # Times the golden ratio's number, which all positions are multiplied by.
        step = np.uint32(stride * GOLDEN % 2**32)
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * step
        stride *= words.shape[axis]
    words = words + position
    for shift, factor in ROUNDS:
        words = words * np.uint32(factor)
        words = words ^ (words >> np.uint32(shift))
    return jnp.sum(words, dtype=jnp.uint32)


def _device_words(array: jax.Array) -> jax.Array:
    """Views an array `[..., N]` as uint32 words `[..., M]`; shards of whole words stay where they are."""
    array = array[None] if array.ndim == 0 else array
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = _merge_last(jnp.stack([array.real, array.imag], axis=-1))
    elif array.dtype == jnp.bool_ or _has_part_of_bytes(array.dtype):
        array = array.astype(jnp.int8)
    size = array.dtype.itemsize
    if size >= 4:
        words = jax.lax.bitcast_convert_type(array, jnp.uint32)
        return words if size == 4 else _merge_last(words)
    if not _is_packed(array.shape[-1], size):
        return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array.reshape(*array.shape[:-1], -1, 4 // size), jnp.uint32)


def _merge_last(array: jax.Array) -> jax.Array:
    return array.reshape(*array.shape[:-2], math.prod(array.shape[-2:]))


def _has_part_of_bytes(dtype: Any) -> bool:
    """Whether numbers of a type have less than 8 bits, such as int4, which NumPy has a byte each for."""
    return bool(jnp.issubdtype(dtype, np.integer)) and jnp.iinfo(dtype).bits < 8


def _is_packed(length: int, itemsize: int) -> bool:
    """Whether whole words fit the last axis; else each of its elements is a word."""
    return length * itemsize % 4 == 0


def _pieces(array: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the words of an array in host memory in rows `[R, C]`, and the position of each row's first one `[R]`."""
    shape = list(np.shape(array)) or [1]
    if not math.prod(shape):
        return
    pieces = [(index or (slice(None),), part.reshape(part.shape or (1,))) for index, part in host_pieces(array)]
    packed = _is_packed(shape[-1], array.dtype.itemsize) or array.dtype.itemsize >= 4
    if packed and any((index[-1].start or 0) * array.dtype.itemsize % 4 for index, _ in pieces):
        pieces = [((slice(None),) * len(shape), np.asarray(array))]  # a word is divided over two devices
    for index, part in pieces:
        starts = [axis.start or 0 for axis in index]
        words = _host_words(part, packed)
        scale = words.size / part.size
        sizes = [*shape[:-1], round(shape[-1] * scale)]
        starts[-1] = round(starts[-1] * scale)
        # What follows an axis of which all is here is one row with it.
        axis = len(sizes) - 1
        while axis > 0 and words.shape[axis] == sizes[axis]:
            axis -= 1
        first = np.uint64(0)
        for d in range(axis + 1):
            number = words.shape[d] if d < axis else 1
            positions = (starts[d] + np.arange(number, dtype=np.uint64)) * np.uint64(math.prod(sizes[d + 1 :]))
            first = np.add.outer(first, positions)
        rows = np.ravel(first)
        yield words.reshape(rows.size, -1), rows.astype(np.uint32)


def _host_words(array: np.ndarray, packed: bool) -> np.ndarray:
    if _has_part_of_bytes(array.dtype):
        array = array.astype(np.int8)
    array = np.ascontiguousarray(array)
    return array.view(np.uint32) if packed else array.view(f"u{array.dtype.itemsize}").astype(np.uint32)


def _piece_checksum(piece: tuple[np.ndarray, np.ndarray]) -> int:
    """Does with NumPy what `_device_checksum` does, block by block in buffers that stay in the processor's cache."""
    words, positions = piece
    width = min(BLOCK_WORDS, words.shape[1])
    height = min(BLOCK_WORDS // width, len(words))
    columns = np.arange(width, dtype=np.uint32) * np.uint32(GOLDEN)
    buffers, total = np.empty((2, height, width), np.uint32), 0
    for row in range(0, len(words), height):
        for column in range(0, words.shape[1], width):
            block = words[row : row + height, column : column + width]
            mixed, shifted = buffers[:, : block.shape[0], : block.shape[1]]
            offsets = (positions[row : row + height] + np.uint32(column % 2**32)) * np.uint32(GOLDEN)
            np.add(block, columns[: block.shape[1]], out=mixed)
            mixed += offsets[:, None]
            for shift, factor in ROUNDS:
                mixed *= np.uint32(factor)
                np.right_shift(mixed, np.uint32(shift), out=shifted)
                mixed ^= shifted
            total += int(mixed.sum(dtype=np.uint32))
    return total
