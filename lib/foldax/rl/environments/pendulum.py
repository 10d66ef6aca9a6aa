"""Pendulum: a weak motor swings a rod up and holds it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import DARK, GREEN, GREY, RED, Shape, draw_shapes
from foldax.rl.spaces import Box
from foldax.rl.wrappers import time_limit

MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
TIME_STEP = 0.05  # seconds


def pendulum(*, max_steps: int = 200, gravity: float = 10.0, mass: float = 1.0, length: float = 1.0) -> Environment:
    """Makes Pendulum: a motor too weak to lift a rod swings it up, and holds it upright (Brockman et al., 2016).

    Steps are those of Gymnasium's Pendulum-v1. Observations `[3]` are cosine and sine of the angle from upright, and
    the angular velocity (rad/s). The action `[1]` is a torque within ±2 N m, counterclockwise above 0. The reward is
    -(angle² + 0.1 velocity² + 0.001 torque²), with the angle in [-π, π): at most 0 and at least -16.3. An episode never
    terminates.

    Args:
      max_steps: steps after which an episode is truncated.
      gravity: acceleration in m/s².
      mass: of the rod, in kg.
      length: of the rod, in m.

    Raises:
      ConfigError: `max_steps` is below 1.

    >>> environment = pendulum()
    >>> environment.observation_space.high.tolist(), environment.action_space.high.tolist()
    ([1.0, 1.0, 8.0], [2.0])
    """

    def observe(state: jax.Array) -> jax.Array:
        theta, theta_dot, _ = state
        return jnp.stack([jnp.cos(theta), jnp.sin(theta), theta_dot])

    def reset(key: Key) -> tuple[jax.Array, jax.Array]:
        high = jnp.array([jnp.pi, 1.0])
        state = jnp.append(jax.random.uniform(key, (2,), minval=-high, maxval=high), 0.0)
        return state, observe(state)

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        theta, theta_dot, _ = state
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        angle = (theta + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = angle**2 + 0.1 * theta_dot**2 + 0.001 * torque**2
        # A rod that turns about its end (moment of inertia mass * length² / 3), by semi-implicit Euler steps
        acceleration = 3 * gravity / (2 * length) * jnp.sin(theta) + 3.0 / (mass * length**2) * torque
        theta_dot = jnp.clip(theta_dot + TIME_STEP * acceleration, -MAX_SPEED, MAX_SPEED)
        state = jnp.stack([theta + TIME_STEP * theta_dot, theta_dot, torque])
        return state, Step(observe(state), -cost, jnp.bool_(False), jnp.bool_(False))

    highs = np.array([1, 1, MAX_SPEED], np.float32), np.array([MAX_TORQUE], np.float32)
    observation_space, action_space = (Box(-high, high) for high in highs)
    return time_limit(Environment(reset, step, observation_space, action_space, "Pendulum", render), max_steps)


def render(state: jax.Array) -> np.ndarray:
    """Draws a state `[3]`, whose last element is the torque of the last step."""
    return draw_shapes(pendulum_shapes(float(state[0]), float(state[2]) / MAX_TORQUE))


def pendulum_shapes(theta: float, torque: float) -> list[Shape]:
    """Rod, and the torque, a fraction of the largest, as an arc in its direction; angle 0 is upright."""
    end = (-0.75 * math.sin(theta), 0.75 * math.cos(theta))
    # The arc's length is proportional to the torque.
    angles = np.linspace(0.0, max(-1.0, min(1.0, torque)) * 0.8 * math.pi, 24)
    arc = [(-0.3 * math.sin(a), 0.3 * math.cos(a)) for a in angles]
    torque_arc: list[Shape] = [("line", arc, GREEN, 0.035), ("disc", arc[-1:], GREEN, 0.05)]
    upright: Shape = ("line", [(0.0, 0.85), (0.0, 0.95)], GREY, 0.015)
    rod: list[Shape] = [("line", [(0.0, 0.0), end], RED, 0.15), ("disc", [(0.0, 0.0)], DARK, 0.04)]
    return [upright, rod[0], *(torque_arc if abs(torque) > 0.02 else []), rod[1]]
