"""Robots: environments of MuJoCo Playground (extra `robotics`), simulated on the device."""

from __future__ import annotations

import subprocess
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_counts, nearest
from foldax.rl import headless
from foldax.rl.environment import Box, Environment, Step
from foldax.rl.wrappers import time_limit


def playground(name: str, **settings: Any) -> Environment:
    """Returns an environment of MuJoCo Playground (Zakka et al., 2025), such as "CartpoleBalance" or "CheetahRun".

    Actions are numbers from -1 to 1, each done `action_repeat` times (mostly once); rewards of these are summed.
    Episodes are truncated after `episode_length` steps of the simulation's control (mostly 1000). Where an observation
    has several parts, it is the one that the robot itself can see ("state"). Pictures (`render`) need OpenGL; without
    a screen EGL. Robots beside those of the DeepMind Control Suite download their shapes at first use.

    Args:
      name: one of `mujoco_playground.registry.ALL_ENVS`.
      **settings: of its configuration, such as `episode_length`. `impl` is "jax" unless said: it runs on every device.

    Raises:
      ConfigError: the package is not installed, has no such environment, or that has no such setting or no "state" to
        see; a setting is out of its range; or the shapes cannot be downloaded.
    """
    headless.prepare()  # MuJoCo asks for it when it is imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports, which it does not need here
            from mujoco_playground import registry
    except ModuleNotFoundError as error:
        raise ConfigError("environments of MuJoCo Playground need it: pip install 'foldax[robotics]'") from error
    if name not in registry.ALL_ENVS:
        known = list(registry.ALL_ENVS)
        raise ConfigError(
            f"MuJoCo Playground has no environment {name!r}{nearest(name, known)} (it has {', '.join(known)})"
        )
    defaults = registry.get_default_config(name)
    for field in settings:
        if field not in defaults:
            known = list(defaults)
            raise ConfigError(f"{name} has no setting {field!r}{nearest(field, known)} (it has {', '.join(known)})")
    length, repeat = (settings.get(field, defaults[field]) for field in ("episode_length", "action_repeat"))
    check_counts(episode_length=length, action_repeat=repeat)
    try:
        # Learners are made inside of traced programs; the model's arrays are facts.
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            world = registry.load(name, config_overrides=({"impl": "jax"} if "impl" in defaults else {}) | settings)
            size = world.observation_size
    except (subprocess.CalledProcessError, OSError) as error:
        raise ConfigError(f"{name} needs shapes that cannot be downloaded: {error}") from error
    if isinstance(size, dict) and "state" not in size:
        raise ConfigError(f"{name}: observations have no part 'state', only {', '.join(size)}")

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        with jax.numpy_rank_promotion("allow"):
            state = world.reset(jax.random.key_data(key))  # kept in the state, where checkpoints want plain numbers
        return state, _seen(state.obs)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        reward = jnp.float32(0)
        for _ in range(repeat):
            with jax.numpy_rank_promotion("allow"):
                state = world.step(state, action)
            reward = reward + state.reward
        over = jnp.asarray(state.done, bool)
        return state, Step(_seen(state.obs), reward, over, jnp.zeros_like(over))

    def render(state: Any) -> np.ndarray:
        try:
            return np.asarray(world.render(state, camera=0 if world.mj_model.ncam else None))
        except Exception as error:  # MuJoCo's own, which tell of a screen that is not there
            raise ConfigError(f"{name} cannot be drawn: {error}") from error

    shape = np.atleast_1d(size["state"] if isinstance(size, dict) else size)
    anything, ones = np.full(shape, np.inf, np.float32), np.ones(world.action_size, np.float32)
    made = Environment(reset, step, Box(-anything, anything), Box(-ones, ones), name, render)
    return time_limit(made, -(-length // repeat))


def _seen(observation: Any) -> jax.Array:
    part = observation["state"] if isinstance(observation, dict) else observation
    return jnp.asarray(part, jnp.float32)
