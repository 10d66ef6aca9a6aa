"""Regressors: convergence, units of metrics and outputs, prediction intervals, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax.errors import ExperimentError
from foldax.learners import gaussian_regressor, losses, regressor
from foldax.models import MLP
from tests.learners.supervised.shared import CONTINUOUS, INPUTS, KEY, LINEAR, fit


def test_regressor_learns_standardised_targets_and_reports_in_their_units():
    targets = CONTINUOUS["targets"]
    learner = regressor(MLP((1,)), optax.adam(0.1), target_mean=targets.mean(), target_std=targets.std())
    state, metrics = fit(learner, CONTINUOUS, 200)
    np.testing.assert_allclose(learner.predict(state, INPUTS, KEY)[:, 0], targets, rtol=0.01)
    assert metrics["loss"][0] * targets.var() == pytest.approx(float(metrics["squared_error"][0]), rel=1e-4)
    evaluated, outputs = learner.evaluate(state, CONTINUOUS, KEY)
    assert evaluated.keys() == {"loss", "squared_error", "absolute_error"}
    np.testing.assert_array_equal(outputs["targets"], targets[:, None])
    difference = np.asarray(outputs["predictions"] - outputs["targets"])[:, 0]
    np.testing.assert_allclose(evaluated["squared_error"], difference**2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(evaluated["absolute_error"], np.abs(difference), rtol=1e-4, atol=1e-6)


def test_regressor_of_several_outputs():
    targets = jnp.stack([INPUTS[:, 0], 100 + 50 * INPUTS[:, 1]], axis=1)
    learner = regressor(
        MLP((2,)), optax.adam(0.1), loss=losses.huber, target_mean=targets.mean(0), target_std=targets.std(0)
    )
    state, metrics = fit(learner, {"inputs": INPUTS, "targets": targets}, 200)
    np.testing.assert_allclose(learner.predict(state, INPUTS, KEY), targets, atol=1.0)
    assert metrics["absolute_error"][-1] < 0.5


def test_gaussian_regressor_learns_mean_and_standard_deviation():
    noise = 3.0 * jax.random.normal(jax.random.key(1), (4000,))
    batch = {"inputs": jnp.ones((4000, 1)), "targets": 50.0 + noise}
    learner = gaussian_regressor(
        MLP((2,)), optax.adam(0.05), interval_probability=0.8, target_mean=40.0, target_std=10.0
    )
    state, metrics = fit(learner, batch, 400)
    evaluated, outputs = learner.evaluate(state, batch, KEY)
    mean, std = float(batch["targets"].mean()), float(batch["targets"].std())
    np.testing.assert_allclose(outputs["predictions"][:, 0], mean, rtol=1e-2)
    np.testing.assert_allclose(outputs["std"][:, 0], std, rtol=2e-2)
    assert metrics["loss"][-1] == pytest.approx(np.log(std / 10) + 0.5 * np.log(2 * np.pi * np.e), abs=0.01)
    assert evaluated["coverage"].mean() == pytest.approx(0.8, abs=0.03)
    assert evaluated["interval_width"].mean() == pytest.approx(2 * 1.2816 * std, rel=3e-2)
    predicted = learner.predict(state, batch["inputs"][:2], KEY)
    np.testing.assert_array_equal(predicted["std"], outputs["std"][:2])


def test_predictions_that_do_not_match_the_targets_are_an_error():
    with pytest.raises(ExperimentError, match="must match"):
        fit(regressor(LINEAR, optax.sgd(0.1)), CONTINUOUS, 1)
