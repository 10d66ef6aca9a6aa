"""Random order without sorting: a keyed permutation that is evaluated only where it is needed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

ROUNDS = 8  # even, so that the two halves end where they began


def shuffled(key: jax.Array, epoch: jax.Array | int, positions: jax.Array, size: int) -> jax.Array:
    """Returns which example stands at each position of an epoch's random order.

    For a fixed key and epoch this is a bijection of `range(size)`: an unbalanced Feistel network over
    `a * b >= size` cells, whose few cells beyond `size` are walked until they land inside (Black &
    Rogaway, 2002). A batch costs a few integer operations per example, whatever the size; sorting
    random numbers, as `jax.random.permutation` does, costs more than many a training step.

    Args:
      key: the key of the data order.
      epoch: which epoch, an integer scalar; each has an order of its own.
      positions: int32 `[B]`, each in `range(size)`.
      size: number of examples.

    Returns:
      int32 `[B]`, each in `range(size)`.
    """
    a = max(1, math.isqrt(size - 1) + 1) if size > 1 else 1
    b = -(-size // a)
    # The bits do not depend on the epoch, so XLA computes them once, outside the training loop.
    bits = jax.random.bits(key, (ROUNDS,), jnp.uint32)
    keys = _mix(bits + jnp.uint32(0x9E3779B9) * jnp.asarray(epoch).astype(jnp.uint32))
    first = _feistel(positions.astype(jnp.uint32), keys, a, b)
    if a * b == size:
        return first.astype(jnp.int32)
    walked = jax.lax.while_loop(
        lambda cells: jnp.any(cells >= size),
        lambda cells: jnp.where(cells >= size, _feistel(cells, keys, a, b), cells),
        first,
    )
    return walked.astype(jnp.int32)


def _feistel(cells: jax.Array, keys: jax.Array, a: int, b: int) -> jax.Array:
    """Permutes `range(a * b)`: cell `left * b + right` has left < a and right < b, swapped each round."""
    left, right = cells // jnp.uint32(b), cells % jnp.uint32(b)
    size, other = a, b
    for i in range(ROUNDS):
        left, right = right, (left + _mix(right ^ keys[i]) % jnp.uint32(size)) % jnp.uint32(size)
        size, other = other, size
    return left * jnp.uint32(b) + right


def _mix(bits: jax.Array) -> jax.Array:
    """Scrambles uint32s, each bit of the result depending on all bits of the argument (lowbias32)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
