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
      rows: int32 `[R, N, 4 + A]`: number of the frame that was acted on, number of the one that followed, the reward's
        bits, 1 if the episode terminated, plus 2 if it was truncated, and the bits of the A numbers of an action. (Side
        by side, one access to memory finds all.)
      first: int32 `[R]`, the smallest of a row's numbers of frames, with what they are stacked on.
      action: `[...]`, nothing but the shape and type of an action.
      current: int32 `[N]`, numbers of the frames that are acted on next.
      num_frames: int32 [], that were written.
      num_rows: int32 [], that were written.
      oldest: int32 [], number of the first row in reach.
    """

    frames: jax.Array
    previous: jax.Array
    rows: jax.Array
    first: jax.Array
    action: jax.Array
    current: jax.Array
    num_frames: jax.Array
    num_rows: jax.Array
    oldest: jax.Array


class Stack(NamedTuple):
    """How frames make an observation, of which the newest alone are kept.

    Attributes:
      count: frames, the oldest first.
      axis: of an observation along which they lie: -1 of `wrappers.frame_stack`, 0 of Atari's `[count, H, W]`.
      blank: whether nothing but zeros is before an episode's first frame, as in Atari's; else that frame itself. Each
        end of an episode must begin the stack anew, which of a life that is lost Atari's `life_loss_info` does not.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    axis: int
    blank: bool = False


UNSTACKED = Stack(1, -1)
"""Observations are frames."""


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
    start, zero = jnp.arange(copies, dtype=jnp.int32), jnp.int32(0)
    previous = jnp.arange(size, dtype=jnp.int32)
    kind = jnp.float32 if jnp.issubdtype(action.dtype, jnp.floating) else jnp.int32
    nothing = jnp.zeros(action.shape[1:], kind)
    lists = (jnp.zeros((rows, copies, 4 + nothing.size), jnp.int32), jnp.zeros(rows, jnp.int32), nothing)
    return Replay(frames, previous, *lists, start, jnp.int32(copies), zero, zero)


def newest(observation: jax.Array, stack: Stack) -> jax.Array:
    """Returns the newest frames `[N, ...]` of observations `[N, ...]`.

    Raises:
      ConfigError: they are not as many frames.
    """
    if stack.count == 1:
        return observation
    sides = observation.ndim - 1
    if (
        stack.count < 1
        or not -sides <= stack.axis < sides
        or observation.shape[_axis(observation, stack)] % stack.count
    ):
        raise ConfigError(f"replay: {stack.count} frames do not lie along axis {stack.axis} of {observation.shape[1:]}")
    axis = _axis(observation, stack)
    size = observation.shape[axis] // stack.count
    return jax.lax.slice_in_dim(observation, observation.shape[axis] - size, None, axis=axis)


def add(replay: Replay, transition: Transition, observation: jax.Array, stack: Stack = UNSTACKED) -> Replay:
    """Returns the memory with one step of all copies more.

    Args:
      replay: the memory.
      transition: `[N, ...]`, as `act` gives it, with frames as observations.
      observation: the frames that the copies see now, `[N, ...]`: of a new episode where one ended.
      stack: of a sample's observation, all frames of which a row in reach must have.
    """
    rows, copies = replay.rows.shape[:2]
    size, count = len(replay.frames), replay.num_frames
    over = transition.terminated | transition.truncated
    nexts = count + jnp.arange(copies, dtype=jnp.int32)
    fresh = count + copies + jnp.cumsum(over.astype(jnp.int32)) - 1  # numbers of new episodes' first frames
    places = jnp.concatenate([nexts % size, jnp.where(over, fresh % size, size)])
    seen = jnp.concatenate([transition.next_observation, observation]).astype(replay.frames.dtype)
    previous = jnp.concatenate([replay.current, fresh])
    row = replay.num_rows % rows
    first = replay.current
    for _ in range(stack.count - 1):
        first = replay.previous[first % size]
    bits = jax.lax.bitcast_convert_type(transition.reward.astype(jnp.float32), jnp.int32)
    ends = transition.terminated.astype(jnp.int32) + 2 * transition.truncated.astype(jnp.int32)
    action = jax.lax.bitcast_convert_type(transition.action.astype(replay.action.dtype), jnp.int32)
    step = jnp.stack([replay.current, nexts, bits, ends], axis=-1)
    replay = replay._replace(
        frames=replay.frames.at[places].set(seen, mode="drop"),
        previous=replay.previous.at[places].set(previous, mode="drop"),
        rows=replay.rows.at[row].set(jnp.concatenate([step, action.reshape(copies, -1)], axis=-1)),
        first=replay.first.at[row].set(first.min()),
        current=jnp.where(over, fresh, nexts),
        num_frames=count + copies + over.sum(dtype=jnp.int32),
        num_rows=replay.num_rows + 1,
    )
    kept = replay.num_frames - size  # frames from this number on are there

    def gone(oldest: jax.Array) -> jax.Array:
        return (oldest < replay.num_rows) & (replay.first[oldest % rows] < kept)

    oldest = jnp.maximum(replay.oldest, replay.num_rows - rows)
    return replay._replace(oldest=jax.lax.while_loop(gone, lambda number: number + 1, oldest))


def begun(replay: Replay, observation: jax.Array, when: jax.Array) -> Replay:
    """Returns the memory whose copies have begun new episodes, if `when` bool []: the steps before are cut off.

    Args:
      replay: the memory.
      observation: what the copies see, `[N, ...]`.
      when: whether it is so.
    """
    copies, size = len(observation), len(replay.frames)
    fresh = replay.num_frames + jnp.arange(copies, dtype=jnp.int32)
    places, last = jnp.where(when, fresh % size, size), (replay.num_rows - 1) % len(replay.rows)
    ends = replay.rows[last, :, 3]
    return replay._replace(
        frames=replay.frames.at[places].set(observation.astype(replay.frames.dtype), mode="drop"),
        previous=replay.previous.at[places].set(fresh, mode="drop"),
        rows=replay.rows.at[last, :, 3].set(jnp.where(when & (ends == 0), 2, ends)),
        current=jnp.where(when, fresh, replay.current),
        num_frames=replay.num_frames + jnp.where(when, copies, 0),
    )


def num_transitions(replay: Replay, steps: int = 1) -> jax.Array:
    """Returns how many transitions of n steps can be drawn, int32 []."""
    return jnp.maximum(replay.num_rows - replay.oldest - (steps - 1), 0) * replay.rows.shape[1]


def sample(
    replay: Replay, key: jax.Array, batch_size: int, discount: Any, steps: int = 1, stack: Stack = UNSTACKED
) -> Sample:
    """Returns transitions drawn uniformly, with replacement, of all in reach; there must be one at least."""
    of_rows, of_columns = jax.random.split(key)
    most = jnp.maximum(replay.num_rows - replay.oldest - (steps - 1), 1)
    row = replay.oldest + jax.random.randint(of_rows, (batch_size,), 0, most)
    column = jax.random.randint(of_columns, (batch_size,), 0, replay.rows.shape[1])
    return at(replay, row, column, discount, steps, stack)


def at(
    replay: Replay, row: jax.Array, column: jax.Array, discount: Any, steps: int = 1, stack: Stack = UNSTACKED
) -> Sample:
    """Returns the transitions of n steps that begin at rows and columns int32 `[B]`.

    They end with the episode, if that ends before; the newest n - 1 rows begin none.
    """
    rows = len(replay.rows)
    total, share, alive = jnp.zeros(len(row)), jnp.ones(len(row)), jnp.ones(len(row), bool)
    found = replay.rows[row % rows, column]
    before, after, ended = found[:, 0], found[:, 1], jnp.zeros(len(row), bool)
    action = jax.lax.bitcast_convert_type(found[:, 4:], replay.action.dtype).reshape(-1, *replay.action.shape)
    for ahead in range(steps):
        found = found if ahead == 0 else replay.rows[(row + ahead) % rows, column]
        reward = jax.lax.bitcast_convert_type(found[:, 2], jnp.float32)
        total = total + jnp.where(alive, share * reward, 0.0)
        share = jnp.where(alive, share * discount, share)
        after = jnp.where(alive, found[:, 1], after)
        ended = ended | (alive & (found[:, 3] % 2 == 1))
        alive = alive & (found[:, 3] == 0)
    seen, following = (stacked(replay, number, stack) for number in (before, after))
    return Sample(seen, action, total, following, jnp.where(ended, 0.0, share), row, column)


def stacked(replay: Replay, number: jax.Array, stack: Stack) -> jax.Array:
    """Returns the observations `[B, ...]` whose newest frames have these numbers int32 `[B]`."""
    size, found, there = len(replay.frames), [], jnp.ones(len(number), bool)
    for _ in range(stack.count):
        frame = replay.frames[number % size]
        shown = there.reshape(-1, *[1] * (frame.ndim - 1)) if stack.blank else True
        found.append(jnp.where(shown, frame, jnp.zeros_like(frame)))
        before = replay.previous[number % size]
        there, number = there & (before != number), before
    return found[0] if stack.count == 1 else jnp.concatenate(found[::-1], axis=_axis(found[0], stack))


def _axis(observation: jax.Array, stack: Stack) -> int:
    """Returns the axis of `[N, ...]` along which frames lie."""
    return stack.axis % (observation.ndim - 1) + 1
