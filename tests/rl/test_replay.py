"""The memory against a plain list of all that happened, beyond its capacity, with many short episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from foldax.errors import ConfigError
from foldax.rl import Transition, priorities, replay
from foldax.rl.replay import UNSTACKED, Stack

KEY = jax.random.key(0)
DISCOUNT = 0.9


def history(seed, copies, steps, ends):
    """What N copies see, `[steps, N]`: observations that are numbered, and episodes that end at random."""
    rng = np.random.RandomState(seed)
    number, rows = 0, []

    def new():
        nonlocal number
        number += 1
        return float(number)

    current = np.array([new() for _ in range(copies)])
    start = current.copy()
    for _ in range(steps):
        after = np.array([new() for _ in range(copies)])
        terminated, truncated = rng.rand(2, copies) < ends / 2
        over = terminated | truncated
        following = np.where(over, [new() if o else 0.0 for o in over], after)
        rows.append(dict(observation=current, action=rng.randint(0, 9, copies), reward=rng.randn(copies), terminated=terminated,
                         truncated=truncated, next_observation=after, following=following))  # fmt: skip
        current = following
    return start, rows


@functools.partial(jax.jit, static_argnames="stack")
def add(memory, row, stack=UNSTACKED):
    names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
    step = Transition(*(row[name] for name in names), extras={})
    step = step._replace(observation=step.observation[:, None], next_observation=step.next_observation[:, None])
    return replay.add(memory, step, row["following"][:, None], stack)


def filled(start, rows, capacity, stack=UNSTACKED, spare=0.125):
    copies = len(start)
    memory = replay.empty(jnp.asarray(start, jnp.float32)[:, None], jnp.zeros(copies, jnp.int32), capacity, spare)
    for row in rows:
        memory = add(memory, {name: jnp.asarray(value) for name, value in row.items()}, stack)
    return memory


def expected(rows, row, column, steps, stack):
    """The transition that begins at a row of the history, by hand."""
    total, share, last = 0.0, 1.0, row
    for k in range(row, row + steps):
        total += share * rows[k]["reward"][column]
        share *= DISCOUNT
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
    then = frames + [rows[k]["next_observation"][column] for k in range(row, last + 1)]
    pad = lambda seen: ([0.0 if stack.blank else seen[0]] * stack.count + seen)[-stack.count :]  # noqa: E731
    return pad(frames), total, pad(then), 0.0 if rows[last]["terminated"][column] else share


@pytest.mark.parametrize(
    ("copies", "capacity", "ends", "stack", "steps"),
    [
        (3, 20, 0.3, UNSTACKED, 1),
        (3, 20, 0.3, UNSTACKED, 3),
        (4, 32, 0.1, Stack(3, -1), 2),
        (4, 32, 0.1, Stack(3, -1, blank=True), 2),
        (1, 7, 0.9, UNSTACKED, 2),
        (2, 15, 0.0, Stack(2, -1), 1),
    ],
)
def test_all_in_reach_is_what_happened(copies, capacity, ends, stack, steps):
    start, rows = history(copies + capacity, copies, 25, ends)
    memory = filled(start, rows, capacity, stack)
    oldest, newest = int(memory.oldest), int(memory.num_rows)
    assert newest == 25
    assert newest - oldest <= capacity // copies
    if not ends:
        assert newest - oldest == capacity // copies
    begin = np.arange(oldest, newest - steps + 1)
    row, column = (x.ravel() for x in np.meshgrid(begin, np.arange(copies), indexing="ij"))
    assert int(replay.num_transitions(memory, steps)) == len(row) > 0
    found = replay.at(memory, jnp.asarray(row), jnp.asarray(column), DISCOUNT, steps, stack)
    for index, (r, c) in enumerate(zip(row, column, strict=True)):
        observation, reward, then, discount = expected(rows, r, c, steps, stack)
        np.testing.assert_array_equal(found.observation[index], observation)
        np.testing.assert_array_equal(found.next_observation[index], then)
        np.testing.assert_allclose(
            [found.reward[index], found.discount[index]], [reward, discount], rtol=1e-4, atol=1e-5
        )
        assert found.action[index] == rows[r]["action"][c]


@pytest.mark.parametrize("stack", [Stack(3, axis=-1), Stack(3, axis=0), Stack(4, axis=0, blank=True)])
def test_frames_that_are_kept_once_make_what_was_seen(stack):
    """Observations are pictures `[H, W, C]`, stacked by hand; of each the memory keeps its newest frame."""
    rng, copies = np.random.RandomState(0), 2
    axis = 3 if stack.axis == -1 else 1

    def frame():
        return rng.randint(1, 255, (copies, 2, 5, 1)).astype(np.uint8)

    def first(frames):
        before = np.zeros_like(frames) if stack.blank else frames
        return np.concatenate([before] * (stack.count - 1) + [frames], axis=axis)

    def after(seen, frames):
        return np.concatenate([seen[:, :, :, 1:] if axis == 3 else seen[:, 2:], frames], axis=axis)

    seen = first(frame())
    memory = replay.empty(replay.newest(jnp.asarray(seen), stack), jnp.zeros(copies, jnp.int32), 40)
    assert memory.frames.shape[1:] == (2, 5, 1)
    rows = []
    for step in range(12):
        following, over = after(seen, frame()), np.array([step % 4 == 3, step == 5])
        now = np.where(over[:, None, None, None], first(frame()), following)
        newest = (replay.newest(jnp.asarray(x), stack) for x in (seen, following))
        before, then = newest
        ends = jnp.asarray(over), jnp.zeros(copies, bool)
        transition = Transition(before, jnp.zeros(copies, jnp.int32), jnp.zeros(copies), then, *ends, extras={})
        memory = replay.add(memory, transition, replay.newest(jnp.asarray(now), stack), stack)
        rows.append((seen, following))
        seen = now
    row, column = (x.ravel() for x in np.meshgrid(np.arange(12), np.arange(copies), indexing="ij"))
    found = replay.at(memory, jnp.asarray(row), jnp.asarray(column), DISCOUNT, 1, stack)
    np.testing.assert_array_equal(found.observation, [rows[r][0][c] for r, c in zip(row, column, strict=True)])
    np.testing.assert_array_equal(found.next_observation, [rows[r][1][c] for r, c in zip(row, column, strict=True)])
    for wrong in (stack._replace(count=7), stack._replace(count=0), stack._replace(axis=3)):
        with pytest.raises(ConfigError, match=f"{wrong.count} frames do not lie along axis {wrong.axis} of"):
            replay.newest(jnp.asarray(seen), wrong)


def test_observations_may_be_single_numbers():
    memory = replay.empty(replay.newest(jnp.arange(3.0), UNSTACKED), jnp.zeros(3, jnp.int32), 9)
    assert memory.frames.ndim == 1


def test_without_room_for_last_frames_less_is_in_reach_and_all_of_it_right():
    start, rows = history(1, 2, 30, 0.95)
    memory, roomy = (filled(start, rows, 20, spare=spare) for spare in (0.0, 1.0))
    assert int(roomy.num_rows - roomy.oldest) == 10
    assert 0 < int(memory.num_rows - memory.oldest) < 10
    row = jnp.arange(int(memory.oldest), 30)
    found = replay.at(memory, row, jnp.zeros_like(row), DISCOUNT)
    np.testing.assert_array_equal(found.observation[:, 0], [rows[int(r)]["observation"][0] for r in row])
    np.testing.assert_array_equal(found.next_observation[:, 0], [rows[int(r)]["next_observation"][0] for r in row])


def test_draws_are_uniform_over_what_is_in_reach():
    start, rows = history(2, 3, 40, 0.2)
    memory = filled(start, rows, 30)
    found = jax.jit(lambda key: replay.sample(memory, key, 30_000, DISCOUNT, 2))(KEY)
    first = np.asarray(found.row) * 3 + np.asarray(found.column)
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == int(replay.num_transitions(memory, 2))
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_memory_needs_room_for_a_step_of_all_copies():
    with pytest.raises(ConfigError, match="capacity 3 must hold a step of 4 copies"):
        replay.empty(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), 3)


def test_a_tree_holds_sums_and_draws_in_proportion():
    weights = np.random.RandomState(0).rand(13).astype(np.float32)
    weights[[3, 12]] = 0
    tree = priorities.changed(priorities.empty(13), jnp.arange(13), jnp.asarray(weights))
    assert float(tree[1]) == pytest.approx(weights.sum(), rel=1e-6)
    places = np.asarray(jax.jit(lambda key: priorities.draw(tree, key, 40_000))(KEY))
    counts, drawn = np.bincount(places, minlength=13), weights > 0
    assert not counts[~drawn].any()
    shares = weights[drawn] / weights.sum()
    assert stats.chisquare(counts[drawn], 40_000 * shares).pvalue > 0.001
    np.testing.assert_allclose(priorities.probabilities(tree, jnp.arange(13)), weights / weights.sum(), rtol=1e-5)


def test_changes_of_equal_places_keep_the_sums():
    tree = priorities.empty(8)
    rng = np.random.RandomState(1)
    for _ in range(20):
        places = jnp.asarray(rng.randint(0, 8, 5))
        tree = priorities.changed(tree, places, jnp.asarray(rng.rand(5), jnp.float32))
    leaves = np.asarray(tree[8:])
    np.testing.assert_allclose(tree[4:8], leaves.reshape(4, 2).sum(axis=1), rtol=1e-6)
    assert float(tree[1]) == pytest.approx(leaves.sum(), rel=1e-5)
