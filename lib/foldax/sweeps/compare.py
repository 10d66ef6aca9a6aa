"""`foldax compare`: config fields, metrics and learning curves of runs and sweeps side by side, paired over seeds."""

import string
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax.engine.contracts import LOG_FIELDS
from foldax.errors import RunError, display_path
from foldax.options import flatten, plain_text
from foldax.runs import folder, tables
from foldax.runs.log import read_log
from foldax.sweeps import statistics
from foldax.sweeps.catalog import find_folders, read_entry

MIN_WILCOXON = 6  # pairs, below which no two-sided p-value of the signed-rank test is under 0.05


class Member(NamedTuple):
    """A run, or a member of a sweep.

    Attributes:
      source: the sweep or folder of runs that it was given as; empty for a run that was given itself.
      name: its path.
      experiment: name of its experiment.
      status: as `foldax runs` shows it.
      config: plain values by dotted name of the field, without the seed.
      seed: its seed.
      metrics: final metrics by "split/metric"; the newest ones of an unfinished run.
      history: lines of its log.
    """

    source: str
    name: str
    experiment: str
    status: str
    config: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    history: Sequence[dict[str, Any]]


class PairedTest(NamedTuple):
    """Differences of a metric between two configs, paired over seeds.

    Attributes:
      num_pairs: number of seeds that both have.
      difference: mean difference, second minus first.
      low, high: its 95% interval, of Student's t distribution.
      t_test: two-sided p-value of the paired t-test.
      wilcoxon: two-sided p-value of the signed-rank test (Wilcoxon, 1945).
    """

    num_pairs: int
    difference: float
    low: float
    high: float
    t_test: float
    wilcoxon: float


def paired_test(first: dict[int, float], second: dict[int, float]) -> PairedTest | None:
    """Compares two configs by the seeds that both have, without values that are not finite.

    Args:
      first: values by seed.
      second: values by seed.

    Returns:
      The test, or None with fewer than two pairs. p-values are 1 if all pairs are equal, and NaN if a test has none.

    >>> test = paired_test({0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.5, 1: 3.0, 2: 4.5})
    >>> test.num_pairs, round(test.difference, 3), round(test.t_test, 3), test.wilcoxon
    (3, 0.667, 0.057, 0.25)
    """
    from scipy import stats

    pairs = np.array([(first[seed], second[seed]) for seed in first if seed in second], float).reshape(-1, 2)
    x, y = pairs[np.isfinite(pairs).all(1)].T
    if len(x) < 2:
        return None
    mean = float(np.mean(y - x))
    if not np.any(x != y):
        return PairedTest(len(x), 0.0, 0.0, 0.0, 1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ties, and differences that are all equal
        wilcoxon = float(stats.wilcoxon(y - x).pvalue)
        if np.ptp(y - x) == 0:
            return PairedTest(len(x), mean, mean, mean, float("nan"), wilcoxon)
        test = stats.ttest_rel(y, x)
        low, high = test.confidence_interval(0.95)
    return PairedTest(len(x), mean, float(low), float(high), float(test.pvalue), wilcoxon)


def read_groups(paths: Sequence[Path]) -> dict[str, list[Member]]:
    """Reads runs and sweeps, and groups those that differ only in the seed.

    Runs that are given by themselves share a group if their configs are equal but for different seeds. Sweeps, and
    folders that hold runs, have a group for each of their configs.

    Args:
      paths: folders of runs, of sweeps, or of several of them.

    Returns:
      The members of each group by its letter: A, B, ...

    Raises:
      RunError: a folder is none of these, or a file in it is damaged.
    """
    members = [member for path in dict.fromkeys(paths) for member in _read_members(path)]
    keys = [(m.source, m.experiment, *(f"{n}={plain_text(v)}" for n, v in sorted(m.config.items()))) for m in members]
    groups: dict[Any, list[Member]] = defaultdict(list)
    occurrences: Counter[Any] = Counter()
    for key, member in zip(keys, members):
        # A config that was trained twice with the same seed is compared with itself.
        groups[key, occurrences[key, member.seed]].append(member)
        occurrences[key, member.seed] += 1
    return {_letter(index): group for index, group in enumerate(groups.values())}


def _letter(index: int) -> str:
    turn, letter = divmod(index, len(string.ascii_uppercase))
    return string.ascii_uppercase[letter] + (str(turn) if turn else "")


def _read_members(path: Path) -> Iterator[Member]:
    if folder.is_sweep(path):
        yield from _sweep_members(path)
    elif (path / "manifest.json").exists():
        yield _run_member(path, "")
    else:
        found = list(find_folders(path))
        if not found:
            raise RunError(f"{path} is not the folder of a run or sweep, and holds none")
        for inner in found:
            yield from _sweep_members(inner) if folder.is_sweep(inner) else [_run_member(inner, str(path))]


def _run_member(path: Path, source: str) -> Member:
    entry, history = read_entry(path), read_log(path)
    newest = {
        f"{line['split']}/{name}": value for line in history for name, value in line.items() if name not in LOG_FIELDS
    }
    config = {name: value for name, value in entry.config.items() if name != "seed"}
    name, seed, metrics = display_path(path), entry.config.get("seed", 0), entry.metrics or newest
    return Member(source, name, entry.experiment, entry.status, config, seed, metrics, history)


def _sweep_members(path: Path) -> Iterator[Member]:
    metadata, results, curves = statistics.read(path)
    if results is None:
        raise RunError(f"{path} cannot be compared yet: {statistics.missing_metric(results)}")
    base = {name: value for name, value in flatten(metadata["config"]).items() if name != "seed"}
    fields, metrics = [name for name in metadata["fields"] if name != "seed"], statistics.metric_names(results)
    values = {name: statistics.finite_values(results, name).tolist() for name in metrics}
    by_member = dict(iter(curves.groupby("member"))) if curves is not None else {}
    for index, row in enumerate(results.to_dict("records")):
        history: list[dict[str, Any]] = []
        if row["member"] in by_member:
            for point in by_member[row["member"]].to_dict("records"):
                history.append({"step": point["step"], "split": point["split"], point["metric"]: point["value"]})
        own = {name: None if row[name] != row[name] else row[name] for name in fields}
        numbers = {name: values[name][index] for name in metrics}
        name = display_path(path)
        yield Member(str(path), name, metadata["experiment"], row["status"], base | own, row["seed"], numbers, history)


def group_names(groups: dict[str, list[Member]]) -> dict[str, str]:
    """Describes each group by the path of its first member and the number of members.

    >>> member = Member("", "runs/a", "digits", "finished", {}, 0, {}, [])
    >>> group_names({"A": [member, member._replace(seed=1)]})
    {'A': 'runs/a and 1 more seed'}
    """
    more = {label: len(group) - 1 for label, group in groups.items()}
    return {
        label: group[0].name + (f" and {more[label]} more seed{'s' * (more[label] > 1)}" if more[label] else "")
        for label, group in groups.items()
    }


def fields_table(groups: dict[str, list[Member]]) -> Any:
    """Makes a table with a row per config field in which groups differ, and a column per group."""
    texts: dict[str, list[str]] = {"experiment": [group[0].experiment for group in groups.values()]}
    exact: dict[str, list[str]] = dict(texts)
    for name in dict.fromkeys(name for group in groups.values() for name in group[0].config):
        values = [group[0].config.get(name, "") for group in groups.values()]
        exact[name] = list(map(plain_text, values))
        texts[name] = [tables.format_field(v) if isinstance(v, float) else plain_text(v) for v in values]
        if len(set(texts[name])) < len(set(exact[name])):
            texts[name] = exact[name]  # four digits do not distinguish them
    rows = [(name, *cells) for name, cells in texts.items() if len(set(exact[name])) > 1]
    columns = ("field", *groups)
    return tables.fit_table(columns, rows or [("none", *[""] * len(groups))], columns, "Config fields that differ")


def metrics_table(groups: dict[str, list[Member]]) -> Any:
    """Makes a table with a row per metric and a column per group: means over seeds, and their standard deviations."""
    statuses = [Counter(member.status for member in group) for group in groups.values()]
    rows = [("status", *(_count_statuses(counts) for counts in statuses))]
    rows.append(("seeds", *(str(len(group)) for group in groups.values())))
    for name in _metric_names(groups):
        values = [[member.metrics[name] for member in group if name in member.metrics] for group in groups.values()]
        rows.append((name, *map(_mean_text, values)))
    title = "Final metrics"
    if any(len(group) > 1 for group in groups.values()):
        title += ": mean ± standard deviation over seeds"
    return tables.fit_table(("metric", *groups), rows, {"metric"}, title)


def _count_statuses(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _mean_text(values: Sequence[float]) -> str:
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return "not finite" if values else ""
    spread = f" ± {np.std(finite, ddof=1):.2g}" if len(finite) > 1 else ""
    lost = f" ({len(values) - len(finite)} not finite)" if len(finite) < len(values) else ""
    return tables.format_metric(float(finite.mean())) + spread + lost


def _metric_names(groups: dict[str, list[Member]]) -> list[str]:
    """Metrics of all members: those of the test split first, then validation, named sets and train."""
    names = dict.fromkeys(name for group in groups.values() for member in group for name in member.metrics)
    order = {"test": 0, "validation": 1, "train": 3}
    return sorted(names, key=lambda name: order.get(name.split("/")[0], 2))


def paired_tests(groups: dict[str, list[Member]]) -> dict[tuple[str, str], PairedTest]:
    """Tests each group against the first one, in all metrics but those of training, by group and metric.

    >>> members = [Member("", "a", "digits", "finished", {}, seed, {"test/loss": seed * 1.0}, []) for seed in (0, 1)]
    >>> tests = paired_tests({"A": members, "B": members})
    >>> tests["B", "test/loss"].difference
    0.0
    """
    first, *others = groups
    names = [name for name in _metric_names(groups) if not name.startswith("train/")] or _metric_names(groups)
    values = {
        (label, name): {member.seed: member.metrics[name] for member in group if name in member.metrics}
        for label, group in groups.items()
        for name in names
    }
    tests = {(label, name): paired_test(values[first, name], values[label, name]) for label in others for name in names}
    return {key: test for key, test in tests.items() if test is not None}


def differences_table(tests: dict[tuple[str, str], PairedTest], first: str) -> Any:
    """Makes a table with a row per paired test.

    Args:
      tests: from `paired_tests`.
      first: the group that the others are compared with.
    """
    rows = []
    for (label, name), test in tests.items():
        interval = "..".join(f"{value:+.3g}" for value in (test.low, test.high))
        p_values = ("" if p != p else f"{p:.2g}" for p in (test.t_test, test.wilcoxon))
        rows.append((f"{label} - {first}", name, str(test.num_pairs), f"{test.difference:+.3g}", interval, *p_values))
    columns = ("groups", "metric", "seeds", "difference", "95% interval", "p (t-test)", "p (Wilcoxon)")
    notes = []
    if len(tests) > 1:
        notes.append(f"p-values are of single tests, not corrected for their number ({len(tests)})")
    if any(test.num_pairs < MIN_WILCOXON for test in tests.values()):
        notes.append(f"Wilcoxon's p-value is never below 0.05 with fewer than {MIN_WILCOXON} seeds")
    return tables.fit_table(columns, rows, columns[:2], f"Differences to {first}, paired by seeds", "\n".join(notes))
