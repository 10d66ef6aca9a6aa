"""Classic control: every step is that of Gymnasium from the same state, and so are spaces, resets and time limits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'foldax[gymnasium]'")

KEY = jax.random.key(0)
STATES = 3_000


class Case(NamedTuple):
    """An environment of the library and Gymnasium's.

    Attributes:
      make: the library's function.
      name: Gymnasium's name.
      high: largest absolute values of the states from which steps are compared.
      reset: bounds `(low, high)` of the first states.
      parameters: other parameters than the defaults.
      attributes: the same as Gymnasium's attributes.
    """

    make: Callable[..., rl.Environment]
    name: str
    high: tuple[float, ...]
    reset: tuple[Any, Any]
    parameters: dict[str, float]
    attributes: dict[str, float]


CASES = (
    Case(
        rl.cartpole,
        "CartPole-v1",
        (2.5, 4, 0.25, 4),
        ([-0.05] * 4, [0.05] * 4),
        dict(gravity=5.0, cart_mass=0.5, pole_mass=0.3, pole_half_length=0.8, force=7.0),
        dict(gravity=5.0, masscart=0.5, masspole=0.3, total_mass=0.8, length=0.8, polemass_length=0.24, force_mag=7.0),
    ),
    Case(
        rl.pendulum,
        "Pendulum-v1",
        (10, 8),
        ([-np.pi, -1], [np.pi, 1]),
        dict(gravity=9.81, mass=2.0, length=0.7),
        dict(g=9.81, m=2.0, l=0.7),
    ),
    Case(
        rl.acrobot,
        "Acrobot-v1",
        (np.pi, np.pi, 4, 9),
        ([-0.1] * 4, [0.1] * 4),
        dict(mass=1.5, length=0.8, inertia=1.2),
        dict(LINK_MASS_1=1.5, LINK_MASS_2=1.5, LINK_LENGTH_1=0.8, LINK_COM_POS_1=0.4, LINK_COM_POS_2=0.4, LINK_MOI=1.2),
    ),
    Case(
        rl.mountain_car,
        "MountainCar-v0",
        (1.25, 0.07),
        ([-0.6, 0], [-0.4, 0]),
        dict(goal_velocity=0.03, force=0.002, gravity=0.001),
        dict(goal_velocity=0.03, force=0.002, gravity=0.001),
    ),
    Case(
        rl.continuous_mountain_car,
        "MountainCarContinuous-v0",
        (1.25, 0.07),
        ([-0.6, 0], [-0.4, 0]),
        dict(goal_velocity=0.03, power=0.003),
        dict(goal_velocity=0.03, power=0.003),
    ),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def random_states(case: Case) -> np.ndarray:
    high = np.array(case.high)
    states = np.random.RandomState(0).uniform(-high, high, (STATES, len(high))).astype(np.float32)
    if "Car" in case.name:
        states[:, 0] = np.clip(states[:, 0], np.float32(-1.2), np.float32(0.6))  # also at the wall
    return states


def random_actions(environment: rl.Environment) -> np.ndarray:
    space, generator = environment.action_space, np.random.RandomState(1)
    if isinstance(space, rl.Discrete):
        return generator.randint(0, space.num, STATES)
    return generator.uniform(1.5 * space.low, 1.5 * space.high, (STATES, 1)).astype(np.float32)  # also beyond


def steps_of_the_library(environment: rl.Environment, states: np.ndarray, actions: np.ndarray) -> rl.Step:
    def step(state: jax.Array, action: jax.Array) -> rl.Step:
        extra = jnp.zeros(len(jax.eval_shape(environment.reset, KEY)[0][0]) - len(state))  # the torque that is drawn
        return environment.step(KEY, (jnp.append(state, extra), jnp.int32(0)), action)[1]

    return jax.jit(jax.vmap(step))(states, actions)


def steps_of_gymnasium(
    name: str, attributes: dict[str, float], states: np.ndarray, actions: np.ndarray
) -> list[np.ndarray]:
    """Observations, rewards and terminations of a step from each state."""
    environment = gymnasium.make(name).unwrapped
    for attribute, value in attributes.items():
        assert hasattr(environment, attribute)
        setattr(environment, attribute, value)
    steps = []
    for state, action in zip(states.astype(np.float64), actions, strict=True):
        environment.state, environment.steps_beyond_terminated = state, None
        steps.append(environment.step(action)[:3])
    return [np.array(values, np.float64) for values in zip(*steps, strict=True)]


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other parameters"])
@by_case
def test_steps_are_those_of_gymnasium(case: Case, changed: bool) -> None:
    environment = case.make(**(case.parameters if changed else {}))
    states, actions = random_states(case), random_actions(environment)
    step = steps_of_the_library(environment, states, actions)
    observation, reward, terminated = steps_of_gymnasium(case.name, case.attributes if changed else {}, states, actions)
    np.testing.assert_allclose(step.observation, observation, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(step.reward, reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(step.terminated, terminated.astype(bool))
    assert 0.01 < terminated.mean() < 0.99 or case.make is rl.pendulum
    assert not step.truncated.any()
    assert (step.observation.dtype, step.reward.dtype) == (jnp.float32, jnp.float32)


@by_case
def test_spaces_are_those_of_gymnasium(case: Case) -> None:
    environment, library = case.make(), gymnasium.make(case.name)
    spaces = (
        (environment.observation_space, library.observation_space),
        (environment.action_space, library.action_space),
    )
    for ours, theirs in spaces:
        if isinstance(ours, rl.Discrete):
            assert ours.num == theirs.n
        else:
            np.testing.assert_array_equal(ours, [theirs.low, theirs.high])
            assert (ours.low.dtype, ours.high.dtype) == (np.float32, np.float32)


@by_case
def test_episodes_begin_where_those_of_gymnasium_do(case: Case) -> None:
    resets = jax.jit(jax.vmap(case.make().reset))(jax.random.split(KEY, 2_000))
    (states, time), observations = jax.device_get(resets)
    low, high = np.array(case.reset)
    states = states[:, : len(low)]
    assert (states >= low - 1e-6).all()
    assert (states <= high + 1e-6).all()
    np.testing.assert_allclose(states.mean(axis=0), (low + high) / 2, atol=0.07 * (high - low).max())
    np.testing.assert_allclose(states.std(axis=0), (high - low) / np.sqrt(12), atol=0.03 * (high - low).max())
    assert not time.any()
    library = gymnasium.make(case.name).unwrapped
    for state, observation in zip(states[:20].astype(np.float64), observations[:20], strict=True):
        library.state = state
        expected = {"Pendulum-v1": "_get_obs", "Acrobot-v1": "_get_ob"}.get(case.name)
        np.testing.assert_allclose(observation, getattr(library, expected)() if expected else state, atol=1e-6)


@by_case
def test_episodes_are_truncated_as_those_of_gymnasium(case: Case) -> None:
    limit = gymnasium.spec(case.name).max_episode_steps
    environment = case.make()
    (state, _), _ = environment.reset(KEY)
    action = jnp.int32(1) if isinstance(environment.action_space, rl.Discrete) else jnp.zeros(1)
    for time, truncated in ((limit - 2, False), (limit - 1, True)):
        step = environment.step(KEY, (state, jnp.int32(time)), action)[1]
        assert (bool(step.truncated), bool(step.terminated)) == (truncated, False)
    with pytest.raises(ConfigError, match="max_steps is 0; it must be 1 or more"):
        case.make(max_steps=0)


def play(environment: rl.Environment, choose: Callable[[jax.Array], jax.Array]) -> dict[str, np.ndarray]:
    def select_action(observation: jax.Array, key: jax.Array) -> jax.Array:
        return jax.vmap(choose)(observation)

    play_episodes = functools.partial(rl.play_episodes, environment, select_action, num_episodes=64, max_steps=1_000)
    episodes = jax.jit(play_episodes)(KEY)
    assert episodes["finished"].all()
    return jax.device_get(episodes)


def test_simple_policies_reach_known_returns() -> None:
    """A linear policy balances the pole for all 500 steps; pushing along the velocity reaches the top of the hill."""
    balanced = play(rl.cartpole(), lambda x: (x @ jnp.array([0.1, 0.3, 1.0, 1.0]) > 0).astype(jnp.int32))
    np.testing.assert_array_equal(balanced["return"], 500)
    driven = play(rl.mountain_car(), lambda x: jnp.where(x[1] < 0, 0, 2))
    assert driven["length"].max() < 130
    np.testing.assert_array_equal(driven["return"], -driven["length"])
    pushed = play(rl.continuous_mountain_car(), lambda x: jnp.where(x[1] < 0, -1.0, 1.0)[None])
    np.testing.assert_allclose(pushed["return"], 100 - 0.1 * pushed["length"], rtol=1e-5)
    assert (pushed["return"] > 90 - 3).all()
    idle = play(rl.acrobot(), lambda x: jnp.int32(1))
    np.testing.assert_array_equal(idle["return"], -500)


def test_physical_parameters_may_be_traced() -> None:
    @jax.jit
    def cart_speed(gravity: jax.Array) -> jax.Array:
        state = jnp.array([0.0, 0.0, 0.1, 0.0]), jnp.int32(0)
        return rl.cartpole(gravity=gravity).step(KEY, state, jnp.int32(1))[1].observation[3]

    assert cart_speed(jnp.float32(20.0)) > cart_speed(jnp.float32(9.8))
