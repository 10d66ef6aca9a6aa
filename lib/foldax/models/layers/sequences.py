"""What networks of sequences share: tokens and padding at the entrance, segments inside, pooling at the exit.

A mask `[B, T]` says which steps are real: 0 or False is padding. Numbers above 0 are segments: sequences packed into
one row, each of which is a run of steps with a number of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from foldax.errors import ConfigError

Pooling = Literal["last", "mean", "max"]


def embedded(
    module: nn.Module, x: jax.Array, mask: jax.Array | None, vocabulary_size: int | None, width: int
) -> jax.Array:
    """Returns tokens `[B, T]` embedded as `[B, T, width]`, and floats `[B, T, C]` as they are, in the module's scope.

    What stands in padding is replaced by token 0 or zeros, so it may be anything, -1 and NaN too. An unknown token in
    compiled code becomes NaN, so that a training run stops at once instead of learning another token.

    Args:
      module: the network, with a `dtype`.
      x: its inputs.
      mask: `[B, T]` or None.
      vocabulary_size: number of tokens, or None if inputs are floats.
      width: of the embedding.

    Raises:
      ConfigError: tokens without a vocabulary, floats with one, the wrong number of axes, a mask of another shape, or
        (outside compiled code) a token that is not in the vocabulary.
    """
    name = type(module).__name__
    tokens = jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 2
    if tokens and vocabulary_size is None:
        raise ConfigError(f"{name}: tokens [B, T] need a vocabulary_size")
    if not tokens and (x.ndim != 3 or vocabulary_size is not None):
        wanted = "floats [B, T, C]" if vocabulary_size is None else "integer tokens [B, T]"
        raise ConfigError(f"{name}: inputs must be {wanted}, got {x.dtype}{list(x.shape)}")
    if mask is not None:
        if mask.shape != x.shape[:2]:
            raise ConfigError(f"{name}: the mask must be {list(x.shape[:2])} as the inputs, got {list(mask.shape)}")
        x = jnp.where(mask != 0 if tokens else (mask != 0)[..., None], x, 0)
    if vocabulary_size is None:
        return x
    check_tokens(x, vocabulary_size, name)
    x = x.astype(jnp.int32)
    x = jnp.where(x < 0, vocabulary_size, x)  # taking a row past the end gives NaN, one before the start does not
    return nn.Embed(vocabulary_size, width, dtype=module.dtype, name="embedding")(x)


def check_tokens(tokens: Any, vocabulary_size: int, name: str) -> None:
    """Raises a ConfigError where a token is not in 0 to `vocabulary_size` - 1; what is traced goes unseen."""
    if isinstance(tokens, jax.core.Tracer) or not getattr(tokens, "is_fully_addressable", True):
        return
    tokens = np.asarray(tokens)
    wrong = np.argwhere((tokens < 0) | (tokens >= vocabulary_size))
    if len(wrong):
        where = [int(index) for index in wrong[0]]
        raise ConfigError(
            f"{name}: token {tokens[tuple(where)]} at {where} is not in the vocabulary, 0 to {vocabulary_size - 1}"
        )


def segment_starts(mask: jax.Array) -> jax.Array:
    """Returns bool `[B, T]`: the first real step of every segment. Padding inside a segment does not end it."""
    segments = mask.astype(jnp.int32)
    steps = jnp.arange(segments.shape[1])[None, :]
    last = jax.lax.cummax(jnp.where(segments != 0, steps, -1), axis=1)  # the last real step so far
    before = jnp.concatenate([jnp.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    previous = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
    return (segments != 0) & ((before < 0) | (segments != previous))


def segment_positions(mask: jax.Array) -> jax.Array:
    """Returns int `[B, T]`: how many real steps of its segment come before a step."""
    count = jnp.cumsum(mask != 0, axis=1, dtype=jnp.int32) - 1
    first = jax.lax.cummax(jnp.where(segment_starts(mask), count, 0), axis=1)
    return jnp.maximum(count - first, 0)


def same_segment(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns bool `[B, T, S]`: steps of one segment see each other, and nobody sees padding."""
    query, key = query.astype(jnp.int32)[:, :, None], key.astype(jnp.int32)[:, None, :]
    return (query == key) & (key != 0)


def check_pooling(kind: Pooling | None) -> None:
    """Raises a ConfigError for what is no way to pool."""
    if kind not in (None, "last", "mean", "max"):
        raise ConfigError(f"pooling: {kind!r} is none of None, 'last', 'mean' and 'max'")


def pool_sequence(x: jax.Array, kind: Pooling, mask: jax.Array | None = None) -> jax.Array:
    """Returns one vector `[B, D]` of every sequence `[B, T, D]`: its last step, or the mean or maximum of its steps.

    Steps where `mask` `[B, T]` is 0 or False do not count; a sequence without any step gives zeros.

    Raises:
      ConfigError: for any other kind.
    """
    check_pooling(kind)
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask != 0
    if kind == "last":
        index = jnp.max(jnp.where(real, jnp.arange(x.shape[1])[None, :], 0), axis=1)
        pooled = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    elif kind == "mean":
        count = jnp.maximum(real.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
        pooled = jnp.where(real[..., None], x, 0).sum(axis=1, dtype=jnp.float32) * jnp.reciprocal(count)
        pooled = pooled.astype(x.dtype)
    else:
        # By index, because the gradient of `max` may find no maximum: see `layers.largest`.
        index = jnp.where(real[..., None], x, jnp.finfo(x.dtype).min).argmax(axis=1, keepdims=True)
        pooled = jnp.take_along_axis(x, index, axis=1)[:, 0]
    return jnp.where(real.any(axis=1, keepdims=True), pooled, jnp.zeros((), x.dtype))


def pool_both_ways(x: jax.Array, kind: Pooling, mask: jax.Array | None = None) -> jax.Array:
    """Pools outputs of a forward and a backward reader, side by side; the backward one's last step is the first."""
    if kind != "last":
        return pool_sequence(x, kind, mask)
    forward, backward = jnp.split(x, 2, axis=-1)
    flipped = None if mask is None else jnp.flip(mask, 1)
    ends = pool_sequence(forward, kind, mask), pool_sequence(jnp.flip(backward, 1), kind, flipped)
    return jnp.concatenate(ends, axis=-1)
