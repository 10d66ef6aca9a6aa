"""Time series: datasets bundled with other packages, and windows in time order for forecasting.

`co2` and `sunspots` need statsmodels, and `ucr` needs aeon: `pip install 'foldax[series]'`. None needs a network.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foldax.data.conversion import as_array, check_resolution
from foldax.data.dataset import Dataset, from_splits
from foldax.data.sequences import pad_sequences
from foldax.data.splits import check_fractions
from foldax.errors import DataError, did_you_mean
from foldax.extras import import_extra

UCR = (
    *("ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "OSULeaf"),
    *("JapaneseVowels", "PickupGestureWiimoteZ"),  # series of different lengths
)


class Series(NamedTuple):
    """A univariate time series.

    Attributes:
      name: its name.
      values: float64 `[T]`.
      times: datetime64 `[T]`, months or years.
      season_length: number of steps in a seasonal cycle.
      unit: unit of the values.
    """

    name: str
    values: np.ndarray
    times: np.ndarray
    season_length: int
    unit: str


def co2() -> Series:
    """Loads the monthly mean CO2 concentration at Mauna Loa, March 1958 to December 2001 (Keeling & Whorf, 2004).

    Averaged from the weekly values of statsmodels. Five months without a measurement, all before May 1964, are
    interpolated linearly.

    Raises:
      DataError: statsmodels is not installed.
    """
    # The mean of every month; months without a measurement are interpolated.
    weekly = import_extra("statsmodels.datasets.co2", "series", DataError).load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    return Series("co2", monthly.to_numpy(), monthly.index.to_numpy().astype("datetime64[M]"), 12, "ppm")


def sunspots() -> Series:
    """Loads the yearly mean sunspot number, 1700 to 2008 (National Geophysical Data Center), from statsmodels.

    Raises:
      DataError: statsmodels is not installed.
    """
    yearly = import_extra("statsmodels.datasets.sunspots", "series", DataError).load_pandas().data
    # NumPy counts years from 1970.
    times = (yearly["YEAR"].to_numpy().astype(int) - 1970).astype("datetime64[Y]")
    return Series("sunspots", yearly["SUNACTIVITY"].to_numpy(), times, 11, "sunspots")


def ucr(name: str, *, batch_size: int, **options: Any) -> Dataset:
    """Loads a time series classification dataset of the UCR or UEA archive (Dau et al., 2019; Bagnall et al., 2018).

    The datasets bundled with aeon: ACSF1, ArrowHead, GunPoint, ItalyPowerDemand and OSULeaf have one channel,
    BasicMotions has six; JapaneseVowels (twelve channels) and PickupGestureWiimoteZ hold series of different lengths,
    which are padded with zeros and have a "mask" int32 `[N, T]`. "inputs" are float32 `[N, T, C]`, as published;
    "targets" are classes. The published test split is kept; validation examples are taken from "train".

    Args:
      name: name of the dataset.
      batch_size: series per training batch.
      **options: those of `load`: validation, test (0 for none), train_examples, split_seed, and so on.

    Returns:
      The dataset.

    Raises:
      DataError: there is no such dataset, aeon is not installed, or an option is out of range.
    """
    if name not in UCR:
        raise DataError(f"there is no dataset {name!r}{did_you_mean(name, UCR)}; aeon bundles {', '.join(UCR)}")
    datasets = import_extra("aeon.datasets", "series", DataError)
    folder = Path(datasets.__file__).parent / "data" / name
    # 1. Read the published splits.
    parts = {
        split: datasets.load_from_ts_file(str(folder / f"{name}_{split.upper()}.ts"), return_meta_data=True)
        for split in ("train", "test")
    }
    classes = tuple(parts["train"][2]["class_values"])
    # aeon stores series as [C, T].
    series = {split: [np.asarray(one, np.float32).T for one in part[0]] for split, part in parts.items()}
    # 2. Pad all series to one length; only series of different lengths keep their mask.
    lengths = {len(one) for part in series.values() for one in part}
    splits = {split: pad_sequences(part, max(lengths)) for split, part in series.items()}
    for split, arrays in splits.items():
        arrays["targets"] = np.array([classes.index(label) for label in parts[split][1]], np.int32)
        if len(lengths) == 1:
            del arrays["mask"]
    return from_splits(splits, name=name, class_names=classes, batch_size=batch_size, **options)


def rolling_origins(end: int, context: int, horizon: int, *, start: int = 0, stride: int = 1) -> np.ndarray:
    """Lists the forecast origins of a rolling-origin evaluation (Tashman, 2000), in time order.

    Args:
      end: end of the steps that may be forecast (exclusive): the length of the series, or the end of a split.
      context: number of input steps; every origin has at least as many before it.
      horizon: number of steps to forecast; every origin has at least as many before `end`.
      start: first step that may be forecast.
      stride: steps from one origin to the next.

    Returns:
      int64 `[N]`, the first forecast step of each window.

    Raises:
      DataError: an argument is out of range, or there is no origin.

    >>> rolling_origins(10, context=4, horizon=2, stride=2).tolist()
    [4, 6, 8]
    """
    for name, value in (("context", context), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise DataError(f"{name}={value} is too small; it must be at least 1")
    # The first origin has `context` steps before it and is not before `start`.
    first = max(start, context)
    if first + horizon > end:
        problem = f"leave no origin in steps {start} to {end - 1}: from step {first} on there are {max(0, end - first)}"
        raise DataError(f"context={context} and horizon={horizon} {problem}; decrease them, or enlarge the split")
    return np.arange(first, end - horizon + 1, stride)


def rolling_windows(
    series: ArrayLike,
    context: int,
    horizon: int,
    *,
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    target_channel: int = 0,
) -> dict[str, np.ndarray]:
    """Cuts a series into pairs of past inputs and future targets, one per forecast origin, in time order.

    All targets lie in steps `start` to `end - 1`; inputs may reach back before `start`.

    Args:
      series: `[T]` or `[T, C]`.
      context: number of input steps.
      horizon: number of target steps.
      start: first step that may be a target.
      end: end of the steps that may be targets (exclusive); by default the end of the series.
      stride: steps from one origin to the next.
      target_channel: channel to forecast, 0 to C - 1.

    Returns:
      "inputs" float32 `[N, context, C]` and "targets" float32 `[N, horizon]`, at the `rolling_origins`.

    Raises:
      DataError: there is no window, or the series is not an array of finite numbers.

    >>> windows = rolling_windows([0, 1, 2, 3, 4], context=2, horizon=1)
    >>> windows["inputs"][..., 0].tolist(), windows["targets"].tolist()
    ([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]], [[2.0], [3.0], [4.0]])
    """
    values = _as_channels(series)
    end = len(values) if end is None else end
    if not 0 <= start <= end <= len(values):
        raise DataError(f"start={start} and end={end} must be in order and at most the {len(values)} steps there are")
    if not 0 <= target_channel < values.shape[1]:
        raise DataError(f"target_channel={target_channel} must be 0 to {values.shape[1] - 1}, a channel of the series")
    origins = rolling_origins(end, context, horizon, start=start, stride=stride)
    # The `context` steps before each origin; targets are the origin and the steps after it.
    inputs = values[origins[:, None] + np.arange(-context, 0)]
    return {"inputs": inputs, "targets": values[origins[:, None] + np.arange(horizon), target_channel]}


def forecast_splits(
    series: ArrayLike,
    context: int,
    horizon: int,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    stride: int = 1,
    target_channel: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Splits a series in time order and cuts each part into windows, ready for `from_splits`.

    The last steps are for testing, those before them for validation. No step is a target in two splits, and no window
    holds a target of a later split; inputs may reach back into earlier splits.

    Args:
      series: `[T]` or `[T, C]`.
      context: number of input steps.
      horizon: number of target steps.
      validation: fraction of all steps for validation; 0 for none.
      test: fraction of all steps for testing; 0 for none.
      stride: steps between origins of validation and test; training uses every origin.
      target_channel: channel to forecast, 0 to C - 1.

    Returns:
      "inputs" float32 `[N, context, C]` and "targets" float32 `[N, horizon]` of "train", "validation" and "test".

    Raises:
      DataError: a split is too short for one window, or as for `rolling_windows`.

    >>> splits = forecast_splits(np.arange(30.0), context=3, horizon=1)
    >>> {name: len(arrays["targets"]) for name, arrays in splits.items()}
    {'train': 18, 'validation': 3, 'test': 6}
    """
    check_fractions(validation, test)
    values = _as_channels(series)
    splits, start = {}, 0
    for split, end in split_ends(len(values), validation, test).items():
        # A split starts where the one before ends; only its inputs reach back.
        options = dict(stride=1 if split == "train" else stride, target_channel=target_channel)
        try:
            splits[split] = rolling_windows(values, context, horizon, start=start, end=end, **options)
        except DataError as error:
            raise DataError(f"split {split!r}: {error}") from error
        start = end
    return splits


def split_ends(length: int, validation: float, test: float) -> dict[str, int]:
    """Computes where "train", "validation" and "test" end (exclusive) in a series split in time order.

    Splits whose fraction is 0 are left out.

    >>> split_ends(30, validation=0.1, test=0.2)
    {'train': 21, 'validation': 24, 'test': 30}
    """
    sizes = {"validation": round(length * validation), "test": round(length * test)}
    # Rounding affects the training split only, which has all remaining steps.
    ends = {"train": length - sum(sizes.values())}
    for split, fraction in (("validation", validation), ("test", test)):
        if fraction:
            ends[split] = max(ends.values()) + sizes[split]
    return ends


def _as_channels(series: ArrayLike) -> np.ndarray:
    """Converts a series to float32 `[T, C]`; raises a DataError unless all values are finite."""
    values = as_array(series, "the series", unit="step")
    if values.ndim not in (1, 2):
        raise DataError(f"the series must be numbers [T] or [T, C], not of shape {list(values.shape)}")
    check_resolution(np.asarray(series), "the series")
    values = values.astype(np.float32, copy=False)
    return values[:, None] if values.ndim == 1 else values
