"""`foldax play RUN --against OPPONENT`: games of a run's agent against another run, random moves or a human."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax import rl
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError
from foldax.learner import Key
from foldax.runs.load import load_run
from foldax.runs.terminal import echo

GamePolicy = Callable[[rl.GameObservation, Key], Any]


def play_games(
    result: Result,
    game: rl.Environment,
    against: str,
    *,
    games: int,
    seed: int,
    max_steps: int,
    read: Callable[[str], str] = input,
    verbose: bool = True,
) -> np.ndarray:
    """Plays games of an agent, which begins every second one; draws all positions of the first one, or of a human's.

    Args:
      result: the run, whose `predict` selects the moves, with a search if it takes `rl.GameObservation`s.
      game: environment of two players.
      against: "random", "human", or the folder of another run on the same game.
      games: number of games.
      seed: randomness of the moves.
      max_steps: maximum number of moves of a game.
      read: asks a human, `question -> answer`.
      verbose: prints positions and results.

    Returns:
      The agent's total reward in each game, float32 `[games]`.

    Raises:
      ConfigError: the environment is no game for two or cannot be shown to a human, who ended the input, or the other
        run has another game.
      ExperimentError: a learner has no `predict` that fits the game.
    """
    single = rl.observe_game(game)
    agent = jax.jit(run_policy(result, single))
    opponent = human_policy(game, read) if against == "human" else jax.jit(_opponent(against, game, single))
    step, outcomes, key = jax.jit(single.step), [], jax.random.key(seed)
    for number in range(games):
        agent_side, game_key = number % 2, jax.random.fold_in(key, number)
        state, position = single.reset(jax.random.fold_in(game_key, 0))
        draws = verbose and game.render_text is not None and (number == 0 or against == "human")
        outcome, is_over, moves = 0.0, False, 0
        while not is_over and moves < max_steps:
            moves += 1
            move_key, step_key = jax.random.split(jax.random.fold_in(game_key, moves))
            is_agent = int(position.player) == agent_side
            batch = jax.tree.map(lambda x: x[None], position)
            action = int((agent if is_agent else opponent)(batch, move_key)[0])
            state, result_of_step = step(step_key, state, jnp.int32(action))
            position = result_of_step.observation
            outcome += float(result_of_step.reward)
            is_over = bool(result_of_step.terminated | result_of_step.truncated)
            if draws:
                echo(f"\nmove {moves}, {'the agent' if is_agent else against}: {action}", sep="\n")
                echo(_text(game, state))
        outcomes.append(outcome if agent_side == 0 else -outcome)
        if verbose and (draws or against == "human"):
            echo(f"game {number + 1}: the agent {_word(outcomes[-1])}")
    results = np.array(outcomes, np.float32)
    if verbose:
        won, lost = int((results > 0).sum()), int((results < 0).sum())
        echo(f"{game.name}, {games:,} against {against}: {won:,} won, {games - won - lost:,} draws, {lost:,} lost")
    return results


def run_policy(result: Result, game: rl.Environment) -> GamePolicy:
    """Makes a policy of games from a run's `predict`: with search where it takes whole positions, else without.

    Args:
      result: the run.
      game: of `rl.observe_game`.

    Raises:
      ExperimentError: the learner has no `predict`, or it takes observations of another game.
    """
    predict = result.learner.predict
    if predict is None:
        raise ExperimentError("this learner has no `predict`, so it cannot play")
    key = jax.random.key(0)
    position = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], game.reset(key)[1]))

    def searching(position: rl.GameObservation, key: Key) -> Any:
        return predict(result.state, position, key)

    def alone(position: rl.GameObservation, key: Key) -> Any:
        return predict(result.state, rl.MaskedObservation(position.observation, position.legal_actions), key)

    for policy in (searching, alone):
        try:
            # Shapes only: nothing is computed.
            if jax.eval_shape(policy, position, key).shape == (1,):
                return policy
        except Exception:  # the learner takes other inputs
            continue
    raise ExperimentError(f"the run's agent cannot play {game.name}: its `predict` takes other observations")


def human_policy(game: rl.Environment, read: Callable[[str], str]) -> GamePolicy:
    """Makes a policy that shows the board and asks for a move until a legal one is given.

    Args:
      game: the game, with `render_text`.
      read: asks, `question -> answer`.

    Raises:
      ConfigError: the game cannot be shown as text, or, when asked, the input ended.
    """
    if game.render_text is None:
        raise ConfigError(f"--against human: {game.name} cannot be shown in a terminal (it has no `render_text`)")

    def policy(position: rl.GameObservation, key: Key) -> np.ndarray:
        legal = np.flatnonzero(position.legal_actions[0]).tolist()
        if not np.any(np.asarray(position.observation)):
            echo(_text(game, jax.tree.map(lambda x: x[0], position.state)))
        while True:
            try:
                answer = read(f"your move ({', '.join(map(str, legal))}): ").strip()
            except EOFError:
                raise ConfigError("--against human: the input ended before the game did") from None
            if answer.isdecimal() and int(answer) in legal:
                return np.array([int(answer)])
            echo(f"{answer!r} is no legal move; give one of {', '.join(map(str, legal))}, or end with Ctrl-C")

    return policy


def _opponent(against: str, game: rl.Environment, single: rl.Environment) -> GamePolicy:
    if against == "random":
        return rl.random_policy
    other = load_run(against)
    if other.experiment.environment is None or other.experiment.environment(other.config).name != game.name:
        raise ConfigError(f"--against: the run {against} is of another environment than {game.name}")
    return run_policy(other, single)


def _text(game: rl.Environment, state: Any) -> str:
    assert game.render_text is not None  # the callers have checked it
    return game.render_text(jax.device_get(state))


def _word(outcome: float) -> str:
    return "won" if outcome > 0 else "lost" if outcome < 0 else "drew"
