"""Parallel environments: no observation of the next episode leaks into the last one, and each episode counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError
from foldax.rl import wrappers
from tests.rl.environments import counter

KEY = jax.random.key(0)


def zeros(observation, key):
    return jnp.zeros(len(observation), jnp.int32)


def always_zero(observation, key):
    return zeros(observation, key), {"first_feature": observation[:, 0]}


def collect(environment, num_envs, num_steps, policy=always_zero):
    environment_state = rl.reset_environments(environment, KEY, num_envs)
    return jax.jit(lambda: rl.rollout(environment, policy, environment_state, KEY, num_steps))()


@pytest.mark.parametrize("truncates", [False, True])
def test_the_last_observation_is_the_old_episode_s_and_the_next_one_the_new_s(truncates):
    state, transitions, episodes = collect(counter(3, truncates), 2, 7)
    np.testing.assert_array_equal(transitions.observation[:, 0, 0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(transitions.next_observation[:, 0, 0], [1, 2, 3, 1, 2, 3, 1])
    done = transitions.truncated if truncates else transitions.terminated
    np.testing.assert_array_equal(done[:, 0], [False, False, True, False, False, True, False])
    assert not (transitions.terminated if truncates else transitions.truncated).any()
    np.testing.assert_array_equal(transitions.extras["first_feature"], transitions.observation[:, :, 0])
    np.testing.assert_array_equal(state.observation, [[1.0], [1.0]])
    np.testing.assert_array_equal(state.episode_return, [1.0, 1.0])
    assert (float(episodes.episode_return.total), float(episodes.episode_return.count)) == (4 * 6.0, 4.0)
    assert (float(episodes.episode_length.total), float(episodes.episode_length.count)) == (4 * 3.0, 4.0)


def test_parallel_environments_start_in_different_states():
    def reset(key):
        start = jax.random.uniform(key)
        return start, start[None]

    environment = counter()._replace(reset=reset)
    initial = rl.reset_environments(environment, KEY, 4)
    assert len(np.unique(initial.observation)) == 4
    other = rl.reset_environments(environment, jax.random.key(1), 4)
    assert not np.array_equal(initial.observation, other.observation)


def test_each_episode_is_counted_once_and_long_ones_are_stopped():
    def reset(key):
        start = jax.random.randint(key, (), 0, 3)
        return start, start[None].astype(jnp.float32)

    environment = counter(5)._replace(reset=reset)
    episodes = jax.jit(lambda key: rl.play_episodes(environment, zeros, key, 16, 100))(KEY)
    starts = 5 - np.asarray(episodes["length"])
    assert set(starts) == {0, 1, 2}
    np.testing.assert_array_equal(episodes["return"], [sum(range(start + 1, 6)) for start in starts])
    assert episodes["finished"].all()
    stopped = rl.play_episodes(counter(5), zeros, KEY, 2, 3)
    np.testing.assert_array_equal(stopped["length"], 3)
    assert not stopped["finished"].any()


def test_a_time_limit_truncates_and_does_not_terminate():
    _, transitions, _ = collect(wrappers.time_limit(counter(5), 2), 1, 4)
    np.testing.assert_array_equal(transitions.truncated[:, 0], [False, True, False, True])
    assert not transitions.terminated.any()
    _, transitions, _ = collect(wrappers.time_limit(counter(2), 2), 1, 2)
    assert transitions.terminated[1, 0]
    with pytest.raises(ConfigError, match="max_steps is 0; it must be 1 or more"):
        wrappers.time_limit(counter(), 0)


def test_a_time_limit_can_be_reported_as_termination():
    _, transitions, _ = collect(wrappers.terminate_on_time_limit(wrappers.time_limit(counter(5), 2)), 1, 4)
    np.testing.assert_array_equal(transitions.terminated[:, 0], [False, True, False, True])
    assert not transitions.truncated.any()


def test_stacked_frames_are_of_one_episode():
    environment = wrappers.frame_stack(counter(2), 3)
    assert environment.observation_space.shape == (3,)
    _, transitions, _ = collect(environment, 1, 3)
    np.testing.assert_array_equal(transitions.observation[:, 0], [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(transitions.next_observation[:, 0], [[0, 0, 1], [0, 1, 2], [0, 0, 1]])
    with pytest.raises(ConfigError, match="num_frames is 0; it must be 1 or more"):
        wrappers.frame_stack(counter(), 0)


def test_continuous_actions_are_clipped():
    received = []

    def step(key, state, action):
        received.append(action)
        return counter().step(key, state, action)

    environment = counter()._replace(step=step, action_space=rl.Box(np.float32([-1, 0]), np.float32([1, 2])))
    clipped = wrappers.clip_actions(environment)
    clipped.step(KEY, jnp.int32(0), jnp.array([-3.0, 5.0]))
    np.testing.assert_array_equal(received[0], [-1, 2])
    assert np.isinf(clipped.action_space.high).all()
    with pytest.raises(ConfigError, match="counter has 2 discrete actions"):
        wrappers.clip_actions(counter())


def test_moments_are_those_of_all_values():
    rows = np.random.RandomState(0).randn(30, 4).astype(np.float32) * [1, 5, 0.1, 2] + 3
    moments = wrappers.init_moments((4,))
    np.testing.assert_allclose(wrappers.normalize(moments, rows[:2]), rows[:2], rtol=1e-6)
    for part in np.split(rows, [5, 6, 20]):
        moments = wrappers.update_moments(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-4)
    normalized = wrappers.normalize(moments, jnp.asarray(rows))
    np.testing.assert_allclose(normalized.std(axis=0), 1, rtol=1e-3)
    assert float(wrappers.normalize(moments, jnp.full((1, 4), 1e9)).max()) == 10
