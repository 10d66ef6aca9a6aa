"""Scaled dot-product attention, in a form that is fast on the CPU too.

On the CPU, XLA spends most of the time of `jax.nn.dot_product_attention` and its gradients on copies: of products in
the layout `[B, T, N, H]`, and of masks as large as the logits. The same formula with the heads moved to the front and
an additive mask takes half the time, and less where causal attention skips blocks of future keys. Other platforms
keep JAX's function.

Shape suffixes: B batch, T queries, S keys, N query heads, K key-value heads, G query heads per key-value head (N / K),
H features of a head.
"""

import chex
import jax
import jax.numpy as jnp

MIN_BLOCK_LENGTH, MAX_BLOCKS = 64, 4  # causal attention runs in up to 4 blocks of at least 64 queries


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Computes softmax(Q K^T / sqrt(H)) V, as `jax.nn.dot_product_attention` (Vaswani et al., 2017, equation 1).

    Args:
      query: `[B, T, N, H]`.
      key: `[B, S, K, H]`; K divides N, and each key head serves N / K query heads (Ainslie et al., 2023).
      value: `[B, S, K, H]`.
      mask: bool `[B, 1, T or 1, S]`, True where a query may attend to a key; the output of a query that may attend to
        no key is undefined.
      causal: query t attends to keys 0 to t only.

    Returns:
      `[B, T, N, H]`.

    >>> query, key_value = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 5, 1, 8))
    >>> dot_product_attention(query, key_value, key_value, causal=True).shape
    (2, 5, 4, 8)
    """
    chex.assert_rank([query, key, value] if mask is None else [query, key, value, mask], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_equal_shape_prefix([query, key], 1)
    if jax.default_backend() != "cpu":
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
    query_BTNH: jax.Array, key_BSKH: jax.Array, value_BSKH: jax.Array, mask: jax.Array | None, causal: bool, first: int
) -> jax.Array:
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
