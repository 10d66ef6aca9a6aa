"""Splits are disjoint, whole, stratified, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.data.splits import check_fractions, partition
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
    parts = partition("name", {"train": len(labels)}, labels, validation=validation, test=test, seed=seed)
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
    parts = partition("digits", {"train": 20}, None, validation=0.1, test=0.2, seed=0)
    assert {split: indices.tolist() for split, indices in parts.items() if split != "train"} == {
        "test": [0, 10, 11, 13],
        "validation": [15, 16],
    }
    again = partition("digits", {"train": 20}, None, validation=0.1, test=0.2, seed=0)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


def test_seed_and_name_change_the_assignment():
    def test_split(name, seed):
        return partition(name, {"train": 100}, None, validation=0.1, test=0.2, seed=seed)["test"].tolist()

    assert test_split("a", 0) != test_split("a", 1)
    assert test_split("a", 0) != test_split("b", 0)


def test_own_splits_are_used_whole():
    sizes = {"test": 7, "extra": 5, "train": 20}
    parts = partition("name", sizes, None, validation=0.1, test=0.5, seed=0)
    assert parts["test"].tolist() == list(range(7))
    assert len(parts["validation"]) == 2  # a fraction of "train"
    assert set(parts["train"]) | set(parts["validation"]) == set(range(12, 32))
    assert "test" not in partition("name", sizes, None, validation=0.1, test=0.0, seed=0)


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
        partition("name", {"train": 10}, None, validation=0.01, test=0.2, seed=0)
    with pytest.raises(DataError, match="no examples"):
        partition("name", {"train": 0}, None, validation=0.1, test=0.2, seed=0)
