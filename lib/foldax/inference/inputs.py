"""Inputs of a learner's `predict`: what a dataset says of them, and how they are read from files."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foldax.engine.result import Result
from foldax.errors import DataError, RunError, nearest

Shape = tuple[Any, ...]
Expected = dict[str, tuple[Shape, np.dtype]]
"""Shape of one example and dtype of "inputs" and, where sequences are masked, of "mask"."""
Arrays = dict[str, np.ndarray]


def expected(result: Result) -> Expected:
    """Returns what the run's dataset says of inputs.

    Raises:
      RunError: there is no dataset, or it has no "inputs".
    """
    shapes = getattr(result.info, "shapes", {})
    if "inputs" not in shapes:
        raise RunError('the experiment has no dataset with "inputs", so what `predict` takes is not known')
    return {name: (shapes[name], result.info.dtypes[name]) for name in ("inputs", "mask") if name in shapes}


def as_given(arrays: dict[str, Any]) -> Any:
    """Returns what `predict` is given: the inputs alone, or {"inputs", "mask"}."""
    return arrays["inputs"] if list(arrays) == ["inputs"] else arrays


def samples(result: Result, count: int, wanted: Expected) -> Any:
    """Returns inputs `[count, ...]`: of an evaluation split, else zeros (ones in a mask)."""
    split = next((one for one in ("test", "validation") if one in result.dataset.splits), None)
    if split is not None and wanted == expected(result):
        examples = result.examples(split)
        return as_given({name: np.resize(examples[name], (count, *shape)) for name, (shape, _) in wanted.items()})
    sizes = {name: [s if isinstance(s, int) else 8 for s in shape] for name, (shape, _) in wanted.items()}
    return as_given(
        {name: np.full((count, *sizes[name]), name == "mask", dtype) for name, (_, dtype) in wanted.items()}
    )


def read(result: Result, source: str) -> tuple[Arrays, Arrays]:
    """Reads inputs from a file, or takes those of an evaluation split.

    Args:
      result: of the run, whose dataset says what inputs are like.
      source: "test" or "validation", or a .npy, .npz, .csv, .json, .png, .jpg or .jpeg file.

    Returns:
      `(inputs and mask by name [B, ...], targets by name)`; targets only of a split.

    Raises:
      DataError: there is no such split or file, or it holds something else than the run's inputs.
    """
    wanted = expected(result)
    if source in result.dataset.splits:
        examples = result.examples(source)
        return {name: examples[name] for name in wanted}, {k: v for k, v in examples.items() if k == "targets"}
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        splits = ", ".join(result.dataset.splits) or "none"
        why = f"there is no file {source!r}" if reader else f"{source!r} is neither a split nor a file of a known kind"
        raise DataError(f"{why} (splits: {splits}; files: {', '.join(READERS)})")
    shape, dtype = wanted["inputs"]
    names = getattr(result.info, "feature_names", None)
    try:
        found = reader(path, shape, names)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    arrays = {"inputs": _fitted(found["inputs"], shape, dtype, f"{path}")}
    if "mask" in wanted:
        ones = np.ones((len(arrays["inputs"]), *arrays["inputs"].shape[1:][: len(wanted["mask"][0])]), np.int32)
        arrays["mask"] = _fitted(found.get("mask", ones), wanted["mask"][0], wanted["mask"][1], f"{path}, mask")
    return arrays, {}


def _fitted(array: np.ndarray, shape: Shape, dtype: np.dtype, where: str) -> np.ndarray:
    """Returns the array as a batch of the dtype.

    Raises:
      DataError: its shape or values do not fit; says what is expected and what was found.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected numbers, got {array.dtype}")
    series = len(shape) >= 1 and np.issubdtype(dtype, np.integer) and len(shape) == 1  # tokens: any length may do
    if array.shape == shape or (series and array.ndim == 1):
        array = array[None]
    if array.ndim != len(shape) + 1 or (array.shape[1:] != shape and not series) or not len(array):
        raise DataError(f"{where}: expected {_text(('B', *shape))} or {_text(shape)}, got {_text(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        raise DataError(f"{where}: there are values that are not finite, first in row {bad}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        outside = (array < limits.min) | (array > limits.max) | (array != np.floor(array))
        if outside.any():
            value = array[outside][0]
            raise DataError(f"{where}: expected {dtype} ({limits.min} to {limits.max}), got {value}")
    return array.astype(dtype)


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _npy(path: Path, shape: Shape, names: Any) -> Arrays:
    return {"inputs": np.load(path, allow_pickle=False)}


def _npz(path: Path, shape: Shape, names: Any) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "inputs" not in arrays and len(arrays) != 1:
        raise DataError(f'{path}: expected an array "inputs", or one alone; got {", ".join(arrays) or "none"}')
    return arrays if "inputs" in arrays else {"inputs": next(iter(arrays.values()))}


def _json(path: Path, shape: Shape, names: Any) -> Arrays:
    found = json.loads(path.read_text())
    found = found if isinstance(found, dict) else {"inputs": found}
    if "inputs" not in found:
        raise DataError(f'{path}: expected a list, or an object with "inputs"; got the keys {", ".join(found)}')
    return {name: np.array(found[name]) for name in ("inputs", "mask") if name in found}


def _csv(path: Path, shape: Shape, names: Any) -> Arrays:
    """Reads a row per example; a first row of names chooses the columns, if the features have names."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    columns, first = list(range(int(np.prod(shape)))), 1
    if rows and not all(map(_is_number, rows[0])):
        header, first = [name.strip() for name in rows.pop(0)], 2
        if names is not None:
            for name in names:
                if name not in header:
                    raise DataError(f"{path}: there is no column {name!r}{nearest(name, header)}")
            columns = [header.index(name) for name in names]
        elif len(header) != len(columns):
            raise DataError(f"{path}: expected {len(columns)} columns, got {len(header)}")
    for number, row in enumerate(rows, first):
        if len(row) <= max(columns) or (first == 1 and len(row) != len(columns)):
            raise DataError(f"{path}, line {number}: expected {len(columns)} numbers, got {len(row)}")
        bad = next((row[column] for column in columns if not _is_number(row[column])), None)
        if bad is not None:
            raise DataError(f"{path}, line {number}: {bad!r} is not a number")
    values = np.array([[float(row[column]) for column in columns] for row in rows])
    return {"inputs": values.reshape(len(rows), *shape)}


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


def _image(path: Path, shape: Shape, names: Any) -> Arrays:
    """Reads one image in as many channels as the run's images have."""
    from PIL import Image

    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(f"{path}: expected {_text(shape)}, which is no image")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    if pixels.shape[:2] != shape[:2]:
        sizes = [f"{width} x {height}" for height, width in (shape[:2], pixels.shape[:2])]
        raise DataError(f"{path}: expected an image of {sizes[0]} pixels (width x height), got {sizes[1]}")
    return {"inputs": pixels.reshape(1, *shape)}


READERS: dict[str, Callable[[Path, Shape, Any], Arrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".json": _json,
    ".png": _image,
    ".jpg": _image,
    ".jpeg": _image,
}
