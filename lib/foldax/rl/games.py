"""Games for two: what a policy sees of them, and matches between two policies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError, check_positive
from foldax.learner import Key
from foldax.rl.environment import Action, Environment, LegalActions, Observation, State, Step, play_episodes
from foldax.rl.spaces import Discrete, random_actions


class GameObservation(NamedTuple):
    """A position of a game as a policy receives it; one that searches starts from the state.

    Attributes:
      observation: what the player who moves sees, `[N, ...]`.
      legal_actions: bool `[N, A]`.
      player: who moves, int32 `[N]`.
      state: states of the environment, `[N, ...]`.
    """

    observation: Observation
    legal_actions: LegalActions
    player: jax.Array
    state: State


def check_game(environment: Environment) -> None:
    """Checks that an environment is a game for two with discrete actions, as matches and self-play need.

    Raises:
      ConfigError: it is not.

    >>> from foldax import rl
    >>> check_game(rl.cartpole())
    Traceback (most recent call last):
    foldax.errors.ConfigError: CartPole: expected a game of 2 players, such as rl.tic_tac_toe(); it has 1
    """
    if not isinstance(environment, Environment):
        raise ConfigError(f"environment: expected an rl.Environment; got {type(environment).__name__}")
    if environment.num_players != 2:
        found = f"it has {environment.num_players}"
        raise ConfigError(f"{environment.name}: expected a game of 2 players, such as rl.tic_tac_toe(); {found}")
    if environment.player is None or environment.legal_actions is None:
        raise ConfigError(f"{environment.name}: a game needs `player` and `legal_actions`, functions of the state")
    if not isinstance(environment.action_space, Discrete):
        raise ConfigError(
            f"{environment.name}: a game needs an rl.Discrete of actions; it is {environment.action_space}"
        )


def observe_game(environment: Environment) -> Environment:
    """Makes a zero-sum game for two an environment for one, which moves for both players in turn.

    Observations are `GameObservation`s, and the reward is that of player 0; player 1's is its negative.

    Args:
      environment: the game.

    Raises:
      ConfigError: the environment is no game for two.

    >>> from foldax import rl
    >>> _, position = observe_game(rl.tic_tac_toe()).reset(jax.random.key(0))
    >>> int(position.player), position.legal_actions.shape
    (0, (9,))
    """
    check_game(environment)
    player: Any = environment.player
    legal_actions: Any = environment.legal_actions

    def observe(state: State, observation: Observation) -> GameObservation:
        return GameObservation(observation, legal_actions(state), player(state), state)

    def reset(key: Key) -> tuple[State, GameObservation]:
        state, observation = environment.reset(key)
        return state, observe(state, observation)

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        state, result = environment.step(key, state, action)
        return state, result._replace(observation=observe(state, result.observation), reward=result.reward[0])

    return environment._replace(reset=reset, step=step, legal_actions=None, num_players=1, player=None)


def random_policy(observation: GameObservation, key: Key) -> Action:
    """Draws a legal action, each with the same probability: a policy of `play_match`.

    Args:
      observation: `[N, ...]`.
      key: randomness of the actions.

    >>> position = GameObservation(jnp.zeros((1, 3)), jnp.array([[False, True, False]]), jnp.zeros(1, int), None)
    >>> random_policy(position, jax.random.key(0)).tolist()
    [1]
    """
    num_games, num_actions = observation.legal_actions.shape
    return random_actions(Discrete(num_actions), key, num_games, observation.legal_actions)


def play_match(
    environment: Environment,
    policy: Any,
    opponent: Any,
    key: Key,
    num_games: int,
    *,
    opening_moves: int = 0,
    max_steps: int = 1000,
) -> jax.Array:
    """Plays games between two policies: `policy` begins the first half of them, and `opponent` the others.

    Args:
      environment: a zero-sum game for two.
      policy: `(GameObservation [N, ...], key) -> action int32 [N]`, asked at each move of all games.
      opponent: likewise.
      key: randomness of the openings, the policies and the environment.
      num_games: N, an even number.
      opening_moves: random legal moves at the start of each game: policies that are not random would repeat one game.
      max_steps: moves after which a game is stopped, with the rewards until then.

    Returns:
      The policy's total reward in each game, float32 `[N]`; in most games 1 for a win, 0 for a draw and -1 for a loss.

    Raises:
      ConfigError: the environment is no game for two, or a number is out of range.

    >>> from foldax import rl
    >>> first_legal = lambda observation, key: observation.legal_actions.argmax(axis=-1)
    >>> outcomes = play_match(rl.tic_tac_toe(), first_legal, random_policy, jax.random.key(0), 100)
    >>> bool(outcomes.mean() > 0.2)
    True
    """
    check_positive(num_games=num_games, max_steps=max_steps)
    if num_games % 2 or opening_moves < 0:
        problem = (
            f"num_games: {num_games} must be even" if num_games % 2 else f"opening_moves: {opening_moves} is below 0"
        )
        raise ConfigError(f"{problem}; each policy begins half of the games")
    game = with_random_opening(observe_game(environment), opening_moves)
    side = jnp.arange(num_games) * 2 // num_games  # the player whom `policy` moves for

    def select_action(observation: GameObservation, key: Key) -> Action:
        keys = jax.random.split(key)
        return jnp.where(observation.player == side, policy(observation, keys[0]), opponent(observation, keys[1]))

    outcome = play_episodes(game, select_action, key, num_games, max_steps)["return"]
    return jnp.where(side == 0, outcome, -outcome)


def with_random_opening(game: Environment, num_moves: int) -> Environment:
    """Begins each episode of an `observe_game` after some random legal moves.

    Args:
      game: the game.
      num_moves: moves of both players together, fewer than can end a game.

    >>> from foldax import rl
    >>> _, position = with_random_opening(observe_game(rl.tic_tac_toe()), 3).reset(jax.random.key(0))
    >>> int(position.legal_actions.sum())
    6
    """

    def reset(key: Key) -> tuple[State, GameObservation]:
        start = game.reset(key)

        def move(number: jax.Array, start: tuple[State, GameObservation]) -> tuple[State, GameObservation]:
            action_key, step_key = jax.random.split(jax.random.fold_in(key, number))
            position = jax.tree.map(lambda x: x[None], start[1])
            state, step = game.step(step_key, start[0], random_policy(position, action_key)[0])
            return state, step.observation

        return jax.lax.fori_loop(0, num_moves, move, start)

    return game._replace(reset=reset) if num_moves else game
