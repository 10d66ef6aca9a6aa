"""`foldax runs`: a table of all runs and sweeps below a folder, filtered and sorted."""

import json
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from foldax.engine.checkpoint import checkpoint_steps
from foldax.errors import ConfigError, RunError, did_you_mean, display_path
from foldax.field_values import to_plain
from foldax.locks import is_locked
from foldax.options import flatten, plain_text
from foldax.runs import folder, tables
from foldax.runs.removal import folder_size
from foldax.runs.status import status_kind
from foldax.runs.tags import read_tags
from foldax.runs.terminal import warn
from foldax.sweeps.statistics import best_mode

SEARCHED_SPLITS = ("validation", "test", "train")  # where a metric without split is looked for
NUM_METRICS = 4  # columns, unless they are chosen
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
OWN_COLUMNS = ("kind", "experiment", "status", "step", "size", "started")  # beside run, tags, fields and metrics
NEWEST_FIRST = ("started", "size", "step")  # columns that are sorted from large to small


class Entry(NamedTuple):
    """A run or sweep in the table.

    Attributes:
      path: its folder.
      kind: "run" or "sweep".
      experiment: name of its experiment.
      status: as in its manifest, but "killed" if no process holds the lock of one that is "running".
      step: number of updates, of an unfinished run those of the newest checkpoint; None for a sweep.
      started: time in ISO format.
      size: bytes of all files in its folder.
      tags: its tags.
      config: plain values by dotted name of the field.
      metrics: final metrics by "split/metric"; none before the end, and of a sweep.
    """

    path: Path
    kind: str
    experiment: str
    status: str
    step: int | None
    started: str
    size: int
    tags: list[str]
    config: dict[str, Any]
    metrics: dict[str, float]


def find_folders(root: Path) -> Iterator[Path]:
    """Yields the folders of runs and sweeps at or below a folder, in the order of their paths; links are not followed.

    Raises:
      RunError: there is no such folder.

    >>> list(find_folders(Path(__file__).parent))
    []
    """
    if not root.is_dir():
        raise RunError(f"there is no folder {str(root)!r}")
    for parent, folders, files in os.walk(root, onerror=lambda error: warn(f"{error.filename}: {error.strerror}")):
        folders.sort()
        if {"manifest.json", "metrics.jsonl", "sweep.json"} & set(files):
            folders.clear()  # folders of a run hold no other
            yield Path(parent)


def read_entry(path: Path) -> Entry:
    """Reads the small files of a run or sweep: config, manifest, result and tags.

    Raises:
      RunError: a file is missing or damaged.
    """
    is_sweep = folder.is_sweep(path)
    name = "sweep.json" if is_sweep else "manifest.json"
    try:
        manifest = folder.read_json(path / name)
        config = manifest["config"] if is_sweep else folder.read_json(path / "config.json")
        result = folder.read_result(path) if not is_sweep and (path / "result.json").exists() else {}
        by_split = folder.result_metrics(result)
        is_killed = manifest["status"] == "running" and is_locked(path / "lock") is False
        return Entry(
            path=path,
            kind="sweep" if is_sweep else "run",
            experiment=manifest["experiment"],
            status="killed" if is_killed else manifest["status"],
            step=None if is_sweep else result["steps"] if result else _newest_step(path),
            started=datetime.fromisoformat(manifest["started"]).isoformat(),
            size=folder_size(path),
            tags=read_tags(path),
            config=flatten(config),
            metrics=tables.flat_metrics(by_split),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # JSON, but not of a run
        raise RunError(f"{path} is damaged or no run: its files lack {str(error) or 'values'}") from error


def _newest_step(path: Path) -> int:
    try:
        return max(checkpoint_steps(folder.checkpoint_folder(path)), default=0)
    except RunError as error:  # a bucket that is out of reach
        warn(str(error))
        return 0


def read_entries(root: Path) -> list[Entry]:
    """Reads all runs and sweeps at or below a folder, oldest first; a damaged one is a warning.

    Raises:
      RunError: there is no such folder.
    """
    entries = []
    for path in find_folders(root):
        try:
            entries.append(read_entry(path))
        except RunError as error:
            warn(f"left out: {error}")
    return sorted(entries, key=lambda entry: str(entry.started))


def column_values(entry: Entry) -> dict[str, Any]:
    """Values of a run by name of the column: its path, status and so on, config fields, metrics.

    >>> entry = Entry(Path("runs/a"), "run", "digits", "finished", 5, "", 0, [], {"seed": 1}, {"test/loss": 0.5})
    >>> column_values(entry)["seed"], column_values(entry)["test/loss"]
    (1, 0.5)
    """
    own: dict[str, Any] = {name: getattr(entry, name) for name in OWN_COLUMNS}
    own |= {"run": display_path(entry.path), "tags": ", ".join(entry.tags)}
    return {_field_column(name): value for name, value in entry.config.items()} | entry.metrics | own


def _field_column(name: str) -> str:
    """Name of a config field as a column: not that of another one."""
    return f"config.{name}" if name in OWN_COLUMNS or name in ("run", "tags") else name


def resolve_name(entries: Sequence[Entry], name: str) -> str:
    """Finds the column of a name; a metric may be named without its split: validation, test and train in this order.

    Raises:
      ConfigError: no run has such a column.
    """
    names = dict.fromkeys(column for entry in entries for column in column_values(entry))
    field = name.lstrip("-").replace("-", "_")  # as options spell it
    for candidate in (name, field, *(f"{split}/{field}" for split in SEARCHED_SPLITS)):
        if candidate in names:
            return candidate
    raise ConfigError(f"no run has {name!r}{did_you_mean(name, names)}; there are: {', '.join(names) or 'none'}")


def select(entries: Sequence[Entry], conditions: Sequence[str] = (), tags: Sequence[str] = ()) -> list[Entry]:
    """Selects the runs that satisfy all conditions and have all tags.

    Args:
      entries: runs and sweeps.
      conditions: such as "learning_rate=0.1", "test/accuracy>0.9", "status!=failed"; a text is compared as options
        spell it, a status without what follows ":" or "(".
      tags: tags that a run must have.

    Raises:
      ConfigError: a condition has no operator, or names what no run has.

    >>> entries = [Entry(Path("a"), "run", "digits", "finished", 5, "", 0, ["x"], {"seed": n}, {}) for n in (1, 2)]
    >>> [entry.config["seed"] for entry in select(entries, ["seed>1"], ["x"])]
    [2]
    """
    selected = [entry for entry in entries if set(tags) <= set(entry.tags)]
    for condition in conditions:
        match = re.fullmatch(r"([^=<>!]+)(!=|<=|>=|=|<|>)(.*)", condition, re.S)
        if not match:
            raise ConfigError(f"--where {condition}: write FIELD=VALUE, or !=, <, <=, >, >= in place of =")
        name, compare = resolve_name(entries, match[1].strip()), OPERATORS[match[2]]
        selected = [entry for entry in selected if _holds(column_values(entry).get(name), compare, match[3].strip())]
    return selected


def _holds(value: Any, compare: Callable[[Any, Any], bool], text: str) -> bool:
    number, other = _number(value), _number(text)
    if number is not None and other is not None:
        return compare(number, other)
    if compare not in (operator.eq, operator.ne):
        return False
    spellings = {plain_text(value), status_kind(value) if isinstance(value, str) else plain_text(value)}
    is_equal = text.replace(" ", "") in {spelling.replace(" ", "") for spelling in spellings}
    return is_equal == (compare is operator.eq)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def sort_entries(entries: Sequence[Entry], name: str) -> list[Entry]:
    """Sorts runs by a column: metrics from best to worst, times, sizes and steps from large to small, others upwards.

    Runs without a value, or with NaN, come last.

    Args:
      entries: runs and sweeps.
      name: from `resolve_name`.

    >>> entries = [Entry(Path("a"), "run", "x", "", 5, "", 0, [], {}, {"test/loss": loss}) for loss in (0.5, 0.1)]
    >>> [entry.metrics["test/loss"] for entry in sort_entries(entries, "test/loss")]
    [0.1, 0.5]
    """
    pairs = [(column_values(entry).get(name), entry) for entry in entries]
    present = [(value, entry) for value, entry in pairs if value is not None and value == value]
    missing = [entry for value, entry in pairs if value is None or value != value]
    monitors = [entry.config for entry in entries if {"monitor", "mode"} <= entry.config.keys()]
    is_metric = any(name in entry.metrics for entry in entries)
    largest_first = best_mode(monitors[0], name) == "max" if is_metric and monitors else name in NEWEST_FIRST

    def key(pair: tuple[Any, Entry]) -> tuple[bool, float, str]:
        number = _number(pair[0])
        return number is None, number or 0.0, plain_text(pair[0])

    return [entry for _, entry in sorted(present, key=key, reverse=largest_first)] + missing


def differing_fields(entries: Sequence[Entry]) -> list[str]:
    """Names of the config fields in which runs of the same experiment differ.

    >>> entries = [Entry(Path("a"), "run", "x", "", 5, "", 0, [], {"seed": n, "steps": 5}, {}) for n in (1, 2)]
    >>> differing_fields(entries)
    ['seed']
    """
    values: dict[str, dict[str, set[str]]] = {}
    for entry in entries:
        for name, value in entry.config.items():
            values.setdefault(name, {}).setdefault(entry.experiment, set()).add(plain_text(value))
    return [name for name, by_experiment in values.items() if any(len(texts) > 1 for texts in by_experiment.values())]


def default_metrics(entries: Sequence[Entry]) -> list[str]:
    """Chooses the metrics of the table: the monitored ones on each split, then others of the test split, at most four.

    >>> default_metrics([Entry(Path("a"), "run", "x", "", 5, "", 0, [], {"monitor": "loss"}, {"test/loss": 0.5})])
    ['test/loss']
    """
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    monitored = dict.fromkeys(str(e.config["monitor"]).rpartition("/")[2] for e in entries if "monitor" in e.config)
    preferred = [f"{split}/{metric}" for metric in monitored for split in SEARCHED_SPLITS[:2]]
    preferred += [name for name in names if name.startswith("test/")]
    present = [name for name in dict.fromkeys(preferred) if name in names]
    return (present or list(names))[:NUM_METRICS]


def entries_table(entries: Sequence[Entry], metrics: Sequence[str]) -> Any:
    """Makes a table with a row per run: its state, metrics, and the config fields in which runs differ.

    Args:
      entries: runs and sweeps.
      metrics: columns of metrics, by "split/metric".
    """
    fields = differing_fields(entries)
    columns = ["run", "experiment", "status", "step", *metrics, *map(_field_column, fields), "tags", "size", "started"]
    rows = [_row(entry, metrics, fields) for entry in entries]
    # Columns that would say nothing
    hidden = {"experiment"} if len({entry.experiment for entry in entries}) == 1 else set()
    hidden |= set() if any(entry.tags for entry in entries) else {"tags"}
    shown = [index for index, name in enumerate(columns) if name not in hidden]
    rows = [[row[index] for index in shown] for row in rows]
    left = {"run", "experiment", "status", *map(_field_column, fields), "tags"}
    return tables.fit_table([columns[index] for index in shown], rows, left)


def _row(entry: Entry, metrics: Sequence[str], fields: Sequence[str]) -> list[str]:
    from rich.filesize import decimal

    short = status_kind(entry.status) + " ..." * (status_kind(entry.status) != entry.status)
    status = short if entry.kind == "run" else f"sweep, {short}"
    return [
        *(display_path(entry.path), entry.experiment, status, "" if entry.step is None else f"{entry.step:,}"),
        *(tables.format_metric(entry.metrics[name]) if name in entry.metrics else "" for name in metrics),
        *(_field_text(entry.config[name]) if name in entry.config else "" for name in fields),
        *(", ".join(entry.tags), decimal(entry.size)),
        datetime.fromisoformat(entry.started).astimezone().strftime("%Y-%m-%d %H:%M"),
    ]


def _field_text(value: Any) -> str:
    return tables.format_field(value) if isinstance(value, float) else plain_text(value)


def entries_json(entries: Sequence[Entry]) -> str:
    """Formats runs as a JSON list of objects with the attributes of `Entry`.

    >>> json.loads(entries_json([Entry(Path("a"), "run", "x", "", 5, "", 0, [], {}, {"test/loss": float("nan")})]))
    [{'path': 'a', 'kind': 'run', 'experiment': 'x', 'status': '', 'step': 5, 'started': '', 'size': 0, 'tags': [], \
'config': {}, 'metrics': {'test/loss': 'nan'}}]
    """
    objects = [entry._asdict() | {"path": str(entry.path)} for entry in entries]
    return json.dumps(to_plain(objects), indent=2, allow_nan=False)
