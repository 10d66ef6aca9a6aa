"""Environments on the host: Gymnasium's vector environments as a dataset whose batches are rollouts.

A block of data is the rollout of one update. The device waits while the environments step, and the environments wait
while it selects actions and learns: every rollout is of the current policy.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from foldax.data.protocol import DataBlock, EvaluationBlock, Policy
from foldax.errors import ConfigError, check_positive
from foldax.learner import Average, Key
from foldax.mesh import put_batch
from foldax.rl.environment import EpisodeStatistics, ExplorationRequest, HostRollout, HostSpec, Transition
from foldax.rl.spaces import Box, Discrete, space_of

MakeVectorEnv: TypeAlias = Callable[[int], Any]
"""`num_envs -> gymnasium.vector.VectorEnv`."""
MAX_SEED = 2**31 - 2**16  # each environment adds its index to the seed, and some accept 31 bits


class HostEnvironment(NamedTuple):
    """Environments on the host, as the `dataset` of an experiment; made by `from_vector_env` or `rl.gymnasium`.

    Attributes:
      info: specification for the learner.
      train: source of rollouts.
      splits: sources of evaluation episodes, "validation" and "test".
      nonresumable_reason: explains why a resumed run differs from an uninterrupted one.
      make_for_rendering: makes environments with `render_mode="rgb_array"`, for `foldax play`; None: there are none.
    """

    info: HostSpec
    train: "RolloutSource"
    splits: "dict[str, EpisodeSource]"
    nonresumable_reason: str
    make_for_rendering: MakeVectorEnv | None = None

    def to(self, device: jax.Device | jax.sharding.Sharding) -> "HostEnvironment":
        """Copies it for a learner on another device, or on several (see `foldax.data.protocol.Dataset.to`)."""
        return self._replace(train=dataclasses.replace(self.train, device=device))


class RolloutFeed(NamedTuple):
    """Feeds a block as the batch of its one step; static under jit."""

    batch_axis: int = 1  # environments; the first axis is time

    def batch(self, data: HostRollout, key: Key, step: jax.Array, start: jax.Array) -> HostRollout:
        """Returns the block."""
        return data


@dataclasses.dataclass(frozen=True)
class RolloutSource:
    """Collects the rollout of every update with the policy that it updates.

    Attributes:
      make: makes the vector environment.
      info: its specification.
      first_observation: an observation `[1, ...]`.
      device: where rollouts go; None: the default device.
      feed: feeds them.
    """

    make: MakeVectorEnv
    info: HostSpec
    first_observation: np.ndarray
    device: Any = None
    feed = RolloutFeed()

    def examples(self) -> jax.Array:
        """Observations `[N, ...]` for `Learner.init`, all of them equal."""
        return put_batch(np.repeat(self.first_observation, self.info.num_envs, axis=0), self.device)

    def blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        """Yields an empty block for its shapes, then one rollout for every step from `step` on.

        Each is collected by the policy that was sent for it. The environments are reset at first, with a seed that
        depends on the run's seed and on `step`, so that a resumed run does not repeat the first episodes.
        """
        spec = self.info
        policy = yield DataBlock(put_batch(_empty_rollout(spec), self.device, axis=1), step, step)
        make_seed = _seed(seed, 0, step)
        with contextlib.closing(VectorEnvironment(self.make(spec.num_envs), spec.name, make_seed)) as environments:
            # From here on every block is the rollout of one update, collected when it is asked for.
            for number in itertools.count(step):
                assert policy is not None  # the engine sends one for every block but the first
                restarted = number == step
                rollout = collect_host_rollout(environments, policy, spec, number * spec.rollout_steps, restarted)
                policy = yield DataBlock(put_batch(rollout, self.device, axis=1), number, number + 1)


@dataclasses.dataclass(frozen=True)
class EpisodeSource:
    """Plays the episodes of an evaluation: the first one of each of `num_examples` environments.

    Attributes:
      make: makes the vector environment.
      name: its name in error messages.
      num_examples: number of episodes.
      max_steps: maximum length of an episode.
      number: of the split, which gives it random keys of its own.
      greedy: whether the policy acts greedily.
    """

    make: MakeVectorEnv
    name: str
    num_examples: int
    max_steps: int
    number: int
    greedy: bool

    def block_spec(self) -> EvaluationBlock:
        """Shapes and dtypes of the block, without playing any episode."""
        shape = (1, self.num_examples)
        values, mask = jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct(shape, np.bool_)
        return EvaluationBlock(dict.fromkeys(("return", "length", "finished"), values), mask)

    def blocks(self, policy: Any) -> Iterator[EvaluationBlock]:
        """Yields one block: "return", "length" and "finished" `[1, B]` of episodes of the current policy.

        The episodes depend on the run's seed, `policy.seed`. One that takes longer than `max_steps` is stopped there.
        """
        returns, lengths = np.zeros(self.num_examples, np.float32), np.zeros(self.num_examples, np.float32)
        running = np.ones(self.num_examples, bool)
        seed = _seed(int(policy.seed), 1 + self.number)
        with contextlib.closing(VectorEnvironment(self.make(self.num_examples), self.name, seed)) as environments:
            # Environments whose episode ended go on, uncounted, until the last one ends.
            for step in range(self.max_steps):
                observation = environments.observation
                inputs = observation if self.greedy else ExplorationRequest(observation)
                action = np.asarray(policy(inputs, self.number * self.max_steps + step))
                transition, _ = environments.step(action)
                returns, lengths = returns + np.where(running, transition.reward, 0), lengths + running
                running &= ~(transition.terminated | transition.truncated)
                if not running.any():
                    break
        # One batch of all episodes
        values = {"return": returns[None], "length": lengths[None], "finished": (~running)[None].astype(np.float32)}
        yield EvaluationBlock(values, np.ones((1, self.num_examples), bool))


class VectorEnvironment:
    """A Gymnasium vector environment with its current observations and the statistics of its running episodes.

    Args:
      vector_env: a `gymnasium.vector.VectorEnv` that resets in the same step, or not at all.
      name: its name in error messages.
      seed: seed of the first environment; the next ones count up from it.

    Attributes:
      vector_env: the Gymnasium object.
      observation: current observations, `[N, ...]`.

    Raises:
      ConfigError: it reports the end of an episode one step later, so that the last observation is lost.
    """

    def __init__(self, vector_env: Any, name: str, seed: int) -> None:
        from gymnasium.vector import AutoresetMode

        mode = vector_env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            vector_env.close()
            problem = f"autoreset mode {getattr(mode, 'name', mode)} loses steps between episodes"
            remedy = "make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP (or DISABLED)"
            raise ConfigError(f"{name}: {problem}; {remedy}")
        self.vector_env, self._resets_itself = vector_env, mode == AutoresetMode.SAME_STEP
        try:
            self.observation_space = space_of(vector_env.single_observation_space, name, "observations")
            self.action_space = space_of(vector_env.single_action_space, name, "actions")
        except ConfigError:
            vector_env.close()
            raise
        self._first_action = int(getattr(vector_env.single_action_space, "start", 0))
        self._action_dtype = vector_env.single_action_space.dtype
        # Images stay uint8, to save memory.
        self._dtype = np.dtype(np.uint8 if vector_env.single_observation_space.dtype == np.uint8 else np.float32)
        self.observation: Any = self._copy(vector_env.reset(seed=seed)[0])
        self._return, self._length = (np.zeros(vector_env.num_envs, np.float32) for _ in range(2))

    def step(self, action: Any) -> tuple[Transition, EpisodeStatistics]:
        """Steps all environments and resets those whose episode ended; returns also the statistics of these."""
        observation: Any = self.observation
        result, reward, terminated, truncated, info = self.vector_env.step(self._as_gymnasium_action(action))
        done = np.asarray(terminated | truncated)
        next_observation = self.observation = self._copy(result)
        if done.any() and self._resets_itself:
            # The result is already the first observation of the next episode; the last one is in `info`.
            next_observation = next_observation.copy()
            for index in np.flatnonzero(done):
                next_observation[index] = info["final_obs"][index]
        elif done.any():
            self.observation = self._copy(self.vector_env.reset(options={"reset_mask": done})[0])
        self._return, self._length = self._return + np.asarray(reward, np.float32), self._length + 1
        # Statistics are of the episodes that ended with this step; those then start from 0.
        totals = [Average(total[done].sum(), done.sum()) for total in (self._return, self._length)]
        if not np.isfinite(self._return).all():
            # At once, as on the device, so that the run ends with the reward's step and not with a loss of later.
            totals[0] = totals[0]._replace(total=totals[0].total + np.nan)
        self._return, self._length = (np.where(done, np.float32(0), total) for total in (self._return, self._length))
        transition = Transition(observation, action, reward, next_observation, terminated, truncated, {})
        return transition, EpisodeStatistics(totals[0], totals[1])

    def close(self) -> None:
        """Closes the vector environment."""
        self.vector_env.close()

    def _copy(self, observation: Any) -> Any:
        return np.array(observation, self._dtype)  # some environments write into the array that they returned

    def _as_gymnasium_action(self, action: np.ndarray) -> np.ndarray:
        if isinstance(self.action_space, Discrete):
            return action.astype(self._action_dtype) + self._first_action
        # Simulators refuse NaN and infinity. A network that outputs them is reported by its loss, an update later.
        return np.clip(np.nan_to_num(action), *self.action_space).astype(self._action_dtype)


def collect_host_rollout(
    environments: VectorEnvironment, policy: Policy, spec: HostSpec, call: int, restarted: bool = False
) -> HostRollout:
    """Takes the next `rollout_steps` steps of all environments.

    Args:
      environments: the environments.
      policy: `(ExplorationRequest, number of the call) -> actions [N, ...]`.
      spec: their specification.
      call: number of the first call of the policy, counted over the whole run.
      restarted: whether the environments were reset before.

    Returns:
      The rollout as NumPy arrays.
    """
    # All steps are written into arrays that are allocated once.
    rollout = jax.tree.map(np.empty_like, _empty_rollout(spec))
    for step in range(spec.rollout_steps):
        action = np.asarray(policy(ExplorationRequest(environments.observation), call + step))
        transition, episodes = environments.step(action)
        row: Any = HostRollout(transition, episodes, environments.observation, np.bool_(restarted and step == 0))  # type: ignore[arg-type]
        for array, value in zip(jax.tree.leaves(rollout), jax.tree.leaves(row), strict=True):
            array[step] = value
    return rollout


def from_vector_env(
    make: MakeVectorEnv,
    name: str,
    *,
    num_envs: int,
    rollout_steps: int,
    make_for_evaluation: MakeVectorEnv | None = None,
    make_for_rendering: MakeVectorEnv | None = None,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 10_000,
    greedy_evaluation: bool = True,
) -> HostEnvironment:
    """Makes an experiment's dataset from any vector environment of Gymnasium, acted in by the current policy.

    The learner is made from its specification, as `learners.ppo(info, ...)`. Batches are `HostRollout`s
    `[rollout_steps, num_envs, ...]`; batches of an evaluation are "return", "length" and "finished" of episodes `[B]`.
    Actions are clipped to their bounds before a step.

    Args:
      make: `num_envs -> gymnasium.vector.VectorEnv` (1.0 or later), which resets in the same step or not at all, so
        that the last observation of an episode is known.
      name: its name in error messages.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.
      make_for_evaluation: as `make`, for evaluation, such as games with all lives; None: `make`.
      make_for_rendering: as `make`, with `render_mode="rgb_array"`, for `foldax play`; None: episodes are not rendered.
      evaluation_episodes: episodes of an evaluation, played in parallel.
      evaluation_steps: maximum length of an evaluation episode.
      greedy_evaluation: whether evaluation takes the most probable actions, not exploratory ones.

    Raises:
      ConfigError: a space is neither Box nor Discrete, the environments lose the last observations of episodes, or a
        number is below 1.
    """
    check_positive(num_envs=num_envs, rollout_steps=rollout_steps)
    check_positive(evaluation_episodes=evaluation_episodes, evaluation_steps=evaluation_steps)
    # One environment is made and closed to learn the spaces.
    with contextlib.closing(VectorEnvironment(make(1), name, seed=0)) as probe:
        vector_env, first_observation = probe.vector_env, probe.observation
        observation_space, action_space = probe.observation_space, probe.action_space
    assert isinstance(observation_space, Box)
    spec = HostSpec(name, observation_space, action_space, first_observation.dtype, num_envs, rollout_steps)
    # Without this mode Gymnasium has nothing to render.
    if "rgb_array" not in (vector_env.metadata.get("render_modes") or ()):
        make_for_rendering = None
    # The number of a split gives it random keys of its own.
    validation = EpisodeSource(
        make_for_evaluation or make, name, evaluation_episodes, evaluation_steps, number=0, greedy=greedy_evaluation
    )
    splits = {"validation": validation, "test": dataclasses.replace(validation, number=1)}
    consequence = "a resumed run starts new ones, and has other bits"
    reason = f"{name} runs on the host, where episodes cannot be saved: {consequence}"
    return HostEnvironment(spec, RolloutSource(make, spec, first_observation), splits, reason, make_for_rendering)


def _seed(*numbers: int) -> int:
    """A seed for environments, which count up from it; different numbers give distant seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % MAX_SEED


def _empty_rollout(spec: HostSpec) -> HostRollout:
    """A rollout of zeros, as NumPy arrays."""
    steps, space = (spec.rollout_steps, spec.num_envs), spec.action_space
    shape, dtype = (space.shape, np.float32) if isinstance(space, Box) else ((), np.int32)
    observation: Any = np.zeros((*steps, *spec.observation_space.shape), spec.dtype)
    action: Any = np.zeros((*steps, *shape), dtype)
    reward: Any = np.zeros(steps, np.float32)
    done: Any = np.zeros(steps, bool)
    total: Any = np.zeros(spec.rollout_steps, np.float32)
    transitions = Transition(observation, action, reward, observation, done, done, {})
    statistics = EpisodeStatistics(Average(total, total), Average(total, total))
    return HostRollout(transitions, statistics, observation, done[:, 0])
