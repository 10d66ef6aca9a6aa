"""Tables and short texts for the terminal."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from foldax.engine import compiled
from foldax.engine.state import Run
from foldax.engine.state_leaves import leaves_by_path
from foldax.runs import terminal

MAX_ARRAYS = 24  # rows of the model table
MAX_LISTED = 10  # names in a message
GAP = 2  # columns of the terminal between two of a table


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
    rows = [(name, *(format_metric(v[name]) if name in v else "" for v in by_split.values())) for name in names]
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


def fit_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[str] = (),
    title: str | None = None,
    caption: str | None = None,
    width: int | None = None,
) -> Any:
    """Makes a table for `rich` that shows every text whole, however narrow the terminal is.

    Names of columns, then paths, are broken where that makes the table fit; if nothing does, each row becomes a block
    with a line per column.

    Args:
      columns: names of the columns.
      rows: texts of each row, one per column; in blocks, empty ones are left out.
      left: columns whose texts are aligned to the left; the others are aligned to the right.
      title: above the table.
      caption: below the table.
      width: columns of the terminal; None: those of stdout.

    >>> fit_table(("run", "loss"), [("runs/first", "0.5000")], width=20).columns[1].header
    'loss'
    >>> len(fit_table(("run", "loss"), [("runs/first", "0.5000")], width=9).columns)  # name and text
    2
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    width, rows = terminal.stdout_width() if width is None else width, [list(map(str, row)) for row in rows]
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.title_justify = table.caption_justify = "left"
    for break_names, break_paths in ((False, False), (True, False), (True, True)):
        names = [re.sub(r"[_./]", "\n", name) if break_names else name for name in columns]
        texts = [["/\n".join(text.rsplit("/", 1)) if break_paths else text for text in row] for row in rows]
        widths = [max(cell_len(line) for text in column for line in text.split("\n")) for column in zip(names, *texts)]
        if sum(widths) + GAP * (len(columns) - 1) <= width:
            for column, name in zip(columns, names):
                table.add_column(name, justify="left" if column in left else "right", no_wrap=True)
            for cells in texts:
                table.add_row(*map(Text, cells))
            return table
    # Blocks
    table.show_header = False
    for _ in ("name", "text"):
        table.add_column(overflow="fold")
    for row in rows:
        shown = [(name, text) for name, text in zip(columns, row) if text]
        for index, (name, text) in enumerate(shown, 1):
            table.add_row(Text(name), Text(text), end_section=index == len(shown))
    return table


def format_field(value: object) -> str:
    """Formats a value of a config field; "none" for None and missing values.

    >>> format_field(0.00123456), format_field(None), format_field("(8, 4)")
    ('0.001235', 'none', '(8, 4)')
    """
    # A missing value of pandas, too; but not the text "None".
    if not isinstance(value, str) and str(value) in ("None", "nan", "<NA>"):
        return "none"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def format_metric(value: float) -> str:
    """Formats a metric with four significant digits; empty for NaN.

    >>> format_metric(0.5), format_metric(float("nan"))
    ('0.5000', '')
    """
    return f"{value:#.4g}".rstrip(".") if value == value else ""


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


def flat_metrics(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Joins splits and names of metrics.

    >>> flat_metrics({"test": {"loss": 0.5}})
    {'test/loss': 0.5}
    """
    return {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
