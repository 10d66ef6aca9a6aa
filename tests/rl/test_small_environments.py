"""The maze, the bandit, the memory chain and the matrix game: their best returns are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from foldax import rl
from foldax.errors import ConfigError
from foldax.rl.environments.grid_maze import DYNA_MAZE, MOVES

KEY = jax.random.key(0)


def random_layout(generator: np.random.RandomState) -> list[str]:
    """A maze of 6 x 7 cells whose first row and last column are free, so that there is a path."""
    cells = generator.choice(["#", "."], (6, 7), p=[0.4, 0.6])
    cells[0], cells[:, -1] = ".", "."
    cells[0, 0], cells[5, 6] = "S", "G"
    return ["".join(row) for row in cells]


def shortest_path_length(layout: list[str]) -> float:
    cells = np.array([list(row) for row in layout])
    width = cells.shape[1]
    edges = np.zeros((cells.size, cells.size))
    for row, column in np.argwhere(cells != "#"):
        for neighbor in [(row, column + 1), (row + 1, column)]:
            if neighbor[0] < len(cells) and neighbor[1] < width and cells[neighbor] != "#":
                edges[row * width + column, neighbor[0] * width + neighbor[1]] = 1
    start, goal = np.flatnonzero(cells == "S")[0], np.flatnonzero(cells == "G")[0]
    return shortest_path(edges, directed=False, indices=start)[goal]


def best_return(environment: rl.Environment, height: int, width: int) -> float:
    """The value of the start, by value iteration over the steps of the environment."""
    positions = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)

    def step(position: jax.Array, action: jax.Array) -> rl.Step:
        return environment.step(KEY, (position, jnp.int32(0)), action)[1]

    steps = jax.jit(jax.vmap(jax.vmap(step, (None, 0)), (0, None)))(positions, jnp.arange(len(MOVES)))
    after, values = np.asarray(steps.observation.argmax(axis=-1)), np.zeros(len(positions))
    for _ in range(len(positions)):
        values = (np.asarray(steps.reward) + np.where(steps.terminated, 0, values[after])).max(axis=1)
    return values[int(environment.reset(KEY)[1].argmax())]


def test_the_best_return_of_a_maze_is_minus_the_length_of_the_shortest_path() -> None:
    assert best_return(rl.grid_maze(), 6, 9) == -shortest_path_length(DYNA_MAZE) == -14
    generator = np.random.RandomState(0)
    for layout in (random_layout(generator) for _ in range(2)):
        assert best_return(rl.grid_maze(layout), 6, 7) == -shortest_path_length(layout)


def test_walls_and_edges_stop_the_agent() -> None:
    environment = rl.grid_maze(["S#G", "..."], max_steps=3)
    state, observation = environment.reset(KEY)
    np.testing.assert_array_equal(observation, np.eye(6)[0])
    for action, cell, truncated in ((0, 0, False), (1, 0, False), (2, 3, True), (3, 3, True), (1, 4, True)):
        state, step = environment.step(KEY, state, jnp.int32(action))
        np.testing.assert_array_equal(step.observation, np.eye(6)[cell])
        assert (float(step.reward), bool(step.terminated), bool(step.truncated)) == (-1, False, truncated)
    state, _ = environment.step(KEY, state, jnp.int32(1))
    assert environment.step(KEY, state, jnp.int32(0))[1].terminated


def test_episodes_of_a_maze_begin_at_all_its_starts() -> None:
    _, observations = jax.vmap(rl.grid_maze(["SGS", "S.."]).reset)(jax.random.split(KEY, 300))
    counts = np.asarray(observations.sum(axis=0))
    assert counts[[1, 4, 5]].sum() == 0
    assert counts[[0, 2, 3]].min() > 70


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ([], "rows .* must be of one length"),
        (["S.", "G"], "rows .* must be of one length"),
        (["S.", "GG"], "one 'G', one or more 'S'"),
        (["..", ".G"], "one 'G', one or more 'S'"),
        (["Sx", ".G"], "else only '.' and '#'"),
        (["S#G", "##S"], "no path from 'S' in row 0, column 0, to 'G'"),
    ],
)
def test_a_maze_without_a_way_is_refused(layout: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rl.grid_maze(layout)


def test_arms_pay_with_their_probabilities() -> None:
    environment = rl.bandit([0.1, 1.0, 0.0, 0.6])
    for arm, probability in enumerate([0.1, 1.0, 0.0, 0.6]):
        episodes = rl.play_episodes(
            environment, lambda x, key, arm=arm: jnp.full(len(x), arm), KEY, num_episodes=4_000, max_steps=2
        )
        np.testing.assert_array_equal(episodes["length"], 1)
        assert episodes["return"].mean() == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("probabilities", [[], [0.5, 1.1], [-0.1], [float("nan")], [[0.5]]])
def test_probabilities_that_are_none_are_refused(probabilities) -> None:
    with pytest.raises(ConfigError, match="must be one or more numbers between 0 and 1"):
        rl.bandit(probabilities)


@pytest.mark.parametrize(("length", "num_bits"), [(1, 1), (4, 1), (3, 5)])
def test_the_right_answer_pays_once_at_the_end(length: int, num_bits: int) -> None:
    environment = rl.memory_chain(length=length, num_bits=num_bits)
    for seed in range(4):
        state, observation = environment.reset(jax.random.key(seed))
        observations, rewards = [observation], []
        for time in range(length + 1):
            shown = observations[0][2:]
            answer = jnp.int32(shown[int(observations[-1][1])] > 0)
            wrong = environment.step(KEY, state, 1 - answer)[1].reward
            state, step = environment.step(KEY, state, answer)
            observations.append(step.observation)
            rewards.append((float(step.reward), float(wrong)))
            assert bool(step.terminated) == (time == length)
        assert rewards == [(0, 0)] * length + [(1, -1)]
        assert set(np.asarray(observations[0][2:]).tolist()) <= {-1, 1}
        space = environment.observation_space
        assert all((space.low <= x).all() and (x <= space.high).all() for x in observations)
        assert not np.any(np.array(observations[2:])[:, 2:])


def test_a_chain_of_no_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="length: 0 must be 1 or more"):
        rl.memory_chain(length=0)


PAYOFFS = np.array([[3.0, 0.0], [5.0, 1.0]])


def test_both_players_of_a_matrix_game_are_paid_for_their_choices() -> None:
    game = rl.matrix_game(PAYOFFS, PAYOFFS.T)
    for row, column in np.ndindex(2, 2):
        state, observation = game.reset(KEY)
        assert (int(game.player(state)), observation.tolist()) == (0, [1, 0])
        state, first = game.step(KEY, state, jnp.int32(row))
        assert (int(game.player(state)), first.observation.tolist(), bool(first.terminated)) == (1, [0, 1], False)
        state, second = game.step(KEY, state, jnp.int32(column))
        assert second.reward.tolist() == [PAYOFFS[row, column], PAYOFFS[column, row]]
        assert second.terminated
        assert not first.reward.any()


def test_the_best_answer_to_a_mixed_strategy_has_the_best_mean_return() -> None:
    game = rl.matrix_game(opponent=[0.6, 0.1, 0.3])
    best = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) @ [0.6, 0.1, 0.3]
    for row in range(3):
        policy = lambda x, key, row=row: jnp.full(len(x), row)  # noqa: E731
        episodes = rl.play_episodes(game, policy, KEY, num_episodes=4_000, max_steps=2)
        np.testing.assert_array_equal(episodes["length"], 1)
        assert episodes["return"].mean() == pytest.approx(best[row], abs=0.05)


def test_matrices_and_strategies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"payoffs \[1, 2\] and column_payoffs \[1, 2\] must be square"):
        rl.matrix_game([[1, 2]])
    with pytest.raises(ConfigError, match=r"opponent \[0.5, 0.6, 0.0\] must be 3 probabilities"):
        rl.matrix_game(opponent=[0.5, 0.6, 0.0])
