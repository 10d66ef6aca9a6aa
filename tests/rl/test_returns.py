"""Returns and advantages against plain loops, and for a chain whose values are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import rl

LENGTH = 7
flags = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)
floats = st.lists(st.floats(-2, 2, width=32), min_size=LENGTH, max_size=LENGTH)
given_steps = given(floats, floats, floats, flags, flags, st.floats(0, 1, width=32), st.floats(0, 1, width=32))


@given_steps
@settings(max_examples=60, deadline=None)
def test_advantages_are_those_of_a_plain_loop(
    rewards, values, next_values, terminated, truncated, discount, gae_lambda
):
    expected, advantage = np.zeros(LENGTH), 0.0
    for t in reversed(range(LENGTH)):
        td_error = rewards[t] + discount * next_values[t] * (not terminated[t]) - values[t]
        advantage = td_error + (0.0 if terminated[t] or truncated[t] else discount * gae_lambda * advantage)
        expected[t] = advantage
    arrays = [jnp.array(x) for x in (rewards, values, next_values, terminated, truncated)]
    np.testing.assert_allclose(rl.generalized_advantages(*arrays, discount, gae_lambda), expected, atol=1e-4)


@given(floats, floats, flags, flags, st.floats(0, 1, width=32), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_n_step_targets_sum_rewards_within_an_episode(rewards, next_values, terminated, truncated, discount, steps):
    expected = np.zeros(LENGTH)
    for t in range(LENGTH):
        weight = 1.0
        for k in range(t, LENGTH):
            expected[t] += weight * rewards[k]
            weight *= discount
            if terminated[k] or truncated[k] or k == LENGTH - 1 or k == t + steps - 1:
                expected[t] += weight * next_values[k] * (not terminated[k])
                break
    arrays = [jnp.array(x) for x in (rewards, next_values, terminated, truncated)]
    np.testing.assert_allclose(rl.n_step_targets(*arrays, discount, steps), expected, atol=1e-4)


@given(floats, floats, flags, flags, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
@settings(max_examples=60, deadline=None)
def test_lambda_returns_are_those_of_a_plain_loop(rewards, next_values, terminated, truncated, discount, lambda_):
    expected = np.zeros(LENGTH)
    for t in reversed(range(LENGTH)):
        value = next_values[t]
        if t < LENGTH - 1 and not truncated[t]:
            value = (1 - lambda_) * next_values[t] + lambda_ * expected[t + 1]
        expected[t] = rewards[t] + discount * value * (not terminated[t])
    arrays = [jnp.array(x) for x in (rewards, next_values, terminated, truncated)]
    np.testing.assert_allclose(rl.lambda_returns(*arrays, discount, lambda_), expected, atol=1e-4)
    if lambda_ in (0, 1):
        steps = 1 if lambda_ == 0 else LENGTH
        np.testing.assert_allclose(expected, rl.n_step_targets(*arrays, discount, steps), atol=1e-4)


@pytest.mark.parametrize("truncates", [False, True])
def test_values_of_a_chain_are_fixed_points(truncates):
    """Two states, reward 1 in the second: truncated there, rewards would go on forever; terminated, they end."""
    discount = 0.9
    second = 1 / (1 - discount) if truncates else 1.0
    values = jnp.array([discount * second, second])
    rewards, ends = jnp.array([0.0, 1.0]), jnp.array([False, True])
    never = jnp.zeros(2, bool)
    terminated, truncated = (never, ends) if truncates else (ends, never)
    next_values = jnp.array([second, second])  # the last observation is the second state again
    advantages = rl.generalized_advantages(rewards, values, next_values, terminated, truncated, discount, 0.95)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-5)
    targets = rl.n_step_targets(rewards, next_values, terminated, truncated, discount, 2)
    np.testing.assert_allclose(targets, values, rtol=1e-5)
