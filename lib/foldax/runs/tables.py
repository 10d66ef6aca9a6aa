"""Tables and short texts for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldax.engine import compiled
from foldax.engine.checkpoint import leaves_by_path
from foldax.engine.state import Run

MAX_ARRAYS = 24  # rows of the model table
MAX_LISTED = 10  # names in a message


def model_table(run: Run) -> Any:
    """Makes a table of a run's model: its arrays, number of parameters, FLOPs of one update, bytes of the state."""
    from rich.table import Table

    state = run.fold.state
    all_leaves = leaves_by_path(state)
    # Learners that wrap others, or hold environments, have `params` at any depth.
    leaves = {name: leaf for name, leaf in all_leaves.items() if "params" in name.split(".")} or all_leaves
    table = Table(title="Model", caption_justify="left")
    for column in ("array", "shape", "size"):
        table.add_column(column, justify="left" if column == "array" else "right")
    for name, leaf in list(leaves.items())[:MAX_ARRAYS]:
        short_name = ".".join(part for part in name.split(".") if part != "params")
        table.add_row(short_name, shape_text(leaf.shape), f"{leaf.size:,}")
    if len(leaves) > MAX_ARRAYS:
        table.add_row(f"... and {len(leaves) - MAX_ARRAYS} more", "", "")
    flops = compiled.update_flops(run.program, run.arguments["config"], run.arguments["seed"], run.fold, run.block.data)
    table.add_section()
    table.add_row("parameters", "", f"{sum(leaf.size for leaf in leaves.values()):,}")
    table.add_row("FLOPs of one update", "", f"{flops:,.0f}")
    table.add_row("bytes of the state", "", f"{compiled.state_bytes(state):,}")
    return table


def metrics_table(title: str, by_split: dict[str, dict[str, float]]) -> Any:
    """Makes a table with a row per metric and a column per split.

    >>> metrics_table("digits", {"validation": {"loss": 0.25}, "test": {"loss": 0.5, "accuracy": 0.9}}).row_count
    2
    """
    from rich.table import Table

    table = Table(title=title)
    table.add_column("metric")
    for split in by_split:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for values in by_split.values() for name in values):
        table.add_row(name, *(f"{v[name]:.4f}" if name in v else "" for v in by_split.values()))
    return table


def print_table(table: Any) -> None:
    """Prints a table of `rich` on stdout, as wide as the terminal."""
    from rich.console import Console

    Console().print(table)


def shape_text(shape: Sequence[int]) -> str:
    """Formats a shape.

    >>> shape_text((3, 3, 16)), shape_text(())
    ('3x3x16', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def join_first(texts: Sequence[str]) -> str:
    """Joins the first ten texts, and counts the others.

    >>> join_first(["kernel", "bias"])
    'kernel, bias'
    """
    rest = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + rest or "nothing"


def display_path(path: Path) -> str:
    """Formats a path, relative to the working directory if it lies below it.

    >>> display_path(Path.cwd() / "runs" / "first")
    'runs/first'
    """
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
