"""The replay buffer against a plain list of the whole history, beyond its capacity and with many short episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from foldax.errors import ConfigError
from foldax.rl import Transition, priorities, replay
from foldax.rl.frames import FrameStack, newest_frame

KEY = jax.random.key(0)
DISCOUNT = 0.9
UNSTACKED = FrameStack()


def make_history(seed, num_envs, steps, end_probability):
    """Steps of N environments whose observations are consecutive numbers and whose episodes end at random."""
    rng = np.random.RandomState(seed)
    number, rows = 0, []

    def next_number():
        nonlocal number
        number += 1
        return float(number)

    current = np.array([next_number() for _ in range(num_envs)])
    first = current.copy()
    for _ in range(steps):
        after = np.array([next_number() for _ in range(num_envs)])
        terminated, truncated = rng.rand(2, num_envs) < end_probability / 2
        episode_over = terminated | truncated
        following = np.where(episode_over, [next_number() if over else 0.0 for over in episode_over], after)
        rows.append(dict(observation=current, action=rng.randint(0, 9, num_envs), reward=rng.randn(num_envs), terminated=terminated,
                         truncated=truncated, next_observation=after, following=following))  # fmt: skip
        current = following
    return first, rows


@functools.partial(jax.jit, static_argnames="stack")
def add(buffer, row, stack=UNSTACKED):
    names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
    step = Transition(*(row[name] for name in names), extras={})
    step = step._replace(observation=step.observation[:, None], next_observation=step.next_observation[:, None])
    return replay.add(buffer, step, row["following"][:, None], stack)


def fill_buffer(first, rows, capacity, stack=UNSTACKED, spare_frames=0.125):
    num_envs = len(first)
    frame = jnp.asarray(first, jnp.float32)[:, None]
    buffer = replay.init(frame, jnp.zeros(num_envs, jnp.int32), capacity, spare_frames)
    for row in rows:
        buffer = add(buffer, {name: jnp.asarray(value) for name, value in row.items()}, stack)
    return buffer


def expected_transition(rows, row, column, n_steps, stack):
    """The transition that begins at a row of the history, computed step by step."""
    reward, discount, last = 0.0, 1.0, row
    for k in range(row, row + n_steps):
        reward += discount * rows[k]["reward"][column]
        discount *= DISCOUNT
        last = k
        if rows[k]["terminated"][column] or rows[k]["truncated"][column]:
            break
    frames, first = [], row
    while True:
        frames.insert(0, rows[first]["observation"][column])
        before = first - 1
        if before < 0 or rows[before]["terminated"][column] or rows[before]["truncated"][column]:
            break
        first = before
    next_frames = frames + [rows[k]["next_observation"][column] for k in range(row, last + 1)]
    count = stack.num_frames
    pad = lambda frames: ([0.0 if stack.zero_padding else frames[0]] * count + frames)[-count:]  # noqa: E731
    return pad(frames), reward, pad(next_frames), 0.0 if rows[last]["terminated"][column] else discount


@pytest.mark.parametrize(
    ("num_envs", "capacity", "end_probability", "stack", "n_steps"),
    [
        (3, 20, 0.3, UNSTACKED, 1),
        (3, 20, 0.3, UNSTACKED, 3),
        (4, 32, 0.1, FrameStack(num_frames=3), 2),
        (4, 32, 0.1, FrameStack(num_frames=3, zero_padding=True), 2),
        (1, 7, 0.9, UNSTACKED, 2),
        (2, 15, 0.0, FrameStack(num_frames=2), 1),
    ],
)
def test_every_transition_that_can_be_sampled_is_one_of_the_history(
    num_envs, capacity, end_probability, stack, n_steps
):
    first, rows = make_history(num_envs + capacity, num_envs, 25, end_probability)
    buffer = fill_buffer(first, rows, capacity, stack)
    oldest, count = int(buffer.oldest_row), int(buffer.num_rows)
    assert count == 25
    assert count - oldest <= capacity // num_envs
    if not end_probability:
        assert count - oldest == capacity // num_envs
    begin = np.arange(oldest, count - n_steps + 1)
    row, column = (x.ravel() for x in np.meshgrid(begin, np.arange(num_envs), indexing="ij"))
    assert int(replay.num_transitions(buffer, n_steps)) == len(row) > 0
    batch = replay.transitions_at(buffer, jnp.asarray(row), jnp.asarray(column), DISCOUNT, n_steps, stack)
    for index, (r, c) in enumerate(zip(row, column, strict=True)):
        observation, reward, next_observation, discount = expected_transition(rows, r, c, n_steps, stack)
        np.testing.assert_array_equal(batch.observations[index], observation)
        np.testing.assert_array_equal(batch.next_observations[index], next_observation)
        np.testing.assert_allclose(
            [batch.rewards[index], batch.discounts[index]], [reward, discount], rtol=1e-4, atol=1e-5
        )
        assert batch.actions[index] == rows[r]["action"][c]


@pytest.mark.parametrize(
    "stack",
    [
        FrameStack(num_frames=3, axis=-1),
        FrameStack(num_frames=3, axis=0),
        FrameStack(num_frames=4, axis=0, zero_padding=True),
    ],
)
def test_observations_stacked_from_single_frames_equal_the_original_ones(stack):
    """Observations are images `[H, W, C]`, stacked here by hand; the buffer stores only the newest frame of each."""
    rng, num_envs = np.random.RandomState(0), 2
    axis = 3 if stack.axis == -1 else 1

    def random_frame():
        return rng.randint(1, 255, (num_envs, 2, 5, 1)).astype(np.uint8)

    def first_observation(frames):
        before = np.zeros_like(frames) if stack.zero_padding else frames
        return np.concatenate([before] * (stack.num_frames - 1) + [frames], axis=axis)

    def append(observation, frames):
        return np.concatenate([observation[:, :, :, 1:] if axis == 3 else observation[:, 2:], frames], axis=axis)

    observation = first_observation(random_frame())
    frame = newest_frame(jnp.asarray(observation), stack)
    buffer = replay.init(frame, jnp.zeros(num_envs, jnp.int32), 40)
    assert buffer.frames.shape[1:] == (2, 5, 1)
    rows = []
    for step in range(12):
        following, over = append(observation, random_frame()), np.array([step % 4 == 3, step == 5])
        current = np.where(over[:, None, None, None], first_observation(random_frame()), following)
        frame, next_frame = (newest_frame(jnp.asarray(x), stack) for x in (observation, following))
        ends = jnp.asarray(over), jnp.zeros(num_envs, bool)
        action, reward = jnp.zeros(num_envs, jnp.int32), jnp.zeros(num_envs)
        transition = Transition(frame, action, reward, next_frame, *ends, extras={})
        buffer = replay.add(buffer, transition, newest_frame(jnp.asarray(current), stack), stack)
        rows.append((observation, following))
        observation = current
    row, column = (x.ravel() for x in np.meshgrid(np.arange(12), np.arange(num_envs), indexing="ij"))
    batch = replay.transitions_at(buffer, jnp.asarray(row), jnp.asarray(column), DISCOUNT, 1, stack)
    np.testing.assert_array_equal(batch.observations, [rows[r][0][c] for r, c in zip(row, column, strict=True)])
    np.testing.assert_array_equal(batch.next_observations, [rows[r][1][c] for r, c in zip(row, column, strict=True)])
    for num_frames, axis in ((7, stack.axis), (0, stack.axis), (stack.num_frames, 3)):
        wrong = FrameStack(num_frames=num_frames, axis=axis, zero_padding=stack.zero_padding)
        with pytest.raises(ConfigError, match=f"cannot split axis {axis} of observations .* into {num_frames} frames"):
            newest_frame(jnp.asarray(observation), wrong)


def test_observations_may_be_scalars():
    frame = newest_frame(jnp.arange(3.0), UNSTACKED)
    assert replay.init(frame, jnp.zeros(3, jnp.int32), 9).frames.ndim == 1


def test_without_spare_frames_fewer_transitions_can_be_sampled_and_all_are_right():
    first, rows = make_history(1, 2, 30, 0.95)
    buffer, roomy = (fill_buffer(first, rows, 20, spare_frames=spare) for spare in (0.0, 1.0))
    assert int(roomy.num_rows - roomy.oldest_row) == 10
    assert 0 < int(buffer.num_rows - buffer.oldest_row) < 10
    row = jnp.arange(int(buffer.oldest_row), 30)
    batch = replay.transitions_at(buffer, row, jnp.zeros_like(row), DISCOUNT)
    np.testing.assert_array_equal(batch.observations[:, 0], [rows[int(r)]["observation"][0] for r in row])
    np.testing.assert_array_equal(batch.next_observations[:, 0], [rows[int(r)]["next_observation"][0] for r in row])


def test_samples_are_uniform():
    first, rows = make_history(2, 3, 40, 0.2)
    buffer = fill_buffer(first, rows, 30)
    batch = jax.jit(lambda key: replay.sample(buffer, key, 30_000, DISCOUNT, 2))(KEY)
    transitions = np.asarray(batch.rows) * 3 + np.asarray(batch.environments)
    counts = np.unique(transitions, return_counts=True)[1]
    assert len(counts) == int(replay.num_transitions(buffer, 2))
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_buffer_must_hold_a_step_of_all_environments():
    with pytest.raises(ConfigError, match="capacity 3 must hold a step of 4 environments"):
        replay.init(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), 3)


def test_a_sum_tree_holds_sums_and_samples_in_proportion_to_priorities():
    weights = np.random.RandomState(0).rand(13).astype(np.float32)
    weights[[3, 12]] = 0
    tree = priorities.update(priorities.init(13), jnp.arange(13), jnp.asarray(weights))
    assert float(tree[1]) == pytest.approx(weights.sum(), rel=1e-6)
    indices = np.asarray(jax.jit(lambda key: priorities.sample(tree, key, 40_000))(KEY))
    counts, positive = np.bincount(indices, minlength=13), weights > 0
    assert not counts[~positive].any()
    probabilities = weights[positive] / weights.sum()
    assert stats.chisquare(counts[positive], 40_000 * probabilities).pvalue > 0.001
    np.testing.assert_allclose(priorities.probabilities(tree, jnp.arange(13)), weights / weights.sum(), rtol=1e-5)


def test_updates_with_repeated_indices_keep_the_sums():
    tree = priorities.init(8)
    rng = np.random.RandomState(1)
    for _ in range(20):
        indices = jnp.asarray(rng.randint(0, 8, 5))
        tree = priorities.update(tree, indices, jnp.asarray(rng.rand(5), jnp.float32))
    leaves = np.asarray(tree[8:])
    np.testing.assert_allclose(tree[4:8], leaves.reshape(4, 2).sum(axis=1), rtol=1e-6)
    assert float(tree[1]) == pytest.approx(leaves.sum(), rel=1e-5)
