"""pgx: its games keep the protocol, and those of the library are the same, move by move."""

import importlib.util

import jax
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError

if importlib.util.find_spec("pgx") is None:
    pytest.skip("pgx is not installed: pip install 'foldax[games]'", allow_module_level=True)
KEY = jax.random.key(0)


@pytest.mark.parametrize(("name", "make"), [("tic_tac_toe", rl.tic_tac_toe), ("connect_four", rl.connect_four)])
def test_the_games_of_the_library_are_those_of_pgx(name: str, make) -> None:
    ours, theirs = make(), rl.pgx(name)
    assert (theirs.num_players, theirs.action_space) == (2, ours.action_space)
    assert theirs.observation_space.shape == ours.observation_space.shape
    own_step, their_step = jax.jit(ours.step), jax.jit(theirs.step)
    generator = np.random.RandomState(0)
    for number in range(4):
        (state, observation), (their_state, their_observation) = (
            game.reset(jax.random.key(number)) for game in (ours, theirs)
        )
        first, done = int(theirs.player(their_state)), False
        while not done:
            np.testing.assert_array_equal(observation, their_observation)
            np.testing.assert_array_equal(ours.legal_actions(state), theirs.legal_actions(their_state))
            assert (int(ours.player(state)) + first) % 2 == int(theirs.player(their_state))
            action = np.int32(generator.choice(np.flatnonzero(ours.legal_actions(state))))
            (state, step), (their_state, their_step_result) = (
                own_step(KEY, state, action), their_step(KEY, their_state, action)
            )  # fmt: skip
            np.testing.assert_array_equal(step.reward, np.roll(their_step_result.reward, -first))
            done, observation, their_observation = (
                bool(step.terminated), step.observation, their_step_result.observation
            )  # fmt: skip
            assert done == bool(their_step_result.terminated)


def test_names_that_pgx_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="pgx has no game 'go9'"):
        rl.pgx("go9")
