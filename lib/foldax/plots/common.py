"""Figures of any run: learning curves, and two-dimensional embeddings of representations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from foldax.plots.style import COLORS, CURVE_COLORS, SET_COLORS, Axes, Figure, grid_and_legend, new_figure

SPLIT_STYLES = {"train": ":", "validation": "-"}  # other splits are dashed
MAX_POINTS = 2_000  # of an embedding: t-SNE takes time, and more points hide each other


def learning_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Draws every logged metric against the step: one axes per metric, one line per split.

    A positive loss that spans more than a factor of 20 has a logarithmic axis.

    Args:
      history: lines of the log, `{"step": ..., "split": ..., metric: value, ...}`.

    >>> history = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
    >>> learning_curves(history).axes[0].get_title()
    'loss'
    """
    # Metrics in the order of their first appearance in the log.
    names = list(dict.fromkeys(name for line in history for name in line if name not in ("step", "split")))
    columns = min(3, max(1, len(names)))
    figure, axes = new_figure(max(1, -(-len(names) // columns)), columns)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    splits = dict.fromkeys(line["split"] for line in history)
    colors = COLORS | dict(zip((split for split in splits if split not in COLORS), cycle(SET_COLORS)))
    for axis, name in zip(axes.flat, names, strict=False):
        for split in splits:
            points = [(line["step"], line[name]) for line in history if line["split"] == split and name in line]
            if points:
                # A single point has no line.
                marker = "o" if len(points) == 1 else "." if split != "train" else ""
                axis.plot(*zip(*points, strict=True), label=split, color=colors[split], marker=marker, lw=1.3)
        _scale_and_name(axis, name, [line[name] for line in history if name in line])
        grid_and_legend(axis)
    return figure


def _scale_and_name(axis: Axes, name: str, values: Sequence[float]) -> None:
    # Only a positive loss can have a logarithmic axis.
    if name == "loss" and min(values) > 0 and max(values) / min(values) > 20:
        axis.set_yscale("log")
    axis.set(xlabel="step", title=name.replace("_", " "))


def comparison_curves(histories: Mapping[str, Sequence[Sequence[dict[str, Any]]]]) -> Figure:
    """Draws the learning curves of several configs: one axes per metric, a colour per config and a style per split.

    A curve is the mean over runs at the steps that all of them have logged, in a band from minimum to maximum.

    Args:
      histories: for each config by name, the logs of its runs, one per seed, as in `learning_curves`.

    >>> history = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
    >>> figure = comparison_curves({"A": [history, history], "B": [history]})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['A', 'B', 'train']
    """
    from matplotlib.lines import Line2D

    lines = [line for runs in histories.values() for history in runs for line in history]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "split")))
    splits = list(dict.fromkeys(line["split"] for line in lines))
    columns = min(3, max(1, len(names)))
    figure, axes = new_figure(max(1, -(-len(names) // columns)), columns)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for runs, color in zip(histories.values(), cycle(CURVE_COLORS)):
            for split in splits:
                _mean_and_range(axis, runs, name, split, color)
        _scale_and_name(axis, name, [line[name] for line in lines if name in line])
        axis.grid(alpha=0.25)
    handles = [Line2D([], [], color=color, label=label) for label, color in zip(histories, cycle(CURVE_COLORS))]
    handles += [Line2D([], [], color="0.4", ls=SPLIT_STYLES.get(split, "--"), label=split) for split in splits]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * columns), frameon=False)
    return figure


def _mean_and_range(axis: Axes, runs: Sequence[Sequence[dict[str, Any]]], name: str, split: str, color: str) -> None:
    values: dict[int, list[float]] = defaultdict(list)
    for history in runs:
        for line in history:
            if line["split"] == split and name in line:
                values[line["step"]].append(line[name])
    logged = [history for history in runs if any(line["split"] == split and name in line for line in history)]
    steps = sorted(step for step, found in values.items() if len(found) == len(logged))
    if not steps:
        return
    found = np.array([values[step] for step in steps])
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
