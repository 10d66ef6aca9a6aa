"""Parts shared by DQN, SAC and TD3: storing transitions in a replay buffer, sampling from it, priorities.

The parallel environments and the replay buffer are part of the learner's state, which starts with transitions of random
actions, so that every update learns. Where the environment is on the host, its transitions arrive as the batch, and the
first updates only fill the buffer.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from foldax import rl
from foldax.configuration import check_at_least, config
from foldax.errors import ConfigError
from foldax.learner import Average, Batch, EnvironmentSteps, Key, Metrics, Model, Params, State
from foldax.learners import gradients
from foldax.learners.rl.exploration import add_steps
from foldax.mesh import shard_batch
from foldax.rl import replay, resets
from foldax.rl.environment import Observation
from foldax.rl.frames import FrameStack, newest_frame

SelectAction = Callable[[Observation, jax.Array, Key], jax.Array]
"""`(observations [N, ...], environment steps so far, key) -> actions [N, ...]`."""

ScalarMetrics: TypeAlias = dict[str, jax.Array]
LossAndErrors: TypeAlias = tuple[jax.Array, jax.Array, ScalarMetrics]  # loss [], td_errors [B], metrics
Train = Callable[[State], tuple[State, ScalarMetrics]]

CriticLoss = Callable[[jax.Array, jax.Array, replay.ReplayBatch], LossAndErrors]
"""`(q_values [B, 2], td_target [B], batch) -> (loss [], td_errors [B], metrics)`."""


@config
class ReplaySettings:
    """Settings of the replay buffer, nested in those of `dqn`, `sac` and `td3`.

    >>> ReplaySettings(prioritized=True, capacity=50_000).importance_exponent
    0.4
    """

    capacity: int = 10_000
    """Transitions that the buffer holds; see the metric "replay_size"."""
    n_steps: int = 1
    """Rewards summed before bootstrapping from a value (n-step returns: Sutton, 1988)."""
    prioritized: bool = False
    """Whether transitions are sampled in proportion to a power of their TD error (Schaul et al., 2016)."""
    priority_exponent: float = 0.6
    """Power of the TD errors, the paper's alpha; 0 samples uniformly."""
    importance_exponent: float = 0.4
    """Initial power of the importance weights, the paper's beta; 1 corrects the sampling bias completely."""
    importance_steps: float | None = None
    """Environment steps over which that power rises linearly to 1; None: over the whole training."""
    frame_stack: FrameStack = FrameStack()
    """How observations are stacked from frames, each of which is stored once."""

    def __post_init__(self) -> None:
        check_at_least(self, capacity=1, n_steps=1)


@config
class OffPolicySettings:
    """Hyperparameters that `dqn`, `sac` and `td3` share.

    >>> OffPolicySettings(discount=0.9).replay.n_steps
    1
    """

    batch_size: int = 256
    """Transitions sampled for a gradient step."""
    discount: float = 0.99
    """Discount of a reward one environment step later, gamma."""
    replay: ReplaySettings = ReplaySettings(capacity=1_000_000)
    """The replay buffer."""
    evaluation_episodes: int = 16
    """Episodes of an evaluation, played in parallel."""
    evaluation_steps: int = 1000
    """Maximum length of an evaluation episode."""


class ReplaySetup(NamedTuple):
    """How a learner collects transitions and samples them.

    Attributes:
      environment: the environment to act in, or the `HostSpec` of one on the host, whose buffer starts empty.
      settings: batch size, discount and replay buffer.
      num_envs: N, the number of parallel environments.
      rollout_steps: steps of every environment in an update.
      learning_starts: transitions of random actions before the first gradient step, summed over all environments.
      environment_steps: length of the whole training, over which importance exponents rise if the settings do not say.
    """

    environment: rl.EnvironmentLike
    settings: OffPolicySettings
    num_envs: int
    rollout_steps: int
    learning_starts: int
    environment_steps: int | None


class ReplayState(NamedTuple):
    """The parallel environments and the transitions collected in them.

    Attributes:
      environment_state: state of the N environments; None where they run on the host.
      buffer: stored transitions.
      priority_tree: sum tree with a leaf per stored transition; None without priorities.
      max_priority: float32 [], largest priority so far, which new transitions get.
      environment_steps: int32 [], steps so far, summed over all environments.
    """

    environment_state: rl.EnvironmentState | None
    buffer: replay.ReplayBuffer
    priority_tree: jax.Array | None
    max_priority: jax.Array
    environment_steps: jax.Array


def init_replay(setup: ReplaySetup, key: Key, examples: Batch) -> tuple[ReplayState, Observation]:
    """Resets the environments and fills the buffer with `learning_starts` transitions of random actions.

    Args:
      setup: environment and settings; the buffer of a host environment stays empty.
      key: randomness of the environments and actions.
      examples: first observations `[N, ...]` of a host environment; None otherwise.

    Returns:
      The state, and the first observations `[N, ...]`.
    """
    environment, settings, num_envs = setup.environment, setup.settings.replay, setup.num_envs
    environment_key, action_key = jax.random.split(key)
    environment_state, observation = None, examples
    if isinstance(environment, rl.Environment):
        environment_state = rl.reset_environments(environment, environment_key, num_envs)
        observation = environment_state.observation
    action = jax.eval_shape(lambda key: rl.random_actions(environment.action_space, key, num_envs), key)
    buffer = replay.init(newest_frame(observation, settings.frame_stack), action, settings.capacity)
    priority_tree = rl.priorities.init(buffer.rows[..., 0].size) if settings.prioritized else None
    state = ReplayState(environment_state, buffer, priority_tree, jnp.ones(()), jnp.int32(0))
    if isinstance(environment, rl.HostSpec):
        return state, observation

    def select_action(observation: Observation, steps: jax.Array, key: jax.Array) -> jax.Array:
        return rl.random_actions(environment.action_space, key, num_envs, rl.split_mask(observation)[1])

    # The first updates need a batch to sample from; on the host, they collect it themselves.
    setup = setup._replace(rollout_steps=setup.learning_starts // num_envs)
    return collect_transitions(setup, state, select_action, action_key, None)[0], observation


def inference_state(state: State) -> State:
    """Drops the stored transitions from a state with a field `replay`, which only training needs."""
    return state._replace(replay=state.replay._replace(buffer=None, priority_tree=None))


def count_environment_steps(setup: ReplaySetup) -> EnvironmentSteps:
    """Counts the environment steps of a learner; on the host the random ones belong to the first updates."""
    random_steps = 0 if isinstance(setup.environment, rl.HostSpec) else setup.learning_starts
    return EnvironmentSteps(random_steps, setup.num_envs * setup.rollout_steps)


def warmup_actions(setup: ReplaySetup, steps: jax.Array, actions: jax.Array, key: Key) -> jax.Array:
    """Replaces actions `[N, ...]` by random ones on the host during the first `learning_starts` environment steps."""
    if isinstance(setup.environment, rl.Environment):
        return actions
    warmup = rl.random_actions(setup.environment.action_space, key, len(actions))
    return jnp.where(steps < setup.learning_starts, warmup, actions)


def collect_transitions(
    setup: ReplaySetup, state: ReplayState, select_action: SelectAction, key: Key, batch: Batch
) -> tuple[ReplayState, dict[str, Average]]:
    """Takes `rollout_steps` steps in every environment and stores them; on the host, stores those of the batch.

    Returns:
      The state, and "return" and "length" of the episodes that ended.
    """
    environment, settings = setup.environment, setup.settings.replay
    if isinstance(environment, rl.HostSpec):
        return store_rollout(settings, state, batch)

    def step(state: ReplayState, key: Key) -> tuple[ReplayState, rl.EpisodeStatistics]:
        action_key, step_key = jax.random.split(key)
        before = state.environment_state
        assert before is not None  # it is None only on the host
        action = select_action(before.observation, state.environment_steps, action_key)
        environment_state, transition, finished = rl.step_environments(environment, before, action, step_key)
        state = add_transitions(settings, state, transition, environment_state.observation)
        return state._replace(environment_state=environment_state), finished

    state = state._replace(environment_state=resets.with_pool(environment, state.environment_state, key))
    state, finished = jax.lax.scan(step, state, jax.random.split(key, setup.rollout_steps))
    environment_state, finished = resets.without_pool(environment, state.environment_state, finished)
    return state._replace(environment_state=environment_state), rl.episode_metrics(finished)


def store_rollout(
    settings: ReplaySettings, state: ReplayState, rollout: rl.HostRollout
) -> tuple[ReplayState, dict[str, Average]]:
    """Stores a rollout collected on the host; returns what `collect_transitions` does."""

    def step(state: ReplayState, inputs: tuple[rl.Transition, jax.Array, jax.Array]) -> tuple[ReplayState, None]:
        transition, observation, restarted = inputs
        frame = newest_frame(transition.observation, settings.frame_stack)
        state = state._replace(buffer=replay.start_episodes(state.buffer, frame, restarted))
        return add_transitions(settings, state, transition, observation), None

    state, _ = jax.lax.scan(step, state, (rollout.transitions, rollout.current_observation, rollout.restarted))
    return state, rl.episode_metrics(rollout.episodes)


def train_steps(setup: ReplaySetup, train: Train, state: State) -> tuple[State, Metrics]:
    """Calls `train(state)`; on the host, only once there are `learning_starts` transitions; no metrics before.

    Adds the metric "replay_size", the transitions that can be sampled. Where episodes are short they are fewer than the
    capacity, down to 56% of it: last frames of episodes take room, too.
    """
    size = replay.num_transitions(state.replay.buffer, setup.settings.replay.n_steps).astype(jnp.float32)
    if isinstance(setup.environment, rl.Environment):
        state, metrics = train(state)
        return state, {**metrics, "replay_size": size}
    ready = state.replay.environment_steps >= setup.learning_starts  # the first updates only fill the buffer
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(train, state)[1])
    # `lax.cond` runs one branch only because learners of host environments are never under `vmap`.
    state, metrics = jax.lax.cond(ready, train, lambda state: (state, zeros), state)
    count = ready.astype(jnp.float32)
    return state, {name: Average(value * count, count) for name, value in metrics.items()} | {"replay_size": size}


def scan_gradient_steps(
    step: Callable[[State, Key], tuple[State, ScalarMetrics]], keys: Key, state: State
) -> tuple[State, ScalarMetrics]:
    """Takes a step for every key, one after the other; metrics are averaged over the steps."""
    state, metrics = jax.lax.scan(step, state, keys)
    return state, {name: value.mean() for name, value in metrics.items()}


def add_transitions(
    settings: ReplaySettings, state: ReplayState, transition: rl.Transition, observation: Observation
) -> ReplayState:
    """Stores one step of all environments, whose current observations are now `[N, ...]`."""
    frame = newest_frame(observation, settings.frame_stack)
    next_frame = newest_frame(transition.next_observation, settings.frame_stack)
    buffer = replay.add(state.buffer, transition._replace(next_observation=next_frame), frame, settings.frame_stack)
    state = state._replace(
        buffer=buffer, environment_steps=add_steps(state.environment_steps, rl.num_rows(observation))
    )
    return _refresh_priorities(settings, state)


def sample_batch(setup: ReplaySetup, state: ReplayState, key: Key) -> replay.ReplayBatch:
    """Samples n-step transitions, uniformly or in proportion to their priorities.

    Args:
      setup: batch size B, discount and settings of the replay buffer.
      state: environments and buffer.
      key: randomness of the sample.

    Returns:
      B transitions with importance weights (Schaul et al., 2016, section 3.4), the largest of which is 1.
    """
    buffer, settings = state.buffer, setup.settings.replay
    batch_size, discount = setup.settings.batch_size, setup.settings.discount
    if state.priority_tree is None:
        sample = replay.sample(buffer, key, batch_size, discount, settings.n_steps, settings.frame_stack)
        return shard_batch(sample)
    # Leaf i of the tree belongs to environment i % N of the row stored at i // N.
    num_envs = buffer.rows.shape[1]
    indices = rl.priorities.sample(state.priority_tree, key, batch_size)
    rows = replay.newest_row_at(buffer, indices // num_envs)
    batch = replay.transitions_at(buffer, rows, indices % num_envs, discount, settings.n_steps, settings.frame_stack)
    # Importance weights (count P(i))^-beta / max w, with beta rising linearly to 1
    probabilities = rl.priorities.probabilities(state.priority_tree, indices)
    count = replay.num_transitions(buffer, settings.n_steps).astype(jnp.float32)
    rise_steps = setup.environment_steps if settings.importance_steps is None else settings.importance_steps
    assert rise_steps is not None  # see `check_settings`
    progress = jnp.minimum(state.environment_steps / rise_steps, 1.0)
    exponent = settings.importance_exponent + (1 - settings.importance_exponent) * progress
    weights = jnp.power(jnp.maximum(probabilities * count, 1e-8), -exponent)
    return shard_batch(batch._replace(weights=weights * jnp.reciprocal(weights.max())))


def update_priorities(
    settings: ReplaySettings, state: ReplayState, batch: replay.ReplayBatch, td_errors: jax.Array
) -> ReplayState:
    """Sets the priorities of sampled transitions to a power of their TD errors `[B]`.

    TD errors below 0, as a divergence may be by rounding, count as 0. Without prioritised replay nothing changes.
    """
    if state.priority_tree is None:
        return state
    chex.assert_equal_shape([batch.rows, td_errors])
    num_rows, num_envs = state.buffer.rows.shape[:2]
    # p = (|delta| + epsilon)^alpha, the proportional variant
    new_priorities = (jnp.maximum(td_errors, 0.0) + 1e-6) ** settings.priority_exponent
    indices = batch.rows % num_rows * num_envs + batch.environments
    tree = rl.priorities.update(state.priority_tree, indices, new_priorities)
    return state._replace(priority_tree=tree, max_priority=jnp.maximum(state.max_priority, new_priorities.max()))


def twin_q_loss(q_values: jax.Array, td_target: jax.Array, batch: replay.ReplayBatch) -> LossAndErrors:
    """Squared TD error of twin critics, the default `loss` of `sac` and `td3`: 0.5 E[w sum_i (Q_i(s, a) - y)^2].

    Args:
      q_values: Q_1(s, a) and Q_2(s, a), `[B, 2]`.
      td_target: y, `[B]`; no gradient flows through it.
      batch: the sampled transitions, with their importance weights w.

    Returns:
      The scalar loss, absolute TD errors `[B]` for priorities, and the metrics "loss" and "q_value".

    >>> batch = replay.ReplayBatch(*[None] * 5, weights=jnp.ones(1), rows=None, environments=None)
    >>> loss, td_errors, _ = twin_q_loss(jnp.array([[1.0, 3.0]]), jnp.array([2.0]), batch)
    >>> float(loss), float(td_errors[0])
    (1.0, 1.0)
    """
    chex.assert_rank([q_values, td_target], [2, 1])
    td_errors = q_values - td_target[:, None]
    loss = 0.5 * (batch.weights[:, None] * jnp.square(td_errors)).sum(axis=-1).mean()
    return loss, jnp.abs(td_errors).mean(axis=-1), {"loss": loss, "q_value": q_values.mean()}


def critic_loss_fn(critic: Model, loss: CriticLoss) -> gradients.LossFunction:
    """Turns `loss(q_values, td_target, batch)` into a `LossFunction` of the critics' parameters.

    Its batch is `(ReplayBatch, td_target [B])`; its metrics include "td_errors" `[B]`, for `update_priorities`.
    """

    def loss_fn(params: Params, model_state: State, inputs: Batch, key: Key) -> gradients.LossAndAux:
        batch, td_target = inputs
        q_values = critic.apply({"params": params}, batch.observations, batch.actions)
        value, td_errors, metrics = loss(q_values, td_target, batch)
        return value, (model_state, {**metrics, "td_errors": td_errors})

    return loss_fn


def scale_rollout_actions(action_space: rl.Box, batch: Batch) -> Batch:
    """Rescales the actions of a host rollout to [-1, 1]; the batch of any other environment is None and stays so."""
    if batch is None:
        return batch
    action = jax.vmap(lambda action: rl.wrappers.to_unit_range(action_space, action))(batch.transitions.action)
    return batch._replace(transitions=batch.transitions._replace(action=action))


def check_settings(setup: ReplaySetup) -> None:
    """Checks that buffer, batch size, environments and random steps fit each other.

    Raises:
      ConfigError: `environment` is not an environment, or one of these numbers does not fit the others or the host.
    """
    environment, num_envs, starts = setup.environment, setup.num_envs, setup.learning_starts
    rl.check_environment(environment, num_envs, setup.rollout_steps)
    settings, batch_size = setup.settings.replay, setup.settings.batch_size
    capacity, n_steps = settings.capacity, settings.n_steps
    if capacity < batch_size:
        raise ConfigError(f"replay.capacity: {capacity} transitions are fewer than a batch of {batch_size}")
    if replay.min_sampled_rows(capacity, num_envs, settings.frame_stack) < n_steps:
        # Else rows that are overwritten already would be sampled, while episodes are short.
        held = f"must hold {n_steps} steps of {num_envs} environments, even if every episode has one step"
        raise ConfigError(f"replay.capacity: {capacity} {held}; make it larger")
    least = max(batch_size, n_steps * num_envs)
    if starts < least:
        raise ConfigError(f"learning_starts: {starts} must be at least {least}, so that a batch can be sampled")
    if isinstance(environment, rl.Environment) and starts % num_envs:
        more = -(-starts // num_envs) * num_envs
        raise ConfigError(f"learning_starts: {starts} must be a multiple of num_envs, {num_envs}; for example {more}")
    if (setup.environment_steps or 0) > replay.MAX_STEPS:
        problem = f"{setup.environment_steps} steps are more than a replay buffer can number, {replay.MAX_STEPS}"
        raise ConfigError(f"environment_steps: {problem}; take fewer, or ppo or pqn, which have no such limit")
    if settings.prioritized and settings.importance_steps is None and setup.environment_steps is None:
        raise ConfigError("replay.importance_steps: is needed where the learner is given no environment_steps")


def _refresh_priorities(settings: ReplaySettings, state: ReplayState) -> ReplayState:
    """Makes the row that has just completed its n steps samplable, and the rows that were overwritten no longer.

    Nothing changes without priorities. One step of all environments can change these rows: the one that has n steps
    now; the newest, which replaces an old one; and those whose frames were overwritten, at most three by the frames
    of a step, by first frames of new episodes and by those of a restarted host, and one for each further frame of a
    stack.
    """
    buffer, tree = state.buffer, state.priority_tree
    if tree is None:
        return state
    num_rows, num_envs = buffer.rows.shape[:2]
    newest, completed = buffer.num_rows - 1, buffer.num_rows - settings.n_steps
    overwritten = [buffer.oldest_row - offset for offset in range(1, 3 + settings.frame_stack.num_frames)]
    index = jnp.stack([completed, newest, *overwritten]) % num_rows
    # Several of these may share an index, so each priority follows from the row stored there, not from the list above.
    row = replay.newest_row_at(buffer, index)[:, None]
    indices = index[:, None] * num_envs + jnp.arange(num_envs)[None, :]
    new_priorities = jnp.where(row == completed, state.max_priority, tree[indices + len(tree) // 2])
    new_priorities = jnp.where((row < buffer.oldest_row) | (row > completed), 0.0, new_priorities)
    return state._replace(priority_tree=rl.priorities.update(tree, indices.ravel(), new_priorities.ravel()))
