"""Measures of generated images against closed forms, loops and real digits."""

import dataclasses

import numpy as np
import optax
import pytest
from scipy import linalg
from sklearn.datasets import load_digits

import foldax
from foldax import learners, models
from foldax.errors import ConfigError, ExperimentError
from foldax.evaluation import generative
from tests.conftest import tiny, tiny_arrays

RANDOM = np.random.RandomState(0)
DIGITS = load_digits()


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    RANDOM.seed(0)


def normal(count, mean, covariance):
    """Rows whose mean and covariance are exactly these."""
    rows = RANDOM.randn(count, len(mean))
    rows = rows - rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows, rowvar=False)))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def covariance(width):
    factors = RANDOM.randn(width, width)
    return factors @ factors.T + 0.1 * np.eye(width)


def test_frechet_distance_of_normals_is_the_closed_form():
    one, other, means = covariance(5), covariance(5), RANDOM.randn(2, 5)
    cross = linalg.sqrtm(one @ other).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(one + other - 2 * cross)
    found = generative.frechet_distance(normal(60, means[0], one), normal(90, means[1], other))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_numbers_is_that_of_means_and_deviations():
    first, second = normal(40, np.array([1.0]), np.eye(1) * 4), normal(40, np.array([-2.0]), np.eye(1) * 0.25)
    assert generative.frechet_distance(first, second) == pytest.approx(3.0**2 + (2 - 0.5) ** 2)


def test_frechet_distance_of_a_set_to_itself_is_nothing_even_of_few_rows():
    rows = RANDOM.randn(4, 9)  # its covariance has rank 3
    assert generative.frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)
    moved = generative.frechet_distance(rows, rows + 2.0)
    assert moved == pytest.approx(9 * 4.0, rel=1e-6)


def loop_precision(real, generated, k):
    inside = 0
    for point in generated:
        for index, center in enumerate(real):
            others = [np.linalg.norm(center - other) for number, other in enumerate(real) if number != index]
            if np.linalg.norm(point - center) <= sorted(others)[k - 1]:
                inside += 1
                break
    return inside / len(generated)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_those_of_a_loop(k, monkeypatch):
    monkeypatch.setattr(generative, "BLOCK", 7)  # blocks do not matter
    real, generated = RANDOM.randn(40, 3), RANDOM.randn(30, 3) * 1.2 + 1.5
    expected = loop_precision(real, generated, k), loop_precision(generated, real, k)
    assert 0 < min(expected) <= max(expected) < 1
    assert generative.precision_recall(real, generated, k) == pytest.approx(expected)


def test_a_generator_of_one_mode_is_precise_and_one_of_noise_is_not():
    real = np.concatenate([RANDOM.randn(100, 4), RANDOM.randn(100, 4) + 20])
    precision, recall = generative.precision_recall(real, RANDOM.randn(100, 4))
    assert precision > 0.8
    assert recall < 0.6  # half of what is real is out of reach
    assert generative.precision_recall(real, RANDOM.randn(100, 4) + 1000) == (0.0, 0.0)
    assert generative.precision_recall(real, real) == (1.0, 1.0)


def test_training_on_real_digits_is_as_good_as_known():
    train, test = slice(0, 1438), slice(1438, None)
    images = DIGITS.images[..., None]
    order = np.random.RandomState(0).permutation(len(images))
    images, targets = images[order], DIGITS.target[order]
    accuracy = generative.train_on_generated(images[train], targets[train], images[test], targets[test])
    assert accuracy > 0.985
    wrong = generative.train_on_generated(images[train], (targets[train] + 1) % 10, images[test], targets[test])
    assert wrong < 0.01


def test_summarize_trains_on_samples_of_each_examples_class():
    chosen = np.arange(400)
    nearby = np.stack([DIGITS.images[chosen], DIGITS.images[chosen] + 0.1], axis=1)[..., None]
    values = {"samples": nearby, "targets": DIGITS.target[chosen], "images": DIGITS.images[chosen][..., None]}
    samples, labels = generative.drawn(values, 500)
    assert samples.shape == (500, 8, 8, 1)
    np.testing.assert_array_equal(samples[401], nearby[1, 1])
    np.testing.assert_array_equal(labels[400:], DIGITS.target[:100])
    assert generative.summarize(values)["generated_accuracy"] > 0.99
    assert generative.summarize({"targets": values["targets"]}) == {}
    assert generative.summarize({**values, "samples": np.zeros_like(nearby)}) == {}
    assert generative.summarize({**values, "samples": np.full_like(nearby, np.nan)}) == {}
    with pytest.raises(ExperimentError, match='no "images"'):
        generative.summarize({"samples": nearby, "targets": values["targets"]})


def test_a_learner_with_images_gives_them():
    learner = foldax.Learner(None, None, lambda state, batch, key: {"loss": batch["inputs"].sum(axis=1)})
    batch = {"inputs": np.ones((3, 2), np.float32), "targets": np.arange(3)}
    values = generative.with_images(learner).evaluate(None, batch, None)
    assert values.keys() == {"loss", "images", "targets"}
    np.testing.assert_array_equal(values["images"], batch["inputs"])


@pytest.fixture(scope="module")
def classifier():
    return foldax.train(tiny, tiny.config(dropout=0.5), save=False, verbose=False)


def test_features_are_what_the_last_layer_makes_logits_of(classifier, monkeypatch):
    monkeypatch.setattr(generative, "BLOCK", 50)
    images = tiny_arrays()["inputs"][:120]
    found = generative.features(classifier, images)
    assert found.shape == (120, 8)
    last = classifier.state.params["Dense_1"]
    logits = found @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(logits, classifier.predict(images), rtol=1e-4, atol=1e-5)


def test_features_need_a_dense_layer(classifier):
    rowless = tiny._replace(learner=lambda config, info: foldax.Learner(None, None, None, lambda s, x, k: x))
    with pytest.raises(ExperimentError, match="no nn.Dense"):
        generative.features(dataclasses.replace(classifier, experiment=rowless), np.ones((3, 6), np.float32))
    silent = tiny._replace(learner=lambda config, info: foldax.Learner(None, None, None))
    with pytest.raises(ExperimentError, match="no `predict`"):
        generative.features(dataclasses.replace(classifier, experiment=silent), np.ones((3, 6), np.float32))


def test_features_of_a_network_whose_hidden_layers_are_a_loop():
    def learner(config, info):
        model = models.MLP((8, 8, 8, 2), scan_layers=True)
        return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)

    result = foldax.train(tiny._replace(learner=learner), save=False, verbose=False)
    found = generative.features(result, tiny_arrays()["inputs"])
    last = result.state.params["Dense_1"]
    logits = found @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(logits, result.predict(tiny_arrays()["inputs"]), rtol=1e-4, atol=1e-5)


def test_nearest_neighbours_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(generative, "BLOCK", 4)
    samples, training = RANDOM.randn(10, 3, 2, 1), RANDOM.randn(25, 3, 2, 1)
    indices, distances = generative.nearest_neighbours(samples, training)
    for sample, index, distance in zip(samples, indices, distances, strict=True):
        apart = [np.linalg.norm(sample - image) for image in training]
        assert index == np.argmin(apart)
        assert distance == pytest.approx(min(apart))
    copies, none = generative.nearest_neighbours(training[::-1], training)
    np.testing.assert_array_equal(copies, np.arange(25)[::-1])
    np.testing.assert_array_equal(none, np.zeros(25))
    assert [len(part) for part in generative.nearest_neighbours(samples[:0], training)] == [0, 0]


def test_the_comparison_tells_all_measures_of_generated_and_of_real(classifier):
    arrays = tiny_arrays()
    train, test = ({name: part[rows] for name, part in arrays.items()} for rows in (slice(0, 100), slice(100, None)))
    samples, labels = train["inputs"] + 3.0, train["targets"]
    table = generative.comparison(samples, labels, train, test, classifier)
    rows = {line[:40].strip(): [float(cell) for cell in line[40:].split()] for line in table.splitlines()[1:6]}
    expected = generative.features(classifier, test["inputs"])
    moved, real = (generative.features(classifier, x[:60]) for x in (samples, train["inputs"]))
    assert rows["Frechet distance*"] == pytest.approx(
        [generative.frechet_distance(expected, moved), generative.frechet_distance(expected, real)], abs=1e-4
    )
    assert rows["accuracy, trained on 100 and 100"][1] == pytest.approx(
        generative.train_on_generated(train["inputs"], labels, test["inputs"], test["targets"]), abs=1e-4
    )
    precision, recall = generative.precision_recall(expected, moved)
    assert rows["precision*"][0] == pytest.approx(precision, abs=1e-4)
    assert rows["recall*"][0] == pytest.approx(recall, abs=1e-4)
    seen = np.median(generative.nearest_neighbours(test["inputs"], train["inputs"])[1])
    assert rows["distance to nearest training image**"][1] == pytest.approx(seen, abs=1e-4)
    assert "against 60 test images" in table
    assert "our own tiny: not comparable with Inception" in table


IMAGES, LABELS = RANDOM.rand(20, 4, 4, 1), np.arange(20) % 2
BAD = [
    (lambda: generative.train_on_generated(np.ones((20, 4, 4, 1)), LABELS, IMAGES, LABELS), "the same image"),
    (lambda: generative.train_on_generated(IMAGES[:0], LABELS[:0], IMAGES, LABELS), "the same image"),
    (lambda: generative.train_on_generated(IMAGES, LABELS * 0, IMAGES, LABELS), "two classes or more"),
    (lambda: generative.train_on_generated(IMAGES, LABELS, IMAGES[:, :3], LABELS), "16 numbers each and images 12"),
    (lambda: generative.train_on_generated(IMAGES, LABELS[:5], IMAGES, LABELS), r"labels: must be integers \[20\]"),
    (lambda: generative.train_on_generated(IMAGES, LABELS * 0.5, IMAGES, LABELS), "must be integers"),
    (lambda: generative.train_on_generated(IMAGES, LABELS, IMAGES[:0], LABELS[:0]), "no real image"),
    (lambda: generative.train_on_generated(IMAGES * np.nan, LABELS, IMAGES, LABELS), "samples: .* not finite"),
    (lambda: generative.frechet_distance(IMAGES[0, 0, 0], IMAGES), "one row per example"),
    (lambda: generative.frechet_distance(IMAGES[:1], IMAGES), "two rows"),
    (lambda: generative.frechet_distance(IMAGES, IMAGES[:, :2]), "16 numbers each and second 8"),
    (lambda: generative.precision_recall(IMAGES * 0, IMAGES), "rows are the same"),
    (lambda: generative.precision_recall(IMAGES, IMAGES, k=20), "below the number of rows, 20 and 20"),
    (lambda: generative.precision_recall(IMAGES, IMAGES, k=0), "from 1"),
    (lambda: generative.nearest_neighbours(IMAGES, IMAGES[:0]), "there are none"),
    (lambda: generative.nearest_neighbours(IMAGES, IMAGES[:, :2]), "training_images 8"),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_says_what_is_wrong(call, said):
    with pytest.raises((ConfigError, ExperimentError), match=said):
        call()
