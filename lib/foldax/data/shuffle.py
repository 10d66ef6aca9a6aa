"""Shuffling without sorting: a keyed pseudorandom permutation, evaluated only at the positions of a batch."""

import math

import jax
import jax.numpy as jnp

ROUNDS = 8  # even, so that the two halves end in their own places
MAX_SORTED = 9  # examples whose orders are sorted: over so few cells the network prefers some orders


def shuffled_indices(key: jax.Array, epoch: jax.Array | int, positions: jax.Array, size: int) -> jax.Array:
    """Returns the example at each position of an epoch's random order.

    For a fixed key and epoch this is a bijection of `range(size)`: an unbalanced Feistel network over `a * b >= size`
    cells with cycle walking (Black & Rogaway, 2002). A batch costs a few integer operations per example, independent of
    `size`; `jax.random.permutation` sorts, which costs more than many a training step. The orders of up to 9 examples
    are sorted nevertheless.

    Args:
      key: key of the data order.
      epoch: number of the epoch, an integer scalar; each epoch has its own order.
      positions: int32 `[B]`, each in `range(size)`.
      size: number of examples.

    Returns:
      int32 `[B]`, each in `range(size)`.

    >>> sorted(shuffled_indices(jax.random.key(0), 0, jnp.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    if size <= MAX_SORTED:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), size)
        return order[positions].astype(jnp.int32)
    # The smallest near-square grid that holds all examples, so that few cells are walked over.
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    # Round keys: the bits do not depend on the epoch, so XLA hoists them out of the training loop.
    bits = jax.random.bits(key, (ROUNDS,), jnp.uint32)
    keys = _mix(bits + jnp.uint32(0x9E3779B9) * jnp.asarray(epoch).astype(jnp.uint32))
    first = _feistel(positions.astype(jnp.uint32), keys, a, b)
    if a * b == size:
        return first.astype(jnp.int32)
    # Cycle walking: cells outside of `range(size)` are permuted again until they fall inside.
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
    # A round is invertible whatever the hash returns, so the whole is a permutation.
    for i in range(ROUNDS):
        left, right = right, (left + _mix(right ^ keys[i]) % jnp.uint32(size)) % jnp.uint32(size)
        size, other = other, size
    return left * jnp.uint32(b) + right


def _mix(bits: jax.Array) -> jax.Array:
    """Hashes uint32s so that every output bit depends on every input bit (lowbias32)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
