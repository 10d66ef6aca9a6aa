"""Robots: environments of MuJoCo Playground (extra `robotics`), simulated on the device."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, nearest
from foldax.rl.environment import Box, Environment, Step
from foldax.rl.wrappers import time_limit


def playground(name: str, *, episode_steps: int | None = None, **settings: Any) -> Environment:
    """Returns an environment of MuJoCo Playground (Zakka et al., 2025), such as "CartpoleBalance" or "CheetahRun".

    Actions are numbers from -1 to 1. Episodes are truncated at their limit. Where an observation has several parts,
    it is the one that the robot itself can see ("state"). Pictures (`render`) need OpenGL, without a screen
    EGL. Robots beside those of the DeepMind Control Suite download their shapes at first use.

    Args:
      name: one of `mujoco_playground.registry.ALL_ENVS`.
      episode_steps: after which an episode is truncated; the environment's own number (mostly 1000) if None.
      **settings: of its configuration, such as `ctrl_dt`. `impl` is "jax" unless said: it runs on every device.

    Raises:
      ConfigError: the package is not installed, has no such environment, or that has no such setting; the limit is
        below 1; or the shapes cannot be downloaded.
    """
    if not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo asks for it once, when it is imported
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
    try:
        # Learners are made inside of traced programs; the model's arrays are facts.
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            world = registry.load(name, config_overrides={"impl": "jax"} | settings)
            size = world.observation_size
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{name} needs shapes that cannot be downloaded: {error}") from error

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        with jax.numpy_rank_promotion("allow"):
            state = world.reset(jax.random.key_data(key))  # kept in the state, where checkpoints want plain numbers
        return state, _seen(state.obs)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        with jax.numpy_rank_promotion("allow"):
            after = world.step(state, action)
        over = jnp.asarray(after.done, bool)
        return after, Step(_seen(after.obs), jnp.asarray(after.reward, jnp.float32), over, jnp.zeros_like(over))

    def render(state: Any) -> np.ndarray:
        return np.asarray(world.render(state))

    shape = np.atleast_1d(size["state"] if isinstance(size, dict) else size)
    anything, ones = np.full(shape, np.inf, np.float32), np.ones(world.action_size, np.float32)
    made = Environment(reset, step, Box(-anything, anything), Box(-ones, ones), name, render)
    return time_limit(made, defaults.episode_length if episode_steps is None else episode_steps)


def _seen(observation: Any) -> jax.Array:
    part = observation["state"] if isinstance(observation, dict) else observation
    return jnp.asarray(part, jnp.float32)
