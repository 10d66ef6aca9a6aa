"""Parameters by path: "Dense_0/kernel" names a leaf of a tree, regular expressions name groups of leaves."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import chex
import jax

from foldax.errors import ConfigError, did_you_mean


def path_name(path: Sequence[Any]) -> str:
    """Converts a key path of `jax.tree_util` to a string such as "Dense_0/kernel".

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"Dense_0": {"kernel": 1.0}})
    >>> path_name(path)
    'Dense_0/kernel'
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaves_by_path(tree: chex.ArrayTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    >>> leaves_by_path({"Dense_0": {"bias": 0.0, "kernel": 1.0}})
    {'Dense_0/bias': 0.0, 'Dense_0/kernel': 1.0}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any regular expression matches the whole path, or the path up to a "/".

    >>> matches([r"Dense_\\d"], "Dense_1/kernel"), matches(["Dense_1"], "Dense_10/kernel")
    (True, False)
    """
    # Up to a "/" or the end, so that "Dense_1" does not match "Dense_10".
    return any(re.match(rf"(?:{pattern})(?:/|$)", path) for pattern in patterns)


def check_patterns(patterns: Iterable[str], paths: Iterable[str], where: str) -> None:
    """Checks that every pattern matches a path; `where` names the option in error messages.

    Raises:
      ConfigError: a pattern matches no path, or is no regular expression.

    >>> check_patterns(["Dense_0"], ["Dense_0/kernel"], "frozen")
    """
    known = list(paths)
    for pattern in patterns:
        try:
            is_used = any(matches([pattern], path) for path in known)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        if not is_used:
            # Names of layers too, for patterns such as "Dense_0".
            candidates = sorted({path.rsplit("/", 1)[0] for path in known} | set(known))
            listed = ", ".join(candidates[:10]) + (", ..." if len(candidates) > 10 else "")
            hint = did_you_mean(pattern, candidates)
            raise ConfigError(f"{where}: no parameter's path matches {pattern!r}{hint} (there are {listed})")


def split(tree: chex.ArrayTree, patterns: Iterable[str]) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Splits a tree into (rest, matched), each of the same structure, with None for the leaves of the other.

    >>> rest, matched = split({"Dense_0": 1.0, "Dense_1": 2.0}, ["Dense_0"])
    >>> rest, matched
    ({'Dense_0': None, 'Dense_1': 2.0}, {'Dense_0': 1.0, 'Dense_1': None})
    >>> merge(rest, matched)
    {'Dense_0': 1.0, 'Dense_1': 2.0}
    """
    expressions = tuple(patterns)

    def part(matched: bool) -> chex.ArrayTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if matches(expressions, path_name(path)) is matched else None, tree
        )

    return part(False), part(True)


def merge(first: chex.ArrayTree, second: chex.ArrayTree) -> chex.ArrayTree:
    """Merges the two trees of `split`."""
    # None is a leaf here: it marks the leaves of the other tree.
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
