"""Parts shared by sequence networks: token embedding, padding and segment masks, and pooling over time.

A mask `[B, T]` is 0 or False at padding. Numbers above 0 are segment ids: sequences packed into one row, each a run of
consecutive steps with an id of its own.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from foldax.errors import ConfigError

Pooling = Literal["last", "mean", "max"]


def embed_inputs(
    module: nn.Module, x: Array, mask: Array | None, vocabulary_size: int | None, width: int, multiple: int = 1
) -> Array:
    """Embeds tokens `[B, T]`, and passes floats `[B, T, C]` through, in the scope of a network.

    Padding is replaced by token 0 or by zeros first, so it may hold anything, -1 and NaN included. In compiled code,
    where tokens cannot be checked, the embedding of an unknown token is NaN: training stops instead of silently
    learning another token.

    Args:
      module: the network; it has a `dtype`.
      x: inputs, int `[B, T]` or float `[B, T, C]`.
      mask: `[B, T]`, 0 or False at padding; None: no padding.
      vocabulary_size: number of tokens, or None where inputs are floats.
      width: size of the embedding.
      multiple: the number of rows of the embedding is `vocabulary_size` rounded up to a multiple of this.

    Returns:
      Embedded tokens `[B, T, width]`, or the floats `[B, T, C]`.

    Raises:
      ConfigError: tokens without a vocabulary, floats with one, a wrong rank, a mask of another shape, or (outside
        compiled code) a token outside the vocabulary.
    """
    name = type(module).__name__
    is_tokens = jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 2
    if is_tokens and vocabulary_size is None:
        raise ConfigError(f"{name}: integer tokens [B, T] need a vocabulary_size")
    if not is_tokens and (x.ndim != 3 or vocabulary_size is not None):
        expected = "floats [B, T, C]" if vocabulary_size is None else "integer tokens [B, T]"
        raise ConfigError(f"{name}: inputs must be {expected}, got {x.dtype}{list(x.shape)}")
    if mask is not None:
        if mask.shape != x.shape[:2]:
            raise ConfigError(f"{name}: the mask must be {list(x.shape[:2])} like the inputs, got {list(mask.shape)}")
        x = jnp.where(mask != 0 if is_tokens else (mask != 0)[..., None], x, 0)
    if vocabulary_size is None:
        return x
    check_tokens(x, vocabulary_size, name)
    x = x.astype(jnp.int32)
    # Indexing past the end of the table gives NaN, but a negative index would wrap around to a valid row, and padding
    # of the vocabulary has rows too.
    rows = round_up(vocabulary_size, multiple)
    x = jnp.where((x < 0) | (x >= vocabulary_size), rows, x) if rows > vocabulary_size else jnp.where(x < 0, rows, x)
    return nn.Embed(rows, width, dtype=module.dtype, name="embedding")(x)


def round_up(size: int, multiple: int) -> int:
    """Rounds a size up to a multiple.

    >>> round_up(50_257, 128)
    50304
    """
    return -(-size // multiple) * multiple


def check_tokens(tokens: jax.typing.ArrayLike, vocabulary_size: int, name: str) -> None:
    """Checks that tokens are in the vocabulary; traced tokens, whose values are unknown, pass.

    Args:
      tokens: int `[...]`, of any shape.
      vocabulary_size: tokens must be in 0 to `vocabulary_size` - 1.
      name: the start of the error message.

    Raises:
      ConfigError: a token is outside the vocabulary; the message gives the first one and its index.

    >>> check_tokens(np.array([[0, 4]]), 5, "prompt")
    """
    if isinstance(tokens, jax.core.Tracer) or not getattr(tokens, "is_fully_addressable", True):
        return
    tokens = np.asarray(tokens)
    unknown = np.argwhere((tokens < 0) | (tokens >= vocabulary_size))
    if len(unknown):
        index = [int(i) for i in unknown[0]]
        token = f"token {tokens[tuple(index)]} at {index}"
        raise ConfigError(f"{name}: {token} is not in the vocabulary, 0 to {vocabulary_size - 1}")


def segment_starts(mask: Array) -> Array:
    """Marks the first real step of every segment; padding inside a segment does not end it.

    Args:
      mask: int `[B, T]`, segment ids; 0 is padding.

    Returns:
      bool `[B, T]`.

    >>> segment_starts(jnp.array([[1, 1, 0, 2, 2]])).astype(int).tolist()
    [[1, 0, 0, 1, 0]]
    """
    chex.assert_rank(mask, 2)
    segments = mask.astype(jnp.int32)
    # The index of the last real step before each step, -1 if there is none.
    last_real = jax.lax.cummax(jnp.where(segments != 0, jnp.arange(segments.shape[1])[None, :], -1), axis=1)
    before = jnp.concatenate([jnp.full_like(last_real[:, :1], -1), last_real[:, :-1]], axis=1)
    previous = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
    return (segments != 0) & ((before < 0) | (segments != previous))


def segment_positions(mask: Array) -> Array:
    """Counts the real steps before each step in its segment: positions that start at 0 in every segment.

    Args:
      mask: int `[B, T]`, segment ids; 0 is padding.

    Returns:
      int32 `[B, T]`.

    >>> segment_positions(jnp.array([[1, 1, 2, 2, 2]])).tolist()
    [[0, 1, 0, 1, 2]]
    """
    chex.assert_rank(mask, 2)
    # Real steps before each step of the row, minus those before its segment.
    count = jnp.cumsum(mask != 0, axis=1, dtype=jnp.int32) - 1
    return jnp.maximum(count - jax.lax.cummax(jnp.where(segment_starts(mask), count, 0), axis=1), 0)


def segment_attention_mask(query_segments: Array, key_segments: Array) -> Array:
    """Allows attention within a segment only, and to no padding.

    Args:
      query_segments: `[B, T]`, segment ids; 0 is padding.
      key_segments: `[B, S]`, likewise.

    Returns:
      bool `[B, T, S]`, True where a query may attend to a key.

    >>> segment_attention_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 2, 0]])).astype(int).tolist()
    [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]
    """
    chex.assert_rank([query_segments, key_segments], 2)
    query, key = query_segments.astype(jnp.int32)[:, :, None], key_segments.astype(jnp.int32)[:, None, :]
    return (query == key) & (key != 0)


def check_pooling(kind: Pooling | None) -> None:
    """Checks the name of a pooling over time; raises a ConfigError if it is unknown."""
    if kind not in (None, "last", "mean", "max"):
        raise ConfigError(f"pooling: {kind!r} is unknown; choose None, 'last', 'mean' or 'max'")


def pool_sequence(x: Array, kind: Pooling, mask: Array | None = None) -> Array:
    """Reduces every sequence to one vector: its last step, or the mean or maximum over its steps.

    Args:
      x: `[B, T, D]`.
      kind: "last", "mean" or "max".
      mask: `[B, T]`, 0 or False at padding, which is left out. None: no padding.

    Returns:
      `[B, D]`; zeros for a sequence of padding only.

    Raises:
      ConfigError: `kind` is unknown.

    >>> x = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> pool_sequence(x, "mean", jnp.array([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    check_pooling(kind)
    chex.assert_rank(x, 3)
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask != 0
    chex.assert_shape(real, x.shape[:2])
    if kind == "last":
        # The index of the last real step
        index = jnp.max(jnp.where(real, jnp.arange(x.shape[1])[None, :], 0), axis=1)
        pooled = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    elif kind == "mean":
        count = jnp.maximum(real.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
        # Summed in float32: in bfloat16, a sum over many steps stops growing.
        pooled = jnp.where(real[..., None], x, 0).sum(axis=1, dtype=jnp.float32) * jnp.reciprocal(count)
        pooled = pooled.astype(x.dtype)
    else:
        # Selected by index: the gradient of `max` may get lost, see `max_with_stable_gradient`.
        index = jnp.where(real[..., None], x, jnp.finfo(x.dtype).min).argmax(axis=1, keepdims=True)
        pooled = jnp.take_along_axis(x, index, axis=1)[:, 0]
    return jnp.where(real.any(axis=1, keepdims=True), pooled, jnp.zeros((), x.dtype))


def pool_bidirectional(x: Array, kind: Pooling, mask: Array | None = None) -> Array:
    """Pools the concatenated outputs of a forward and a backward layer.

    The last step of the backward layer is the first of the sequence; "mean" and "max" are as in `pool_sequence`.

    Args:
      x: `[B, T, 2 * D]`, the forward outputs first.
      kind: "last", "mean" or "max".
      mask: `[B, T]`, 0 or False at padding.

    Returns:
      `[B, 2 * D]`.

    >>> pool_bidirectional(jnp.array([[[1.0, 10.0], [2.0, 20.0]]]), "last").tolist()
    [[2.0, 10.0]]
    """
    if kind != "last":
        return pool_sequence(x, kind, mask)
    forward, backward = jnp.split(x, 2, axis=-1)
    reversed_mask = None if mask is None else jnp.flip(mask, 1)
    ends = pool_sequence(forward, kind, mask), pool_sequence(jnp.flip(backward, 1), kind, reversed_mask)
    return jnp.concatenate(ends, axis=-1)
