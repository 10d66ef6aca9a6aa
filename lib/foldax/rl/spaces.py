"""Spaces of observations and actions: `Box` and `Discrete`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError


class Discrete(NamedTuple):
    """Space of discrete actions: the integers 0 to `num` - 1, as int32 [].

    >>> Discrete(2).num
    2
    """

    num: int


class Box(NamedTuple):
    """Space of arrays between two bounds, float32, or of another dtype that the bounds have.

    Attributes:
      low: lower bounds `[...]`, with the shape of one observation or action; may be -inf.
      high: upper bounds `[...]`; may be inf.

    >>> Box(np.zeros(3), np.full(3, np.inf)).shape
    (3,)
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation or action."""
        return self.low.shape


def space_of(space: Any, name: str, kind: str) -> Discrete | Box:
    """Converts a space of Gymnasium or gymnax; `kind`, "observations" or "actions", is for the error.

    Raises:
      ConfigError: it is not supported: observations are a Box, actions a Box or Discrete.
    """
    space_type = type(space).__name__
    if space_type == "Discrete" and kind == "actions":
        return Discrete(int(space.n))
    if space_type == "Box":
        # gymnax gives one bound for all elements.
        return Box(*(np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high)))
    described = space_type if "object at 0x" in str(space) else str(space)
    allowed = "a Box, an array of numbers" if kind == "observations" else "Box or Discrete"
    remedy = "wrap the environment, for example in gymnasium.wrappers.FlattenObservation"
    raise ConfigError(f"{name}: {kind} are {described}; they must be {allowed}; {remedy}")


def clip_action(action_space: Discrete | Box, action: jax.Array) -> jax.Array:
    """Clips continuous actions `[..., A]` to their bounds; discrete ones stay as they are.

    >>> print(clip_action(Box(jnp.array([-1.0]), jnp.array([1.0])), jnp.array([[2.0], [0.5]])))
    [[1. ]
     [0.5]]
    """
    if isinstance(action_space, Discrete):
        return action
    return jnp.clip(action, *(jnp.broadcast_to(bound, action.shape) for bound in action_space))
