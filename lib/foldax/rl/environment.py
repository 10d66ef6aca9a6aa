"""Environments: pure functions of a state, an action and a key; how to act in many at once, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.learner import Average

State = Any  # any pytree of arrays


class Discrete(NamedTuple):
    """Actions 0 to `num` - 1, int32 []."""

    num: int


class Box(NamedTuple):
    """Numbers between two bounds, float32.

    Attributes:
      low: `shape`, which may have -inf.
      high: `shape`, which may have inf.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation or action."""
        return self.low.shape


class Step(NamedTuple):
    """What an environment answers to an action.

    Attributes:
      observation: the one after the action, also where the episode is over.
      reward: float32 [].
      terminated: bool [], the episode is over for good: there is nothing more to gain.
      truncated: bool [], the episode is cut off, as by a limit of time: there would have been more. Both may be true.
    """

    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Environment(NamedTuple):
    """A world to act in. Nothing begins anew by itself: see `act`.

    Attributes:
      reset: `key -> (state, observation)`.
      step: `(key, state, action) -> (state, Step)`.
      observations: the space of observations.
      actions: the space of actions.
      name: for errors.
      render: `state -> image`, uint8 `[H, W, 3]`: a picture of one state, on the host; None if there is none.
    """

    reset: Callable[[jax.Array], tuple[State, jax.Array]]
    step: Callable[[jax.Array, State, jax.Array], tuple[State, Step]]
    observations: Box
    actions: Discrete | Box
    name: str = "environment"
    render: Callable[[State], np.ndarray] | None = None


class Actors(NamedTuple):
    """N copies of an environment, each in the midst of an episode.

    Attributes:
      state: of the copies, `[N, ...]`.
      observation: what they see now, `[N, ...]`.
      episode_return: float32 `[N]`, rewards so far.
      episode_length: int32 `[N]`, steps so far.
    """

    state: State
    observation: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


class Transition(NamedTuple):
    """One step of N copies, or T of them with a leading axis.

    Attributes:
      observation: `[N, ...]`, what was seen.
      action: `[N, ...]`.
      reward: float32 `[N]`.
      next_observation: `[N, ...]`, what was seen then; at the end of an episode its last one, never that of the next.
      terminated: bool `[N]`.
      truncated: bool `[N]`.
      extras: what the policy said beside the action, by name.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    extras: dict[str, jax.Array]


class Finished(NamedTuple):
    """Episodes that ended, as means that can be merged.

    Attributes:
      episode_return: sums of rewards.
      episode_length: in steps.
    """

    episode_return: Average
    episode_length: Average


class Played(NamedTuple):
    """What was played outside of the learner, by its own policy: the batch of an update that acts nowhere itself.

    Attributes:
      seen: `[T, N, ...]`.
      finished: `[T]`, of the episodes that ended with each of the steps.
      observation: `[T, N, ...]`, what the copies see then; of a new episode where one ended.
      begun: bool `[T]`, whether all copies began new episodes with a step, whatever was before.
    """

    seen: Transition
    finished: Finished
    observation: jax.Array
    begun: jax.Array


class Explore(NamedTuple):
    """Observations that a learner's `predict` is to answer as it acts while it learns, not as well as it can.

    Attributes:
      observation: `[N, ...]`.
    """

    observation: jax.Array


Policy = Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`(observation [N, ...], key) -> (action [N, ...], extras by name)`."""


def begin(environment: Environment, key: jax.Array, count: int) -> Actors:
    """Returns `count` copies at the start of their episodes."""
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, count))
    return Actors(state, observation, jnp.zeros(count), jnp.zeros(count, jnp.int32))


def act(
    environment: Environment, actors: Actors, action: jax.Array, key: jax.Array
) -> tuple[Actors, Transition, Finished]:
    """Takes a step with every copy; those whose episode ends begin a new one, whose observation only `Actors` has."""
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(actors.episode_return)))
    state, step = jax.vmap(environment.step)(keys[:, 0], actors.state, action)
    over = step.terminated | step.truncated
    fresh = jax.vmap(environment.reset)(keys[:, 1])
    state, observation = jax.tree.map(lambda new, old: _where(over, new, old), fresh, (state, step.observation))
    total, length = actors.episode_return + step.reward, actors.episode_length + 1
    ended = over.astype(jnp.float32)
    finished = Finished(
        Average((total * ended).sum(), ended.sum()), Average((length.astype(jnp.float32) * ended).sum(), ended.sum())
    )
    after = Actors(state, observation, jnp.where(over, 0.0, total), jnp.where(over, 0, length))
    seen = (actors.observation, action, step.reward, step.observation, step.terminated, step.truncated)
    return after, Transition(*seen, extras={}), finished


def rollout(
    environment: Environment, policy: Policy, actors: Actors, key: jax.Array, steps: int
) -> tuple[Actors, Transition, Finished]:
    """Returns the copies after `steps` steps each, what they did `[steps, N, ...]`, and which episodes ended."""

    def one(actors: Actors, key: jax.Array) -> tuple[Actors, tuple[Transition, Finished]]:
        of_policy, of_world = jax.random.split(key)
        action, extras = policy(actors.observation, of_policy)
        actors, transition, finished = act(environment, actors, action, of_world)
        return actors, (transition._replace(extras=extras), finished)

    actors, (transitions, finished) = jax.lax.scan(one, actors, jax.random.split(key, steps))
    return actors, transitions, jax.tree.map(lambda x: x.sum(axis=0), finished)


def ended(finished: Finished) -> dict[str, Average]:
    """Returns "return" and "length" of all episodes that ended, as a learner's `update` reports them."""
    return jax.tree.map(jnp.sum, {"return": finished.episode_return, "length": finished.episode_length})


def episodes(
    environment: Environment, policy: Policy, key: jax.Array, count: int, most_steps: int
) -> dict[str, jax.Array]:
    """Plays one episode with each of `count` copies, in one compiled loop that ends with the last of them.

    Args:
      environment: where.
      policy: how.
      key: of all randomness.
      count: N.
      most_steps: after which an episode is left off.

    Returns:
      "return" float32 `[N]`, "length" int32 `[N]` and "finished" bool `[N]`: whether the episode ended by itself.
    """

    def running(carry: Any) -> jax.Array:
        step, _, found = carry
        return (step < most_steps) & ~found["finished"].all()

    def one(carry: Any) -> Any:
        step, actors, found = carry
        of_policy, of_world = jax.random.split(jax.random.fold_in(key, step + 1))
        action, _ = policy(actors.observation, of_policy)
        actors, transition, _ = act(environment, actors, action, of_world)
        live = ~found["finished"]
        found = {
            "return": found["return"] + jnp.where(live, transition.reward, 0.0),
            "length": found["length"] + live,
            "finished": found["finished"] | transition.terminated | transition.truncated,
        }
        return step + 1, actors, found

    nothing = {"return": jnp.zeros(count), "length": jnp.zeros(count, jnp.int32), "finished": jnp.zeros(count, bool)}
    start = begin(environment, jax.random.fold_in(key, 0), count)
    return jax.lax.while_loop(running, one, (jnp.int32(0), start, nothing))[2]


def evaluated(
    environment: Environment, policy: Policy, key: jax.Array, count: int, most_steps: int
) -> dict[str, jax.Array]:
    """Plays `episodes` and returns "return", "length" and "finished" of each, float32 `[N]`, as `evaluate` does."""
    found = episodes(environment, policy, key, count, most_steps)
    return {name: value.astype(jnp.float32) for name, value in found.items()}


def _where(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
