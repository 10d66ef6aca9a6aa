"""Losses against scikit-learn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax
from scipy.stats import norm
from sklearn import metrics

from foldax.errors import ExperimentError
from foldax.learners import losses

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(50, 4)).astype(np.float32) * 3
CLASSES = np.arange(50) % 4
BINARY = np.arange(50) % 2


def test_softmax_cross_entropy_is_log_loss():
    expected = metrics.log_loss(CLASSES, np.exp(log_softmax(LOGITS.astype(float), axis=1)))
    assert losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(CLASSES)).mean() == pytest.approx(
        expected, rel=1e-5
    )


def test_label_smoothing_of_softmax_is_its_closed_form():
    smoothed = np.eye(4)[CLASSES] * 0.8 + 0.2 / 4
    expected = -(smoothed * log_softmax(LOGITS.astype(float), axis=1)).sum(1)
    loss = jax.jit(losses.softmax_cross_entropy)(LOGITS, CLASSES, 0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_softmax_cross_entropy_of_soft_labels_is_the_weighted_mean_over_classes():
    probabilities = RANDOM.dirichlet(np.ones(4), 50).astype(np.float32)
    each = [
        metrics.log_loss(
            np.full(50, c),
            np.exp(log_softmax(LOGITS.astype(float), axis=1)),
            labels=range(4),
            sample_weight=probabilities[:, c],
        )
        * probabilities[:, c].sum()
        / 50
        for c in range(4)
    ]
    loss = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(probabilities))
    assert loss.mean() == pytest.approx(sum(each), rel=1e-5)
    hard = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.eye(4)[CLASSES], 0.2)
    np.testing.assert_allclose(
        hard, losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(CLASSES), 0.2), rtol=1e-5
    )


@pytest.mark.parametrize("outputs", [1, 3])
def test_gaussian_nll_is_that_of_scipy(outputs):
    mean, log_std = RANDOM.normal(size=(2, 20, outputs)).astype(np.float32)
    targets = RANDOM.normal(size=(20, outputs)).astype(np.float32)
    loss = losses.gaussian_nll(jnp.concatenate([mean, log_std], axis=1), jnp.asarray(targets))
    np.testing.assert_allclose(loss, -norm.logpdf(targets, mean, np.exp(log_std)).mean(axis=1), rtol=1e-4)


def test_gaussian_nll_is_finite_for_extreme_standard_deviations():
    def loss(outputs):
        return losses.gaussian_nll(outputs, jnp.zeros((1, 1))).sum()

    for log_std in (-1e4, 1e4):
        value, gradient = jax.value_and_grad(loss)(jnp.array([[1.0, log_std]]))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    with pytest.raises(ExperimentError, match="two outputs for each target"):
        loss(jnp.zeros((1, 3)))


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_sigmoid_cross_entropy_is_log_loss(shape):
    expected = metrics.log_loss(BINARY, expit(LOGITS[:, 0].astype(float)))
    loss = losses.sigmoid_cross_entropy(jnp.asarray(LOGITS[:, 0]).reshape(shape), jnp.asarray(BINARY))
    assert loss.shape == (50,)
    assert loss.mean() == pytest.approx(expected, rel=1e-5)


def test_sigmoid_cross_entropy_of_many_labels_is_their_mean():
    labels = RANDOM.integers(0, 2, (50, 4))
    each = [losses.sigmoid_cross_entropy(jnp.asarray(LOGITS[:, i]), jnp.asarray(labels[:, i])) for i in range(4)]
    loss = losses.sigmoid_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(labels))
    np.testing.assert_allclose(loss, np.mean(each, axis=0), rtol=1e-5)


def test_label_smoothing_of_sigmoid_is_its_closed_form():
    logits = jnp.asarray(LOGITS[:, 0])
    smooth = np.where(BINARY == 1, 0.95, 0.05)
    expected = -smooth * np.log(expit(logits)) - (1 - smooth) * np.log(expit(-logits))
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, jnp.asarray(BINARY), 0.1), expected, rtol=1e-4)


def test_hinge_of_many_classes_is_that_of_sklearn():
    loss = losses.hinge(jnp.asarray(LOGITS), jnp.asarray(CLASSES))
    assert loss.mean() == pytest.approx(metrics.hinge_loss(CLASSES, LOGITS), rel=1e-5)


@pytest.mark.parametrize("targets", [BINARY, BINARY * 2 - 1])
def test_hinge_of_two_classes_is_that_of_sklearn(targets):
    loss = losses.hinge(jnp.asarray(LOGITS[:, :1]), jnp.asarray(targets))
    assert loss.mean() == pytest.approx(metrics.hinge_loss(targets, LOGITS[:, 0]), rel=1e-5)


def test_errors_are_those_of_sklearn():
    predictions, targets = jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1])
    squared = metrics.mean_squared_error(targets, predictions)
    assert losses.squared_error(predictions, targets).mean() == pytest.approx(squared, rel=1e-5)
    absolute = metrics.mean_absolute_error(targets, predictions)
    assert losses.absolute_error(predictions, targets).mean() == pytest.approx(absolute, rel=1e-5)


def test_huber_is_quadratic_then_linear():
    loss = jax.jit(losses.huber)(jnp.array([0.5, 3.0]), jnp.zeros(2), 2.0)
    np.testing.assert_allclose(loss, [0.5 * 0.5**2, 2.0 * (3.0 - 1.0)])


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "message"),
    [
        (losses.softmax_cross_entropy, jnp.zeros((3, 1)), jnp.zeros(3, int), "two classes or more"),
        (losses.softmax_cross_entropy, jnp.zeros((3, 2)), jnp.zeros(3), "integer classes"),
        (losses.softmax_cross_entropy, jnp.zeros((3, 2)), jnp.zeros((3, 1), int), "integer classes"),
        (losses.hinge, jnp.zeros((3, 2)), jnp.zeros((3, 2), int), "integer classes"),
        (losses.sigmoid_cross_entropy, jnp.zeros((3, 2)), jnp.zeros(3, int), "must match"),
        (losses.squared_error, jnp.zeros((3, 1)), jnp.zeros((3, 2)), "must match"),
        (losses.huber, jnp.zeros((3, 2, 2)), jnp.zeros((3, 2, 2)), "must match"),
    ],
)
def test_shapes_that_do_not_match_are_errors(loss, outputs, targets, message):
    with pytest.raises(ExperimentError, match=message):
        loss(outputs, targets)


def test_the_energy_score_matches_a_loop():
    draws, real = RANDOM.normal(size=(4, 3, 2, 3, 1)), RANDOM.normal(size=(4, 2, 3, 1))

    def distance(one, other):
        return np.sqrt(np.mean((one - other) ** 2))

    expected = [
        np.mean([distance(draw, truth) for draw in sample])
        - 0.5 * np.mean([distance(sample[i], sample[j]) for i in range(3) for j in range(3) if i != j])
        for sample, truth in zip(draws, real, strict=True)
    ]
    np.testing.assert_allclose(losses.energy_score(jnp.asarray(draws), jnp.asarray(real)), expected, rtol=1e-5)


def test_the_energy_score_is_lowest_for_the_true_distribution():
    real = jnp.asarray(RANDOM.normal(size=(4000, 2)))

    def score(scale, shift):
        draws = jnp.asarray(RANDOM.normal(size=(4000, 2, 2)) * scale + shift)
        return float(losses.energy_score(draws, real).mean())

    true = score(1.0, 0.0)
    assert all(true < score(*other) - 0.01 for other in ((0.0, 0.0), (0.6, 0.0), (1.6, 0.0), (1.0, 0.5)))
