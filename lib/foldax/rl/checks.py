"""Checks of the environment that a learner was given: where it runs, its numbers, and whether its actions fit."""

from typing import Any

import jax
import numpy as np

from foldax.errors import ConfigError, check_positive
from foldax.rl.environment import Environment, EnvironmentLike, HostSpec
from foldax.rl.spaces import Box, Discrete, MultiDiscrete, Space, Tuple, describe_actions


def check_environment(
    environment: EnvironmentLike, num_envs: int, rollout_steps: int, greedy_evaluation: bool = True
) -> None:
    """Checks the environment that a learner was given, and that its numbers are those of the host.

    Args:
      environment: an environment on the device, or the `HostSpec` of one on the host.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment per update.
      greedy_evaluation: whether evaluation takes the most probable actions.

    Raises:
      ConfigError: `environment` is not an environment or has several players, or a number is below 1 or differs from
        the host's.
    """
    check_positive(num_envs=num_envs, rollout_steps=rollout_steps)
    if isinstance(environment, HostSpec):
        for name, value in (("num_envs", num_envs), ("rollout_steps", rollout_steps)):
            if value != getattr(environment, name):
                values = f"the learner has {value}, the host environment {getattr(environment, name)}"
                raise ConfigError(f"{name}: {values}; give both the same number")
        if not greedy_evaluation:
            remedy = "set it there, as in rl.gymnasium(..., greedy_evaluation=False)"
            raise ConfigError(f"greedy_evaluation: a host plays its evaluation episodes itself; {remedy}")
    elif not isinstance(environment, Environment):
        expected = "an rl.Environment, such as rl.cartpole(), or the info of a host environment"
        raise ConfigError(f"environment: expected {expected}; got {type(environment).__name__}")
    elif environment.num_players > 1:
        remedy = "this learner is for one; give it the view of one player, with opponents inside the environment"
        raise ConfigError(f"{environment.name} has {environment.num_players} players; {remedy}")


def check_device_environment(learner: str, environment: EnvironmentLike) -> None:
    """Checks that the environment of a learner, named in the error, runs on the device.

    Raises:
      ConfigError: `environment` runs on the host, or is not an environment.
    """
    if isinstance(environment, HostSpec):
        allowed = "where only ppo, a2c, pqn, dqn, sac and td3 can learn"
        raise ConfigError(f"{learner}: {environment.name} runs on the host, {allowed}")
    check_environment(environment, 1, 1)


def check_network(environment: EnvironmentLike, output: Any) -> None:
    """Checks that a network fits the actions of an environment, which an index or a broadcast would hide.

    Args:
      environment: the environment to act in.
      output: outputs of the network for a batch of observations, or their shapes (`jax.eval_shape`): a distribution
        with "logits" `[..., A]`, a "mean" `[..., *action]` or "distributions" of several parts, Q-values `[B, A, K]`,
        or actions `[B, *action]`; others pass.

    Raises:
      ConfigError: they are for another number or kind of actions.

    >>> from foldax import rl
    >>> from jax import numpy as jnp
    >>> check_network(rl.cartpole(), jnp.zeros((1, 3, 1)))
    Traceback (most recent call last):
    foldax.errors.ConfigError: CartPole has 2 discrete actions, the network has outputs for 3 discrete actions
    """
    expected, found = describe_actions(environment.action_space), _actions_of_output(environment.action_space, output)
    if found is not None and found != expected:
        raise ConfigError(f"{environment.name} has {expected}, the network has outputs for {found}")


def _actions_of_output(space: Space, output: Any) -> str | None:
    """Describes the actions that outputs are for as `describe_actions` does; None: an own distribution of the user."""
    if hasattr(output, "distributions"):
        spaces = space.spaces if isinstance(space, Tuple) else ()
        spaces = (*spaces, *[space] * len(output.distributions))  # as many as there are distributions, or more
        parts = [_actions_of_output(part, one) for part, one in zip(spaces, output.distributions, strict=False)]
        return None if None in parts else f"tuples of ({', '.join(map(str, parts))})"
    if isinstance(getattr(output, "logits", None), tuple):
        return f"discrete actions with {[part.shape[-1] for part in output.logits]} choices at once"
    if hasattr(output, "logits"):
        return f"{output.logits.shape[-1]} discrete actions"
    if isinstance(space, Discrete) and getattr(output, "ndim", 0) == 3:
        return f"{output.shape[1]} discrete actions"
    if hasattr(output, "mean") and hasattr(output, "log_std"):
        rank = len(space.shape) if isinstance(space, Box) else 1
        return f"continuous actions of shape {list(output.mean.shape[-max(1, rank) :])}"
    if isinstance(output, (jax.Array, jax.ShapeDtypeStruct)):
        return f"continuous actions of shape {list(output.shape[1:])}"
    return None


def bounded_action_space(learner: str, environment: EnvironmentLike) -> Box:
    """The action space of the environment of a learner, named in the error, if actions have finite bounds.

    Raises:
      ConfigError: actions are discrete or unbounded.
    """
    space = environment.action_space
    if isinstance(space, Discrete):
        raise ConfigError(f"{learner}: {environment.name} has {space.num} discrete actions; take dqn or ppo")
    if not isinstance(space, Box):
        raise ConfigError(f"{learner}: {environment.name} has {describe_actions(space)}; take ppo")
    if not np.isfinite([space.low, space.high]).all():
        bounds = f"no finite bounds (from {space.low} to {space.high}); take ppo, or give the environment bounds"
        raise ConfigError(f"{learner}: actions of {environment.name} have {bounds}")
    return space


def check_discrete_actions(learner: str, environment: EnvironmentLike) -> None:
    """Checks that the environment of a learner, named in the error, has discrete actions.

    Raises:
      ConfigError: actions are continuous, or several at once.
    """
    space = environment.action_space
    if isinstance(space, (MultiDiscrete, Tuple)):
        raise ConfigError(f"{learner}: {environment.name} has {describe_actions(space)}; take ppo")
    if not isinstance(space, Discrete):
        raise ConfigError(f"{learner}: the actions of {environment.name} are continuous; take ppo, sac or td3")


def check_minibatches(num_minibatches: int, num_envs: int, rollout_steps: int) -> None:
    """Checks that minibatches have equal sizes.

    Args:
      num_minibatches: minibatches per epoch.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in a rollout.

    Raises:
      ConfigError: `num_minibatches` does not divide `num_envs * rollout_steps`.
    """
    steps = num_envs * rollout_steps
    if steps % num_minibatches:
        rollout = f"the {num_envs} x {rollout_steps} = {steps} steps of a rollout"
        raise ConfigError(f"num_minibatches: {num_minibatches} does not divide {rollout}")
