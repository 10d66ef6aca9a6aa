"""Arrays and names of other libraries: converted, or refused with the reason."""

import numpy as np
import pandas as pd
import pytest

from foldax import data
from foldax.data.conversion import as_array, as_names
from foldax.errors import DataError

X, Y = np.random.RandomState(0).randn(40, 3), np.arange(40) % 2


def dataset(inputs=X, targets=Y, **options):
    return data.from_arrays({"inputs": inputs, "targets": targets}, batch_size=4, **options)


@pytest.mark.parametrize(
    "inputs", [X, X.tolist(), np.asfortranarray(X), X.astype(">f8"), pd.DataFrame(X), np.ma.masked_array(X)], ids=type
)
def test_arrays_of_every_kind_are_one_dataset(inputs):
    assert dataset(inputs).info == dataset().info
    assert dataset(inputs).info.dtypes["inputs"] == np.float32


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.ma.masked_greater(X, 1), Y, "'inputs' has masked values; leave their examples out or fill them in"),
        ([np.ma.masked_greater(row, 1) for row in X], Y, "'inputs' has masked values"),
        (X, np.ma.masked_array(Y, np.arange(40) == 5), "'targets' has masked values"),
        (X, Y.astype(str), r"'targets' must be an array of numbers, not <U\d+; number labels by np.unique"),
        (X, pd.Series(list("ab") * 20).astype("category"), "'targets' must be an array of numbers, not object; number"),
        (X, pd.array([*Y[1:], None], dtype="Int64"), "'targets' has values that are not finite, first in example 39"),
        (X + 1j, Y, "'inputs' must be an array of numbers, not complex128"),
        ([[1, 2], [3]] * 20, Y, "'inputs' must be an array of numbers, of one shape .*; data.pad_sequences"),
        (np.zeros((40, 0)), Y, r"'inputs' must be an array \[N, ...\] of numbers, not of shape \[40, 0\]"),
        (np.float64(3), Y, r"'inputs' must be an array \[N, ...\] of numbers, not of shape \[\]"),
        (np.full((40, 1), 2**40, np.uint64), Y, r"'inputs': expected uint32 \(0 to 4294967295\), got 1099511627776 in"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        dataset(inputs, targets)


def test_the_dataset_does_not_change_with_the_array_that_it_was_made_from(tmp_path):
    array = X.astype(np.float32)
    made = dataset(array, source="stream", validation=0, test=0)
    array[:] = 0
    np.testing.assert_allclose(np.sort(made.train.all_examples.read(np.arange(40))["inputs"]), np.sort(X), rtol=1e-6)
    # What is memory-mapped may be too large for a copy.
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(as_array(mapped[:30], "inputs"), mapped)


class TestClasses:
    @pytest.mark.parametrize(
        "targets", [np.arange(40) * 5_000_000, np.where(np.arange(40) == 7, 200_000_000, Y), 150 + np.arange(40) % 20]
    )
    def test_integers_that_look_like_values_or_identifiers_are_refused(self, targets):
        with pytest.raises(DataError, match=r"'targets' are integers up to \d+, and as classes most .*make them float"):
            dataset(targets=targets)
        assert dataset(targets=targets.astype(float)).info.num_classes is None

    def test_many_classes_are_allowed_where_they_are_many_or_announced(self):
        assert dataset(np.zeros((600, 1)), np.arange(600) % 200).info.num_classes == 200
        assert dataset(targets=150 + Y, num_classes=np.int64(152)).info.num_classes == 152

    def test_bools_are_two_classes(self):
        info = dataset(targets=Y == 1).info
        assert (info.num_classes, info.dtypes["targets"]) == (2, np.int32)

    @pytest.mark.parametrize("count", [2.0, "2", 0])
    def test_their_number_is_an_integer(self, count):
        with pytest.raises(DataError, match=r"num_classes: expected an integer of at least 1, got"):
            dataset(num_classes=count)


class TestNames:
    @pytest.mark.parametrize(
        "names", [["cat", "dog"], np.array(["cat", "dog"]), pd.Index(["cat", "dog"]), {"cat": 0, "dog": 1}.keys()]
    )
    def test_of_other_libraries_become_str(self, names):
        assert dataset(class_names=names).info.class_names == ("cat", "dog")
        assert {type(name) for name in as_names(names, "class_names")} == {str}

    def test_integers_are_names(self):
        assert dataset(class_names=np.array([3, 7])).info.class_names == ("3", "7")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("cd", "class_names: expected several names, as a list or tuple, got 'cd'"),
            (2, "class_names: expected several names, as a list or tuple, got 2"),
            (("cat", "cat"), "class_names: there are two of the name 'cat'"),
            (("cat", " "), r"class_names: expected a text or an integer, got ' ' \(str\)"),
            (("cat", float("nan")), r"class_names: expected a text or an integer, got nan \(float\)"),
        ],
    )
    def test_others_are_refused(self, names, message):
        with pytest.raises(DataError, match=message):
            dataset(class_names=names)

    def test_of_columns_tell_datasets_apart(self):
        assert dataset(feature_names=pd.Index(list("abc"))).info != dataset(feature_names=list("abd")).info


class TestResolution:
    times = 1_700_000_000 + np.arange(40)

    @pytest.mark.parametrize("times", [times, times.astype(float)], ids=["int64", "float64"])
    def test_values_that_float32_would_merge_are_refused(self, times):
        problem = r"1700000000 to 1700000039 are too close for float32 \(7 digits\); subtract the mean"
        with pytest.raises(DataError, match=f"'inputs', column 1: {problem}"):
            dataset(np.column_stack([X[:, 0], times]) if times.dtype == float else np.column_stack([Y, times]))
        with pytest.raises(DataError, match=f"the series: {problem}"):
            data.rolling_windows(times, 2, 1)
        assert dataset(times[:, None] - times.min()).info.num_examples

    def test_regression_targets_too(self):
        with pytest.raises(DataError, match="'targets': .* are too close for float32"):
            dataset(targets=self.times.astype(float))
        with pytest.raises(DataError, match="sequences: .* are too close for float32"):
            data.pad_sequences([self.times[:3].astype(float), self.times[3:].astype(float)])

    def test_constants_and_exact_values_are_not_meant(self):
        columns = [np.full(40, 0.1), 0.1 + 1e-17 * Y, 1e6 + 0.5 * Y, 1.7e9 + 86_400 * np.arange(40)]
        assert dataset(np.column_stack(columns)).info.constant_features == (0, 1)
        assert dataset(self.times[:, None] % 2**31, vocabulary_size=2**31 - 1).info.vocabulary_size

    def test_tokens_do_not_wrap(self):
        with pytest.raises(DataError, match=r"tokens: expected int32 .* got 1099511627776 in step 1"):
            data.token_windows(np.array([1, 2**40]), 1)
