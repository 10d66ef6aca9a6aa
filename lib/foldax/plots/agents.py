"""Figures of agents: returns over seeds with what is known of them (Agarwal et al., 2021), and what was played."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foldax.errors import ConfigError
from foldax.plots.style import CYCLE, new_figure

if TYPE_CHECKING:
    from foldax.evaluation.agents import Interval

AGENT_COLORS = (*CYCLE, "#E69F00", "#56B4E9", "#5A5A5A", "#8C564B")
STYLES = ("-", "--", "-.", ":")  # so that curves are told apart in grey too
PLACES = 200  # of a curve
FEW = 8  # numbers of an observation that are drawn as curves

History = Sequence[Mapping[str, Any]]


def returns_by_seed(
    agents: Mapping[str, Sequence[History]],
    *,
    metric: str = "return",
    split: str = "train",
    acted: Callable[[int], int] | Mapping[str, Callable[[int], int]] | None = None,
    title: str = "",
    reference: float | None = None,
    width: float = 5.6,
    height: float = 3.8,
    **options: Any,
) -> Any:
    """Draws how agents learned: the interquartile mean over seeds with its bootstrap interval, and each seed thinly.

    Args:
      agents: by name the histories of its runs (`Result.history`), one per seed. Between its logs a run is
        interpolated; curves reach from the last of the first logs to the first of the last ones. One seed has no band.
      metric: what is drawn, of the log's lines that have it.
      split: "train", "validation" or "test".
      acted: gives the environments' steps after as many updates, as `config.acted` does; by agent where they differ.
        None: the axis shows updates.
      title: of the figure.
      reference: a return to compare with, drawn as a line.
      width: in inches.
      height: in inches.
      **options: of `evaluation.agents.interval`.

    Raises:
      ConfigError: there is no agent, a run has no such metric, runs have no steps in common, or a value is not finite.
    """
    from foldax.evaluation.agents import interquartile_mean, interval

    figure, axes = new_figure(width=width, height=height)
    axis = axes[0, 0]
    if not agents:
        raise ConfigError("agents: there is none to draw")
    if reference is not None:
        axis.axhline(reference, color="0.5", lw=1, ls=(0, (1, 2)))
    for number, (name, histories) in enumerate(agents.items()):
        steps_of = acted.get(name) if isinstance(acted, Mapping) else acted
        curves = [_curve(history, metric, split, steps_of, f"{name}, run {i}") for i, history in enumerate(histories)]
        places, values = _together(curves, name)
        color = AGENT_COLORS[number % len(AGENT_COLORS)]
        for value in values:
            axis.plot(places, value, color=color, lw=0.5, alpha=0.3)
        mean = interquartile_mean(values.T[:, :, None])
        if len(values) > 1:
            _, low, high = interval(values.T[:, :, None], **options)
            axis.fill_between(places, low, high, color=color, alpha=0.22, lw=0)
        seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
        style = STYLES[number % len(STYLES)]
        axis.plot(places, mean, color=color, lw=1.8, ls=style, label=f"{name} ({seeds})")
    axis.set(xlabel="updates" if acted is None else "steps of the environment", ylabel=metric.replace("_", " "))
    axis.set_title(title)
    _short_thousands(axis)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return figure


def performance_profiles(
    agents: Mapping[str, Any],
    thresholds: Any = None,
    *,
    label: str = "return",
    title: str = "",
    width: float = 5.0,
    height: float = 3.6,
    **options: Any,
) -> Any:
    """Draws the share of runs above every threshold, with pointwise bootstrap intervals: higher is better.

    Args:
      agents: scores `[seeds, tasks]` or `[seeds]` by name.
      thresholds: `[K]`; None: 200 from the least score to the greatest.
      label: what scores are.
      title: of the figure.
      width: in inches.
      height: in inches.
      **options: of `evaluation.agents.performance_profile`.

    Raises:
      ConfigError: see `evaluation.agents.performance_profile`.
    """
    from foldax.evaluation.agents import performance_profile

    if not agents:
        raise ConfigError("agents: there is none to draw")
    if thresholds is None:
        every = np.concatenate([np.ravel(np.asarray(scores, np.float64)) for scores in agents.values()])
        least, most = np.nanmin(every), np.nanmax(every)
        margin = 0.03 * (most - least) or 1.0
        thresholds = np.linspace(least - margin, most + margin, PLACES)
    figure, axes = new_figure(width=width, height=height)
    axis = axes[0, 0]
    for number, (name, scores) in enumerate(agents.items()):
        share, low, high = performance_profile(scores, thresholds, **options)
        color, style = AGENT_COLORS[number % len(AGENT_COLORS)], STYLES[number % len(STYLES)]
        axis.fill_between(thresholds, low, high, color=color, alpha=0.2, lw=0)
        axis.plot(thresholds, share, color=color, lw=1.6, ls=style, label=name)
    axis.set(xlabel=f"{label} τ", ylabel="share of runs above τ", ylim=(-0.02, 1.02), title=title)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return figure


def interval_bars(
    intervals: Mapping[str, Mapping[str, Interval]] | Mapping[str, Interval],
    *,
    label: str = "interquartile mean",
    title: str = "",
    reference: float | None = None,
    width: float = 4.0,
) -> Any:
    """Draws estimates as ticks in bars from `low` to `high`, a row for each name, and side by side for each group.

    Args:
      intervals: by name, as `evaluation.agents.interval` gives them; or by group (a task, a metric) and name.
      label: of the axis, where there are no groups.
      title: of the figure.
      reference: a value to compare with, drawn as a line; 0.5 for probabilities of improvement.
      width: of a group, in inches; names come on top.

    Raises:
      ConfigError: there is nothing to draw.
    """
    grouped: dict[str, Any] = dict(intervals)
    if not any(isinstance(value, Mapping) for value in grouped.values()):
        grouped = {label: grouped}
    names = list(dict.fromkeys(name for group in grouped.values() for name in group))
    if not names:
        raise ConfigError("intervals: there is none to draw")
    for_names = 0.09 * max(map(len, names)) / len(grouped)
    figure, axes = new_figure(columns=len(grouped), width=width + for_names, height=0.9 + 0.34 * len(names))
    for axis, (group, members) in zip(axes.flat, grouped.items()):
        axis.use_sticky_edges = False  # bars keep a margin too
        if reference is not None:
            axis.axvline(reference, color="0.5", lw=1, ls=(0, (1, 2)))
        for row, name in enumerate(names):
            if name not in members:
                continue
            estimate, low, high = map(float, members[name])
            axis.barh(row, high - low, left=low, height=0.6, color=AGENT_COLORS[row % len(AGENT_COLORS)], alpha=0.6)
            axis.plot([estimate, estimate], [row - 0.3, row + 0.3], color="black", lw=1.6)
        axis.set(xlabel=group, ylim=(len(names) - 0.4, -0.6))
        axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle(title, fontsize=11)
    return figure


def played(observations: np.ndarray, rewards: np.ndarray, title: str = "") -> Any:
    """Draws an episode that has no pictures: its observations and rewards over time.

    Args:
      observations: `[T + 1, ...]`, the first before any step; more than eight numbers are colours, a row each.
      rewards: `[T]`.
      title: of the figure.
    """
    seen = np.asarray(observations, np.float64).reshape(len(observations), -1)
    seen = np.where(np.isfinite(seen), seen, np.nan)
    figure, axes = new_figure(2, width=6.4, height=2.4)
    upper, lower = axes[:, 0]
    upper.margins(x=0.02)
    if seen.shape[1] <= FEW:
        for index, values in enumerate(seen.T):
            color = AGENT_COLORS[index % len(AGENT_COLORS)]
            marker = "." if len(seen) == 1 else ""
            upper.plot(values, color=color, lw=1.2, ls=STYLES[index % len(STYLES)], label=str(index), marker=marker)
        upper.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        upper.grid(alpha=0.25)
        upper.set(ylabel="observation")
    else:
        image = upper.imshow(seen.T, aspect="auto", interpolation="nearest", cmap="cividis")
        figure.colorbar(image, ax=upper)
        upper.set(ylabel="number of the observation")
    steps, marker = np.arange(1, len(rewards) + 1), "." if len(rewards) == 1 else ""
    lower.plot(steps, np.asarray(rewards, np.float64), color=AGENT_COLORS[1], ds="steps-mid", lw=1.2, marker=marker)
    lower.set(xlabel="step", ylabel="reward", xlim=upper.get_xlim())
    lower.grid(alpha=0.25)
    figure.suptitle(title, fontsize=10)
    return figure


def strip(images: np.ndarray, titles: Sequence[str], title: str = "") -> Any:
    """Draws pictures side by side, each pixel as one pixel if it is saved as it is.

    Args:
      images: uint8 `[N, H, W, 3]`.
      titles: one per image.
      title: of the figure.
    """
    from matplotlib.figure import Figure

    count, height, width, _ = images.shape
    gap, head, dots = max(4, width // 30), 46, 100
    tiles = np.pad(images, [(0, 0), (0, 0), (0, gap), (0, 0)], constant_values=255)
    picture = np.concatenate(tiles, axis=1)[:, :-gap]
    across, down = picture.shape[1], height + head
    figure = Figure(figsize=(across / dots, down / dots), dpi=dots)
    axis = figure.add_axes((0, 0, 1, height / down))
    axis.imshow(picture, interpolation="nearest", aspect="auto")
    axis.set_axis_off()
    for index, text in enumerate(titles[:count]):
        middle = (index * (width + gap) + width / 2) / across
        figure.text(middle, (height + 6) / down, text, fontsize=9, ha="center", va="bottom")
    figure.text(0.5, 1 - 3 / down, title, fontsize=10, ha="center", va="top")
    return figure


def _curve(
    history: History, metric: str, split: str, acted: Callable[[int], int] | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[metric]) for line in history if line["split"] == split and metric in line]
    if not points:
        raise ConfigError(f"{name}: its history has no {metric!r} in the split {split!r}")
    steps, values = zip(*points)
    return np.array([step if acted is None else acted(step) for step in steps], np.float64), np.array(values, float)


def _together(curves: Sequence[tuple[np.ndarray, np.ndarray]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns places `[T]` that all curves reach, and their values there, `[seeds, T]`."""
    if not curves:
        raise ConfigError(f"{name}: there is no run to draw")
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if first > last:
        raise ConfigError(
            f"{name}: its runs have no steps in common: one ends at {last:,.0f}, one begins at {first:,.0f}"
        )
    places = np.unique(np.concatenate([steps for steps, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    if len(places) > PLACES:
        places = np.linspace(first, last, PLACES)
    return places, np.stack([np.interp(places, *curve) for curve in curves])


def _short_thousands(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
