"""Adapter to MuJoCo Playground (extra `robotics`): robots, simulated on the device."""

import functools
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_positive
from foldax.extras import import_extra
from foldax.learner import Key
from foldax.rl import headless
from foldax.rl.adapters import check_name
from foldax.rl.environment import Environment, State, Step
from foldax.rl.spaces import Box
from foldax.rl.wrappers import time_limit


def playground(name: str, **settings: Any) -> Environment:
    """Makes an environment of MuJoCo Playground (Zakka et al., 2025), such as "CartpoleBalance" or "CheetahRun".

    Actions are in [-1, 1]; each is repeated `action_repeat` times (1 in most environments) and the rewards are summed.
    Episodes are truncated after `episode_length` control steps (1000 in most). Of observations with several parts,
    the one that a policy on the robot can measure ("state") is taken. Rendering needs OpenGL, and without a screen EGL.
    Robots other than those of the DeepMind Control Suite download their meshes at first use.

    Args:
      name: one of `mujoco_playground.registry.ALL_ENVS`.
      **settings: fields of its configuration, such as `episode_length`. `impl` is "jax" by default, which runs on every
        device.

    Raises:
      ConfigError: the package is not installed, it has no such environment, the environment has no such setting or no
        observation "state", a setting is out of its range, or the meshes cannot be downloaded.
    """
    environment, size, episode_length, action_repeat = _load(name, settings)
    import mujoco  # installed, since Playground is

    def reset(key: Key) -> tuple[State, jax.Array]:
        with jax.numpy_rank_promotion("allow"):
            # The state keeps the key, and checkpoints store plain numbers.
            state = environment.reset(jax.random.key_data(key))
        return state, _policy_observation(state.obs)

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, Step]:
        reward = jnp.float32(0)
        for _ in range(action_repeat):
            with jax.numpy_rank_promotion("allow"):
                state = environment.step(state, action)
            reward = reward + state.reward
        terminated = jnp.asarray(state.done, bool)
        return state, Step(_policy_observation(state.obs), reward, terminated, jnp.zeros_like(terminated))

    @functools.cache
    def renderer_and_data() -> tuple[Any, Any]:
        # Cached: making a renderer takes longer than rendering an image.
        try:
            return mujoco.Renderer(environment.mj_model), mujoco.MjData(environment.mj_model)
        except Exception as error:  # of many types, all about a missing screen
            raise ConfigError(f"{name} cannot be rendered: {error}") from error

    def render(state: State) -> np.ndarray:
        renderer, data = renderer_and_data()
        for field in ("qpos", "qvel", "mocap_pos", "mocap_quat", "xfrc_applied"):
            setattr(data, field, getattr(state.data, field))
        mujoco.mj_forward(environment.mj_model, data)
        renderer.update_scene(data, camera=0 if environment.mj_model.ncam else -1)
        return renderer.render().copy()

    # Playground does not declare bounds of observations.
    bounds = np.full(np.atleast_1d(size), np.inf, np.float32), np.ones(environment.action_size, np.float32)
    observation_space, action_space = (Box(-bound, bound) for bound in bounds)
    adapted = Environment(reset, step, observation_space, action_space, name, render)
    return time_limit(adapted, -(-episode_length // action_repeat))


def _load(name: str, settings: dict[str, Any]) -> tuple[Any, Any, int, int]:
    """Loads Playground's environment; also returns the shape of its observations, episode length and action repeat."""
    headless.prepare()  # MuJoCo reads the environment variables when it is imported
    registry = import_extra("mujoco_playground", "robotics", ConfigError).registry
    check_name(name, registry.ALL_ENVS, "MuJoCo Playground has no environment")
    defaults = registry.get_default_config(name)
    for field in settings:
        check_name(field, defaults, f"{name} has no setting")
    fields = ("episode_length", "action_repeat")
    episode_length, action_repeat = (settings.get(field, defaults[field]) for field in fields)
    check_positive(episode_length=episode_length, action_repeat=action_repeat)
    try:
        # Learners are made inside traced programs, but the model's arrays must not be traced.
        # MuJoCo's own code broadcasts ranks.
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            overrides = {"impl": "jax"} if "impl" in defaults else {}
            environment = registry.load(name, config_overrides=overrides | settings)
            size = environment.observation_size
    except (subprocess.CalledProcessError, OSError) as error:
        raise ConfigError(f"{name} needs meshes that cannot be downloaded: {error}") from error
    if isinstance(size, dict) and "state" not in size:
        problem = "observations have no part 'state', which the policy would receive"
        raise ConfigError(f"{name}: {problem}; they have {', '.join(size)}")
    return environment, size["state"] if isinstance(size, dict) else size, episode_length, action_repeat


def _policy_observation(observation: Any) -> jax.Array:
    part = observation["state"] if isinstance(observation, dict) else observation
    return jnp.asarray(part, jnp.float32)
