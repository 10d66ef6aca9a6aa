"""Mixtures of datasets: each example of a batch comes from one of them by its weight."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from foldax.data.arrays import check_set_names
from foldax.data.dataset import Dataset
from foldax.data.info import Info, JoinedExamples
from foldax.data.sampling import probabilities
from foldax.data.sources import DeviceSource, Split, StreamSource
from foldax.errors import DataError

SHARED_FACTS = ("shapes", "dtypes", "num_classes", "class_names", "feature_names", "vocabulary_size")


def mixture(datasets: Mapping[str, Dataset], weights: Mapping[str, float], *, name: str = "mixture") -> Dataset:
    """Mixes datasets: each example of a training batch comes from one of them with the probability of its weight.

    Within a dataset every example is as likely as another, or by its own weights. Batches are sampled with
    replacement, as a function of the seed and the step. "validation" and "test" are those of all datasets together;
    the validation split of each is also an evaluation set of its name, and its named evaluation sets are sets as
    "DATASET.SET".

    Args:
      datasets: datasets of equal batch sizes, shapes and classes, by name.
      weights: weight of each by the same names, above 0; their sum counts as 1.
      name: name of the mixture.

    Raises:
      DataError: names or facts of the datasets differ, a weight is not above 0, a dataset is read batch by batch, or
        two evaluation sets get the same name.

    >>> near, far = ({"inputs": np.full((100, 2), value)} for value in (1.0, 5.0))
    >>> parts = {"near": near, "far": far}
    >>> from foldax import data
    >>> datasets = {name: data.from_arrays(part, batch_size=8, test=0) for name, part in parts.items()}
    >>> mixed = mixture(datasets, {"near": 0.75, "far": 0.25})
    >>> mixed.info.mean.tolist(), sorted(mixed.splits)
    ([2.0, 2.0], ['far', 'near', 'validation'])
    """
    shares = _checked_shares(datasets, weights, name)
    infos = [dataset.info for dataset in datasets.values()]
    parts = [dataset.train for dataset in datasets.values() if isinstance(dataset.train, DeviceSource | StreamSource)]
    # 1. Training examples, each with the weight of its dataset divided by the number of examples
    joined = JoinedExamples([part.all_examples for part in parts])
    indices = np.concatenate([start + part.indices for start, part in zip(joined.starts, parts, strict=True)])
    rows = np.concatenate(
        [share * probabilities(part.bounds, len(part.indices)) for share, part in zip(shares, parts, strict=True)]
    )
    # 2. Evaluation splits
    splits = {}
    for split in ("validation", "test"):
        those = [dataset.splits[split] for dataset in datasets.values() if split in dataset.splits]
        if those:
            examples = JoinedExamples([part.all_examples for part in those])
            chosen = np.concatenate([start + part.indices for start, part in zip(examples.starts, those, strict=True)])
            largest = max(part.batch_size for part in those)
            splits[split] = Split(examples, chosen, largest, whole=all(part.is_whole for part in those))
    for key, split, kept in _component_splits(datasets):
        if split in splits:
            raise DataError(f"{name}: there are two evaluation sets {split!r}; give {key!r} another name")
        splits[split] = kept
    # 3. Source and facts
    size = infos[0].batch_size
    info = _mixed_info(name, infos, shares, {split: part.num_examples for split, part in splits.items()})
    if all(isinstance(part, DeviceSource) for part in parts):
        return Dataset(info, DeviceSource(joined, indices, size, rows), splits)
    workers = max(part.workers if isinstance(part, StreamSource) else 0 for part in parts)
    return Dataset(info, StreamSource(joined, indices, size, workers, rows), splits)


def _checked_shares(datasets: Mapping[str, Dataset], weights: Mapping[str, float], name: str) -> np.ndarray:
    """Checks that datasets can be mixed, and returns the probability of each."""
    check_set_names(datasets, name)
    if not datasets or datasets.keys() != weights.keys():
        raise DataError(
            f"{name}: the datasets are {sorted(datasets)}, the weights of {sorted(weights)}; give one of each"
        )
    first, facts = next(iter(datasets.items()))
    for key, dataset in datasets.items():
        if not isinstance(dataset.train, DeviceSource | StreamSource):
            remedy = "mix its batches in the function that makes them"
            raise DataError(f"{name}: {key!r} is read batch by batch, not example by example; {remedy}")
        for fact in (*SHARED_FACTS, "batch_size"):
            own, other = getattr(dataset.info, fact), getattr(facts.info, fact)
            if own != other:
                raise DataError(f"{name}: {fact} is {own} in {key!r}, but {other} in {first!r}; they must be the same")
        if isinstance(dataset.train, StreamSource) and dataset.train.transform is not None:
            raise DataError(f"{name}: {key!r} has a transform, which a mixture cannot apply to its examples alone")
        if not weights[key] > 0 or not np.isfinite(weights[key]):
            raise DataError(f"{name}: the weight of {key!r} must be above 0, got {weights[key]!r}")
    values = np.array([weights[key] for key in datasets], np.float64)
    return values / values.sum()


def _component_splits(datasets: Mapping[str, Dataset]) -> Iterator[tuple[str, str, Split]]:
    """Yields `(dataset, name in the mixture, split)` of each evaluation split that is kept beside the joined ones."""
    for key, dataset in datasets.items():
        for split, kept in dataset.splits.items():
            if split != "test":
                yield key, key if split == "validation" else f"{key}.{split}", kept


def _mixed_info(name: str, infos: Sequence[Info], shares: np.ndarray, num_examples: dict[str, int]) -> Info:
    """Combines facts; mean and std are weighted by the shares; class_counts are of all training examples."""
    first = infos[0]
    facts: dict[str, Any] = {fact: getattr(first, fact) for fact in SHARED_FACTS}
    for prefix in ("", "target_"):
        means, stds = ([getattr(info, f"{prefix}{moment}") for info in infos] for moment in ("mean", "std"))
        if any(mean is None for mean in means):
            continue
        # The deviation of a constant is 1 by definition.
        constants = [np.isin(np.arange(len(np.atleast_1d(s))), i.constant_features) for s, i in zip(stds, infos)]
        variances = [np.where(c.reshape(np.shape(s)) & (prefix == ""), 0, s**2) for c, s in zip(constants, stds)]
        mean = sum(share * m.astype(np.float64) for share, m in zip(shares, means))
        square = sum(share * (v + m.astype(np.float64) ** 2) for share, v, m in zip(shares, variances, means))
        std = np.sqrt(np.maximum(square - mean**2, 0))
        varies = std > 1e-7 * np.abs(mean)
        facts |= {f"{prefix}mean": np.float32(mean), f"{prefix}std": np.float32(np.where(varies, std, 1.0))}
        if not prefix:
            facts["constant_features"] = tuple(np.flatnonzero(~varies).tolist())
    counts = [info.class_counts for info in infos if info.class_counts is not None]
    if counts:
        facts["class_counts"] = tuple(np.sum(counts, axis=0).tolist())
    parts = str([(info.fingerprint, share) for info, share in zip(infos, shares.tolist(), strict=True)])
    total = {"train": sum(info.num_examples["train"] for info in infos)} | num_examples
    sha = hashlib.sha256(parts.encode()).hexdigest()
    return Info(name=name, fingerprint=sha, num_examples=total, batch_size=first.batch_size, **facts)
