"""The report of a sweep: one HTML page that works offline, with its plots, numbers and where they come from."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from foldax.errors import RunError
from foldax.sweeps import statistics

BEST = 12  # configs whose curves are drawn
OTHERS = 240  # further configs that can be drawn behind them, evenly from all ranks
POINTS = 200  # of a curve
LEVELS = 12  # a number with more values than that is cut into ranges


def report(path: Path) -> Path:
    """Writes `report.html` of a sweep, finished or not: a page that holds its scripts and loads nothing.

    Args:
      path: a sweep folder.

    Returns:
      The page's path.

    Raises:
      RunError: it is no sweep folder, or cannot be written.
    """
    from plotly.offline import get_plotlyjs

    facts, results, curves = statistics.read(path)
    metric = statistics.default_metric(facts, results)
    data = _data(facts, results, curves, metric) if metric else None
    status = "" if facts["status"] == "finished" else f" ({facts['status']})"
    parts = {
        "TITLE": html.escape(f"{facts['experiment']}: sweep{status}"),
        "FACTS": _definitions(statistics.counts(facts, results)),
        "NOTES": html.escape("; ".join(statistics.notes(results) if metric else ["no member is done yet"])),
        "MADE": _definitions(_made(facts)),
        "HIDDEN": "" if metric else "hidden",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),  # last, so that nothing is looked for inside it
    }
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    try:
        (path / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path / 'report.html'}: {error.strerror}") from error
    return path / "report.html"


def _data(facts: dict[str, Any], results: Any, curves: Any, metric: str) -> dict[str, Any]:
    """Returns all that the page draws; configs are numbered by rank, 0 is the best."""
    import pandas

    fields, names = facts["fields"], statistics.metric_names(results)
    ids = statistics.config_ids(results, fields)
    means = statistics.statistics(results, ids, metric)["mean"]
    order = means.sort_values(ascending=facts["mode"] == "min", kind="stable").index
    ids = ids.map(pandas.Series(range(len(order)), order))
    configs = results[~ids.duplicated()].set_axis(ids[~ids.duplicated()])
    measured = [name for name in names if statistics.finite(results, name).notna().any()]
    levels = [_levels(name, configs[name]) for name in fields]
    for level in levels:
        codes = level["codes"].reindex(ids).set_axis(results.index)
        level["effects"] = {name: _effects(results, codes, name, len(level["labels"])) for name in measured}
        level |= {key: _clean(level[key].sort_index()) for key in ("codes", "values")}
    return {
        "metric": metric,
        "mode": facts["mode"],
        "fields": levels,
        "best": min(BEST, len(configs)),
        "means": {name: _clean(statistics.finite(results, name).groupby(ids).mean()) for name in measured},
        "curves": {} if curves is None else _curves(curves, pandas.Series(ids.to_numpy(), results["member"])),
        "tables": {
            "configs": _configs_table(results, ids, configs.sort_index()[fields], metric, names),
            "members": _members_table(results, ids, fields, names),
        },
    }


def _levels(name: str, values: Any) -> dict[str, Any]:
    """Returns a field's levels: which one each config has, and where they stand on an axis (ranges at their median)."""
    import pandas

    kinds, values = pandas.api.types, values.infer_objects()
    numeric = kinds.is_numeric_dtype(values) and not kinds.is_bool_dtype(values) and values.notna().all()
    if not numeric:
        codes, labels = pandas.factorize(values.map(statistics.text))
        return {
            "name": name, "kind": "category", "ranges": False, "labels": list(labels), "at": list(labels),
            "codes": pandas.Series(codes, values.index), "values": values.map(statistics.text),
        }  # fmt: skip
    ranges = values.nunique() > LEVELS
    codes = pandas.qcut(values, 8, labels=False, duplicates="drop") if ranges else values.rank(method="dense") - 1
    groups = values.groupby(codes)
    log = values.min() > 0 and values.max() >= 10 * values.min()
    return {
        "name": name, "kind": "log" if log else "linear", "ranges": ranges, "at": _clean(groups.median()),
        "labels": [" to ".join(dict.fromkeys((statistics.text(g.min()), statistics.text(g.max())))) for _, g in groups],
        "codes": codes.astype(int), "values": values,
    }  # fmt: skip


def _effects(results: Any, codes: Any, metric: str, count: int) -> dict[str, Any]:
    """Returns, for each level of a field, the mean over seeds (of the mean over configs) and its interval."""
    seeds = statistics.finite(results, metric).groupby([codes, results["seed"]]).mean()
    values = [seeds.loc[code].dropna().to_numpy() for code in range(count)]
    low, high = zip(*map(statistics.interval, values), strict=True)
    return {"mean": _clean(v.mean() if len(v) else None for v in values), "low": _clean(low), "high": _clean(high)}


def _curves(curves: Any, ids: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """Returns mean, low and high over seeds of each metric, by config and step."""
    ranks = range(BEST, int(ids.max()) + 1)
    kept = {*range(BEST), *ranks[:: max(1, -(-len(ranks) // OTHERS))]}
    curves = curves.assign(config=curves["member"].map(ids))
    curves = curves[curves["config"].isin(kept) & np.isfinite(curves["value"])].astype({"config": int})
    table = curves.groupby(["split", "metric", "config", "step"])["value"].agg(["mean", "min", "max", "count"])
    drawn: dict[str, dict[int, dict[str, Any]]] = {}
    for (split, metric, config), part in table.groupby(level=[0, 1, 2]):
        part = part.iloc[np.unique(np.linspace(0, len(part) - 1, POINTS).round().astype(int))]
        curve = {"step": _clean(part.index.get_level_values("step")), "mean": _clean(part["mean"])}
        if config < BEST and (part["count"] > 1).any():
            curve |= {"low": _clean(part["min"]), "high": _clean(part["max"])}
        drawn.setdefault(f"{split}/{metric}", {})[config] = curve
    return drawn


def _configs_table(results: Any, ids: Any, configs: Any, metric: str, names: list[str]) -> dict[str, Any]:
    shown = [metric, *(name for name in names if not name.startswith("train/") and name != metric)]
    tables = {name: statistics.statistics(results, ids, name) for name in shown}
    first = tables[metric]
    columns: list[Any] = [range(1, len(configs) + 1), *(configs[name] for name in configs)]
    for table in tables.values():
        bands = zip(table["mean"], table["low"], table["high"], strict=True)
        columns.append([[_one(mean), _with_interval(mean, low, high)] for mean, low, high in bands])
    rows = zip(*map(_clean, [*columns, first["n"], first["not_finite"]]), strict=True)
    return {"columns": ["rank", *configs, *shown, "n", "not finite"], "rows": list(rows)}


def _members_table(results: Any, ids: Any, fields: list[str], names: list[str]) -> dict[str, Any]:
    own = [name for name in ("seed", "status", "steps_done", "best_step", "seconds") if name in {*results} - {*fields}]
    columns = ["member", *fields, *own, *names]
    rows = zip(_clean(ids + 1), *(_clean(results[name]) for name in columns), strict=True)
    return {"columns": ["config's rank", *columns], "rows": list(rows)}


def _with_interval(mean: float, low: float, high: float) -> str:
    return statistics.digits(mean) + (f" [{statistics.digits(low)}, {statistics.digits(high)}]" if low == low else "")


def _clean(values: Any) -> list[Any]:
    return [_one(value) for value in values]


def _one(value: Any) -> Any:
    """Returns a value as JSON can hold it: null where there is none, floats with six digits."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, bool | np.bool_):
        return str(value)
    return int(value) if isinstance(value, int | np.integer) else value if isinstance(value, str | list) else None


def _made(facts: dict[str, Any]) -> dict[str, Any]:
    names = statistics.differing(facts["groups"])
    git, versions = facts.get("git"), facts.get("versions") or {}
    dirty = " with uncommitted changes" if git and git["dirty"] else ""
    return {
        "command": facts["command"],
        "experiment file": facts.get("file") or "none: made in a notebook or prompt",
        "search": f"{facts['search']} of {json.dumps(facts['space'])}, seeds: {facts['seeds']}",
        "base config": json.dumps(facts["config"]),
        "groups": "; ".join(", ".join(_group(group, names)) for group in facts["groups"]),
        "commit": git["commit"] + dirty if git else "none",
        "versions": ", ".join([f"Python {facts['python']}", *(f"{k} {v}" for k, v in versions.items() if v)]),
        "devices": f"{facts['backend']}: {', '.join(facts['devices'])}",
        "data fingerprint": facts.get("data_fingerprint") or "none",
        "time": f"{facts['started']} to {facts.get('ended') or 'now'}, {facts['status']}",
    }


def _group(group: dict[str, Any], names: list[str]) -> list[str]:
    return [f"{group['members']:,} members", group["way"], *(f"{n} {group['structural'].get(n)}" for n in names)]


def _definitions(items: dict[str, Any]) -> str:
    return "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in items.items())
