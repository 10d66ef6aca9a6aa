"""Copies parameters from one tree into another where name and shape are the same, and reports every array."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import numpy as np

from foldax import parameter_paths
from foldax.errors import RunError
from foldax.runs import tables
from foldax.runs.tables import join_first, shape_text
from foldax.runs.terminal import print_table
from foldax.runs.transfer import parameters
from foldax.runs.transfer.parameters import Rename, Source, display_name

Status = Literal["matched", "shape differs", "missing in source", "unused"]
STATUSES: tuple[Status, ...] = ("matched", "shape differs", "missing in source", "unused")


class Row(NamedTuple):
    """Outcome of the match for one array.

    Attributes:
      name: its name in the target; for an unused array its name in the source, after renaming.
      target: shape and dtype in the target, or None.
      source: shape and dtype in the source, or None.
      status: "matched"; "shape differs" (or the dtype does); "missing in source"; "unused": the target has no such
        array.
    """

    name: str
    target: jax.ShapeDtypeStruct | None
    source: jax.ShapeDtypeStruct | None
    status: Status


class Match(NamedTuple):
    """A tree with the parameters of a source in it.

    Attributes:
      tree: the target, with every array that fits replaced by the source's.
      rows: one for every parameter and statistic of either side.
      source: the source.
    """

    tree: chex.ArrayTree
    rows: tuple[Row, ...]
    source: Source

    def count(self, status: Status) -> int:
        """Counts the arrays with a status."""
        return sum(row.status == status for row in self.rows)

    def __str__(self) -> str:
        return f"{self.source}: " + ", ".join(f"{self.count(one)} {one}" for one in STATUSES if self.count(one))


def match(target: chex.ArrayTree, source: Any, *, rename: Rename = (), strict: bool = False) -> Match:
    """Copies parameters and statistics of a source into a target where name and shape are the same.

    Args:
      target: a learner's state, Flax's variables, parameters, or arrays by path. Optimizer states stay as they are; a
        moving average of parameters starts as a copy of them.
      source: a run folder, a safetensors file, a `Result`, or a tree like the target. Of "RUN:prefix" the parameters
        below this path count: under it, if the target has such a path, else as the target's own.
      rename: regular expressions for paths in the source, and their replacements; see `rename`.
      strict: requires every array of both sides to fit.

    Returns:
      The target with the source's arrays in it, and a report.

    Raises:
      ConfigError: `rename` does not fit the source's paths.
      RunError: nothing fits, or with `strict` not everything does; names the first ten arrays, with both shapes. Or the
        source cannot be read.

    >>> print(match({"body": np.zeros(2), "head": np.zeros(3)}, {"body": np.ones(2), "head": np.ones(5)}))
    Python: 1 matched, 1 shape differs
    """
    # 1. Names of both sides; random keys in a state are no parameters.
    origin = parameters.rename(source, rename)
    leaves = parameter_paths.leaves_by_path(target)
    leaves = {path: leaf for path, leaf in leaves.items() if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)}
    names, rows = parameters.parameter_names(leaves), dict[str, Row]()
    arrays = parameters.without_prefix(origin, names.values()).arrays
    # 2. One row per array of either side
    for path, name in names.items():
        own, other = _spec(leaves[path]), _spec(arrays[name]) if name in arrays else None
        status: Status = "missing in source" if other is None else "matched" if _fits(own, other) else "shape differs"
        rows[name] = Row(name, own, other, status)
    # Arrays of the source that the target has no place for.
    rows |= {name: Row(name, None, _spec(array), "unused") for name, array in arrays.items() if name not in rows}
    # 3. Copy, in the dtype of the target
    result = Match(target, tuple(rows.values()), origin)
    _check(result, strict)

    def replace(path: Any, leaf: Any) -> Any:
        name = names.get(parameter_paths.path_name(path))
        fits = name is not None and rows[name].status == "matched"
        return np.asarray(arrays[name], leaf.dtype) if name is not None and fits else leaf

    return result._replace(tree=jax.tree_util.tree_map_with_path(replace, target))


def load_params(target: chex.ArrayTree, source: Any, *, rename: Rename = (), strict: bool = True) -> chex.ArrayTree:
    """Copies the parameters of a source into a target; all of them must fit, unless `strict` is False.

    Args:
      target: as in `match`.
      source: as in `match`.
      rename: as in `match`.
      strict: requires every array of both sides to fit.

    Raises:
      ConfigError: `rename` does not fit the source's paths.
      RunError: an array does not fit, or the source cannot be read.

    >>> load_params({"w": np.zeros(2)}, {"w": np.ones(2)})
    {'w': array([1., 1.])}
    """
    return match(target, source, rename=rename, strict=strict).tree


def _spec(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype)


def _fits(own: jax.ShapeDtypeStruct, other: jax.ShapeDtypeStruct) -> bool:
    # Floats of any precision convert to each other; other types only within their kind.
    both_float = all(jax.numpy.issubdtype(side.dtype, jax.numpy.floating) for side in (own, other))
    return own.shape == other.shape and (both_float or np.can_cast(other.dtype, own.dtype, "same_kind"))


def _check(result: Match, strict: bool) -> None:
    """Raises a RunError if nothing fits, or with `strict` if an array does not fit."""
    rows = result.rows
    if not result.count("matched"):
        own, other = ([display_name(row.name) for row in rows if row[side] is not None] for side in (1, 2))
        problem = f"none of the parameters from {result.source} fits this model"
        sides = f"The model has {join_first(own)}. The source has {join_first(other)}"
        remedy = "foldax.train(..., initial=foldax.transfer.rename(run, patterns))"
        raise RunError(f"{problem}. {sides}. Rename those of the source: {remedy}")
    odd = [f"{display_name(row.name)} ({_difference(row)})" for row in rows if row.status != "matched"]
    if strict and odd:
        raise RunError(f"{len(odd)} of {len(rows)} arrays do not fit, from {result.source}: {join_first(odd)}")


def _difference(row: Row) -> str:
    sides = {"model": row.target, "source": row.source}
    specs = {side: spec for side, spec in sides.items() if spec is not None}
    same_shape = len(specs) == 2 and row.target.shape == row.source.shape  # type: ignore[union-attr]
    texts = [
        f"{shape_text(spec.shape)}{f' {spec.dtype}' if same_shape else ''} in the {side}"
        for side, spec in specs.items()
    ]
    return ", ".join(texts if len(specs) == 2 else [row.status, *texts])


def show(result: Match) -> None:
    """Prints the table of a match."""
    print_table(table(result))


def table(result: Match) -> Any:
    """Makes a table of all arrays by status, the first ten of each, for `rich`."""
    from rich.console import Group
    from rich.text import Text

    lines = tables.text_table(("array", "model", "source", "status"), left=("array", "status"))
    for status in STATUSES:
        rows = [row for row in result.rows if row.status == status]
        for row in rows[: tables.MAX_LISTED]:
            shapes = [shape_text(side.shape) if side is not None else "" for side in (row.target, row.source)]
            lines.add_row(Text(display_name(row.name)), *shapes, status)
        if len(rows) > tables.MAX_LISTED:
            lines.add_row(f"and {len(rows) - tables.MAX_LISTED:,} more", "", "", status)
        if rows:
            lines.add_section()
    sizes = [(int(np.prod(row.target.shape)), row.status == "matched") for row in result.rows if row.target is not None]
    matched = [size for size, is_matched in sizes if is_matched]
    values = f"{sum(matched):,} of {sum(size for size, _ in sizes):,} values"
    rest = "" if len(matched) == len(sizes) else "; the others keep their initialisation"
    caption = f"{len(matched)} of {len(sizes)} arrays, {values} are from the source{rest}"
    return Group(Text(f"Parameters from {result.source}", style="bold"), lines, Text(caption))
