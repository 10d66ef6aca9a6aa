"""Observations and rewards in scales of their own, which are learned beside the policy.

Their moments are part of the learner's state: an evaluation uses those of training and does not move them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax import rl
from foldax.rl.wrappers import Moments, no_moments, standardized, with_seen

LARGEST = 10.0  # deviations; what is further off is cut


class Scales(NamedTuple):
    """What was seen so far, as far as it is needed.

    Attributes:
      observations: their moments, number by number; None: observations stay as they are.
      returns: moments of the discounted returns so far, at every step; None: rewards stay as they are.
      running: float32 `[N]`, these returns of the episodes that are going on.
    """

    observations: Moments | None
    returns: Moments | None
    running: jax.Array


def no_scales(observation: jax.Array, observations: bool, rewards: bool) -> Scales:
    """Returns the scales before anything was seen, of copies that see `[N, ...]`, for observations, rewards or both."""
    of_observations = no_moments(observation.shape[1:]) if observations else None
    return Scales(of_observations, no_moments(()) if rewards else None, jnp.zeros(len(observation)))


def begun(scales: Scales, when: jax.Array) -> Scales:
    """Returns the scales of copies that have begun new episodes, if `when` bool []."""
    return scales._replace(running=jnp.where(when, 0.0, scales.running))


def observed(scales: Scales, observation: jax.Array) -> jax.Array:
    """Returns observations `[N, ...]` in deviations from their mean."""
    if scales.observations is None:
        return observation
    return standardized(scales.observations, observation, LARGEST)


def scaled(scales: Scales, seen: rl.Transition, discount: Any) -> tuple[Scales, rl.Transition]:
    """Returns the scales with what was seen `[T, N, ...]`, and that in scale.

    Observations are scaled as they were when they were acted on, without those of now: else the policy that learns
    would not be the one that acted. Rewards are divided by the deviation of the discounted returns so far (Engstrom et
    al., 2020), those of now included.
    """
    look = jax.vmap(lambda observation: observed(scales, observation))
    shown = seen._replace(observation=look(seen.observation), next_observation=look(seen.next_observation))
    if scales.observations is not None:
        rows = seen.observation.reshape(-1, *seen.observation.shape[2:])
        scales = scales._replace(observations=with_seen(scales.observations, rows))
    if scales.returns is not None:
        running, returns = running_returns(scales.running, seen, discount)
        moments = with_seen(scales.returns, returns.reshape(-1))
        reward = jnp.clip(seen.reward * jax.lax.rsqrt(moments.variance + 1e-8), -LARGEST, LARGEST)
        scales, shown = scales._replace(returns=moments, running=running), shown._replace(reward=reward)
    return scales, shown


def running_returns(running: jax.Array, seen: rl.Transition, discount: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the sums `[N]` after all steps, and `[T, N]` with each: of the rewards of its episode so far, discounted.

    Args:
      running: `[N]`, before the first step.
      seen: `[T, N, ...]`.
      discount: of all earlier rewards, at each step; may be traced.
    """

    def one(running: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, over = now
        total = discount * running + reward
        return jnp.where(over, 0.0, total), total

    return jax.lax.scan(one, running, (seen.reward, seen.terminated | seen.truncated))
