"""`foldax show` of a sweep: prints its progress, groups and best configs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldax.errors import display_path
from foldax.runs import tables
from foldax.runs.tables import format_field, format_metric
from foldax.runs.terminal import echo, print_table
from foldax.sweeps.statistics import (
    best_mode,
    caveats,
    config_ids,
    counts_and_speed,
    default_metric,
    differing_fields,
    finite_values,
    metric_names,
    missing_metric,
    read,
    seed_statistics,
)

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

SHOWN = 20  # rows of a table in the terminal


def show(path: Path) -> None:
    """Prints a sweep: its command, progress, groups and best configs.

    Raises:
      RunError: `path` is no sweep folder, or a file in it is damaged.
    """
    metadata, results, _ = read(path)
    status = f"sweep ({metadata['search']}), {metadata['status']}, started {metadata['started']}"
    echo(f"{metadata['experiment']}  {status}")
    echo(f"command: {metadata['command']}")
    echo("  ".join(f"{name}: {value}" for name, value in counts_and_speed(metadata, results).items()))
    if metadata["groups"]:
        print_table(_groups_table(metadata["groups"]))
    metric = default_metric(metadata, results)
    if results is not None and metric is not None:
        print_table(_configs_table(metadata, results, metric))
    else:
        echo(f"{missing_metric(results)}; see {display_path(path / 'results.parquet')}")
    for name in ("report.html", "results.parquet", "curves.parquet", "sweep.json"):
        if (path / name).exists():
            echo(display_path(path / name))


def _groups_table(groups: list[dict[str, Any]]) -> "Table":
    names = differing_fields(groups)
    rows = [
        (*(format_field(group["structural"].get(name)) for name in names), f"{group['members']:,}", group["execution"])
        for group in groups[:SHOWN]
    ]
    columns, more = (*names, "members", "execution"), len(groups) - SHOWN
    caption = f"and {more} more" if more > 0 else None
    return tables.fit_table(columns, rows, {*columns} - {"members"}, "Groups: one program each", caption)


def _configs_table(metadata: dict[str, Any], results: "DataFrame", metric: str) -> "Table":
    fields, ids = metadata["fields"], config_ids(results, metadata["fields"])
    configs = results[~ids.duplicated()].set_axis(ids[~ids.duplicated()])
    # The table is ranked by the monitored metric on validation, never by test metrics.
    ranked = seed_statistics(results, ids, metric)
    mode = best_mode(metadata, metric) or metadata["mode"]
    ranked = ranked.sort_values("mean", ascending=mode == "min", kind="stable")
    test_names = [name for name in metric_names(results) if name.startswith("test/")]
    test_means = {name: finite_values(results, name).groupby(ids).mean() for name in test_names}
    title = f"Best configs by {metric} ({mode}), means over seeds"
    columns, rows = (*fields, metric, "95% interval", "n", *test_means), []
    for config_id, row in ranked.head(SHOWN).iterrows():
        n, num_not_finite = int(row["n"]), int(row["not_finite"])
        interval = f"{format_metric(row['low'])}..{format_metric(row['high'])}" if n > 1 else ""
        cells = [*(format_field(configs.at[config_id, name]) for name in fields), format_metric(row["mean"]), interval]
        cells.append(f"{n} of {n + num_not_finite}" if num_not_finite else f"{n}")
        cells += [format_metric(means[config_id]) for means in test_means.values()]
        rows.append(cells)
    more = [f"and {len(ranked) - SHOWN:,} more configs"] if len(ranked) > SHOWN else []
    caption = "\n".join([*more, *caveats(results)])
    return tables.fit_table(columns, rows, fields, title, caption)
