"""Splits are disjoint, whole, stratified, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.data.splits import check_fractions, split_indices, stratified_subset
from foldax.errors import DataError


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 20),
    validation=st.sampled_from([0.0, 0.1, 0.25, 0.3]),
    test=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    seed=st.integers(0, 1000),
)
def test_a_partition_is_whole_disjoint_and_stratified(counts, validation, test, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = split_indices("name", {"train": len(labels)}, labels, validation=validation, test=test, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(labels)))
    assert ("validation" in parts) == (validation > 0)
    assert ("test" in parts) == (test > 0)
    for split, fraction in (("validation", validation), ("test", test)):
        if split in parts:
            assert abs(len(parts[split]) - fraction * len(labels)) <= 1
            shares = np.bincount(labels[parts[split]], minlength=len(counts))
            assert np.all(np.abs(shares - fraction * np.array(counts)) < 2)
            assert np.all(np.diff(parts[split]) > 0)


def test_the_assignment_is_known_for_ever():
    parts = split_indices("digits", {"train": 20}, None, validation=0.1, test=0.2, seed=0)
    assert {split: indices.tolist() for split, indices in parts.items() if split != "train"} == {
        "test": [0, 10, 11, 13],
        "validation": [15, 16],
    }
    again = split_indices("digits", {"train": 20}, None, validation=0.1, test=0.2, seed=0)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


def test_seed_and_name_change_the_assignment():
    def test_split(name, seed):
        return split_indices(name, {"train": 100}, None, validation=0.1, test=0.2, seed=seed)["test"].tolist()

    assert test_split("a", 0) != test_split("a", 1)
    assert test_split("a", 0) != test_split("b", 0)


def test_own_splits_are_used_whole():
    sizes = {"test": 7, "extra": 5, "train": 20}
    parts = split_indices("name", sizes, None, validation=0.1, test=0.5, seed=0)
    assert parts["test"].tolist() == list(range(7))
    assert len(parts["validation"]) == 2  # a fraction of "train"
    assert set(parts["train"]) | set(parts["validation"]) == set(range(12, 32))
    assert "test" not in split_indices("name", sizes, None, validation=0.1, test=0.0, seed=0)


@pytest.mark.parametrize(
    ("validation", "test", "says"),
    [
        (-0.1, 0.2, "validation=-0.1"),
        (0.1, 1.0, "test=1.0"),
        (0.5, 0.5, "nothing to train on"),
        (0.1, float("nan"), "nan"),
    ],
)
def test_fractions_out_of_range(validation, test, says):
    with pytest.raises(DataError, match=says):
        check_fractions(validation, test)


def test_an_empty_split_is_an_error():
    with pytest.raises(DataError, match=r"validation=0\.01 of 8 examples is none"):
        split_indices("name", {"train": 10}, None, validation=0.01, test=0.2, seed=0)
    with pytest.raises(DataError, match="no examples"):
        split_indices("name", {"train": 0}, None, validation=0.1, test=0.2, seed=0)
    with pytest.raises(DataError, match="its split 'test' has no examples"):
        split_indices("name", {"train": 10, "test": 0}, None, validation=0.1, test=0.2, seed=0)
    assert list(split_indices("name", {"train": 10, "test": 0}, None, validation=0.1, test=0, seed=0)) == [
        "train",
        "validation",
    ]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 20),
    seed=st.integers(0, 1000),
)
def test_subsets_have_the_shares_of_the_whole_and_are_nested(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    smaller = np.arange(0)
    indices = np.arange(0, len(labels), 2)
    shares = np.bincount(labels[indices], minlength=len(counts)) / len(indices)
    for size in (1, 5, 9, len(indices)):
        chosen = stratified_subset("name", indices, labels, size, seed=seed)
        assert len(chosen) == size
        assert np.all(np.diff(chosen) > 0)
        assert set(chosen) <= set(indices)
        assert set(smaller) <= set(chosen)
        assert np.all(np.abs(np.bincount(labels[chosen], minlength=len(counts)) - shares * size) < 2)
        smaller = chosen


def test_a_subset_of_equal_classes_has_as_many_of_each():
    labels = np.repeat(np.arange(10), 100)
    for size in (10, 50, 500):
        assert np.all(
            np.bincount(labels[stratified_subset("name", np.arange(1000), labels, size, seed=3)]) == size // 10
        )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_small_class_is_drawn_with_some_seed(split):
    labels = np.repeat(np.arange(50), 2)
    sampled = [
        labels[split_indices("name", {"train": 100}, labels, validation=0.2, test=0.2, seed=seed)[split]]
        for seed in range(40)
    ]
    counts = np.bincount(np.concatenate(sampled), minlength=50)
    assert counts.min() > 0
    assert abs(counts[25:].sum() - counts[:25].sum()) < 120  # of 800, so that neither half is preferred


def test_the_subset_is_known_for_ever():
    chosen = stratified_subset("digits", np.arange(5, 25), None, 4, seed=0)
    assert chosen.tolist() == [5, 7, 14, 23]
    assert chosen.tolist() != stratified_subset("digits", np.arange(5, 25), None, 4, seed=1).tolist()
    assert chosen.tolist() != stratified_subset("wine", np.arange(5, 25), None, 4, seed=0).tolist()
    with pytest.raises(DataError, match="train_examples=21 is more than the training split of digits has: 20"):
        stratified_subset("digits", np.arange(5, 25), None, 21, seed=0)
