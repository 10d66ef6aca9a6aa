"""Return distributions against loops over the papers' equations, and where their gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.learners.rl import return_distributions

KEY = jax.random.key(0)


def test_categorical_targets_are_projected_as_in_the_paper():
    """Algorithm 1 of Bellemare et al. (2017), atom by atom."""
    num_atoms, v_min, v_max = 7, -2.0, 2.0
    atoms, spacing = np.linspace(v_min, v_max, num_atoms), (v_max - v_min) / (num_atoms - 1)
    outputs, next_outputs = np.random.RandomState(0).randn(2, 5, num_atoms).astype(np.float32)
    rewards, discounts = np.float32([0.3, -3.0, 5.0, 0.0, 1 / 3]), np.float32([0.9, 0.5, 0.9, 0.0, 1.0])
    expected = []
    for row in range(5):
        probabilities, target = np.exp(next_outputs[row]) / np.exp(next_outputs[row]).sum(), np.zeros(num_atoms)
        for atom in range(num_atoms):
            place = (np.clip(rewards[row] + discounts[row] * atoms[atom], v_min, v_max) - v_min) / spacing
            below, above = int(np.floor(place)), int(np.ceil(place))
            if below == above:
                target[below] += probabilities[atom]
            else:
                target[below] += probabilities[atom] * (above - place)
                target[above] += probabilities[atom] * (place - below)
        log_probs = outputs[row] - np.log(np.exp(outputs[row]).sum())
        expected.append((target * (np.log(np.maximum(target, 1e-30)) - log_probs)).sum())
    distribution = return_distributions.categorical(num_atoms, v_min, v_max)
    losses, td_errors = distribution.loss(*(jnp.asarray(x) for x in (outputs, next_outputs, rewards, discounts)))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_array_equal(td_errors, losses)
    np.testing.assert_allclose(distribution.mean(jnp.zeros((2, num_atoms))), 0, atol=1e-6)


def test_quantile_losses_equal_a_loop_over_pairs():
    outputs, next_outputs = np.random.RandomState(0).randn(2, 4, 3).astype(np.float32)
    rewards, discounts = np.float32([0.1, -0.5, 2.0, 0.0]), np.float32([0.9, 0.0, 1.0, 0.5])
    expected = np.zeros(4)
    for row in range(4):
        for i in range(3):
            for j in range(3):
                error = rewards[row] + discounts[row] * next_outputs[row, j] - outputs[row, i]
                huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
                expected[row] += abs((i + 0.5) / 3 - (error < 0)) * huber / 3
    losses, td_errors = return_distributions.quantiles(3).loss(
        *(jnp.asarray(x) for x in (outputs, next_outputs, rewards, discounts))
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_array_equal(td_errors, losses)


@pytest.mark.parametrize("huber_delta", [None, 1.0])
def test_the_expectation_has_a_squared_or_a_huber_loss(huber_delta):
    args = (jnp.array([[1.0], [5.0]]), jnp.array([[2.0], [0.0]]), jnp.array([0.5, 1.0]), jnp.array([0.5, 0.9]))
    expected = [0.125, 8.0] if huber_delta is None else [0.125, 3.5]
    losses, td_errors = return_distributions.expectation(huber_delta).loss(*args)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(td_errors, [0.5, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    "distribution",
    [return_distributions.expectation(), return_distributions.categorical(5), return_distributions.quantiles(5)],
)
def test_gradients_flow_through_the_outputs_and_never_through_the_target(distribution):
    outputs, next_outputs = jax.random.normal(KEY, (2, 3, distribution.num_outputs))
    rest = (jnp.ones(3), jnp.full(3, 0.9))
    gradients = jax.grad(lambda *x: distribution.loss(*x, *rest)[0].sum(), argnums=(0, 1))(outputs, next_outputs)
    assert np.abs(gradients[0]).max() > 0
    assert not np.abs(gradients[1]).any()


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="1 atoms from -10.0 to 10.0"):
        return_distributions.categorical(1)
    with pytest.raises(ConfigError, match="num_quantiles is 0"):
        return_distributions.quantiles(0)
