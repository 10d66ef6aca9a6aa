"""Checksums: equal for equal bits on any devices, different for any other ones."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.engine import checksums as module
from foldax.engine.checksums import checksums, device_checksums

DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "bool", "complex64", "int4", "float8_e4m3fn"]
SHAPES = [(), (0,), (3,), (8,), (6, 3), (4, 6), (4, 8, 16), (2, 40_000)]
SPECS = [("a",), (None, "a"), (None, None, "a")]


def array_of(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 5).astype(np.float32).astype(jnp.dtype(dtype))


def divided(array: np.ndarray) -> list[jax.Array]:
    """Returns the array on two devices, copied and divided along each axis that can be."""
    mesh = jax.make_mesh((2,), ("a",), (jax.sharding.AxisType.Auto,))
    possible = [spec for spec in SPECS if len(spec) <= array.ndim and array.shape[len(spec) - 1] % 2 == 0]
    return [
        jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        for spec in ((), *possible)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_does_not_matter(dtype: str) -> None:
    arrays = {str(shape): array_of(shape, dtype) for shape in SHAPES}
    on_devices = {f"{name} {i}": one for name, array in arrays.items() for i, one in enumerate(divided(array))}
    sums = checksums(arrays)
    for name, value in checksums(on_devices).items():
        assert value == sums[name[: name.index(")") + 1]], name


def test_the_compiled_program_gives_the_same() -> None:
    arrays = {f"{shape} {dtype}": array_of(shape, dtype) for dtype in DTYPES[:6] for shape in SHAPES[2:6]}
    arrays |= {dtype: array_of((4, 6), dtype) for dtype in DTYPES[6:]}
    assert {name: int(value) for name, value in device_checksums(arrays).items()} == checksums(arrays)


def test_blocks_and_threads_do_not_matter(monkeypatch) -> None:
    array = array_of((3, 5_000), "float32")
    whole = checksums({"x": array})
    monkeypatch.setattr(module, "BLOCK_WORDS", 128)
    assert checksums({"x": array}) == whole
    monkeypatch.setattr(module, "THREADED_BYTES", 0)
    assert checksums({"x": array}) == whole


def test_every_flipped_byte_is_found() -> None:
    array = array_of((64,), "float32")
    whole = checksums({"x": array})["x"]
    for byte in range(array.nbytes):
        for change in (1, 0x80, 0xFF):
            flipped = array.copy()
            flipped.view(np.uint8)[byte] ^= change
            assert checksums({"x": flipped})["x"] != whole


@pytest.mark.parametrize("size", [1, 2, 64, 1_024])
def test_swapped_blocks_are_found(size: int) -> None:
    array = array_of((4, 1_024), "float32")
    array[1] = -array[0]  # values that differ in their highest bit alone
    swapped = array.copy()
    swapped[0, :size], swapped[1, :size] = array[1, :size], array[0, :size]
    shifted = np.roll(array, size)
    assert len({checksums({"x": x})["x"] for x in (array, swapped, shifted, array[::-1])}) == 4


def test_random_changes_are_as_hard_to_miss_as_for_crc32() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 2, 32, np.uint32) for _ in range(2_000)]
    assert len({checksums({"x": x})["x"] for x in arrays}) == len({zlib.crc32(x.tobytes()) for x in arrays}) == 2_000
