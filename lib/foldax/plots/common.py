"""Figures for papers and logs: matplotlib without global state, legible in grey and for the colour-blind."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from foldax.plots.style import COLORS, new_figure


def learning_curves(history: Sequence[dict[str, Any]]) -> Any:
    """Draws every logged metric against the step, all splits of a metric in one axis.

    Args:
      history: lines of the log, {"step": ..., "split": ..., metrics...}.
    """
    names = list(dict.fromkeys(name for line in history for name in line if name not in ("step", "split")))
    columns = min(3, max(1, len(names)))
    figure, axes = new_figure(max(1, -(-len(names) // columns)), columns)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for split in dict.fromkeys(line["split"] for line in history):
            points = [(line["step"], line[name]) for line in history if line["split"] == split and name in line]
            if points:
                marker = "o" if len(points) == 1 else "." if split != "train" else ""
                axis.plot(*zip(*points, strict=True), label=split, color=COLORS.get(split), marker=marker, lw=1.3)
        values = [line[name] for line in history if name in line]
        if name == "loss" and min(values) > 0 and max(values) / min(values) > 20:
            axis.set_yscale("log")
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    return figure


def confusion_counts(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns counts `[num_classes, num_classes]`: rows are true classes, columns predicted ones."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (targets, predictions), 1)
    return counts


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Any:
    """Draws how often each true class (row) was taken for each class (column).

    Args:
      targets: int `[N]`.
      predictions: int `[N]`.
      class_names: of all classes.
    """
    counts = confusion_counts(targets, predictions, len(class_names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.36 * len(class_names)
    figure, axes = new_figure(width=size + 0.6, height=size)
    axis = axes[0, 0]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(class_names))
    slanted = dict(rotation=45, ha="right", rotation_mode="anchor") if max(map(len, class_names)) > 2 else {}
    axis.set_xticks(ticks, class_names, fontsize=8, **slanted)
    axis.set_yticks(ticks, class_names, fontsize=8)
    accuracy = np.trace(counts) / max(1, counts.sum())
    axis.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.2%} of {counts.sum():,} right")
    return figure


def confusion_text(targets: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns the confusion matrix as text: rows are true classes, columns predicted ones."""
    counts = confusion_counts(targets, predictions, len(class_names))
    names = [name[:10] for name in class_names]
    width = max(len(str(counts.max())), *map(len, names)) + 1
    head = "true \\ predicted".ljust(16) + "".join(name.rjust(width) for name in names)
    rows = (
        name.ljust(16) + "".join((str(count) if count else ".").rjust(width) for count in row)
        for name, row in zip(names, counts, strict=True)
    )
    return "\n".join([head, *rows])


def roc_curve(targets: np.ndarray, scores: np.ndarray, label: str = "") -> Any:
    """Draws the true-positive rate against the false-positive rate of a score.

    Args:
      targets: 0 or 1, `[N]`.
      scores: `[N]`, larger for class 1.
      label: name of the curve.
    """
    from sklearn import metrics

    false_positives, true_positives, _ = metrics.roc_curve(targets, scores)
    area = metrics.roc_auc_score(targets, scores)
    figure, axes = new_figure(width=4.2, height=4.0)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    axis.plot(false_positives, true_positives, color=COLORS["train"], label=f"{label} area {area:.4f}".strip())
    axis.set(xlabel="false-positive rate", ylabel="true-positive rate", title="ROC curve", aspect="equal")
    axis.legend(loc="lower right", frameon=False)
    axis.grid(alpha=0.25)
    return figure


def image_grid(images: np.ndarray, titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Any:
    """Draws images in a grid.

    Args:
      images: `[N, H, W, C]` or `[N, H, W]`, C of 1 or 3.
      titles: one per image.
      columns: images in a row.
      title: of the whole figure.
    """
    count = max(1, len(images))
    columns = min(columns, count)
    wrapped = [textwrap.fill(title, 16) for title in titles]
    lines = max((text.count("\n") + 1 for text in wrapped), default=0)
    figure, axes = new_figure(-(-count // columns), columns, width=1.15, height=1.15 + 0.12 * lines)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(np.squeeze(image), cmap="gray_r", interpolation="nearest")
        if wrapped:
            axis.set_title(wrapped[index], fontsize=7)
    figure.suptitle(title or ("" if len(images) else "none"), fontsize=9)
    return figure


def image_rows(rows: np.ndarray, names: Sequence[str] = (), columns: Sequence[str] = (), title: str = "") -> Any:
    """Draws images in named rows and columns: samples by class, steps between two codes, images above each other.

    Args:
      rows: `[R, S, H, W, C]`, C of 1 or 3; all in one scale of grey, colours from 0 to 1.
      names: one per row.
      columns: one per column.
      title: of the figure.
    """
    count, wide, height, width, channels = rows.shape
    gap = max(1, round(0.08 * height))
    edges = [(0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)]
    tiles = np.pad(np.asarray(rows, np.float32), edges, constant_values=np.nan)
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(count * (height + gap), wide * (width + gap), channels)[gap:, gap:]
    side = 0.6 * max(1.0, width / height)
    figure, axes = new_figure(
        width=side * wide + 0.12 * max(map(len, names), default=0) + 0.2, height=0.6 * count + 0.5
    )
    axis = axes[0, 0]
    axis.imshow(np.nan_to_num(picture, nan=1.0) if channels == 3 else picture[..., 0], cmap="gray_r")
    axis.set_xticks(np.arange(wide) * (width + gap) + (width - 1) / 2 if columns else [], columns, fontsize=7)
    axis.set_yticks(np.arange(count) * (height + gap) + (height - 1) / 2 if names else [], names, fontsize=8)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    return figure


def neighbours(samples: np.ndarray, nearest: np.ndarray, distances: np.ndarray, title: str = "") -> Any:
    """Draws generated images above their nearest training images, with their distances.

    Args:
      samples: `[N, H, W, C]`.
      nearest: of the training images (see `evaluation.generative.nearest_neighbours`), `[N, H, W, C]`.
      distances: `[N]`.
      title: of the figure.
    """
    return image_rows(np.stack([samples, nearest]), ("generated", "nearest"), [f"{d:.1f}" for d in distances], title)


def mistakes(images: np.ndarray, targets: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> Any:
    """Draws the images that were taken for another class, the most certain mistakes first.

    Args:
      images: `[N, H, W, C]`.
      targets: int `[N]`.
      logits: `[N, num_classes]`.
      class_names: of all classes.
    """
    predictions = logits.argmax(axis=1)
    margin = logits.max(axis=1) - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(predictions != targets)
    worst = wrong[np.argsort(-margin[wrong], kind="stable")][:32]
    titles = [f"{class_names[targets[i]]} as {class_names[predictions[i]]}" for i in worst]
    return image_grid(images[worst], titles, title=f"{len(wrong)} of {len(targets)} wrong (true class as predicted)")


def image_classification(result: Any) -> dict[str, Any]:
    """Returns confusion matrix (text and figure) and mistakes on the test images: `Experiment.figures` as it is.

    Args:
      result: of a `foldax.learners.classifier` of images that are the "inputs".
    """
    images, test = result.examples("test")["inputs"], result.values["test"]
    names, predictions = result.info.class_names, test["logits"].argmax(axis=1)
    return {
        "confusion": confusion_text(test["targets"], predictions, names),
        "confusion_matrix": confusion_matrix(test["targets"], predictions, names),
        "mistakes": mistakes(images, test["targets"], test["logits"], names),
    }


def plane(codes: np.ndarray) -> np.ndarray:
    """Returns codes `[N, D]` in the plane: as they are if D is 2, else by t-SNE (van der Maaten & Hinton, 2008)."""
    codes = np.asarray(codes, np.float32).reshape(len(codes), -1)
    if codes.shape[1] == 1:
        return np.concatenate([codes, np.zeros_like(codes)], axis=1)
    if codes.shape[1] == 2 or len(codes) < 4:
        return codes[:, :2]
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(codes) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(codes)


def embedding(codes: np.ndarray, targets: np.ndarray | None = None, class_names: Sequence[str] | None = None) -> Any:
    """Draws codes in the plane (see `plane`).

    Args:
      codes: `[N, D]`; of more than 2,000 the first.
      targets: int `[N]`, classes to colour by.
      class_names: of all classes.
    """
    return embeddings(codes, {"": (targets, class_names)})


def embeddings(codes: np.ndarray, labels: dict[str, tuple[np.ndarray | None, Sequence[str] | None]]) -> Any:
    """Draws codes in the plane (see `plane`), once for each way to colour them, side by side.

    Args:
      codes: `[N, D]`; of more than 2,000 the first.
      labels: by title, labels int `[N]` to colour by (or None), and the names of all labels (or None).
    """
    points = plane(codes[:2000])
    figure, axes = new_figure(columns=len(labels), width=5.6, height=4.6)
    for axis, (title, (values, names)) in zip(axes.flat, labels.items(), strict=True):
        axis.set(xticks=[], yticks=[], title=title)
        _scatter(axis, points, values, names)
    return figure


def _scatter(axis: Any, points: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None) -> None:
    if labels is None:
        axis.scatter(*points.T, s=8, color=COLORS["train"])
        return
    from matplotlib import colormaps

    labels, few = np.asarray(labels)[: len(points)], colormaps["tab10"]
    present = np.unique(labels)
    for number, label in enumerate(present):
        chosen, name = labels == label, str(label) if names is None else names[label]
        color = few(int(label) % 10) if len(present) <= 10 else colormaps["turbo"](number / (len(present) - 1))
        axis.scatter(*points[chosen].T, s=10, color=color, alpha=0.7, lw=0, label=name)
        axis.text(*np.median(points[chosen], axis=0), name, fontsize=10, weight="bold", ha="center", va="center")
    if len(present) <= 20:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)


def members(images: np.ndarray, assignments: np.ndarray, distances: np.ndarray | None = None, columns: int = 12) -> Any:
    """Draws images of every cluster, a row each.

    Args:
      images: `[N, H, W, C]`.
      assignments: int `[N]`, the images' clusters.
      distances: `[N]`, how far each is from the middle of its cluster: from the nearest to the farthest, evenly. None:
        the first of every cluster.
      columns: images in a row.
    """
    clusters, counts = np.unique(assignments, return_counts=True)
    figure, axes = new_figure(len(clusters), columns, width=0.62, height=0.66)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, cluster, count in zip(axes, clusters, counts, strict=True):
        mine = np.flatnonzero(assignments == cluster)
        if distances is not None:
            mine = mine[np.argsort(distances[mine], kind="stable")]
            mine = mine[np.linspace(0, count - 1, min(count, columns)).round().astype(int)]
        row[0].set_ylabel(f"{cluster}\n({count:,})", fontsize=7, rotation=0, ha="right", va="center")
        for axis, index in zip(row, mine, strict=False):
            axis.imshow(np.squeeze(images[index]), cmap="gray_r", interpolation="nearest")
    order = "" if distances is None else ", from the nearest to its middle to the farthest"
    figure.suptitle(f"members of each cluster (and their number){order}", fontsize=9)
    return figure
