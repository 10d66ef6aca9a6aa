"""Figures of classifiers: confusion matrices, ROC curves and misclassified images."""

from collections.abc import Sequence
from typing import Any

import chex
import numpy as np

from foldax.errors import ExperimentError
from foldax.plots.images import image_grid
from foldax.plots.style import COLORS, Figure, grid_and_legend, single_axis


def confusion_counts(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the examples of each true class (row) that were predicted as each class (column).

    Args:
      targets: true classes, int `[N]`.
      predictions: predicted classes, int `[N]`.
      num_classes: C.

    Returns:
      int64 `[C, C]`.

    >>> confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    chex.assert_equal_shape([targets, predictions])
    counts = np.zeros((num_classes, num_classes), np.int64)
    # Unlike `counts[...] += 1`, this counts repeated pairs.
    np.add.at(counts, (targets, predictions), 1)
    return counts


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """Finds the class int `[N]` of the largest of the logits `[N, C]`.

    Raises:
      ExperimentError: a logit is NaN, which `argmax` would count as the largest.

    >>> predicted_classes(np.array([[0.0, 2.0], [3.0, 0.0]])).tolist()
    [1, 0]
    """
    undefined = np.isnan(logits).any(axis=1)
    if undefined.any():
        where = f"{undefined.sum()} of {len(logits)} examples, the first at index {undefined.argmax()}"
        remedy = "find the first value in the log that is not finite; lower the learning rate or check the inputs"
        raise ExperimentError(f"logits are NaN for {where}, so that these have no predicted class; {remedy}")
    return np.asarray(logits.argmax(axis=1))


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws the confusion matrix: counts, on colours that show each row's fractions.

    Args:
      targets: true classes, int `[N]`.
      predictions: predicted classes, int `[N]`.
      class_names: names of all classes.

    >>> confusion_matrix(np.array([0, 1]), np.array([0, 0]), ["cat", "dog"]).axes[0].get_title()
    'accuracy 50.00% (N = 2)'
    """
    counts = confusion_counts(targets, predictions, len(class_names))
    # Rows are normalised, so that rare classes show as well as frequent ones.
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.36 * len(class_names)
    figure, axis = single_axis(width=size + 0.6, height=size)
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # Text must be readable on dark cells.
            color = "white" if fractions[row, column] > 0.5 else "0.1"  # black becomes grey
            axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(class_names))
    long_names = max(map(len, class_names)) > 2
    slanted: dict[str, Any] = dict(rotation=45, ha="right", rotation_mode="anchor") if long_names else {}
    axis.set_xticks(ticks, class_names, fontsize=8, **slanted)
    axis.set_yticks(ticks, class_names, fontsize=8)
    accuracy = np.trace(counts) / max(1, counts.sum())
    xlabel = "predicted class\n(numbers: examples; colour: fraction of the row)"
    axis.set(xlabel=xlabel, ylabel="true class", title=f"accuracy {accuracy:.2%} (N = {counts.sum():,})")
    return figure


def confusion_text(targets: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> str:
    """Formats the confusion matrix as text: rows are true classes, columns predicted ones.

    Args:
      targets: true classes, int `[N]`.
      predictions: predicted classes, int `[N]`.
      class_names: names of all classes, cut to ten characters.

    >>> print(confusion_text(np.array([0, 1]), np.array([0, 0]), ["cat", "dog"]))
    true \\ predicted cat dog
    cat                1   .
    dog                1   .
    """
    counts = confusion_counts(targets, predictions, len(class_names))
    names = [name[:10] for name in class_names]
    width = max(len(str(counts.max())), *map(len, names)) + 1
    head = "true \\ predicted".ljust(16) + "".join(name.rjust(width) for name in names)
    cells = ["".join((str(count) if count else ".").rjust(width) for count in row) for row in counts]
    return "\n".join([head, *(name.ljust(16) + row for name, row in zip(names, cells, strict=True))])


def roc_curve(targets: np.ndarray, scores: np.ndarray, label: str = "") -> Figure:
    """Draws the receiver operating characteristic (ROC) of a score, with its area under the curve (AUROC).

    Args:
      targets: 0 or 1, `[N]`.
      scores: `[N]`, higher for class 1.
      label: name of the curve in the legend.

    >>> figure = roc_curve(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.8]), "net")
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['chance', 'net AUROC 1.0000']
    """
    from sklearn import metrics

    false_positives, true_positives, _ = metrics.roc_curve(targets, scores)
    area = metrics.roc_auc_score(targets, scores)
    figure, axis = single_axis(width=4.2, height=4.0)
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="chance")
    axis.plot(false_positives, true_positives, color=COLORS["train"], label=f"{label} AUROC {area:.4f}".strip())
    axis.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC curve", aspect="equal")
    grid_and_legend(axis, loc="lower right")
    return figure


def mistakes(images: np.ndarray, targets: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws up to 32 misclassified images, those of the largest margin (predicted minus true logit) first.

    Args:
      images: `[N, H, W, C]`.
      targets: true classes, int `[N]`.
      logits: `[N, num_classes]`.
      class_names: names of all classes.

    >>> logits = np.array([[2.0, 0.0], [3.0, 0.0]])
    >>> mistakes(np.zeros((2, 4, 4, 1)), np.array([0, 1]), logits, ["cat", "dog"]).axes[0].get_title()
    'dog as cat'
    """
    # The margin is how much more the network favoured the predicted class than the true one.
    predictions = predicted_classes(logits)
    margin = logits.max(axis=1) - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(predictions != targets)
    worst = wrong[np.argsort(-margin[wrong], kind="stable")][:32]
    titles = [f"{class_names[targets[i]]} as {class_names[predictions[i]]}" for i in worst]
    title = f"{len(wrong)} of {len(targets)} misclassified (true class as predicted class)"
    return image_grid(images[worst], titles, title=title)


def image_classification(result: Any) -> dict[str, Any]:
    """Draws the confusion matrix (as text, too) and the mistakes on the test images; usable as `Experiment.figures`.

    Args:
      result: a `foldax.Result` of a `learners.classifier` whose "inputs" are images.

    Returns:
      "confusion" (text), "confusion_matrix" and "mistakes" (figures).
    """
    images, test = result.examples("test")["inputs"], result.values["test"]
    names, predictions = result.info.class_names, predicted_classes(test["logits"])
    compared = (test["targets"], predictions, names)
    figures = {"confusion": confusion_text(*compared), "confusion_matrix": confusion_matrix(*compared)}
    return {**figures, "mistakes": mistakes(images, test["targets"], test["logits"], names)}
