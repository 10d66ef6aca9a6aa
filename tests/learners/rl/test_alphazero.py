"""AlphaZero: searches see wins and losses, targets are those of the players, and self-play learns."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners, models, rl
from foldax.errors import ConfigError
from foldax.learners.rl import alphazero
from tests.rl.environments import counter

if importlib.util.find_spec("mctx") is None:
    pytest.skip("mctx is not installed: pip install 'foldax[games]'", allow_module_level=True)
KEY = jax.random.key(0)
MODEL = models.ActorCritic(9, hidden=(8,))


def positions(*games: tuple[int, ...]) -> rl.GameObservation:
    """Positions of tic-tac-toe after these moves, `[N, ...]`."""
    game, found = rl.observe_game(rl.tic_tac_toe()), []
    for moves in games:
        state, position = game.reset(KEY)
        for move in moves:
            state, step = game.step(KEY, state, jnp.int32(move))
            position = step.observation
        found.append(position)
    return jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def test_the_search_of_an_untrained_network_wins_and_defends() -> None:
    # X wins at 2, O wins at 5, X defends at 2.
    board = positions((0, 3, 1, 4), (0, 3, 1, 4, 8), (8, 0, 4, 1))
    game = rl.observe_game(rl.tic_tac_toe())
    params = MODEL.init(KEY, board.observation)["params"]
    run = jax.jit(lambda: alphazero.search(game, MODEL, params, board, KEY, 64, 9, 0.0))
    result = run()
    assert result.action.tolist() == [2, 5, 2]
    np.testing.assert_array_equal(result.action_weights[~board.legal_actions], 0)
    np.testing.assert_allclose(result.action_weights.sum(axis=1), 1, rtol=1e-5)


def test_targets_are_the_outcomes_for_the_player_who_moves() -> None:
    # Two games of four moves: X wins the first; in the second, the third move is random, and the game goes on.
    players = jnp.array([[0, 0], [1, 1], [0, 0], [1, 1]])
    board = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (4, *x.shape)), positions((), ()))
    ended = jnp.array([[False, False], [False, False], [True, False], [False, False]])
    reward = jnp.array([[0.0, 0], [0, 0], [1, 0], [0, 0]])
    extras = {"policy": jnp.full((4, 2, 9), 1 / 9), "value": jnp.full((4, 2), 0.25)}
    extras["is_random"] = jnp.array([[False, False], [False, False], [False, True], [False, False]])
    step = board._replace(player=players)
    after = board._replace(player=1 - players)
    transitions = rl.Transition(step, jnp.zeros((4, 2), int), reward, after, ended, jnp.zeros((4, 2), bool), extras)
    params = MODEL.init(KEY, board.observation[0])["params"]
    value = float(MODEL.apply({"params": params}, board.observation[0]).value[0])
    targets = alphazero.search_targets(MODEL, params, transitions).value_targets.reshape(4, 2)
    # Player 0 moves after the rollout, so its value is that of player 0.
    np.testing.assert_allclose(targets[:, 0], [1, -1, 1, -value], rtol=1e-5)
    np.testing.assert_allclose(targets[:, 1], [0.25, -0.25, 0.25, -value], rtol=1e-5)


def test_the_loss_is_least_at_the_policy_and_value_of_the_search() -> None:
    policy, value = jnp.array([[0.7, 0.3, 0.0]]), jnp.array([0.5])
    batch = alphazero.SearchBatch(None, policy, value)
    logits = jnp.array([[np.log(0.7), np.log(0.3), models.distributions.ILLEGAL]])
    output = models.ActorCriticOutput(models.Categorical(logits), value)
    loss = lambda output: alphazero.alphazero_loss(output, batch, learners.AlphaZeroSettings())[0]  # noqa: E731
    assert float(loss(output)) == pytest.approx(-(0.7 * np.log(0.7) + 0.3 * np.log(0.3)), rel=1e-5)
    for leaf in jax.tree.leaves(jax.grad(loss)(output)):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)


def test_what_alphazero_cannot_play_is_refused() -> None:
    for make, problem in ((counter, "expected a game of 2 players"), (rl.matrix_game, "needs `player` and")):
        with pytest.raises(ConfigError, match=problem):
            learners.alphazero(make(), MODEL, optax.adam(1e-3))
    with pytest.raises(ConfigError, match=r"evaluation_games: 3 must be even"):
        learners.AlphaZeroSettings(evaluation_games=3)
    wrong = learners.alphazero(rl.connect_four(), MODEL, optax.adam(1e-3), num_envs=2, rollout_steps=4)
    with pytest.raises(ConfigError, match="connect four has 7 discrete actions, the network has outputs for 9"):
        jax.eval_shape(wrong.init, KEY, None)
