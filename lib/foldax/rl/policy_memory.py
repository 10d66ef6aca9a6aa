"""Agents that remember: what a policy keeps in mind through an episode, as a part of what it sees and does."""

from __future__ import annotations

from typing import Any

import jax

from foldax.rl.environment import Environment, Step


def remembering(environment: Environment, nothing: Any) -> Environment:
    """Returns the environment in which an agent can leave notes for itself.

    Observations are `(observation, memory)`, and actions `(action, memory)`: what is to be remembered then. An episode
    begins with the memory `nothing`, so that none leaks into the next one; and a transition's `next_observation` has
    the memory with which its value can be asked for, also where the episode ends.

    Args:
      environment: where; its spaces stay as they are.
      nothing: any tree of arrays, of one copy.
    """

    def reset(key: jax.Array) -> tuple[Any, Any]:
        state, observation = environment.reset(key)
        return state, (observation, nothing)

    def step(key: jax.Array, state: Any, action: Any) -> tuple[Any, Step]:
        taken, memory = action
        after, answer = environment.step(key, state, taken)
        return after, answer._replace(observation=(answer.observation, memory))  # type: ignore[arg-type]

    return environment._replace(reset=reset, step=step)
