"""MemoryChain: a cue is shown once and asked for later."""

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import check_positive
from foldax.learner import Key
from foldax.rl.environment import Environment, Step
from foldax.rl.rendering import BLUE, DARK, GREEN, GREY, ORANGE, Shape, box, draw_shapes
from foldax.rl.spaces import Box, Discrete


def memory_chain(*, length: int = 5, num_bits: int = 1) -> Environment:
    """Makes bsuite's MemoryChain: bits are shown at first, and one of them is asked for later (Osband et al., 2020).

    An episode has `length` + 1 steps. Observations `[2 + num_bits]` are the remaining time as a fraction, the index of
    the bit that is asked for (0 until the end), and the bits as -1 or 1 (0 after the first two observations, which are
    equal). The last action answers with 0 or 1: reward 1 if it is the bit and -1 if not; other steps have reward 0. The
    best return is 1; without memory the mean is 0 at best.

    Args:
      length: observations in which the bits must be remembered.
      num_bits: number of bits.

    Raises:
      ConfigError: `length` or `num_bits` is below 1.

    >>> environment = memory_chain(length=10)
    >>> environment.observation_space.shape, environment.action_space
    ((3,), Discrete(num=2))
    """
    check_positive(length=length, num_bits=num_bits)

    def observe(state: tuple[jax.Array, ...]) -> jax.Array:
        bits, query, time = state
        remaining = 1.0 - time / length
        asked = jnp.where(time == length - 1, query, 0).astype(jnp.float32)
        shown = jnp.where(time == 0, 2.0 * bits - 1.0, 0.0)
        return jnp.concatenate([jnp.stack([remaining, asked]), shown])

    def reset(key: Key) -> tuple[tuple[jax.Array, ...], jax.Array]:
        bits_key, query_key = jax.random.split(key)
        bits = jax.random.bernoulli(bits_key, shape=(num_bits,)).astype(jnp.int32)
        state = bits, jax.random.randint(query_key, (), 0, num_bits), jnp.int32(0)
        return state, observe(state)

    def step(key: Key, state: tuple[jax.Array, ...], action: jax.Array) -> tuple[tuple[jax.Array, ...], Step]:
        bits, query, time = state
        terminated = time >= length
        answer = jnp.where(action == bits[query], 1.0, -1.0)
        # As in bsuite, an observation is that of the time before the step.
        result = Step(observe(state), jnp.where(terminated, answer, 0.0), terminated, jnp.bool_(False))
        return (bits, query, time + 1), result

    ones = np.ones(num_bits, np.float32)
    low, high = np.array([0, 0, *-ones], np.float32), np.array([1, num_bits - 1, *ones], np.float32)

    def render(state: tuple[jax.Array, ...]) -> np.ndarray:
        return draw_shapes(_shapes(np.asarray(state[0]), int(state[1]), int(state[2]), length))

    return Environment(reset, step, Box(low, high), Discrete(2), "MemoryChain", render)


def _shapes(bits: np.ndarray, query: int, time: int, length: int) -> list[Shape]:
    """Bits as squares, blue for 0 and orange for 1, grey while hidden; the one asked for is marked; below, the time."""
    size = min(0.5, 0.9 / len(bits))
    centers = [(2 * size * (bit + 0.5 - len(bits) / 2), 0.15) for bit in range(len(bits))]
    colors = [(BLUE, ORANGE)[bit] if time <= 1 else GREY for bit in bits]
    shapes: list[Shape] = [("polygon", box(c, 0.8 * size, 0.8 * size), color, 0.0) for c, color in zip(centers, colors)]
    if time >= length:
        shapes.append(("disc", [centers[query]], GREEN, 0.3 * size))
    end = -0.85 + 1.7 * min(1.0, time / length)
    return [*shapes, ("line", [(-0.85, -0.75), (0.85, -0.75)], GREY, 0.015), ("disc", [(end, -0.75)], DARK, 0.05)]
