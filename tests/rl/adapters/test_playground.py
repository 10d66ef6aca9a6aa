"""MuJoCo Playground's environments: the library's own steps, cut off at their limit, and clear errors."""

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
def world():
    return rl.playground("CartpoleBalance", episode_length=LIMIT)


def test_steps_are_the_librarys_and_episodes_are_cut_off_at_their_limit(world):
    copies, steps = 2, 2 * LIMIT + 1
    actions = np.random.RandomState(0).uniform(-1, 1, (steps, copies, 1)).astype(np.float32)

    def chosen(actors, action):
        actors, seen, _ = rl.act(world, actors, action, jax.random.key(1))
        return actors, (seen, actors.observation)

    start = jax.jit(lambda key: rl.begin(world, key, copies))(jax.random.key(0))
    _, (seen, after) = jax.jit(lambda actors: jax.lax.scan(chosen, actors, actions))(start)
    assert not seen.terminated.any()
    np.testing.assert_array_equal(seen.truncated[:, 0], [step % LIMIT == LIMIT - 1 for step in range(steps)])
    # The last observation of an episode is its own: the next one begins elsewhere.
    ends = np.asarray(seen.truncated)
    assert (np.abs(np.asarray(seen.next_observation) - np.asarray(after))[ends].max(axis=-1) > 1e-3).all()
    np.testing.assert_array_equal(np.asarray(seen.next_observation)[~ends], np.asarray(after)[~ends])

    from mujoco_playground import registry

    with jax.numpy_rank_promotion("allow"):
        theirs = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
        state = jax.tree.map(lambda x: x[0], start.state[0])
        rewards, observations, advance = [], [], jax.jit(theirs.step)
        for action in actions[:LIMIT, 0]:
            state = advance(state, action)
            rewards.append(state.reward)
            observations.append(state.obs)
    np.testing.assert_allclose(seen.reward[:LIMIT, 0], rewards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.next_observation[:LIMIT, 0], observations, rtol=1e-3, atol=1e-4)


def test_spaces_are_facts_also_inside_of_a_traced_program(world):
    assert world.observations.shape == (5,)
    assert world.actions.shape == (1,)
    np.testing.assert_array_equal((world.actions.low, world.actions.high), ([-1], [1]))
    jax.jit(lambda x: x + rl.playground("CartpoleBalance").actions.low)(jnp.zeros(1))


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("CartpoleBalence", {}, "did you mean 'CartpoleBalance'"),
        ("CartpoleBalance", {"sim_td": 0.01}, "did you mean 'sim_dt'"),
        ("CartpoleBalance", {"episode_length": 0}, "episode_length: 0 must be 1 or more"),
    ],
)
def test_what_there_is_not_is_told(name, settings, told):
    with pytest.raises(ConfigError, match=told):
        rl.playground(name, **settings)


def test_a_state_is_drawn(world):
    state, _ = jax.jit(world.reset)(jax.random.key(0))
    try:
        image = world.render(jax.device_get(state))
    except ConfigError as error:
        pytest.skip(str(error))  # there is neither a screen nor EGL
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert len(np.unique(image)) > 20
