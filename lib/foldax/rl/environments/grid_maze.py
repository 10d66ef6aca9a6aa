"""Grid maze: the shortest way from a start to a goal around walls."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import draw_grid
from foldax.rl.spaces import Box, Discrete
from foldax.rl.wrappers import time_limit

DYNA_MAZE = (".......#G", "..#....#.", "S.#....#.", "..#......", ".....#...", ".........")
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left, in rows and columns


def grid_maze(layout: Sequence[str] = DYNA_MAZE, *, max_steps: int = 200) -> Environment:
    """Makes a maze of H x W cells: the goal is to be reached in as few steps as possible.

    Observations `[H * W]` are 1 at the agent's cell and 0 elsewhere. Actions 0 to 3 move up, right, down and left; the
    agent stays where a wall or the edge is. Every step has reward -1, and an episode terminates at the goal, so that
    the best return is minus the length of the shortest path: -14 in the default maze, that of Dyna (Sutton, 1990).

    Args:
      layout: rows of equal length; "#" is a wall, "." is free, "S" a start, "G" the goal. Each episode begins at one of
        the starts.
      max_steps: steps after which an episode is truncated.

    Raises:
      ConfigError: the layout is not of this form, or a start has no path to the goal; `max_steps` is below 1.

    >>> environment = grid_maze(["S.", "#G"])
    >>> state, step = environment.step(jax.random.key(0), environment.reset(jax.random.key(0))[0], jnp.int32(1))
    >>> print(step.observation, step.reward)
    [0. 1. 0. 0.] -1.0
    """
    cells = _cells(layout)
    height, width = cells.shape
    starts, goal = jnp.asarray(np.argwhere(cells == "S")), jnp.asarray(np.argwhere(cells == "G")[0])
    is_wall, moves, last = jnp.asarray(cells == "#"), jnp.asarray(MOVES), jnp.array([height - 1, width - 1])

    def observe(position: jax.Array) -> jax.Array:
        return jax.nn.one_hot(position[0] * width + position[1], height * width)

    def reset(key: Key) -> tuple[jax.Array, jax.Array]:
        position = starts[jax.random.randint(key, (), 0, len(starts))]
        return position, observe(position)

    def step(key: Key, position: jax.Array, action: jax.Array) -> tuple[jax.Array, Step]:
        target = jnp.clip(position + moves[action], 0, last)
        position = jnp.where(is_wall[target[0], target[1]], position, target)
        terminated = (position == goal).all()
        return position, Step(observe(position), jnp.float32(-1), terminated, jnp.bool_(False))

    def render(position: jax.Array) -> np.ndarray:
        agent = np.zeros(cells.shape)
        agent[tuple(np.asarray(position))] = 1
        # The channels are painted blue, orange, grey and green.
        return draw_grid(np.stack([agent, cells == "S", cells == "#", cells == "G"], axis=-1))

    space = Box(np.zeros(cells.size, np.float32), np.ones(cells.size, np.float32))
    return time_limit(Environment(reset, step, space, Discrete(len(MOVES)), "grid maze", render), max_steps)


def _cells(layout: Sequence[str]) -> np.ndarray:
    """Checks a layout, and returns its characters `[H, W]`."""
    from scipy import ndimage

    rows = list(layout)
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigError(f"grid_maze: rows {rows} must be of one length, 1 or more")
    cells = np.array([list(row) for row in rows])
    unknown = set(cells.ravel()) - set("#.SG")
    if unknown or (cells == "G").sum() != 1 or not (cells == "S").any():
        raise ConfigError(f"grid_maze: the layout {rows} must have one 'G', one or more 'S', and else only '.' and '#'")
    regions = ndimage.label(cells != "#")[0]
    unconnected = np.argwhere((cells == "S") & (regions != regions[cells == "G"]))
    if len(unconnected):
        row, column = unconnected[0].tolist()
        raise ConfigError(f"grid_maze: there is no path from 'S' in row {row}, column {column}, to 'G'")
    return cells
