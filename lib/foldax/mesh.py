"""The mesh of a run: its devices as a grid with named axes, and constraints on arrays inside of traced functions.

A batch is divided over the axes "data" and "fsdp", and so are the parallel environments of an agent. Large arrays of
the state are divided over "fsdp" too (fully sharded data parallelism: Rajbhandari et al., 2020). "tensor" is for the
rules of a model, which divide the arrays inside of it (Shoeybi et al., 2019).
"""

import math
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from foldax.errors import ConfigError, did_you_mean

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
ONE_DEVICE = "data=1"


def parse_mesh(text: str) -> dict[str, int]:
    """Parses the sizes of a mesh; -1 stands for the devices that the other axes leave.

    Args:
      text: sizes by axis, such as "data=2,fsdp=4"; axes that are not named have size 1.

    Raises:
      ConfigError: an axis is unknown or named twice, or a size is neither a positive integer nor a single -1.

    >>> parse_mesh("data=2,fsdp=-1")
    {'data': 2, 'fsdp': -1, 'tensor': 1}
    """
    sizes = dict.fromkeys(AXES, 1)
    names = []
    for item in text.split(","):
        name, _, size = (part.strip() for part in item.partition("="))
        if name not in AXES:
            hint = did_you_mean(name, AXES)
            raise ConfigError(f"mesh: {text!r} has no axis of a mesh in {item!r}{hint} (example: 'data=2,fsdp=4')")
        if not (size.isascii() and size.isdigit() and int(size) > 0) and size != "-1":
            allowed = "a positive number of devices, or -1 for all that the other axes leave"
            raise ConfigError(f"mesh: {size!r} is no size of {name!r} in {text!r}; allowed is {allowed}")
        sizes[name] = int(size)
        names.append(name)
    if len(names) > len(set(names)) or list(sizes.values()).count(-1) > 1:
        raise ConfigError(f"mesh: {text!r} must name each axis once ({', '.join(AXES)}), and have one -1 at most")
    return sizes


def mesh_sizes(text: str, num_devices: int, machine: str = "this machine") -> dict[str, int]:
    """Returns the size of each axis of a mesh on so many devices.

    Args:
      text: see `parse_mesh`.
      num_devices: devices that there are; a mesh may have fewer.
      machine: that has them, for errors.

    Raises:
      ConfigError: the text is no mesh, or its sizes do not fit the devices.

    >>> mesh_sizes("data=2,fsdp=-1", 8)
    {'data': 2, 'fsdp': 4, 'tensor': 1}
    """
    sizes = parse_mesh(text)
    given = math.prod(size for size in sizes.values() if size != -1)
    machine = f"{machine} has {num_devices}"
    if given > num_devices:
        raise ConfigError(f"mesh: {text!r} takes {given} devices, but {machine}")
    if -1 in sizes.values() and num_devices % given:
        raise ConfigError(f"mesh: {given} devices do not divide those that -1 shares out in {text!r}; {machine}")
    return {name: num_devices // given if size == -1 else size for name, size in sizes.items()}


def batch_sharding(device: Any, axis: int = 0) -> Any:
    """Returns the sharding of arrays whose batch axis is another one than the first.

    Args:
      device: a device, which is returned as it is, or the sharding of a batch `[B, ...]`.
      axis: number of the axis B of an array.
    """
    if not isinstance(device, NamedSharding):
        return device
    return NamedSharding(device.mesh, PartitionSpec(*[None] * axis, *device.spec))


def num_shards(device: Any) -> int:
    """Number of parts into which a sharding of a batch `[B, ...]` divides it; 1 for a device."""
    if not isinstance(device, NamedSharding) or not device.spec:
        return 1
    return math.prod(device.mesh.shape[name] for name in axis_names(device.spec[0]))


def axis_names(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in an entry of a `PartitionSpec`, which is None, a name or several names.

    >>> axis_names("data"), axis_names(None)
    (('data',), ())
    """
    return (entry,) if isinstance(entry, str) else entry or ()


def replicated(device: Any) -> Any:
    """Returns the sharding that gives a copy to each device of a sharding; a device is returned as it is."""
    return NamedSharding(device.mesh, PartitionSpec()) if isinstance(device, NamedSharding) else device


def put(tree: Any, device: Any) -> Any:
    """Transfers arrays to a device, or lays them out over several.

    Of devices of several processes, each process has all of every array, and puts the parts of its own devices.

    Args:
      tree: pytree of arrays.
      device: a device, a sharding, or a pytree of shardings.
    """
    shardings = jax.tree.leaves(device)
    if not any(isinstance(one, jax.sharding.Sharding) and not one.is_fully_addressable for one in shardings):
        return jax.device_put(tree, device)
    return jax.tree.map(_put_parts, tree, jax.tree.map(lambda _: device, tree) if len(shardings) == 1 else device)


def _put_parts(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts the parts of an array that belong on devices of this process."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _put_parts(jax.random.key_data(array), sharding), impl=jax.random.key_impl(array)
        )
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_batch(tree: Any, device: Any, axis: int = 0) -> Any:
    """Transfers arrays to a device, or divides them over several along their batch axis.

    Args:
      tree: pytree of arrays; those whose batch axis cannot be divided, or that have none, go to each device whole.
      device: a device, or the sharding of a batch `[B, ...]`.
      axis: number of the axis B.
    """
    if not isinstance(device, NamedSharding):
        return jax.device_put(tree, device)
    shards, divided, whole = num_shards(device), batch_sharding(device, axis), replicated(device)

    def sharding(x: Any) -> NamedSharding:
        return divided if jax.numpy.ndim(x) > axis and x.shape[axis] % shards == 0 else whole

    return put(tree, jax.tree.map(sharding, tree))


def fetch(tree: Any) -> Any:
    """Copies arrays to the host, as `jax.device_get` does; of those divided over processes, each gets all parts.

    All processes must call it, in the same order.

    >>> fetch({"x": jax.numpy.arange(2)})["x"].tolist()
    [0, 1]
    """

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


class BatchPart(NamedTuple):
    """The part of a batch that the devices of this process hold, where several processes divide it.

    Attributes:
      size: number of examples B of the whole batch.
      slices: of the batch, `(start, stop)` in order.
    """

    size: int
    slices: tuple[tuple[int, int], ...]

    def take(self, array: np.ndarray, axis: int = 0) -> np.ndarray:
        """Selects this process's part of an array along its batch axis."""
        return np.concatenate([array[(slice(None),) * axis + (slice(*part),)] for part in self.slices], axis)

    def put(self, tree: Any, device: Any, axis: int = 0) -> Any:
        """Makes whole arrays of the parts of all processes.

        Args:
          tree: pytree of this process's parts, in the order of `take`.
          device: the sharding of a batch `[B, ...]`.
          axis: number of the batch axis.
        """
        sharding = batch_sharding(device, axis)
        stops = np.cumsum([stop - start for start, stop in self.slices])
        places = {start: int(end) - (stop - start) for (start, stop), end in zip(self.slices, stops)}

        def whole(part: np.ndarray) -> jax.Array:
            part = np.asarray(part, jax.dtypes.canonicalize_dtype(part.dtype))

            def piece(index: Any) -> np.ndarray:
                start, stop, _ = index[axis].indices(self.size)
                own = slice(places[start], places[start] + stop - start)
                return part[(*index[:axis], own, *index[axis + 1 :])]

            shape = (*part.shape[:axis], self.size, *part.shape[axis + 1 :])
            return jax.make_array_from_callback(shape, sharding, piece)

        return jax.tree.map(whole, tree)


def batch_part(device: Any, size: int) -> BatchPart | None:
    """Finds which examples of a batch this process has to read; None if all, as where it is the only process.

    Args:
      device: a device, or the sharding of a batch `[B, ...]`.
      size: number of examples B.
    """
    if not isinstance(device, NamedSharding) or device.is_fully_addressable or size % num_shards(device):
        return None
    indices = device.addressable_devices_indices_map((size,)).values()
    return BatchPart(size, tuple(sorted({index[0].indices(size)[:2] for index in indices if index is not None})))


def shard_batch(tree: T, axis: int = 0) -> T:
    """Divides arrays along their batch axis over the devices of the run's mesh, inside of a traced function.

    The compiler then keeps every device at its own examples, between the blocks of a deep network for example. Without
    a mesh nothing is changed, nor are arrays whose batch axis the devices do not divide.

    Args:
      tree: pytree of arrays `[B, ...]`; those of too few axes stay as they are.
      axis: number of the axis B.

    >>> shard_batch({"x": jax.numpy.ones(3)})["x"].shape
    (3,)
    """
    mesh = _traced_mesh()
    if mesh is None:
        return tree
    shards = math.prod(mesh.shape[name] for name in BATCH_AXES)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))

    def constrain(x: Any) -> Any:
        if jax.numpy.ndim(x) <= axis or x.shape[axis] % shards:
            return x
        return jax.lax.with_sharding_constraint(x, sharding)

    return tree if shards == 1 else jax.tree.map(constrain, tree)


def replicate(tree: T) -> T:
    """Gives every device of the run's mesh all of each array, inside of a traced function.

    >>> replicate(jax.numpy.arange(2)).tolist()
    [0, 1]
    """
    mesh = _traced_mesh()
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def gather(tree: T) -> T:
    """Gives every device all of each parameter before it is used, inside of a traced function.

    Else XLA may divide the work of a layer by the parameters' axes, and send the whole batch around for it. The
    gradient has no such constraint: XLA adds it up where the parts of the parameter are.

    >>> gather({"kernel": jax.numpy.ones(3)})["kernel"].shape
    (3,)
    """
    return tree if _traced_mesh() is None else _gather(tree)


@jax.custom_vjp
def _gather(tree: T) -> T:
    return replicate(tree)


_gather.defvjp(lambda tree: (replicate(tree), None), lambda _, gradients: (gradients,))


def _traced_mesh() -> Any:
    """The mesh that the engine has set (`Layout.activate`); None if there is none, as in a sweep."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None
