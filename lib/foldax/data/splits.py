"""Which example belongs to which split: stratified, and the same for ever for a name and a seed."""

from __future__ import annotations

import hashlib

import numpy as np

from foldax.errors import DataError


def check_fractions(validation: float, test: float) -> None:
    """Raises a DataError unless fractions are in [0, 1) and leave something to train on."""
    for name, value in (("validation", validation), ("test", test)):
        if not 0.0 <= value < 1.0:
            raise DataError(f"{name}={value!r}: a split's fraction must be at least 0 and below 1")
    if validation + test >= 1.0:
        raise DataError(
            f"validation={validation!r} and test={test!r} leave nothing to train on; their sum must be below 1"
        )


def partition(
    name: str, sizes: dict[str, int], labels: np.ndarray | None, *, validation: float, test: float, seed: int
) -> dict[str, np.ndarray]:
    """Assigns every example to the training, validation or test split.

    Args:
      name: name of the dataset; with `seed` it determines the assignment.
      sizes: examples in each split that the dataset itself has, in the order of their indices. An own
        "test" or "validation" split is used whole (unless its fraction is 0); the rest comes from "train".
      labels: class of each example, `[N]`, to stratify by, or None.
      validation: fraction of examples to validate on.
      test: fraction of examples to test on.
      seed: seed of the assignment.

    Returns:
      Ascending int64 indices of "train", "validation" and "test", in this order; a split of fraction 0 is absent.

    Raises:
      DataError: if a split would be empty.
    """
    ends = np.cumsum(list(sizes.values()))
    if not ends[-1]:
        raise DataError(f"{name} has no examples")
    own = {split: np.arange(end - size, end) for (split, size), end in zip(sizes.items(), ends)}
    for split, fraction in (("train", 1.0), ("validation", validation), ("test", test)):
        if "train" in own and split in own and fraction and not sizes[split]:
            raise DataError(f"{name}: its split {split!r} has no examples")
    rest = own["train"] if "train" in own else np.arange(ends[-1])
    random = _random(f"{name}:{seed}")
    parts: dict[str, np.ndarray] = {}
    remaining = 1.0
    for split, fraction in (("test", test), ("validation", validation)):
        if not fraction:
            continue
        if "train" in own and split in own:
            parts[split] = own[split]
            continue
        chosen = _choose(rest, labels, fraction / remaining, random)
        if not len(chosen):
            raise DataError(f"{name}: {split}={fraction!r} of {len(rest)} examples is none; ask for more, or for 0")
        parts[split], rest = chosen, np.setdiff1d(rest, chosen, assume_unique=True)
        remaining -= fraction
    if not len(rest):
        raise DataError(f"{name}: no example is left to train on (validation={validation!r}, test={test!r})")
    parts["train"] = rest
    return {split: parts[split] for split in ("train", "validation", "test") if split in parts}


def subset(name: str, indices: np.ndarray, labels: np.ndarray | None, count: int, *, seed: int) -> np.ndarray:
    """Chooses `count` of the indices, of each class in proportion; those of a smaller count are among them.

    Every class stands in an order of its own, and the r-th of its n (from 0) comes at (r + u) / n, where u is the
    class's own number between 0 and 1: what is taken first has the shares of the whole, and a larger count only adds.

    Args:
      name: name of the dataset; with `seed` it determines the choice.
      indices: examples to choose from.
      labels: class of each example of the dataset, or None.
      count: how many, at least 1.
      seed: seed of the choice.

    Returns:
      Ascending indices `[count]`.

    Raises:
      DataError: if there are fewer.
    """
    if count > len(indices):
        raise DataError(
            f"train_examples={count} is more than the training split of {name} has: {len(indices)} examples"
        )
    random = _random(f"{name}:{seed}:train_examples")
    order = random.permutation(len(indices))
    groups = _groups(indices[order], labels)
    place = np.empty(len(indices))
    for turn, group in zip(random.permutation(len(groups)), groups, strict=True):
        place[group] = (np.arange(len(group)) + (turn + 0.5) / len(groups)) / len(group)
    return np.sort(indices[order[np.argsort(place, kind="stable")[:count]]])


def _random(text: str) -> np.random.RandomState:
    """Returns a generator that a text determines: RandomState's stream never changes, as newer generators' may."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.dtype("<u4")))


def _groups(indices: np.ndarray, labels: np.ndarray | None) -> list[np.ndarray]:
    """Returns the positions in `indices` of the examples of each class, classes in ascending order."""
    classes = np.zeros(len(indices), np.int64) if labels is None else np.unique(labels[indices], return_inverse=True)[1]
    return [np.flatnonzero(classes == c) for c in range(classes.max(initial=-1) + 1)]


def _choose(
    indices: np.ndarray, labels: np.ndarray | None, fraction: float, random: np.random.RandomState
) -> np.ndarray:
    """Draws a fraction of the indices, and of each class by the method of largest remainders."""
    groups = _groups(indices, labels)
    quotas = np.array([len(group) for group in groups]) * fraction
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    missing = round(len(indices) * fraction) - counts.sum()
    if missing > 0:
        counts[np.argsort(counts - quotas, kind="stable")[:missing]] += 1
    chosen = [random.permutation(group)[:count] for group, count in zip(groups, counts, strict=True)]
    return np.sort(indices[np.concatenate([*chosen, np.arange(0)])])
