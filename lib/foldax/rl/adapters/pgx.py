"""Adapter to pgx (extra `games`): board and card games on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.extras import import_extra
from foldax.learner import Key
from foldax.rl.adapters import check_name
from foldax.rl.environment import Environment, State, Step
from foldax.rl.spaces import Box, Discrete


def pgx(name: str) -> Environment:
    """Makes a game of pgx (Koyamada et al., 2023), such as "go_9x9", "othello" or "connect_four".

    pgx numbers players at random: player 0 does not always begin. An illegal action ends the game and is punished.

    Args:
      name: one of `pgx.available_envs()`.

    Raises:
      ConfigError: pgx is not installed, or it has no such game or needs another package for it.
    """
    library = import_extra("pgx", "games", ConfigError)
    check_name(name, library.available_envs(), "pgx has no game")
    # Learners are made inside traced programs, but shapes must be known before tracing.
    with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
        try:
            game = library.make(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"pgx cannot make {name!r}: {error} (pip install pgx-minatar has its MinAtar)") from error
    num_players = int(game.num_players)

    def observe(state: Any) -> jax.Array:
        return jnp.asarray(state.observation, jnp.float32)

    def reset(key: Key) -> tuple[State, jax.Array]:
        with jax.numpy_rank_promotion("allow"):
            state = game.init(key)
        return state, observe(state)

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, Step]:
        with jax.numpy_rank_promotion("allow"):
            after = game.step(state, action, key)
        reward = jnp.asarray(after.rewards, jnp.float32)
        reward = reward[0] if num_players == 1 else reward
        return after, Step(observe(after), reward, after.terminated, after.truncated)

    # Some observations are counts; pgx declares no bounds.
    size = np.full(game.observation_shape, np.inf, np.float32)
    return Environment(
        reset,
        step,
        Box(-size, size),
        Discrete(int(game.num_actions)),
        f"pgx {name}",
        legal_actions=lambda state: state.legal_action_mask,
        num_players=num_players,
        player=None if num_players == 1 else lambda state: state.current_player,
    )
