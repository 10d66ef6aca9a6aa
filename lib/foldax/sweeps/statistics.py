"""The numbers of a sweep: means and intervals over seeds, and its tables in the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax.errors import RunError, nearest
from foldax.runs import folder, tables

NOT_FINITE, STOPPED = "not finite", "stopped by the search"


class Sweep(NamedTuple):
    """What a sweep folder holds.

    Attributes:
      facts: `sweep.json`.
      results: a data frame with a row per member, or None while there is none.
      curves: a data frame with the columns member, step, split, metric and value, or None.
    """

    facts: dict[str, Any]
    results: Any
    curves: Any


def read(path: Path) -> Sweep:
    """Reads a sweep folder, finished or not.

    Raises:
      RunError: it is no sweep folder, or a file of it is damaged.
    """
    if not path.is_dir():
        raise RunError(f"there is no sweep folder {str(path)!r}")
    facts = folder.read_json(path / "sweep.json")
    known = {"fields": list(facts["space"]), "groups": []}  # what is there only when members are done
    return Sweep(known | facts, *(_table(path / f"{name}.parquet") for name in ("results", "curves")))


def metric_names(results: Any) -> list[str]:
    """Returns the columns that are metrics ("split/metric"), validation first, then test, then train."""
    splits = ("validation", "test", "train")
    names = [name for name in results.columns if "/" in name]
    return sorted(names, key=lambda n: (splits.index(s) if (s := n.split("/")[0]) in splits else len(splits), n))


def default_metric(facts: dict[str, Any], results: Any) -> str | None:
    """Returns the metric that configs are compared by, or None while there is none.

    It is the monitored one on the validation split; without it the one on the training split, or else whatever is
    measured. The test split is the last resort: it is for reporting, not for choosing.
    """
    if results is None:
        return None
    wanted = [f"{split}/{facts['monitor']}" for split in ("validation", "train")]
    names = [name for name in wanted if name in results] + sorted(metric_names(results), key=lambda n: n[:5] == "test/")
    return next((name for name in names if finite(results, name).notna().any()), names[0] if names else None)


def config_ids(results: Any, fields: Sequence[str]) -> Any:
    """Returns the number of each member's config: members with the same swept values share one, from 0 as they come."""
    return results.groupby(list(fields) or (lambda _: 0), sort=False, dropna=False).ngroup()


def finite(results: Any, metric: str) -> Any:
    """Returns the metric of each member; NaN where it has none or became not finite."""
    values = results[metric].astype(float)
    return values.where(np.isfinite(values) & (results["status"] != NOT_FINITE))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of the mean of `values` `[N]`; NaN for fewer than two.

    It is the bias-corrected and accelerated one (BCa; Efron, 1987) of 2,000 resamples, or the percentile one where
    BCa does not exist because nearly all values are equal. With few seeds either is too narrow rather than too wide.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of degenerate data, which is looked for below
            random = np.random.default_rng(0)
            found = bootstrap((values,), np.mean, method=method, n_resamples=2_000, rng=random).confidence_interval
        if np.isfinite(found).all():
            break
    return float(found.low), float(found.high)


def summarize(results: Any, fields: Sequence[str], metric: str, mode: str = "min") -> Any:
    """Summarises the members of each config, best config first.

    Args:
      results: a data frame with a row per member, as `Sweep.results`.
      fields: the swept fields, without the seed.
      metric: a column of the results, as "validation/loss".
      mode: "min" or "max": which is best.

    Returns:
      A data frame with a row per config, whose index is its values of `fields`; mean, low and high (95% bootstrap
      interval of the mean over seeds, see `interval`), n (how many members that is), not_finite (how many are left
      out because they diverged).

    Raises:
      RunError: a column is missing.
    """
    import pandas

    for column in (*fields, metric):
        if column not in results:
            near = nearest(column, results.columns)
            raise RunError(f"the results have no {column!r}{near}; metrics: {', '.join(metric_names(results))}")
    ids = config_ids(results, fields)
    table, configs = statistics(results, ids, metric), results.loc[~ids.duplicated(), list(fields)]
    if fields:
        table.index = pandas.MultiIndex.from_frame(configs) if len(fields) > 1 else pandas.Index(configs[fields[0]])
    return table.sort_values("mean", ascending=mode == "min", kind="stable")


def statistics(results: Any, ids: Any, metric: str) -> Any:
    """Returns mean, low, high, n and not_finite of `metric` (see `summarize`) for each config number in `ids`."""
    import pandas

    values, raw = finite(results, metric), results[metric].astype(float)
    lost = ((results["status"] == NOT_FINITE) | np.isinf(raw)).groupby(ids).sum()
    rows = {}
    for number, group in values.groupby(ids):
        known = group.dropna().to_numpy()
        mean = known.mean() if len(known) else float("nan")
        rows[number] = (mean, *interval(known), len(known), int(lost[number]))
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "n", "not_finite"])


def text(value: Any) -> str:
    """Returns a value of a field as short text; "none" where there is none."""
    if str(value) in ("None", "nan", "<NA>"):
        return "none"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def digits(value: float) -> str:
    """Returns a measured number with four digits; nothing for NaN."""
    return f"{value:#.4g}".rstrip(".") if value == value else ""


def best_member(facts: dict[str, Any], results: Any) -> dict[str, str] | None:
    """Returns the metric that members are compared by and the options that `foldax run` needs for the best of them."""
    metric = default_metric(facts, results)
    if metric is None or finite(results, metric).isna().all():
        return None
    values = finite(results, metric)
    best = results.loc[values.idxmax() if facts["mode"] == "max" else values.idxmin()]
    options = " ".join(f"--{name.replace('_', '-')} {best[name]}" for name in [*facts["fields"], "seed"])
    return {"metric": metric, "options": options}


def notes(results: Any) -> list[str]:
    """Returns what must be said beside the means: which members are left out or were cut short."""
    told = {NOT_FINITE: "not finite, so in no mean", STOPPED: "stopped by the search, so to be compared with care"}
    found = results["status"].value_counts()
    return [f"members {words}: {found[status]:,}" for status, words in told.items() if status in found]


def show(path: Path) -> None:
    """Prints how a sweep was made, how far it is, its groups and its best configs.

    Raises:
      RunError: it is no sweep folder.
    """
    from rich.console import Console
    from rich.markup import escape

    facts, results, _ = read(path)
    console = Console()
    title = f"[bold]{escape(facts['experiment'])}[/bold]  sweep ({facts['search']}), {escape(facts['status'])}"
    console.print(f"{title}, started {facts['started']}", highlight=False)
    console.print(f"command: {facts['command']}", markup=False, highlight=False)
    console.print("  ".join(f"{name}: {value}" for name, value in counts(facts, results).items()), highlight=False)
    if facts["groups"]:
        console.print(_groups(facts["groups"]))
    if metric := default_metric(facts, results):
        console.print(_best(facts, results, metric))
    else:
        console.print(f"no member is done yet: there is no metric in {tables.shown(path / 'results.parquet')}")
    for name in ("report.html", "results.parquet", "curves.parquet", "sweep.json"):
        if (path / name).exists():
            print(tables.shown(path / name))


def counts(facts: dict[str, Any], results: Any) -> dict[str, str]:
    """Returns members, configs, seeds, programs, speed and time of a sweep as text, as far as they are known yet."""
    done = 0 if results is None else len(results)
    planned = sum(group["members"] for group in facts["groups"]) or done
    found = {
        "members": f"{planned:,}" if done in (0, planned) else f"{done:,} of {planned:,}",
        "configs": f"{config_ids(results, facts['fields']).nunique():,}" if done else None,
        "seeds": str(facts["seeds"]),
    }
    for name, key, places in (
        ("programs", "programs", 0),
        ("member-steps", "member_steps", 0),
        ("member-steps/s", "member_steps_per_second", 0),
        ("seconds", "seconds", 1),
        ("seconds compiling, all threads", "compile_seconds", 1),
    ):
        found[name] = None if facts.get(key) is None else f"{facts[key]:,.{places}f}"
    return {name: value for name, value in found.items() if value is not None}


def differing(groups: list[dict[str, Any]]) -> list[str]:
    """Returns the structural fields in which groups of members differ."""
    names = dict.fromkeys(name for group in groups for name in group["structural"])
    return [name for name in names if len({text(group["structural"].get(name)) for group in groups}) > 1]


def _table(path: Path) -> Any:
    import pandas

    if not path.exists():
        return None
    try:
        return pandas.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _groups(groups: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="Groups: one program each")
    names = differing(groups)
    for name in (*names, "members", "way"):
        table.add_column(name, justify="right" if name == "members" else "left")
    for group in groups[:20]:
        values = (text(group["structural"].get(name)) for name in names)
        table.add_row(*values, f"{group['members']:,}", group["way"])
    if len(groups) > 20:
        table.caption = f"and {len(groups) - 20} more"
    return table


def _best(facts: dict[str, Any], results: Any, metric: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fields, ids = facts["fields"], config_ids(results, facts["fields"])
    configs = results[~ids.duplicated()].set_axis(ids[~ids.duplicated()])
    summary = statistics(results, ids, metric).sort_values("mean", ascending=facts["mode"] == "min", kind="stable")
    tests = {name: finite(results, name).groupby(ids).mean() for name in metric_names(results) if name[:5] == "test/"}
    title = f"Best configs by {metric} ({facts['mode']}), means over seeds"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in fields:
        table.add_column(name.replace("_", "\n").replace(".", "\n"), overflow="fold")
    for name in (metric, "95%\ninterval", "n", *tests):
        table.add_column(name.replace("/", "\n"), justify="right", no_wrap=True)
    for number, row in summary.head(20).iterrows():
        n, lost = int(row["n"]), int(row["not_finite"])
        band = f"{digits(row['low'])}..{digits(row['high'])}" if n > 1 else ""
        cells = [*(text(configs.at[number, name]) for name in fields), digits(row["mean"]), band]
        cells += [f"{n} of {n + lost}" if lost else f"{n}", *(digits(means[number]) for means in tests.values())]
        table.add_row(*map(Text, cells))
    more = [f"and {len(summary) - 20:,} more configs"] if len(summary) > 20 else []
    table.caption = "\n".join([*more, *notes(results)])
    return table
