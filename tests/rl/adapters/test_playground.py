"""MuJoCo Playground: steps are the library's own, episodes are truncated at their limit, errors are clear."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError

if importlib.util.find_spec("mujoco_playground") is None:
    pytest.skip("MuJoCo Playground is not installed: pip install 'foldax[robotics]'", allow_module_level=True)
LIMIT = 6


@pytest.fixture(scope="module")
def environment():
    return rl.playground("CartpoleBalance", episode_length=LIMIT)


def test_steps_are_the_librarys_and_episodes_are_truncated_at_their_limit(environment):
    num_envs, num_steps = 2, 2 * LIMIT + 1
    actions = np.random.RandomState(0).uniform(-1, 1, (num_steps, num_envs, 1)).astype(np.float32)

    def step(environment_state, action):
        state, transition, _ = rl.step_environments(environment, environment_state, action, jax.random.key(1))
        return state, (transition, state.observation)

    start = jax.jit(lambda key: rl.reset_environments(environment, key, num_envs))(jax.random.key(0))
    _, (transitions, current) = jax.jit(lambda state: jax.lax.scan(step, state, actions))(start)
    assert not transitions.terminated.any()
    np.testing.assert_array_equal(transitions.truncated[:, 0], [step % LIMIT == LIMIT - 1 for step in range(num_steps)])
    # The last observation of an episode is its own: the next one starts elsewhere.
    ends = np.asarray(transitions.truncated)
    assert (np.abs(np.asarray(transitions.next_observation) - np.asarray(current))[ends].max(axis=-1) > 1e-3).all()
    np.testing.assert_array_equal(np.asarray(transitions.next_observation)[~ends], np.asarray(current)[~ends])

    from mujoco_playground import registry

    with jax.numpy_rank_promotion("allow"):
        library = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
        state = jax.tree.map(lambda x: x[0], start.state[0])
        rewards, observations, advance = [], [], jax.jit(library.step)
        for action in actions[:LIMIT, 0]:
            state = advance(state, action)
            rewards.append(state.reward)
            observations.append(state.obs)
    np.testing.assert_allclose(transitions.reward[:LIMIT, 0], rewards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(transitions.next_observation[:LIMIT, 0], observations, rtol=1e-3, atol=1e-4)


def test_spaces_are_known_also_inside_a_traced_program(environment):
    assert environment.observation_space.shape == (5,)
    assert environment.action_space.shape == (1,)
    np.testing.assert_array_equal((environment.action_space.low, environment.action_space.high), ([-1], [1]))
    jax.jit(lambda x: x + rl.playground("CartpoleBalance").action_space.low)(jnp.zeros(1))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("CartpoleBalence", {}, "did you mean 'CartpoleBalance'"),
        ("CartpoleBalance", {"sim_td": 0.01}, "did you mean 'sim_dt'"),
        ("CartpoleBalance", {"episode_length": 0}, "episode_length: 0 must be 1 or more"),
    ],
)
def test_errors_name_the_wrong_setting(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        rl.playground(name, **settings)


def test_a_state_is_rendered(environment):
    state, _ = jax.jit(environment.reset)(jax.random.key(0))
    try:
        image = environment.render(jax.device_get(state))
    except ConfigError as error:
        pytest.skip(str(error))  # there is neither a screen nor EGL
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert len(np.unique(image)) > 20
