"""Descriptions of returns against loops, and their fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.learners.rl import return_distributions

KEY = jax.random.key(0)


def test_categorical_targets_are_projected_as_in_the_paper():
    """Algorithm 1 of Bellemare et al. (2017), atom by atom."""
    atoms, low, high = 7, -2.0, 2.0
    support, gap = np.linspace(low, high, atoms), (high - low) / (atoms - 1)
    outputs, after = np.random.RandomState(0).randn(2, 5, atoms).astype(np.float32)
    reward, discount = np.float32([0.3, -3.0, 5.0, 0.0, 1 / 3]), np.float32([0.9, 0.5, 0.9, 0.0, 1.0])
    expected = []
    for row in range(5):
        chances, target = np.exp(after[row]) / np.exp(after[row]).sum(), np.zeros(atoms)
        for atom in range(atoms):
            place = (np.clip(reward[row] + discount[row] * support[atom], low, high) - low) / gap
            below, above = int(np.floor(place)), int(np.ceil(place))
            if below == above:
                target[below] += chances[atom]
            else:
                target[below] += chances[atom] * (above - place)
                target[above] += chances[atom] * (place - below)
        logs = outputs[row] - np.log(np.exp(outputs[row]).sum())
        expected.append((target * (np.log(np.maximum(target, 1e-30)) - logs)).sum())
    head = return_distributions.categorical(atoms, low, high)
    found, surprise = head.loss(*(jnp.asarray(x) for x in (outputs, after, reward, discount)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(surprise, found)
    np.testing.assert_allclose(head.mean(jnp.zeros((2, atoms))), 0, atol=1e-6)


def test_quantile_losses_are_those_of_a_loop():
    outputs, after = np.random.RandomState(0).randn(2, 4, 3).astype(np.float32)
    reward, discount = np.float32([0.1, -0.5, 2.0, 0.0]), np.float32([0.9, 0.0, 1.0, 0.5])
    expected = np.zeros(4)
    for row in range(4):
        for i in range(3):
            for j in range(3):
                apart = reward[row] + discount[row] * after[row, j] - outputs[row, i]
                huber = 0.5 * apart**2 if abs(apart) <= 1 else abs(apart) - 0.5
                expected[row] += abs((i + 0.5) / 3 - (apart < 0)) * huber / 3
    found, surprise = return_distributions.quantiles(3).loss(
        *(jnp.asarray(x) for x in (outputs, after, reward, discount))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(surprise, found)


@pytest.mark.parametrize("delta", [None, 1.0])
def test_the_mean_is_learned_by_square_or_by_huber(delta):
    args = (jnp.array([[1.0], [5.0]]), jnp.array([[2.0], [0.0]]), jnp.array([0.5, 1.0]), jnp.array([0.5, 0.9]))
    expected = [0.125, 8.0] if delta is None else [0.125, 3.5]
    found, surprise = return_distributions.expected(delta).loss(*args)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(surprise, [0.5, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    "head", [return_distributions.expected(), return_distributions.categorical(5), return_distributions.quantiles(5)]
)
def test_gradients_reach_the_outputs_and_never_the_target(head):
    outputs, after = jax.random.normal(KEY, (2, 3, head.width))
    other = (jnp.ones(3), jnp.full(3, 0.9))
    first, second = jax.grad(lambda *x: head.loss(*x, *other)[0].sum(), argnums=(0, 1))(outputs, after)
    assert np.abs(first).max() > 0
    assert not np.abs(second).any()


def test_bad_numbers_are_told():
    with pytest.raises(ConfigError, match="1 atoms from -10.0 to 10.0"):
        return_distributions.categorical(1)
    with pytest.raises(ConfigError, match="quantiles: 0"):
        return_distributions.quantiles(0)
