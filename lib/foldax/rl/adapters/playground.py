"""Robots: environments of MuJoCo Playground (extra `robotics`), simulated on the device."""

from __future__ import annotations

import functools
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
    world, size, length, repeat = _loaded(name, settings)
    import mujoco  # which is there now

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

    @functools.cache
    def stage() -> tuple[Any, Any]:
        """Returns what draws, which takes longer to make than a picture, and the bodies."""
        try:
            return mujoco.Renderer(world.mj_model), mujoco.MjData(world.mj_model)
        except Exception as error:  # of many kinds, all of which tell of a screen that is not there
            raise ConfigError(f"{name} cannot be drawn: {error}") from error

    def render(state: Any) -> np.ndarray:
        drawer, bodies = stage()
        for field in ("qpos", "qvel", "mocap_pos", "mocap_quat", "xfrc_applied"):
            setattr(bodies, field, getattr(state.data, field))
        mujoco.mj_forward(world.mj_model, bodies)
        drawer.update_scene(bodies, camera=0 if world.mj_model.ncam else -1)
        return drawer.render().copy()

    shape = np.atleast_1d(size)
    anything, ones = np.full(shape, np.inf, np.float32), np.ones(world.action_size, np.float32)
    made = Environment(reset, step, Box(-anything, anything), Box(-ones, ones), name, render)
    return time_limit(made, -(-length // repeat))


def _loaded(name: str, settings: dict[str, Any]) -> tuple[Any, Any, int, int]:
    """Returns the library's environment, the shape of what it sees, its steps and how often each is done."""
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
    return world, size["state"] if isinstance(size, dict) else size, length, repeat


def _seen(observation: Any) -> jax.Array:
    part = observation["state"] if isinstance(observation, dict) else observation
    return jnp.asarray(part, jnp.float32)
