"""MountainCar with continuous actions: effort costs, and the top of the slope pays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.environments.mountain_car import drive, observation_space, render_car, reset_car
from foldax.rl.spaces import Box
from foldax.rl.wrappers import time_limit

GOAL = 0.45


def continuous_mountain_car(
    *, max_steps: int = 999, goal_velocity: float = 0.0, power: float = 0.0015, gravity: float = 0.0025
) -> Environment:
    """Makes MountainCar with a continuous action, the force of the push (Moore, 1990; Brockman et al., 2016).

    Steps are those of Gymnasium's MountainCarContinuous-v0. Observations `[2]` are position and velocity. The action
    `[1]` is in [-1, 1] and costs 0.1 action²; an episode terminates at position 0.45, which has reward 100.

    Args:
      max_steps: steps after which an episode is truncated.
      goal_velocity: velocity that the car must have at the top.
      power: change of the velocity by an action of 1.
      gravity: largest change of the velocity by the slope.

    Raises:
      ConfigError: `max_steps` is below 1.

    >>> environment = continuous_mountain_car()
    >>> print(environment.observation_space.low, environment.action_space.high)
    [-1.2  -0.07] [1.]
    """

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        state = drive(state, jnp.clip(action[0], -1.0, 1.0) * power, gravity)
        terminated = (state[0] >= GOAL) & (state[1] >= goal_velocity)
        reward = jnp.where(terminated, 100.0, 0.0) - 0.1 * action[0] ** 2
        return state, Step(state, reward, terminated, jnp.bool_(False))

    ones = np.ones(1, np.float32)
    spaces, render = (observation_space(), Box(-ones, ones)), functools.partial(render_car, goal=GOAL)
    return time_limit(Environment(reset_car, step, *spaces, "MountainCarContinuous", render), max_steps)
