"""Changes of an environment, each a function from environments to environments; and running moments for the rest.

What must see many copies at once, such as the normalisation of observations, is no wrapper: `Moments` live in the
learner's state, so that an evaluation uses those of training and does not move them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.rl.environment import Box, Environment, Step

LIMITLESS = 1e30  # some environments write the largest float32 for no bound


def time_limit(environment: Environment, steps: int) -> Environment:
    """Returns the environment whose episodes are truncated after `steps` steps.

    Raises:
      ConfigError: there are fewer than one.
    """
    if steps < 1:
        raise ConfigError(f"time_limit: {steps} steps must be 1 or more")

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        state, observation = environment.reset(key)
        return (state, jnp.int32(0)), observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        inner, answer = environment.step(key, state[0], action)
        time = state[1] + 1
        return (inner, time), answer._replace(truncated=answer.truncated | (time >= steps))

    return environment._replace(reset=reset, step=step, render=_of_first(environment.render))


def limit_ends(environment: Environment) -> Environment:
    """Returns the environment whose episodes count as over where they are cut off: what not to do (Pardo et al., 2018).

    Learners then take what comes after the limit for worth nothing; see `research/time_limits`.
    """

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        after, answer = environment.step(key, state, action)
        over = answer.terminated | answer.truncated
        return after, answer._replace(terminated=over, truncated=jnp.zeros_like(over))

    return environment._replace(step=step)


def frame_stack(environment: Environment, count: int) -> Environment:
    """Returns the environment whose observations are the last `count` ones, `[..., C * count]`, the oldest first.

    At an episode's start its first observation stands for those that are not there (Mnih et al., 2015).

    Raises:
      ConfigError: there are fewer than one.
    """
    if count < 1:
        raise ConfigError(f"frame_stack: {count} frames must be 1 or more")

    def stacked(frames: jax.Array) -> jax.Array:
        return jnp.moveaxis(frames, 0, -2).reshape(*frames.shape[1:-1], -1)

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        state, observation = environment.reset(key)
        frames = jnp.broadcast_to(observation[None], (count, *observation.shape))
        return (state, frames), stacked(frames)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        inner, answer = environment.step(key, state[0], action)
        frames = jnp.concatenate([state[1][1:], answer.observation[None]])
        return (inner, frames), answer._replace(observation=stacked(frames))

    low, high = (np.concatenate([bound] * count, axis=-1) for bound in environment.observations)
    render = _of_first(environment.render)
    return environment._replace(reset=reset, step=step, observations=Box(low, high), render=render)


def _of_first(render: Any) -> Any:
    """Returns what draws a state that is the first of a pair."""
    return None if render is None else lambda state: render(state[0])


def clip_actions(environment: Environment) -> Environment:
    """Returns the environment that takes any numbers as actions, and keeps them within its bounds.

    Raises:
      ConfigError: its actions are no numbers.
    """
    actions = environment.actions
    if not isinstance(actions, Box):
        raise ConfigError(f"clip_actions: {environment.name} has {actions.num} discrete actions")

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        return environment.step(key, state, jnp.clip(action, actions.low, actions.high))

    anything = Box(np.full(actions.shape, -np.inf, np.float32), np.full(actions.shape, np.inf, np.float32))
    return environment._replace(step=step, actions=anything)


def unit_actions(environment: Environment) -> Environment:
    """Returns the environment whose actions are numbers from -1 to 1, for those between its bounds.

    Raises:
      ConfigError: its actions are no numbers, or have no bounds.
    """
    actions = environment.actions
    if not isinstance(actions, Box) or not np.isfinite([actions.low, actions.high]).all():
        raise ConfigError(f"unit_actions: {environment.name} has no actions between finite bounds, but {actions}")

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        return environment.step(key, state, from_unit(actions, action[None])[0])

    ones = np.ones(actions.shape, np.float32)
    return environment._replace(step=step, actions=Box(-ones, ones))


def unit_observations(environment: Environment) -> Environment:
    """Returns the environment whose observations are numbers from -1 to 1, for those between its bounds.

    Raises:
      ConfigError: they have no finite bounds.
    """
    space = environment.observations
    if not (np.abs([space.low, space.high]) < LIMITLESS).all():
        raise ConfigError(f"unit_observations: {environment.name} has no observations between finite bounds: {space}")

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        state, observation = environment.reset(key)
        return state, to_unit(space, observation[None])[0]

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        after, answer = environment.step(key, state, action)
        return after, answer._replace(observation=to_unit(space, answer.observation[None])[0])

    ones = np.ones(space.shape, np.float32)
    return environment._replace(reset=reset, step=step, observations=Box(-ones, ones))


def from_unit(space: Any, values: jax.Array) -> jax.Array:
    """Returns numbers `[B, ...]` from -1 to 1 moved to between the bounds of a `Box`."""
    middle, reach = 0.5 * (space.high + space.low), 0.5 * (space.high - space.low)
    return middle[None] + reach[None] * values


def to_unit(space: Any, values: jax.Array) -> jax.Array:
    """Returns numbers `[B, ...]` between the bounds of a `Box` moved to from -1 to 1."""
    middle, reach = 0.5 * (space.high + space.low), 0.5 * (space.high - space.low)
    scale = np.where(reach > 0, 1 / np.where(reach > 0, reach, 1), 0)  # what cannot vary is 0
    return (values - middle[None]) * scale[None]


class Moments(NamedTuple):
    """Mean and variance of all that was seen, number by number.

    Attributes:
      count: float32 [].
      mean: float32 `[...]`.
      variance: float32 `[...]`.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: jax.Array
    variance: jax.Array


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Returns the moments of nothing, which change nothing: mean 0 and variance 1."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def with_seen(moments: Moments, values: jax.Array) -> Moments:
    """Returns the moments with `[N, ...]` values more (Chan et al., 1983)."""
    count = moments.count + len(values)
    share = len(values) * jnp.reciprocal(count)
    apart = values.mean(axis=0) - moments.mean
    variance = (1 - share) * moments.variance + share * values.var(axis=0) + share * (1 - share) * jnp.square(apart)
    return Moments(count, moments.mean + share * apart, variance)


def standardized(moments: Moments, values: jax.Array, most: float = 10.0) -> jax.Array:
    """Returns values `[N, ...]` in deviations from the mean, at most `most` of them."""
    scale = jax.lax.rsqrt(moments.variance + 1e-8)
    return jnp.clip((values - moments.mean[None]) * scale[None], -most, most)
