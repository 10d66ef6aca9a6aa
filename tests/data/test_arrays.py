"""Splits of one's own: kept as they are, sampled where missing, and checked against each other."""

import numpy as np
import pytest

from foldax import data
from foldax.errors import DataError


def arrays(start, count):
    numbers = np.arange(start, start + count)
    return {"inputs": numbers[:, None].astype(np.float32), "targets": numbers % 2}


def held(dataset):
    """Returns the inputs of every split, in its order."""
    parts = {"train": dataset.train.examples()["inputs"]}
    for name, split in dataset.splits.items():
        parts[name] = np.concatenate([block.batches["inputs"][block.mask] for block in split.blocks()])
    return {name: np.asarray(part)[:, 0].astype(int).tolist() for name, part in parts.items()}


SPLITS = {"train": arrays(0, 20), "validation": arrays(20, 6), "test": arrays(26, 9)}


@pytest.mark.parametrize("source", ["device", "stream"])
def test_own_splits_stay_as_they_are(source):
    dataset = data.from_splits(SPLITS, batch_size=20, source=source)
    assert held(dataset) == {"train": [*range(20)], "validation": [*range(20, 26)], "test": [*range(26, 35)]}
    assert dataset.info.num_examples == {"train": 20, "validation": 6, "test": 9}
    assert dataset.info.class_counts == (10, 10)
    np.testing.assert_allclose(dataset.info.mean, [9.5])


def test_the_order_in_which_splits_are_given_does_not_matter():
    back = {name: SPLITS[name] for name in ("test", "validation", "train")}
    assert data.from_splits(back, batch_size=4).info == data.from_splits(SPLITS, batch_size=4).info


def test_a_missing_split_is_drawn_from_train():
    parts = held(data.from_splits({"train": SPLITS["train"], "test": SPLITS["test"]}, batch_size=4, validation=0.25))
    assert parts["test"] == [*range(26, 35)]
    assert len(parts["validation"]) == 5
    assert sorted(parts["train"] + parts["validation"]) == [*range(20)]
    parts = held(data.from_splits({"train": SPLITS["train"], "validation": SPLITS["test"]}, batch_size=4, test=0.1))
    assert parts["validation"] == [*range(26, 35)]
    assert len(parts["test"]) == 2
    assert sorted(parts["train"] + parts["test"]) == [*range(20)]


def test_a_split_of_fraction_0_is_left_out():
    assert list(held(data.from_splits(SPLITS, batch_size=4, validation=0))) == ["train", "test"]
    assert list(held(data.from_splits({"train": SPLITS["train"]}, batch_size=4, validation=0, test=0))) == ["train"]


def test_one_array_is_the_special_case_of_one_split():
    one = data.from_arrays(SPLITS["train"], batch_size=4)
    assert one.info == data.from_splits({"train": SPLITS["train"]}, batch_size=4).info


def test_classes_are_counted_over_all_splits():
    more = {**SPLITS, "test": {**SPLITS["test"], "targets": np.full(9, 4)}}
    assert data.from_splits(more, batch_size=4).info.num_classes == 5
    with pytest.raises(DataError, match=r"'targets' of split 'test' must be classes 0 to 2, but they go from 4 to 4"):
        data.from_splits(more, batch_size=4, num_classes=3)


def test_integers_of_any_width_are_classes():
    narrow = {**SPLITS, "test": {**SPLITS["test"], "targets": np.zeros(9, np.uint8)}}
    assert data.from_splits(narrow, batch_size=4).info.dtypes["targets"] == np.int32


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tset": SPLITS["test"]}, r"no split 'tset'; did you mean 'test'\?"),
        ({"train": None}, "'train' is missing"),
        ({"test": {"inputs": np.ones((9, 1))}}, r"split 'test' has the keys \['inputs'\], but 'train' has"),
        ({"test": {**SPLITS["test"], "inputs": np.ones((9, 2))}}, r"float32\[2\] in split 'test', but float32\[1\]"),
        (
            {"validation": {**SPLITS["validation"], "inputs": np.ones((6, 1), int)}},
            r"'inputs' are int32\[1\] in split 'validation', but float32",
        ),
        ({"test": arrays(0, 0)}, "split 'test' has no examples"),
        ({"train": arrays(0, 0)}, "split 'train' has no examples"),
        ({"test": {**SPLITS["test"], "targets": np.zeros(8, int)}}, "arrays of split 'test' must have the same number"),
        (
            {"test": {**SPLITS["test"], "inputs": np.full((9, 1), np.nan)}},
            "'inputs' of split 'test' has values that are not finite, first in example 0",
        ),
    ],
)
def test_what_does_not_fit(changed, says):
    splits = {name: split for name, split in {**SPLITS, **changed}.items() if split is not None}
    with pytest.raises(DataError, match=says):
        data.from_splits(splits, batch_size=4)


def test_integers_that_32_bits_do_not_hold():
    with pytest.raises(DataError, match=r"'targets': expected int32 \(-2\d+ to 2\d+\), got 4294967296 in example 1"):
        data.from_arrays({"targets": np.array([0, 2**32])}, batch_size=1)


def test_numbers_that_32_bits_do_not_hold():
    with pytest.raises(DataError, match=r"not finite, first in example 1"):
        data.from_arrays({"inputs": np.array([0, 1e300])}, batch_size=1)


def test_feature_names_fit_the_columns():
    with pytest.raises(DataError, match=r"2 feature_names, but 'inputs' has \(1,\) columns"):
        data.from_splits(SPLITS, batch_size=4, feature_names=("a", "b"))


class TestTokens:
    def test_are_in_the_vocabulary(self):
        info = data.from_arrays({"inputs": np.arange(20) % 7}, batch_size=4, vocabulary_size=7).info
        assert info.vocabulary_size == 7
        assert info.mean is info.std is None
        assert info != data.from_arrays({"inputs": np.arange(20) % 7}, batch_size=4, vocabulary_size=8).info

    @pytest.mark.parametrize("bad", [-1, 7])
    def test_unknown_ones_are_named(self, bad):
        rows = np.zeros((9, 3), int)
        rows[5, 1] = bad
        splits = {"train": {"inputs": np.zeros((9, 3), int)}, "test": {"inputs": rows}}
        says = rf"'inputs' of split 'test' have the unknown token {bad}, first in example 5; .* allows 0 to 6"
        with pytest.raises(DataError, match=says):
            data.from_splits(splits, batch_size=4, vocabulary_size=7)

    def test_are_integers(self):
        with pytest.raises(DataError, match="needs 'inputs' of integers, not float32"):
            data.from_arrays({"inputs": np.ones(20)}, batch_size=4, vocabulary_size=7)
        with pytest.raises(DataError, match="needs 'inputs' of integers, there are none"):
            data.from_arrays({"z": np.ones(20)}, batch_size=4, vocabulary_size=7)


class TestFacts:
    def test_padding_does_not_count(self):
        rng = np.random.default_rng(0)
        sequences = [5 + 2 * rng.normal(size=(size, 3)) for size in rng.integers(1, 9, 40)]
        whole = np.concatenate(sequences)
        info = data.from_arrays(data.pad_sequences(sequences), batch_size=4, validation=0, test=0).info
        np.testing.assert_allclose(info.mean, whole.mean(0), rtol=1e-5)
        np.testing.assert_allclose(info.std, whole.std(0), rtol=1e-5)
        longer = data.from_arrays(data.pad_sequences(sequences, 30), batch_size=4, validation=0, test=0).info
        np.testing.assert_allclose(longer.std, info.std, rtol=1e-5)

    def test_constant_features_are_told(self):
        x = np.column_stack([np.full(20, 0.1), np.arange(20.0), np.full(20, -3.0)])
        info = data.from_arrays({"inputs": x}, batch_size=4).info
        assert info.constant_features == (0, 2)
        assert info.std[0] == info.std[2] == 1
        assert data.from_arrays({"inputs": x[:, 1:2]}, batch_size=4).info.constant_features == ()

    def test_targets_of_several_numbers_have_moments_each(self):
        y = np.column_stack([np.arange(20.0), 100 - 3 * np.arange(20.0)])
        info = data.from_arrays({"targets": y}, batch_size=4, validation=0, test=0).info
        np.testing.assert_allclose(info.target_mean, y.mean(0), rtol=1e-6)
        np.testing.assert_allclose(info.target_std, y.std(0), rtol=1e-6)


class TestTrainExamples:
    def test_only_the_training_split_shrinks(self):
        whole, part = (data.from_splits(SPLITS, batch_size=4, train_examples=size) for size in (None, 6))
        assert held(part)["test"] == held(whole)["test"]
        assert held(part)["validation"] == held(whole)["validation"]
        assert set(held(part)["train"]) < set(held(whole)["train"])
        assert part.info.num_examples["train"] == 6
        assert part.info.class_counts == (3, 3)
        assert part.info != whole.info
        np.testing.assert_allclose(part.info.mean, [np.mean(held(part)["train"])], rtol=1e-6)

    def test_of_a_dataset_by_name(self):
        dataset = data.load("digits", batch_size=50, train_examples=50)
        assert dataset.info.num_examples == {"train": 50, "validation": 180, "test": 359}
        assert set(dataset.info.class_counts) == {5}

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"train_examples": 0}, "train_examples=0 is too small; it must be at least 1"),
            ({"train_examples": 21}, "train_examples=21 is more than the training split of arrays has: 20"),
            ({"train_examples": 3}, "batch_size=4 is larger than the training split of arrays, which has 3"),
        ],
    )
    def test_what_does_not_fit(self, options, says):
        with pytest.raises(DataError, match=says):
            data.from_splits(SPLITS, batch_size=4, **options)
