"""Acting in many copies: no observation of the next episode leaks into the last one, and each episode counts once."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError
from foldax.rl import wrappers
from tests.rl.environments import counter

KEY = jax.random.key(0)


def still(observation, key):
    return jnp.zeros(len(observation), jnp.int32), {"seen": observation[:, 0]}


@pytest.mark.parametrize("truncates", [False, True])
def test_the_last_observation_is_the_old_episode_s_and_the_next_one_the_new_s(truncates):
    world = counter(3, truncates)
    actors, seen, finished = jax.jit(lambda: rl.rollout(world, still, rl.begin(world, KEY, 2), KEY, 7))()
    np.testing.assert_array_equal(seen.observation[:, 0, 0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(seen.next_observation[:, 0, 0], [1, 2, 3, 1, 2, 3, 1])
    over = seen.truncated if truncates else seen.terminated
    np.testing.assert_array_equal(over[:, 0], [False, False, True, False, False, True, False])
    assert not (seen.terminated if truncates else seen.truncated).any()
    np.testing.assert_array_equal(seen.extras["seen"], seen.observation[:, :, 0])
    np.testing.assert_array_equal(actors.observation, [[1.0], [1.0]])
    np.testing.assert_array_equal(actors.episode_return, [1.0, 1.0])
    assert (float(finished.episode_return.total), float(finished.episode_return.count)) == (4 * 6.0, 4.0)
    assert (float(finished.episode_length.total), float(finished.episode_length.count)) == (4 * 3.0, 4.0)


def test_copies_differ_in_their_worlds():
    def reset(key):
        start = jax.random.uniform(key)
        return start, start[None]

    world = counter()._replace(reset=reset)
    begun = rl.begin(world, KEY, 4)
    assert len(np.unique(begun.observation)) == 4
    assert not np.array_equal(begun.observation, rl.begin(world, jax.random.key(1), 4).observation)


def test_each_episode_is_counted_once_and_long_ones_are_left_off():
    def reset(key):
        start = jax.random.randint(key, (), 0, 3)
        return start, start[None].astype(jnp.float32)

    world = counter(5)._replace(reset=reset)
    found = jax.jit(lambda key: rl.episodes(world, still, key, 16, 100))(KEY)
    starts = 5 - np.asarray(found["length"])
    assert set(starts) == {0, 1, 2}
    np.testing.assert_array_equal(found["return"], [sum(range(start + 1, 6)) for start in starts])
    assert found["finished"].all()
    short = rl.episodes(counter(5), still, KEY, 2, 3)
    np.testing.assert_array_equal(short["length"], 3)
    assert not short["finished"].any()


def test_a_time_limit_truncates_and_does_not_terminate():
    world = wrappers.time_limit(counter(5), 2)
    _, seen, _ = rl.rollout(world, still, rl.begin(world, KEY, 1), KEY, 4)
    np.testing.assert_array_equal(seen.truncated[:, 0], [False, True, False, True])
    assert not seen.terminated.any()
    both = wrappers.time_limit(counter(2), 2)
    _, seen, _ = rl.rollout(both, still, rl.begin(both, KEY, 1), KEY, 2)
    assert seen.terminated[1, 0]
    with pytest.raises(ConfigError, match="0 steps must be 1 or more"):
        wrappers.time_limit(counter(), 0)


def test_a_limit_that_ends_is_told_as_an_end():
    world = wrappers.limit_ends(wrappers.time_limit(counter(5), 2))
    _, seen, _ = rl.rollout(world, still, rl.begin(world, KEY, 1), KEY, 4)
    np.testing.assert_array_equal(seen.terminated[:, 0], [False, True, False, True])
    assert not seen.truncated.any()


def test_frames_are_of_their_own_episode():
    world = wrappers.frame_stack(counter(2), 3)
    assert world.observations.shape == (3,)
    _, seen, _ = rl.rollout(world, still, rl.begin(world, KEY, 1), KEY, 3)
    np.testing.assert_array_equal(seen.observation[:, 0], [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(seen.next_observation[:, 0], [[0, 0, 1], [0, 1, 2], [0, 0, 1]])
    with pytest.raises(ConfigError, match="0 frames must be 1 or more"):
        wrappers.frame_stack(counter(), 0)


def test_actions_are_clipped_where_they_are_numbers():
    taken = []

    def step(key, state, action):
        taken.append(action)
        return counter().step(key, state, action)

    world = counter()._replace(step=step, actions=rl.Box(np.float32([-1, 0]), np.float32([1, 2])))
    clipped = wrappers.clip_actions(world)
    clipped.step(KEY, jnp.int32(0), jnp.array([-3.0, 5.0]))
    np.testing.assert_array_equal(taken[0], [-1, 2])
    assert np.isinf(clipped.actions.high).all()
    with pytest.raises(ConfigError, match="counter has 2 discrete actions"):
        wrappers.clip_actions(counter())


def test_moments_are_those_of_all_that_was_seen():
    rows = np.random.RandomState(0).randn(30, 4).astype(np.float32) * [1, 5, 0.1, 2] + 3
    moments = wrappers.no_moments((4,))
    np.testing.assert_allclose(wrappers.standardized(moments, rows[:2]), rows[:2], rtol=1e-6)
    for part in np.split(rows, [5, 6, 20]):
        moments = wrappers.with_seen(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-4)
    found = wrappers.standardized(moments, jnp.asarray(rows))
    np.testing.assert_allclose(found.std(axis=0), 1, rtol=1e-3)
    assert float(wrappers.standardized(moments, jnp.full((1, 4), 1e9)).max()) == 10


needs_gymnax = pytest.mark.skipif(
    importlib.util.find_spec("gymnax") is None, reason="gymnax is not installed: pip install 'foldax[rl]' (Python 3.11)"
)


@needs_gymnax
def test_gymnax_s_limit_of_time_truncates():
    world = rl.gymnax("CartPole-v1", max_steps_in_episode=5)
    assert (world.observations.shape, world.actions) == ((4,), rl.Discrete(2))

    def alternate(observation, key):
        return (observation[:, 2] > 0).astype(jnp.int32), {}

    _, seen, _ = rl.rollout(world, alternate, rl.begin(world, KEY, 2), KEY, 6)
    np.testing.assert_array_equal(seen.truncated[:, 0], [False] * 4 + [True, False])
    assert not seen.terminated.any()
    assert not np.allclose(seen.next_observation[4], seen.observation[5])


@needs_gymnax
@pytest.mark.parametrize("name", ["Pendulum-v1", "Breakout-MinAtar", "MemoryChain-bsuite", "Acrobot-v1"])
def test_gymnax_s_environments_keep_the_protocol(name):
    world = rl.gymnax(name)
    shape = () if isinstance(world.actions, rl.Discrete) else world.actions.shape

    def zeros(observation, key):
        kind = jnp.int32 if isinstance(world.actions, rl.Discrete) else jnp.float32
        return jnp.zeros((len(observation), *shape), kind), {}

    _, seen, _ = jax.jit(lambda: rl.rollout(world, zeros, rl.begin(world, KEY, 3), KEY, 4))()
    assert seen.observation.shape == (4, 3, *world.observations.shape)
    assert np.isfinite(seen.observation).all()
    assert seen.reward.dtype == jnp.float32


@needs_gymnax
def test_what_gymnax_has_not_is_told():
    with pytest.raises(ConfigError, match="no environment 'CartPole-v2'; did you mean 'CartPole-v1'"):
        rl.gymnax("CartPole-v2")
    with pytest.raises(ConfigError, match="no parameter 'max_steps'"):
        rl.gymnax("CartPole-v1", max_steps=5)
