"""Measures of generated images compared with closed forms, loops and real digits."""

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
def seed_independently_of_test_order():
    RANDOM.seed(0)


def normal_rows(count, mean, covariance):
    """Normal rows with exactly this sample mean and covariance."""
    rows = RANDOM.randn(count, len(mean))
    rows = rows - rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows, rowvar=False)))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def random_covariance(width):
    factors = RANDOM.randn(width, width)
    return factors @ factors.T + 0.1 * np.eye(width)


def test_frechet_distance_of_normals_matches_the_closed_form():
    one, other, means = random_covariance(5), random_covariance(5), RANDOM.randn(2, 5)
    cross = linalg.sqrtm(one @ other).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(one + other - 2 * cross)
    distance = generative.frechet_distance(normal_rows(60, means[0], one), normal_rows(90, means[1], other))
    assert distance == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_one_dimension_follows_from_means_and_deviations():
    first, second = normal_rows(40, np.array([1.0]), np.eye(1) * 4), normal_rows(40, np.array([-2.0]), np.eye(1) * 0.25)
    assert generative.frechet_distance(first, second) == pytest.approx(3.0**2 + (2 - 0.5) ** 2)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_with_few_rows():
    rows = RANDOM.randn(4, 9)  # its covariance has rank 3
    assert generative.frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)
    moved = generative.frechet_distance(rows, rows + 2.0)
    assert moved == pytest.approx(9 * 4.0, rel=1e-6)


def loop_precision(real, generated, k):
    covered = 0
    for point in generated:
        for index, center in enumerate(real):
            others = [np.linalg.norm(center - other) for i, other in enumerate(real) if i != index]
            if np.linalg.norm(point - center) <= sorted(others)[k - 1]:
                covered += 1
                break
    return covered / len(generated)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_match_a_loop(k, monkeypatch):
    monkeypatch.setattr(generative, "BLOCK_SIZE", 7)  # the size of a block does not matter
    real, generated = RANDOM.randn(40, 3), RANDOM.randn(30, 3) * 1.2 + 1.5
    expected = loop_precision(real, generated, k), loop_precision(generated, real, k)
    assert 0 < min(expected) <= max(expected) < 1
    assert generative.precision_recall(real, generated, k) == pytest.approx(expected)


def test_one_mode_has_precision_without_recall_and_distant_noise_has_neither():
    real = np.concatenate([RANDOM.randn(100, 4), RANDOM.randn(100, 4) + 20])
    precision, recall = generative.precision_recall(real, RANDOM.randn(100, 4))
    assert precision > 0.8
    assert recall < 0.6  # half of the real rows are far from any generated one
    assert generative.precision_recall(real, RANDOM.randn(100, 4) + 1000) == (0.0, 0.0)
    assert generative.precision_recall(real, real) == (1.0, 1.0)


def test_tstr_accuracy_of_real_digits_is_the_known_one():
    train, test = slice(0, 1438), slice(1438, None)
    images = DIGITS.images[..., None]
    order = np.random.RandomState(0).permutation(len(images))
    images, targets = images[order], DIGITS.target[order]
    accuracy = generative.tstr_accuracy(images[train], targets[train], images[test], targets[test])
    assert accuracy > 0.985
    wrong = generative.tstr_accuracy(images[train], (targets[train] + 1) % 10, images[test], targets[test])
    assert wrong < 0.01


def test_summarize_trains_on_samples_of_each_class():
    chosen = np.arange(400)
    similar = np.stack([DIGITS.images[chosen], DIGITS.images[chosen] + 0.1], axis=1)[..., None]
    values = {"samples": similar, "targets": DIGITS.target[chosen], "images": DIGITS.images[chosen][..., None]}
    samples, labels = generative.collect_samples(values, 500)
    assert samples.shape == (500, 8, 8, 1)
    np.testing.assert_array_equal(samples[401], similar[1, 1])
    np.testing.assert_array_equal(labels[400:], DIGITS.target[:100])
    assert generative.summarize(values)["tstr_accuracy"] > 0.99
    assert generative.summarize({"targets": values["targets"]}) == {}
    assert generative.summarize({**values, "samples": np.zeros_like(similar)}) == {}
    assert generative.summarize({**values, "samples": np.full_like(similar, np.nan)}) == {}
    with pytest.raises(ExperimentError, match='no "images"'):
        generative.summarize({"samples": similar, "targets": values["targets"]})


def test_with_images_adds_images_and_targets_to_the_outputs():
    learner = foldax.Learner(None, None, lambda state, batch, key: {"loss": batch["inputs"].sum(axis=1)})
    batch = {"inputs": np.ones((3, 2), np.float32), "targets": np.arange(3)}
    evaluation = generative.with_images(learner).evaluate(None, batch, None)
    assert evaluation.metrics.keys() == {"loss"}
    assert evaluation.outputs.keys() == {"images", "targets"}
    np.testing.assert_array_equal(evaluation.outputs["images"], batch["inputs"])


@pytest.fixture(scope="module")
def classifier():
    return foldax.train(tiny, tiny.config(dropout=0.5), save=False, verbose=False)


def test_features_are_the_inputs_of_the_last_layer(classifier, monkeypatch):
    monkeypatch.setattr(generative, "BLOCK_SIZE", 50)
    images = tiny_arrays()["inputs"][:120]
    features = generative.classifier_features(classifier, images)
    assert features.shape == (120, 8)
    last = classifier.state.params["Dense_1"]
    logits = features @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(logits, classifier.predict(images), rtol=1e-4, atol=1e-5)


def test_features_need_a_dense_layer(classifier):
    without_dense = tiny._replace(learner=lambda config, info: foldax.Learner(None, None, None, lambda s, x, k: x))
    with pytest.raises(ExperimentError, match="no nn.Dense"):
        generative.classifier_features(
            dataclasses.replace(classifier, experiment=without_dense), np.ones((3, 6), np.float32)
        )
    without_predict = tiny._replace(learner=lambda config, info: foldax.Learner(None, None, None))
    with pytest.raises(ExperimentError, match="no `predict`"):
        generative.classifier_features(
            dataclasses.replace(classifier, experiment=without_predict), np.ones((3, 6), np.float32)
        )


def test_features_of_a_network_with_scanned_hidden_layers():
    def learner(config, info):
        model = models.MLP((8, 8, 8, 2), scan_layers=True)
        return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)

    result = foldax.train(tiny._replace(learner=learner), save=False, verbose=False)
    features = generative.classifier_features(result, tiny_arrays()["inputs"])
    last = result.state.params["Dense_1"]
    logits = features @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(logits, result.predict(tiny_arrays()["inputs"]), rtol=1e-4, atol=1e-5)


def test_nearest_neighbors_match_a_loop(monkeypatch):
    monkeypatch.setattr(generative, "BLOCK_SIZE", 4)
    samples, training = RANDOM.randn(10, 3, 2, 1), RANDOM.randn(25, 3, 2, 1)
    indices, distances = generative.nearest_neighbors(samples, training)
    for sample, index, distance in zip(samples, indices, distances, strict=True):
        expected = [np.linalg.norm(sample - image) for image in training]
        assert index == np.argmin(expected)
        assert distance == pytest.approx(min(expected))
    copies, zeros = generative.nearest_neighbors(training[::-1], training)
    np.testing.assert_array_equal(copies, np.arange(25)[::-1])
    np.testing.assert_array_equal(zeros, np.zeros(25))
    assert [len(part) for part in generative.nearest_neighbors(samples[:0], training)] == [0, 0]


def test_the_table_has_all_measures_of_generated_and_of_real_images(classifier):
    arrays = tiny_arrays()
    train, test = ({name: part[rows] for name, part in arrays.items()} for rows in (slice(0, 100), slice(100, None)))
    samples, labels = train["inputs"] + 3.0, train["targets"]
    table = generative.compare_to_real(samples, labels, train, test, classifier)
    rows = {line[:18].strip(): [float(cell) for cell in line[18:42].split()] for line in table.splitlines()[1:6]}
    expected = generative.classifier_features(classifier, test["inputs"])
    generated, real = (generative.classifier_features(classifier, x[:60]) for x in (samples, train["inputs"]))
    assert rows["Fréchet distance"] == pytest.approx(
        [generative.frechet_distance(expected, generated), generative.frechet_distance(expected, real)], abs=1e-4
    )
    accuracy = generative.tstr_accuracy(train["inputs"], labels, test["inputs"], test["targets"])
    assert rows["TSTR accuracy"][1] == pytest.approx(accuracy, abs=1e-4)
    precision, recall = generative.precision_recall(expected, generated)
    assert rows["precision"][0] == pytest.approx(precision, abs=1e-4)
    assert rows["recall"][0] == pytest.approx(recall, abs=1e-4)
    distance = np.median(generative.nearest_neighbors(test["inputs"], train["inputs"])[1])
    assert rows["distance"][1] == pytest.approx(distance, abs=1e-4)
    assert "60 generated or training images" in table
    assert "our own classifier (tiny): not comparable with Inception" in table


IMAGES, LABELS = RANDOM.rand(20, 4, 4, 1), np.arange(20) % 2
INVALID = [
    (lambda: generative.tstr_accuracy(np.ones((20, 4, 4, 1)), LABELS, IMAGES, LABELS), "the same image"),
    (lambda: generative.tstr_accuracy(IMAGES[:0], LABELS[:0], IMAGES, LABELS), "the same image"),
    (lambda: generative.tstr_accuracy(IMAGES, LABELS * 0, IMAGES, LABELS), "two classes or more"),
    (lambda: generative.tstr_accuracy(IMAGES, LABELS, IMAGES[:, :3], LABELS), "16 elements each and images 12"),
    (lambda: generative.tstr_accuracy(IMAGES, LABELS[:5], IMAGES, LABELS), r"labels: must be integers \[20\]"),
    (lambda: generative.tstr_accuracy(IMAGES, LABELS * 0.5, IMAGES, LABELS), "must be integers"),
    (lambda: generative.tstr_accuracy(IMAGES, LABELS, IMAGES[:0], LABELS[:0]), "no real images"),
    (lambda: generative.tstr_accuracy(IMAGES * np.nan, LABELS, IMAGES, LABELS), "samples: .* not finite"),
    (lambda: generative.frechet_distance(IMAGES[0, 0, 0], IMAGES), "one row per example"),
    (lambda: generative.frechet_distance(IMAGES[:1], IMAGES), "two rows"),
    (lambda: generative.frechet_distance(IMAGES, IMAGES[:, :2]), "16 elements each and second 8"),
    (lambda: generative.precision_recall(IMAGES * 0, IMAGES), "rows are the same"),
    (lambda: generative.precision_recall(IMAGES, IMAGES, k=20), "below the number of rows, 20 and 20"),
    (lambda: generative.precision_recall(IMAGES, IMAGES, k=0), "from 1"),
    (lambda: generative.nearest_neighbors(IMAGES, IMAGES[:0]), "there are none"),
    (lambda: generative.nearest_neighbors(IMAGES, IMAGES[:, :2]), "training_images 8"),
]


@pytest.mark.parametrize(("call", "message"), INVALID, ids=[message for _, message in INVALID])
def test_invalid_input_raises_a_helpful_error(call, message):
    with pytest.raises((ConfigError, ExperimentError), match=message):
        call()
