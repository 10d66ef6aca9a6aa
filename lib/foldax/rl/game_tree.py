"""All positions of a small game, its value by minimax, and the exact worst outcome of a policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Key
from foldax.rl.environment import Action, Environment, State
from foldax.rl.observations import MaskedObservation

CHUNK = 1024  # positions that are expanded at a time


class GameTree(NamedTuple):
    """Positions of a game for two without chance, each once however it is reached; a NumPy tree with S rows.

    Attributes:
      states: states of the environment, `[S, ...]`, in the order of their depth.
      observations: what the player who moves sees, `[S, ...]`.
      depth: moves before each position, int32 `[S]`.
      player: who moves, int32 `[S]`.
      is_terminal: whether the game is over, bool `[S]`.
      legal_actions: bool `[S, A]`; false at the end.
      children: position after each legal action, int32 `[S, A]`; -1 where there is none.
      rewards: reward of player 0 for each action, float32 `[S, A]`.
      num_paths: ways to reach each position, int64 `[S]`: their sum over a depth is the game's perft number.
    """

    states: State
    observations: Any
    depth: np.ndarray
    player: np.ndarray
    is_terminal: np.ndarray
    legal_actions: np.ndarray
    children: np.ndarray
    rewards: np.ndarray
    num_paths: np.ndarray


def enumerate_game(environment: Environment, max_depth: int | None = None) -> GameTree:
    """Finds all positions of a zero-sum game for two whose steps and resets are not random.

    Args:
      environment: the game, with `legal_actions` and `player`; all positions are held in memory.
      max_depth: moves after which positions are not followed; None: to the end of all games.

    Raises:
      ConfigError: the environment has another number of players, or does not say which actions are legal.

    >>> from foldax import rl
    >>> tree = enumerate_game(rl.tic_tac_toe(), max_depth=2)
    >>> len(tree.depth), int(tree.num_paths[tree.depth == 2].sum())
    (82, 72)
    """
    if environment.num_players != 2 or environment.legal_actions is None or environment.player is None:
        raise ConfigError(f"{environment.name}: expected a game of 2 players with `legal_actions` and `player`")
    expand = _expander(environment)
    state, observation = environment.reset(jax.random.key(0))
    level = jax.tree.map(lambda x: np.asarray(x)[None], (state, observation))
    is_terminal, num_paths, levels, depth = np.zeros(1, bool), np.ones(1, np.int64), [], 0
    while True:
        player, legal, after, rewards, ended = expand(level[0])
        legal = legal & ~is_terminal[:, None] & (depth != max_depth)
        # Children that are the same state are one position.
        rows, actions = np.nonzero(legal)
        children = jax.tree.map(lambda x, at=(rows, actions): x[at], after)
        _, first, number = np.unique(_as_bytes(children[0]), return_index=True, return_inverse=True)
        index = np.full(legal.shape, -1, np.int32)
        index[rows, actions] = number.ravel()
        levels.append((*level, np.full(len(legal), depth), player, is_terminal, legal, index, rewards, num_paths))
        if not len(rows):
            break
        paths = np.zeros(len(first), np.int64)
        np.add.at(paths, number.ravel(), num_paths[rows])
        level, num_paths = jax.tree.map(lambda x, first=first: x[first], children), paths
        is_terminal, depth = ended[rows, actions][first], depth + 1
    # Numbers of children count from the first position of their level.
    ends = np.cumsum([len(level[2]) for level in levels])
    numbered = [(*lv[:6], np.where(lv[6] < 0, -1, lv[6] + end), *lv[7:]) for lv, end in zip(levels, ends, strict=True)]
    return GameTree(*jax.tree.map(lambda *parts: np.concatenate(parts), *numbered))


def _expander(environment: Environment) -> Any:
    """Makes a function of states `[S, ...]`: player, legal actions, and all children with rewards of 0 and ends."""
    actions = jnp.arange(jax.tree.leaves(environment.action_space)[0])

    def one(state: State) -> Any:
        def child(action: jax.Array) -> Any:
            after, step = environment.step(jax.random.key(0), state, action)
            return (after, step.observation), step.reward[0], step.terminated | step.truncated

        player, legal = environment.player(state), environment.legal_actions(state)  # type: ignore[misc]  # not None
        return player, legal, *jax.vmap(child)(actions)

    compiled = jax.jit(jax.vmap(one))

    def expand(states: State) -> Any:
        # Chunks of one size, so that one program serves all depths.
        count, chunks = len(jax.tree.leaves(states)[0]), []
        for start in range(0, count, CHUNK):
            index = np.minimum(start + np.arange(CHUNK), count - 1)
            chunks.append(jax.device_get(compiled(jax.tree.map(lambda x, index=index: x[index], states))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *chunks)

    return expand


def _as_bytes(states: State) -> np.ndarray:
    """One value for each of the states `[S, ...]`, equal where they are equal."""
    count = len(jax.tree.leaves(states)[0])
    sizes = [int(np.prod(x.shape[1:])) for x in jax.tree.leaves(states)]
    rows = [
        np.ascontiguousarray(x).reshape(count, size).view(np.uint8)
        for x, size in zip(jax.tree.leaves(states), sizes, strict=True)
    ]
    joined = np.ascontiguousarray(np.concatenate(rows, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1])))[:, 0]


def minimax(tree: GameTree) -> tuple[np.ndarray, np.ndarray]:
    """Solves a game by backward induction (Zermelo, 1913).

    Args:
      tree: all positions of the game.

    Returns:
      The value of each position for player 0, float32 `[S]`, and the actions that keep it, bool `[S, A]`.

    >>> from foldax import rl
    >>> float(minimax(enumerate_game(rl.tic_tac_toe()))[0][0])
    0.0
    """
    return _backward_induction(tree, tree.legal_actions)


def best_response_value(tree: GameTree, actions: np.ndarray, player: int) -> float:
    """Computes the exact outcome of a deterministic policy against the opponent that does best against it.

    Args:
      tree: all positions of the game.
      actions: the policy's action in each position, int `[S]`.
      player: the side that the policy plays, 0 or 1.

    Returns:
      The policy's total reward; -1 in a game of wins and losses if there is any line of play that it loses.

    Raises:
      ConfigError: an action is illegal.

    >>> from foldax import rl
    >>> tree = enumerate_game(rl.tic_tac_toe())
    >>> _, best = minimax(tree)
    >>> [best_response_value(tree, actions.argmax(axis=1), 0) for actions in (best, tree.legal_actions)]
    [0.0, -1.0]
    """
    chosen = np.arange(tree.legal_actions.shape[1])[None] == np.asarray(actions)[:, None]
    allowed = tree.legal_actions & (chosen | (tree.player != player)[:, None])
    illegal = ~tree.is_terminal & ~allowed.any(axis=1)
    if illegal.any():
        raise ConfigError(f"actions: that of position {int(illegal.argmax())} is illegal; give a legal one for each")
    value = float(_backward_induction(tree, allowed)[0][0])
    return value if player == 0 else -value


def _backward_induction(tree: GameTree, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, best = np.zeros(len(tree.depth), np.float32), np.zeros_like(allowed)
    signs = np.where(tree.player == 0, 1, -1).astype(np.float32)
    for depth in range(int(tree.depth.max()), -1, -1):
        at = np.flatnonzero((tree.depth == depth) & allowed.any(axis=1))
        after = tree.rewards[at] + values[tree.children[at]]
        mine = np.where(allowed[at], after * signs[at, None], -np.inf)
        values[at] = mine.max(axis=1) * signs[at]
        best[at] = mine == mine.max(axis=1, keepdims=True)
    return values, best


def perfect_policy(tree: GameTree) -> Any:
    """Makes a policy that draws one of the actions that keep the game's value.

    It looks a position up by its observation, which must tell all of the position that matters.

    Args:
      tree: all positions of the game.

    Returns:
      `(observation [N, ...], key) -> action int32 [N]`, for `rl.play_match`.

    >>> from foldax import rl
    >>> game = rl.tic_tac_toe()
    >>> policy = perfect_policy(enumerate_game(game))
    >>> float(jnp.abs(rl.play_match(game, policy, policy, jax.random.key(0), 4)).max())
    0.0
    """
    _, best = minimax(tree)
    known, logits = _as_rows(tree.observations), jnp.where(jnp.asarray(best), 0.0, -1e9)

    def policy(observation: MaskedObservation, key: Key) -> Action:
        rows = _as_rows(observation.observation)
        index = (rows[:, None] == known[None]).all(axis=-1).argmax(axis=-1)
        return jax.random.categorical(key, logits[index])

    return policy


def _as_rows(observations: Any) -> jax.Array:
    parts = [jnp.asarray(x) for x in jax.tree.leaves(observations)]
    return jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
