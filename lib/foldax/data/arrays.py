"""Validation of a user's arrays: one dtype per key, the splits concatenated."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from foldax.data.conversion import as_array, as_names, check_resolution
from foldax.data.info import ArrayExamples, Spec, array_digests
from foldax.data.prepared import RawDataset
from foldax.errors import DataError, did_you_mean

SPLITS = ("train", "validation", "test")
Arrays = dict[str, np.ndarray]
MAX_GUESSED_CLASSES = 100  # of more, that integer targets are classes is believed only with several examples of each


class ArrayMetadata(NamedTuple):
    """Metadata that a user gives for arrays; fields as in `Info`."""

    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    vocabulary_size: int | None = None

    @staticmethod
    def check(num_classes: Any, class_names: Any, feature_names: Any, vocabulary_size: Any) -> "ArrayMetadata":
        """Converts numbers and names to `int` and `str`; raises a DataError if that cannot be."""
        counts = {"num_classes": num_classes, "vocabulary_size": vocabulary_size}
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                raise DataError(f"{name}: expected an integer of at least 1, got {value!r}")
        num_classes, vocabulary_size = (value if value is None else int(value) for value in counts.values())
        names = as_names(class_names, "class_names"), as_names(feature_names, "feature_names")
        return ArrayMetadata(num_classes, *names, vocabulary_size)


def read_arrays(splits: Mapping[str, Mapping[str, Any]], name: str, names: ArrayMetadata) -> RawDataset:
    """Validates the arrays of one or more splits and concatenates them.

    Raises:
      DataError: see `from_arrays` and `from_splits`.
    """
    check_split_names(splits, name)
    for arrays in splits.values():
        if not isinstance(arrays, Mapping):
            expected = 'a dict of arrays by name, {"inputs": ..., "targets": ...}'
            raise DataError(f"{name}: expected {expected}, got {type(arrays).__name__}")
    parts = {split: _validated_split(splits, split, name) for split in SPLITS if split in splits}
    # From here on, the training split stands for all of them.
    _check_agreement({split: ArrayExamples(arrays).spec for split, arrays in parts.items()}, name)
    train = parts["train"]
    labels, targets = None, train.get("targets")
    for key, value in splits["train"].items():
        # Learners compute in float32. Tokens are looked up, not computed with.
        if train[key].dtype.kind == "f" or (key == "inputs" and names.vocabulary_size is None):
            check_resolution(np.asarray(value), repr(key))
    # Integer targets [N] are classes; everything else is left as it is.
    if targets is not None and targets.ndim == 1 and targets.dtype.kind == "i":
        names = names._replace(num_classes=_count_classes(parts, name, names.num_classes, names.class_names))
        labels = np.concatenate([arrays["targets"] for arrays in parts.values()])
    elif names.num_classes is not None or names.class_names is not None:
        raise DataError("num_classes and class_names need integer targets of shape [N]")
    columns = train["inputs"].shape[1:][-1:] if "inputs" in train else ()
    if names.feature_names is not None and (len(names.feature_names),) != columns:
        counts = f"{len(names.feature_names)} feature_names, but 'inputs' has {columns} columns"
        raise DataError(f"{name}: there are {counts}")
    if names.vocabulary_size is not None:
        _check_tokens(parts, name, names.vocabulary_size)
    # A single split is not copied: it may be memory-mapped from a file.
    joined = {key: np.concatenate([part[key] for part in parts.values()]) for key in train} if len(parts) > 1 else train
    # Part of the fingerprint, by which a resumed run recognises its data.
    digests = array_digests(joined)
    sizes = {split: len(next(iter(arrays.values()))) for split, arrays in parts.items()}
    return RawDataset(name, ArrayExamples(joined), labels, sizes, digests, names._asdict())


def read_evaluation(
    evaluation: Mapping[str, Mapping[str, Any]],
    name: str,
    spec: Spec,
    names: Mapping[str, Any],
    reserved: tuple[str, ...] = SPLITS,
) -> dict[str, ArrayExamples]:
    """Validates the arrays of named evaluation sets.

    Args:
      evaluation: arrays by key, by name of the set.
      name: name of the dataset.
      spec: shape and dtype of one training example by key.
      names: fields of `Info` about classes and tokens.
      reserved: names that no set can have.

    Raises:
      DataError: a name is not allowed, or the arrays are not as those of the training split.
    """
    check_set_names(evaluation, name, reserved)
    checked: dict[str, ArrayExamples] = {}
    for split, arrays in evaluation.items():
        if not isinstance(arrays, Mapping):
            expected = "arrays by key, as those of the training split"
            raise DataError(f"{name}: evaluation set {split!r} is {type(arrays).__name__}, expected {expected}")
        parts = {"train": arrays, split: arrays}  # two, so that messages name the set
        examples = ArrayExamples(_validated_split(parts, split, name))
        if not len(examples):
            raise DataError(f"{name}: evaluation set {split!r} has no examples")
        _check_agreement({"train": spec, split: examples.spec}, name)
        if names.get("num_classes") is not None:
            targets = examples.arrays["targets"]
            place = f"{name}: 'targets'{_split_suffix(parts, split)}"
            _check_range(int(targets.min()), int(targets.max()), names["num_classes"], place)
        if names.get("vocabulary_size") is not None:
            _check_tokens({split: examples.arrays}, f"{name}, {split!r}", names["vocabulary_size"])
        checked[split] = examples
    return checked


def check_set_names(names: Iterable[Any], name: str, reserved: tuple[str, ...] = SPLITS) -> None:
    """Raises a DataError for names that an evaluation set cannot have: odd and reserved ones.

    >>> check_set_names(["test"], "toy")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    foldax.errors.DataError: toy: an evaluation set cannot be named 'test'; allowed are letters, digits, ...
    """
    for split in names:
        if not isinstance(split, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", split) or split in reserved:
            rule = f"letters, digits, '_', '-' and '.', and none of {reserved}"
            raise DataError(f"{name}: an evaluation set cannot be named {split!r}; allowed are {rule}")


def check_split_names(splits: Collection[str], name: str) -> None:
    """Raises a DataError for an unknown split, and where "train" is missing.

    >>> check_split_names(["train", "tset"], "toy")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    foldax.errors.DataError: toy: there is no split 'tset'; did you mean 'test'?; the splits are ...
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or "train" not in splits:
        what = "'train' is missing"
        if unknown:
            what = f"there is no split {unknown[0]!r}{did_you_mean(str(unknown[0]), SPLITS)}"
        raise DataError(f"{name}: {what}; the splits are {SPLITS}, of which 'train' is needed")


def _split_suffix(splits: Mapping[str, Any], split: str) -> str:
    """Names a split in a message; empty where there is only one split."""
    return f" of split {split!r}" if len(splits) > 1 else ""


def _validated_split(splits: Mapping[str, Mapping[str, Any]], split: str, name: str) -> Arrays:
    """Converts the arrays of one split to JAX's dtypes."""
    place = _split_suffix(splits, split)
    checked = {key: validated_array(key, value, place) for key, value in splits[split].items()}
    lengths = {key: len(array) for key, array in checked.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{key!r} has {length}" for key, length in lengths.items()) or "there is none"
        raise DataError(f"{name}: all arrays{place} must have the same number of examples, but {counts}")
    return checked


def validated_array(key: str, value: Any, place: str) -> np.ndarray:
    """Converts the array `[N, ...]` of a key to a dtype of JAX; `place` follows the key in messages."""
    name = f"{key!r}{place}"
    array = as_array(value, name)
    if array.ndim == 0 or 0 in array.shape[1:]:
        raise DataError(f"{name} must be an array [N, ...] of numbers, not of shape {list(array.shape)}")
    if key == "targets" and array.ndim == 1:  # class labels, or regression targets
        array = as_array(array, name, np.float32 if array.dtype.kind == "f" else np.int32)
    return array


def _check_agreement(specs: dict[str, Spec], name: str) -> None:
    """Raises a DataError unless all splits have the keys, dtypes and example shapes of "train"."""
    train = specs["train"]
    for split, spec in specs.items():
        if spec.keys() != train.keys():
            keys = f"{sorted(spec)}, but 'train' has {sorted(train)}"
            raise DataError(f"{name}: split {split!r} has the keys {keys}; all splits must have the same")
        for key in spec:
            own, other = (f"{part[key].dtype}{list(part[key].shape)}" for part in (spec, train))
            if own != other:
                problem = f"examples of {key!r} are {own} in split {split!r}, but {other} in 'train'"
                raise DataError(f"{name}: {problem}; all splits must have the same")


def _count_classes(
    parts: dict[str, Arrays], name: str, num_classes: int | None, class_names: tuple[str, ...] | None
) -> int:
    """Returns the given number of classes, or the largest label of any split plus one.

    Raises:
      DataError: labels are out of range, or, where no number is given, look like values or identifiers.
    """
    targets = {split: arrays["targets"] for split, arrays in parts.items() if len(arrays["targets"])}
    ranges = {split: (int(classes.min()), int(classes.max())) for split, classes in targets.items()}
    # Over all splits: a class may be absent from "train".
    largest = max((most for _, most in ranges.values()), default=-1)
    count = num_classes if num_classes is not None else len(class_names) if class_names is not None else largest + 1
    if class_names is not None and len(class_names) != count:
        raise DataError(f"num_classes={count}, but there are {len(class_names)} class_names")
    for split, (least, most) in ranges.items():
        _check_range(least, most, count, f"{name}: 'targets'{_split_suffix(parts, split)}")
    # Prices, years and identifiers are integers, too: as classes, most of them would have one example or none.
    if num_classes is None and class_names is None and count > MAX_GUESSED_CLASSES:
        labels = np.concatenate(list(targets.values()))
        if len(labels) < 2 * count or 2 * len(np.unique(labels)) < count:
            problem = f"are integers up to {largest}, and as classes most would have one example or none"
            remedy = "make them float for regression, number them (np.unique with return_inverse), or give num_classes"
            raise DataError(f"{name}: 'targets' {problem}; {remedy}")
    return count


def _check_range(least: int, most: int, num_classes: int, place: str) -> None:
    if least < 0 or most >= num_classes:
        range_ = f"classes 0 to {num_classes - 1}, but they go from {least} to {most}"
        raise DataError(f"{place} must be {range_}")


def _check_tokens(parts: dict[str, Arrays], name: str, vocabulary_size: int) -> None:
    """Raises a DataError unless the inputs of all splits are tokens of the vocabulary."""
    for split, arrays in parts.items():
        inputs = arrays.get("inputs")
        if inputs is None or inputs.dtype.kind not in "iu":
            what = "there are none" if inputs is None else f"not {inputs.dtype}"
            raise DataError(f"{name}: vocabulary_size needs 'inputs' of integers, {what}")
        # An index outside of an embedding would be clamped in silence.
        bad = np.argwhere((inputs < 0) | (inputs >= vocabulary_size))
        if len(bad):
            allowed = f"vocabulary_size={vocabulary_size} allows 0 to {vocabulary_size - 1}"
            problem = f"have the unknown token {inputs[tuple(bad[0])]}, first in example {bad[0][0]}"
            raise DataError(f"{name}: 'inputs'{_split_suffix(parts, split)} {problem}; {allowed}")
