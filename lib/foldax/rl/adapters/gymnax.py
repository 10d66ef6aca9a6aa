"""Environments of gymnax (extra `rl`): classic control, MinAtar, bsuite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, nearest
from foldax.rl import rendering
from foldax.rl.environment import Box, Discrete, Environment, Step


def gymnax(name: str, **parameters: Any) -> Environment:
    """Returns an environment of gymnax (Lange, 2022), such as "CartPole-v1" or "Breakout-MinAtar".

    Classic control and MinAtar have pictures (`render`).

    Args:
      name: one of `gymnax.registered_envs`.
      **parameters: fields of its parameters, such as `max_steps_in_episode`.

    Raises:
      ConfigError: gymnax is not installed, or has no such environment, or that has no such parameter.
    """
    try:
        import gymnax as library
    except ModuleNotFoundError as error:
        raise ConfigError("environments of gymnax need it: pip install 'foldax[rl]' (Python 3.11)") from error
    if name not in library.registered_envs:
        known = list(library.registered_envs)
        raise ConfigError(f"gymnax has no environment {name!r}{nearest(name, known)} (it has {', '.join(known)})")
    world, settings = library.make(name)
    for field, value in parameters.items():
        if not hasattr(settings, field):
            known = list(vars(settings))
            raise ConfigError(f"{name} has no parameter {field!r}{nearest(field, known)} (it has {', '.join(known)})")
        settings = settings.replace(**{field: value})

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        observation, state = world.reset_env(key, settings)
        return jax.tree.map(jnp.asarray, state), jnp.asarray(observation, jnp.float32)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        observation, after, reward, terminated, _ = world.step_env(key, state, action, settings)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        truncated = world.is_truncated(after, settings)
        answer = (jnp.asarray(observation, jnp.float32), jnp.asarray(reward, jnp.float32).reshape(()))
        return after, Step(*answer, jnp.asarray(terminated, bool), jnp.asarray(truncated, bool))

    with jax.ensure_compile_time_eval():  # learners are made inside of traced programs, and spaces are facts
        actions = world.action_space(settings)
        space = Discrete(int(actions.n)) if hasattr(actions, "n") else _box(actions)
        seen = _box(world.observation_space(settings))
    return Environment(reset, step, seen, space, name, rendering.of_gymnax(name, world, settings))


def _box(space: Any) -> Box:
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
    return Box(low, high)
