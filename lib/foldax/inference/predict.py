"""`foldax predict`: predictions of a trained run for a file or an evaluation split."""

from pathlib import Path
from typing import Any

import chex
import numpy as np

from foldax import parameter_paths
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, display_path
from foldax.inference.inputs import Arrays, map_in_batches, predict_argument, read_inputs
from foldax.inference.outputs import write_csv
from foldax.runs import tables
from foldax.runs.folder import whole_file
from foldax.runs.load import load_run
from foldax.runs.log import json_line
from foldax.runs.terminal import echo, print_table

MAX_ROWS = 20  # printed rows
MAX_COLUMNS = 8  # printed columns
SUFFIXES = (".npy", ".npz", ".csv", ".json")


def predict(run: Result | str | Path, source: str, out: str | Path | None = None) -> chex.ArrayTree:
    """Prints the predictions of a run: classes with their probabilities, or the outputs as they are.

    Args:
      run: a run folder, or the `Result` of `foldax.train`.
      source: a file, or the name of an evaluation split; see `inputs.read_inputs`.
      out: a .npy, .npz, .csv or .json file for the predictions.

    Returns:
      The outputs of the learner's `predict`, `[B, ...]` or by name.

    Raises:
      ConfigError: the suffix of `out` is not allowed.
      DataError: the inputs cannot be read, or do not fit the run.
      ExperimentError: the learner has no `predict`, or it fails on these inputs.
      RunError: the run cannot be loaded, or `out` cannot be written.
    """
    if out is not None and Path(out).suffix not in SUFFIXES:
        raise ConfigError(f"--out: {str(out)!r} is of no known kind; allowed are {', '.join(SUFFIXES)}")
    # 1. Inputs and outputs
    result = run if isinstance(run, Result) else load_run(run)
    inputs, targets = read_inputs(result, source)
    outputs = predict_in_batches(result, inputs)
    # 2. Table: classes of a classifier, else numbers
    probabilities = class_probabilities(result, outputs)
    if probabilities is not None:
        _print_classes(result, probabilities, targets.get("targets"))
    else:
        _print_outputs(outputs, targets.get("targets"))
    # 3. File
    if out is not None:
        _write(Path(out), outputs, None if probabilities is None else _class_columns(result, probabilities))
        echo(f"written: {display_path(Path(out))}")
    return outputs


def predict_in_batches(result: Result, inputs: Arrays) -> chex.ArrayTree:
    """Computes the outputs for inputs (and mask) by name, `[B, ...]`; each batch has its own seed."""
    with compiled.user_code_errors(result.experiment):
        return map_in_batches(lambda batch, seed: result.predict(predict_argument(batch), seed=seed), inputs)


def class_probabilities(result: Result, outputs: chex.ArrayTree) -> np.ndarray | None:
    """Converts logits of a classifier to the probabilities of all classes.

    Args:
      result: the run, whose dataset has the number of classes C.
      outputs: logits `[B, C]`, or `[B, 1]` of the second of two classes.

    Returns:
      Probabilities `[B, C]`, or None if the outputs are no logits of the dataset's classes.
    """
    count = getattr(result.info, "num_classes", None)
    if count is None or not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
        return None
    if outputs.shape[1] == count:
        # Softmax, shifted by the largest logit so that nothing overflows.
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True), dtype=np.float64)
        return shifted / shifted.sum(axis=1, keepdims=True)
    if outputs.shape[1] == 1 and count == 2:
        # One logit of two classes is that of the second.
        second = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        return np.concatenate([1 - second, second], axis=1)
    return None


def _class_names(result: Result, count: int) -> list[str]:
    return list(result.info.class_names or map(str, range(count)))


def _print_classes(result: Result, probabilities: np.ndarray, targets: np.ndarray | None) -> None:
    names, order = _class_names(result, probabilities.shape[1]), np.argsort(-probabilities, axis=1, kind="stable")
    rows = range(min(len(probabilities), MAX_ROWS))
    columns = {"row": list(map(str, rows))}
    for rank, titles in enumerate((("class", "probability"), ("next", "its probability"))):
        columns[titles[0]] = [names[order[row, rank]] for row in rows]
        columns[titles[1]] = [f"{probabilities[row, order[row, rank]]:.4f}" for row in rows]
    caption = ""
    if targets is not None and targets.ndim == 1:
        columns["target"] = [names[int(target)] for target in targets[:MAX_ROWS]]
        right = (order[:, 0] == targets) & ~np.isnan(probabilities).any(axis=1)
        caption = f"{int(right.sum()):,} of {len(probabilities):,} right"
    _print_columns(columns, len(probabilities), caption)


def _print_outputs(outputs: chex.ArrayTree, targets: np.ndarray | None) -> None:
    columns = output_columns(outputs)
    # Images, say: a summary of every output instead of its values.
    if len(columns) > MAX_COLUMNS:
        rows = [
            (name or "outputs", tables.shape_text(x.shape), *(f"{float(f()):.6g}" for f in (x.min, x.mean, x.max)))
            for name, x in parameter_paths.leaves_by_path(outputs).items()
        ]
        summary = dict(zip(("output", "shape", "min", "mean", "max"), map(list, zip(*rows))))
        _print_columns(summary, len(rows), "too many numbers for a table: --out FILE writes them")
        return
    count = len(next(iter(columns.values())))
    if targets is not None and targets.size == count:
        columns["target"] = targets.reshape(-1)
    cells = {name: [f"{value:.6g}" for value in column[:MAX_ROWS].tolist()] for name, column in columns.items()}
    _print_columns({"row": list(map(str, range(min(count, MAX_ROWS)))), **cells}, count)


def output_columns(outputs: chex.ArrayTree) -> dict[str, np.ndarray]:
    """Splits outputs `[B, ...]` into columns `[B]`: "mean", or "mean 0", "mean 1", ... of several values per row.

    >>> output_columns({"mean": np.array([[1.0, 2.0]]), "std": np.array([0.5])})
    {'mean 0': array([1.]), 'mean 1': array([2.]), 'std': array([0.5])}
    """
    columns: dict[str, np.ndarray] = {}
    for name, value in parameter_paths.leaves_by_path(outputs).items():
        flat = value.reshape(len(value), -1)
        title = name or "output"
        columns |= {title if flat.shape[1] == 1 else f"{title} {i}": flat[:, i] for i in range(flat.shape[1])}
    return columns


def _class_columns(result: Result, probabilities: np.ndarray) -> dict[str, Any]:
    names = _class_names(result, probabilities.shape[1])
    columns: dict[str, Any] = {"class": [names[i] for i in probabilities.argmax(axis=1)]}
    for index, name in enumerate(names):
        # A class may have the name of the first column.
        columns[f"{name} ({index})" if name in columns else name] = probabilities[:, index]
    return columns


def _print_columns(columns: dict[str, list[str]], count: int, caption: str = "") -> None:
    left = ("class", "next", "target", "output")
    print_table(tables.text_table(columns, zip(*columns.values()), left))
    more = f"and {count - MAX_ROWS:,} more rows" if count > MAX_ROWS else ""
    echo(*filter(None, (more, caption)), sep="; ")


def _write(path: Path, outputs: chex.ArrayTree, classes: dict[str, Any] | None) -> None:
    """Writes outputs to .npy or .npz; classes with probabilities, or else output columns, to .csv or .json.

    Raises:
      ConfigError: the kind of file cannot hold these outputs.
      RunError: the file cannot be written.
    """
    by_path = parameter_paths.leaves_by_path(outputs)
    with whole_file(path) as temporary:
        if path.suffix == ".npy":
            if list(by_path) != [""]:
                raise ConfigError(f"--out: there are several outputs ({', '.join(by_path)}); write a .npz")
            np.save(temporary, by_path[""], allow_pickle=False)
        elif path.suffix == ".npz":
            np.savez(temporary, **{name.replace("/", ".") or "outputs": value for name, value in by_path.items()})
        elif path.suffix == ".json":
            # A single output needs no name: a plain list instead of an object.
            plain = {name: np.asarray(value).tolist() for name, value in (classes or by_path).items()}
            temporary.write_text(json_line(plain[""] if list(plain) == [""] else plain))
        else:
            write_csv(temporary, classes or output_columns(outputs))
