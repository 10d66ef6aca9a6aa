"""The leaves of a state by path, as they are saved, hashed and compared."""

import hashlib
from typing import Any

import jax
import numpy as np

from foldax.errors import ExperimentError
from foldax.mesh import fetch


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Flattens a pytree to its leaves by path, such as `state.params.Dense_0.kernel`.

    Raises:
      ExperimentError: two leaves have the same path.

    >>> leaves_by_path({"params": {"kernel": 1, "bias": 2}})
    {'params.bias': 2, 'params.kernel': 1}
    """
    by_path: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if path in by_path:
            raise ExperimentError(f"two arrays of the state have the path `{path}`: rename a key that holds a dot")
        by_path[path] = leaf
    return by_path


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Copies the leaves of a pytree to NumPy arrays by path; random keys become their uint32 data.

    >>> host_arrays({"step": jax.numpy.int32(3)})
    {'step': array(3, dtype=int32)}
    """
    return {name: _host_array(leaf) for name, leaf in leaves_by_path(tree).items()}


def _host_array(leaf: Any) -> np.ndarray:
    return np.asarray(fetch(jax.random.key_data(leaf) if is_key(leaf) else leaf))


def saved_array(leaf: Any) -> Any:
    """Returns a leaf as a checkpoint holds it, on its devices: of random keys, their uint32 data.

    >>> saved_array(jax.random.key(0)).dtype
    dtype('uint32')
    """
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def tree_from_arrays(arrays: dict[str, Any], like: Any) -> Any:
    """Rebuilds a pytree from arrays by path, the inverse of `host_arrays`.

    Args:
      arrays: NumPy or JAX arrays by path.
      like: a pytree of the structure to build; its leaves, or their shapes, say which arrays are random keys.

    >>> state = {"key": jax.random.key(1), "step": jax.numpy.int32(3)}
    >>> int(tree_from_arrays(host_arrays(state), state)["step"])
    3
    """

    leaves = [typed_array(jax.numpy.asarray(arrays[name]), leaf) for name, leaf in leaves_by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def state_digest(state: Any) -> str:
    """Hashes all bits of a state, with the paths, dtypes and shapes of its arrays (SHA-256, as hexadecimal digits).

    >>> state_digest({"step": jax.numpy.int32(3)})[:8] == state_digest({"step": jax.numpy.int32(4)})[:8]
    False
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves_by_path(state).items()):
        array = _host_array(leaf)  # one at a time: all of them may be too large for one host
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed random keys, which NumPy has no type for.

    >>> is_key(jax.random.key(0)), is_key(jax.numpy.zeros(2))
    (True, False)
    """
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def typed_array(array: jax.Array, like: Any) -> jax.Array:
    """Makes random keys of their uint32 data where `like` holds keys; returns other arrays as they are.

    >>> bool(typed_array(jax.random.key_data(jax.random.key(3)), jax.random.key(0)) == jax.random.key(3))
    True
    """
    if not is_key(like):
        return array
    # A spec has the type of its keys, and only an array tells its name.
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jax.numpy.empty(0, like.dtype)))


def array_spec(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a leaf as a checkpoint holds it: of random keys, those of their uint32 data.

    Where the leaf is on several devices, so is the spec.

    >>> array_spec(jax.random.key(0))
    ShapeDtypeStruct(shape=(2,), dtype=uint32)
    """
    if is_key(leaf):
        is_array = isinstance(leaf, jax.Array)
        leaf = jax.random.key_data(leaf) if is_array else jax.eval_shape(jax.random.key_data, leaf)
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    if sharding is not None and len(sharding.device_set) == 1:
        sharding = None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
