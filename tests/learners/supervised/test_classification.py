"""Classifiers: convergence, metrics and outputs, losses, weights, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from foldax.errors import ExperimentError
from foldax.learners import classifier, losses
from foldax.learners.supervised.classification import accuracy
from foldax.models import MLP
from tests.learners.supervised.shared import CLASSES, CONTINUOUS, INPUTS, KEY, LINEAR, fit

BINARY = {"inputs": INPUTS, "targets": jnp.arange(12) % 2}


def test_classifier_overfits_a_batch():
    learner = classifier(MLP((32, 3)), optax.adam(0.02))
    state, metrics = fit(learner, CLASSES, 200)
    assert metrics["accuracy"][-1] == 1.0
    assert metrics["loss"][-1] < 0.05
    assert set(metrics) == {"loss", "accuracy", "gradient_norm"}
    evaluation = learner.evaluate(state, CLASSES, KEY)
    assert evaluation.metrics["accuracy"].shape == evaluation.metrics["loss"].shape == (12,)
    assert evaluation.outputs["targets"].dtype == jnp.int32
    np.testing.assert_array_equal(evaluation.outputs["logits"], learner.predict(state, INPUTS, KEY))


@pytest.mark.parametrize("width", [(), (1,)])
@pytest.mark.parametrize(("loss", "negative"), [(losses.sigmoid_cross_entropy, 0), (losses.hinge, -1)])
def test_one_logit_classifies_two_classes(width, loss, negative):
    class OneLogit(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return MLP((32, 1))(x).reshape(x.shape[0], *width)

    batch = {**BINARY, "targets": jnp.where(BINARY["targets"] == 0, negative, 1)}
    learner = classifier(OneLogit(), optax.adam(0.02), loss=loss)
    state, metrics = fit(learner, batch, 150)
    assert metrics["accuracy"][-1] == 1.0
    evaluation = learner.evaluate(state, batch, KEY)
    assert evaluation.outputs["logits"].shape == (12, 1)
    np.testing.assert_array_equal(evaluation.outputs["logits"][:, 0] > 0, batch["targets"] > 0)
    assert evaluation.metrics["accuracy"].mean() == 1.0


def test_a_prediction_of_nan_is_wrong():
    nan = jnp.full((2, 3), jnp.nan)
    assert accuracy(nan, jnp.array([0, 1])).tolist() == [0, 0]
    assert accuracy(nan[:, :1], jnp.array([0, 1])).tolist() == [0, 0]
    np.testing.assert_allclose(accuracy(nan.at[0, 1].set(2.0), jnp.array([[0, 1, 0], [0, 0, 0]])), [1 / 3, 0])


def test_accuracy_of_many_labels_counts_each():
    batch = {"inputs": INPUTS, "targets": jnp.ones((12, 3), int)}
    learner = classifier(LINEAR, optax.sgd(0.0), loss=losses.sigmoid_cross_entropy)
    metrics, outputs = learner.evaluate(learner.init(KEY, batch), batch, KEY)
    np.testing.assert_allclose(metrics["accuracy"], (outputs["logits"] > 0).mean(axis=1), rtol=1e-6)


def test_class_weights_are_the_sample_weights_of_sklearn():
    class_weights = np.array([1.0, 5.0, 0.5])
    learner = classifier(LINEAR, optax.sgd(0.0), class_weights=class_weights)
    state, metrics = fit(learner, {**CLASSES, "targets": CLASSES["targets"].at[:3].set(1)}, 1)
    classes = np.asarray(CLASSES["targets"].at[:3].set(1))
    probabilities = softmax(np.asarray(learner.predict(state, INPUTS, KEY), float), axis=1)
    expected = sklearn_metrics.log_loss(classes, probabilities, sample_weight=class_weights[classes])
    assert metrics["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_smoothing_and_weights_act_in_training_only():
    plain, weighted = (
        classifier(LINEAR, optax.sgd(0.0), **options)
        for options in ({}, {"label_smoothing": 0.5, "class_weights": jnp.array([1.0, 2.0, 3.0])})
    )
    state, metrics = fit(weighted, CLASSES, 1)
    actual, expected = (learner.evaluate(state, CLASSES, KEY).metrics["loss"] for learner in (weighted, plain))
    np.testing.assert_array_equal(actual, expected)
    assert metrics["loss"][0] != pytest.approx(float(expected.mean()))


def test_a_batch_of_classes_with_weight_zero_has_loss_zero_and_changes_nothing():
    learner = classifier(LINEAR, optax.sgd(0.5), class_weights=(0.0, 1.0, 1.0))
    batch = {**CLASSES, "targets": jnp.zeros_like(CLASSES["targets"])}
    state = learner.init(KEY, batch)
    after, metrics = learner.update(state, batch, KEY)
    assert metrics["loss"] == metrics["gradient_norm"] == 0
    chex.assert_trees_all_equal(after, state)


def test_microbatches_equal_the_whole_batch_with_class_weights():
    options = {"class_weights": jnp.array([1.0, 5.0, 0.5]), "l1": 0.01}
    whole = fit(classifier(LINEAR, optax.sgd(0.5), **options), CLASSES, 3)
    parts = fit(classifier(LINEAR, optax.sgd(0.5), microbatches=4, **options), CLASSES, 3)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_soft_labels_of_an_augmentation_are_trained_on_and_the_most_probable_class_counts():
    def mix(key, batch):
        probabilities = 0.7 * jax.nn.one_hot(batch["targets"], 3) + 0.3 * jax.nn.one_hot(batch["targets"][::-1], 3)
        return {**batch, "targets": probabilities}

    learner = classifier(LINEAR, optax.sgd(0.0), augment=mix)
    state = learner.init(KEY, CLASSES)
    _, metrics = learner.update(state, CLASSES, KEY)
    logits = np.asarray(learner.predict(state, INPUTS, KEY), float)
    probabilities = np.asarray(mix(KEY, CLASSES)["targets"])
    expected = -(probabilities * np.log(softmax(logits, axis=1))).sum(1).mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == np.asarray(CLASSES["targets"])).mean())


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (lambda: classifier(LINEAR, optax.sgd(0.1)), {"inputs": INPUTS}, "'targets' is missing"),
        (lambda: classifier(LINEAR, optax.sgd(0.1)), (INPUTS, INPUTS), "got a tuple"),
        (lambda: classifier(MLP((1,)), optax.sgd(0.1)), CLASSES, "two classes or more"),
        (lambda: classifier(LINEAR, optax.sgd(0.1)), CONTINUOUS, "integer classes"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), microbatches=5), CLASSES, "microbatches=5"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), class_weights=jnp.ones(3)), CONTINUOUS, "class_weights"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), class_weights=jnp.ones(2)), CLASSES, "2 weights do not fit the 3"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), class_weights=(1, np.nan, 1)), CLASSES, "nan of class 1 must be"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), class_weights=np.zeros(3)), CLASSES, "not all 0"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), loss="sigmoid"), CLASSES, "loss: 'sigmoid' is no function"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), loss=losses.hinge, label_smoothing=0.1), CLASSES, "hinge"),
    ],
)
def test_mistakes_are_errors_that_name_them(make, batch, message):
    with pytest.raises(ExperimentError, match=message):
        fit(make(), batch, 1)
