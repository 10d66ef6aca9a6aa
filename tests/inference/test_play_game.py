"""`foldax play` of games for two: opponents, the board as text, and a human's input."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError, ExperimentError
from foldax.inference import play_game
from foldax.inference.play import play


def run(predict) -> Any:
    """What `play_games` reads of a run."""
    return SimpleNamespace(learner=SimpleNamespace(predict=predict), state=None)


def first_legal(state, inputs, key):
    return inputs.legal_actions.argmax(axis=-1)


def answers(*texts: str):
    remaining = list(texts)

    def read(question: str) -> str:
        if not remaining:
            raise EOFError
        return remaining.pop(0)

    return read


def games(count: int, against: str = "random", **options) -> np.ndarray:
    options = dict(games=count, seed=0, max_steps=20) | options
    return play_game.play_games(run(first_legal), rl.tic_tac_toe(), against, **options)


def test_a_human_plays_and_is_asked_again_after_an_illegal_move(capsys) -> None:
    # The agent plays 0, 1, 2; the human first gives no number, a cell that is taken and one that there is not.
    outcomes = games(1, "human", read=answers("middle", "0", "9", "4", "5"))
    printed = capsys.readouterr().out
    assert outcomes.tolist() == [1]
    for answer in ("middle", "0", "9"):
        assert f"{answer!r} is no legal move; give one of 1, 2, 3, 4, 5, 6, 7, 8" in printed
    assert "X X X\n. O O\n. . ." in printed
    assert "game 1: the agent won" in printed
    assert "tic-tac-toe, 1 against human: 1 won, 0 draws, 0 lost" in printed


def test_sides_change_and_the_other_side_sees_its_own_wins() -> None:
    # In the second game the human begins, and wins with 4, 2 and 6.
    assert games(2, "human", read=answers("4", "5", "4", "2", "6"), verbose=False).tolist() == [1, -1]


def test_the_end_of_the_input_is_no_traceback() -> None:
    with pytest.raises(ConfigError, match="--against human: the input ended before the game did"):
        games(1, "human", read=answers("4"), verbose=False)


def test_random_games_are_reproducible_and_counted(capsys) -> None:
    outcomes = games(6)
    np.testing.assert_array_equal(outcomes, games(6, verbose=False))
    won, lost = (outcomes > 0).sum(), (outcomes < 0).sum()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"tic-tac-toe, 6 against random: {won} won, {6 - won - lost} draws, {lost} lost"


def test_a_policy_without_search_plays_from_observations_and_others_are_refused() -> None:
    def network(state, inputs, key):
        assert isinstance(inputs, rl.MaskedObservation)
        return inputs.legal_actions.argmax(axis=-1)

    single = rl.observe_game(rl.tic_tac_toe())
    assert play_game.run_policy(run(network), single)
    with pytest.raises(ExperimentError, match="cannot play tic-tac-toe: its `predict` takes other observations"):
        play_game.run_policy(run(lambda state, inputs, key: jnp.zeros((3, 3))), single)
    with pytest.raises(ExperimentError, match="no `predict`"):
        play_game.run_policy(run(None), single)
    with pytest.raises(ConfigError, match="cannot be shown in a terminal"):
        play_game.human_policy(rl.tic_tac_toe()._replace(render_text=None), answers())


def test_an_opponent_needs_a_game_for_two(monkeypatch) -> None:
    monkeypatch.setattr("foldax.inference.play._game", lambda result: None)
    monkeypatch.setattr("foldax.inference.play._scene", lambda result: SimpleNamespace(name="CartPole"))
    monkeypatch.setattr("foldax.inference.play.load_run", lambda run: run)
    with pytest.raises(ConfigError, match="--against: CartPole is for one player"):
        play("run", against="random")
