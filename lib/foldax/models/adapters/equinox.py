"""Modules of Equinox as models."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from foldax.errors import ExperimentError
from foldax.extras import import_extra
from foldax.models.adapters.checks import check_factory
from foldax.models.adapters.variables import Path, dropout_key, get_variables, initial_key, path_names, put_variables


class EquinoxModel(nn.Module):
    """A module of Equinox as a Linen module; made by `from_equinox`.

    Attributes:
      factory: `key -> module`.
      axis_name: name of the batch axis.
    """

    factory: Callable[[Any], Any]
    axis_name: str = "batch"

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False, **options: Any) -> Any:
        """Calls the module on every example of a batch, in training or inference mode."""
        module, state = _build_module(self.factory, initial_key(self))
        if self.is_initializing():
            put_variables(self, _arrays(module) | _state_arrays(module, state))
        else:
            leaves = get_variables(self, _arrays(module) | _state_arrays(module, state))
            module, state = _replace_arrays(module, leaves), _replace_state(module, state, leaves)
        module = _equinox().nn.inference_mode(module, value=not train)
        outputs, state = _batched_call(module, state, inputs, options, dropout_key(self), self.axis_name)
        if not self.is_initializing():
            put_variables(self, _state_arrays(module, state))
        return outputs

    def __getattr__(self, name: str) -> Any:
        # Sizes that learners ask for, such as `num_classes`; Linen itself looks up names with underscores.
        if name.startswith("_") or "factory" not in self.__dict__:
            raise AttributeError(name)
        return getattr(_equinox().filter_eval_shape(_build_module, self.factory, jax.random.key(0))[0], name)


def from_equinox(factory: Callable[[Any], Any], axis_name: str = "batch") -> EquinoxModel:
    """Adapts a module of Equinox to every learner.

    The module takes one example and is mapped over the batch by `jax.vmap`. Its floating-point arrays become the
    collection "params", other arrays (integers, random keys) "constants", and the values of its `eqx.nn.StateIndex`es
    "state", which the module then takes as its second argument and returns with its outputs. The rate of an
    `eqx.nn.Dropout` is no parameter, and may be traced. Paths are those of the attributes, such as "layers/0/weight".

    Args:
      factory: pure function `key -> module`, or `key -> (module, state)` as `eqx.nn.make_with_state` makes it. It is
        called in every trace, so it must do the same each time.
      axis_name: name of the batch axis, for `eqx.nn.BatchNorm(..., axis_name="batch")`.

    Returns:
      A Linen module. Arguments with the batch axis are mapped, others are passed on as they are; `key=` is a key per
      example where the module takes one, and `inference` flags follow `train`. It has the attributes of the Equinox
      module, such as `num_classes`.

    Raises:
      ExperimentError: `factory` is a module, or while tracing, does not return one; or the learner does not keep the
        module's state, as agents do not.
      FoldaxError: Equinox is not installed.

    >>> import equinox as eqx
    >>> import jax.numpy as jnp
    >>> model = from_equinox(lambda key: eqx.nn.Linear(3, 5, key=key))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> variables["params"]["weight"].shape, model.apply(variables, jnp.ones((2, 3))).shape
    ((5, 3), (2, 5))
    """
    _equinox()  # or its absence is an error here
    check_factory("equinox", factory)
    return EquinoxModel(factory, axis_name)


@functools.cache  # imports hide warnings, which is not safe in several threads at once
def _equinox() -> Any:
    return import_extra("equinox", "equinox", ExperimentError)


def _build_module(factory: Callable[[Any], Any], key: jax.Array) -> tuple[Any, Any]:
    eqx, built = _equinox(), factory(key)
    if isinstance(built, tuple) and len(built) == 2 and isinstance(built[1], eqx.nn.State):
        module, state = built
    else:
        module, state = eqx.nn.make_with_state(lambda: built)()
    if not isinstance(module, eqx.Module):
        raise ExperimentError(f"from_equinox: the function must return an eqx.Module, got a {type(module).__name__}")
    return module, state


def _collections(module: Any) -> Any:
    """Returns a tree as the module, with the collection of each leaf; "" where it is not stored."""
    eqx = _equinox()

    def collection(node: Any) -> Any:
        # A traced rate is an array too, but the config's.
        if isinstance(node, eqx.nn.Dropout):
            return jax.tree.map(lambda leaf: "", node)
        return "params" if eqx.is_inexact_array(node) else "constants" if eqx.is_array(node) else ""

    return jax.tree.map(collection, module, is_leaf=lambda node: isinstance(node, eqx.nn.Dropout))


def _stored_leaves(module: Any) -> list[tuple[Path, Any]]:
    """Lists all leaves of a module by collection and path, an empty path where a leaf is not stored."""
    leaves, collections = jax.tree_util.tree_leaves_with_path(module), jax.tree.leaves(_collections(module))
    named = zip(leaves, collections, strict=True)
    return [((collection, *path_names(path)) if collection else (), leaf) for (path, leaf), collection in named]


def _arrays(module: Any) -> dict[Path, jax.Array]:
    return {path: leaf for path, leaf in _stored_leaves(module) if path}


def _replace_arrays(module: Any, values: dict[Path, jax.Array]) -> Any:
    leaves = [values.get(path, leaf) for path, leaf in _stored_leaves(module)]
    return jax.tree.unflatten(jax.tree.structure(module), leaves)


def _state_indices(module: Any) -> list[tuple[Path, Any]]:
    def is_index(node: Any) -> bool:
        return isinstance(node, _equinox().nn.StateIndex)

    nodes = jax.tree_util.tree_leaves_with_path(module, is_leaf=is_index)
    return [(("state", *path_names(path)), node) for path, node in nodes if is_index(node)]


def _state_arrays(module: Any, state: Any) -> dict[Path, jax.Array]:
    """Returns the values of a module's state by the path of the layer that owns them."""
    arrays = {}
    for path, index in _state_indices(module):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state.get(index)):
            arrays[path + path_names(keys)] = leaf
    return arrays


def _replace_state(module: Any, state: Any, values: dict[Path, jax.Array]) -> Any:
    # The state has the order of its indices. `State.set` would refuse that a weak type has become a strong one.
    leaves = [values[path] for path in _state_arrays(module, state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _batched_call(
    module: Any, state: Any, inputs: Any, options: dict[str, Any], key: jax.Array | None, axis_name: str
) -> tuple[Any, Any]:
    """Maps a module over the batch; its outputs `[B, ...]` and new state."""
    eqx, batch_size = _equinox(), jax.tree.leaves(inputs)[0].shape[0]
    is_stateful = bool(_state_indices(module))

    def is_batched(leaf: Any) -> bool:
        return eqx.is_array(leaf) and leaf.ndim > 0 and leaf.shape[0] == batch_size

    batched, shared = eqx.partition((inputs, options), is_batched)
    takes_key = "key" in inspect.signature(module.__call__).parameters
    keys = jax.random.split(key, batch_size) if takes_key and key is not None else None

    def call(batched: Any, key: Any, state: Any) -> tuple[Any, Any]:
        arguments, keywords = eqx.combine(batched, shared)
        keywords = keywords if key is None else {**keywords, "key": key}
        if not is_stateful:
            return module(*arguments, **keywords), state
        first, *rest = arguments
        return module(first, state, *rest, **keywords)

    return jax.vmap(call, in_axes=(0, 0, None), out_axes=(0, None), axis_name=axis_name)(batched, keys, state)
