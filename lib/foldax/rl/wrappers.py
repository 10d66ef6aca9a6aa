"""Wrappers, functions from an environment to an environment, and the running moments that normalisation needs.

Normalisation of observations is no wrapper, because its statistics are of many environments at once: `Moments` are part
of the learner's state, so that an evaluation uses those of training and leaves them unchanged.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_positive
from foldax.learner import Key
from foldax.rl.environment import Action, Environment, EnvironmentLike, HostSpec, Observation, State, Step
from foldax.rl.resets import Resets
from foldax.rl.spaces import Box, Space, Tuple, clip_action, describe_actions

E = TypeVar("E", bound=EnvironmentLike)
UNBOUNDED = 1e30  # bounds beyond count as infinite: some environments declare the largest float32


def time_limit(environment: Environment, max_steps: int) -> Environment:
    """Truncates episodes after `max_steps` steps.

    Raises:
      ConfigError: `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ConfigError(f"time_limit: max_steps is {max_steps}; it must be 1 or more")

    def reset(key: Key) -> tuple[State, Observation]:
        state, observation = environment.reset(key)
        return (state, jnp.int32(0)), observation

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        inner, time = state
        inner, result = environment.step(key, inner, action)
        return (inner, time + 1), result._replace(truncated=result.truncated | (time + 1 >= max_steps))

    return environment._replace(reset=reset, step=step, **_of_inner_state(environment))


def pool_resets(environment: Environment, num_states: int) -> Environment:
    """Lets episodes begin at one of `num_states` fresh starts of each rollout, instead of a reset at each step.

    For environments whose reset costs more than a few steps, such as a generated map; `rl.check` tells its
    price. A start may serve several episodes of a rollout: the metric "episodes_per_start" counts them.

    Args:
      environment: the environment.
      num_states: starts that are computed at the beginning of each rollout, for all its environments together.

    Raises:
      ConfigError: `num_states` is below 1.

    >>> from foldax import rl
    >>> pool_resets(rl.grid_maze(), 16).resets
    Resets(kind='pool', num_states=16)
    """
    check_positive(num_states=num_states)
    return environment._replace(resets=Resets("pool", num_states))


def cache_resets(environment: Environment, num_states: int) -> Environment:
    """Lets episodes begin at one of `num_states` starts, which are computed once, at the beginning of the training.

    They are part of the learner's state. An evaluation begins at starts of its own.

    Args:
      environment: the environment.
      num_states: number of starts.

    Raises:
      ConfigError: `num_states` is below 1.

    >>> from foldax import rl
    >>> cache_resets(rl.grid_maze(), 1_000).resets.kind
    'cached'
    """
    check_positive(num_states=num_states)
    return environment._replace(resets=Resets("cached", num_states))


def terminate_on_time_limit(environment: Environment) -> Environment:
    """Reports truncated episodes as terminated: a common mistake, made on purpose (Pardo et al., 2018).

    Learners then believe that nothing follows a time limit; see `research/time_limits` for what that costs.
    """

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        state, result = environment.step(key, state, action)
        done = result.terminated | result.truncated
        return state, result._replace(terminated=done, truncated=jnp.zeros_like(done))

    return environment._replace(step=step)


def frame_stack(environment: Environment, num_frames: int) -> Environment:
    """Stacks the last `num_frames` observations along the last axis, `[..., C * num_frames]`, oldest first.

    At the start of an episode its first observation is repeated (Mnih et al., 2015).

    Raises:
      ConfigError: `num_frames` is below 1.

    >>> from foldax import rl
    >>> frame_stack(rl.cartpole(), 3).observation_space.shape
    (12,)
    """
    if num_frames < 1:
        raise ConfigError(f"frame_stack: num_frames is {num_frames}; it must be 1 or more")
    _check_one_array("frame_stack", environment)

    def concatenate(frames: jax.Array) -> jax.Array:
        return jnp.moveaxis(frames, 0, -2).reshape(*frames.shape[1:-1], -1)

    def reset(key: Key) -> tuple[State, Observation]:
        state, observation = environment.reset(key)
        # The first observation stands for those that are missing.
        frames = jnp.broadcast_to(observation[None], (num_frames, *observation.shape))
        return (state, frames), concatenate(frames)

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        inner, frames = state
        inner, result = environment.step(key, inner, action)
        frames = jnp.concatenate([frames[1:], result.observation[None]])
        return (inner, frames), result._replace(observation=concatenate(frames))

    # Every frame has the bounds of one observation.
    low, high = (np.concatenate([bound] * num_frames, axis=-1) for bound in environment.observation_space)
    space = Box(low, high)
    return environment._replace(reset=reset, step=step, observation_space=space, **_of_inner_state(environment))


def _check_one_array(wrapper: str, environment: Environment) -> None:
    if not isinstance(environment.observation_space, Box):
        boxes = environment.observation_space
        shapes = jax.tree.map(lambda box: list(box.shape), boxes, is_leaf=lambda part: isinstance(part, Box))
        problem = f"observations of {environment.name} are {shapes}"
        raise ConfigError(f"{wrapper}: {problem}; they must be one array")


def _of_inner_state(environment: Environment) -> dict[str, Any]:
    """Functions of the first of a pair of states, which is the wrapped environment's own."""
    functions = {name: getattr(environment, name) for name in ("render", "legal_actions", "player")}
    return {name: _of_first(function) for name, function in functions.items() if function is not None}


def _of_first(function: Callable[[State], Any]) -> Callable[[tuple[State, Any]], Any]:
    return lambda state: function(state[0])


def clip_actions(environment: Environment) -> Environment:
    """Clips continuous actions to the environment's bounds, also within a tuple, so that any float may be an action.

    Raises:
      ConfigError: the actions are discrete.
    """
    space = environment.action_space
    if not isinstance(space, (Box, Tuple)):
        actions = f"{describe_actions(space)}; it needs continuous ones"
        raise ConfigError(f"clip_actions: {environment.name} has {actions}")

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        if isinstance(space, Box):
            return environment.step(key, state, jnp.clip(action, space.low, space.high))
        return environment.step(key, state, clip_action(space, action))

    return environment._replace(step=step, action_space=_without_bounds(space))


def _without_bounds(space: Space) -> Space:
    # The policy may output any value, so the declared space has no bounds.
    if isinstance(space, Tuple):
        return Tuple(tuple(map(_without_bounds, space.spaces)))
    if not isinstance(space, Box):
        return space
    return Box(np.full(space.shape, -np.inf, np.float32), np.full(space.shape, np.inf, np.float32))


def rescale_actions(environment: E) -> E:
    """Rescales continuous actions, so that [-1, 1] spans the environment's bounds.

    Of a `HostSpec` only the bounds change: its rollouts hold actions as the host took them; see `to_unit_range`.

    Raises:
      ConfigError: the actions are discrete, or have no finite bounds.

    >>> from foldax import rl
    >>> rescale_actions(rl.pendulum()).action_space.high.tolist()
    [1.0]
    """
    space = environment.action_space
    if not isinstance(space, Box) or not np.isfinite([space.low, space.high]).all():
        needed = "it needs continuous actions with finite bounds"
        raise ConfigError(f"rescale_actions: {environment.name} has the action space {space}; {needed}")

    ones = np.ones(space.shape, np.float32)
    if isinstance(environment, HostSpec):
        return dataclasses.replace(environment, action_space=Box(-ones, ones))
    on_device: Environment = environment

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        return on_device.step(key, state, from_unit_range(space, action[None])[0])

    return on_device._replace(step=step, action_space=Box(-ones, ones))  # type: ignore[return-value]  # E is one here


def rescale_observations(environment: Environment) -> Environment:
    """Rescales observations from their bounds to [-1, 1].

    Raises:
      ConfigError: the observations have no finite bounds.
    """
    _check_one_array("rescale_observations", environment)
    space = environment.observation_space
    if not (np.abs([space.low, space.high]) < UNBOUNDED).all():
        problem = f"{environment.name} has the observation space {space}"
        raise ConfigError(f"rescale_observations: {problem}; it needs finite bounds")

    def reset(key: Key) -> tuple[State, Observation]:
        state, observation = environment.reset(key)
        return state, to_unit_range(space, observation[None])[0]

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        state, result = environment.step(key, state, action)
        return state, result._replace(observation=to_unit_range(space, result.observation[None])[0])

    ones = np.ones(space.shape, np.float32)
    return environment._replace(reset=reset, step=step, observation_space=Box(-ones, ones))


def with_policy_memory(environment: Environment, initial_memory: chex.ArrayTree) -> Environment:
    """Lets a policy pass a memory from one step of an episode to the next.

    Observations become `(observation, memory)`, and actions `(action, memory after it)`. Because a reset returns
    `initial_memory`, no memory leaks into the next episode. A transition's `next_observation` holds the memory with
    which its value is computed, also where the episode ends.

    Args:
      environment: the environment; its spaces stay those without memory.
      initial_memory: memory of one environment at the start of an episode, any tree of arrays.

    >>> from foldax import rl
    >>> environment = with_policy_memory(rl.cartpole(), {"hidden": jnp.zeros(8)})
    >>> _, (observation, memory) = jax.eval_shape(environment.reset, jax.random.key(0))
    >>> observation.shape, memory["hidden"].shape
    ((4,), (8,))
    """

    def reset(key: Key) -> tuple[State, Observation]:
        state, observation = environment.reset(key)
        return state, (observation, initial_memory)

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        environment_action, memory = action
        state, result = environment.step(key, state, environment_action)
        return state, result._replace(observation=(result.observation, memory))

    return environment._replace(reset=reset, step=step)


def from_unit_range(space: Box, values: jax.Array) -> jax.Array:
    """Maps values `[B, ...]` in [-1, 1] to the bounds of a space.

    >>> print(from_unit_range(Box(np.zeros(1), np.full(1, 10.0)), jnp.array([[-1.0], [0.5]])))
    [[0. ]
     [7.5]]
    """
    center, half_width = 0.5 * (space.high + space.low), 0.5 * (space.high - space.low)
    return center[None] + half_width[None] * values


def to_unit_range(space: Box, values: jax.Array) -> jax.Array:
    """Maps values `[B, ...]` within the bounds of a space to [-1, 1], and where the bounds are equal to 0.

    >>> print(to_unit_range(Box(np.zeros(1), np.full(1, 10.0)), jnp.array([[0.0], [7.5]])))
    [[-1. ]
     [ 0.5]]
    """
    center, half_width = 0.5 * (space.high + space.low), 0.5 * (space.high - space.low)
    # A feature whose bounds are equal is constant, and becomes 0.
    scale = np.where(half_width > 0, 1 / np.where(half_width > 0, half_width, 1), 0)
    return (values - center[None]) * scale[None]


class Moments(NamedTuple):
    """Elementwise mean and variance of a stream of arrays.

    Attributes:
      count: number of arrays so far, float32 [].
      mean: float32 `[...]`.
      variance: float32 `[...]`.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which is not needed
    mean: jax.Array
    variance: jax.Array


def init_moments(shape: tuple[int, ...]) -> Moments:
    """Moments of no arrays, with which `normalize` changes nothing: mean 0 and variance 1."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def update_moments(moments: Moments, values: jax.Array) -> Moments:
    """Adds arrays `[N, ...]` to the moments (Chan et al., 1983).

    >>> moments = update_moments(init_moments(()), jnp.array([1.0, 3.0]))
    >>> print(moments.mean, moments.variance)
    2.0 1.0
    """
    chex.assert_shape(values, (None, *moments.mean.shape))
    count = moments.count + len(values)
    weight = len(values) * jnp.reciprocal(count)
    difference = values.mean(axis=0) - moments.mean
    # The variances within old and new values, and that between their means
    variance = (1 - weight) * moments.variance + weight * values.var(axis=0)
    variance = variance + weight * (1 - weight) * jnp.square(difference)
    return Moments(count, moments.mean + weight * difference, variance)


def normalize(moments: Moments, values: jax.Array, clip_range: float = 10.0) -> jax.Array:
    """Normalises arrays `[N, ...]` to mean 0 and variance 1, clipped to [-clip_range, clip_range].

    Args:
      moments: mean and variance of single values, `[...]`.
      values: `[N, ...]`.
      clip_range: largest absolute value of the result.

    Returns:
      Normalised values, `[N, ...]`.
    """
    chex.assert_shape(values, (None, *moments.mean.shape))
    scale = jax.lax.rsqrt(moments.variance + 1e-8)
    return jnp.clip((values - moments.mean[None]) * scale[None], -clip_range, clip_range)
