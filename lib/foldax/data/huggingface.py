"""Datasets of Hugging Face: columns become inputs and targets, read from their memory-mapped Arrow files."""

import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from foldax.data import cache
from foldax.data.arrays import check_set_names, check_split_names
from foldax.data.conversion import as_array, jax_dtype
from foldax.data.dataset import Dataset, DatasetOptions, make_dataset
from foldax.data.prepared import prepare_arrays
from foldax.errors import DataError, did_you_mean, first_line

Columns = str | Sequence[str]


class HuggingFaceExamples:
    """Rows of a Hugging Face dataset as arrays; can be pickled for worker processes, which map the same files."""

    def __init__(self, dataset: Any, columns: Mapping[str, Columns], name: str) -> None:
        names = [column for value in columns.values() for column in ([value] if isinstance(value, str) else value)]
        self._rows = dataset.select_columns(names).with_format("numpy")
        self.columns, self._name = columns, name
        first = self._convert(self._rows[:1])
        self.spec = {key: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for key, array in first.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the rows at `indices` `[B]`."""
        arrays = self._convert(self._rows[indices.tolist()])
        for key, leaf in self.spec.items():
            if arrays[key].shape[1:] != leaf.shape or arrays[key].dtype != leaf.dtype:
                own, first = (f"{a.dtype}{list(a.shape)}" for a in (arrays[key][0], leaf))
                problem = f"rows of column {self.columns[key]!r} differ: {own} and {first}"
                raise DataError(f"{self._name}: {problem}; make them equal with dataset.map")
        return arrays

    def _convert(self, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = {}
        for key, columns in self.columns.items():
            if isinstance(columns, str):
                array = self._as_array(rows[columns], columns)
            else:
                array = np.stack([self._as_array(rows[column], column) for column in columns], axis=-1)
            # Grey images have no axis of channels.
            is_image = isinstance(columns, str) and type(self._rows.features[columns]).__name__ == "Image"
            array = array[..., None] if is_image and array.ndim == 3 else array
            is_number = key == "targets" and array.ndim == 1 and array.dtype.kind in "iu"
            arrays[key] = array.astype(np.int32 if is_number else jax_dtype(array.dtype), copy=False)
        return arrays

    def _as_array(self, values: Any, column: str) -> np.ndarray:
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            sizes = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            remedy = "make them equal with dataset.map, for example by padding or resizing"
            raise DataError(f"{self._name}: rows of column {column!r} differ in shape, {sizes}; {remedy}")
        array = np.stack(list(values)) if len(values) else np.asarray(values)
        if array.dtype.kind not in "biuf":
            kind = type(self._rows.features[column]).__name__
            remedy = "dataset.class_encode_column numbers classes; tokenize other texts with dataset.map"
            raise DataError(f"{self._name}: column {column!r} ({kind}) has no numbers but {array.dtype}; {remedy}")
        return as_array(array, f"{self._name}: column {column!r}")


def from_huggingface(
    dataset: Any, *, inputs: Columns, targets: str | None, name: str | None = None, **options: Any
) -> Dataset:
    """Makes a dataset of a Hugging Face `datasets.Dataset` or `DatasetDict`.

    Rows are decoded once, into `$FOLDAX_CACHE`. Where they are above 1 GiB when decoded (`source`), they are read from
    the Arrow files during the training (`workers`), and the first use reads all of them once, for the fingerprint, and
    those of the training split again, for mean and standard deviation.

    Classes and their names are those of a `ClassLabel` column; evaluation sets whose column numbers the same names in
    another order are given the numbers of "train".

    Args:
      dataset: the rows, or rows by split: "train", and "validation" or "test" or both. A missing split is sampled from
        "train".
      inputs: the column of inputs `[N, ...]`, or several columns of numbers that become those of "inputs" `[N, C]`.
      targets: the column of targets; None for unsupervised learning.
      name: name of the dataset; by default that of `dataset.info`.
      **options: options of `load`, as for `from_arrays`; "evaluation" has Hugging Face datasets by name.

    Raises:
      DataError: a column does not exist, has no numbers or rows of several shapes; a label is -1, as in splits whose
        labels are secret; an evaluation set has a class that "train" has not; or as for `from_splits`.

    >>> import datasets  # doctest: +SKIP
    >>> rows = datasets.load_dataset("imagefolder", data_dir="pets")  # doctest: +SKIP
    >>> dataset = from_huggingface(rows, inputs="image", targets="label", batch_size=64)  # doctest: +SKIP
    """
    chosen = DatasetOptions.make(options)
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    evaluation = dict(chosen.evaluation or {})
    sets = {split: rows for split, rows in evaluation.items() if hasattr(rows, "with_format")}
    for split, rows in (splits | sets).items():
        if not hasattr(rows, "with_format") or not hasattr(rows, "__getitem__"):
            remedy = "read an IterableDataset with data.from_iterable"
            raise DataError(f"split {split!r}: expected a datasets.Dataset, not {type(rows).__name__}; {remedy}")
    name = name or str(getattr(splits.get("train", dataset).info, "dataset_name", None) or "huggingface")
    check_split_names(splits, name)
    check_set_names(evaluation, name)
    columns: dict[str, Columns] = {"inputs": inputs if isinstance(inputs, str) else tuple(inputs)}
    if targets is not None:
        columns["targets"] = targets
    for split, rows in (splits | sets).items():
        _check_columns(rows, columns, f"{name}, split {split!r}")
    # 1. One table of all splits; the order of those in `RawDataset.sizes` is that of the rows.
    splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    rows = next(iter(splits.values())) if len(splits) == 1 else _concatenate(list(splits.values()), name)
    examples = HuggingFaceExamples(rows, columns, name)
    facts = {"sizes": {split: len(part) for split, part in splits.items()}, "names": _names(rows, examples, name)}
    class_names = facts["names"]["class_names"]
    read = {split: _read_set(part, columns, f"{name}, split {split!r}", class_names) for split, part in sets.items()}
    chosen = chosen._replace(evaluation=evaluation | read)
    # 2. The cache: datasets knows each content by a fingerprint.
    key = repr([[part._fingerprint for part in splits.values()], facts["sizes"], sorted(columns.items())])
    folder = f"{urllib.parse.quote(name, safe='')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    place = cache.cache_folder() / "arrays" / "huggingface" / folder
    return make_dataset(prepare_arrays(name, place, examples, chosen.source, facts), chosen)


def _check_columns(rows: Any, columns: Mapping[str, Columns], place: str) -> None:
    """Raises a DataError for columns that do not exist, and for a split without rows."""
    for value in columns.values():
        for column in [value] if isinstance(value, str) else value:
            if column not in rows.column_names:
                known, hint = ", ".join(rows.column_names), did_you_mean(column, rows.column_names)
                raise DataError(f"{place}: there is no column {column!r}{hint} (columns: {known})")
    if not len(rows):
        raise DataError(f"{place} has no rows")


def _concatenate(parts: list[Any], name: str) -> Any:
    import datasets

    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:  # other features
        raise DataError(f"{name}: the splits have different features: {first_line(error)}") from error


def _names(rows: Any, examples: HuggingFaceExamples, name: str) -> dict[str, Any]:
    """Facts of `Info` about classes and columns."""
    inputs, targets = examples.columns["inputs"], examples.columns.get("targets")
    names: dict[str, Any] = {"num_classes": None, "class_names": None}
    names["feature_names"] = None if isinstance(inputs, str) else list(inputs)
    leaf = examples.spec.get("targets")
    if isinstance(targets, str) and leaf is not None and not leaf.shape and leaf.dtype.kind in "iu":
        # Through the format: the table below may have rows that were filtered out, or another order.
        labels = np.asarray(rows.select_columns([targets]).with_format("numpy")[:][targets])
        if labels.min() < 0:
            remedy = "leave out the split, or the rows (dataset.filter), whose labels are not published"
            raise DataError(f"{name}: column {targets!r} has the label {labels.min()}; {remedy}")
        class_names = getattr(rows.features[targets], "names", None)
        names["num_classes"] = len(class_names) if class_names else int(labels.max()) + 1
        names["class_names"] = list(class_names) if class_names else None
    return names


def _read_set(
    rows: Any, columns: Mapping[str, Columns], place: str, class_names: list[str] | None
) -> dict[str, np.ndarray]:
    """Reads an evaluation set, and numbers its classes as `class_names` does."""
    arrays = HuggingFaceExamples(rows, columns, place).read(np.arange(len(rows)))
    own = getattr(rows.features[columns["targets"]], "names", None) if "targets" in columns else None
    if class_names is None or own is None or own == class_names[: len(own)]:
        return arrays
    if unknown := [label for label in own if label not in class_names]:
        known = f"'train' has {', '.join(class_names)}"
        remedy = "rename or drop it (dataset.cast_column, dataset.filter)"
        raise DataError(f"{place}: column {columns['targets']!r} has the class {unknown[0]!r}, but {known}; {remedy}")
    numbers = np.array([class_names.index(label) for label in own], np.int32)
    labels = arrays["targets"]
    # A secret label, -1, stays one, and is refused with the others out of range.
    return arrays | {"targets": np.where(labels < 0, labels, numbers[labels])}
