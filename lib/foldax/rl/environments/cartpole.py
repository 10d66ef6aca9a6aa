"""CartPole: a pole is balanced on a cart."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, DARK, GREY, ORANGE, RED, Shape, box, draw_shapes
from foldax.rl.spaces import Box, Discrete
from foldax.rl.wrappers import time_limit

POSITION_LIMIT = 2.4  # metres
ANGLE_LIMIT = math.radians(12)
TIME_STEP = 0.02  # seconds


def cartpole(
    *,
    max_steps: int = 500,
    gravity: float = 9.8,
    cart_mass: float = 1.0,
    pole_mass: float = 0.1,
    pole_half_length: float = 0.5,
    force: float = 10.0,
) -> Environment:
    """Makes CartPole: a pole is balanced on a cart that is pushed left or right (Barto, Sutton & Anderson, 1983).

    Steps are those of Gymnasium's CartPole-v1. Observations `[4]` are position (m) and velocity of the cart, angle from
    upright (rad) and angular velocity of the pole. Action 0 pushes left, 1 right. Every step has reward 1, so that the
    best return is `max_steps`. An episode terminates beyond 2.4 m or 12 degrees.

    Args:
      max_steps: steps after which an episode is truncated.
      gravity: acceleration in m/s².
      cart_mass: in kg.
      pole_mass: in kg.
      pole_half_length: half of the pole's length, in m.
      force: of a push, in N.

    Raises:
      ConfigError: `max_steps` is below 1.

    >>> environment = cartpole()
    >>> environment.observation_space.shape, environment.action_space
    ((4,), Discrete(num=2))
    """
    total_mass = cart_mass + pole_mass

    def reset(key: Key) -> tuple[jax.Array, jax.Array]:
        state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return state, state

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        _, x_dot, theta, theta_dot = state
        push = jnp.where(action == 1, force, -force)
        # Equations of motion without friction (Florian, 2007, https://coneural.org/florian/papers/05_cart_pole.pdf)
        cosine, sine = jnp.cos(theta), jnp.sin(theta)
        forces = (push + pole_mass * pole_half_length * theta_dot**2 * sine) / total_mass
        inertia = pole_half_length * (4.0 / 3.0 - pole_mass * cosine**2 / total_mass)
        theta_acceleration = (gravity * sine - cosine * forces) / inertia
        x_acceleration = forces - pole_mass * pole_half_length * theta_acceleration * cosine / total_mass
        # Euler's method
        derivative = jnp.stack([x_dot, x_acceleration, theta_dot, theta_acceleration])
        state = state + TIME_STEP * derivative
        terminated = (jnp.abs(state[0]) > POSITION_LIMIT) | (jnp.abs(state[2]) > ANGLE_LIMIT)
        return state, Step(state, jnp.float32(1), terminated, jnp.bool_(False))

    # Twice the limits, so that the last observation of an episode is within the space.
    high = np.array([2 * POSITION_LIMIT, np.inf, 2 * ANGLE_LIMIT, np.inf], np.float32)
    environment = Environment(reset, step, Box(-high, high), Discrete(2), "CartPole", render)
    return time_limit(environment, max_steps)


def render(state: jax.Array) -> np.ndarray:
    """Draws a state `[4]`."""
    return draw_shapes(cartpole_shapes(float(state[0]), float(state[2])))


def cartpole_shapes(x: float, theta: float, limit: float = POSITION_LIMIT) -> list[Shape]:
    """Cart, pole and track, at whose ends the episode terminates."""
    center, ground = 0.85 / limit * x, -0.5
    tip = (center + 1.1 * math.sin(theta), ground + 0.1 + 1.1 * math.cos(theta))
    ends: list[Shape] = [("line", [(end, ground - 0.07), (end, ground + 0.07)], RED, 0.02) for end in (-0.85, 0.85)]
    track: Shape = ("line", [(-0.95, ground), (0.95, ground)], GREY, 0.015)
    cart: Shape = ("polygon", box((center, ground), 0.2, 0.1), DARK, 0.0)
    axle = (center, ground + 0.1)
    return [track, *ends, cart, ("line", [axle, tip], ORANGE, 0.055), ("disc", [axle], BLUE, 0.035)]
