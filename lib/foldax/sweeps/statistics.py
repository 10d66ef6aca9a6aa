"""Statistics of a sweep: means and intervals over seeds, its best member, and what it cost."""

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import numpy as np

from foldax.errors import RunError, did_you_mean, first_line
from foldax.options import Config, format_options
from foldax.runs import folder
from foldax.runs.tables import format_field

if TYPE_CHECKING:
    from pandas import DataFrame, Series

NOT_FINITE, STOPPED = "not finite", "stopped by the search"
# Words in names of metrics that say which values are best.
SMALLER_IS_BETTER = {"loss", "error", "rmse", "mse", "mae", "nll", "kl", "perplexity", "bits", "distance", "regret"}
LARGER_IS_BETTER = {"accuracy", "return", "reward", "score", "auc", "auroc", "f1", "precision", "recall", "index", "r2"}


class SweepFolder(NamedTuple):
    """Content of a sweep folder.

    Attributes:
      metadata: content of `sweep.json`.
      results: a row per member, or None until a member has ended.
      curves: the columns member, step, split, metric and value, or None.
    """

    metadata: dict[str, Any]
    results: "DataFrame | None"
    curves: "DataFrame | None"


def read(path: Path) -> SweepFolder:
    """Reads a sweep folder, finished or not.

    Raises:
      RunError: `path` is no sweep folder, or a file in it is damaged.
    """
    if not path.is_dir():
        raise RunError(f"there is no sweep folder {str(path)!r}")
    metadata = folder.read_json(path / "sweep.json")
    defaults = {"fields": list(metadata["space"]), "groups": []}  # written only when members have ended
    return SweepFolder(defaults | metadata, *(_read_table(path / f"{name}.parquet") for name in ("results", "curves")))


def metric_names(results: "DataFrame") -> list[str]:
    """Names of the columns that are metrics ("split/metric"): validation first, then test, then train.

    >>> import pandas
    >>> metric_names(pandas.DataFrame(columns=["seed", "train/loss", "validation/loss"]))
    ['validation/loss', 'train/loss']
    """
    # Splits in the order in which they should be read.
    splits = ("validation", "test", "train")
    names = [name for name in results.columns if "/" in name]
    return sorted(names, key=lambda n: (splits.index(s) if (s := n.split("/")[0]) in splits else len(splits), n))


def default_metric(metadata: dict[str, Any], results: "DataFrame | None") -> str | None:
    """Chooses the metric by which configs are compared.

    The monitored metric, on the validation split if it names no other; without it the one on the training split, then
    any other. Metrics of the test split come last: they are for reporting, not for selection.

    Args:
      metadata: content of `sweep.json`, of which "monitor" is used.
      results: a row per member, or None.

    Returns:
      The name of a column, or None if there is no metric yet.

    >>> import pandas
    >>> results = pandas.DataFrame({"status": ["finished"], "test/loss": [0.1], "train/loss": [0.2]})
    >>> default_metric({"monitor": "loss"}, results)
    'train/loss'
    """
    if results is None:
        return None
    preferred = [metadata["monitor"], *(f"{split}/{metadata['monitor']}" for split in ("validation", "train"))]
    others = sorted(metric_names(results), key=lambda name: name.startswith("test/"))
    names = [name for name in preferred if name in others] + others
    return next((name for name in names if finite_values(results, name).notna().any()), names[0] if names else None)


def best_mode(metadata: dict[str, Any], metric: str) -> str | None:
    """Whether the best value of a metric is its smallest or its largest; None if nothing says so.

    Args:
      metadata: content of `sweep.json`, of which "monitor" and "mode" are used.
      metric: name of a column, such as "test/loss".

    >>> [best_mode({"monitor": "return", "mode": "max"}, name) for name in ("test/return", "test/loss", "test/size")]
    ['max', 'min', None]
    """
    name = metric.rpartition("/")[2]
    if name == metadata["monitor"].rpartition("/")[2]:
        return metadata["mode"]
    words = set(name.lower().split("_"))
    return "min" if words & SMALLER_IS_BETTER else "max" if words & LARGER_IS_BETTER else None


def config_ids(results: "DataFrame", fields: Sequence[str]) -> "Series":
    """Numbers the configs of members from 0 in order of appearance; members that differ only in the seed share one.

    Args:
      results: a row per member.
      fields: names of the swept fields, without the seed.

    >>> import pandas
    >>> config_ids(pandas.DataFrame({"hidden": [8, 8, 4], "seed": [0, 1, 0]}), ["hidden"]).tolist()
    [0, 0, 1]
    """
    return results.groupby(list(fields) or (lambda _: 0), sort=False, dropna=False).ngroup()


def finite_values(results: "DataFrame", metric: str) -> "Series":
    """Values of a metric by member; NaN where it is missing or infinite, or the member became not finite.

    >>> import pandas
    >>> results = pandas.DataFrame({"status": ["finished", "not finite"], "test/loss": [0.5, 9.0]})
    >>> finite_values(results, "test/loss").tolist()
    [0.5, nan]
    """
    values = results[metric].astype(float)
    return values.where(np.isfinite(values) & (results["status"] != NOT_FINITE))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap confidence interval of a mean.

    Bias-corrected and accelerated (BCa; Efron, 1987, "Better bootstrap confidence intervals") with 2,000 resamples from
    a fixed seed; the percentile interval where BCa does not exist because nearly all values are equal. With few values
    both are too narrow rather than too wide.

    Args:
      values: `[N]`.

    Returns:
      `(low, high)`; NaN for fewer than two values.

    >>> low, high = bootstrap_interval(np.array([1.0, 2.0, 4.0]))
    >>> bool(1.0 <= low < high <= 4.0)
    True
    """
    from scipy.stats import bootstrap

    chex.assert_rank(values, 1)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about degenerate data, which the check below finds
            random = np.random.default_rng(0)
            limits = bootstrap((values,), np.mean, method=method, n_resamples=2_000, rng=random).confidence_interval
        if np.isfinite(limits).all():
            break
    return float(limits.low), float(limits.high)


def summarize(results: "DataFrame", fields: Sequence[str], metric: str, mode: str = "min") -> "DataFrame":
    """Summarises members by config, best config first.

    Args:
      results: a row per member, as `SweepResult.results`.
      fields: names of the swept fields, without the seed.
      metric: a column of the results, such as "validation/loss".
      mode: "min" or "max", whichever is best.

    Returns:
      A row per config, with the values of `fields` as index and the columns of `seed_statistics`.

    Raises:
      RunError: a column is missing.

    >>> import pandas
    >>> results = pandas.DataFrame({"rate": [1, 1, 2], "status": "finished", "test/loss": [0.5, 0.25, 0.125]})
    >>> summarize(results, ["rate"], "test/loss")["mean"].to_dict()
    {2: 0.125, 1: 0.375}
    """
    import pandas

    for column in (*fields, metric):
        if column not in results:
            hint = did_you_mean(column, results.columns)
            raise RunError(f"the results have no {column!r}{hint}; metrics: {', '.join(metric_names(results))}")
    ids = config_ids(results, fields)
    table, configs = seed_statistics(results, ids, metric), results.loc[~ids.duplicated(), list(fields)]
    if fields:
        table.index = pandas.MultiIndex.from_frame(configs) if len(fields) > 1 else pandas.Index(configs[fields[0]])
    return table.sort_values("mean", ascending=mode == "min", kind="stable")


def seed_statistics(results: "DataFrame", ids: "Series", metric: str) -> "DataFrame":
    """Statistics of a metric over the seeds of each config.

    Args:
      results: a row per member.
      ids: number of each member's config, from `config_ids`.
      metric: a column of the results.

    Returns:
      A row per config id: mean; low and high, the 95% interval of the mean (see `bootstrap_interval`); n, the number of
      finite members; not_finite, the number of members that are left out because they diverged.

    >>> import pandas
    >>> results = pandas.DataFrame({"status": ["finished", "not finite"], "test/loss": [0.5, 9.0]})
    >>> seed_statistics(results, pandas.Series([0, 0]), "test/loss")[["mean", "n", "not_finite"]].values.tolist()
    [[0.5, 1.0, 1.0]]
    """
    import pandas

    values, raw = finite_values(results, metric), results[metric].astype(float)
    # A metric can be infinite or NaN although training stayed finite: its status says so of a NaN that is no gap.
    is_named = results["status"].str.contains(metric.replace("/", " ") + " is ", regex=False)
    num_not_finite = ((results["status"] == NOT_FINITE) | np.isinf(raw) | (raw.isna() & is_named)).groupby(ids).sum()
    rows = {}
    for config_id, group in values.groupby(ids):
        finite = group.dropna().to_numpy()
        mean = finite.mean() if len(finite) else float("nan")
        rows[config_id] = (mean, *bootstrap_interval(finite), len(finite), int(num_not_finite[config_id]))
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "n", "not_finite"])


def best_member(
    metadata: dict[str, Any], results: "DataFrame | None", configs: Sequence[Config]
) -> dict[str, str] | None:
    """Finds the best member.

    Args:
      metadata: content of `sweep.json`.
      results: a row per member, or None.
      configs: config of each member.

    Returns:
      The "metric" by which members are compared, and the "options" of `foldax run` that train the best one; None if
      no member is finite.

    >>> import foldax, pandas
    >>> results = pandas.DataFrame({"member": [0, 1], "status": "finished", "validation/loss": [0.5, 0.1]})
    >>> configs = [foldax.Training(steps=5), foldax.Training(steps=6, profile=True)]
    >>> best_member({"monitor": "loss", "mode": "min"}, results, configs)
    {'metric': 'validation/loss', 'options': '--profile --steps 6'}
    """
    metric = default_metric(metadata, results)
    if results is None or metric is None or finite_values(results, metric).isna().all():
        return None
    values = finite_values(results, metric)
    best = values.idxmax() if best_mode(metadata, metric) == "max" else values.idxmin()
    # All fields that are not at their defaults, swept or not.
    options = format_options(configs[int(results.loc[best, "member"])])
    return {"metric": metric, "options": shlex.join(options)}


def caveats(results: "DataFrame") -> list[str]:
    """Counts the members that are excluded from means or trained for fewer steps, one sentence per kind.

    >>> import pandas
    >>> caveats(pandas.DataFrame({"status": ["finished", "not finite"]}))
    ['members not finite, so in no mean: 1']
    """
    texts = {NOT_FINITE: "not finite, so in no mean", STOPPED: "stopped by the search, so to be compared with care"}
    texts["("] = "with an evaluation that is not finite, which their status names"
    counts = {text: results["status"].str.contains(part, regex=False).sum() for part, text in texts.items()}
    return [f"members {text}: {count:,}" for text, count in counts.items() if count]


def missing_metric(results: "DataFrame | None") -> str:
    """Explains why no member has a metric, as a sentence.

    >>> import pandas
    >>> missing_metric(None), missing_metric(pandas.DataFrame({"status": ["not finite"]}))
    ('no member is done yet', 'no member has a metric: all became NaN or infinite')
    """
    if results is None or len(results) == 0 or (results["status"] != NOT_FINITE).any():
        return "no member is done yet"
    return "no member has a metric: all became NaN or infinite"


def counts_and_speed(metadata: dict[str, Any], results: "DataFrame | None") -> dict[str, str]:
    """Members, configs, seeds, programs, speed and time of a sweep by label, as far as they exist yet.

    >>> counts_and_speed({"groups": [{"members": 4}], "seeds": 2, "seconds": 1.25}, None)
    {'members': '4', 'seeds': '2', 'seconds': '1.2'}
    """
    done = 0 if results is None else len(results)
    total = sum(group["members"] for group in metadata["groups"]) or done
    values = {
        "members": f"{total:,}" if done in (0, total) else f"{done:,} of {total:,}",
        "configs": f"{config_ids(results, metadata['fields']).nunique():,}" if results is not None and done else None,
        "seeds": str(metadata["seeds"]),
    }
    for label, key, decimals in (
        ("programs", "programs", 0),
        ("member-steps", "member_steps", 0),
        ("member-steps/s", "member_steps_per_second", 0),
        ("seconds", "seconds", 1),
        ("seconds compiling, all threads", "compile_seconds", 1),
    ):
        values[label] = None if metadata.get(key) is None else f"{metadata[key]:,.{decimals}f}"
    return {label: value for label, value in values.items() if value is not None}


def differing_fields(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the structural fields in which groups differ.

    Args:
      groups: "groups" of `sweep.json`.

    >>> differing_fields([{"structural": {"hidden": 8, "steps": 5}}, {"structural": {"hidden": 4, "steps": 5}}])
    ['hidden']
    """
    names = dict.fromkeys(name for group in groups for name in group["structural"])
    return [name for name in names if len({format_field(group["structural"].get(name)) for group in groups}) > 1]


def _read_table(path: Path) -> "DataFrame | None":
    import pandas

    if not path.exists():
        return None
    try:
        return pandas.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow raises both
        raise RunError(f"{path} cannot be read: {first_line(error)}") from error
