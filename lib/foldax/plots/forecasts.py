"""Figures of predictions that say how sure they are: intervals, whether these hold what they say, forecasts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldax.plots.style import COLORS, CYCLE, new_figure


def intervals(targets: np.ndarray, mean: np.ndarray, std: np.ndarray, probability: float = 0.9, unit: str = "") -> Any:
    """Draws normal predictions with their central intervals, sorted by mean, and what was true.

    Args:
      targets: `[N]`.
      mean: of the predictions, `[N]`.
      std: their standard deviations, `[N]`.
      probability: of the intervals, above 0 and below 1.
      unit: of the targets.
    """
    order = np.argsort(mean, kind="stable")
    targets, mean, reach = targets[order], mean[order], reach_of(probability) * std[order]
    inside, places = np.abs(targets - mean) <= reach, np.arange(len(mean))
    figure, axes = new_figure(width=7.0, height=3.6)
    axis = axes[0, 0]
    axis.fill_between(places, mean - reach, mean + reach, color=COLORS["train"], alpha=0.2, lw=0)
    axis.plot(places, mean, color=COLORS["train"], lw=1.3, label=f"prediction with {probability:.0%} interval")
    axis.plot(places[inside], targets[inside], "o", ms=3, color=COLORS["test"], label=f"inside: {inside.sum()}")
    axis.plot(
        places[~inside], targets[~inside], "X", ms=5, color=COLORS["validation"], label=f"outside: {sum(~inside)}"
    )
    axis.set(xlabel="examples, sorted by prediction", ylabel=unit, title=f"{inside.mean():.1%} of {len(mean)} inside")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    return figure


def calibration(
    predictions: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], independent: int | None = None
) -> Any:
    """Draws how many targets lie inside central intervals of normal predictions, against how many should.

    Args:
      predictions: targets, means and standard deviations, each `[N]` or `[N, H]`, by name.
      independent: number of targets, where they do not depend on each other: a grey band shows where 9 of 10 shares
        lie if all is well (binomial).
    """
    from scipy import stats

    probabilities = np.linspace(0.02, 0.98, 49)
    figure, axes = new_figure(width=4.2, height=4.0)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    if independent:
        low, high = (stats.binom.ppf(tail, independent, probabilities) / independent for tail in (0.05, 0.95))
        axis.fill_between(
            probabilities, low, high, color="0.6", alpha=0.25, lw=0, label=f"chance, {independent} targets"
        )
    for (name, (targets, mean, std)), color in zip(predictions.items(), CYCLE, strict=False):
        shares = [coverage(targets, mean, std, probability) for probability in probabilities]
        axis.plot(probabilities, shares, color=color, label=name)
    axis.set(
        xlabel="probability of the interval", ylabel="share of targets inside", title="Calibration", aspect="equal"
    )
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    return figure


def forecast_fans(
    times: np.ndarray,
    values: np.ndarray,
    fans: Sequence[tuple[int, np.ndarray, np.ndarray]],
    title: str = "",
    unit: str = "",
    **lines: Any,
) -> Any:
    """Draws a series and normal forecasts of it, each with its central intervals of 50% and 90%.

    Args:
      times: of the steps, `[T]`, numbers or dates.
      values: of the series, `[T]`.
      fans: for each forecast its first step, and its means and standard deviations `[H]`.
      title: of the figure.
      unit: of the values.
      **lines: other forecasts to compare with, by name: for each of `fans` an array `[H]`.
    """
    figure, axes = new_figure(width=9.0, height=3.8)
    axis = axes[0, 0]
    axis.plot(times, values, color="black", lw=1, label="observed")
    for number, (start, mean, std) in enumerate(fans):
        steps = times[start : start + len(mean)]
        for probability, alpha in ((0.9, 0.18), (0.5, 0.3)):
            reach = reach_of(probability) * std
            label = f"{probability:.0%} interval" if not number else None
            axis.fill_between(steps, mean - reach, mean + reach, color=COLORS["train"], alpha=alpha, lw=0, label=label)
        axis.plot(steps, mean, color=COLORS["train"], lw=1.5, label="forecast" if not number else None)
        axis.axvline(times[start], color="0.7", lw=0.6, ls=":")
        for (name, forecasts), color, style in zip(lines.items(), CYCLE[1:], ("--", "-.", ":")):
            axis.plot(steps, forecasts[number], color=color, lw=1.2, ls=style, label=None if number else name)
    axis.set(title=title, ylabel=unit)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    axis.grid(alpha=0.25)
    return figure


def coverage(targets: np.ndarray, mean: np.ndarray, std: np.ndarray, probability: float) -> float:
    """Returns the share of targets inside the central intervals of normal predictions; all of one shape."""
    return float(np.mean(np.abs(targets - mean) <= reach_of(probability) * std))


def reach_of(probability: float) -> float:
    """Returns how many standard deviations to each side a normal distribution's central interval reaches."""
    return statistics.NormalDist().inv_cdf(0.5 + probability / 2)
