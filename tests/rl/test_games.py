"""Board games: the numbers of their positions, perfect play, matches from both sides, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError
from tests.rl.environments import counter

KEY = jax.random.key(0)


@functools.cache
def tic_tac_toe_tree() -> rl.GameTree:
    return rl.enumerate_game(rl.tic_tac_toe())


def perft(tree: rl.GameTree) -> list[int]:
    return [int(tree.num_paths[tree.depth == depth].sum()) for depth in range(tree.depth.max() + 1)]


def test_tic_tac_toe_has_its_known_positions_and_games() -> None:
    tree = tic_tac_toe_tree()
    assert len(tree.depth) == 5_478
    assert np.bincount(tree.depth).tolist() == [1, 9, 72, 252, 756, 1260, 1520, 1140, 390, 78]
    assert perft(tree) == [1, 9, 72, 504, 3024, 15120, 54720, 148176, 200448, 127872]
    assert tree.num_paths[tree.is_terminal].sum() == 255_168


def test_connect_four_has_its_known_positions_and_perft_numbers() -> None:
    tree = rl.enumerate_game(rl.connect_four(), max_depth=7)
    # OEIS A212693, and all sequences of seven columns but the seven in which one column is overfull.
    assert np.bincount(tree.depth).tolist() == [1, 7, 49, 238, 1120, 4263, 16422, 54859]
    assert perft(tree) == [7**moves for moves in range(7)] + [7**7 - 7]
    assert not tree.is_terminal[tree.depth < 7].any()


@pytest.mark.parametrize(
    ("columns", "winner"),
    [((0, 1, 0, 1, 0, 1, 0), 0), ((6, 0, 6, 1, 5, 2, 5, 3), 1), ((0, 1, 1, 2, 2, 3, 2, 3, 3, 6, 3), 0)],
)
def test_four_in_a_row_win(columns: tuple[int, ...], winner: int) -> None:
    game = rl.connect_four()
    state, step = game.reset(KEY)[0], jax.jit(game.step)
    for number, column in enumerate(columns):
        state, result = step(KEY, state, jnp.int32(column))
        assert bool(result.terminated) == (number == len(columns) - 1)
    assert result.reward.tolist() == [1 - 2 * winner, 2 * winner - 1]


def test_an_illegal_action_loses() -> None:
    game = rl.tic_tac_toe()
    state, _ = game.step(KEY, game.reset(KEY)[0], jnp.int32(4))
    after, result = game.step(KEY, state, jnp.int32(4))
    assert (result.reward.tolist(), bool(result.terminated)) == ([1, -1], True)
    np.testing.assert_array_equal(after.board, state.board)


def test_the_observation_is_that_of_the_player_who_moves() -> None:
    game = rl.tic_tac_toe()
    state, _ = game.step(KEY, game.reset(KEY)[0], jnp.int32(2))
    _, result = game.step(KEY, state, jnp.int32(3))
    np.testing.assert_array_equal(result.observation[..., 0], [[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(result.observation[..., 1], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("make", [rl.tic_tac_toe, rl.connect_four])
def test_the_games_keep_the_protocol(make) -> None:
    game = make()
    report = rl.check(game, num_steps=50)
    assert report.episodes == report.terminated > 8
    state = jax.device_get(game.reset(KEY)[0])
    assert game.render(state).shape == (240, 240, 3)
    assert len(game.render_text(state).splitlines()) == game.observation_space.shape[0]


def test_perfect_players_of_tic_tac_toe_draw_and_others_lose() -> None:
    tree = tic_tac_toe_tree()
    values, best = rl.minimax(tree)
    assert values[0] == 0
    assert best[0].all()  # every first move keeps the draw
    lines = [rl.best_response_value(tree, best.argmax(axis=1), player) for player in (0, 1)]
    assert lines == [0, 0]
    first_legal = tree.legal_actions.argmax(axis=1)
    assert [rl.best_response_value(tree, first_legal, player) for player in (0, 1)] == [-1, -1]


def test_matches_are_played_from_both_sides() -> None:
    game, perfect = rl.tic_tac_toe(), rl.perfect_policy(tic_tac_toe_tree())
    match = jax.jit(functools.partial(rl.play_match, game), static_argnums=(0, 1, 3), static_argnames="opening_moves")
    outcomes = np.asarray(match(perfect, rl.random_policy, KEY, 200))
    assert outcomes.min() == 0
    assert outcomes[:100].mean() > 0.9  # it begins
    assert 0.6 < outcomes[100:].mean() < outcomes[:100].mean()
    np.testing.assert_array_equal(match(rl.random_policy, perfect, KEY, 200) <= 0, True)
    # Without chance the same game is played again; random openings make several.
    first_legal, last_legal = (
        lambda position, key: position.legal_actions.argmax(axis=-1),
        lambda position, key: 8 - position.legal_actions[:, ::-1].argmax(axis=-1),
    )
    assert len(set(np.asarray(match(first_legal, last_legal, KEY, 40))[:20])) == 1
    assert len(set(np.asarray(match(first_legal, last_legal, KEY, 40, opening_moves=3))[:20])) > 1


def test_what_is_no_game_for_two_is_refused() -> None:
    for call in (rl.observe_game, lambda game: rl.play_match(game, rl.random_policy, rl.random_policy, KEY, 2)):
        with pytest.raises(ConfigError, match="expected a game of 2 players, such as rl.tic_tac_toe"):
            call(counter())
    with pytest.raises(ConfigError, match="expected a game of 2 players with `legal_actions`"):
        rl.enumerate_game(rl.matrix_game())
    with pytest.raises(ConfigError, match="a game needs `player` and `legal_actions`"):
        rl.observe_game(rl.matrix_game())
    with pytest.raises(ConfigError, match="num_games: 3 must be even"):
        rl.play_match(rl.tic_tac_toe(), rl.random_policy, rl.random_policy, KEY, 3)
    with pytest.raises(ConfigError, match="action.* of position 0 is illegal"):
        rl.best_response_value(tic_tac_toe_tree(), np.full(5_478, 9), 0)
