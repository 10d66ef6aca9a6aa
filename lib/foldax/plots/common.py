"""Figures of any run: learning curves, and two-dimensional embeddings of representations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from foldax.plots.style import (
    COLORS,
    CURVE_COLORS,
    SET_COLORS,
    Axes,
    Figure,
    StepsAfter,
    label_steps,
    legend_entry,
    new_figure,
)

SPLIT_STYLES = {"train": ":", "validation": "-"}  # other splits are dashed
MAX_POINTS = 2_000  # of an embedding: t-SNE takes time, and more points hide each other


def learning_curves(
    history: Sequence[dict[str, Any]], environment_steps: StepsAfter | None = None, best_step: int | None = None
) -> Figure:
    """Draws the logged metrics against the step: one axes per metric, one line per split.

    An agent's return comes first; a metric that was logged once, as at the end, is left out. A positive loss that spans
    more than a factor of 20 has a logarithmic axis.

    Args:
      history: lines of the log, `{"step": ..., "split": ..., metric: value, ...}`.
      environment_steps: of an agent, converts updates to environment steps, as `config.environment_steps_after` does.
      best_step: the step of the best evaluation (`Result.best_step`), which a vertical line marks.

    >>> history = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
    >>> learning_curves(history).axes[0].get_title()
    'loss'
    """
    splits = dict.fromkeys(line["split"] for line in history)
    colors = COLORS | dict(zip((split for split in splits if split not in COLORS), cycle(SET_COLORS)))
    figure, axes = _metric_axes(history, environment_steps is not None)
    for name, axis in axes.items():
        for split in splits:
            points = [(line["step"], line[name]) for line in history if line["split"] == split and name in line]
            if points:
                steps, values = zip(*_on_axis(points, environment_steps), strict=True)
                # A single point has no line.
                marker = "o" if len(points) == 1 else "." if split != "train" else ""
                axis.plot(steps, values, label=split, color=colors[split], marker=marker, lw=1.3)
        if best_step is not None:
            ((best, _),) = _on_axis([(best_step, 0.0)], environment_steps)
            label = f"best state: {axis.get_xlabel().rstrip('s')} {best:,}"
            axis.axvline(best, color="0.5", lw=1, ls=(0, (4, 2)), label=label)
    # Each split once, in one legend of the figure: one of each axes would hide curves.
    handles = {line.get_label(): line for axis in axes.values() for line in axis.get_lines()}
    _legend_below(figure, list(handles.values()), len(axes))
    return figure


def comparison_curves(
    histories: Mapping[str, Sequence[Sequence[dict[str, Any]]]],
    environment_steps: Mapping[str, StepsAfter] | None = None,
) -> Figure:
    """Draws the learning curves of several configs: one axes per metric, a colour per config and a style per split.

    A curve is the mean over runs at the steps that all of them have logged, in a band from minimum to maximum.

    Args:
      histories: for each config by name, the logs of its runs, one per seed, as in `learning_curves`.
      environment_steps: of agents, for each config what converts its updates to environment steps.

    >>> history = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
    >>> figure = comparison_curves({"A": [history, history], "B": [history]})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['A', 'B', 'train', 'minimum to maximum over seeds']
    """
    lines = [line for runs in histories.values() for history in runs for line in history]
    splits = list(dict.fromkeys(line["split"] for line in lines))
    figure, axes = _metric_axes(lines, environment_steps is not None)
    for name, axis in axes.items():
        for (label, runs), color in zip(histories.items(), cycle(CURVE_COLORS)):
            after = None if environment_steps is None else environment_steps[label]
            for split in splits:
                _mean_and_range(axis, runs, name, split, color, after)
    handles = [legend_entry(label, color=color) for label, color in zip(histories, cycle(CURVE_COLORS))]
    handles += [legend_entry(split, ls=SPLIT_STYLES.get(split, "--")) for split in splits]
    if any(len(runs) > 1 for runs in histories.values()):
        handles.append(legend_entry("minimum to maximum over seeds", band=True))
    _legend_below(figure, handles, len(axes))
    return figure


def _metric_axes(lines: Sequence[dict[str, Any]], environment_steps: bool) -> tuple[Figure, dict[str, Axes]]:
    """Creates a figure with axes for each metric of log lines: returns first, then in the order of first appearance."""
    steps: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        for name in line.keys() - {"step", "split"}:
            steps[name].add(line["step"])
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name in steps]
    # What was logged once, such as at the end, has no curve; of a log of one step there are points.
    names = [name for name in names if len(steps[name]) > 1] or names
    names.sort(key=lambda name: name != "return")
    columns = min(3, max(1, len(names)))
    figure, axes = new_figure(max(1, -(-len(names) // columns)), columns)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    by_name = dict(zip(names, axes.flat, strict=False))
    for name, axis in by_name.items():
        values = [line[name] for line in lines if name in line]
        # Only a positive loss can have a logarithmic axis.
        if name == "loss" and min(values) > 0 and max(values) / min(values) > 20:
            axis.set_yscale("log")
        axis.set_title(name.replace("_", " "))
        label_steps(axis, environment_steps)
        axis.grid(alpha=0.25)
    return figure, by_name


def _legend_below(figure: Figure, handles: Sequence[Any], num_axes: int) -> None:
    if handles:
        columns = min(len(handles), 2 * max(1, min(3, num_axes)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _on_axis(points: Sequence[tuple[int, Any]], after: StepsAfter | None) -> list[tuple[int, Any]]:
    return [(step if after is None else after(step), value) for step, value in points]


def _mean_and_range(
    axis: Axes, runs: Sequence[Sequence[dict[str, Any]]], name: str, split: str, color: str, after: StepsAfter | None
) -> None:
    values: dict[int, list[float]] = defaultdict(list)
    for history in runs:
        for line in history:
            if line["split"] == split and name in line:
                values[line["step"]].append(line[name])
    logged = [history for history in runs if any(line["split"] == split and name in line for line in history)]
    points = sorted((step, found) for step, found in values.items() if len(found) == len(logged))
    if not points:
        return
    steps, lists = zip(*_on_axis(points, after), strict=True)
    found = np.array(lists)
    marker = "o" if len(steps) == 1 else ""  # a single point has no line
    axis.plot(steps, found.mean(1), color=color, ls=SPLIT_STYLES.get(split, "--"), marker=marker, lw=1.5)
    axis.fill_between(steps, found.min(1), found.max(1), color=color, alpha=0.15, lw=0)


def project_to_plane(points: np.ndarray) -> np.ndarray:
    """Projects points `[N, ...]` to two dimensions by t-SNE (van der Maaten & Hinton, 2008), started from PCA.

    Points with one or two dimensions stay as they are; of fewer than four points, the first two dimensions are taken.

    Returns:
      `[N, 2]`.

    >>> project_to_plane(np.array([[1.0], [2.0]])).tolist()
    [[1.0, 0.0], [2.0, 0.0]]
    """
    points = np.asarray(points, np.float32).reshape(len(points), -1)
    if points.shape[1] == 1:
        return np.concatenate([points, np.zeros_like(points)], axis=1)
    if points.shape[1] == 2 or len(points) < 4:
        return points[:, :2]
    # Perplexity must be below the number of points.
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(points) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)


def embedding(
    points: np.ndarray, targets: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> Figure:
    """Draws points, such as features or latents, in the plane (see `project_to_plane`), coloured by class.

    Args:
      points: `[N, D]`; only the first 2,000 appear.
      targets: int `[N]`, classes; None draws all points alike.
      class_names: names of all classes.

    >>> figure = embedding(np.eye(3)[:, :2], np.array([0, 1, 1]), ["cat", "dog"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['cat', 'dog']
    """
    return embeddings(points, {"": (targets, class_names)})


def embeddings(points: np.ndarray, labels: dict[str, tuple[np.ndarray | None, Sequence[str] | None]]) -> Figure:
    """Draws the same points in the plane (see `project_to_plane`) several times, coloured by different labels.

    Args:
      points: `[N, D]`; only the first 2,000 appear.
      labels: by title, labels int `[N]` (or None) and the names of all labels (or None).

    >>> figure = embeddings(np.eye(3)[:, :2], {"by class": (np.array([0, 1, 1]), None), "all": (None, None)})
    >>> [axis.get_title() for axis in figure.axes]
    ['by class', 'all']
    """
    plane = project_to_plane(points[:MAX_POINTS])
    figure, axes = new_figure(columns=len(labels), width=5.6, height=4.6)
    for axis, (title, (values, names)) in zip(axes.flat, labels.items(), strict=True):
        axis.set(xticks=[], yticks=[], title=title)
        _scatter(axis, plane, values, names)
    return figure


def _scatter(axis: Axes, points: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None) -> None:
    if labels is None:
        axis.scatter(points[:, 0], points[:, 1], s=8, color=COLORS["train"])
        return
    from matplotlib import colormaps

    labels, few = np.asarray(labels)[: len(points)], colormaps["tab10"]
    present = np.unique(labels)
    for index, label in enumerate(present):
        chosen, name = labels == label, str(label) if names is None else names[label]
        color = few(int(label) % 10) if len(present) <= 10 else colormaps["turbo"](index / (len(present) - 1))
        axis.scatter(points[chosen, 0], points[chosen, 1], s=10, color=color, alpha=0.7, lw=0, label=name)
        # The median of a class is robust to its outliers.
        x, y = np.median(points[chosen], axis=0)
        axis.text(x, y, name, fontsize=10, weight="bold", ha="center", va="center")
    if len(present) <= 20:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
