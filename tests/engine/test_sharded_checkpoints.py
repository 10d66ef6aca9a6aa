"""Checkpoints of arrays that are divided over devices: saved as they are, restored onto any devices."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from foldax.engine import checkpoint_files as files
from foldax.engine import compiled
from foldax.engine.checkpoint import Checkpoints, read_arrays
from foldax.engine.state_leaves import host_arrays
from foldax.errors import RunError


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Checkpoints]:
    with contextlib.closing(Checkpoints(folder, lambda message: None)) as checkpoints:
        yield checkpoints


def state(num_devices: int, axis: str | None = "a") -> dict[str, Any]:
    """A state whose larger arrays are divided over devices, with a key and scalars on all of them."""
    rng = np.random.default_rng(0)
    values = {
        "kernel": rng.standard_normal((128, 6)).astype(np.float32),
        "half": rng.standard_normal((4, 3)).astype(jnp.bfloat16),
        "mask": rng.random((6, 2)) < 0.5,
        "bytes": rng.integers(-128, 127, (2, 5), np.int8),
        "empty": np.zeros((0, 2), np.float32),
    }
    tree: dict[str, Any] = {"values": values, "step": np.int32(7), "keys": jax.random.split(jax.random.key(1), 2)}
    if num_devices == 1:
        return jax.device_put(tree)
    mesh = jax.make_mesh((num_devices,), ("a",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:num_devices])
    every = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(tree, every)
    return placed | {"values": jax.device_put(values, NamedSharding(mesh, PartitionSpec(axis)))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder) as checkpoints:
        checkpoints.save(7, compiled.copy_in_place(state(2)), {"times": {"seconds": 1.5}})
        checkpoints.wait()
    return folder


@pytest.mark.parametrize(("num_devices", "axis"), [(2, "a"), (2, None), (1, None)])
def test_a_state_is_restored_onto_other_devices_to_the_bit(saved: Path, num_devices: int, axis: str | None) -> None:
    like = state(num_devices, axis)
    with opened(saved) as checkpoints:
        tree, _ = checkpoints.restore(jax.tree.map(lambda leaf: leaf, like))
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    for name, array in host_arrays(like).items():
        assert host_arrays(tree)[name].tobytes() == array.tobytes(), name


def test_arrays_of_divided_states_are_read_to_the_host(saved: Path) -> None:
    arrays, meta = read_arrays(saved, lambda name: name.startswith("values.k"))
    np.testing.assert_array_equal(arrays["values.kernel"], np.asarray(state(1)["values"]["kernel"]))
    assert meta["times"] == {"seconds": 1.5}


def test_a_divided_state_of_another_shape_is_refused(saved: Path) -> None:
    like = state(2)
    like["values"]["kernel"] = jnp.concatenate([like["values"]["kernel"]] * 2)
    with (
        opened(saved) as checkpoints,
        pytest.raises(RunError, match=r"`values.kernel` is float32\(128, 6\), not float32"),
    ):
        checkpoints.restore(like)


@contextlib.contextmanager
def flipped(path: Path, place: int) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_flipped_byte_of_an_array_is_named(saved: Path, num_devices: int) -> None:
    with opened(saved) as checkpoints:
        array = host_arrays(state(1))["values.kernel"]
        content = array[: len(array) // 2].tobytes()  # of the first device
        path = next(path for path in files_of(saved / "7") if content in path.read_bytes())
        for place in (0, len(content) // 2, len(content) - 1):
            damage = flipped(path, path.read_bytes().index(content) + place)
            with damage, pytest.raises(RunError, match="7: the checksum of `values.kernel` does not fit"):
                checkpoints.restore(state(num_devices))


def test_a_flipped_byte_of_any_file_is_found_or_does_no_harm(saved: Path) -> None:
    like, rng = state(2), np.random.default_rng(0)
    with opened(saved) as checkpoints:
        for path in files_of(saved / "7"):
            for place in rng.integers(0, path.stat().st_size, 3):
                with flipped(path, place), contextlib.suppress(RunError):
                    restored, meta = checkpoints.restore(like)
                    assert meta["times"] == {"seconds": 1.5}
                    for name, array in host_arrays(like).items():
                        assert host_arrays(restored)[name].tobytes() == array.tobytes(), (path, place)


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They hold NumPy arrays, and their CRC-32."""
    from orbax.checkpoint import args

    like = state(2)
    arrays = {name: array for name, array in host_arrays(like).items() if array.size}
    meta = {"step": 3, "checksums": {n: zlib.crc32(x.reshape(-1).view(np.uint8).data) for n, x in arrays.items()}}
    meta["checksums"]["values.empty"] = 0
    with files.open_manager(tmp_path) as manager:
        manager.save(3, args=args.Composite(arrays=args.PyTreeSave(arrays), meta=args.JsonSave(meta)), force=True)
    with opened(tmp_path) as checkpoints:
        tree, _ = checkpoints.restore(like)
        assert tree["values"]["kernel"].sharding == like["values"]["kernel"].sharding
        for name, array in arrays.items():
            assert host_arrays(tree)[name].tobytes() == array.tobytes(), name
