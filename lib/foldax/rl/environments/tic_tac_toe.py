"""Tic-tac-toe: three in a row on a board of nine cells."""

import jax

from foldax.rl.environment import Environment
from foldax.rl.environments.board_game import k_in_a_row


def tic_tac_toe() -> Environment:
    """Makes tic-tac-toe: two players place stones on a board of 3 x 3 cells, and three in a row win.

    Actions 0 to 8 are the cells, row by row. Observations float32 `[3, 3, 2]` are 1 at the stones of the player who
    moves (channel 0) and of the other one (channel 1); the reward `[2]` is 1 for the winner and -1 for the loser. An
    illegal action loses. There are 5,478 positions and 255,168 games; between perfect players the game is a draw.

    >>> game = tic_tac_toe()
    >>> state, _ = game.reset(jax.random.key(0))
    >>> state, step = game.step(jax.random.key(0), state, 4)
    >>> print(game.render_text(state))
    . . .
    . X .
    . . .
    """

    def cell(board: jax.Array, action: jax.Array) -> jax.Array:
        return action

    def legal_actions(board: jax.Array) -> jax.Array:
        return board < 0

    return k_in_a_row("tic-tac-toe", (3, 3), 3, 9, cell, legal_actions)
