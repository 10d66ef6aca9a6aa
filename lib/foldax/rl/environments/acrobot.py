"""Acrobot: two hanging links are swung up by a torque at the joint between them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, DARK, GREEN, ORANGE, RED, Shape, draw_shapes
from foldax.rl.spaces import Box, Discrete
from foldax.rl.wrappers import time_limit

MAX_SPEEDS = np.array([4 * math.pi, 9 * math.pi], np.float32)  # rad/s
TIME_STEP = 0.2  # seconds


def acrobot(
    *, max_steps: int = 500, gravity: float = 9.8, mass: float = 1.0, length: float = 1.0, inertia: float = 1.0
) -> Environment:
    """Makes Acrobot: a torque at the joint of two hanging links swings the tip above a line (Sutton, 1996).

    Steps are those of Gymnasium's Acrobot-v1, whose equations are those of Sutton & Barto's book (1998). Observations
    `[6]` are cosine and sine of the first link's angle from hanging, the same of the second link's angle relative to
    the first, and both angular velocities (rad/s). Actions 0, 1 and 2 are torques of -1, 0 and 1 N m. An episode
    terminates, with reward 0, when the tip is a link's length above the fixed joint; every other step has reward -1.

    Args:
      max_steps: steps after which an episode is truncated.
      gravity: acceleration in m/s².
      mass: of each link, in kg.
      length: of each link, in m; its centre of mass is in the middle.
      inertia: moment of inertia of each link, in kg m².

    Raises:
      ConfigError: `max_steps` is below 1.

    >>> environment = acrobot()
    >>> environment.observation_space.shape, environment.action_space
    ((6,), Discrete(num=3))
    """
    middle = length / 2

    def derivative(state: jax.Array, torque: jax.Array) -> jax.Array:
        theta_1, theta_2, speed_1, speed_2 = state
        cosine, sine = jnp.cos(theta_2), jnp.sin(theta_2)
        d_1 = mass * middle**2 + mass * (length**2 + middle**2 + 2 * length * middle * cosine) + 2 * inertia
        d_2 = mass * (middle**2 + length * middle * cosine) + inertia
        phi_2 = mass * middle * gravity * jnp.cos(theta_1 + theta_2 - jnp.pi / 2)
        phi_1 = -mass * length * middle * (speed_2**2 + 2 * speed_2 * speed_1) * sine + phi_2
        phi_1 = phi_1 + mass * (middle + length) * gravity * jnp.cos(theta_1 - jnp.pi / 2)
        numerator = torque + d_2 / d_1 * phi_1 - mass * length * middle * speed_1**2 * sine - phi_2
        acceleration_2 = numerator / (mass * middle**2 + inertia - d_2**2 / d_1)
        acceleration_1 = -(d_2 * acceleration_2 + phi_1) / d_1
        return jnp.stack([speed_1, speed_2, acceleration_1, acceleration_2])

    def observe(state: jax.Array) -> jax.Array:
        cosines, sines = jnp.cos(state[:2]), jnp.sin(state[:2])
        return jnp.concatenate([jnp.stack([cosines, sines], axis=1).ravel(), state[2:]])

    def reset(key: Key) -> tuple[jax.Array, jax.Array]:
        state = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
        return state, observe(state)

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        torque = action - 1.0
        # A step of the Runge-Kutta method of fourth order
        k_1 = derivative(state, torque)
        k_2 = derivative(state + TIME_STEP / 2 * k_1, torque)
        k_3 = derivative(state + TIME_STEP / 2 * k_2, torque)
        k_4 = derivative(state + TIME_STEP * k_3, torque)
        state = state + TIME_STEP / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        angles = (state[:2] + jnp.pi) % (2 * jnp.pi) - jnp.pi
        state = jnp.concatenate([angles, jnp.clip(state[2:], -MAX_SPEEDS, MAX_SPEEDS)])
        terminated = -jnp.cos(state[0]) - jnp.cos(state[0] + state[1]) > 1.0
        return state, Step(observe(state), jnp.where(terminated, 0.0, -1.0), terminated, jnp.bool_(False))

    high = np.concatenate([np.ones(4, np.float32), MAX_SPEEDS])
    return time_limit(Environment(reset, step, Box(-high, high), Discrete(3), "Acrobot", render), max_steps)


def render(state: jax.Array) -> np.ndarray:
    """Draws a state `[4]`."""
    return draw_shapes(acrobot_shapes(float(state[0]), float(state[1])))


def acrobot_shapes(theta_1: float, theta_2: float, lengths: tuple[float, float] = (1.0, 1.0)) -> list[Shape]:
    """Both links, and the height that the tip must reach."""
    scale = 0.92 / sum(lengths)
    both = theta_1 + theta_2
    # Angles are measured from hanging straight down.
    elbow = (scale * lengths[0] * math.sin(theta_1), -scale * lengths[0] * math.cos(theta_1))
    end = (elbow[0] + scale * lengths[1] * math.sin(both), elbow[1] - scale * lengths[1] * math.cos(both))
    goal: Shape = ("line", [(-0.95, scale), (0.95, scale)], GREEN, 0.015)
    links: list[Shape] = [("line", [(0.0, 0.0), elbow], BLUE, 0.1), ("line", [elbow, end], ORANGE, 0.1)]
    return [goal, *links, ("disc", [(0.0, 0.0), elbow], DARK, 0.04), ("disc", [end], RED, 0.05)]
