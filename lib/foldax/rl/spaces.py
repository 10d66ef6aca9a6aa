"""Spaces of observations and actions."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Key


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


class MultiDiscrete(NamedTuple):
    """Space of several discrete actions at once, as int32 `[K]`: component k is from 0 to `nums[k]` - 1.

    >>> MultiDiscrete((3, 2)).shape
    (2,)
    """

    nums: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return (len(self.nums),)


class Tuple(NamedTuple):
    """Space of actions of several kinds at once: an action is a tuple with one of each space.

    >>> len(Tuple((Discrete(3), Box(np.zeros(2), np.ones(2)))).spaces)
    2
    """

    spaces: "tuple[Space, ...]"


Space: TypeAlias = Discrete | MultiDiscrete | Box | Tuple


def action_components(space: Space) -> "tuple[Space, ...] | None":
    """The spaces that a product of spaces is made of; None for a `Discrete` or a `Box`.

    >>> action_components(MultiDiscrete((3, 2)))
    (Discrete(num=3), Discrete(num=2))
    """
    if isinstance(space, MultiDiscrete):
        return tuple(map(Discrete, space.nums))
    return space.spaces if isinstance(space, Tuple) else None


def describe_actions(space: Space) -> str:
    """Describes the actions of a space in words, for errors.

    >>> describe_actions(Tuple((Discrete(2), MultiDiscrete((3, 4)))))
    'tuples of (2 discrete actions, discrete actions with [3, 4] choices at once)'
    """
    if isinstance(space, Discrete):
        return f"{space.num} discrete actions"
    if isinstance(space, MultiDiscrete):
        return f"discrete actions with {list(space.nums)} choices at once"
    if isinstance(space, Tuple):
        return f"tuples of ({', '.join(map(describe_actions, space.spaces))})"
    return f"continuous actions of shape {list(space.shape)}"


def random_actions(space: Space, key: Key, count: int, legal_actions: Any = None) -> Any:
    """Samples actions `[count, ...]` uniformly.

    Args:
      space: space of one action, with finite bounds.
      key: randomness.
      count: number of actions.
      legal_actions: the actions to sample from, bool `[count, A]`, or a tuple of such masks; None: all.

    >>> random_actions(Discrete(3), jax.random.key(0), 5).shape
    (5,)
    >>> random_actions(Discrete(3), jax.random.key(0), 2, jnp.array([[False, False, True]] * 2)).tolist()
    [2, 2]
    """
    components = action_components(space)
    if components is not None:
        keys, masks = jax.random.split(key, len(components)), legal_actions or (None,) * len(components)
        actions = [random_actions(*part, count, mask) for part, mask in zip(zip(components, keys), masks, strict=True)]
        return jnp.stack(actions, axis=-1) if isinstance(space, MultiDiscrete) else tuple(actions)
    if isinstance(space, Discrete) and legal_actions is not None:
        return jax.random.categorical(key, jnp.where(legal_actions, 0.0, -jnp.inf)).astype(jnp.int32)
    if isinstance(space, Discrete):
        return jax.random.randint(key, (count,), 0, space.num)
    assert isinstance(space, Box)
    return jax.random.uniform(key, (count, *space.shape), minval=space.low[None], maxval=space.high[None])


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


def clip_action(action_space: Space, action: Any) -> Any:
    """Clips continuous actions `[..., A]` to their bounds, also within a tuple; discrete ones stay as they are.

    >>> print(clip_action(Box(jnp.array([-1.0]), jnp.array([1.0])), jnp.array([[2.0], [0.5]])))
    [[1. ]
     [0.5]]
    """
    if isinstance(action_space, Tuple):
        return tuple(clip_action(space, part) for space, part in zip(action_space.spaces, action, strict=True))
    if not isinstance(action_space, Box):
        return action
    return jnp.clip(action, *(jnp.broadcast_to(bound, action.shape) for bound in action_space))
