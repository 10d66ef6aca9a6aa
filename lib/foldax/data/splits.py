"""Stratified train, validation and test splits; a name and a seed always give the same split."""

import hashlib

import numpy as np

from foldax.errors import DataError


def check_fractions(validation: float, test: float) -> None:
    """Checks that fractions are in [0, 1) and leave training examples.

    Raises:
      DataError: they are not, or do not.
    """
    for name, value in (("validation", validation), ("test", test)):
        if not 0.0 <= value < 1.0:
            raise DataError(f"{name}={value!r}: a split's fraction must be at least 0 and below 1")
    if validation + test >= 1.0:
        rule = "their sum must be below 1"
        raise DataError(f"validation={validation!r} and test={test!r} leave nothing to train on; {rule}")


def split_indices(
    name: str, sizes: dict[str, int], labels: np.ndarray | None, *, validation: float, test: float, seed: int
) -> dict[str, np.ndarray]:
    """Assigns every example to the training, validation or test split.

    Args:
      name: name of the dataset; `seed` and the name determine the assignment.
      sizes: number of examples in each split that the dataset brings, in the order of their indices. Its own "test" or
        "validation" split is used whole (unless its fraction is 0); other splits are sampled from "train".
      labels: class of each example `[N]`, to stratify by, or None.
      validation: fraction of examples for validation.
      test: fraction of examples for testing.
      seed: seed of the assignment.

    Returns:
      Ascending int64 indices of "train", "validation" and "test", in this order; a split of fraction 0 is absent.

    Raises:
      DataError: a split would be empty.

    >>> parts = split_indices("toy", {"train": 10}, None, validation=0.2, test=0.3, seed=0)
    >>> {split: len(indices) for split, indices in parts.items()}
    {'train': 5, 'validation': 2, 'test': 3}
    """
    ends = np.cumsum(list(sizes.values()))
    if not ends[-1]:
        raise DataError(f"{name} has no examples")
    # Examples are numbered through the splits that the dataset brings, in their order.
    own = {split: np.arange(end - size, end) for (split, size), end in zip(sizes.items(), ends)}
    for split, fraction in (("train", 1.0), ("validation", validation), ("test", test)):
        if "train" in own and split in own and fraction and not sizes[split]:
            raise DataError(f"{name}: its split {split!r} has no examples")
    rest = own["train"] if "train" in own else np.arange(ends[-1])
    random = _random(f"{name}:{seed}")
    parts: dict[str, np.ndarray] = {}
    remaining = 1.0
    # The test split is chosen first, so that it does not depend on the validation fraction.
    for split, fraction in (("test", test), ("validation", validation)):
        if not fraction:
            continue
        if "train" in own and split in own:
            parts[split] = own[split]
            continue
        # A fraction of all examples, as a fraction of those that remain.
        chosen = _choose(rest, labels, fraction / remaining, random, ties=_random(f"{name}:{seed}:{split}"))
        if not len(chosen):
            raise DataError(f"{name}: {split}={fraction!r} of {len(rest)} examples is none; ask for more, or for 0")
        parts[split], rest = chosen, np.setdiff1d(rest, chosen, assume_unique=True)
        remaining -= fraction
    if not len(rest):
        raise DataError(f"{name}: no example is left to train on (validation={validation!r}, test={test!r})")
    parts["train"] = rest
    return {split: parts[split] for split in ("train", "validation", "test") if split in parts}


def stratified_subset(
    name: str, indices: np.ndarray, labels: np.ndarray | None, count: int, *, seed: int
) -> np.ndarray:
    """Chooses `count` indices, stratified by class; a larger count contains the indices of a smaller one.

    Each class is shuffled, and its r-th of n examples gets the rank (r + u) / n with an offset u in (0, 1) per class;
    the `count` smallest ranks are chosen, so every prefix has the class proportions of the whole.

    Args:
      name: name of the dataset; `seed` and the name determine the choice.
      indices: examples to choose from.
      labels: class of each example of the dataset, or None.
      count: number of examples, at least 1.
      seed: seed of the choice.

    Returns:
      Ascending indices `[count]`.

    Raises:
      DataError: there are fewer examples.

    >>> stratified_subset("toy", np.arange(8), np.array([0, 0, 0, 0, 0, 0, 1, 1]), 4, seed=0).shape
    (4,)
    """
    if count > len(indices):
        available = f"the training split of {name} has: {len(indices)} examples"
        raise DataError(f"train_examples={count} is more than {available}")
    random = _random(f"{name}:{seed}:train_examples")
    # Within a class, examples are ranked at random.
    order = random.permutation(len(indices))
    groups = _groups(indices[order], labels)
    place = np.empty(len(indices))
    for turn, group in zip(random.permutation(len(groups)), groups, strict=True):
        # Ranks (r + u) / n spread every class evenly over [0, 1].
        place[group] = (np.arange(len(group)) + (turn + 0.5) / len(groups)) / len(group)
    return np.sort(indices[order[np.argsort(place, kind="stable")[:count]]])


def _random(text: str) -> np.random.RandomState:
    """Seeds a generator with a text; RandomState, because its stream is guaranteed never to change."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.dtype("<u4")))


def _groups(indices: np.ndarray, labels: np.ndarray | None) -> list[np.ndarray]:
    """Groups the positions in `indices` by class, classes in ascending order."""
    classes = np.zeros(len(indices), np.int64) if labels is None else np.unique(labels[indices], return_inverse=True)[1]
    return [np.flatnonzero(classes == c) for c in range(classes.max(initial=-1) + 1)]


def _choose(
    indices: np.ndarray,
    labels: np.ndarray | None,
    fraction: float,
    random: np.random.RandomState,
    ties: np.random.RandomState,
) -> np.ndarray:
    """Draws a fraction of the indices; the counts per class follow the largest remainder method."""
    groups = _groups(indices, labels)
    quotas = np.array([len(group) for group in groups]) * fraction
    # Whole numbers first; the largest remainders receive the rest.
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    missing = round(len(indices) * fraction) - counts.sum()
    if missing > 0:
        # Lots decide between small classes of one size: in the order of classes, the highest would never be drawn.
        lots = np.where(counts == 0, -ties.random_sample(len(groups)), 0)
        counts[np.lexsort((lots, counts - quotas))[:missing]] += 1
    chosen = [random.permutation(group)[:count] for group, count in zip(groups, counts, strict=True)]
    return np.sort(indices[np.concatenate([*chosen, np.arange(0)])])
