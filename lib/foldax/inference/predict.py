"""`foldax predict`: what a trained run says of new inputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax import parameter_paths
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, RunError
from foldax.inference import inputs as reading
from foldax.runs import tables
from foldax.runs.load import load_run

ROWS = 20  # that are shown
COLUMNS = 8
AT_ONCE = 256  # examples in a call
KINDS = (".npy", ".npz", ".csv", ".json")

Columns = dict[str, np.ndarray]


def predict(run: Result | str | Path, source: str, out: str | Path | None = None) -> Any:
    """Prints what a run predicts, classes with their probabilities or the outputs as they are, and may write it.

    Args:
      run: a run folder, or what `foldax.train` returned.
      source: a file, or the name of an evaluation split; see `inputs.read`.
      out: a .npy, .npz, .csv or .json file to write to.

    Returns:
      The outputs, `[B, ...]` or by name.

    Raises:
      ConfigError: `out` is of another kind.
      DataError: the inputs cannot be read, or are not like those of the run.
      ExperimentError: the learner has no `predict`, or fails on these inputs.
      RunError: see `load_run`; or `out` cannot be written.
    """
    if out is not None and Path(out).suffix not in KINDS:
        raise ConfigError(f"--out: {str(out)!r} is of no known kind; allowed are {', '.join(KINDS)}")
    result = run if isinstance(run, Result) else load_run(run)
    inputs, targets = reading.read(result, source)
    outputs = predicted(result, inputs)
    found = probabilities(result, outputs)
    if found is not None:
        _show_classes(result, found, targets.get("targets"))
    else:
        _show_outputs(outputs, targets.get("targets"))
    if out is not None:
        _write(Path(out), outputs, None if found is None else _class_columns(result, found))
        print(f"written: {tables.shown(Path(out))}")
    return outputs


def predicted(result: Result, inputs: reading.Arrays) -> Any:
    """Returns the outputs of inputs by name `[B, ...]`, a few hundred at a time, each part with a seed of its own."""
    count = len(inputs["inputs"])
    size, parts = min(count, AT_ONCE), []
    for number, start in enumerate(range(0, count, size)):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # the last part is filled up: one program for all
        some = reading.as_given({name: array[rows] for name, array in inputs.items()})
        with compiled.own_code(result.experiment):
            outputs = jax.device_get(result.predict(some, seed=number))
        parts.append(_first(outputs, count - start))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _first(outputs: Any, count: int) -> Any:
    return jax.tree.map(lambda x: x[:count], outputs)


def probabilities(result: Result, outputs: Any) -> np.ndarray | None:
    """Returns the probability of every class `[B, C]` from a classifier's logits, or None if it is no classifier."""
    count = getattr(result.info, "num_classes", None)
    if count is None or not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
        return None
    if outputs.shape[1] == count:
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True), dtype=np.float64)
        return shifted / shifted.sum(axis=1, keepdims=True)
    if outputs.shape[1] == 1 and count == 2:
        second = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        return np.concatenate([1 - second, second], axis=1)
    return None


def _class_names(result: Result, count: int) -> list[str]:
    return list(result.info.class_names or map(str, range(count)))


def _show_classes(result: Result, found: np.ndarray, targets: np.ndarray | None) -> None:
    names, order = _class_names(result, found.shape[1]), np.argsort(-found, axis=1, kind="stable")
    columns: dict[str, list[str]] = {"row": [], "class": [], "probability": [], "next": [], "its probability": []}
    for row in range(min(len(found), ROWS)):
        first, second = order[row, :2]
        cells = (row, names[first], f"{found[row, first]:.4f}", names[second], f"{found[row, second]:.4f}")
        for column, cell in zip(columns.values(), cells):
            column.append(str(cell))
    caption = ""
    if targets is not None and targets.ndim == 1:
        columns["target"] = [names[int(target)] for target in targets[:ROWS]]
        caption = f"{int((order[:, 0] == targets).sum()):,} of {len(found):,} right"
    _print(columns, len(found), caption)


def _show_outputs(outputs: Any, targets: np.ndarray | None) -> None:
    flat = _columns(outputs)
    if len(flat) > COLUMNS:
        wide: dict[str, list[str]] = {"output": [], "shape": [], "least": [], "mean": [], "most": []}
        for name, value in parameter_paths.leaves_by_path(outputs).items():
            numbers = [f"{float(x):.6g}" for x in (value.min(), value.mean(), value.max())]
            for column, cell in zip(wide.values(), (name or "outputs", "x".join(map(str, value.shape)), *numbers)):
                column.append(cell)
        _print(wide, len(wide["output"]), "too many numbers for a table: --out FILE writes them")
        return
    count = len(next(iter(flat.values())))
    shown = {name: [f"{value:.6g}" for value in column[:ROWS].tolist()] for name, column in flat.items()}
    if targets is not None and targets.size == count:
        shown["target"] = [f"{value:.6g}" for value in targets.reshape(-1)[:ROWS].tolist()]
    _print({"row": list(map(str, range(min(count, ROWS)))), **shown}, count)


def _columns(outputs: Any) -> Columns:
    """Returns the outputs as columns `[B]`: "mean", or "mean 0", "mean 1", ... of one with several numbers a row."""
    made: Columns = {}
    for name, value in parameter_paths.leaves_by_path(outputs).items():
        flat = value.reshape(len(value), -1)
        title = name or "output"
        made |= {title if flat.shape[1] == 1 else f"{title} {i}": flat[:, i] for i in range(flat.shape[1])}
    return made


def _class_columns(result: Result, found: np.ndarray) -> dict[str, Any]:
    names = _class_names(result, found.shape[1])
    return {"class": [names[i] for i in found.argmax(axis=1)], **{name: found[:, i] for i, name in enumerate(names)}}


def _print(columns: dict[str, list[str]], count: int, caption: str = "") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    words = ("class", "next", "target", "output")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for row in zip(*columns.values()):
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    more = f"and {count - ROWS:,} more rows" if count > ROWS else ""
    console.print(*filter(None, (more, caption)), sep="; ", highlight=False)


def _write(path: Path, outputs: Any, classes: dict[str, Any] | None) -> None:
    """Writes raw outputs as .npy or .npz, and classes with their probabilities, or columns, as .csv or .json.

    Raises:
      ConfigError: the kind of file cannot hold these outputs.
      RunError: the file cannot be written.
    """
    by_path = parameter_paths.leaves_by_path(outputs)
    try:
        if path.suffix == ".npy":
            if list(by_path) != [""]:
                raise ConfigError(f"--out: there are several outputs ({', '.join(by_path)}); write a .npz")
            np.save(path, by_path[""], allow_pickle=False)
        elif path.suffix == ".npz":
            np.savez(path, **{name.replace("/", ".") or "outputs": value for name, value in by_path.items()})
        elif path.suffix == ".json":
            plain = {name: np.asarray(value).tolist() for name, value in (classes or by_path).items()}
            path.write_text(json.dumps(plain[""] if list(plain) == [""] else plain) + "\n")
        else:
            columns = classes or _columns(outputs)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values())))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
