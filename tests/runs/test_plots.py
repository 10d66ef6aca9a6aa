"""Figures: counts are right and everything renders."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from foldax.runs import plots

CLASSES = st.integers(2, 6)


@given(CLASSES.flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), min_size=1))))
def test_confusion_counts_are_those_of_sklearn(given) -> None:
    num_classes, pairs = given
    targets, predictions = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.confusion_matrix(targets, predictions, labels=range(num_classes))
    np.testing.assert_array_equal(plots.confusion_counts(targets, predictions, num_classes), expected)


def test_confusion_as_text_has_a_row_per_class() -> None:
    text = plots.confusion_text(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
    assert [line.split() for line in text.splitlines()] == [
        ["true", "\\", "predicted", "cat", "dog"], ["cat", "1", "1"], ["dog", ".", "1"],
    ]  # fmt: skip


HISTORY = [
    {"step": 1, "split": "train", "loss": 100.0, "accuracy": 0.5},
    {"step": 2, "split": "train", "loss": 0.1, "accuracy": 0.6, "gradient_norm": 1.0},
    {"step": 2, "split": "validation", "loss": 0.2, "f1": 0.3},
]
IMAGES = np.linspace(0, 1, 12 * 64).reshape(12, 8, 8)
NAMES = ["T-shirt/top", "Ankle boot", "Bag"]

FIGURES = {
    "learning curves": lambda: plots.learning_curves(HISTORY),
    "one point": lambda: plots.learning_curves(HISTORY[:1]),
    "losses below zero": lambda: plots.learning_curves([{"step": s, "split": "train", "loss": -s} for s in (1, 50)]),
    "confusion": lambda: plots.confusion_matrix(np.arange(3), np.array([0, 2, 2]), NAMES),
    "a class without examples": lambda: plots.confusion_matrix(np.zeros(3, int), np.zeros(3, int), NAMES),
    "ROC": lambda: plots.roc_curve(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.6, 0.4]), "net"),
    "grey images": lambda: plots.image_grid(IMAGES, ["Ankle boot taken for T-shirt/top"] * 12, title="wrong"),
    "colour images": lambda: plots.image_grid(np.repeat(IMAGES[..., None], 3, axis=-1), columns=5),
    "one channel": lambda: plots.image_grid(IMAGES[:1, ..., None], ["one"]),
    "no images": lambda: plots.image_grid(IMAGES[:0]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders(name, tmp_path) -> None:
    path = tmp_path / "figure.png"
    FIGURES[name]().savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_learning_curves_have_an_axis_per_metric_and_a_line_per_split() -> None:
    axes = [axis for axis in FIGURES["learning curves"]().axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["loss", "accuracy", "gradient norm", "f1"]
    assert [line.get_label() for line in axes[0].lines] == ["train", "validation"]
    assert axes[0].get_yscale() == "log"  # it spans more than a factor of 20
    assert [len(axis.lines) for axis in axes] == [2, 1, 1, 1]
