"""Datasets by name or from arrays, split into training, validation and test data."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from foldax.data import cache
from foldax.data.arrays import ArrayMetadata, read_arrays, read_evaluation
from foldax.data.info import ArrayExamples, Info, array_digests, fingerprint, moments
from foldax.data.prepared import RawDataset, choose_source, open_dataset
from foldax.data.protocol import DataSource
from foldax.data.sampling import example_weights
from foldax.data.sources import DeviceSource, Split, StreamSource, Transform, on_device
from foldax.data.splits import check_fractions, split_indices, stratified_subset
from foldax.errors import DataError, did_you_mean

SOURCES = ("auto", "device", "stream")


class Dataset(NamedTuple):
    """A dataset that is ready to train on.

    Attributes:
      info: static facts of the training split.
      train: source of training batches.
      splits: evaluation splits, "validation" and "test", then named sets; a split of fraction 0 is absent.
      nonresumable_reason: explains why a resumed run differs from an uninterrupted one; None if it does not.

    >>> dataset = from_arrays({"inputs": np.zeros((10, 3)), "targets": np.arange(10) % 2}, batch_size=2)
    >>> dataset.info.num_classes, sorted(dataset.splits)
    (2, ['test', 'validation'])
    """

    info: Info
    train: DataSource
    splits: dict[str, Split]
    nonresumable_reason: str | None = None

    def to(self, device: Any) -> "Dataset":
        """Returns the same dataset on another device, or sharded over several."""
        splits = {name: on_device(split, device) for name, split in self.splits.items()}
        return self._replace(train=on_device(self.train, device), splits=splits)


class DatasetOptions(NamedTuple):
    """Options that `load`, `from_arrays` and `from_splits` share."""

    batch_size: int
    validation: float = 0.1
    test: float = 0.2
    train_examples: int | None = None
    split_seed: int = 0
    source: str = "auto"
    evaluate_batch_size: int | None = None
    workers: int = 0
    evaluation: Mapping[str, Any] | None = None
    weights: Any = None
    transform: Transform | None = None

    @staticmethod
    def make(options: Mapping[str, Any]) -> "DatasetOptions":
        """Checks options by name.

        Raises:
          DataError: there is no such option, "batch_size" is missing, or a value is not allowed.
        """
        known = DatasetOptions._fields
        if unknown := next((name for name in options if name not in known), None):
            hint = did_you_mean(unknown, known)
            raise DataError(f"there is no option {unknown!r}{hint} (options: {', '.join(known)})")
        if "batch_size" not in options:
            raise DataError("batch_size is missing: give the number of examples of a training batch")
        return DatasetOptions(**options).check()

    def check(self) -> "DatasetOptions":
        for name in ("validation", "test"):
            if not isinstance(getattr(self, name), int | float | np.number):
                raise DataError(f"{name}={getattr(self, name)!r} is no number; it is the fraction of a split")
        check_fractions(self.validation, self.test)
        if self.evaluation is not None and not isinstance(self.evaluation, Mapping):
            raise DataError(f"evaluation must be a dict of sets by name, not {type(self.evaluation).__name__}")
        if self.transform is not None and not callable(self.transform):
            raise DataError(f"transform must be a function of a batch and a random generator, not {self.transform!r}")
        if self.source not in SOURCES:
            raise DataError(f"source={self.source!r} is none of {SOURCES}{did_you_mean(str(self.source), SOURCES)}")
        for name, least in (("batch_size", 1), ("train_examples", 1), ("evaluate_batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | np.integer):
                raise DataError(f"{name}={value!r} is no integer")
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
    evaluation: Mapping[str, Any] | None = None,
    weights: Any = None,
    transform: Transform | None = None,
) -> Dataset:
    """Loads a dataset by name and splits it, stratified by class.

    No download is needed for digits, breast_cancer, wine, iris and diabetes (scikit-learn) and fashion_mnist (Debian's
    package dataset-fashion-mnist). Any other name is looked up in TensorFlow Datasets, optionally with a config
    ("name/config"). The supervised keys of TFDS become "inputs" and "targets" (classes int32, regression targets
    float32). Other numeric features of a fixed shape keep their names; all others are left out. A dataset is prepared
    once, in `$FOLDAX_CACHE` or ~/.cache/foldax.

    Args:
      name: name of the dataset.
      batch_size: examples per training batch; an incomplete last batch of an epoch is dropped.
      validation: fraction of all examples for validation, in [0, 1); of "train", if the dataset has its own test split.
      test: fraction of all examples for testing, in [0, 1); the dataset's own test split is used whole, unless this
        is 0.
      train_examples: number of training examples to keep, stratified by class. A name, seed and number always give the
        same examples, and a larger number contains those of a smaller one. Other splits are unchanged.
      split_seed: seed of the split; a name and a seed always give the same split.
      source: "device" (all splits on the device), "stream" (blocks are read during training), or "auto": on the device
        up to 1 GiB.
      evaluate_batch_size: examples per evaluation batch; by default at most `batch_size`.
      workers: processes that read a stream; 0 reads in threads of this process. They share the data: arrays in memory
        are written to temporary files and mapped, as files of the cache and `np.load(..., mmap_mode="r")` are.
      evaluation: further sets to evaluate on, by name: arrays by key as those of the training split, or a split of
        another dataset. Their metrics are reported beside those of "validation" and "test"; with the config's
        `monitor="NAME/loss"` they choose the best state.
      weights: draws each example of a batch with replacement: "balanced", so that all classes are equally frequent, or
        weights `[N]` of the examples that the training split is chosen from (for `from_arrays` all of them). By default
        every epoch has each example once, in random order. Either way the seed and the step determine the batch.
      transform: changes training batches on the host, in the `workers` if there are any: a function of arrays
        `[B, ...]` by key and a `numpy.random.Generator`, which depends on the seed and the step, that returns arrays of
        the same keys, shapes and dtypes. The training split is streamed then.

    Raises:
      DataError: the dataset does not exist or cannot be downloaded, or the arguments do not fit it.

    >>> load("digits", batch_size=64).info.shapes["inputs"]
    (8, 8, 1)
    """
    options = DatasetOptions(
        *(batch_size, validation, test, train_examples, split_seed, source, evaluate_batch_size, workers),
        *(evaluation, weights, transform),
    ).check()
    return make_dataset(open_dataset(name, source), options)


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    feature_names: Iterable[str] | None = None,
    vocabulary_size: int | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset from arrays `[N, ...]`, usually `{"inputs": ..., "targets": ...}`.

    Integer and bool targets `[N]` are class labels; without "targets" the dataset is unsupervised. Arrays are copied,
    unless they are memory-mapped, and 64-bit types become 32-bit.

    Args:
      arrays: arrays of equal length N by key.
      name: name of the dataset; `split_seed` and the name determine the split.
      num_classes: number of classes; by default one more than the largest target, or `len(class_names)`.
      class_names: names of the classes.
      feature_names: names of the columns of "inputs".
      vocabulary_size: number of tokens, where "inputs" are tokens.
      **options: options of `load`: batch_size (required), validation, test, train_examples, split_seed, source,
        evaluate_batch_size, workers, evaluation, weights, transform.

    Raises:
      DataError: an array is not numeric, not finite, masked, of another length or too precise for 32 bits; integer
        targets look like values or identifiers; or the arguments do not fit.

    >>> dataset = from_arrays({"inputs": np.zeros((10, 3))}, batch_size=4, validation=0.2, test=0.0)
    >>> dataset.info.num_examples
    {'train': 8, 'validation': 2}
    """
    chosen = DatasetOptions.make(options)
    names = ArrayMetadata.check(num_classes, class_names, feature_names, vocabulary_size)
    return make_dataset(read_arrays({"train": arrays}, name, names), chosen)


def from_splits(
    splits: Mapping[str, Mapping[str, Any]],
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    feature_names: Iterable[str] | None = None,
    vocabulary_size: int | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset from arrays that are already split, for example by time or as published.

    Args:
      splits: arrays as in `from_arrays` by split: "train", and "validation" or "test" or both. A missing split is
        sampled from "train", as the fraction that the option of its name gives; set the option to 0 for data that are
        ordered in time.
      name: name of the dataset; `split_seed` and the name determine a sampled split.
      num_classes: number of classes; by default one more than the largest target of all splits.
      class_names: names of the classes.
      feature_names: names of the columns of "inputs".
      vocabulary_size: number of tokens, where "inputs" are tokens.
      **options: options of `load`, as for `from_arrays`.

    Raises:
      DataError: a split is empty or unknown; keys, dtypes or shapes differ between splits; or as for `from_arrays`.

    >>> past, future = {"inputs": np.zeros((8, 3))}, {"inputs": np.ones((2, 3))}
    >>> from_splits({"train": past, "test": future}, batch_size=4, validation=0.0).info.num_examples
    {'train': 8, 'test': 2}
    """
    chosen = DatasetOptions.make(options)
    names = ArrayMetadata.check(num_classes, class_names, feature_names, vocabulary_size)
    return make_dataset(read_arrays(splits, name, names), chosen)


def assign_splits(
    name: str, sizes: dict[str, int], labels: np.ndarray | None, options: DatasetOptions
) -> dict[str, np.ndarray]:
    """Returns the indices of each split, of which "train" has at most `options.train_examples`; see `split_indices`."""
    seed = options.split_seed
    parts = split_indices(name, sizes, labels, validation=options.validation, test=options.test, seed=seed)
    if options.train_examples is not None:
        parts["train"] = stratified_subset(name, parts["train"], labels, options.train_examples, seed=seed)
    return parts


def make_dataset(raw: RawDataset, options: DatasetOptions) -> Dataset:
    """Splits a raw dataset, and decides where its data are kept."""
    batch_size, evaluate_batch_size = options.batch_size, options.evaluate_batch_size
    # 1. Split
    parts = assign_splits(raw.name, raw.sizes, raw.labels, options)
    train = parts["train"]
    if batch_size > len(train):
        available = f"the training split of {raw.name}, which has {len(train)} examples"
        raise DataError(f"batch_size={batch_size} is larger than {available}")
    # 2. Facts of the training split, and where the data are kept
    named = {name: s.examples() if isinstance(s, Split) else s for name, s in (options.evaluation or {}).items()}
    evaluation = read_evaluation(named, raw.name, raw.examples.spec, raw.names)
    weights = None
    if options.weights is not None:
        ends = dict(zip(raw.sizes, np.cumsum(list(raw.sizes.values())).tolist()))
        own = range(ends["train"] - raw.sizes["train"], ends["train"]) if "train" in ends else range(len(raw.examples))
        weights = example_weights(options.weights, raw.name, raw.labels, train, own)
    info = _info(raw, parts, batch_size, evaluation, weights)
    whole = choose_source(options.source, raw.examples) == "device"
    splits = {
        split: Split(raw.examples, rows, evaluate_batch_size or min(batch_size, len(rows)), whole=whole)
        for split, rows in parts.items()
        if split != "train"
    }
    splits |= {name: evaluation_split(s, evaluate_batch_size, batch_size) for name, s in evaluation.items()}
    # 3. Source of training batches
    if whole and options.transform is None:
        return Dataset(info, DeviceSource(raw.examples, train, batch_size, weights), splits)
    source = StreamSource(raw.examples, train, batch_size, options.workers, weights, options.transform)
    if options.transform is not None:
        source.examples()  # fails here, not in a worker, if the transform does
    return Dataset(info, source, splits)


def evaluation_split(examples: ArrayExamples, evaluate_batch_size: int | None, batch_size: int) -> Split:
    """Makes a split of a named evaluation set, on the device if it is small enough."""
    size, is_small = len(examples), choose_source("auto", examples) == "device"
    return Split(examples, np.arange(size), evaluate_batch_size or min(batch_size, size), whole=is_small)


def _info(
    raw: RawDataset,
    parts: dict[str, np.ndarray],
    batch_size: int,
    evaluation: dict[str, ArrayExamples],
    weights: np.ndarray | None,
) -> Info:
    spec, sha = raw.examples.spec, fingerprint(raw.examples.spec, raw.digests, parts)
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in raw.names.items()
    }
    if raw.labels is not None:
        facts["class_counts"] = tuple(np.bincount(raw.labels[parts["train"]], minlength=facts["num_classes"]).tolist())
    # Keyed by the fingerprint: other splits have other statistics.
    path = raw.folder and raw.folder.with_name(f"{raw.folder.name}.statistics-{sha[:16]}.json")
    known = cache.read_json(path) if path else None  # statistics of a stream are not computed twice
    if known is None:
        # Tokens and class labels have no mean; regression targets are standardised by the learner.
        regression = "targets" in spec and spec["targets"].dtype.kind == "f" and len(spec["targets"].shape) < 2
        keys = {"inputs": raw.names.get("vocabulary_size") is None, "targets": regression}
        prefixes = {"inputs": "", "targets": "target_"}
        known = moments(raw.examples, parts["train"], {key: prefixes[key] for key, enabled in keys.items() if enabled})
        if path:
            with contextlib.suppress(DataError):  # only time is lost if the cache cannot be written
                cache.write_json(path, known)
    facts["constant_features"] = tuple(known.pop("constant_features", ()))
    facts |= {name: np.asarray(value, np.float32) for name, value in known.items()}
    return Info(
        name=raw.name,
        fingerprint=with_options(sha, evaluation, {} if weights is None else {"weights": weights}),
        shapes={key: tuple(leaf.shape) for key, leaf in spec.items()},
        dtypes={key: np.dtype(leaf.dtype) for key, leaf in spec.items()},
        num_examples={split: len(rows) for split, rows in (parts | evaluation).items()},
        batch_size=batch_size,
        **facts,
    )


def with_options(sha: str, evaluation: dict[str, ArrayExamples], arrays: dict[str, np.ndarray]) -> str:
    """Adds the digests of named evaluation sets, and of weights or statistics, to a fingerprint, if there are any."""
    facts: list[Any] = [(name, sorted(array_digests(evaluation[name].arrays).items())) for name in sorted(evaluation)]
    facts += [array_digests(arrays)] if arrays else []
    return hashlib.sha256(f"{sha} {facts}".encode()).hexdigest() if facts else sha
