"""Attention: scaled dot-product attention in a form that is fast on the CPU too, rotary positions, and the layer.

On the CPU, XLA spends most of the time of `jax.nn.dot_product_attention` and its gradients on copies: of products in
the layout `[B, T, N, H]`, and of masks as large as the logits. The same formula with the heads moved to the front and
an additive mask takes half the time, and less where causal attention skips blocks of future keys. Other platforms
keep JAX's function.

Shape suffixes: B batch, T queries, S keys, D width, N query heads, K key-value heads, G query heads per key-value head
(N / K), H features of a head.
"""

import functools
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers.building_blocks import Dense
from foldax.models.layers.fused_attention import fused_attention
from foldax.models.layers.initializers import Initializer, initializer
from foldax.platforms import target_platform

AttentionImplementation = Literal["xla", "fused"]

MIN_BLOCK_LENGTH, MAX_BLOCKS = 64, 4  # causal attention runs in up to 4 blocks of at least 64 queries


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    causal: bool = False,
    implementation: AttentionImplementation = "xla",
) -> Array:
    """Computes softmax(Q K^T / sqrt(H)) V, as `jax.nn.dot_product_attention` (Vaswani et al., 2017, equation 1).

    Args:
      query: `[B, T, N, H]`.
      key: `[B, S, K, H]`; K divides N, and each key head serves N / K query heads (Ainslie et al., 2023).
      value: `[B, S, K, H]`.
      mask: bool `[B, 1, T or 1, S]`, True where a query may attend to a key; the output of a query that may attend to
        no key is undefined.
      causal: query t attends to keys 0 to t only.
      implementation: "xla", or "fused" for the platform's kernel where it has one for these inputs (see
        `fused_attention`): less memory and time for long sequences, in bits that differ.

    Returns:
      `[B, T, N, H]`.

    Raises:
      ConfigError: `implementation` is unknown.

    >>> query, key_value = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 5, 1, 8))
    >>> dot_product_attention(query, key_value, key_value, causal=True).shape
    (2, 5, 4, 8)
    """
    chex.assert_rank([query, key, value] if mask is None else [query, key, value, mask], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_equal_shape_prefix([query, key], 1)
    platform = target_platform()
    if implementation not in get_args(AttentionImplementation):
        raise ConfigError(f"attention_implementation: {implementation!r} is unknown; choose 'xla' or 'fused'")
    fused = None if implementation == "xla" else fused_attention(query, key, value, mask, causal, platform)
    if fused is not None:
        return fused
    if platform != "cpu":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    length = query.shape[1]
    num_blocks = min(length // MIN_BLOCK_LENGTH, MAX_BLOCKS) if causal and length == key.shape[1] else 1
    if num_blocks < 2:
        return _attend(query, key, value, mask, causal, 0)
    # A block of queries skips the keys in its future: with 4 blocks, 3 / 8 of all products.
    outputs, size = [], -(-length // num_blocks)
    for start in range(0, length, size):
        # Keys from `end` on are in the future of the whole block.
        end = min(start + size, length)
        block_mask = None if mask is None else mask[:, :, start if mask.shape[2] > 1 else 0 : end, :end]
        outputs.append(_attend(query[:, start:end], key[:, :end], value[:, :end], block_mask, causal, start))
    return jnp.concatenate(outputs, axis=1)


def _attend(
    query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, mask: Array | None, causal: bool, first: int
) -> Array:
    """Attention of the queries at positions `first`, `first` + 1, ... of the key sequence."""
    (B, T, N, H), (S, K) = query_BTNH.shape, key_BSKH.shape[1:3]
    G = N // K
    # Heads first: one batched matrix product per key-value head, and no transposed copies in the gradients.
    # The query heads that share a key head are one matrix, [G * T, H].
    query = query_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B * K, G * T, H)
    key, value = (x.transpose(0, 2, 1, 3).reshape(B * K, S, H) for x in (key_BSKH, value_BSKH))
    # Logits and softmax in float32 whatever the type of the inputs, as in JAX's function.
    logits = jax.lax.dot_general(query, key, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    logits = logits * H**-0.5
    if causal:
        positions = first + jax.lax.broadcasted_iota(jnp.int32, (1, 1, T, S), 2)
        causal_mask = positions >= jax.lax.broadcasted_iota(jnp.int32, (1, 1, T, S), 3)
        mask = causal_mask if mask is None else causal_mask & mask
    if mask is not None:
        # Added, not selected by `where`: the backward pass then needs no copy of the mask.
        logits = logits.reshape(B, N, T, S) + jnp.where(mask, 0, jnp.float32(-1e30))
        logits = logits.reshape(B * K, G * T, S)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    outputs = jax.lax.dot_general(weights, value, (((2,), (1,)), ((0,), (0,))))
    return outputs.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def rotary_angles(positions: Array, size: int, base: float = 10_000.0) -> Array:
    """Computes the angles of the rotary position embedding (Su et al., 2021, equation 15).

    Args:
      positions: `[B, T]`.
      size: features of a head, H; even.
      base: wavelengths range from 2 pi to 2 pi * base.

    Returns:
      float32 `[B, T, H / 2]`: position times base ** (-2 i / H).

    >>> rotary_angles(jnp.array([[0, 1, 2]]), 4)[0, :, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    chex.assert_rank(positions, 2)
    frequencies = base ** (-jnp.arange(size // 2, dtype=jnp.float32) * 2 / size)
    return positions[..., None].astype(jnp.float32) * frequencies[None, None, :]


def apply_rotary_embedding(heads: Array, angles: Array) -> Array:
    """Rotates pairs of features by position-dependent angles (Su et al., 2021); feature i pairs with i + H / 2.

    Args:
      heads: queries or keys `[B, T, N, H]`.
      angles: `[B or 1, T, H / 2]`, see `rotary_angles`.

    Returns:
      `[B, T, N, H]`.

    >>> apply_rotary_embedding(jnp.ones((2, 3, 1, 4)), jnp.zeros((1, 3, 2))).shape
    (2, 3, 1, 4)
    """
    chex.assert_rank([heads, angles], [4, 3])
    cosine, sine = (f(angles)[:, :, None].astype(heads.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017): queries `[B, T, D]` and a context `[B, S, D]` to `[B, T, D]`.

    Attributes:
      num_heads: number of query heads, which divides D.
      num_kv_heads: number of key-value heads, each shared by `num_heads / num_kv_heads` query heads (grouped-query
        attention: Ainslie et al., 2023); None: as many as `num_heads`.
      causal: whether a step attends only to itself and earlier steps.
      use_bias: whether the projections have biases.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in.
      implementation: "xla" or "fused", see `dot_product_attention`.

    >>> layer = Attention(num_heads=2)
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
    (2, 5, 8)
    """

    num_heads: int
    num_kv_heads: int | None = None
    causal: bool = False
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    implementation: AttentionImplementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        mask: Array | None = None,
        angles: Array | None = None,
        decode: bool = False,
    ) -> Array:
        """Attends to the context, or to `x` itself.

        Args:
          x: queries `[B, T, D]`.
          context: keys and values `[B, S, D]`; None: self-attention.
          mask: bool `[B, T, S]` or `[B, 1, S]`, True where a query may attend to a key; None: everywhere. A query
            without any key in the context gets zeros.
          angles: angles of the rotary embedding, `[B or 1, T, H / 2]` with H = D / num_heads; None: no rotation.
          decode: appends keys and values to the collection "cache", and attends to all of it.

        Returns:
          `[B, T, D]`.

        Raises:
          ConfigError: `num_heads` does not divide D, or `num_kv_heads` does not divide `num_heads`.
        """
        width, kv_heads = x.shape[-1], self.num_kv_heads or self.num_heads
        if width % self.num_heads or self.num_heads % kv_heads:
            heads = f"num_heads: {self.num_heads} must divide the width, {width}"
            raise ConfigError(f"{heads}; num_kv_heads: {kv_heads} must divide them")
        head_size, source_BSD = width // self.num_heads, x if context is None else context
        options = dict(use_bias=self.use_bias, kernel_init=initializer(self.kernel_init), dtype=self.dtype)
        dense = functools.partial(Dense, **options)
        # 1. Projections to heads
        query_BTNH = dense(width, name="query")(x).reshape(*x.shape[:2], self.num_heads, head_size)
        key_value = dense(2 * kv_heads * head_size, name="key_value")(source_BSD)
        key_value = key_value.reshape(*source_BSD.shape[:2], 2 * kv_heads, head_size)
        key_BSKH, value_BSKH = jnp.split(key_value, 2, axis=2)
        # 2. Rotary positions
        if angles is not None:
            query_BTNH, key_BSKH = (apply_rotary_embedding(heads, angles) for heads in (query_BTNH, key_BSKH))
        # 3. Attention, to the cache when decoding
        if decode and context is None:
            key_BSKH, value_BSKH, mask = self._append_to_cache(key_BSKH, value_BSKH)
        mask = None if mask is None else mask[:, None]
        causal = self.causal and context is None and not decode
        inputs = query_BTNH, key_BSKH, value_BSKH
        outputs_BTNH = dot_product_attention(*inputs, mask, causal, self.implementation)
        if mask is not None and context is not None:
            outputs_BTNH = jnp.where(mask.any(axis=-1)[:, 0, :, None, None], outputs_BTNH, 0)
        # 4. Output projection
        return dense(width, name="output")(outputs_BTNH.reshape(*x.shape[:2], width))

    def _append_to_cache(self, key: Array, value: Array) -> tuple[Array, Array, Array]:
        """Appends keys and values to the cache; returns all of it and the causal mask, `[1, T, S]`.

        The cache has room for S steps, the length of the inputs with which it was initialised (as in Flax).
        """
        cache_exists = self.has_variable("cache", "key")
        keys = self.variable("cache", "key", jnp.zeros, key.shape, key.dtype)
        values = self.variable("cache", "value", jnp.zeros, value.shape, value.dtype)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        start, length = index.value, key.shape[1]
        # While the cache is initialised, the inputs only give its size.
        if cache_exists:
            keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, key, start, axis=1)
            values.value = jax.lax.dynamic_update_slice_in_dim(values.value, value, start, axis=1)
            index.value = start + length
        causal_mask = jnp.arange(keys.value.shape[1])[None, :] <= start + jnp.arange(length)[:, None]
        return keys.value, values.value, causal_mask[None]
