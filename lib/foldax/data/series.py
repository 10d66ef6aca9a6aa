"""Time series: some that packages bring along, and windows of them in the order of time.

`co2` and `sunspots` need statsmodels and `ucr` needs aeon: `pip install 'foldax[series]'`. None needs a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax.data.dataset import Dataset, from_splits
from foldax.data.extras import optional
from foldax.data.sequences import pad
from foldax.data.splits import check_fractions
from foldax.errors import DataError, nearest

UCR = (
    *("ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "OSULeaf"),
    *("JapaneseVowels", "PickupGestureWiimoteZ"),  # of varying length
)


class Series(NamedTuple):
    """One time series.

    Attributes:
      name: its name.
      values: float64 `[T]`.
      times: datetime64 `[T]`, of months or of years.
      season: steps after which it about repeats.
      unit: of the values.
    """

    name: str
    values: np.ndarray
    times: np.ndarray
    season: int
    unit: str


def co2() -> Series:
    """Returns the monthly means of CO2 at Mauna Loa, March 1958 to December 2001 (Keeling & Whorf, 2004).

    From statsmodels' weekly values. Five months without any, all before May 1964, lie on the line between their
    neighbours.

    Raises:
      DataError: if statsmodels is not installed.
    """
    weekly = optional("statsmodels.datasets.co2", "series").load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    return Series("co2", monthly.to_numpy(), monthly.index.to_numpy().astype("datetime64[M]"), 12, "ppm")


def sunspots() -> Series:
    """Returns the yearly means of sunspot numbers, 1700 to 2008 (National Geophysical Data Center), from statsmodels.

    Raises:
      DataError: if statsmodels is not installed.
    """
    yearly = optional("statsmodels.datasets.sunspots", "series").load_pandas().data
    times = (yearly["YEAR"].to_numpy().astype(int) - 1970).astype("datetime64[Y]")
    return Series("sunspots", yearly["SUNACTIVITY"].to_numpy(), times, 11, "sunspots")


def ucr(name: str, *, batch_size: int, **options: Any) -> Dataset:
    """Loads a dataset of classified time series of the UCR and UEA archives (Dau et al., 2019; Bagnall et al., 2018).

    Those that aeon brings along: ACSF1, ArrowHead, GunPoint, ItalyPowerDemand and OSULeaf have one channel,
    BasicMotions six; JapaneseVowels (twelve channels) and PickupGestureWiimoteZ vary in length, so they are padded with
    zeros and have a "mask" int32 `[N, T]`. "inputs" are float32 `[N, T, C]`, as published; "targets" are classes. The
    published split is kept; what is validated on is drawn from "train".

    Args:
      name: the dataset.
      batch_size: series per training batch.
      **options: those of `load`: validation, test (0 for none), train_examples, split_seed, and so on.

    Raises:
      DataError: if there is no such dataset, aeon is not installed, or the options do not fit.
    """
    if name not in UCR:
        raise DataError(f"there is no dataset {name!r}{nearest(name, UCR)}; aeon brings along {', '.join(UCR)}")
    datasets = optional("aeon.datasets", "series")
    folder = Path(datasets.__file__).parent / "data" / name
    parts = {
        split: datasets.load_from_ts_file(str(folder / f"{name}_{split.upper()}.ts"), return_meta_data=True)
        for split in ("train", "test")
    }
    classes = tuple(parts["train"][2]["class_values"])
    series = {split: [np.asarray(one, np.float32).T for one in part[0]] for split, part in parts.items()}
    lengths = {len(one) for part in series.values() for one in part}
    splits = {split: pad(part, max(lengths)) for split, part in series.items()}
    for split, arrays in splits.items():
        arrays["targets"] = np.array([classes.index(label) for label in parts[split][1]], np.int32)
        if len(lengths) == 1:
            del arrays["mask"]
    return from_splits(splits, name=name, class_names=classes, batch_size=batch_size, **options)


def rolling_origins(end: int, context: int, horizon: int, *, start: int = 0, stride: int = 1) -> np.ndarray:
    """Returns the steps from which to forecast, in the order of time: int64 `[N]`, each the first of its targets.

    Args:
      end: the step after the last one that may be forecast: the length of the series, or where a part of it ends.
      context: steps that are looked back at; no origin has fewer before it.
      horizon: steps to forecast; no origin has fewer from it to `end`.
      start: the first step that may be forecast.
      stride: steps from one origin to the next.

    Raises:
      DataError: if a number is out of range, or there is no origin.
    """
    for name, value in (("context", context), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise DataError(f"{name}={value} is too small; it must be at least 1")
    first = max(start, context)
    if first + horizon > end:
        raise DataError(
            f"context={context} and horizon={horizon} leave no origin in steps {start} to {end - 1}: from step "
            f"{first} on there are {max(0, end - first)}; make them smaller, or the split larger"
        )
    return np.arange(first, end - horizon + 1, stride)


def rolling_windows(
    series: Any, context: int, horizon: int, *, start: int = 0, end: int | None = None, stride: int = 1, target: int = 0
) -> dict[str, np.ndarray]:
    """Cuts a series into what is known at each origin and what comes then, origins in the order of time.

    Every target lies in steps `start` to `end - 1`; inputs may reach back before `start`.

    Args:
      series: `[T]` or `[T, C]`.
      context: steps of the inputs.
      horizon: steps of the targets.
      start: the first step that may be a target.
      end: the step after the last one that may be; by default the series' end.
      stride: steps from one origin to the next.
      target: the channel to forecast.

    Returns:
      "inputs" float32 `[N, context, C]` and "targets" float32 `[N, horizon]`; `rolling_origins` tells their places.

    Raises:
      DataError: if there is no window, or the series is no array of finite numbers.
    """
    values = _values(series)
    end = len(values) if end is None else end
    if not 0 <= start <= end <= len(values):
        raise DataError(f"start={start} and end={end} must be in order and at most the {len(values)} steps there are")
    if not 0 <= target < values.shape[1]:
        raise DataError(f"target={target} is no channel of the series; it must be 0 to {values.shape[1] - 1}")
    origins = rolling_origins(end, context, horizon, start=start, stride=stride)
    inputs = values[origins[:, None] + np.arange(-context, 0)]
    return {"inputs": inputs, "targets": values[origins[:, None] + np.arange(horizon), target]}


def forecast_splits(
    series: Any,
    context: int,
    horizon: int,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    stride: int = 1,
    target: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Splits a series in the order of time and cuts each part into windows: what `from_splits` takes.

    The last steps are tested on, those before them validated on. No step is a target in two splits, and no
    window sees a step that is a target of a later split; but inputs reach back into the splits before.

    Args:
      series: `[T]` or `[T, C]`.
      context: steps of the inputs.
      horizon: steps of the targets.
      validation: fraction of all steps to validate on; 0 for none.
      test: fraction of all steps to test on; 0 for none.
      stride: steps between origins of validation and test; training takes every origin.
      target: the channel to forecast.

    Raises:
      DataError: if a split is too short for one window, or as `rolling_windows`.
    """
    check_fractions(validation, test)
    values = _values(series)
    splits, start = {}, 0
    for split, end in split_ends(len(values), validation, test).items():
        steps = 1 if split == "train" else stride
        try:
            splits[split] = rolling_windows(values, context, horizon, start=start, end=end, stride=steps, target=target)
        except DataError as error:
            raise DataError(f"split {split!r}: {error}") from error
        start = end
    return splits


def split_ends(length: int, validation: float, test: float) -> dict[str, int]:
    """Returns the step after the last one of "train", "validation" and "test", those of fraction 0 left out."""
    sizes = {"validation": round(length * validation), "test": round(length * test)}
    ends = {"train": length - sum(sizes.values())}
    for split, fraction in (("validation", validation), ("test", test)):
        if fraction:
            ends[split] = max(ends.values()) + sizes[split]
    return ends


def _values(series: Any) -> np.ndarray:
    """Returns the values of a series as float32 `[T, C]`."""
    values = np.asarray(series)
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
        raise DataError(f"a series must be numbers [T] or [T, C], not {values.dtype} of shape {list(values.shape)}")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, which is told
        values = values.astype(np.float32)
    values = values[:, None] if values.ndim == 1 else values
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"the series has values that are not finite, first in step {bad[0]}; fill them in, or leave that part out"
        )
    return values
