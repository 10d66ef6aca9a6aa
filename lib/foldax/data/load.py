"""Datasets by name, or from arrays, split and ready to train on."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from foldax.data import cache
from foldax.data.info import ArrayExamples, Info, fingerprint, moments
from foldax.data.prepared import Raw, canonical, choose, read_dataset
from foldax.data.sources import DeviceSource, Split, StreamSource, placed
from foldax.data.splits import check_fractions, partition
from foldax.errors import DataError, nearest

SOURCES = ("auto", "device", "stream")


class Dataset(NamedTuple):
    """A dataset ready to train on.

    Attributes:
      info: its static facts.
      train: where training batches come from.
      splits: the evaluation splits, "validation" and "test"; one of fraction 0 is absent.
    """

    info: Info
    train: DeviceSource | StreamSource
    splits: dict[str, Split]

    def to(self, device: Any) -> Dataset:
        """Returns the dataset for another device, or for a sharding over several."""
        splits = {name: placed(split, device) for name, split in self.splits.items()}
        return Dataset(self.info, placed(self.train, device), splits)


class Options(NamedTuple):
    """What `load` and `from_arrays` have in common."""

    batch_size: int
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 0
    source: str = "auto"
    evaluate_batch_size: int | None = None
    workers: int = 0

    def check(self) -> Options:
        check_fractions(self.validation, self.test)
        if self.source not in SOURCES:
            raise DataError(f"source={self.source!r} is none of {SOURCES}{nearest(str(self.source), SOURCES)}")
        for name, least in (("batch_size", 1), ("evaluate_batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name}={value!r} is too small; it must be at least {least}")
        return self


def load(
    name: str,
    *,
    batch_size: int,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    source: str = "auto",
    evaluate_batch_size: int | None = None,
    workers: int = 0,
) -> Dataset:
    """Loads a dataset by name and splits it, stratified by class; examples are dicts of arrays.

    Without a download: digits, breast_cancer, wine, iris, diabetes (scikit-learn) and fashion_mnist
    (Debian's dataset-fashion-mnist). Any other name is TensorFlow Datasets', optionally with a
    config ("name/config"). What TFDS calls the supervised keys becomes "inputs" and "targets"
    (classes int32, a regression's float32); other numeric features of a fixed shape keep their names,
    and the rest is left out. Prepared once, in the folder `$FOLDAX_CACHE` or ~/.cache/foldax.

    Args:
      name: the dataset.
      batch_size: examples per training batch; what is left of an epoch is dropped.
      validation: fraction of all examples to validate on (of "train", if there is a test split of its own).
      test: fraction of all examples to test on; a test split of its own is used whole, unless this is 0.
      split_seed: seed of the split, which is the same for ever for a name and a seed.
      source: "device" (the splits live on the device), "stream" (blocks are read while training), or
        "auto": on the device up to 1 GiB.
      evaluate_batch_size: examples per evaluation batch; by default at most `batch_size`.
      workers: processes that read a stream; 0 reads in threads of this one.

    Raises:
      DataError: if there is no such dataset, it cannot be downloaded, or the arguments do not fit it.
    """
    options = Options(batch_size, validation, test, split_seed, source, evaluate_batch_size, workers).check()
    return _dataset(read_dataset(name, source), options)


def from_arrays(
    arrays: dict[str, Any],
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    feature_names: tuple[str, ...] | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset of your own arrays `[N, ...]`, usually `{"inputs": ..., "targets": ...}`.

    Integer targets `[N]` are classes; without "targets" the dataset is unsupervised. 64 bits become 32.

    Args:
      arrays: arrays of equal length by key.
      name: name of the dataset; with `split_seed` it determines the split.
      num_classes: number of classes; by default one more than the largest target, or `len(class_names)`.
      class_names: names of the classes.
      feature_names: names of the columns of "inputs".
      **options: those of `load`: batch_size (needed), validation, test, split_seed, source,
        evaluate_batch_size, workers.

    Raises:
      DataError: if the arrays are not numeric, finite and of equal length, or the arguments do not fit.
    """
    chosen = Options(**options).check()
    checked = {key: _checked_array(key, value) for key, value in arrays.items()}
    lengths = {key: len(array) for key, array in checked.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{key!r} has {length}" for key, length in lengths.items()) or "there is none"
        raise DataError(f"{name}: all arrays must have the same number of examples, but {counts}")
    labels, targets = None, checked.get("targets", np.empty((0, 0)))
    if targets.ndim == 1 and targets.dtype.kind in "iu":
        labels = checked["targets"] = targets.astype(np.int32)
        num_classes = _number_of_classes(labels, num_classes, class_names)
    elif num_classes is not None or class_names is not None:
        raise DataError("num_classes and class_names need integer targets of shape [N]")
    elif targets.ndim == 1:
        checked["targets"] = targets.astype(np.float32)
    examples = ArrayExamples(checked)
    digests = {key: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for key, array in checked.items()}
    names = {"num_classes": num_classes, "class_names": class_names, "feature_names": feature_names}
    return _dataset(Raw(name, examples, labels, {"train": len(examples)}, digests, names), chosen)


def _dataset(raw: Raw, options: Options) -> Dataset:
    batch_size, validation, test, seed, source, evaluate_batch_size, workers = options
    parts = partition(raw.name, raw.sizes, raw.labels, validation=validation, test=test, seed=seed)
    train = parts["train"]
    if batch_size > len(train):
        raise DataError(
            f"batch_size={batch_size} is larger than the training split of {raw.name}, which has {len(train)} examples"
        )
    info, whole = _info(raw, parts, batch_size), choose(source, raw.examples) == "device"
    splits = {
        split: Split(raw.examples, rows, evaluate_batch_size or min(batch_size, len(rows)), whole=whole)
        for split, rows in parts.items()
        if split != "train"
    }
    if whole:
        return Dataset(info, DeviceSource(raw.examples, train, batch_size), splits)
    return Dataset(info, StreamSource(raw.examples, train, batch_size, workers), splits)


def _info(raw: Raw, parts: dict[str, np.ndarray], batch_size: int) -> Info:
    spec, sha = raw.examples.spec, fingerprint(raw.examples.spec, raw.digests, parts)
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in raw.names.items()
    }
    if raw.labels is not None:
        facts["class_counts"] = tuple(np.bincount(raw.labels[parts["train"]], minlength=facts["num_classes"]).tolist())
    path = raw.folder and raw.folder.with_name(f"{raw.folder.name}.moments-{sha[:16]}.json")
    known = cache.read_json(path) if path else None  # a stream is not read again for them
    if known is None:
        regression = "targets" in spec and raw.labels is None and not spec["targets"].shape
        known = moments(raw.examples, parts["train"], {"inputs": "", **({"targets": "target_"} if regression else {})})
        if path:
            cache.write_json(path, known)
    facts |= {name: np.asarray(value, np.float32) for name, value in known.items()}
    return Info(
        name=raw.name,
        fingerprint=sha,
        shapes={key: tuple(leaf.shape) for key, leaf in spec.items()},
        dtypes={key: np.dtype(leaf.dtype) for key, leaf in spec.items()},
        num_examples={split: len(rows) for split, rows in parts.items()},
        batch_size=batch_size,
        **facts,
    )


def _checked_array(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(f"{key!r} must be an array of numbers [N, ...], not {array.dtype} of shape {array.shape}")
    array = array.astype(canonical(array.dtype), copy=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        raise DataError(f"{key!r} has values that are not finite, first in example {bad}; leave it out or fill it in")
    return array


def _number_of_classes(labels: np.ndarray, num_classes: int | None, class_names: tuple[str, ...] | None) -> int:
    least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    count = num_classes if num_classes is not None else len(class_names) if class_names is not None else most + 1
    if class_names is not None and len(class_names) != count:
        raise DataError(f"num_classes={count}, but there are {len(class_names)} class_names")
    if least < 0 or most >= count:
        raise DataError(f"'targets' must be classes 0 to {count - 1}, but they go from {least} to {most}")
    return count
