"""Bandit: one choice between arms that pay with unknown probabilities."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, DARK, GREY, ORANGE, Shape, box, draw_shapes
from foldax.rl.spaces import Box, Discrete


def bandit(probabilities: Sequence[float] = (0.2, 0.5, 0.8)) -> Environment:
    """Makes a Bernoulli bandit: each arm pays 1 with its own probability, else 0 (Robbins, 1952).

    An episode is one pull, and the observation `[1]` is always 1. The best mean return is the largest probability.

    Args:
      probabilities: of a reward, for each arm.

    Raises:
      ConfigError: there is no arm, or a probability is not between 0 and 1.

    >>> bandit([0.1, 0.9]).action_space
    Discrete(num=2)
    """
    means = np.asarray(probabilities, np.float32)
    if means.ndim != 1 or not len(means) or not ((means >= 0) & (means <= 1)).all():
        raise ConfigError(f"bandit: probabilities {list(probabilities)} must be one or more numbers between 0 and 1")
    observation = jnp.ones(1)

    def reset(key: Key) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return (jnp.int32(-1), jnp.float32(0)), observation

    def step(
        key: Key, state: tuple[jax.Array, jax.Array], action: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Step]:
        reward = jax.random.bernoulli(key, jnp.asarray(means)[action]).astype(jnp.float32)
        return (action.astype(jnp.int32), reward), Step(observation, reward, jnp.bool_(True), jnp.bool_(False))

    def render(state: tuple[jax.Array, jax.Array]) -> np.ndarray:
        return draw_shapes(_shapes(means, int(state[0]), float(state[1])))

    ones = np.ones(1, np.float32)
    return Environment(reset, step, Box(ones, ones), Discrete(len(means)), "bandit", render)


def _shapes(probabilities: np.ndarray, arm: int, reward: float) -> list[Shape]:
    """Probabilities as bars; above the arm that was pulled a disc, orange if it paid and grey if not."""
    width = 1.8 / len(probabilities)
    shapes: list[Shape] = [("line", [(-0.95, -0.8), (0.95, -0.8)], DARK, 0.015)]
    for index, probability in enumerate(probabilities):
        x, height = width * (index + 0.5) - 0.9, 1.3 * float(probability)
        shapes.append(("polygon", box((x, -0.8 + height / 2), 0.35 * width, height / 2), BLUE, 0.0))
        if index == arm:
            shapes.append(("disc", [(x, -0.65 + height)], ORANGE if reward else GREY, 0.1))
    return shapes
