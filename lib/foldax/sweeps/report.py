"""The report of a sweep: one HTML page that works offline, with interactive plots, tables and their provenance."""

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from foldax.runs.figures import environment_steps_after
from foldax.runs.folder import write_errors
from foldax.runs.tables import format_field, format_metric
from foldax.sweeps import statistics

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Json: TypeAlias = dict[str, Any]

BEST_CURVES = 12  # best configs, with coloured curves
BACKGROUND_CURVES = 240  # further configs that can be shown in grey, evenly spaced over the ranks
CURVE_POINTS = 200
MAX_LEVELS = 12  # a numeric field with more values is cut into ranges
NUM_RANGES = 8


def write_report(path: Path) -> Path:
    """Writes `report.html` into a sweep folder, finished or not; the page contains its scripts and loads nothing.

    Args:
      path: the sweep folder.

    Returns:
      The path of the page.

    Raises:
      RunError: `path` is no sweep folder, or cannot be written.
    """
    from plotly.offline import get_plotlyjs

    metadata, results, curves = statistics.read(path)
    metric = statistics.default_metric(metadata, results)
    data, notes = None, [statistics.missing_metric(results)]
    if results is not None and metric is not None:
        data, notes = _page_data(metadata, results, curves, metric), statistics.caveats(results)
    status = "" if metadata["status"] == "finished" else f" ({metadata['status']})"
    parts = {
        "TITLE": html.escape(f"{metadata['experiment']}: sweep{status}"),
        "OVERVIEW": _description_list(statistics.counts_and_speed(metadata, results)),
        "NOTES": html.escape("; ".join(notes)),
        "PROVENANCE": _description_list(_provenance(metadata)),
        "HIDDEN": "" if metric else "hidden",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),  # last, so that no placeholder is searched for inside it
    }
    # Placeholders are comments of the template, so that it stays valid HTML.
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    with write_errors(path / "report.html"):
        (path / "report.html").write_text(page, encoding="utf-8")
    return path / "report.html"


def _page_data(metadata: Json, results: "DataFrame", curves: "DataFrame | None", metric: str) -> Json:
    """Computes all data of the page; configs are numbered by rank, and 0 is the best."""
    import pandas

    # Configs in order of rank, by the mean over seeds of the metric that the sweep monitors.
    fields, names = metadata["fields"], statistics.metric_names(results)
    mode = statistics.best_mode(metadata, metric) or metadata["mode"]
    ids = statistics.config_ids(results, fields)
    means = statistics.seed_statistics(results, ids, metric)["mean"]
    order = means.sort_values(ascending=mode == "min", kind="stable").index
    ranks = ids.map(pandas.Series(range(len(order)), order))
    configs = results[~ranks.duplicated()].set_axis(ranks[~ranks.duplicated()])
    # Main effects need the level of each member: that of its config.
    measured = [name for name in names if statistics.finite_values(results, name).notna().any()]
    levels = [_field_levels(name, configs[name]) for name in fields]
    for level in levels:
        codes = level["codes"].reindex(ranks).set_axis(results.index)
        level["effects"] = {name: _main_effect(results, codes, name, len(level["labels"])) for name in measured}
        level |= {key: _as_json(level[key].sort_index()) for key in ("codes", "values")}
    rank_of = pandas.Series(ranks.to_numpy(), results["member"])
    # Agents are compared by environment steps, which an update of each config has of its own.
    own_fields = configs.sort_index()[fields].to_dict("records") or [{}]  # without fields there is one config
    after = [environment_steps_after(metadata["config"] | own) for own in own_fields]
    is_agent = all(after)
    return {
        "step": "environment steps" if is_agent else "step",
        "metric": metric,
        "mode": mode,
        "fields": levels,
        "best": min(BEST_CURVES, len(configs)),
        "means": {name: _as_json(statistics.finite_values(results, name).groupby(ranks).mean()) for name in measured},
        "curves": {} if curves is None else _mean_curves(curves, rank_of, after if is_agent else None),
        "tables": {
            "configs": _configs_table(results, ranks, configs.sort_index()[fields], metric, names),
            "members": _members_table(results, ranks, fields, names),
        },
    }


def _field_levels(name: str, values: "Series") -> Json:
    """Levels of a field: "codes", the level of each config, and "at", the place of each level on an axis."""
    import pandas

    types, values = pandas.api.types, values.infer_objects()
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values) and values.notna().all()
    if not numeric:
        codes, labels = pandas.factorize(values.map(format_field))
        return {
            "name": name, "kind": "category", "ranges": False, "labels": list(labels), "at": list(labels),
            "codes": pandas.Series(codes, values.index), "values": values.map(format_field),
        }  # fmt: skip
    # Numeric fields: each value is a level, or each range of equal count where there are many values.
    in_ranges = values.nunique() > MAX_LEVELS
    quantiles = pandas.qcut(values, NUM_RANGES, labels=False, duplicates="drop") if in_ranges else None
    codes = values.rank(method="dense") - 1 if quantiles is None else quantiles
    groups = values.groupby(codes)
    log = values.min() > 0 and values.max() >= 10 * values.min()
    return {
        "name": name, "kind": "log" if log else "linear", "ranges": in_ranges, "at": _as_json(groups.median()),
        "labels": [" to ".join(dict.fromkeys((format_field(g.min()), format_field(g.max())))) for _, g in groups],
        "codes": codes.astype(int), "values": values,
    }  # fmt: skip


def _main_effect(results: "DataFrame", codes: "Series", metric: str, num_levels: int) -> Json:
    """Main effect of a field: for each level the mean over configs, then its mean and interval over seeds."""
    # Configs are averaged before seeds: the interval is then over independent repetitions.
    by_seed = statistics.finite_values(results, metric).groupby([codes, results["seed"]]).mean()
    values = [by_seed.loc[code].dropna().to_numpy() for code in range(num_levels)]
    low, high = zip(*map(statistics.bootstrap_interval, values), strict=True)
    means = [v.mean() if len(v) else None for v in values]
    return {"mean": _as_json(means), "low": _as_json(low), "high": _as_json(high)}


def _mean_curves(
    curves: "DataFrame", rank_of: "Series", steps_after: list[Any] | None = None
) -> dict[str, dict[int, Json]]:
    """Mean, minimum and maximum over seeds, by metric and rank of the config.

    Args:
      curves: the log lines of all members.
      rank_of: rank of the config by member.
      steps_after: by rank, what converts updates to environment steps; None shows updates.
    """
    # The page stays small: few configs, and few points per curve.
    others = range(BEST_CURVES, int(rank_of.max()) + 1)
    shown = {*range(BEST_CURVES), *others[:: max(1, -(-len(others) // BACKGROUND_CURVES))]}
    curves = curves.assign(config=curves["member"].map(rank_of))
    curves = curves[curves["config"].isin(shown) & np.isfinite(curves["value"])].astype({"config": int})
    table = curves.groupby(["split", "metric", "config", "step"])["value"].agg(["mean", "min", "max", "count"])
    by_metric: dict[str, dict[int, Json]] = {}
    for (split, metric, rank), part in table.groupby(level=[0, 1, 2]):
        part = part.iloc[np.unique(np.linspace(0, len(part) - 1, CURVE_POINTS).round().astype(int))]
        steps = [int(step) for step in part.index.get_level_values("step")]
        steps = steps if steps_after is None else [steps_after[rank](step) for step in steps]
        curve = {"step": steps, "mean": _as_json(part["mean"])}
        if rank < BEST_CURVES and (part["count"] > 1).any():
            curve |= {"low": _as_json(part["min"]), "high": _as_json(part["max"])}
        by_metric.setdefault(f"{split}/{metric}", {})[int(rank)] = curve  # JSON refuses NumPy's integers as keys
    return by_metric


def _configs_table(results: "DataFrame", ranks: "Series", configs: "DataFrame", metric: str, names: list[str]) -> Json:
    shown = [metric, *(name for name in names if not name.startswith("train/") and name != metric)]
    tables = {name: statistics.seed_statistics(results, ranks, name) for name in shown}
    columns: list[Any] = [range(1, len(configs) + 1), *(configs[name] for name in configs)]
    # A cell of a metric is a pair: the number to sort by, and the text to show.
    for table in tables.values():
        intervals = zip(table["mean"], table["low"], table["high"], strict=True)
        columns.append([[_json_value(mean), _with_interval(mean, low, high)] for mean, low, high in intervals])
    counts = [tables[metric]["n"], tables[metric]["not_finite"]]
    rows = zip(*map(_as_json, [*columns, *counts]), strict=True)
    return {"columns": ["rank", *configs, *shown, "n", "not finite"], "rows": list(rows)}


def _members_table(results: "DataFrame", ranks: "Series", fields: list[str], names: list[str]) -> Json:
    own = [name for name in ("seed", "status", "steps_done", "best_step", "seconds") if name in {*results} - {*fields}]
    columns = ["member", *fields, *own, *names]
    rows = zip(_as_json(ranks + 1), *(_as_json(results[name]) for name in columns), strict=True)
    return {"columns": ["config's rank", *columns], "rows": list(rows)}


def _with_interval(mean: float, low: float, high: float) -> str:
    return format_metric(mean) + (f" [{format_metric(low)}, {format_metric(high)}]" if low == low else "")


def _as_json(values: Iterable[Any]) -> list[Any]:
    return [_json_value(value) for value in values]


def _json_value(value: Any) -> Any:
    """Converts a cell for JSON: floats with six significant digits, None for missing and infinite values."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, bool | np.bool_):
        return str(value)
    return int(value) if isinstance(value, int | np.integer) else value if isinstance(value, str | list) else None


def _provenance(metadata: Json) -> Json:
    names = statistics.differing_fields(metadata["groups"])
    git, versions = metadata.get("git"), metadata.get("versions") or {}
    dirty = " with uncommitted changes" if git and git["dirty"] else ""
    return {
        "command": metadata["command"],
        "experiment file": metadata.get("file") or "none: defined in a notebook or prompt",
        "search": f"{metadata['search']} of {json.dumps(metadata['space'])}, seeds: {metadata['seeds']}",
        "base config": json.dumps(metadata["config"]),
        "groups": "; ".join(", ".join(_group(group, names)) for group in metadata["groups"]),
        "commit": git["commit"] + dirty if git else "none",
        "versions": ", ".join([f"Python {metadata['python']}", *(f"{k} {v}" for k, v in versions.items() if v)]),
        "devices": f"{metadata['backend']}: {', '.join(metadata['devices'])}",
        "data fingerprint": metadata.get("data_fingerprint") or "none",
        "time": f"{metadata['started']} to {metadata.get('ended') or 'now'}, {metadata['status']}",
    }


def _group(group: Json, names: list[str]) -> list[str]:
    structural = [f"{name} {group['structural'].get(name)}" for name in names]
    return [f"{group['members']:,} members", group["execution"], *structural]


def _description_list(items: Json) -> str:
    return "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in items.items())
