"""Replay buffer on the device: pure functions, every frame stored once, sampling in O(batch).

The buffer is a ring of rows; a row is one step of N parallel environments. Its transitions refer to frames by number
instead of holding two observations. The last frame of a truncated episode is stored as well, so that a value can be
bootstrapped from it. A row whose frames were overwritten (short episodes have many last frames) is no longer sampled.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from foldax.errors import ConfigError
from foldax.rl.environment import Observation, Transition
from foldax.rl.frames import FrameStack, stack_frames
from foldax.rl.observations import num_rows

MAX_STEPS = 2**30  # environment steps of a run: frames, of which a step may have two, are numbered in int32


class ReplayBuffer(NamedTuple):
    """The last R steps of N environments.

    Rows and frames are numbered from the start of the training; row n is stored at n % R, frame n at n % F.

    Attributes:
      frames: `[F, ...]`, stored frames: arrays in a tree like that of observations, the legal actions included.
      previous_frame: int32 `[F]`, number of the frame before in the same episode; a first frame refers to itself.
      rows: int32 `[R, N, 4 + A]`: number of the frame observed, number of the next frame, bits of the float32 reward,
        flags (1: terminated, 2: truncated, 3: both), and bits of the A components of the action. They lie side by side
        so that one memory access reads a transition.
      first_frame: int32 `[R]`, lowest number of the frames that a row needs, including those of its stacks.
      action_template: `[...]`, zeros of the shape and dtype of an action.
      current_frame: int32 `[N]`, number of the frame that each environment shows now.
      num_frames: int32 [], frames written since the start.
      num_rows: int32 [], rows written since the start.
      oldest_row: int32 [], number of the oldest row that can be sampled.
    """

    frames: Observation
    previous_frame: jax.Array
    rows: jax.Array
    first_frame: jax.Array
    action_template: jax.Array
    current_frame: jax.Array
    num_frames: jax.Array
    num_rows: jax.Array
    oldest_row: jax.Array


class ReplayBatch(NamedTuple):
    """B sampled n-step transitions; their rewards stop at the end of an episode.

    Attributes:
      observations: `[B, ...]`.
      actions: `[B, ...]`.
      rewards: float32 `[B]`, sum of up to n rewards, discounted.
      next_observations: `[B, ...]`, observed after the last of these rewards, never from the next episode.
      discounts: float32 `[B]`, factor of the value of `next_observations`: gamma to the number of rewards, or 0 if the
        episode terminated.
      weights: float32 `[B]`, importance weights, at most 1; all 1 without priorities.
      rows: int32 `[B]`, numbers of the rows where the transitions begin.
      environments: int32 `[B]`, which of the N environments each transition is from.
    """

    observations: Observation
    actions: jax.Array
    rewards: jax.Array
    next_observations: Observation
    discounts: jax.Array
    weights: jax.Array
    rows: jax.Array
    environments: jax.Array


def init(frame: Observation, action: jax.Array, capacity: int, spare_frames: float = 0.125) -> ReplayBuffer:
    """Creates an empty buffer that holds the first frames of N environments.

    Args:
      frame: first frames, `[N, ...]`.
      action: actions `[N, ...]`, of which only shape and dtype matter.
      capacity: number of transitions, rounded down to whole rows of N.
      spare_frames: room for the last frames of episodes, as a fraction of `capacity`; 0.125 suffices for episodes of 8
        steps and more.

    Raises:
      ConfigError: `capacity` is below N, or `spare_frames` below 0.

    >>> buffer = init(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), capacity=10)
    >>> buffer.rows.shape, int(num_transitions(buffer))
    ((5, 2, 5), 0)
    """
    num_envs = num_rows(frame)
    rows_held = capacity // num_envs
    if rows_held < 1 or spare_frames < 0:
        capacity_bound = f"capacity {capacity} must hold a step of {num_envs} environments"
        raise ConfigError(f"replay: {capacity_bound}, and spare_frames {spare_frames} must be at least 0")
    size = _num_frames(rows_held, num_envs, spare_frames)
    frames = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype).at[:num_envs].set(x), frame)
    current_frame, zero = jnp.arange(num_envs, dtype=jnp.int32), jnp.int32(0)
    previous_frame = jnp.arange(size, dtype=jnp.int32)
    # Actions are stored bit by bit as int32, so they have 32-bit types.
    action_dtype = jnp.float32 if jnp.issubdtype(action.dtype, jnp.floating) else jnp.int32
    action_template = jnp.zeros(action.shape[1:], action_dtype)
    rows = jnp.zeros((rows_held, num_envs, 4 + action_template.size), jnp.int32)
    first_frame = jnp.zeros(rows_held, jnp.int32)
    return ReplayBuffer(
        frames, previous_frame, rows, first_frame, action_template, current_frame, jnp.int32(num_envs), zero, zero
    )


def add(
    buffer: ReplayBuffer, transition: Transition, frame: Observation, stack: FrameStack = FrameStack()
) -> ReplayBuffer:
    """Appends one step of all environments.

    Args:
      buffer: the buffer, whose current frames are those of `transition.observation`.
      transition: a step `[N, ...]` whose observations are frames.
      frame: current frames `[N, ...]` after the step: the first of a new episode where one ended.
      stack: how observations are stacked when they are sampled.

    Returns:
      The buffer with the step; rows whose frames it overwrites can no longer be sampled.

    >>> buffer = init(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32), capacity=10)
    >>> yes, no = jnp.array([True]), jnp.array([False])
    >>> step = Transition(jnp.zeros((1, 1)), jnp.array([1]), jnp.array([0.5]), jnp.ones((1, 1)), yes, no, {})
    >>> int(num_transitions(add(buffer, step, frame=jnp.zeros((1, 1)))))
    1
    """
    num_rows, num_envs = buffer.rows.shape[:2]
    size, count = len(buffer.previous_frame), buffer.num_frames
    chex.assert_trees_all_equal_shapes(transition.next_observation, frame)
    chex.assert_shape([transition.reward, transition.terminated, transition.truncated], (num_envs,))

    # Frames: one per environment, and the first one of each new episode.
    episode_over = transition.terminated | transition.truncated
    next_frame = count + jnp.arange(num_envs, dtype=jnp.int32)
    reset_frame = count + num_envs + jnp.cumsum(episode_over.astype(jnp.int32)) - 1
    # Index `size` is out of bounds and dropped: environments within an episode store no first frame.
    indices = jnp.concatenate([next_frame % size, jnp.where(episode_over, reset_frame % size, size)])
    new_frames = jax.tree.map(lambda *new: jnp.concatenate(new), transition.next_observation, frame)
    new_frames = jax.tree.map(lambda new, stored: new.astype(stored.dtype), new_frames, buffer.frames)
    previous_frame = jnp.concatenate([buffer.current_frame, reset_frame])

    # Row: frame numbers, reward, flags and action of each environment.
    row = buffer.num_rows % num_rows
    first_frame = buffer.current_frame
    for _ in range(stack.num_frames - 1):
        first_frame = buffer.previous_frame[first_frame % size]
    reward_bits = jax.lax.bitcast_convert_type(transition.reward.astype(jnp.float32), jnp.int32)
    flags = transition.terminated.astype(jnp.int32) + 2 * transition.truncated.astype(jnp.int32)
    action_bits = jax.lax.bitcast_convert_type(transition.action.astype(buffer.action_template.dtype), jnp.int32)
    step = jnp.stack([buffer.current_frame, next_frame, reward_bits, flags], axis=-1)
    buffer = buffer._replace(
        frames=jax.tree.map(lambda stored, new: stored.at[indices].set(new, mode="drop"), buffer.frames, new_frames),
        previous_frame=buffer.previous_frame.at[indices].set(previous_frame, mode="drop"),
        rows=buffer.rows.at[row].set(jnp.concatenate([step, action_bits.reshape(num_envs, -1)], axis=-1)),
        first_frame=buffer.first_frame.at[row].set(first_frame.min()),
        current_frame=jnp.where(episode_over, reset_frame, next_frame),
        num_frames=count + num_envs + episode_over.sum(dtype=jnp.int32),
        num_rows=buffer.num_rows + 1,
    )

    # Invariant: all frames of the rows from `oldest_row` on are still stored.
    oldest_frame = buffer.num_frames - size

    def is_overwritten(row: jax.Array) -> jax.Array:
        return (row < buffer.num_rows) & (buffer.first_frame[row % num_rows] < oldest_frame)

    oldest_row = jnp.maximum(buffer.oldest_row, buffer.num_rows - num_rows)
    return buffer._replace(oldest_row=jax.lax.while_loop(is_overwritten, lambda row: row + 1, oldest_row))


def start_episodes(buffer: ReplayBuffer, frame: Observation, condition: jax.Array) -> ReplayBuffer:
    """Starts new episodes in all environments if a condition holds, as when a run resumes, and truncates the old ones.

    Args:
      buffer: the buffer.
      frame: first frames of the new episodes, `[N, ...]`.
      condition: bool [].
    """
    num_envs, size = num_rows(frame), len(buffer.previous_frame)
    new_frame = buffer.num_frames + jnp.arange(num_envs, dtype=jnp.int32)
    indices, last_row = jnp.where(condition, new_frame % size, size), (buffer.num_rows - 1) % len(buffer.rows)
    # The last step becomes truncated (2), unless its episode had ended anyway.
    flags = buffer.rows[last_row, :, 3]
    return buffer._replace(
        frames=jax.tree.map(
            lambda frames, new: frames.at[indices].set(new.astype(frames.dtype), mode="drop"), buffer.frames, frame
        ),
        previous_frame=buffer.previous_frame.at[indices].set(new_frame, mode="drop"),
        rows=buffer.rows.at[last_row, :, 3].set(jnp.where(condition & (flags == 0), 2, flags)),
        current_frame=jnp.where(condition, new_frame, buffer.current_frame),
        num_frames=buffer.num_frames + jnp.where(condition, num_envs, 0),
    )


def num_transitions(buffer: ReplayBuffer, n_steps: int = 1) -> jax.Array:
    """Counts the n-step transitions that can be sampled, int32 [].

    >>> int(num_transitions(init(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), capacity=10)))
    0
    """
    return jnp.maximum(buffer.num_rows - buffer.oldest_row - (n_steps - 1), 0) * buffer.rows.shape[1]


def newest_row_at(buffer: ReplayBuffer, index: jax.Array) -> jax.Array:
    """Numbers int32 `[B]` of the newest rows stored at indices `[B]` of the ring; below 0 where none was stored yet."""
    newest = buffer.num_rows - 1
    return newest - (newest - index) % len(buffer.rows)


def sample(
    buffer: ReplayBuffer,
    key: jax.Array,
    batch_size: int,
    discount: chex.Numeric,
    n_steps: int = 1,
    stack: FrameStack = FrameStack(),
) -> ReplayBatch:
    """Samples n-step transitions uniformly with replacement.

    Args:
      buffer: a buffer with at least one n-step transition.
      key: randomness of the sample.
      batch_size: B, the number of transitions.
      discount: gamma in [0, 1]; may be traced.
      n_steps: rewards summed before bootstrapping (Sutton, 1988).
      stack: how observations are stacked, as given to `add`.
    """
    row_key, environment_key = jax.random.split(key)
    # The newest n - 1 rows do not have n steps yet.
    num_rows = jnp.maximum(buffer.num_rows - buffer.oldest_row - (n_steps - 1), 1)
    rows = buffer.oldest_row + jax.random.randint(row_key, (batch_size,), 0, num_rows)
    environments = jax.random.randint(environment_key, (batch_size,), 0, buffer.rows.shape[1])
    return transitions_at(buffer, rows, environments, discount, n_steps, stack)


def transitions_at(
    buffer: ReplayBuffer,
    rows: jax.Array,
    environments: jax.Array,
    discount: chex.Numeric,
    n_steps: int = 1,
    stack: FrameStack = FrameStack(),
) -> ReplayBatch:
    """Reads the n-step transitions that begin at given rows; those cut short by an episode's end have fewer rewards.

    Args:
      buffer: the buffer.
      rows: int32 `[B]`, from `oldest_row` to `num_rows` - `n_steps`.
      environments: int32 `[B]`, from 0 to N - 1.
      discount: gamma in [0, 1]; may be traced.
      n_steps: rewards summed before bootstrapping.
      stack: how observations are stacked, as given to `add`.

    >>> buffer = init(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32), capacity=10)
    >>> no = jnp.array([False])
    >>> for x in range(2):
    ...     frame, next_frame = jnp.full((1, 1), x, jnp.float32), jnp.full((1, 1), x + 1, jnp.float32)
    ...     buffer = add(buffer, Transition(frame, jnp.array([0]), jnp.ones(1), next_frame, no, no, {}), next_frame)
    >>> batch = transitions_at(buffer, jnp.array([0]), jnp.array([0]), discount=0.5, n_steps=2)
    >>> float(batch.rewards[0]), float(batch.discounts[0]), float(batch.next_observations[0, 0])
    (1.5, 0.25, 2.0)
    """
    chex.assert_rank([rows, environments], 1)
    chex.assert_equal_shape([rows, environments])
    num_rows, batch_size = len(buffer.rows), len(rows)
    rewards, discounts, alive = jnp.zeros(batch_size), jnp.ones(batch_size), jnp.ones(batch_size, bool)
    # First step: observation and action
    step = buffer.rows[rows % num_rows, environments]
    frame, next_frame, terminated = step[:, 0], step[:, 1], jnp.zeros(batch_size, bool)
    template = buffer.action_template
    actions = jax.lax.bitcast_convert_type(step[:, 4:], template.dtype).reshape(-1, *template.shape)
    # Rewards r_1 + gamma r_2 + ... of up to n steps, as long as the episode goes on
    for offset in range(n_steps):
        step = step if offset == 0 else buffer.rows[(rows + offset) % num_rows, environments]
        reward = jax.lax.bitcast_convert_type(step[:, 2], jnp.float32)
        rewards = rewards + jnp.where(alive, discounts * reward, 0.0)
        discounts = jnp.where(alive, discounts * discount, discounts)
        next_frame = jnp.where(alive, step[:, 1], next_frame)
        terminated = terminated | (alive & (step[:, 3] % 2 == 1))
        alive = alive & (step[:, 3] == 0)
    observations, next_observations = (_stack_frames(buffer, number, stack) for number in (frame, next_frame))
    # A truncated episode bootstraps from its last observation, a terminated one does not.
    discounts = jnp.where(terminated, 0.0, discounts)
    weights = jnp.ones(batch_size)
    return ReplayBatch(observations, actions, rewards, next_observations, discounts, weights, rows, environments)


def observations_after(
    buffer: ReplayBuffer,
    rows: jax.Array,
    environments: jax.Array,
    offset: int,
    discount: chex.Numeric,
    stack: FrameStack = FrameStack(),
) -> tuple[Observation, jax.Array]:
    """Reads the observations in which the action `offset` steps after given ones was taken.

    Args:
      buffer: the buffer.
      rows: int32 `[B]`, numbers of the rows that the steps are counted from.
      environments: int32 `[B]`.
      offset: 1 or more; the rows after it must be stored.
      discount: gamma in [0, 1]; may be traced.
      stack: how observations are stacked, as given to `add`.

    Returns:
      Observations `[B, ...]`, and weights float32 `[B]`: gamma^offset, 0 where the episode ended before.
    """
    num_rows, weights = len(buffer.rows), jnp.ones(len(rows))
    for step in range(offset):
        flags = buffer.rows[(rows + step) % num_rows, environments, 3]
        weights = jnp.where(flags == 0, weights * discount, 0.0)
    frame = buffer.rows[(rows + offset) % num_rows, environments, 0]
    return _stack_frames(buffer, frame, stack), weights


def min_sampled_rows(
    capacity: int, num_envs: int, stack: FrameStack = FrameStack(), spare_frames: float = 0.125
) -> int:
    """Counts the rows that a full buffer can sample at least, where every episode has one step.

    Such episodes need two frames a step, and frames run out before rows.

    Args:
      capacity: as in `init`, as is `spare_frames`.
      num_envs: N, the number of environments.
      stack: how observations are stacked.
      spare_frames: room for the last frames of episodes, as a fraction of `capacity`.

    >>> min_sampled_rows(capacity=100, num_envs=2)
    28
    """
    num_frames = _num_frames(capacity // num_envs, num_envs, spare_frames)
    # Observations reach back, and a host that restarts writes the first frames of all environments once more.
    return (num_frames - num_envs) // (2 * num_envs) - (stack.num_frames - 1)


def _num_frames(num_rows: int, num_envs: int, spare_frames: float) -> int:
    # A step writes one frame per environment, and a second one where an episode ended.
    return num_rows * num_envs + 2 * num_envs + int(spare_frames * num_rows * num_envs)


def _stack_frames(buffer: ReplayBuffer, newest: jax.Array, stack: FrameStack) -> Observation:
    """Reads the observations `[B, ...]` whose newest frames have the numbers int32 `[B]`."""
    size, stored, in_episode = len(buffer.previous_frame), buffer.frames, jnp.ones(len(newest), bool)
    frames = []

    def read(stored: jax.Array) -> jax.Array:
        frame = stored[newest % size]
        visible = in_episode.reshape(-1, *[1] * (frame.ndim - 1)) if stack.zero_padding else True
        return jnp.where(visible, frame, jnp.zeros_like(frame))

    # From the newest frame backwards; an episode's first frame refers to itself.
    for _ in range(stack.num_frames):
        frames.append(jax.tree.map(read, stored))
        previous = buffer.previous_frame[newest % size]
        in_episode, newest = in_episode & (previous != newest), previous
    return stack_frames(frames[::-1], stack)
