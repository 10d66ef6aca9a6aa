"""Matrix game: two players choose at once, and a matrix says what each is paid."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, GREEN, GREY, ORANGE, Shape, box, draw_shapes
from foldax.rl.spaces import Box, Discrete

ROCK_PAPER_SCISSORS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))


class MatrixGameState(NamedTuple):
    """State of a matrix game.

    Attributes:
      player: who chooses next, int32 []: 0, 1, or 2 at the end.
      choices: row and column, int32 `[2]`; -1 before a choice.
    """

    player: jax.Array
    choices: jax.Array


def matrix_game(
    payoffs: Sequence[Sequence[float]] = ROCK_PAPER_SCISSORS,
    column_payoffs: Sequence[Sequence[float]] | None = None,
    *,
    opponent: Sequence[float] | None = None,
) -> Environment:
    """Makes a game of two players who choose without seeing the other's choice (von Neumann, 1928).

    Player 0 chooses a row and player 1 a column, one after the other; the observation `[2]` says only who chooses, as 1
    at its number. After both choices the reward `[2]` is what each is paid. By default the game is rock, paper,
    scissors, whose only equilibrium mixes all three and pays 0.

    With an `opponent`, a mixed strategy of the column player, it is an environment for one: an episode is one choice of
    a row, and the best mean return is the largest element of `payoffs @ opponent`.

    Args:
      payoffs: what the row player is paid, A rows of A numbers.
      column_payoffs: what the column player is paid; None: minus that of the row player, a zero-sum game.
      opponent: probabilities of the columns; None: a game for two.

    Raises:
      ConfigError: the matrices are not square and alike, or `opponent` are no probabilities of the columns.

    >>> game = matrix_game([[3, 0], [5, 1]], [[3, 5], [0, 1]])  # the prisoner's dilemma
    >>> game.num_players, game.action_space
    (2, Discrete(num=2))
    """
    row = np.asarray(payoffs, np.float32)
    column = -row if column_payoffs is None else np.asarray(column_payoffs, np.float32)
    if row.ndim != 2 or len(set(row.shape)) != 1 or not row.size or column.shape != row.shape:
        shapes = f"payoffs {list(row.shape)} and column_payoffs {list(column.shape)}"
        raise ConfigError(f"matrix_game: {shapes} must be square matrices of one size, 1 or more")
    pays, space, num_actions = (
        jnp.stack([row, column], axis=-1),
        Box(np.zeros(2, np.float32), np.ones(2, np.float32)),
        len(row),
    )

    def reset(key: Key) -> tuple[MatrixGameState, jax.Array]:
        return MatrixGameState(jnp.int32(0), jnp.full(2, -1, jnp.int32)), jax.nn.one_hot(0, 2)

    def step(key: Key, state: MatrixGameState, action: jax.Array) -> tuple[MatrixGameState, Step]:
        choices = state.choices.at[state.player].set(action.astype(jnp.int32))
        after = MatrixGameState(state.player + 1, choices)
        terminated = after.player >= 2
        reward = jnp.where(terminated, pays[choices[0], choices[1]], 0.0)
        return after, Step(jax.nn.one_hot(after.player, 2), reward, terminated, jnp.bool_(False))

    def render(state: MatrixGameState) -> np.ndarray:
        return draw_shapes(_shapes(row, np.asarray(state.choices)))

    game = Environment(reset, step, space, Discrete(num_actions), "matrix game", render)
    if opponent is None:
        return game._replace(num_players=2, player=lambda state: jnp.minimum(state.player, 1))
    return _against(game, opponent)


def _against(game: Environment, opponent: Sequence[float]) -> Environment:
    """The game of the row player against a mixed strategy."""
    strategy, num_actions = np.asarray(opponent, np.float32), jax.tree.leaves(game.action_space)[0]
    if strategy.shape != (num_actions,) or (strategy < 0).any() or abs(strategy.sum() - 1) > 1e-4:
        expected = f"{num_actions} probabilities whose sum is 1"
        raise ConfigError(f"matrix_game: opponent {list(opponent)} must be {expected}")

    def step(key: Key, state: MatrixGameState, action: jax.Array) -> tuple[MatrixGameState, Step]:
        state, _ = game.step(key, state, action)
        reply = jax.random.choice(key, len(strategy), p=jnp.asarray(strategy))
        state, result = game.step(key, state, reply)
        return state, result._replace(reward=result.reward[0])

    return game._replace(step=step)


def _shapes(payoffs: np.ndarray, choices: np.ndarray) -> list[Shape]:
    """The matrix as squares, blue where the row player is paid and orange where not; bars mark the choices."""
    size, largest = 1.6 / len(payoffs), float(np.abs(payoffs).max()) or 1.0
    shapes: list[Shape] = []
    for (row, column), payoff in np.ndenumerate(payoffs):
        center = (-0.7 + size * (column + 0.5), 0.7 - size * (row + 0.5))
        color = GREY if payoff == 0 else BLUE if payoff > 0 else ORANGE
        half = 0.45 * size * (0.3 if payoff == 0 else 0.3 + 0.7 * abs(float(payoff)) / largest)
        shapes.append(("polygon", box(center, half, half), color, 0.0))
    if choices[0] >= 0:
        shapes.append(("polygon", box((-0.85, 0.7 - size * (choices[0] + 0.5)), 0.04, 0.45 * size), GREEN, 0.0))
    if choices[1] >= 0:
        shapes.append(("polygon", box((-0.7 + size * (choices[1] + 0.5), 0.85), 0.45 * size, 0.04), GREEN, 0.0))
    return shapes
