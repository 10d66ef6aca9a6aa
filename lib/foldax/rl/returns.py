"""Returns and advantages of steps in time, `[T, ...]`, which never cross the end of an episode.

An episode that terminated has nothing more to gain; one that was truncated has the value of its last observation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def one_step_targets(rewards: jax.Array, next_values: jax.Array, terminated: jax.Array, discount: Any) -> jax.Array:
    """Returns `reward + discount * value of what came next`, without the value where the episode terminated."""
    return rewards + discount * jnp.where(terminated, 0.0, next_values)


def generalized_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Any,
    trace_decay: Any,
) -> jax.Array:
    """Returns generalised advantage estimates `[T, ...]` (GAE: Schulman et al., 2016).

    Args:
      rewards: float `[T, ...]`.
      values: of the observations before the steps.
      next_values: of the observations after them; at an episode's end, of its last observation.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: in [0, 1]; may be traced.
      trace_decay: lambda, in [0, 1]; 0 is one step, 1 all that follow; may be traced.
    """
    surprise = one_step_targets(rewards, next_values, terminated, discount) - values
    kept = discount * trace_decay * (1.0 - (terminated | truncated))

    def back(after: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        advantage = now[0] + now[1] * after
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(values[0]), (surprise, kept), reverse=True)[1]


def n_step_targets(
    rewards: jax.Array, next_values: jax.Array, terminated: jax.Array, truncated: jax.Array, discount: Any, steps: int
) -> jax.Array:
    """Returns the sum of up to `steps` discounted rewards, then the value of what was seen last, `[T, ...]`.

    Fewer steps are summed where the episode, or the sequence, ends before. Arguments as above.
    """
    over = terminated | truncated

    def later(x: jax.Array, by: int, fill: Any) -> jax.Array:
        return jnp.concatenate([x[by:], jnp.full_like(x[:by], fill)])

    total = one_step_targets(rewards, next_values, terminated, discount)
    # From the last of the steps back: each either ends the sum, or adds its reward to what follows.
    length = rewards.shape[0]
    targets = total
    for _ in range(min(steps, length) - 1):
        following = later(targets, 1, 0.0)
        last = jnp.arange(length).reshape(-1, *[1] * (rewards.ndim - 1)) == length - 1
        targets = jnp.where(over | last, total, rewards + discount * following)
    return targets


def lambda_returns(
    rewards: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Any,
    trace_decay: Any,
) -> jax.Array:
    """Returns lambda-returns `[T, ...]`: means of n-step targets of all n (Watkins, 1989; Daley & Amato, 2019).

    Where `next_values` are those of the best actions, these are Peng's Q(lambda) (Peng & Williams, 1994), of which PQN
    makes its targets: what was done is followed, though it may not have been the best. Arguments as above.
    """
    one_step = one_step_targets(rewards, next_values, terminated, discount)
    # What follows counts only within the episode; at its end, and at that of the sequence, the value stands for it.
    kept = discount * trace_decay * (1.0 - (terminated | truncated))

    def back(following: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        target, value, share = now
        total = target + share * (following - value)
        return total, total

    return jax.lax.scan(back, next_values[-1], (one_step, next_values, kept), reverse=True)[1]
