"""Board games of two players who want k stones in a row: m,n,k-games, with or without gravity."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, GREY, ORANGE, Shape, draw_shapes
from foldax.rl.spaces import Box, Discrete

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of a line, in rows and columns
STONES = ".XO"


class BoardState(NamedTuple):
    """State of a board game of H x W cells.

    Attributes:
      board: int32 `[H * W]`, row by row from the top: -1 where a cell is empty, else the player whose stone is there.
      player: who moves next, int32 []: 0 or 1.
    """

    board: jax.Array
    player: jax.Array


def winning_lines(height: int, width: int, length: int) -> np.ndarray:
    """Cells of each straight line of `length` cells on a board, `[L, length]`, numbered row by row.

    >>> len(winning_lines(3, 3, 3)), len(winning_lines(6, 7, 4))
    (8, 69)
    """
    lines = []
    for row, column in np.ndindex(height, width):
        for down, right in DIRECTIONS:
            rows, columns = row + down * np.arange(length), column + right * np.arange(length)
            if rows[-1] < height and 0 <= columns[-1] < width:
                lines.append(rows * width + columns)
    return np.array(lines)


def k_in_a_row(
    name: str,
    shape: tuple[int, int],
    length: int,
    num_actions: int,
    cell: Callable[[jax.Array, jax.Array], jax.Array],
    legal_actions: Callable[[jax.Array], jax.Array],
) -> Environment:
    """Makes a game in which players 0 and 1 place stones in turn, and the first one with a whole line wins.

    Observations float32 `[H, W, 2]` are 1 at the stones of the player who moves (channel 0) and of the other one
    (channel 1). The reward `[2]` is 1 for the winner and -1 for the loser; a full board pays no player. An illegal
    action loses.

    Args:
      name: of the game.
      shape: height H and width W of the board.
      length: stones in a row that win.
      num_actions: A.
      cell: `(board int32 [H * W], action) -> cell`, where a legal action places its stone.
      legal_actions: `board int32 [H * W] -> bool [A]`.
    """
    lines, stone_shape = jnp.asarray(winning_lines(*shape, length)), (*shape, 2)

    def observe(state: BoardState) -> jax.Array:
        players = jnp.stack([state.player, 1 - state.player])
        return (state.board[:, None] == players[None, :]).astype(jnp.float32).reshape(stone_shape)

    def reset(key: Key) -> tuple[BoardState, jax.Array]:
        state = BoardState(jnp.full(shape[0] * shape[1], -1, jnp.int32), jnp.int32(0))
        return state, observe(state)

    def step(key: Key, state: BoardState, action: jax.Array) -> tuple[BoardState, Step]:
        is_legal = legal_actions(state.board)[action]
        board = jnp.where(is_legal, state.board.at[cell(state.board, action)].set(state.player), state.board)
        has_line = (board[lines] == state.player).all(axis=1).any()
        after = BoardState(board, 1 - state.player)
        outcome = jnp.where(is_legal, has_line.astype(jnp.float32), -1.0)
        reward = jnp.where(jnp.arange(2) == state.player, outcome, -outcome)
        terminated = (outcome != 0) | (board >= 0).all()
        return after, Step(observe(after), reward, terminated, jnp.bool_(False))

    space = Box(np.zeros(stone_shape, np.float32), np.ones(stone_shape, np.float32))
    return Environment(
        reset,
        step,
        space,
        Discrete(num_actions),
        name,
        render=lambda state: draw_shapes(_shapes(np.asarray(state.board).reshape(shape))),
        legal_actions=lambda state: legal_actions(state.board),
        num_players=2,
        player=lambda state: state.player,
        render_text=lambda state: board_text(np.asarray(state.board).reshape(shape)),
    )


def board_text(board: np.ndarray) -> str:
    """Writes a board `[H, W]`: "X" for player 0, "O" for player 1 and "." for an empty cell.

    >>> print(board_text(np.array([[0, -1], [1, 0]])))
    X .
    O X
    """
    return "\n".join(" ".join(STONES[stone + 1] for stone in row) for row in board)


def _shapes(board: np.ndarray) -> list[Shape]:
    """Lines between the cells, and stones as discs: blue for player 0 and orange for player 1."""
    height, width = board.shape
    size = 1.8 / max(board.shape)
    left, top = -size * width / 2, size * height / 2
    shapes: list[Shape] = [
        ("line", [(left, top - size * row), (-left, top - size * row)], GREY, 0.015) for row in range(height + 1)
    ]
    shapes += [
        ("line", [(left + size * column, top), (left + size * column, -top)], GREY, 0.015)
        for column in range(width + 1)
    ]
    for (row, column), stone in np.ndenumerate(board):
        if stone >= 0:
            center = (left + size * (column + 0.5), top - size * (row + 0.5))
            shapes.append(("disc", [center], ORANGE if stone else BLUE, 0.38 * size))
    return shapes
