"""Figures of probabilistic predictions: intervals, their calibration, and forecasts of series."""

import statistics
from collections.abc import Sequence

import chex
import numpy as np

from foldax.plots.style import COLORS, CYCLE, Figure, grid_and_legend, single_axis

Forecast = tuple[int, np.ndarray, np.ndarray]  # first step, means [H], standard deviations [H]


def prediction_intervals(
    targets: np.ndarray, mean: np.ndarray, std: np.ndarray, probability: float = 0.9, unit: str = ""
) -> Figure:
    """Draws Gaussian predictions with their central intervals, sorted by mean, and the targets inside and outside.

    Args:
      targets: `[N]`.
      mean: predicted means, `[N]`.
      std: predicted standard deviations, `[N]`.
      probability: nominal coverage of the intervals, in (0, 1).
      unit: unit of the targets.

    >>> figure = prediction_intervals(np.array([0.0, 5.0]), np.zeros(2), np.ones(2))
    >>> figure.axes[0].get_title()
    '50.0% of 2 targets inside'
    """
    # Sorted by prediction, the intervals form one readable band.
    order = np.argsort(mean, kind="stable")
    targets, mean, half_width = targets[order], mean[order], interval_half_width(probability) * std[order]
    inside, ranks = np.abs(targets - mean) <= half_width, np.arange(len(mean))
    figure, axis = single_axis(width=7.0, height=3.6)
    axis.fill_between(ranks, mean - half_width, mean + half_width, color=COLORS["train"], alpha=0.2, lw=0)
    axis.plot(ranks, mean, color=COLORS["train"], lw=1.3, label=f"prediction with {probability:.0%} interval")
    axis.plot(ranks[inside], targets[inside], "o", ms=3, color=COLORS["test"], label=f"inside: {inside.sum()}")
    axis.plot(ranks[~inside], targets[~inside], "X", ms=5, color=COLORS["validation"], label=f"outside: {sum(~inside)}")
    title = f"{inside.mean():.1%} of {len(mean)} targets inside"
    axis.set(xlabel="examples, sorted by prediction", ylabel=unit or "target", title=title)
    grid_and_legend(axis, fontsize=8)
    return figure


def calibration_curve(
    predictions: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], independent: int | None = None
) -> Figure:
    """Draws the empirical coverage of central intervals of Gaussian predictions against their nominal coverage.

    Args:
      predictions: by name, targets, means and standard deviations, each `[N]` or `[N, H]`.
      independent: number of targets, if they are independent: a grey band then shows where 90% of the empirical
        coverages of calibrated predictions lie (binomial distribution).

    >>> rng = np.random.default_rng(0)
    >>> calibration_curve({"model": (rng.normal(size=50), np.zeros(50), np.ones(50))}).axes[0].get_xlabel()
    'nominal coverage'
    """
    from scipy import stats

    probabilities = np.linspace(0.02, 0.98, 49)
    figure, axis = single_axis(width=4.2, height=4.8)
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="calibrated")
    # The number of independent targets inside an interval is binomial.
    if independent:
        low, high = (stats.binom.ppf(tail, independent, probabilities) / independent for tail in (0.05, 0.95))
        label = f"90% of calibrated models, {independent} targets"
        axis.fill_between(probabilities, low, high, color="0.6", alpha=0.25, lw=0, label=label)
    for (name, (targets, mean, std)), color in zip(predictions.items(), CYCLE, strict=False):
        coverages = [interval_coverage(targets, mean, std, probability) for probability in probabilities]
        axis.plot(probabilities, coverages, color=color, label=name)
    axis.set(xlabel="nominal coverage", ylabel="empirical coverage", title="calibration", aspect="equal")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def forecast_fans(
    times: np.ndarray,
    values: np.ndarray,
    fans: Sequence[Forecast],
    title: str = "",
    unit: str = "",
    **baselines: np.ndarray | Sequence[np.ndarray],
) -> Figure:
    """Draws a series and Gaussian forecasts of it, each with central intervals of 50% and 90% (a fan chart).

    Args:
      times: times of the steps, `[T]`, numbers or dates.
      values: values of the series, `[T]`.
      fans: for each forecast its first step, and its means and standard deviations `[H]`.
      title: title of the figure.
      unit: unit of the values.
      **baselines: other forecasts by name, for each of `fans` an array `[H]`.

    >>> figure = forecast_fans(np.arange(6), np.zeros(6), [(4, np.zeros(2), np.ones(2))], naive=[np.ones(2)])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['observed', '90% interval', '50% interval', 'forecast', 'start of a forecast', 'naive']
    """
    figure, axis = single_axis(width=9.0, height=3.8)
    axis.plot(times, values, color="black", lw=1, label="observed")
    for number, (start, mean, std) in enumerate(fans):
        steps = times[start : start + len(mean)]
        # The wide interval first, so that the narrow one lies on top.
        for probability, alpha in ((0.9, 0.18), (0.5, 0.3)):
            width = interval_half_width(probability) * std
            # The first fan only, so that the legend has each entry once.
            label = f"{probability:.0%} interval" if not number else None
            axis.fill_between(steps, mean - width, mean + width, color=COLORS["train"], alpha=alpha, lw=0, label=label)
        axis.plot(steps, mean, color=COLORS["train"], lw=1.5, label="forecast" if not number else None)
        axis.axvline(times[start], color="0.5", lw=0.8, ls=":", label=None if number else "start of a forecast")
        for (name, forecasts), color, style in zip(baselines.items(), CYCLE[1:], ("--", "-.", ":")):
            axis.plot(steps, forecasts[number], color=color, lw=1.2, ls=style, label=None if number else name)
    axis.set(title=title, xlabel="time", ylabel=unit)
    grid_and_legend(axis, fontsize=8, ncols=2)
    return figure


def interval_coverage(targets: np.ndarray, mean: np.ndarray, std: np.ndarray, probability: float) -> float:
    """Computes the fraction of targets inside the central intervals of Gaussian predictions.

    Args:
      targets: `[...]`, of any shape.
      mean: predicted means, of the same shape.
      std: predicted standard deviations, of the same shape.
      probability: nominal coverage, in (0, 1).

    >>> interval_coverage(np.array([0.0, 3.0]), np.zeros(2), np.ones(2), 0.9)
    0.5
    """
    chex.assert_equal_shape([targets, mean, std])
    return float(np.mean(np.abs(targets - mean) <= interval_half_width(probability) * std))


def interval_half_width(probability: float) -> float:
    """Computes the half-width of the central interval of a normal distribution, in standard deviations.

    >>> round(interval_half_width(0.95), 3)
    1.96
    """
    return statistics.NormalDist().inv_cdf(0.5 + probability / 2)
