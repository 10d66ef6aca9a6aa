"""Adapter to gymnax (extra `rl`): MinAtar, bsuite and others on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.extras import import_extra
from foldax.learner import Key
from foldax.rl.adapters import check_name
from foldax.rl.environment import Environment, Render, State, Step
from foldax.rl.environments.acrobot import acrobot_shapes
from foldax.rl.environments.cartpole import cartpole_shapes
from foldax.rl.environments.mountain_car import car_shapes
from foldax.rl.environments.pendulum import pendulum_shapes
from foldax.rl.rendering import Shape, draw_grid, draw_shapes
from foldax.rl.spaces import Box, space_of


def gymnax(name: str, **parameters: Any) -> Environment:
    """Makes an environment of gymnax (Lange, 2022), such as "Breakout-MinAtar".

    Classic control and MinAtar can be rendered.

    Args:
      name: one of `gymnax.registered_envs`.
      **parameters: fields of its `EnvParams`, such as `max_steps_in_episode`.

    Raises:
      ConfigError: gymnax is not installed, it has no such environment, or the environment has no such parameter or
        observations that are no arrays of numbers.

    >>> environment = gymnax("CartPole-v1", max_steps_in_episode=200)
    >>> environment.observation_space.shape, environment.action_space
    ((4,), Discrete(num=2))
    """
    reason = f" 'jax<0.12' (gymnax 1.0 does not allow jax {jax.__version__}, which is installed)"
    library = import_extra("gymnax", "rl", ConfigError, reason if jax.__version_info__ >= (0, 12) else "")
    check_name(name, library.registered_envs, "gymnax has no environment")
    environment, params = library.make(name)
    for field in parameters:
        check_name(field, vars(params), f"{name} has no parameter")
    params = params.replace(**parameters)

    def reset(key: Key) -> tuple[State, jax.Array]:
        observation, state = environment.reset_env(key, params)
        # Some states contain Python numbers, which a scan cannot carry.
        return jax.tree.map(jnp.asarray, state), jnp.asarray(observation, jnp.float32)

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, Step]:
        observation, next_state, reward, terminated, _ = environment.step_env(key, state, action, params)
        # gymnax changes dtypes from step to step, which a scan does not allow.
        next_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), next_state, state)
        truncated = environment.is_truncated(next_state, params)
        observation = jnp.asarray(observation, jnp.float32)
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return next_state, Step(observation, reward, jnp.asarray(terminated, bool), jnp.asarray(truncated, bool))

    # Learners are made inside traced programs, but spaces must be known before tracing.
    with jax.ensure_compile_time_eval():
        action_space = space_of(environment.action_space(params), name, "actions")
        observation_space = space_of(environment.observation_space(params), name, "observations")
    render = _renderer(name, environment, params)
    assert isinstance(observation_space, Box)
    return Environment(reset, step, observation_space, action_space, name, render)


def _renderer(name: str, environment: Any, params: Any) -> Render | None:
    if name.endswith("-MinAtar"):
        observe = jax.jit(lambda state: environment.get_obs(state, params))
        return lambda state: draw_grid(np.asarray(observe(state)))
    make_shapes = CLASSIC_CONTROL.get(name)
    return None if make_shapes is None else lambda state: draw_shapes(make_shapes(state, params))


def _cartpole(state: State, params: Any) -> list[Shape]:
    return cartpole_shapes(float(state.x), float(state.theta), float(params.x_threshold))


def _pendulum(state: State, params: Any) -> list[Shape]:
    return pendulum_shapes(float(state.theta), float(np.ravel(state.last_u)[0]) / float(params.max_torque))


def _acrobot(state: State, params: Any) -> list[Shape]:
    lengths = float(params.link_length_1), float(params.link_length_2)
    return acrobot_shapes(float(state.joint_angle1), float(state.joint_angle2), lengths)


def _mountain_car(state: State, params: Any) -> list[Shape]:
    return car_shapes(float(state.position), float(params.goal_position))


CLASSIC_CONTROL: dict[str, Callable[[State, Any], list[Shape]]] = {"CartPole-v1": _cartpole, "Pendulum-v1": _pendulum}
CLASSIC_CONTROL |= {"Acrobot-v1": _acrobot, "MountainCar-v0": _mountain_car, "MountainCarContinuous-v0": _mountain_car}
