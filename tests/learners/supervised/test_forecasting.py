"""Forecasters: instance normalisation, units of metrics and outputs, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from foldax import learners
from foldax.errors import ExperimentError

KEY = jax.random.key(0)


class Constant(nn.Module):
    """Returns the same outputs for all inputs."""

    outputs: tuple[float, ...]

    @nn.compact
    def __call__(self, x, *, train=False):
        self.param("unused", nn.initializers.zeros, ())
        return jnp.broadcast_to(jnp.asarray(self.outputs, jnp.float32), (x.shape[0], len(self.outputs)))


@pytest.mark.parametrize("normalization", ["window", "last", None])
def test_forecaster_normalises_each_context_by_its_own_statistics(normalization):
    contexts = np.random.RandomState(1).randn(4, 6, 1).astype(np.float32) * 3 + 10
    targets = np.random.RandomState(2).randn(4, 2).astype(np.float32) * 3 + 10
    model = Constant((0.5, -1.0, 0.0, 1.0))
    learner = learners.forecaster(model, optax.sgd(0.0), normalization=normalization, interval_probability=0.8)
    batch = {"inputs": contexts, "targets": targets}
    metrics, outputs = learner.evaluate(learner.init(KEY, batch), batch, KEY)
    scale = contexts.std(axis=1) if normalization else np.ones((4, 1))
    location = {"window": contexts.mean(axis=1), "last": contexts[:, -1], None: np.zeros((4, 1))}[normalization]
    mean, std = location + scale * np.array([[0.5, -1.0]]), scale * np.exp([[0.0, 1.0]])
    np.testing.assert_allclose(outputs["predictions"], mean, rtol=1e-5)
    np.testing.assert_allclose(outputs["std"], std, rtol=1e-5)
    np.testing.assert_allclose(metrics["absolute_error"], np.abs(mean - targets).mean(1), rtol=1e-5)
    np.testing.assert_allclose(metrics["coverage"], (np.abs(mean - targets) < 1.2815516 * std).mean(1))
    expected = 0.5 * ((targets - mean) / std) ** 2 + np.log(std / scale) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(metrics["loss"], expected.mean(1), rtol=1e-4)


def test_forecaster_of_a_constant_context_is_finite():
    learner = learners.forecaster(Constant((0.5, 0.0)), optax.sgd(0.1))
    batch = {"inputs": np.full((2, 5, 1), 7.0, np.float32), "targets": np.full((2, 1), 7.0, np.float32)}
    state = learner.init(KEY, batch)
    np.testing.assert_allclose(learner.predict(state, batch["inputs"], KEY)["mean"], 7.5)
    assert np.isfinite(learner.update(state, batch, KEY)[1]["loss"])


def test_mistakes_in_options_are_errors_that_name_them():
    with pytest.raises(ExperimentError, match="interval"):
        learners.forecaster(Constant((0.0,)), optax.sgd(0.1), interval_probability=1.0)
    with pytest.raises(ExperimentError, match="normalization"):
        learners.forecaster(Constant((0.0,)), optax.sgd(0.1), normalization="windw")
