"""Exploration by random actions: epsilon-greedy, and how epsilon falls during training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax import rl
from foldax.learner import Key


def epsilon_schedule(steps: chex.Numeric, final_epsilon: chex.Numeric, decay_steps: chex.Numeric) -> jax.Array:
    """Decreases epsilon linearly from 1 to `final_epsilon` over `decay_steps` environment steps, and holds it.

    Args:
      steps: environment steps so far, summed over all parallel environments.
      final_epsilon: in [0, 1]; may be traced.
      decay_steps: environment steps over which epsilon falls; below 1 counts as 1; may be traced.

    >>> [float(epsilon_schedule(steps, 0.5, 100.0)) for steps in (0, 50, 1000)]
    [1.0, 0.75, 0.5]
    """
    progress = jnp.clip(jnp.asarray(steps, jnp.float32) * jnp.reciprocal(jnp.maximum(decay_steps, 1.0)), 0.0, 1.0)
    return 1.0 + progress * (final_epsilon - 1.0)


def add_steps(steps: jax.Array, more: int) -> jax.Array:
    """Adds to a count of environment steps, int32 [], which stays at its largest value instead of turning negative.

    >>> int(add_steps(jnp.int32(2**31 - 5), 8)) == 2**31 - 1
    True
    """
    return jnp.minimum(steps, np.iinfo(np.int32).max - more) + more


def epsilon_greedy(
    q_values: jax.Array, epsilon: chex.Numeric, key: Key, legal_actions: jax.Array | None = None
) -> jax.Array:
    """Selects a uniformly random action with probability epsilon, else the greedy one.

    Args:
      q_values: `[N, A]`; those of illegal actions are below all others.
      epsilon: probability in [0, 1]; may be traced.
      key: randomness.
      legal_actions: actions that may be random, bool `[N, A]`; None: all.

    Returns:
      Actions int32 `[N]`.

    >>> epsilon_greedy(jnp.array([[0.0, 2.0], [3.0, 1.0]]), 0.0, jax.random.key(0)).tolist()
    [1, 0]
    """
    chex.assert_rank(q_values, 2)
    coin_key, action_key = jax.random.split(key)
    num_envs, num_actions = q_values.shape
    random_actions = rl.random_actions(rl.Discrete(num_actions), action_key, num_envs, legal_actions)
    is_random = jax.random.bernoulli(coin_key, epsilon, (num_envs,))
    return jnp.where(is_random, random_actions, q_values.argmax(axis=-1))
