"""Datasets by name, or from arrays, split and ready to train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from foldax.data import cache
from foldax.data.arrays import Names, read_arrays
from foldax.data.info import Info, fingerprint, moments
from foldax.data.prepared import Raw, choose, read_dataset
from foldax.data.sources import DeviceSource, Split, StreamSource, placed
from foldax.data.splits import check_fractions, partition, subset
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
    """What `load`, `from_arrays` and `from_splits` have in common."""

    batch_size: int
    validation: float = 0.1
    test: float = 0.2
    train_examples: int | None = None
    split_seed: int = 0
    source: str = "auto"
    evaluate_batch_size: int | None = None
    workers: int = 0

    def check(self) -> Options:
        check_fractions(self.validation, self.test)
        if self.source not in SOURCES:
            raise DataError(f"source={self.source!r} is none of {SOURCES}{nearest(str(self.source), SOURCES)}")
        for name, least in (("batch_size", 1), ("train_examples", 1), ("evaluate_batch_size", 1), ("workers", 0)):
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
    train_examples: int | None = None,
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
      train_examples: train on only so many of the training split's examples, chosen by class in proportion; the same
        for ever for a name, a seed and a number, and fewer are among more. The other splits stay as they are.
      split_seed: seed of the split, which is the same for ever for a name and a seed.
      source: "device" (the splits live on the device), "stream" (blocks are read while training), or
        "auto": on the device up to 1 GiB.
      evaluate_batch_size: examples per evaluation batch; by default at most `batch_size`.
      workers: processes that read a stream; 0 reads in threads of this one.

    Raises:
      DataError: if there is no such dataset, it cannot be downloaded, or the arguments do not fit it.
    """
    options = Options(
        batch_size, validation, test, train_examples, split_seed, source, evaluate_batch_size, workers
    ).check()
    return _dataset(read_dataset(name, source), options)


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    feature_names: tuple[str, ...] | None = None,
    vocabulary_size: int | None = None,
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
      vocabulary_size: number of tokens, where "inputs" are tokens.
      **options: those of `load`: batch_size (needed), validation, test, train_examples, split_seed, source,
        evaluate_batch_size, workers.

    Raises:
      DataError: if the arrays are not numeric, finite and of equal length, or the arguments do not fit.
    """
    chosen = Options(**options).check()
    names = Names(num_classes, class_names, feature_names, vocabulary_size)
    return _dataset(read_arrays({"train": arrays}, name, names), chosen)


def from_splits(
    splits: Mapping[str, Mapping[str, Any]],
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    feature_names: tuple[str, ...] | None = None,
    vocabulary_size: int | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset of arrays that you have split yourself, as in time order, or as published.

    Args:
      splits: arrays as `from_arrays` takes them by split: "train", and "validation" or "test" or both. One of these
        that is missing is drawn from "train", as the fraction that its option says; 0 for none. Drawn at random, so
        not for what has an order in time.
      name: name of the dataset; with `split_seed` it determines what is drawn.
      num_classes: number of classes; by default one more than the largest target of all splits.
      class_names: names of the classes.
      feature_names: names of the columns of "inputs".
      vocabulary_size: number of tokens, where "inputs" are tokens.
      **options: those of `load`, as for `from_arrays`.

    Raises:
      DataError: if a split is empty or unknown, keys, dtypes or shapes differ between splits, or as `from_arrays`.
    """
    chosen = Options(**options).check()
    names = Names(num_classes, class_names, feature_names, vocabulary_size)
    return _dataset(read_arrays(splits, name, names), chosen)


def _dataset(raw: Raw, options: Options) -> Dataset:
    batch_size, validation, test, train_examples, seed, source, evaluate_batch_size, workers = options
    parts = partition(raw.name, raw.sizes, raw.labels, validation=validation, test=test, seed=seed)
    if train_examples is not None:
        parts["train"] = subset(raw.name, parts["train"], raw.labels, train_examples, seed=seed)
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
    path = raw.folder and raw.folder.with_name(f"{raw.folder.name}.statistics-{sha[:16]}.json")
    known = cache.read_json(path) if path else None  # a stream is not read again for them
    if known is None:
        regression = "targets" in spec and spec["targets"].dtype.kind == "f" and len(spec["targets"].shape) < 2
        keys = {"inputs": raw.names.get("vocabulary_size") is None, "targets": regression}
        prefixes = {"inputs": "", "targets": "target_"}
        known = moments(raw.examples, parts["train"], {key: prefixes[key] for key, wanted in keys.items() if wanted})
        if path:
            cache.write_json(path, known)
    facts["constant_features"] = tuple(known.pop("constant_features", ()))
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
