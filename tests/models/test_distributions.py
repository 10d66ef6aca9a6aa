"""Distributions over actions, beside SciPy and at the edges of their supports."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from foldax.models import Categorical

LOGITS = jnp.array([[0.5, -jnp.inf, 2.0], [0.0, 0.0, -jnp.inf]])


def test_an_excluded_action_has_no_share_in_log_probabilities_and_entropy() -> None:
    actions, distribution = jnp.array([2, 1]), Categorical(LOGITS)
    probabilities = np.asarray(jax.nn.softmax(LOGITS))
    np.testing.assert_allclose(distribution.log_prob(actions), np.log(probabilities[[0, 1], actions]), rtol=1e-6)
    np.testing.assert_allclose(distribution.entropy(), stats.entropy(probabilities, axis=1), rtol=1e-6)
    assert Categorical(LOGITS).log_prob(jnp.array([1, 2])).tolist() == [-np.inf, -np.inf]


def test_gradients_with_an_excluded_action_are_those_without_it() -> None:
    def value(logits):
        return Categorical(logits).entropy() + Categorical(logits).log_prob(jnp.array([0]))

    with_excluded = jax.grad(lambda logits: value(logits).sum())(LOGITS[:1])
    without = jax.grad(lambda logits: value(logits).sum())(LOGITS[:1, jnp.array([0, 2])])
    np.testing.assert_allclose(with_excluded[0], [without[0, 0], 0, without[0, 1]], rtol=1e-6)
