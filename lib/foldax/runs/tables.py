"""Tables and short texts for the terminal."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from foldax.engine import compiled
from foldax.engine.checkpoint import leaves_by_path
from foldax.engine.state import Run

MAX_ARRAYS = 24  # rows of the model table
MAX_LISTED = 10  # names in a message


def model_table(run: Run) -> Any:
    """Makes a table of a run's model: its arrays, number of parameters, FLOPs of one update, bytes of the state."""
    state = run.fold.state
    all_leaves = leaves_by_path(state)
    # Learners that wrap others, or hold environments, have `params` at any depth.
    leaves = {name: leaf for name, leaf in all_leaves.items() if "params" in name.split(".")} or all_leaves
    rows = [
        (".".join(part for part in name.split(".") if part != "params"), shape_text(leaf.shape), f"{leaf.size:,}")
        for name, leaf in list(leaves.items())[:MAX_ARRAYS]
    ]
    table = text_table(("array", "shape", "size"), rows, left=("array",), title="Model")
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
    names = dict.fromkeys(name for values in by_split.values() for name in values)
    rows = [(name, *(f"{v[name]:.4f}" if name in v else "" for v in by_split.values())) for name in names]
    return text_table(("metric", *by_split), rows, left=("metric",), title=title)


def text_table(
    columns: Iterable[str], rows: Iterable[Iterable[str]] = (), left: Collection[str] = (), title: str | None = None
) -> Any:
    """Makes a table of plain texts for `rich`.

    Args:
      columns: names of the columns.
      rows: texts of each row, one per column.
      left: columns whose texts are aligned to the left; the others are aligned to the right.
      title: of the table.

    >>> text_table(("row", "class"), [("0", "cat")], left=("class",)).row_count
    1
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


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
    absolute, here = path.resolve(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)
