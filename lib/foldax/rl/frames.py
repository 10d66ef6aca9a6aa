"""Frames of stacked observations, of which a replay buffer stores each once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from foldax.configuration import config
from foldax.errors import ConfigError
from foldax.rl.environment import Observation
from foldax.rl.observations import MaskedObservation, split_mask


@config
class FrameStack:
    """How observations are stacked from frames, so that the buffer stores only the newest frame of each.

    >>> FrameStack(num_frames=4, axis=0, zero_padding=True).num_frames  # as ale-py does
    4
    """

    num_frames: int = 1
    """Frames per observation, the oldest first; 1 stores observations as they are."""
    axis: int = -1
    """Axis of an observation along which frames are stacked: -1 for `wrappers.frame_stack`, 0 for Atari."""
    zero_padding: bool = False
    """Whether the frames before an episode's first one are zeros, as in ale-py, or repeat the first frame. Every end of
    an episode must reset the stack, which Atari's `life_loss_info` does not do for a lost life."""


def newest_frame(observation: Observation, stack: FrameStack) -> Observation:
    """Takes the newest frames `[N, ...]` from stacked observations `[N, ...]`, whose legal actions stay beside them.

    Raises:
      ConfigError: observations are no array, their stacked axis does not exist, or is no multiple of the frames.

    >>> newest_frame(jnp.arange(6).reshape(1, 6), FrameStack(num_frames=3)).tolist()
    [[4, 5]]
    """
    if stack.num_frames == 1:
        return observation
    if isinstance(observation, MaskedObservation):
        return observation._replace(observation=newest_frame(observation.observation, stack))
    if not hasattr(observation, "ndim"):
        raise ConfigError("replay: frame_stack needs observations that are one array; theirs are a tree of arrays")
    rank = observation.ndim - 1
    has_axis = stack.num_frames >= 1 and -rank <= stack.axis < rank
    if not has_axis or observation.shape[_stack_axis(observation, stack)] % stack.num_frames:
        described = f"axis {stack.axis} of observations {observation.shape[1:]}"
        raise ConfigError(f"replay: cannot split {described} into {stack.num_frames} frames")
    axis = _stack_axis(observation, stack)
    size = observation.shape[axis] // stack.num_frames
    return jax.lax.slice_in_dim(observation, observation.shape[axis] - size, None, axis=axis)


def stack_frames(frames: Sequence[Observation], stack: FrameStack) -> Observation:
    """Stacks frames `[B, ...]`, the oldest first, to observations `[B, ...]`; the legal actions are the newest frame's.

    >>> stack_frames([jnp.zeros((1, 2)), jnp.ones((1, 2))], FrameStack(num_frames=2)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    if stack.num_frames == 1:
        return frames[0]
    parts = [split_mask(frame)[0] for frame in frames]
    observation = jnp.concatenate(parts, axis=_stack_axis(parts[0], stack))
    newest = frames[-1]
    return newest._replace(observation=observation) if isinstance(newest, MaskedObservation) else observation


def _stack_axis(observation: jax.Array, stack: FrameStack) -> int:
    """The axis of batched observations `[N, ...]` along which frames are stacked."""
    return stack.axis % (observation.ndim - 1) + 1
