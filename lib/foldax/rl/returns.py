"""Returns and advantages over time, `[T, ...]`, which never cross the end of an episode.

A terminated episode has no further reward; a truncated one bootstraps from the value of its last observation.
"""

import chex
import jax
import jax.numpy as jnp
from chex import Numeric
from jaxtyping import Array, Bool, Float

Values = Float[Array, " T *E"]
Flags = Bool[Array, " T *E"]


def one_step_targets(rewards: Values, next_values: Values, terminated: Flags, discount: Numeric) -> Values:
    """TD(0) targets `reward + discount * next value`, without the next value where the episode terminated.

    Args:
      rewards: float `[T, ...]`.
      next_values: values of the observations after the steps, `[T, ...]`; at an episode's end, of its last observation.
      terminated: bool `[T, ...]`.
      discount: gamma, in [0, 1]; may be traced.

    Returns:
      Targets `[T, ...]`.

    >>> print(one_step_targets(jnp.ones(2), jnp.full(2, 10.0), jnp.array([False, True]), 0.5))
    [6. 1.]
    """
    chex.assert_equal_shape([rewards, next_values, terminated])
    return rewards + discount * jnp.where(terminated, 0.0, next_values)


def generalized_advantages(
    rewards: Values,
    values: Values,
    next_values: Values,
    terminated: Flags,
    truncated: Flags,
    discount: Numeric,
    gae_lambda: Numeric,
) -> Values:
    """Generalised advantage estimates, GAE (Schulman et al., 2016).

    Args:
      rewards: float `[T, ...]`.
      values: values of the observations before the steps, `[T, ...]`.
      next_values: values of the observations after them, `[T, ...]`; at an episode's end, of its last observation.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: gamma, in [0, 1]; may be traced.
      gae_lambda: lambda, in [0, 1]: 0 is the one-step TD error, 1 the return minus the value; may be traced.

    Returns:
      Advantages `[T, ...]`.

    >>> zeros, never = jnp.zeros(3), jnp.zeros(3, bool)
    >>> print(generalized_advantages(jnp.ones(3), zeros, zeros, never, never, discount=0.5, gae_lambda=1.0))
    [1.75 1.5  1.  ]
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    td_errors = one_step_targets(rewards, next_values, terminated, discount) - values
    decay = discount * gae_lambda * (1.0 - (terminated | truncated).astype(jnp.float32))

    # A_t = delta_t + gamma lambda A_(t+1)  (equation 16)
    def backward(next_advantage: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        td_error, decay = now
        advantage = td_error + decay * next_advantage
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(values[0]), (td_errors, decay), reverse=True)[1]


def n_step_targets(
    rewards: Values, next_values: Values, terminated: Flags, truncated: Flags, discount: Numeric, steps: int
) -> Values:
    """N-step returns: up to `steps` discounted rewards, then the value of the last observation, `[T, ...]`.

    Fewer rewards are summed where the episode, or the sequence, ends before. Source: Sutton & Barto (2018), chapter 7.

    Args:
      rewards: float `[T, ...]`.
      next_values: values of the observations after the steps, `[T, ...]`; at an episode's end, of its last observation.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: gamma, in [0, 1]; may be traced.
      steps: maximum number of rewards that are summed, n.

    >>> never = jnp.zeros(3, bool)
    >>> print(n_step_targets(jnp.ones(3), jnp.full(3, 4.0), never, never, discount=0.5, steps=2))
    [2.5 2.5 3. ]
    """
    chex.assert_equal_shape([rewards, next_values, terminated, truncated])
    done = terminated | truncated
    one_step = one_step_targets(rewards, next_values, terminated, discount)
    length = rewards.shape[0]
    is_last = jnp.arange(length).reshape(-1, *[1] * (rewards.ndim - 1)) == length - 1
    # Each pass turns k-step targets into those of k + 1 steps.
    targets = one_step
    for _ in range(min(steps, length) - 1):
        following = jnp.concatenate([targets[1:], jnp.zeros_like(targets[:1])])
        targets = jnp.where(done | is_last, one_step, rewards + discount * following)
    return targets


def lambda_returns(
    rewards: Values, next_values: Values, terminated: Flags, truncated: Flags, discount: Numeric, lambda_: Numeric
) -> Values:
    """Lambda-returns: exponentially weighted means of the n-step returns of all n (Watkins, 1989; Daley & Amato, 2019).

    With `next_values` of the greedy actions these are the targets of Peng's Q(lambda) (Peng & Williams, 1994), which
    PQN uses: the actions that were taken are followed, greedy or not.

    Args:
      rewards: float `[T, ...]`.
      next_values: values of the observations after the steps, `[T, ...]`; at an episode's end, of its last observation.
      terminated: bool `[T, ...]`.
      truncated: bool `[T, ...]`.
      discount: gamma, in [0, 1]; may be traced.
      lambda_: in [0, 1]: 0 gives one-step targets, 1 the return of the whole sequence; may be traced.

    Returns:
      Lambda-returns `[T, ...]`.

    >>> never = jnp.zeros(2, bool)
    >>> print(lambda_returns(jnp.ones(2), jnp.full(2, 4.0), never, never, discount=0.5, lambda_=1.0))
    [2.5 3. ]
    """
    chex.assert_equal_shape([rewards, next_values, terminated, truncated])
    one_step = one_step_targets(rewards, next_values, terminated, discount)
    # Later steps count only within the episode; at its end, and the sequence's, the value stands for them.
    decay = discount * lambda_ * (1.0 - (terminated | truncated).astype(jnp.float32))

    def backward(next_return: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        target, next_value, decay = now
        total = target + decay * (next_return - next_value)
        return total, total

    return jax.lax.scan(backward, next_values[-1], (one_step, next_values, decay), reverse=True)[1]


def explained_variance(values: jax.Array, value_targets: jax.Array) -> jax.Array:
    """Fraction of the targets' variance that the values explain: 1 is perfect, 0 as good as a constant, below is worse.

    Args:
      values: predictions of the value function, `[...]`.
      value_targets: their targets, of the same shape.

    Returns:
      A scalar; 0 where the targets do not vary.

    >>> print(explained_variance(jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])))
    0.75
    """
    chex.assert_equal_shape([values, value_targets])
    variance, residual = value_targets.var(), (value_targets - values).var()
    # 1 - Var[target - value] / Var[target], as a product so that a sweep has the same bits
    return jnp.where(variance > 1e-8, 1.0 - residual * jnp.reciprocal(jnp.maximum(variance, 1e-8)), 0.0)
