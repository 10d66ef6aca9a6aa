"""Connect four: stones fall to the lowest free cell of a column, and four in a row win."""

import jax

from foldax.rl.environment import Environment
from foldax.rl.environments.board_game import k_in_a_row

HEIGHT, WIDTH = 6, 7


def connect_four() -> Environment:
    """Makes connect four: two players drop stones into 7 columns of 6 cells, and four in a row win.

    Actions 0 to 6 are the columns, of which full ones are illegal. Observations float32 `[6, 7, 2]` are 1 at the stones
    of the player who moves (channel 0) and of the other one (channel 1), with the top row first; the reward `[2]` is 1
    for the winner and -1 for the loser. An illegal action loses. The first player wins between perfect players, who
    begins in the middle column (Allis, 1988).

    >>> game = connect_four()
    >>> state, _ = game.reset(jax.random.key(0))
    >>> for column in (3, 3, 0):
    ...     state, step = game.step(jax.random.key(0), state, column)
    >>> print(game.render_text(state)[-27:])
    . . . O . . .
    X . . X . . .
    """

    def cell(board: jax.Array, column: jax.Array) -> jax.Array:
        free = (board.reshape(HEIGHT, WIDTH)[:, column] < 0).sum()
        return (free - 1) * WIDTH + column

    def legal_actions(board: jax.Array) -> jax.Array:
        return board[:WIDTH] < 0  # the top row

    return k_in_a_row("connect four", (HEIGHT, WIDTH), 4, WIDTH, cell, legal_actions)
