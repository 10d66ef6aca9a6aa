"""Environments on the host: Gymnasium's vector environments, played by the newest policy as a run's source of data.

A block of data is one update's steps. The device waits while the environments take a step, and they wait while it
chooses actions and learns, so that what is learned from is always the newest policy's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.data.protocol import Block, EvalBlock
from foldax.errors import ConfigError, check_counts
from foldax.learner import Average
from foldax.rl.environment import Box, Discrete, Environment, Explore, Finished, Played, Transition

Make = Callable[[int], Any]
"""`num_envs -> gymnasium.vector.VectorEnv`."""
Act = Callable[[Any, int], Any]
"""`(observations, or Explore of them, number of the call) -> actions [N, ...]`, of the newest state."""
MOST_SEED = 2**31 - 2**16  # seeds count up from one to the next copy, and some environments take 31 bits


@dataclasses.dataclass(frozen=True, eq=False)
class HostFacts:
    """What a learner may know of environments on the host. Two are equal if all but the functions behind them is.

    Attributes:
      name: of the environment.
      observations: the space of one observation.
      actions: the space of one action.
      dtype: of observations: uint8 for images, else float32.
      num_envs: copies that are played in.
      rollout_steps: steps of each in an update.
      fingerprint: None; there are no examples to tell from others.
    """

    name: str
    observations: Box
    actions: Discrete | Box
    dtype: np.dtype
    num_envs: int
    rollout_steps: int
    fingerprint: None = None

    @property
    def batch_size(self) -> int:
        """The leading axis of a batch, which is time."""
        return self.rollout_steps

    def _identity(self) -> tuple[Any, ...]:
        bounds = jax.tree.map(lambda x: np.asarray(x).tobytes(), (self.observations, self.actions))
        shapes = self.observations.shape, type(self.actions), np.shape(self.actions[0])
        return self.name, bounds, shapes, self.dtype, self.num_envs, self.rollout_steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostFacts) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


World = Environment | HostFacts
"""Where a learner acts, or what is known of it where that is on the host."""


def check_world(environment: World, num_envs: int, rollout_steps: int, greedy_evaluation: bool = True) -> None:
    """Checks that a learner was given a world, and of a host the same numbers.

    Raises:
      ConfigError: it was not.
    """
    check_counts(num_envs=num_envs, rollout_steps=rollout_steps)
    if isinstance(environment, HostFacts):
        for name, value in (("num_envs", num_envs), ("rollout_steps", rollout_steps)):
            if value != getattr(environment, name):
                raise ConfigError(f"{name}: {value} must be the host's, {getattr(environment, name)}")
        if not greedy_evaluation:
            raise ConfigError(
                "greedy_evaluation: on a host, which plays the episodes, it is said there: rl.gymnasium(..., "
                "greedy_evaluation=False)"
            )
    elif not isinstance(environment, Environment):
        raise ConfigError(
            f"environment: {type(environment).__name__} must be an rl.Environment, such as rl.gymnax(name), or the "
            "facts (info) of one on the host"
        )


def check_device(learner: str, environment: World) -> None:
    """Checks that an environment is on the device.

    Raises:
      ConfigError: it is not; `learner` says for whom.
    """
    if isinstance(environment, HostFacts):
        raise ConfigError(
            f"{learner}: {environment.name} is on the host, where ppo, a2c, pqn, dqn, sac and td3 can learn"
        )
    check_world(environment, 1, 1)


class Host(NamedTuple):
    """Environments on the host: an experiment's `dataset`.

    Attributes:
      info: what is known of them.
      train: plays what is learned from.
      splits: play the episodes of "validation" and "test".
      unsaved: what of their state no checkpoint holds.
      pictured: makes copies whose `render` draws them, for `foldax play`; None: there are no pictures.
    """

    info: HostFacts
    train: Rollouts
    splits: dict[str, Episodes]
    unsaved: str
    pictured: Make | None = None

    def to(self, device: Any) -> Host:
        """Returns the same for another device, on which the learner is."""
        return self._replace(train=dataclasses.replace(self.train, device=device))


class Feed(NamedTuple):
    """A block is the batch of its one step; static under jit."""

    def batch(self, data: Played, key: jax.Array, step: jax.Array, start: jax.Array) -> Played:
        """Returns the block."""
        del key, step, start
        return data


FEED = Feed()


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Steps of an update, played by the policy that it changes."""

    make: Make
    info: HostFacts
    seen: np.ndarray
    device: Any = None
    feed: Feed = FEED

    def examples(self) -> jax.Array:
        """Returns observations `[N, ...]`: the same beginning in every row."""
        return jax.device_put(np.repeat(self.seen, self.info.num_envs, axis=0), self.device)

    def blocks(self, seed: int, step: int, cursor: dict[str, Any] | None = None) -> Generator[Block, Act, None]:
        """Yields a block of nothing that is over, to look at its shapes, then one for every step from `step` on.

        Each is played by the function that was sent for it. The environments begin new episodes, of a seed that
        follows from the run's and the step, so that a run that goes on does not play its first episodes again.
        """
        del cursor
        facts = self.info
        act = yield Block(jax.device_put(_nothing(facts), self.device), step, step)
        with contextlib.closing(Stage(self.make(facts.num_envs), facts.name, _seed(seed, 0, step))) as stage:
            for number in itertools.count(step):
                played = play(stage, act, facts, number * facts.rollout_steps, begun=number == step)
                act = yield Block(jax.device_put(played, self.device), number, number + 1)


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Whole episodes that are counted once each: of every copy its first."""

    make: Make
    name: str
    num_examples: int
    most_steps: int
    number: int
    greedy: bool

    def blocks(self, newest: Any) -> Iterator[EvalBlock]:
        """Yields one block: "return", "length" and "finished" `[1, B]` of episodes played as the newest state does.

        The episodes follow from the run's seed. One that takes longer than `most_steps` is left off there.
        """
        total, length = np.zeros(self.num_examples, np.float32), np.zeros(self.num_examples, np.float32)
        live = np.ones(self.num_examples, bool)
        seed = _seed(int(newest.seed), 1 + self.number)
        with contextlib.closing(Stage(self.make(self.num_examples), self.name, seed)) as stage:
            for step in range(self.most_steps):
                shown = stage.observation if self.greedy else Explore(stage.observation)
                action = np.asarray(newest(shown, self.number * self.most_steps + step))
                seen, _ = stage.step(action)
                total, length = total + np.where(live, seen.reward, 0), length + live
                live &= ~(seen.terminated | seen.truncated)
                if not live.any():
                    break
        found = {"return": total, "length": length, "finished": (~live).astype(np.float32)}
        found = {name: values[None] for name, values in found.items()}
        yield EvalBlock(found, np.ones((1, self.num_examples), bool))


class Stage:
    """Copies of an environment in the midst of their episodes, and what they see.

    Raises:
      ConfigError: it says only a step later that an episode is over, so that its last observation is lost.
    """

    def __init__(self, environments: Any, name: str, seed: int) -> None:
        from gymnasium.vector import AutoresetMode

        mode = environments.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            environments.close()
            raise ConfigError(
                f"{name}: autoreset mode {getattr(mode, 'name', mode)} loses steps between episodes; make it with "
                "autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP (or DISABLED)"
            )
        self.environments, self._resets_itself = environments, mode == AutoresetMode.SAME_STEP
        self._space = space_of(environments.single_action_space, name, "actions")
        self._start = int(getattr(environments.single_action_space, "start", 0))
        self._action_dtype = environments.single_action_space.dtype
        self._dtype = _dtype(environments.single_observation_space)
        self.observation: Any = self._seen(environments.reset(seed=seed)[0])
        self._return, self._length = (np.zeros(environments.num_envs, np.float32) for _ in range(2))

    def step(self, action: Any) -> tuple[Transition, Finished]:
        """Takes a step with every copy; returns it, and the episodes that ended with it."""
        before: Any = self.observation
        answer, reward, terminated, truncated, info = self.environments.step(self._within(action))
        over = np.asarray(terminated | truncated)
        following = self.observation = self._seen(answer)
        if over.any() and self._resets_itself:  # what was answered is what the next episodes begin with
            following = following.copy()
            for copy in np.flatnonzero(over):
                following[copy] = info["final_obs"][copy]
        elif over.any():
            self.observation = self._seen(self.environments.reset(options={"reset_mask": over})[0])
        self._return, self._length = self._return + np.asarray(reward, np.float32), self._length + 1
        finished = Finished(*(Average(sums[over].sum(), over.sum()) for sums in (self._return, self._length)))
        self._return, self._length = (np.where(over, np.float32(0), sums) for sums in (self._return, self._length))
        return Transition(before, action, reward, following, terminated, truncated, {}), finished

    def close(self) -> None:
        """Ends what the environments opened."""
        self.environments.close()

    def _seen(self, observation: Any) -> Any:
        return np.array(observation, self._dtype)  # a copy: some environments write over what they gave

    def _within(self, action: np.ndarray) -> np.ndarray:
        if isinstance(self._space, Discrete):
            return action.astype(self._action_dtype) + self._start
        # No simulator takes what is not finite; that a network became so is told by its loss, an update later.
        return np.clip(np.nan_to_num(action), *self._space).astype(self._action_dtype)


def play(stage: Stage, act: Act, facts: HostFacts, number: int, begun: bool = False) -> Played:
    """Returns what the next `rollout_steps` steps of all copies were, on the host.

    Args:
      stage: where.
      act: asked with `Explore(observations)`.
      facts: of the environments.
      number: of the first step, of all that a run takes.
      begun: whether it is the first of new episodes.
    """
    played = jax.tree.map(np.empty_like, _nothing(facts))
    for step in range(facts.rollout_steps):
        action = np.asarray(act(Explore(stage.observation), number + step))
        one: Any = Played(*stage.step(action), stage.observation, begun and step == 0)  # type: ignore[arg-type]
        for kept, new in zip(jax.tree.leaves(played), jax.tree.leaves(one), strict=True):
            kept[step] = new
    return played


def host(
    make: Make,
    name: str,
    *,
    num_envs: int,
    rollout_steps: int,
    evaluation: Make | None = None,
    pictured: Make | None = None,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 10_000,
    greedy_evaluation: bool = True,
) -> Host:
    """Returns an experiment's source of data: any vector environment of Gymnasium, played by the newest policy.

    The learner is made with its facts, as `learners.ppo(info, ...)`; batches are `Played`
    `[rollout_steps, num_envs, ...]`, and evaluation's are "return", "length" and "finished" of episodes `[B]`. What a
    policy says beyond the bounds of actions is brought within them.

    Args:
      make: `num_envs -> gymnasium.vector.VectorEnv` (1.0 or later), which resets in the same step or not at all, so
        that an episode's last observation is known.
      name: for errors.
      num_envs: copies to learn from.
      rollout_steps: steps of each in an update.
      evaluation: as `make`, of those to evaluate in, such as ones with all lives; None: the same.
      pictured: as `make`, of those whose `render` draws them, for `foldax play`; None: there are no pictures.
      evaluation_episodes: played at once, by as many copies.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the best actions, or by such as are learned from.

    Raises:
      ConfigError: a space is neither numbers nor choices, the environments lose episodes' ends, or a number is below 1.
    """
    check_counts(num_envs=num_envs, rollout_steps=rollout_steps)
    check_counts(evaluation_episodes=evaluation_episodes, evaluation_steps=evaluation_steps)
    with contextlib.closing(Stage(make(1), name, seed=0)) as probe:
        spaces = probe.environments.single_observation_space, probe.environments.single_action_space
        observations, actions = (space_of(*one) for one in zip(spaces, (name, name), ("observations", "actions")))
        seen = probe.observation
    if not isinstance(observations, Box):
        raise ConfigError(
            f"{name}: observations are {spaces[0]}; gymnasium.wrappers.FlattenObservation makes numbers of it"
        )
    facts = HostFacts(name, observations, actions, seen.dtype, num_envs, rollout_steps)
    if "rgb_array" not in (probe.environments.metadata.get("render_modes") or ()):
        pictured = None
    splits = {
        split: Episodes(evaluation or make, name, evaluation_episodes, evaluation_steps, number, greedy_evaluation)
        for number, split in enumerate(("validation", "test"))
    }
    unsaved = (
        f"{name} is on the host, where episodes cannot be saved: a resumed run begins new ones, and has other bits"
    )
    return Host(facts, Rollouts(make, facts, seen), splits, unsaved, pictured)


def space_of(space: Any, name: str, what: str) -> Discrete | Box:
    """Returns Gymnasium's space as one of ours.

    Raises:
      ConfigError: it is neither numbers nor choices; `what` says of what.
    """
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind == "Box":
        return Box(*(np.asarray(bound, np.float32) for bound in (space.low, space.high)))
    raise ConfigError(f"{name}: {what} are {space}; only Box and Discrete can be learned from (Gymnasium has wrappers)")


def _seed(*numbers: int) -> int:
    """Returns a seed for copies, which count up from it: far from that of any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % MOST_SEED


def _dtype(space: Any) -> np.dtype:
    """Returns what observations are kept as: images small, all else as networks take it."""
    return np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32)


def _nothing(facts: HostFacts) -> Played:
    """Returns a batch of zeros, on the host."""
    steps, actions = (facts.rollout_steps, facts.num_envs), facts.actions
    shape, kind = (actions.shape, np.float32) if isinstance(actions, Box) else ((), np.int32)
    seen: Any = np.zeros((*steps, *facts.observations.shape), facts.dtype)
    action: Any = np.zeros((*steps, *shape), kind)
    reward: Any = np.zeros(steps, np.float32)
    over: Any = np.zeros(steps, bool)
    begun: Any = over[:, 0]
    none: Any = np.zeros(facts.rollout_steps, np.float32)
    transition = Transition(seen, action, reward, seen, over, over, {})
    return Played(transition, Finished(Average(none, none), Average(none, none)), seen, begun)
