"""Parameters of one tree put into another one, where path and shape are the same, and a table of what became of all."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from foldax import parameter_paths
from foldax.errors import RunError
from foldax.runs.transfer import parameters
from foldax.runs.transfer.parameters import SHOWN, Rename, Source, label, renamed

How = Literal["matched", "shape differs", "missing there", "left over"]
HOWS: tuple[How, ...] = ("matched", "shape differs", "missing there", "left over")


class Row(NamedTuple):
    """What became of one array.

    Attributes:
      name: as in the target; of what is left over, as in the source after renaming.
      here: shape and dtype in the target, or None.
      there: likewise in the source.
      how: "matched"; "shape differs" (or the dtype); "missing there"; "left over": the target has no such array.
    """

    name: str
    here: Any
    there: Any
    how: How


class Match(NamedTuple):
    """Parameters put into a tree.

    Attributes:
      tree: the target, with what fits in place of its own.
      rows: one for every parameter and statistic of either side.
      source: where they are from.
    """

    tree: Any
    rows: tuple[Row, ...]
    source: Source

    def count(self, how: How) -> int:
        """Returns how many arrays came out so."""
        return sum(row.how == how for row in self.rows)

    def __str__(self) -> str:
        return f"{self.source}: " + ", ".join(f"{self.count(how)} {how}" for how in HOWS if self.count(how))


def match(target: Any, source: Any, *, rename: Rename = (), strict: bool = False) -> Match:
    """Puts a source's parameters and statistics into a target, where path and shape are the same.

    Args:
      target: a learner's state, Flax's variables, parameters, or arrays by path. Optimizer states stay as they are; a
        moving average of parameters starts as a copy of them.
      source: a run folder, a safetensors file, a `Result`, or a tree as the target.
      rename: regular expressions of paths in the source and what replaces them, as `{r"MLP_0/(.*)": r"encoder/\\1"}`.
        One that matches a path up to a "/" replaces that part: `{"MLP_0": "encoder"}` does the same.
      strict: whether every array must fit, on both sides.

    Raises:
      ConfigError: `rename` does not fit the source's paths.
      RunError: nothing fits, or with `strict` not all; names the first ten paths, with both shapes. Or the source
        cannot be read.
    """
    origin = renamed(source, rename)
    arrays = origin.arrays
    leaves = parameter_paths.leaves_by_path(target)
    leaves = {path: leaf for path, leaf in leaves.items() if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)}
    names, rows = parameters.names(leaves), dict[str, Row]()
    for path, name in names.items():
        here, there = _abstract(leaves[path]), arrays.get(name)
        how: How = "missing there" if there is None else "matched" if _fits(here, there) else "shape differs"
        rows[name] = Row(name, here, None if there is None else _abstract(there), how)
    rows |= {n: Row(n, None, _abstract(array), "left over") for n, array in arrays.items() if n not in rows}
    found = Match(target, tuple(rows.values()), origin)
    _check(found, strict)

    def taken(path: Any, leaf: Any) -> Any:
        name = names.get(parameter_paths.name_of(path))
        fits = name is not None and rows[name].how == "matched"
        return np.asarray(arrays[name], leaf.dtype) if name is not None and fits else leaf

    return found._replace(tree=jax.tree_util.tree_map_with_path(taken, target))


def load_params(target: Any, source: Any, *, rename: Rename = (), strict: bool = True) -> Any:
    """Returns a target with the parameters of a source in it; see `match`. All of them must fit, unless not `strict`.

    Raises:
      ConfigError: `rename` does not fit the source's paths.
      RunError: something does not fit, or the source cannot be read.
    """
    return match(target, source, rename=rename, strict=strict).tree


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype)


def _fits(here: jax.ShapeDtypeStruct, there: Any) -> bool:
    floats = all(jax.numpy.issubdtype(one.dtype, jax.numpy.floating) for one in (here, there))
    return here.shape == there.shape and (floats or np.can_cast(there.dtype, here.dtype, "same_kind"))


def _check(found: Match, strict: bool) -> None:
    """Raises a RunError if nothing fits, or not all that must."""
    rows = found.rows
    if not found.count("matched"):
        here, there = ([label(row.name) for row in rows if row[side] is not None] for side in (1, 2))
        raise RunError(
            f"none of the parameters from {found.source} fits this model. Here: {listed(here)}. "
            f"There: {listed(there)}. Rename theirs: foldax.train(..., initial=foldax.transfer.renamed(run, names))"
        )
    odd = [row for row in rows if row.how != "matched"]
    if strict and odd:
        told = listed([f"{label(row.name)} ({_shapes(row)})" for row in odd])
        raise RunError(f"{len(odd)} of {len(rows)} arrays do not fit, from {found.source}: {told}")


def _shapes(row: Row) -> str:
    if row.here is None:
        return f"left over there, {shape(row.there)}"
    if row.there is None:
        return f"missing there, {shape(row.here)} here"
    kinds = row.here.shape == row.there.shape
    return " ".join(
        f"{shape(side)}{' ' + str(side.dtype) if kinds else ''} {where}"
        for side, where in ((row.here, "here,"), (row.there, "there"))
    )


def shape(array: Any) -> str:
    """Returns a shape as text, as 3x3x16x32."""
    return "x".join(map(str, array.shape)) or "scalar"


def listed(texts: list[str]) -> str:
    """Returns the first ten of some texts."""
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "") or "nothing"


def show(found: Match) -> None:
    """Prints what matched and what did not."""
    from rich.console import Console

    Console().print(table(found))


def table(found: Match) -> Any:
    """Returns a table of what matched and what did not, the first ten arrays of each kind."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table()
    for column in ("array", "here", "there", "how"):
        made.add_column(column, justify="right" if column in ("here", "there") else "left", overflow="fold")
    for how in HOWS:
        rows = [row for row in found.rows if row.how == how]
        for row in rows[:SHOWN]:
            sides = [shape(side) if side is not None else "" for side in (row.here, row.there)]
            made.add_row(Text(label(row.name)), *sides, how)
        if len(rows) > SHOWN:
            made.add_row(f"and {len(rows) - SHOWN:,} more", "", "", how)
        if rows:
            made.add_section()
    here = [row for row in found.rows if row.here is not None]
    taken = [row for row in here if row.how == "matched"]
    numbers = [sum(int(np.prod(row.here.shape)) for row in rows) for rows in (taken, here)]
    rest = "" if len(taken) == len(here) else "; the others keep their initialisation"
    caption = f"{len(taken)} of {len(here)} arrays, {numbers[0]:,} of {numbers[1]:,} numbers are from there{rest}"
    return Group(Text(f"Parameters from {found.source}", style="bold"), made, Text(caption))
