"""A memory of transitions on the device: pure functions, each frame kept once, sampling in time O(batch).

Rows are steps of N copies of an environment, in a ring. A transition keeps the places of two frames instead of two
observations; the last frame of a truncated episode is a frame like others, so that its value can be asked for. A row
whose frames were overwritten (many short episodes have many last frames) is out of reach, and never wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError
from foldax.rl.environment import Transition


class Replay(NamedTuple):
    """The last R steps of N copies; numbers of rows and frames count from the start, places are these modulo R and F.

    Attributes:
      frames: `[F, ...]`, observations as they were given.
      previous: int32 `[F]`, number of the frame before in the same episode; a first frame's is its own.
      before: int32 `[R, N]`, numbers of the frames that were acted on.
      after: int32 `[R, N]`, numbers of the frames that followed.
      first: int32 `[R]`, the smallest of a row's numbers of frames, with what they are stacked on.
      action: `[R, N, ...]`.
      reward: float32 `[R, N]`.
      terminated: bool `[R, N]`.
      truncated: bool `[R, N]`.
      current: int32 `[N]`, numbers of the frames that are acted on next.
      num_frames: int32 [], that were written.
      num_rows: int32 [], that were written.
      oldest: int32 [], number of the first row in reach.
    """

    frames: jax.Array
    previous: jax.Array
    before: jax.Array
    after: jax.Array
    first: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    current: jax.Array
    num_frames: jax.Array
    num_rows: jax.Array
    oldest: jax.Array


class Sample(NamedTuple):
    """What was drawn, `[B, ...]`.

    Attributes:
      observation: what was acted on.
      action: what was done.
      reward: the discounted sum of up to n rewards.
      next_observation: what was seen after the last of them; the old episode's, always.
      discount: of the value of that: discount^steps, and 0 where the episode terminated.
      row: int32, number of the row.
      column: int32, which copy.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    discount: jax.Array
    row: jax.Array
    column: jax.Array


def empty(observation: jax.Array, action: jax.Array, capacity: int, spare: float = 0.125) -> Replay:
    """Returns a memory that begins with the copies' first observations.

    Args:
      observation: of all copies, `[N, ...]`.
      action: of all copies, `[N, ...]`; only its shape counts.
      capacity: transitions; of these whole steps of N are kept, rounded down.
      spare: frames beside one for each transition, as a share of them, for the last ones of episodes: an eighth is
        enough for episodes of eight steps and more.

    Raises:
      ConfigError: there is no room for a step of all copies, or less than no frame to spare.
    """
    copies = len(observation)
    rows = capacity // copies
    if rows < 1 or spare < 0:
        raise ConfigError(f"replay: capacity {capacity} must hold a step of {copies} copies, and spare {spare} be >= 0")
    size = rows * copies + 2 * copies + int(spare * rows * copies)
    frames = jnp.zeros((size, *observation.shape[1:]), observation.dtype).at[:copies].set(observation)
    numbers = jnp.zeros((rows, copies), jnp.int32)
    flags = jnp.zeros((rows, copies), bool)
    start, zero = jnp.arange(copies, dtype=jnp.int32), jnp.int32(0)
    previous = jnp.arange(size, dtype=jnp.int32)
    actions = jnp.zeros((rows, *action.shape), action.dtype)
    lists = (numbers, numbers, jnp.zeros(rows, jnp.int32), actions, jnp.zeros((rows, copies)), flags, flags)
    return Replay(frames, previous, *lists, start, jnp.int32(copies), zero, zero)


def add(replay: Replay, transition: Transition, observation: jax.Array, stack: int = 1) -> Replay:
    """Returns the memory with one step of all copies more.

    Args:
      replay: the memory.
      transition: `[N, ...]`, as `act` gives it.
      observation: what the copies see now, `[N, ...]`: of a new episode where one ended.
      stack: frames of a sample's observation, all of which a row in reach must have.
    """
    rows, copies = replay.before.shape
    size, count = len(replay.frames), replay.num_frames
    over = transition.terminated | transition.truncated
    nexts = count + jnp.arange(copies, dtype=jnp.int32)
    fresh = count + copies + jnp.cumsum(over.astype(jnp.int32)) - 1  # numbers of new episodes' first frames
    places = jnp.concatenate([nexts % size, jnp.where(over, fresh % size, size)])
    seen = jnp.concatenate([transition.next_observation, observation]).astype(replay.frames.dtype)
    previous = jnp.concatenate([replay.current, fresh])
    row = replay.num_rows % rows
    first = replay.current
    for _ in range(stack - 1):
        first = replay.previous[first % size]
    replay = replay._replace(
        frames=replay.frames.at[places].set(seen, mode="drop"),
        previous=replay.previous.at[places].set(previous, mode="drop"),
        before=replay.before.at[row].set(replay.current),
        after=replay.after.at[row].set(nexts),
        first=replay.first.at[row].set(first.min()),
        action=replay.action.at[row].set(transition.action.astype(replay.action.dtype)),
        reward=replay.reward.at[row].set(transition.reward),
        terminated=replay.terminated.at[row].set(transition.terminated),
        truncated=replay.truncated.at[row].set(transition.truncated),
        current=jnp.where(over, fresh, nexts),
        num_frames=count + copies + over.sum(dtype=jnp.int32),
        num_rows=replay.num_rows + 1,
    )
    kept = replay.num_frames - size  # frames from this number on are there

    def gone(oldest: jax.Array) -> jax.Array:
        return (oldest < replay.num_rows) & (replay.first[oldest % rows] < kept)

    oldest = jnp.maximum(replay.oldest, replay.num_rows - rows)
    return replay._replace(oldest=jax.lax.while_loop(gone, lambda number: number + 1, oldest))


def num_transitions(replay: Replay, steps: int = 1) -> jax.Array:
    """Returns how many transitions of n steps can be drawn, int32 []."""
    return jnp.maximum(replay.num_rows - replay.oldest - (steps - 1), 0) * replay.before.shape[1]


def sample(replay: Replay, key: jax.Array, batch_size: int, discount: Any, steps: int = 1, stack: int = 1) -> Sample:
    """Returns transitions drawn uniformly, with replacement, of all in reach; there must be one at least."""
    of_rows, of_columns = jax.random.split(key)
    most = jnp.maximum(replay.num_rows - replay.oldest - (steps - 1), 1)
    row = replay.oldest + jax.random.randint(of_rows, (batch_size,), 0, most)
    column = jax.random.randint(of_columns, (batch_size,), 0, replay.before.shape[1])
    return at(replay, row, column, discount, steps, stack)


def at(replay: Replay, row: jax.Array, column: jax.Array, discount: Any, steps: int = 1, stack: int = 1) -> Sample:
    """Returns the transitions of n steps that begin at rows and columns int32 `[B]`.

    They end with the episode, if that ends before; the newest n - 1 rows begin none.
    """
    rows = replay.before.shape[0]
    total, share, alive = jnp.zeros(len(row)), jnp.ones(len(row)), jnp.ones(len(row), bool)
    last, ended = row, jnp.zeros(len(row), bool)
    for ahead in range(steps):
        place = (row + ahead) % rows
        total = total + jnp.where(alive, share * replay.reward[place, column], 0.0)
        share = jnp.where(alive, share * discount, share)
        last = jnp.where(alive, row + ahead, last)
        ended = ended | (alive & replay.terminated[place, column])
        alive = alive & ~replay.terminated[place, column] & ~replay.truncated[place, column]
    place = row % rows
    before, after = replay.before[place, column], replay.after[last % rows, column]
    both = (stacked(replay, number, stack) for number in (before, after))
    action = replay.action[place, column]
    return Sample(next(both), action, total, next(both), jnp.where(ended, 0.0, share), row, column)


def stacked(replay: Replay, number: jax.Array, stack: int) -> jax.Array:
    """Returns frames `[B, ...]`; with those before them, the oldest first, `[B, ..., C * stack]`."""
    size, found = len(replay.frames), []
    for _ in range(stack):
        found.append(replay.frames[number % size])
        number = replay.previous[number % size]
    return found[0] if stack == 1 else jnp.concatenate(found[::-1], axis=-1)
