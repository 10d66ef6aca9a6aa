"""Starts of episodes: a reset for each step, a pool of fresh starts for each rollout, or a cached set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.learner import Average, Key


class Resets(NamedTuple):
    """Where an environment whose episode ended starts the next one; made by `wrappers.pool_resets` or `cache_resets`.

    Attributes:
      kind: "every": a reset for each environment at each step, used where an episode ended, since under `vmap` a branch
        computes both sides; "pool": one of `num_states` fresh starts of a rollout; "cached": one of `num_states` starts
        that are computed once, at the beginning of the training.
      num_states: number of starts.

    >>> Resets().kind
    'every'
    """

    kind: str = "every"
    num_states: int = 0


def cached_starts(environment: Any, key: Key) -> tuple[Any, Any] | None:
    """Computes the starts `[num_states, ...]` of a whole training, states and observations; None unless "cached"."""
    if environment.resets.kind != "cached":
        return None
    return _fresh_starts(environment, jax.random.fold_in(key, 1))


def with_pool(environment: Any, environment_state: Any, key: Key) -> Any:
    """Gives the environments the pool of starts of a rollout; without a pool they stay as they are.

    The key is that of the rollout, and so of the update: the pool is the same wherever a chunk of updates began.

    Args:
      environment: the environment.
      environment_state: states of N environments.
      key: of the rollout.
    """
    if environment.resets.kind != "pool":
        return environment_state
    return environment_state._replace(starts=_fresh_starts(environment, jax.random.fold_in(key, 1)))


def without_pool(environment: Any, environment_state: Any, episodes: Any) -> tuple[Any, Any]:
    """Drops the pool after a rollout; the statistics then tell how many episodes began for each fresh start.

    Args:
      environment: the environment.
      environment_state: states of N environments.
      episodes: statistics of the rollout.
    """
    if environment.resets.kind != "pool":
        return environment_state, episodes
    ratio = Average(episodes.episode_return.count.sum(), jnp.float32(environment.resets.num_states))
    metrics = {**episodes.metrics, "episodes_per_start": ratio}
    return environment_state._replace(starts=None), episodes._replace(metrics=metrics)


def initial_states(environment: Any, starts: tuple[Any, Any] | None, keys: Key) -> tuple[Any, Any]:
    """States and observations at which N environments start: those of resets with keys `[N]`, or random starts."""
    if starts is None:
        return jax.vmap(environment.reset)(keys)
    count = len(jax.tree.leaves(starts)[0])
    index = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
    return jax.tree.map(lambda x: x[index], starts)


def _fresh_starts(environment: Any, key: Key) -> tuple[Any, Any]:
    return jax.vmap(environment.reset)(jax.random.split(key, environment.resets.num_states))
