"""MountainCar: a car too weak for the slope gathers speed by going back and forth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import DARK, GREEN, GREY, RED, Point, Shape, box, draw_shapes
from foldax.rl.spaces import Box, Discrete
from foldax.rl.wrappers import time_limit

POSITIONS = (-1.2, 0.6)  # a wall on the left, where the car stops
MAX_SPEED = 0.07
GOAL = 0.5


def mountain_car(
    *, max_steps: int = 200, goal_velocity: float = 0.0, force: float = 0.001, gravity: float = 0.0025
) -> Environment:
    """Makes MountainCar: a car too weak for the slope reaches the top by going back and forth (Moore, 1990).

    Steps are those of Gymnasium's MountainCar-v0. Observations `[2]` are position and velocity. Actions 0, 1 and 2 push
    left, not at all and right. Every step has reward -1, until an episode terminates at position 0.5.

    Args:
      max_steps: steps after which an episode is truncated.
      goal_velocity: velocity that the car must have at the top.
      force: change of the velocity by a push.
      gravity: largest change of the velocity by the slope.

    Raises:
      ConfigError: `max_steps` is below 1.

    >>> environment = mountain_car()
    >>> print(environment.observation_space.low, environment.action_space)
    [-1.2  -0.07] Discrete(num=3)
    """

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        state = drive(state, (action - 1) * force, gravity)
        terminated = (state[0] >= GOAL) & (state[1] >= goal_velocity)
        return state, Step(state, jnp.float32(-1), terminated, jnp.bool_(False))

    render = functools.partial(render_car, goal=GOAL)
    environment = Environment(reset_car, step, observation_space(), Discrete(3), "MountainCar", render)
    return time_limit(environment, max_steps)


def observation_space() -> Box:
    """Bounds of position and velocity."""
    low, high = POSITIONS
    return Box(np.array([low, -MAX_SPEED], np.float32), np.array([high, MAX_SPEED], np.float32))


def reset_car(key: Key) -> tuple[jax.Array, jax.Array]:
    """Places the car in the valley, at rest; returns its state `[2]` twice, as state and observation."""
    state = jnp.stack([jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.float32(0)])
    return state, state


def drive(state: jax.Array, push: jax.Array, gravity: float) -> jax.Array:
    """Moves the car by a step; state `[2]`, push `[]`."""
    position, velocity = state
    velocity = jnp.clip(velocity + push - gravity * jnp.cos(3 * position), -MAX_SPEED, MAX_SPEED)
    position = jnp.clip(position + velocity, *POSITIONS)
    stops = (position <= POSITIONS[0]) & (velocity < 0)
    return jnp.stack([position, jnp.where(stops, 0.0, velocity)])


def render_car(state: jax.Array, goal: float) -> np.ndarray:
    """Draws a state `[2]`."""
    return draw_shapes(car_shapes(float(state[0]), goal))


def car_shapes(position: float, goal: float) -> list[Shape]:
    """Valley, flag, and the car on the slope."""
    low, high = POSITIONS

    def point_at(position: float) -> Point:
        return 1.9 * (position - low) / (high - low) - 0.95, 0.62 * math.sin(3 * position) - 0.1

    margin = 0.03 * (high - low)  # up to the image's edges
    valley = [point_at(place) for place in np.linspace(low - margin, high + margin, 60)]
    # The car is placed along the normal of the slope, which a small step ahead gives.
    flag, (x, y), ahead = point_at(goal), point_at(position), point_at(position + 1e-3)
    slope = math.atan2(ahead[1] - y, ahead[0] - x)
    normal = (-math.sin(slope), math.cos(slope))
    top = (flag[0], flag[1] + 0.3)
    body = (x + 0.11 * normal[0], y + 0.11 * normal[1])
    wheels = [(x + s * normal[1] + 0.045 * normal[0], y - s * normal[0] + 0.045 * normal[1]) for s in (-0.075, 0.075)]
    ground: list[Shape] = [("polygon", [(-1.1, -1.0), *valley, (1.1, -1.0)], "#E4E4E4", 0.0)]
    ground.append(("line", valley, GREY, 0.015))
    pennant = [top, (top[0] - 0.16, top[1] - 0.06), (top[0], top[1] - 0.12)]
    goal_shapes: list[Shape] = [("line", [flag, top], DARK, 0.015), ("polygon", pennant, GREEN, 0.0)]
    return [*ground, *goal_shapes, ("polygon", box(body, 0.13, 0.055, slope), RED, 0.0), ("disc", wheels, DARK, 0.045)]
