"""Environments as pure functions of state, action and key, and rollouts of a policy in many of them at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Average, Batch, Key
from foldax.mesh import shard_batch
from foldax.rl.resets import Resets, cached_starts, initial_states, with_pool, without_pool
from foldax.rl.spaces import Box, Discrete, Space

State: TypeAlias = chex.ArrayTree  # an environment's own state
Observation: TypeAlias = Any  # an array or a tree of arrays; with `with_policy_memory` a pair of one and the memory
Action: TypeAlias = Any  # likewise
LegalActions: TypeAlias = Any  # bool [A]; a tuple of such masks for a `MultiDiscrete` or a `Tuple`
Render: TypeAlias = Callable[[State], np.ndarray]  # on the host; uint8 [H, W, 3]
Episodes: TypeAlias = dict[str, jax.Array]  # "return", "length" and "finished" [N]


class Step(NamedTuple):
    """Result of a step of one environment.

    Attributes:
      observation: the observation after the action, also where the episode ends with it.
      reward: float32 `[]`; of a game for P players `[P]`.
      terminated: bool `[]`, the episode ended: no further reward is possible.
      truncated: bool `[]`, the episode was cut off, as by a time limit: rewards would have followed. Both may be true.
      info: metrics by name, scalars or `Average`s, whose means over all steps are logged as "info/<name>".
    """

    observation: Observation
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, Any] = {}  # noqa: RUF012  # a default that is never written to


class Environment(NamedTuple):
    """An environment as pure functions of one state; it never resets itself (`step_environments` does).

    Attributes:
      reset: `key -> (state, observation)`.
      step: `(key, state, action) -> (state, Step)`.
      observation_space: space of one observation, a `Box` or a tree of them, such as a dict.
      action_space: space of one action.
      name: its name in error messages.
      render: `state -> image`, uint8 `[H, W, 3]`, computed on the host; None: it cannot be rendered.
      legal_actions: `state -> mask`, bool `[A]`, at least one of which is true unless the episode terminated; a tuple
        of masks for a `MultiDiscrete` or a `Tuple`; None: all actions are legal in all states.
      num_players: players of a game; a learner for a single agent takes 1.
      player: `state -> int32 []`, number of the player who acts in a state; None: there is one.
      resets: where an environment whose episode ended starts the next one; see `Resets`.
      render_text: `state -> text` of a few lines, for a terminal; None: it cannot be shown there.

    >>> def step(key, state, action):
    ...     return state + 1, Step(jnp.ones(1), jnp.float32(1), state >= 2, jnp.bool_(False))
    >>> space = Box(np.zeros(1, np.float32), np.ones(1, np.float32))
    >>> environment = Environment(lambda key: (jnp.int32(0), jnp.zeros(1)), step, space, Discrete(2), "three steps")
    >>> episodes = play_episodes(environment, lambda observation, key: (jnp.zeros(4, int), {}), jax.random.key(0), 4, 9)
    >>> episodes["length"].tolist()
    [3, 3, 3, 3]
    """

    reset: Callable[[Key], tuple[State, Observation]]
    step: Callable[[Key, State, Action], tuple[State, Step]]
    observation_space: Any
    action_space: Space
    name: str = "environment"
    render: Render | None = None
    legal_actions: Callable[[State], LegalActions] | None = None
    num_players: int = 1
    player: Callable[[State], jax.Array] | None = None
    resets: Resets = Resets()
    render_text: Callable[[State], str] | None = None


class EnvironmentState(NamedTuple):
    """State of N parallel environments.

    Attributes:
      state: states of the environments, `[N, ...]`.
      observation: current observations, `[N, ...]`.
      episode_return: sum of the rewards of each running episode so far, float32 `[N]`.
      episode_length: number of its steps so far, int32 `[N]`.
      starts: states and observations `[num_states, ...]` at which the next episodes begin; None: resets compute them.
    """

    state: State
    observation: Observation
    episode_return: jax.Array
    episode_length: jax.Array
    starts: tuple[State, Observation] | None = None


class Transition(NamedTuple):
    """One step of N environments, `[N, ...]`, or T steps, `[T, N, ...]`.

    Attributes:
      observation: observation before the action.
      action: the action.
      reward: float32.
      next_observation: observation after the action; where the episode ends, its last one, never the next episode's.
      terminated: bool.
      truncated: bool.
      extras: further outputs of the policy by name, such as "value".
    """

    observation: Observation
    action: Action
    reward: jax.Array
    next_observation: Observation
    terminated: jax.Array
    truncated: jax.Array
    extras: dict[str, jax.Array]


class EpisodeStatistics(NamedTuple):
    """Return and length of the episodes that ended, as means that can be merged.

    Attributes:
      episode_return: sum of rewards.
      episode_length: number of steps.
      metrics: further means by name, of all steps: "info/<name>", and "episodes_per_start" of a pool of starts.
    """

    episode_return: Average
    episode_length: Average
    metrics: dict[str, Average] = {}  # noqa: RUF012  # a default that is never written to


@dataclasses.dataclass(frozen=True, eq=False)
class HostSpec:
    """Specification of environments on the host, from which a learner is made in place of an `Environment`.

    Two are equal if all their values are, so that equal experiments share a compiled program.

    Attributes:
      name: name of the environment.
      observation_space: space of one observation.
      action_space: space of one action.
      dtype: dtype of observations: uint8 for images, else float32.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.
      fingerprint: None; a dataset has one to recognise its examples.
    """

    name: str
    observation_space: Box
    action_space: Discrete | Box
    dtype: np.dtype
    num_envs: int
    rollout_steps: int
    fingerprint: None = None

    @property
    def batch_size(self) -> int:
        """Leading axis of a batch, which is time."""
        return self.rollout_steps

    def _identity(self) -> tuple[Any, ...]:
        # Arrays cannot be hashed; their bytes can.
        bounds = jax.tree.map(lambda x: np.asarray(x).tobytes(), (self.observation_space, self.action_space))
        shapes = self.observation_space.shape, type(self.action_space), np.shape(self.action_space[0])
        return self.name, bounds, shapes, self.dtype, self.num_envs, self.rollout_steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostSpec) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


EnvironmentLike: TypeAlias = Environment | HostSpec
"""The environment to act in, or its specification when it runs on the host."""


class HostRollout(NamedTuple):
    """A rollout collected on the host by the learner's own policy; the batch of `update` for host environments.

    Attributes:
      transitions: `[T, N, ...]`, without extras.
      episodes: statistics `[T]` of the episodes that ended with each step.
      current_observation: observations after each step, `[T, N, ...]`; where an episode ended, the next one's first.
      restarted: bool `[T]`, true at a step before which all environments were reset, as at the start of a run.
    """

    transitions: Transition
    episodes: EpisodeStatistics
    current_observation: jax.Array
    restarted: jax.Array


class ExplorationRequest(NamedTuple):
    """Asks `predict` for exploratory actions (sampled or epsilon-greedy) instead of the greedy ones.

    Attributes:
      observation: `[N, ...]`.
    """

    observation: jax.Array


Policy: TypeAlias = Callable[[Observation, Key], tuple[Action, dict[str, jax.Array]]]
"""`(observation [N, ...], key) -> (action [N, ...], extras by name)`."""


def reset_environments(environment: Environment, key: Key, num_envs: int) -> EnvironmentState:
    """Starts an episode in each of `num_envs` parallel environments.

    Args:
      environment: the environment to start.
      key: randomness of the first states.
      num_envs: number N of parallel environments.
    """
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, num_envs))
    zeros = jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32)
    return shard_batch(EnvironmentState(state, observation, *zeros))._replace(starts=cached_starts(environment, key))


def step_environments(
    environment: Environment, environment_state: EnvironmentState, action: Action, key: Key
) -> tuple[EnvironmentState, Transition, EpisodeStatistics]:
    """Steps all N environments and resets those whose episode ended.

    The returned transition holds the last observation of an ended episode; the returned state holds the first
    observation of the next one.

    Args:
      environment: the environment.
      environment_state: state of N environments.
      action: `[N, ...]`.
      key: randomness of steps and resets.

    Returns:
      The next state, the transition `[N, ...]` without extras, and the statistics of the episodes that ended.
    """
    # 1. Step every environment with its own key, on the device that holds it.
    starts = environment_state.starts
    environment_state, action = shard_batch((environment_state._replace(starts=None), action))
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(environment_state.episode_return)))
    state, step = jax.vmap(environment.step)(keys[:, 0], environment_state.state, action)
    done = step.terminated | step.truncated
    _check_step(environment, step, environment_state.episode_return.shape)
    # 2. Reset where the episode ended. All compute a reset, because a branch under `vmap` runs both sides anyway.
    initial = initial_states(environment, starts, keys[:, 1])
    state, observation = jax.tree.map(lambda new, old: _where(done, new, old), initial, (state, step.observation))
    # 3. Count the step, and with it the episodes that it ended.
    total, length = environment_state.episode_return + step.reward, environment_state.episode_length + 1
    ended = done.astype(jnp.float32)
    totals = [Average((value * ended).sum(), ended.sum()) for value in (total, length.astype(jnp.float32))]
    transition = Transition(
        environment_state.observation, action, step.reward, step.observation, step.terminated, step.truncated, extras={}
    )
    ended_totals = jnp.where(done, 0.0, total), jnp.where(done, 0, length)
    after = shard_batch(EnvironmentState(state, observation, *ended_totals))._replace(starts=starts)
    return after, transition, EpisodeStatistics(totals[0], totals[1], _info_metrics(step.info))


def _info_metrics(info: dict[str, Any]) -> dict[str, Average]:
    """Means over N environments of metrics `[N]`, by the names of the log."""
    metrics = {}
    for name, value in info.items():
        if not isinstance(value, Average):
            value = Average(value.astype(jnp.float32), jnp.ones(value.shape))
        metrics[f"info/{name}"] = jax.tree.map(jnp.sum, value)
    return metrics


def _check_step(environment: Environment, step: Step, shape: tuple[int, ...]) -> None:
    """Checks the shapes of a step of N environments: a broadcast would hide a wrong one."""
    for name in ("reward", "terminated", "truncated"):
        found = getattr(step, name).shape
        if found != shape:
            raise ConfigError(f"{environment.name}: {name} has the shape {list(found[1:])}; it must be a scalar")


def rollout(
    environment: Environment, policy: Policy, environment_state: EnvironmentState, key: Key, num_steps: int
) -> tuple[EnvironmentState, Transition, EpisodeStatistics]:
    """Takes `num_steps` steps with a policy in all N environments.

    Args:
      environment: the environment to act in.
      policy: `(observation [N, ...], key) -> (action [N, ...], extras)`.
      environment_state: states of the N environments, of `reset_environments` or the rollout before.
      key: randomness of the policy and of the environments.
      num_steps: steps of each environment.

    Returns:
      The state after the last step, the transitions `[num_steps, N, ...]` with the policy's extras, and the statistics
      of all episodes that ended.

    >>> from foldax import rl
    >>> environment = rl.cartpole()
    >>> def policy(observation, key):
    ...     return (observation[:, 2] > 0).astype(int), {}
    >>> def collect(key):
    ...     return rollout(environment, policy, reset_environments(environment, key, 8), key, num_steps=5)
    >>> _, transitions, _ = jax.eval_shape(collect, jax.random.key(0))
    >>> transitions.observation.shape, transitions.reward.shape
    ((5, 8, 4), (5, 8))
    """

    def step(state: EnvironmentState, key: Key) -> tuple[EnvironmentState, tuple[Transition, EpisodeStatistics]]:
        policy_key, environment_key = jax.random.split(key)
        action, extras = policy(state.observation, policy_key)
        state, transition, episodes = step_environments(environment, state, action, environment_key)
        return state, (transition._replace(extras=extras), episodes)

    # The transitions are stacked over time; the statistics of each step are summed to those of the rollout.
    environment_state = with_pool(environment, environment_state, key)
    environment_state, (transitions, episodes) = jax.lax.scan(step, environment_state, jax.random.split(key, num_steps))
    episodes = jax.tree.map(lambda x: x.sum(axis=0), episodes)
    environment_state, episodes = without_pool(environment, environment_state, episodes)
    return environment_state, transitions, episodes


def episode_metrics(episodes: EpisodeStatistics) -> dict[str, Average]:
    """Mean "return" and "length" of episodes that ended, and "info/..." of steps: metrics of a learner's `update`."""
    metrics = {"return": episodes.episode_return, "length": episodes.episode_length, **episodes.metrics}
    return jax.tree.map(jnp.sum, metrics)


def play_episodes(
    environment: Environment,
    select_action: Callable[[Observation, Key], Action],
    key: Key,
    num_episodes: int,
    max_steps: int,
) -> Episodes:
    """Plays one episode in each of `num_episodes` parallel environments, in one loop until the last one ends.

    Args:
      environment: the environment.
      select_action: `(observation [N, ...], key) -> action [N, ...]`.
      key: randomness of environments and actions.
      num_episodes: N.
      max_steps: number of steps after which an episode is stopped.

    Returns:
      "return" float32 `[N]`, "length" int32 `[N]`, and "finished" bool `[N]`: whether the episode ended by itself.
    """

    def is_running(carry: tuple[jax.Array, EnvironmentState, Episodes]) -> jax.Array:
        step, _, episodes = carry
        return (step < max_steps) & ~episodes["finished"].all()

    def take_step(carry: tuple[jax.Array, EnvironmentState, Episodes]) -> tuple[jax.Array, EnvironmentState, Episodes]:
        step, environment_state, episodes = carry
        # Number 0 is the key of the resets.
        action_key, environment_key = jax.random.split(jax.random.fold_in(key, step + 1))
        action = select_action(environment_state.observation, action_key)
        environment_state, transition, _ = step_environments(environment, environment_state, action, environment_key)
        is_first = ~episodes["finished"]  # environments go on into further episodes, of which nothing is counted
        total = episodes["return"] + jnp.where(is_first, transition.reward, 0.0)
        finished = episodes["finished"] | transition.terminated | transition.truncated
        episodes = {"return": total, "length": episodes["length"] + is_first.astype(jnp.int32), "finished": finished}
        return step + 1, environment_state, episodes

    episodes = {"return": jnp.zeros(num_episodes), "length": jnp.zeros(num_episodes, jnp.int32)}
    episodes["finished"] = jnp.zeros(num_episodes, bool)
    environment_state = reset_environments(environment, jax.random.fold_in(key, 0), num_episodes)
    if environment.resets.kind != "every":
        # Further episodes are not counted, so they may begin anywhere, without a reset at each step.
        environment_state = environment_state._replace(starts=environment_state[:2])
    return jax.lax.while_loop(is_running, take_step, (jnp.int32(0), environment_state, episodes))[2]


def evaluate_policy(
    environment: EnvironmentLike,
    select_action: Callable[[Observation, Key], Action],
    key: Key,
    num_episodes: int,
    max_steps: int,
    batch: Batch = None,
) -> Episodes:
    """Plays episodes as `play_episodes` does, and returns all values as float32 `[N]`: the metrics of `evaluate`.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host.
      select_action: `(observation [N, ...], key) -> action [N, ...]`, often a learner's `predict` with a state.
      key: randomness of the actions and of the environment.
      num_episodes: episodes N, played in parallel.
      max_steps: maximum length of an episode; "finished" is 0 for one that was stopped there.
      batch: the episodes that a host played before, which are returned; None for an environment on the device.
    """
    if isinstance(environment, HostSpec):
        return batch
    episodes = play_episodes(environment, select_action, key, num_episodes, max_steps)
    return {name: value.astype(jnp.float32) for name, value in episodes.items()}


def _where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
