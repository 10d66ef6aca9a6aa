"""Tables for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foldax.engine import compiled
from foldax.engine.checkpoint import flat
from foldax.engine.state import Run


def summary(run: Run) -> Any:
    """Returns a table of the model: parameters, FLOPs of one update, bytes of the state."""
    from rich.table import Table

    state = run.fold.state
    every = flat(state)
    # Of a learner that wraps others, or has a world of its own: what is below a field `params`, wherever that is.
    leaves = {name: leaf for name, leaf in every.items() if "params" in name.split(".")} or every
    table = Table(title="Model", caption_justify="left")
    for column in ("array", "shape", "numbers"):
        table.add_column(column, justify="left" if column == "array" else "right")
    for name, leaf in list(leaves.items())[:24]:
        shown_name = ".".join(part for part in name.split(".") if part != "params")
        table.add_row(shown_name, "x".join(map(str, leaf.shape)) or "scalar", f"{leaf.size:,}")
    if len(leaves) > 24:
        table.add_row(f"... and {len(leaves) - 24} more", "", "")
    flops = compiled.update_flops(run.program, run.arguments["config"], run.arguments["seed"], run.fold, run.block.data)
    table.add_section()
    table.add_row("parameters", "", f"{sum(leaf.size for leaf in leaves.values()):,}")
    table.add_row("FLOPs of one update", "", f"{flops:,.0f}")
    table.add_row("bytes of the state", "", f"{compiled.state_bytes(state):,}")
    return table


def metrics(title: str, by_split: dict[str, dict[str, float]]) -> Any:
    """Returns a table with a row per metric and a column per split."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("metric")
    for split in by_split:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for values in by_split.values() for name in values):
        table.add_row(name, *(f"{v[name]:.4f}" if name in v else "" for v in by_split.values()))
    return table


def shown(path: Path) -> str:
    """Returns a path as short as it can be written from the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
