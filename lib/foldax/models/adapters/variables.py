"""Variables of adapted modules: leaves by collection and path, stored as those of a Linen module."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from foldax.errors import ExperimentError

Path: TypeAlias = tuple[str, ...]  # collection, then the names on the way to the leaf
Leaves: TypeAlias = Mapping[Path, jax.Array]


def path_names(path: tuple[Any, ...]) -> Path:
    """Converts a key path of `jax.tree_util` to names.

    >>> path_names((jax.tree_util.GetAttrKey("layers"), jax.tree_util.SequenceKey(0)))
    ('layers', '0')
    """
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put_variables(module: nn.Module, leaves: Leaves) -> None:
    """Stores leaves in those collections of a Linen module that are mutable."""
    for collection, tree in traverse_util.unflatten_dict(dict(leaves)).items():
        if module.is_mutable_collection(collection):
            for name, value in tree.items():
                module.put_variable(collection, name, jax.tree.map(jnp.asarray, value))


def get_variables(module: nn.Module, paths: Iterable[Path]) -> dict[Path, jax.Array]:
    """Reads leaves from the variables of a Linen module.

    Raises:
      ExperimentError: the variables lack a leaf, because the learner keeps parameters alone, or they are another
        module's.
    """
    leaves, found = traverse_util.flatten_dict(dict(module.variables)), {}
    for path in paths:
        if path not in leaves:
            collections = ", ".join(module.variables) or "none"
            missing = f"{path[0]!r} with `{'/'.join(path[1:])}`, and got the collections {collections}"
            causes = "agents keep parameters alone: give them a module without running statistics or other state"
            raise ExperimentError(f"{type(module).__name__}: the module needs the collection {missing} ({causes})")
        found[path] = leaves[path]
    return found


def dropout_key(module: nn.Module) -> jax.Array | None:
    """Draws a key of the random stream "dropout", or None if the learner gives none."""
    return module.make_rng("dropout") if module.has_rng("dropout") else None


def initial_key(module: nn.Module) -> jax.Array:
    """Returns the key to build a module with; while it is applied a constant, whose values are all replaced."""
    return module.make_rng("params") if module.is_initializing() else jax.random.key(0)
