"""Bundled time series, and windows without look-ahead."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import data
from foldax.errors import DataError

many = settings(max_examples=100, deadline=None)


def test_windows_of_small_examples():
    windows = data.rolling_windows(np.arange(7), 3, 2)
    assert windows["inputs"].dtype == windows["targets"].dtype == np.float32
    assert windows["inputs"][:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert windows["targets"].tolist() == [[3, 4], [4, 5], [5, 6]]
    two = np.stack([np.arange(7), 10 * np.arange(7)], axis=1)
    windows = data.rolling_windows(two, 1, 1, start=4, end=6, target_channel=1)
    assert windows["inputs"].tolist() == [[[3, 30]], [[4, 40]]]
    assert windows["targets"].tolist() == [[40], [50]]


@many
@given(
    length=st.integers(40, 90),
    context=st.integers(1, 12),
    horizon=st.integers(1, 4),
    stride=st.integers(1, 5),
    validation=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_windows_hold_no_target_of_a_later_split(length, context, horizon, stride, validation, test):
    series = np.arange(length, dtype=float)
    splits = data.forecast_splits(series, context, horizon, validation=validation, test=test, stride=stride)
    assert list(splits) == ["train", *(["validation"] if validation else []), *(["test"] if test else [])]
    before = -1  # the last target of earlier splits
    for split, arrays in splits.items():
        inputs, targets = arrays["inputs"][:, :, 0], arrays["targets"]
        assert inputs.shape == (len(targets), context)
        assert targets.shape[1] == horizon
        steps = np.concatenate([inputs, targets], axis=1)
        assert np.all(np.diff(steps, axis=1) == 1)
        assert np.all(np.diff(targets[:, 0]) == (1 if split == "train" else stride))
        assert targets.min() > before
        before = targets.max()
    if test and stride == 1:
        assert before == length - 1
        assert len(np.unique(splits["test"]["targets"])) == round(length * test)


@many
@given(end=st.integers(5, 60), context=st.integers(1, 4), start=st.integers(0, 3), stride=st.integers(1, 9))
def test_origins_are_the_first_targets_of_the_windows(end, context, start, stride):
    series = np.arange(60)
    windows = data.rolling_windows(series, context, 1, start=start, end=end, stride=stride)
    origins = data.rolling_origins(end, context, 1, start=start, stride=stride)
    assert windows["targets"][:, 0].tolist() == origins.tolist()


def test_the_splits_make_a_dataset():
    splits = data.forecast_splits(np.sin(np.arange(100.0)), 8, 2)
    info = data.from_splits(splits, batch_size=4, name="sine").info
    assert info.num_examples == {"train": 61, "validation": 9, "test": 19}
    assert info.shapes == {"inputs": (8, 1), "targets": (2,)}
    assert info.target_mean.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.arange(9.0), 0, 1), {}, "context=0 is too small"),
        ((np.arange(9.0), 1, 0), {}, "horizon=0 is too small"),
        ((np.arange(9.0), 1, 1), {"stride": 0}, "stride=0 is too small"),
        (
            (np.arange(9.0), 8, 2),
            {},
            "context=8 and horizon=2 leave no origin in steps 0 to 8: from step 8 on there are 1",
        ),
        ((np.arange(9.0), 1, 1), {"end": 10}, "end=10 must be in order and at most the 9 steps"),
        ((np.arange(9.0), 1, 1), {"start": 5, "end": 4}, "start=5 and end=4"),
        ((np.arange(9.0), 1, 1), {"target_channel": 1}, "target_channel=1 must be 0 to 0, a channel of the series"),
        ((np.array([0, 1, np.nan, 3]), 1, 1), {}, "not finite, first in step 2"),
        ((np.ones((2, 2, 2)), 1, 1), {}, r"numbers \[T\] or \[T, C\], not of shape \[2, 2, 2\]"),
        (([], 1, 1), {}, "leave no origin"),
        ((np.array([1.0, 1e300]), 1, 1), {}, "not finite, first in step 1"),
        ((["a"], 1, 1), {}, "must be an array of numbers"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(arguments, options, message):
    with pytest.raises(DataError, match=message):
        data.rolling_windows(*arguments, **options)


def test_a_split_too_short_for_a_window_is_named():
    with pytest.raises(
        DataError, match="split 'validation': context=2 and horizon=5 leave no origin in steps 14 to 15"
    ):
        data.forecast_splits(np.arange(20.0), 2, 5)
    with pytest.raises(DataError, match="leave nothing to train on"):
        data.forecast_splits(np.arange(20.0), 2, 5, validation=0.5, test=0.5)


def test_co2():
    pytest.importorskip("statsmodels")
    series = data.co2()
    assert (series.season_length, series.unit) == (12, "ppm")
    assert len(series.values) == len(series.times) == 526
    assert (str(series.times[0]), str(series.times[-1])) == ("1958-03", "2001-12")
    assert np.all(np.diff(series.times).astype(int) == 1)
    np.testing.assert_allclose(series.values[:4], [316.1, 317.2, 317.4333, (317.4333 + 315.625) / 2], rtol=1e-6)
    np.testing.assert_allclose(series.values[-1], 371.02)
    seasonal = series.values[12:] - series.values[:-12]
    assert 0 < seasonal.mean() < 2  # grows by about 1.3 ppm a year


def test_sunspots():
    pytest.importorskip("statsmodels")
    series = data.sunspots()
    assert len(series.values) == len(series.times) == 309
    assert (str(series.times[0]), str(series.times[-1])) == ("1700", "2008")
    assert series.values[:3].tolist() == [5, 11, 16]
    assert series.values[-1] == 2.9
    assert series.season_length == 11


class TestUCR:
    @pytest.fixture(autouse=True)
    def _aeon(self):
        pytest.importorskip("aeon")

    # Sizes, lengths, channels and classes as www.timeseriesclassification.com lists them.
    @pytest.mark.parametrize(
        ("name", "train", "test", "shape", "classes"),
        [
            ("ArrowHead", 36, 175, (251, 1), 3),
            ("BasicMotions", 40, 40, (100, 6), 4),
            ("GunPoint", 50, 150, (150, 1), 2),
            ("ItalyPowerDemand", 67, 1029, (24, 1), 2),
            ("JapaneseVowels", 270, 370, (29, 12), 9),
            ("PickupGestureWiimoteZ", 50, 50, (361, 1), 10),
        ],
    )
    def test_splits_are_the_published_ones(self, name, train, test, shape, classes):
        info = data.ucr(name, batch_size=8, validation=0).info
        assert info.num_examples == {"train": train, "test": test}
        assert info.shapes["inputs"] == shape
        assert info.dtypes["inputs"] == np.float32
        assert info.num_classes == len(info.class_names) == classes
        assert ("mask" in info.shapes) == (name in ("JapaneseVowels", "PickupGestureWiimoteZ"))

    def test_values_equal_those_of_aeon(self):
        from aeon.datasets import load_italy_power_demand

        dataset = data.ucr("ItalyPowerDemand", batch_size=8, validation=0)
        inputs, labels = load_italy_power_demand(split="train")
        train = dataset.train.examples()
        np.testing.assert_allclose(train["inputs"], inputs.transpose(0, 2, 1), rtol=1e-6)
        names = [dataset.info.class_names[target] for target in train["targets"]]
        assert names == labels.tolist()

    def test_padding_is_masked(self):
        train = data.ucr("JapaneseVowels", batch_size=8, validation=0).train.examples()
        mask = np.asarray(train["mask"])
        assert mask.sum(axis=1).min() == 7
        assert mask.sum(axis=1).max() == 26
        assert not np.asarray(train["inputs"])[mask == 0].any()

    def test_validation_is_drawn_from_train(self):
        info = data.ucr("GunPoint", batch_size=8, validation=0.2).info
        assert info.num_examples == {"train": 40, "validation": 10, "test": 150}
        assert info.class_counts == (19, 21)


def test_unknown_names_and_missing_packages_raise_helpful_errors(monkeypatch):
    with pytest.raises(DataError, match=r"no dataset 'Gunpoint'; did you mean 'GunPoint'\?; aeon bundles ACSF1"):
        data.ucr("Gunpoint", batch_size=8)
    for module in ("aeon.datasets", "statsmodels.datasets.co2", "statsmodels.datasets.sunspots"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (data.co2, data.sunspots, lambda: data.ucr("GunPoint", batch_size=8)):
        with pytest.raises(DataError, match=r"is not installed: pip install 'foldax\[series\]'"):
            call()
