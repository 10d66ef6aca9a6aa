"""Figures of agents: returns over seeds with their statistics (Agarwal et al., 2021), and single episodes."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from foldax.errors import ConfigError
from foldax.evaluation.agents import CONFIDENCE, Interval, bootstrap_interval, interquartile_mean, performance_profile
from foldax.plots.style import (
    CURVE_COLORS,
    Figure,
    StepsAfter,
    grid_and_legend,
    label_steps,
    legend_entry,
    new_figure,
    single_axis,
)

STYLES = ("-", "--", "-.", ":")  # they distinguish curves in grey too
CURVE_POINTS = 200
MAX_CURVES = 8  # observations with more components are shown as an image

REFERENCE: dict[str, Any] = {"color": "0.5", "lw": 1, "ls": (0, (1, 2))}

History = Sequence[Mapping[str, Any]]


def returns_by_seed(
    agents: Mapping[str, Sequence[History]],
    *,
    metric: str = "return",
    split: str = "train",
    environment_steps: StepsAfter | Mapping[str, StepsAfter] | None = None,
    title: str = "",
    reference: float | None = None,
    width: float = 5.6,
    height: float = 3.8,
    **options: Any,
) -> Figure:
    """Draws learning curves: the interquartile mean over seeds with its bootstrap interval, and every seed thinly.

    Args:
      agents: for each agent by name, the histories of its runs (`Result.history`), one per seed. Runs are interpolated
        between their logs; a curve covers the steps that all runs have in common. One seed has no interval.
      metric: which metric of the logs to draw.
      split: "train", "validation" or "test".
      environment_steps: converts updates to environment steps, as `config.environment_steps_after` does; by agent where
        they differ. None: the axis shows updates.
      title: of the figure.
      reference: a return to compare with, shown as a line.
      width: in inches.
      height: in inches.
      **options: of `evaluation.agents.bootstrap_interval`.

    Raises:
      ConfigError: there is no agent, a run lacks the metric, runs have no steps in common, or a value is not finite.

    >>> history = [{"step": 1, "split": "train", "return": 0.0}, {"step": 2, "split": "train", "return": 5.0}]
    >>> returns_by_seed({"DQN": [history, history]}, resamples=10).axes[0].get_ylabel()
    'return'
    """
    figure, axis = single_axis(width=width, height=height)
    if not agents:
        raise ConfigError("agents: there is none to draw")
    if reference is not None:
        axis.axhline(reference, **REFERENCE, label=f"reference: {reference:g}")
    for (name, histories), color, style in zip(agents.items(), cycle(CURVE_COLORS), cycle(STYLES)):
        after = environment_steps.get(name) if isinstance(environment_steps, Mapping) else environment_steps
        curves = [_curve(history, metric, split, after, f"{name}, run {i}") for i, history in enumerate(histories)]
        steps, values = _interpolate(curves, name)
        # Every seed thinly, then the interval and the interquartile mean on top.
        for value in values:
            axis.plot(steps, value, color=color, lw=0.5, alpha=0.3)
        mean = interquartile_mean(values.T[:, :, None])
        if len(values) > 1:
            _, low, high = bootstrap_interval(values.T[:, :, None], **options)
            axis.fill_between(steps, low, high, color=color, alpha=0.22, lw=0)
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        axis.plot(steps, mean, color=color, lw=1.8, ls=style, label=f"{name} ({seeds})")
    label_steps(axis, environment_steps is not None)
    axis.set(ylabel=metric.replace("_", " "), title=title)
    handles = axis.get_legend_handles_labels()[0]
    if any(len(histories) > 1 for histories in agents.values()):
        handles += [legend_entry("interquartile mean", lw=1.8), legend_entry(_interval_name(options), band=True)]
        handles.append(legend_entry("each seed", lw=0.5))
    grid_and_legend(axis, handles=handles, fontsize=8)
    return figure


def performance_profiles(
    agents: Mapping[str, ArrayLike],
    thresholds: ArrayLike | None = None,
    *,
    label: str = "return",
    title: str = "",
    width: float = 5.0,
    height: float = 3.6,
    **options: Any,
) -> Figure:
    """Draws the fraction of runs above every threshold with pointwise bootstrap intervals: higher is better.

    Args:
      agents: scores `[seeds, tasks]` or `[seeds]` by name.
      thresholds: `[K]`; None: 200 from the lowest score to the highest.
      label: name of the score.
      title: of the figure.
      width: in inches.
      height: in inches.
      **options: of `evaluation.agents.performance_profile`.

    Raises:
      ConfigError: see `evaluation.agents.performance_profile`.

    >>> performance_profiles({"DQN": [1.0, 2.0, 3.0]}, resamples=10).axes[0].get_ylabel()
    'fraction of runs above τ'
    """
    if not agents:
        raise ConfigError("agents: there is none to draw")
    if thresholds is None:
        values = np.concatenate([np.ravel(np.asarray(scores, np.float64)) for scores in agents.values()])
        lowest, highest = np.nanmin(values), np.nanmax(values)
        # A little beyond both ends, where all curves are 1 and 0.
        margin = 0.03 * (highest - lowest) or 1.0
        thresholds = np.linspace(lowest - margin, highest + margin, CURVE_POINTS)
    figure, axis = single_axis(width=width, height=height)
    for (name, scores), color, style in zip(agents.items(), cycle(CURVE_COLORS), cycle(STYLES)):
        # Equal thresholds for all agents, so that their curves compare.
        fraction, low, high = performance_profile(scores, thresholds, **options)
        axis.fill_between(thresholds, low, high, color=color, alpha=0.2, lw=0)
        axis.plot(thresholds, fraction, color=color, lw=1.6, ls=style, label=name)
    axis.set(xlabel=f"{label} τ", ylabel="fraction of runs above τ", ylim=(-0.02, 1.02), title=title)
    handles = [*axis.get_legend_handles_labels()[0], legend_entry(f"{_interval_name(options)} at each τ", band=True)]
    grid_and_legend(axis, handles=handles, fontsize=8)
    return figure


def interval_bars(
    intervals: Mapping[str, Mapping[str, Interval]] | Mapping[str, Interval],
    *,
    label: str = "interquartile mean",
    title: str = "",
    reference: float | None = None,
    width: float = 4.0,
) -> Figure:
    """Draws intervals as bars with their estimates as ticks: a row for each name, side by side for each group.

    Args:
      intervals: of `evaluation.agents.bootstrap_interval` by name; or by group (a task, a metric) and name.
      label: of the axis, where there are no groups.
      title: of the figure.
      reference: a value to compare with, shown as a line; 0.5 for probabilities of improvement.
      width: of a group, in inches, without the names.

    Raises:
      ConfigError: there is nothing to draw.

    >>> from foldax.evaluation.agents import Interval
    >>> interval_bars({"DQN": Interval(1.0, 0.5, 1.5)}).axes[0].get_xlabel()
    'interquartile mean'
    """
    # Intervals without groups are one group.
    groups: dict[str, Any] = dict(intervals)
    if not any(isinstance(value, Mapping) for value in groups.values()):
        groups = {label: groups}
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not names:
        raise ConfigError("intervals: there is none to draw")
    name_width = 0.09 * max(map(len, names)) / len(groups)
    figure, axes = new_figure(columns=len(groups), width=width + name_width, height=1.2 + 0.34 * len(names))
    for axis, (group, members) in zip(axes.flat, groups.items()):
        axis.use_sticky_edges = False  # or the bars would touch the frame
        if reference is not None:
            axis.axvline(reference, **REFERENCE)
        # Rows keep their place in every group, also where a group lacks a name.
        for row, name in enumerate(names):
            if name not in members:
                continue
            estimate, low, high = map(float, members[name])
            axis.barh(row, high - low, left=low, height=0.6, color=CURVE_COLORS[row % len(CURVE_COLORS)], alpha=0.6)
            axis.plot([estimate, estimate], [row - 0.38, row + 0.38], color="black", lw=2)
        axis.set(xlabel=group, ylim=(len(names) - 0.4, -0.6))
        axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle(title, fontsize=11)
    handles = [
        legend_entry("confidence interval", band=True),
        legend_entry("estimate", ls="", marker="|", ms=10, mew=2),
    ]
    if reference is not None:
        handles.append(legend_entry(f"reference: {reference:g}", lw=1, ls=REFERENCE["ls"]))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def episode_curves(observations: np.ndarray, rewards: np.ndarray, title: str = "") -> Figure:
    """Draws an episode of an environment that has no pictures: observations and rewards over time.

    Args:
      observations: `[T + 1, ...]`, from the first before any step; more than 8 components are shown as an image.
      rewards: `[T]`.
      title: of the figure.

    >>> len(episode_curves(np.zeros((4, 2)), np.ones(3)).axes)
    2
    """
    values = np.asarray(observations, np.float64).reshape(len(observations), -1)
    # Gaps instead of errors where an observation is infinite.
    values = np.where(np.isfinite(values), values, np.nan)
    figure, axes = new_figure(2, width=6.4, height=2.4)
    upper, lower = axes[:, 0]
    upper.margins(x=0.02)
    if values.shape[1] <= MAX_CURVES:
        marker = "." if len(values) == 1 else ""
        for index, (curve, color, style) in enumerate(zip(values.T, cycle(CURVE_COLORS), cycle(STYLES))):
            upper.plot(curve, color=color, lw=1.2, ls=style, label=str(index), marker=marker)
        grid_and_legend(upper, fontsize=8, title="component", loc="center left", bbox_to_anchor=(1.0, 0.5))
        upper.set(ylabel="observation")
    else:
        # Too many curves to distinguish: components become rows of an image.
        image = upper.imshow(values.T, aspect="auto", interpolation="nearest", cmap="cividis")
        figure.colorbar(image, ax=upper, label="value")
        upper.set(ylabel="component of the observation")
    steps, marker = np.arange(1, len(rewards) + 1), "." if len(rewards) == 1 else ""
    lower.plot(steps, np.asarray(rewards, np.float64), color=CURVE_COLORS[1], ds="steps-mid", lw=1.2, marker=marker)
    lower.set(xlabel="step", ylabel="reward", xlim=upper.get_xlim())
    lower.grid(alpha=0.25)
    figure.suptitle(title, fontsize=10)
    return figure


def film_strip(images: np.ndarray, titles: Sequence[str], title: str = "") -> Figure:
    """Draws images side by side, pixel by pixel if the figure is saved at its own resolution.

    Args:
      images: uint8 `[N, H, W, 3]`.
      titles: N titles.
      title: of the figure.

    >>> figure = film_strip(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])
    >>> (figure.get_size_inches() * figure.dpi).round().tolist()  # a gap of 4 between the images, 46 for the titles
    [20.0, 54.0]
    """
    from foldax.plots.theme import ThemedFigure

    count, height, width, _ = images.shape
    gap, title_height, dpi = max(4, width // 30), 46, 100
    # Opaque tiles with a transparent gap between them
    tiles = np.pad(images, [(0, 0)] * 3 + [(0, 1)], constant_values=255)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, 0)])
    image = np.concatenate(tiles, axis=1)[:, :-gap]
    total_width, total_height = image.shape[1], height + title_height
    figure = ThemedFigure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi)
    axis = figure.add_axes((0, 0, 1, height / total_height))
    axis.imshow(image, interpolation="nearest", aspect="auto")
    axis.set_axis_off()
    for index, text in enumerate(titles[:count]):
        center = (index * (width + gap) + width / 2) / total_width
        figure.text(center, (height + 6) / total_height, text, fontsize=9, ha="center", va="bottom")
    figure.text(0.5, 1 - 3 / total_height, title, fontsize=10, ha="center", va="top")
    return figure


def _interval_name(options: Mapping[str, Any]) -> str:
    return f"{options.get('confidence', CONFIDENCE):.0%} interval"


def _curve(
    history: History, metric: str, split: str, after: StepsAfter | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    # Runs log different metrics at different steps.
    points = [(line["step"], line[metric]) for line in history if line["split"] == split and metric in line]
    if not points:
        raise ConfigError(f"{name}: its history has no {metric!r} in the split {split!r}")
    steps, values = zip(*points)
    return np.array([step if after is None else after(step) for step in steps], np.float64), np.array(values, float)


def _interpolate(curves: Sequence[tuple[np.ndarray, np.ndarray]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Interpolates curves at steps `[T]` that all of them cover, `[seeds, T]`."""
    if not curves:
        raise ConfigError(f"{name}: there is no run to draw")
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    # Interpolation must not extrapolate.
    if first > last:
        ends = f"one ends at {last:,.0f}, one begins at {first:,.0f}"
        raise ConfigError(f"{name}: its runs have no steps in common: {ends}")
    # All steps at which any run was logged, within the common range.
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if len(steps) > CURVE_POINTS:
        steps = np.linspace(first, last, CURVE_POINTS)
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])
