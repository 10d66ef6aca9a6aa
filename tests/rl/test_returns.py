"""Returns against plain loops, and against a chain whose values are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import rl

LENGTH = 7
flags = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)
numbers = st.lists(st.floats(-2, 2, width=32), min_size=LENGTH, max_size=LENGTH)
given_steps = given(numbers, numbers, numbers, flags, flags, st.floats(0, 1, width=32), st.floats(0, 1, width=32))


@given_steps
@settings(max_examples=60, deadline=None)
def test_advantages_are_those_of_a_plain_loop(rewards, values, after, terminated, truncated, discount, decay):
    expected, follows = np.zeros(LENGTH), 0.0
    for t in reversed(range(LENGTH)):
        surprise = rewards[t] + discount * after[t] * (not terminated[t]) - values[t]
        follows = surprise + (0.0 if terminated[t] or truncated[t] else discount * decay * follows)
        expected[t] = follows
    arrays = [jnp.array(x) for x in (rewards, values, after, terminated, truncated)]
    found = rl.generalized_advantages(*arrays, discount, decay)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@given(numbers, numbers, flags, flags, st.floats(0, 1, width=32), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_n_steps_are_summed_within_an_episode(rewards, after, terminated, truncated, discount, steps):
    expected = np.zeros(LENGTH)
    for t in range(LENGTH):
        share = 1.0
        for k in range(t, LENGTH):
            expected[t] += share * rewards[k]
            share *= discount
            if terminated[k] or truncated[k] or k == LENGTH - 1 or k == t + steps - 1:
                expected[t] += share * after[k] * (not terminated[k])
                break
    arrays = [jnp.array(x) for x in (rewards, after, terminated, truncated)]
    np.testing.assert_allclose(rl.n_step_targets(*arrays, discount, steps), expected, atol=1e-4)


@given(numbers, numbers, flags, flags, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
@settings(max_examples=60, deadline=None)
def test_lambda_returns_are_those_of_a_plain_loop(rewards, after, terminated, truncated, discount, decay):
    expected = np.zeros(LENGTH)
    for t in reversed(range(LENGTH)):
        value = after[t]
        if t < LENGTH - 1 and not truncated[t]:
            value = (1 - decay) * after[t] + decay * expected[t + 1]
        expected[t] = rewards[t] + discount * value * (not terminated[t])
    arrays = [jnp.array(x) for x in (rewards, after, terminated, truncated)]
    np.testing.assert_allclose(rl.lambda_returns(*arrays, discount, decay), expected, atol=1e-4)
    if decay in (0, 1):
        steps = 1 if decay == 0 else LENGTH
        np.testing.assert_allclose(expected, rl.n_step_targets(*arrays, discount, steps), atol=1e-4)


@pytest.mark.parametrize("truncates", [False, True])
def test_values_of_a_chain_are_fixed_points(truncates):
    """Two states, reward 1 in the second: cut off there, it would go on forever; terminated, it is over."""
    discount = 0.9
    second = 1 / (1 - discount) if truncates else 1.0
    values = jnp.array([discount * second, second])
    rewards, ends = jnp.array([0.0, 1.0]), jnp.array([False, True])
    never = jnp.zeros(2, bool)
    terminated, truncated = (never, ends) if truncates else (ends, never)
    after = jnp.array([second, second])  # of the last observation, which is the second state again
    found = rl.generalized_advantages(rewards, values, after, terminated, truncated, discount, 0.95)
    np.testing.assert_allclose(found, 0.0, atol=1e-5)
    np.testing.assert_allclose(rl.n_step_targets(rewards, after, terminated, truncated, discount, 2), values, rtol=1e-5)
