"""Parameters by path: "Dense_0/kernel" names a leaf, regular expressions name groups of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from foldax.errors import ConfigError, nearest


def name_of(path: Sequence[Any]) -> str:
    """Returns a key path of `jax.tree_util` as "Dense_0/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their paths."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether a regular expression matches the path, or a part of it that ends before a "/": "Dense_0" has a kernel."""
    return any(re.match(rf"(?:{pattern})(?:/|$)", path) for pattern in patterns)


def check_patterns(patterns: Iterable[str], paths: Iterable[str], where: str) -> None:
    """Checks that every pattern matches a path.

    Raises:
      ConfigError: one matches none, or is no regular expression.
    """
    known = list(paths)
    for pattern in patterns:
        try:
            found = any(matches([pattern], path) for path in known)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        if not found:
            tops = sorted({path.rsplit("/", 1)[0] for path in known} | set(known))
            shown = ", ".join(tops[:10]) + (", ..." if len(tops) > 10 else "")
            raise ConfigError(
                f"{where}: no parameter's path matches {pattern!r}{nearest(pattern, tops)} (there are {shown})"
            )


def split(tree: Any, patterns: Iterable[str]) -> tuple[Any, Any]:
    """Returns (rest, matched), two trees of the same form with None for the leaves that the other one has."""
    wanted = tuple(patterns)

    def part(matched: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if matches(wanted, name_of(path)) is matched else None, tree
        )

    return part(False), part(True)


def merge(first: Any, second: Any) -> Any:
    """Returns the tree that was `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
