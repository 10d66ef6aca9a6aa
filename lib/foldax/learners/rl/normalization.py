"""Normalisation of observations and rewards by running statistics, which are part of the learner's state.

Evaluation uses the statistics of training and leaves them unchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from foldax import rl
from foldax.rl.environment import Observation
from foldax.rl.wrappers import Moments, init_moments, normalize, update_moments

CLIP_RANGE = 10.0  # normalised values are clipped to [-10, 10], as in OpenAI Baselines


class RunningStatistics(NamedTuple):
    """Statistics of observations and returns over the whole of training.

    Attributes:
      observations: elementwise mean and variance of observations, in a tree like theirs; None: observations are not
        normalised.
      returns: variance of the discounted returns so far at every step; None: rewards are not normalised.
      running_return: discounted return so far of every running episode, float32 `[N]`.
    """

    observations: Any
    returns: Moments | None
    running_return: jax.Array


def init_statistics(
    observation: Observation, normalize_observations: bool, normalize_rewards: bool
) -> RunningStatistics:
    """Creates empty statistics for N environments whose observations are `[N, ...]`.

    >>> statistics = init_statistics(jnp.zeros((4, 3)), normalize_observations=True, normalize_rewards=False)
    >>> statistics.observations.mean.shape, statistics.returns, statistics.running_return.shape
    ((3,), None, (4,))
    """
    values, _ = rl.split_mask(observation)
    observations = jax.tree.map(lambda x: init_moments(x.shape[1:]), values) if normalize_observations else None
    returns = init_moments(()) if normalize_rewards else None
    return RunningStatistics(observations, returns, jnp.zeros(rl.num_rows(observation)))


def reset_running_returns(statistics: RunningStatistics, restarted: jax.Array) -> RunningStatistics:
    """Sets all running returns to 0 where `restarted`, bool [], says that all environments were reset."""
    return statistics._replace(running_return=jnp.where(restarted, 0.0, statistics.running_return))


def normalize_observations(statistics: RunningStatistics, observation: Observation) -> Observation:
    """Normalises observations `[N, ...]` to mean 0 and variance 1, or returns them as they are; never their mask."""
    if statistics.observations is None:
        return observation
    if isinstance(observation, rl.MaskedObservation):
        return observation._replace(observation=normalize_observations(statistics, observation.observation))
    return _map_moments(lambda moments, x: normalize(moments, x, CLIP_RANGE), statistics.observations, observation)


def normalize_rollout(
    statistics: RunningStatistics, transitions: rl.Transition, discount: chex.Numeric
) -> tuple[RunningStatistics, rl.Transition]:
    """Normalises a rollout `[T, N, ...]` and adds it to the statistics.

    Observations are normalised by the statistics before this rollout, with which the policy acted: otherwise the policy
    that learns would not be the one that acted. Rewards are divided by the standard deviation of the discounted returns
    so far (Engstrom et al., 2020), this rollout included.
    """
    chex.assert_rank([transitions.reward, transitions.terminated, transitions.truncated], 2)
    apply = jax.vmap(lambda observation: normalize_observations(statistics, observation))
    normalized = transitions._replace(observation=apply(transitions.observation))
    normalized = normalized._replace(next_observation=apply(transitions.next_observation))
    # Observations: the statistics take in the unnormalised ones.
    if statistics.observations is not None:
        values, _ = rl.split_mask(transitions.observation)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), values)
        statistics = statistics._replace(observations=_map_moments(update_moments, statistics.observations, rows))
    # Rewards: scaled by the statistics that include this rollout.
    if statistics.returns is not None:
        running_return, returns = discounted_returns_so_far(statistics.running_return, transitions, discount)
        moments = update_moments(statistics.returns, returns.reshape(-1))
        reward = jnp.clip(transitions.reward * jax.lax.rsqrt(moments.variance + 1e-8), -CLIP_RANGE, CLIP_RANGE)
        statistics = statistics._replace(returns=moments, running_return=running_return)
        normalized = normalized._replace(reward=reward)
    return statistics, normalized


def discounted_returns_so_far(
    running_return: jax.Array, transitions: rl.Transition, discount: chex.Numeric
) -> tuple[jax.Array, jax.Array]:
    """Discounts and sums the rewards of each episode from its start: `G_t = discount * G_(t-1) + reward_t`.

    Args:
      running_return: returns before the first step, `[N]`.
      transitions: `[T, N, ...]`.
      discount: in [0, 1]; may be traced.

    Returns:
      The returns after the last step, `[N]` (0 where the episode ended), and those with each step, `[T, N]`.
    """

    def step(running_return: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, done = now
        total = discount * running_return + reward
        return jnp.where(done, 0.0, total), total

    return jax.lax.scan(step, running_return, (transitions.reward, transitions.terminated | transitions.truncated))


def _map_moments(function: Callable[[Moments, jax.Array], Any], moments: Any, values: Observation) -> Any:
    """Applies a function to the moments and values of each part of observations."""
    return jax.tree.map(function, moments, values, is_leaf=lambda x: isinstance(x, Moments))
