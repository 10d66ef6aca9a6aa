"""Datasets of the user's own arrays: checked, in one dtype by key, the splits one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from foldax.data.info import ArrayExamples
from foldax.data.prepared import Raw, canonical
from foldax.errors import DataError, nearest

SPLITS = ("train", "validation", "test")
Arrays = dict[str, np.ndarray]


class Names(NamedTuple):
    """What a user says of the arrays, by the names of `Info`."""

    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    vocabulary_size: int | None = None


def read_arrays(splits: Mapping[str, Mapping[str, Any]], name: str, names: Names) -> Raw:
    """Returns the arrays of one or more splits as a dataset that has these splits of its own."""
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or "train" not in splits:
        what = (
            f"there is no split {unknown[0]!r}{nearest(str(unknown[0]), SPLITS)}" if unknown else "'train' is missing"
        )
        raise DataError(f"{name}: {what}; the splits are {SPLITS}, of which 'train' is needed")
    parts = {split: _checked(splits[split], name, _place(splits, split)) for split in SPLITS if split in splits}
    _check_agreement(parts, name)
    train = parts["train"]
    labels = None
    if _classes(train):
        names = names._replace(num_classes=_number_of_classes(parts, name, names.num_classes, names.class_names))
        labels = np.concatenate([arrays["targets"] for arrays in parts.values()])
    elif names.num_classes is not None or names.class_names is not None:
        raise DataError("num_classes and class_names need integer targets of shape [N]")
    columns = train["inputs"].shape[1:][-1:] if "inputs" in train else ()
    if names.feature_names is not None and (len(names.feature_names),) != columns:
        counts = f"{len(names.feature_names)} feature_names, but 'inputs' has {columns} columns"
        raise DataError(f"{name}: there are {counts}")
    if names.vocabulary_size is not None:
        _check_tokens(parts, name, names.vocabulary_size)
    # One split alone is not copied: it may be mapped from a file.
    joined = {key: np.concatenate([part[key] for part in parts.values()]) for key in train} if len(parts) > 1 else train
    digests = {key: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for key, array in joined.items()}
    sizes = {split: _length(arrays) for split, arrays in parts.items()}
    return Raw(name, ArrayExamples(joined), labels, sizes, digests, names._asdict())


def _place(splits: Mapping[str, Any], split: str) -> str:
    """Returns how a message names a split: not at all, where there is only one."""
    return f" of split {split!r}" if len(splits) > 1 else ""


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _classes(arrays: Arrays) -> bool:
    return "targets" in arrays and arrays["targets"].ndim == 1 and arrays["targets"].dtype.kind == "i"


def _checked(arrays: Mapping[str, Any], name: str, place: str) -> Arrays:
    """Returns the arrays of one split, in JAX's dtypes."""
    checked = {key: _checked_array(key, value, place) for key, value in arrays.items()}
    lengths = {key: len(array) for key, array in checked.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{key!r} has {length}" for key, length in lengths.items()) or "there is none"
        raise DataError(f"{name}: all arrays{place} must have the same number of examples, but {counts}")
    return checked


def _checked_array(key: str, value: Any, place: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{key!r}{place} must be an array of numbers [N, ...], not {array.dtype} of shape {array.shape}"
        )
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu" and array.size:
        least, most, range_ = array.min(), array.max(), np.iinfo(canonical(array.dtype))
        if least < range_.min or most > range_.max:
            raise DataError(f"{key!r}{place} has integers from {least} to {most}, which 32 bits do not hold")
    dtype = canonical(array.dtype)
    if key == "targets" and array.ndim == 1:  # classes, or the numbers of a regression
        dtype = np.dtype(np.int32 if array.dtype.kind in "iu" else np.float32)
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, which is told
        array = array.astype(dtype, copy=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        raise DataError(
            f"{key!r}{place} has values that are not finite, first in example {bad}; leave it out or fill it in"
        )
    return array


def _check_agreement(parts: dict[str, Arrays], name: str) -> None:
    """Raises a DataError unless all splits have the keys, dtypes and example shapes of "train"."""
    train = parts["train"]
    for split, arrays in parts.items():
        if arrays.keys() != train.keys():
            raise DataError(
                f"{name}: split {split!r} has the keys {sorted(arrays)}, but 'train' has {sorted(train)}; "
                "all splits must have the same"
            )
        for key, array in arrays.items():
            if (array.dtype, array.shape[1:]) != (train[key].dtype, train[key].shape[1:]):
                raise DataError(
                    f"{name}: examples of {key!r} are {array.dtype}{list(array.shape[1:])} in split {split!r}, but "
                    f"{train[key].dtype}{list(train[key].shape[1:])} in 'train'; all splits must have the same"
                )


def _number_of_classes(
    parts: dict[str, Arrays], name: str, num_classes: int | None, class_names: tuple[str, ...] | None
) -> int:
    """Returns how many classes there are: what was said, or one more than the largest label of any split."""
    ranges = {
        split: (int(arrays["targets"].min()), int(arrays["targets"].max()))
        for split, arrays in parts.items()
        if _length(arrays)
    }
    largest = max((most for _, most in ranges.values()), default=-1)
    count = num_classes if num_classes is not None else len(class_names) if class_names is not None else largest + 1
    if class_names is not None and len(class_names) != count:
        raise DataError(f"num_classes={count}, but there are {len(class_names)} class_names")
    for split, (least, most) in ranges.items():
        if least < 0 or most >= count:
            raise DataError(
                f"{name}: 'targets'{_place(parts, split)} must be classes 0 to {count - 1}, "
                f"but they go from {least} to {most}"
            )
    return count


def _check_tokens(parts: dict[str, Arrays], name: str, vocabulary_size: int) -> None:
    """Raises a DataError unless the inputs of all splits are tokens of the vocabulary."""
    for split, arrays in parts.items():
        inputs = arrays.get("inputs")
        if inputs is None or inputs.dtype.kind not in "iu":
            what = "there are none" if inputs is None else f"not {inputs.dtype}"
            raise DataError(f"{name}: vocabulary_size needs 'inputs' of integers, {what}")
        bad = np.argwhere((inputs < 0) | (inputs >= vocabulary_size))
        if len(bad):
            raise DataError(
                f"{name}: 'inputs'{_place(parts, split)} have the unknown token {inputs[tuple(bad[0])]}, first in "
                f"example {bad[0][0]}; with vocabulary_size={vocabulary_size} they must be 0 to {vocabulary_size - 1}"
            )
