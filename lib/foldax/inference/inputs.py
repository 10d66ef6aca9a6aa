"""Inputs of a learner's `predict`: their shapes and dtypes in the run's dataset, and how files are read into them."""

import contextlib
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np

from foldax.data.conversion import as_array
from foldax.data.images import read_image
from foldax.engine.result import Result
from foldax.errors import DataError, RunError, did_you_mean, first_line
from foldax.learner import InputSpec

Shape = tuple[Any, ...]
InputSpecs = dict[str, InputSpec]
"""The arrays that `predict` takes: "inputs" and, say, the "mask" of sequences, "targets" of a conditional model."""
Arrays = dict[str, np.ndarray]
ENCODING = "utf-8-sig"  # UTF-8, with or without the byte order mark that spreadsheets write
IMAGES = (".png", ".jpg", ".jpeg")
MAX_BATCH = 256  # examples per call of a learner's function


def input_specs(result: Result) -> InputSpecs:
    """Returns the arrays that `predict` takes: as the learner states them, or else as the run's dataset has them.

    Raises:
      RunError: the learner states none, and there is no dataset, or it lacks a field.
    """
    shapes = getattr(result.info, "shapes", {})
    stated = result.learner.predict_inputs
    if stated is None:
        stated = dict.fromkeys(name for name in ("inputs", "mask") if name == "inputs" or name in shapes)
    specs = {}
    for name, spec in stated.items():
        if spec is None and name not in shapes:
            problem = f'the experiment has no dataset with "{name}", so the shape that `predict` takes is not known'
            raise RunError(f"{problem}; let the learner state it (`Learner.predict_inputs`)")
        size = getattr(result.info, "num_classes" if name == "targets" else "vocabulary_size", None)
        specs[name] = spec or InputSpec(
            shapes[name], result.info.dtypes[name], f"as the dataset's {name}", None if name == "mask" else size
        )
    return specs


def predict_argument(arrays: dict[str, Any]) -> Any:
    """Returns the argument of `predict`: the inputs alone, or {"inputs", "mask"}.

    >>> predict_argument({"inputs": [1, 2]}), predict_argument({"inputs": [1, 2], "mask": [1, 0]})
    ([1, 2], {'inputs': [1, 2], 'mask': [1, 0]})
    """
    return arrays["inputs"] if list(arrays) == ["inputs"] else arrays


def map_in_batches(function: Callable[[Arrays, int], chex.ArrayTree], arrays: Arrays) -> Any:
    """Applies a function to all examples, batch by batch.

    Args:
      function: `(arrays of a batch by name, number of the batch) -> outputs [B, ...]`.
      arrays: arrays `[N, ...]` by name.

    Returns:
      Outputs `[N, ...]` as NumPy arrays.

    >>> map_in_batches(lambda batch, number: 2 * batch["inputs"], {"inputs": np.array([1, 2])})
    array([2, 4])
    """
    count = len(next(iter(arrays.values())))
    size, outputs = min(count, MAX_BATCH), []
    for number, start in enumerate(range(0, count, size)):
        # The last batch repeats its last example, so that one compiled program serves all batches.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        output = jax.device_get(function({name: array[rows] for name, array in arrays.items()}, number))
        outputs.append(jax.tree.map(lambda x, rest=count - start: x[:rest], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def example_inputs(result: Result, count: int, specs: InputSpecs) -> Any:
    """Returns inputs for trying a program: those of an evaluation split, or zeros (ones in masks).

    Args:
      result: the run.
      count: number of examples; those of a split are repeated if there are fewer.
      specs: shapes and dtypes; where they are not those of the dataset, the inputs are zeros.

    Returns:
      The argument of `predict`, `[count, ...]`.
    """
    split = next((name for name in ("test", "validation") if name in splits_with_inputs(result)), None)
    if split is not None and specs == input_specs(result):
        examples = result.examples(split)
        return predict_argument({name: np.resize(examples[name], (count, *specs[name].shape)) for name in specs})
    constants = {}
    for name, spec in specs.items():
        sizes = (size if isinstance(size, int) else 8 for size in spec.shape)
        constants[name] = np.full((count, *sizes), name in ("mask", "legal_actions"), spec.dtype)
    return predict_argument(constants)


def splits_with_inputs(result: Result) -> Sequence[str]:
    """Names the evaluation splits that hold inputs of `predict`: none where the learner states inputs of its own."""
    stated = result.learner.predict_inputs or {}
    return () if result.dataset is None or any(stated.values()) else tuple(result.dataset.splits)


def read_inputs(result: Result, source: str) -> tuple[Arrays, Arrays]:
    """Reads inputs from a file or an evaluation split.

    Args:
      result: the run, whose learner or dataset gives shape and dtype of the inputs.
      source: "test" or "validation", or a .npy, .npz, .csv, .json, .png, .jpg or .jpeg file.

    Returns:
      `(arrays that `predict` takes by name [B, ...], targets by name)`; a file has no targets.

    Raises:
      DataError: there is no such split or file, or its content does not fit the run's inputs.
    """
    # A split of the dataset
    specs, splits = input_specs(result), splits_with_inputs(result)
    if source in splits:
        examples = result.examples(source)
        return {name: examples[name] for name in specs}, {k: v for k, v in examples.items() if k == "targets"}
    # A file
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        names = ", ".join(splits) or "none"
        unknown = f"{source!r} is neither a split nor a file of a known kind"
        reason = f"there is no file {source!r}" if reader else unknown
        raise DataError(f"{reason} (splits: {names}; files: {', '.join(READERS)})")
    try:
        content = reader(path, specs["inputs"].shape, getattr(result.info, "feature_names", None))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    arrays: Arrays = {}
    for name, spec in specs.items():
        if name == "mask" and "mask" not in content:
            # Without a mask in the file, no step is masked.
            content["mask"] = np.ones((len(arrays["inputs"]), *arrays["inputs"].shape[1:][: len(spec.shape)]), np.int32)
        if name not in content:
            raise DataError(f'{path} has no "{name}", which `predict` takes too; write an .npz or .json file with both')
        arrays[name] = _as_batch(content[name], spec, f"{path}" if name == "inputs" else f"{path}, {name}")
        _check_classes(arrays[name], spec, "token" if len(spec.shape) else "class", path)
    _check_range(result, arrays["inputs"], path)
    return arrays, {}


def _check_classes(array: np.ndarray, spec: InputSpec, kind: str, path: Path) -> None:
    """Raises a DataError for classes, or tokens, that do not exist."""
    size = spec.num_classes
    if size is not None and (array.min() < 0 or array.max() >= size):
        bad = array[(array < 0) | (array >= size)][0]
        raise DataError(f"{path}: there is no {kind} {bad}; there are 0 to {size - 1}")


def _check_range(result: Result, inputs: np.ndarray, path: Path) -> None:
    """Raises a DataError for an image that is not scaled as in training."""
    if path.suffix.lower() in IMAGES and result.dataset is not None:
        largest, known = float(inputs.max()), float(np.max(result.dataset.train.examples()["inputs"]))
        if largest > 2 * known:
            problem = f"the image has values up to {largest:g}, but the training data up to {known:g}"
            raise DataError(f"{path}: {problem}; scale it as they were, and save it as a .npy file")


def _as_batch(array: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """Checks an array and converts it to a batch `[B, ...]` of the dtype.

    Raises:
      DataError: its shape or values do not fit.
    """
    shape, dtype = spec.shape, spec.dtype
    if len(shape) == 1 and np.issubdtype(dtype, np.integer):
        shape = ("T",)  # sequences of tokens have any length

    def fits(sizes: Shape) -> bool:
        return len(sizes) == len(shape) and all(isinstance(b, str) or a == b for a, b in zip(sizes, shape))

    # One example becomes a batch of one.
    array = array[None] if fits(array.shape) else array
    if not fits(array.shape[1:]) or not array.ndim or not len(array):
        expected = f"{list_text(('B', *shape))} or {list_text(shape)}"
        raise DataError(f"{where}: expected {expected}, got {list_text(array.shape)}")
    return as_array(array, where, dtype, unit="row")


def list_text(shape: Sequence[Any]) -> str:
    """Formats a shape, whose sizes may have names.

    >>> list_text(("B", 28, 28))
    '[B, 28, 28]'
    """
    return "[" + ", ".join(map(str, shape)) + "]"


def _read_npy(path: Path, shape: Shape, names: Any) -> Arrays:
    return {"inputs": np.load(path, allow_pickle=False)}


def _read_npz(path: Path, shape: Shape, names: Any) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "inputs" not in arrays and len(arrays) != 1:
        raise DataError(f'{path}: expected an array "inputs", or one alone; got {", ".join(arrays) or "none"}')
    return arrays if "inputs" in arrays else {"inputs": next(iter(arrays.values()))}


def _read_json(path: Path, shape: Shape, names: Any) -> Arrays:
    content = json.loads(path.read_text(ENCODING))
    content = content if isinstance(content, dict) else {"inputs": content}
    if "inputs" not in content:
        raise DataError(f'{path}: expected a list, or an object with "inputs"; got the keys {", ".join(content)}')
    return {name: np.array(content[name]) for name in ("inputs", "mask", "targets") if name in content}


def _read_csv(path: Path, shape: Shape, names: Any) -> Arrays:
    """Reads one example per row; a header selects the columns by the names of the features, if these have names."""
    with path.open(newline="", encoding=ENCODING) as file:
        lines = csv.reader(file)
        rows = [(lines.line_num, row) for row in lines if row]
    # Without a header all columns count, in the order of the flattened shape.
    columns = list(range(int(np.prod(shape))))
    width, header = len(columns), [name.strip() for name in rows[0][1]] if rows else []
    is_named = names is not None and set(names) <= set(header)
    # A first row with a gap, or with a number among words, is no header: its gap is an error like any other.
    if is_named or (header and all(header) and not any(map(_is_number, header))):
        rows, width = rows[1:], len(header)
        for name in names or ():
            if header.count(name) != 1:
                hint = did_you_mean(name, header)
                problem = f"are several columns {name!r}" if name in header else f"is no column {name!r}{hint}"
                raise DataError(f"{path}: there {problem}")
        if names is not None:
            columns = [header.index(name) for name in names]
        elif width != len(columns):
            raise DataError(f"{path}: expected {len(columns)} columns, got {width}")
    for line, row in rows:
        if len(row) != width:
            raise DataError(f"{path}, line {line}: expected {width} columns, got {len(row)}")
        bad = next((row[column] for column in columns if not _is_number(row[column])), None)
        if bad is not None:
            raise DataError(f"{path}, line {line}: {bad!r} is not a number")
    values = np.array([[float(row[column]) for column in columns] for _, row in rows])
    return {"inputs": values.reshape(len(rows), *shape)}


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return "_" not in text  # Python's own spelling of large numbers
    return False


def _read_image(path: Path, shape: Shape, names: Any) -> Arrays:
    """Reads one image, with as many channels as the run's images have."""
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(f"{path}: expected {list_text(shape)}, which is no image")
    pixels = read_image(path, channels)
    if pixels.shape[:2] != shape[:2]:
        sizes = [f"{width} x {height}" for height, width in (shape[:2], pixels.shape[:2])]
        raise DataError(f"{path}: expected an image of {sizes[0]} pixels (width x height), got {sizes[1]}")
    return {"inputs": pixels.reshape(1, *shape)}


READERS: dict[str, Callable[[Path, Shape, Any], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".json": _read_json,
    **dict.fromkeys(IMAGES, _read_image),
}
