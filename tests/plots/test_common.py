"""Figures: every one renders, and counts, labels and intervals are right."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn import metrics

from foldax import plots
from foldax.errors import ExperimentError

CLASSES = st.integers(2, 6)


@given(CLASSES.flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), min_size=1))))
def test_confusion_counts_equal_those_of_scikit_learn(example) -> None:
    num_classes, pairs = example
    targets, predictions = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.confusion_matrix(targets, predictions, labels=range(num_classes))
    np.testing.assert_array_equal(plots.confusion_counts(targets, predictions, num_classes), expected)


def test_logits_that_are_nan_predict_no_class() -> None:
    logits = np.array([[0.0, 1.0], [np.nan, np.nan]])
    with pytest.raises(ExperimentError, match="NaN for 1 of 2 examples, the first at index 1"):
        plots.mistakes(np.zeros((2, 4, 4, 1)), np.array([0, 1]), logits, ["cat", "dog"])


def test_confusion_as_text_has_a_row_per_class() -> None:
    text = plots.confusion_text(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
    assert [line.split() for line in text.splitlines()] == [
        ["true", "\\", "predicted", "cat", "dog"], ["cat", "1", "1"], ["dog", ".", "1"],
    ]  # fmt: skip


HISTORY = [
    {"step": 1, "split": "train", "loss": 100.0, "accuracy": 0.5},
    {"step": 2, "split": "train", "loss": 0.1, "accuracy": 0.6, "gradient_norm": 1.0},
    {"step": 2, "split": "validation", "loss": 0.2, "f1": 0.3, "once": 1.0},
    {"step": 3, "split": "validation", "gradient_norm": 2.0, "f1": 0.4},
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
    "grey images": lambda: plots.image_grid(IMAGES, ["Ankle boot as T-shirt/top"] * 12, title="misclassified"),
    "colour images": lambda: plots.image_grid(np.repeat(IMAGES[..., None], 3, axis=-1), columns=5),
    "one channel": lambda: plots.image_grid(IMAGES[:1, ..., None], ["one"]),
    "rows": lambda: plots.image_rows(IMAGES.reshape(2, 6, 8, 8, 1), ["one", "two"], "abcdef", "title"),
    "rows in colour": lambda: plots.image_rows(np.repeat(IMAGES.reshape(2, 6, 8, 8, 1), 3, axis=-1)),
    "nearest neighbours": lambda: plots.nearest_neighbors(IMAGES[:4, ..., None], IMAGES[4:8, ..., None], np.arange(4)),
    "cluster members": lambda: plots.cluster_members(IMAGES, np.arange(12) % 3, np.arange(12.0), columns=3),
    "members of one cluster": lambda: plots.cluster_members(IMAGES[..., None], np.zeros(12, int)),
    "embeddings": lambda: plots.embeddings(
        np.random.RandomState(0).randn(30, 3),
        {"by cluster": (np.arange(30), None), "by class": (np.arange(30) % 3, NAMES)},
    ),
    "few points": lambda: plots.embedding(np.eye(3)),
    "no images": lambda: plots.image_grid(IMAGES[:0]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders(name, tmp_path) -> None:
    path = tmp_path / "figure.png"
    FIGURES[name]().savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("page", [0, 255])
def test_lines_and_texts_read_on_light_and_dark_pages(page, tmp_path) -> None:
    """Every pixel that is not the page's differs from it enough, in a figure that uses matplotlib's defaults."""
    figure, axes = plots.new_figure(width=3.0)
    axes[0, 0].plot([0, 1], color="black", label="line")
    axes[0, 0].set(xlabel="step", title="title")
    axes[0, 0].legend(frameon=False)
    figure.suptitle("above")
    figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGBA"))
    opaque = pixels[pixels[..., 3] == 255][:, :3].astype(int)
    assert len(opaque) > 1_000
    assert (pixels[..., 3] == 0).mean() > 0.8
    assert (abs(opaque - page) > 100).all()


def test_curves_of_agents_show_the_return_first_against_environment_steps() -> None:
    history = [{"step": step, "split": "train", "loss": 1.0, "return": 2.0} for step in (1, 2, 3)]
    figure = plots.learning_curves(history, environment_steps=lambda step: 100 * step, best_step=2)
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == ["return", "loss"]
    curve, best = figure.axes[0].lines
    assert (curve.get_xdata().tolist(), best.get_xdata()) == ([100, 200, 300], [200, 200])
    assert figure.axes[0].get_xlabel() == "environment steps"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "best state: environment step 200"]
    compared = plots.comparison_curves({"A": [history]}, {"A": lambda step: 7 * step})
    assert compared.axes[0].lines[0].get_xdata().tolist() == [7, 14, 21]


def test_learning_curves_have_an_axis_per_metric_and_a_line_per_split() -> None:
    axes = [axis for axis in FIGURES["learning curves"]().axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["loss", "accuracy", "gradient norm", "f1"]
    assert [line.get_label() for line in axes[0].lines] == ["train", "validation"]
    assert axes[0].get_yscale() == "log"  # it spans more than a factor of 20
    assert [len(axis.lines) for axis in axes] == [2, 1, 2, 1]  # and none of what was logged once


def test_interval_coverage_equals_that_of_a_normal_distribution() -> None:
    """Against SciPy's interval, at targets slightly inside and slightly outside."""
    low, high = stats.norm.interval(0.9, loc=2.0, scale=3.0)
    targets, mean, std = np.array([low + 1e-6, low - 1e-6, high - 1e-6, high + 1e-6]), np.full(4, 2.0), np.full(4, 3.0)
    assert plots.interval_coverage(targets, mean, std, 0.9) == 0.5
    assert plots.interval_coverage(targets, mean, std, 0.91) == 1.0


def lines_of(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axis.get_lines()}


def test_prediction_intervals_are_sorted_and_mark_the_targets_outside() -> None:
    targets, mean, std = np.array([5.0, 0.0, 1.0]), np.array([2.0, 0.0, 1.0]), np.ones(3)
    axis = plots.prediction_intervals(targets, mean, std, unit="mm").axes[0]
    lines = lines_of(axis)
    assert axis.get_title() == "66.7% of 3 targets inside"
    np.testing.assert_array_equal(lines["inside: 2"], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(lines["outside: 1"], [[2, 5]])
    assert axis.get_ylabel() == "mm"


def test_the_calibration_curve_of_calibrated_predictions_is_the_diagonal() -> None:
    random = np.random.default_rng(0)
    mean, std = random.normal(size=(4_000, 2)), random.uniform(1, 2, (4_000, 2))
    targets = mean + std * random.normal(size=mean.shape)
    predictions = {"calibrated": (targets, mean, std), "overconfident": (targets, mean, std / 3)}
    lines = lines_of(plots.calibration_curve(predictions, independent=4_000).axes[0])
    np.testing.assert_allclose(lines["calibrated"][:, 1], lines["calibrated"][:, 0], atol=0.03)
    assert (lines["overconfident"][5:, 1] < lines["overconfident"][5:, 0] - 0.05).all()


def test_forecast_fans_start_at_their_first_step() -> None:
    years = np.arange(1990, 2000).astype(str).astype("datetime64[Y]")
    fans = [(4, np.array([1.0, 2.0]), np.ones(2)), (7, np.array([3.0, 4.0]), np.ones(2))]
    figure = plots.forecast_fans(years, np.arange(10.0), fans, "title", "ppm", naive=np.array([[5, 6], [7, 8]]))
    lines = [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].get_lines()]
    assert [1.0, 2.0] in lines
    assert [7.0, 8.0] in lines
    assert len(figure.axes[0].collections) == 4  # two intervals of each
    figure.canvas.draw()
