"""gymnax: its environments keep the protocol, its time limits truncate, and its memory chain is the library's."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError
from tests.rl.environments import counter

if importlib.util.find_spec("gymnax") is None:
    pytest.skip("gymnax is not installed: pip install 'foldax[rl]'", allow_module_level=True)
KEY = jax.random.key(0)


def collect(environment, num_envs, num_steps, policy):
    environment_state = rl.reset_environments(environment, KEY, num_envs)
    return jax.jit(lambda: rl.rollout(environment, policy, environment_state, KEY, num_steps))()[1]


def test_the_time_limit_of_gymnax_truncates():
    environment = rl.gymnax("CartPole-v1", max_steps_in_episode=5)
    assert (environment.observation_space.shape, environment.action_space) == ((4,), rl.Discrete(2))

    def balance(observation, key):
        return (observation[:, 2] > 0).astype(jnp.int32), {}

    transitions = collect(environment, 2, 6, balance)
    np.testing.assert_array_equal(transitions.truncated[:, 0], [False] * 4 + [True, False])
    assert not transitions.terminated.any()
    assert not np.allclose(transitions.next_observation[4], transitions.observation[5])


@pytest.mark.parametrize("name", ["Pendulum-v1", "Breakout-MinAtar", "MemoryChain-bsuite", "Acrobot-v1"])
def test_gymnax_environments_keep_the_protocol(name):
    environment = rl.gymnax(name)
    is_discrete = isinstance(environment.action_space, rl.Discrete)
    shape, dtype = ((), jnp.int32) if is_discrete else (environment.action_space.shape, jnp.float32)

    def zeros(observation, key):
        return jnp.zeros((len(observation), *shape), dtype), {}

    transitions = collect(environment, 3, 4, zeros)
    assert transitions.observation.shape == (4, 3, *environment.observation_space.shape)
    assert np.isfinite(transitions.observation).all()
    assert transitions.reward.dtype == jnp.float32


def test_the_memory_chain_of_the_library_is_that_of_gymnax():
    def random(observation, key):
        return jax.random.randint(key, (len(observation),), 0, 2), {}

    environments = rl.memory_chain(length=3), rl.gymnax("MemoryChain-bsuite", memory_length=3)
    ours, theirs = (collect(environment, 8, 20, random) for environment in environments)
    np.testing.assert_array_equal(ours.observation, theirs.observation)
    np.testing.assert_array_equal(ours.reward, theirs.reward)
    np.testing.assert_array_equal(ours.terminated, theirs.terminated)


NAMES = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
NAMES += [f"{game}-MinAtar" for game in ("Asterix", "Breakout", "Freeway", "SpaceInvaders")]


@pytest.mark.parametrize("name", NAMES)
def test_gymnax_environments_are_rendered(name) -> None:
    environment = rl.gymnax(name)
    state = jax.device_get(jax.jit(environment.reset)(KEY)[0])
    image = environment.render(state)
    assert (image.dtype, image.shape[-1]) == (np.uint8, 3)
    assert min(image.shape[:2]) >= 200
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2
    assert rl.gymnax("MemoryChain-bsuite").render is None


def test_errors_name_what_gymnax_lacks():
    with pytest.raises(ConfigError, match="FrozenLake-misc: observations are Discrete.*must be a Box"):
        rl.gymnax("FrozenLake-misc")
    with pytest.raises(ConfigError, match="no environment 'CartPole-v2'; did you mean 'CartPole-v1'"):
        rl.gymnax("CartPole-v2")
    for adapter in (rl.gymnax, lambda name: rl.gymnasium(name, num_envs=1, rollout_steps=1)):
        with pytest.raises(ConfigError, match="of type Environment, which is no name; give its name"):
            adapter(counter())
    with pytest.raises(ConfigError, match="no parameter 'max_steps'"):
        rl.gymnax("CartPole-v1", max_steps=5)
