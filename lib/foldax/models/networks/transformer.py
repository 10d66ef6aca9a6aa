"""The Transformer: encoder, decoder, and decoder with cross-attention."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.attention import dot_product_attention
from foldax.models.layers.building_blocks import Dense, Dropout, flat_dot_general, normalization, repeat
from foldax.models.layers.initializers import Initializer, initializer
from foldax.models.layers.sequences import (
    Pooling,
    check_pooling,
    embedded,
    pool_sequence,
    same_segment,
    segment_positions,
)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017): queries `[B, T, D]` over keys and values `[B, S, D]`.

    Attributes:
      num_heads: of queries; they divide D.
      num_kv_heads: of keys and values, each shared by `num_heads / num_kv_heads` queries (Ainslie et al., 2023).
      causal: a step sees only itself and what is before it.
      use_bias: whether the projections have biases.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in.
    """

    num_heads: int
    num_kv_heads: int | None = None
    causal: bool = False
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
        decode: bool = False,
    ) -> jax.Array:
        """Returns `[B, T, D]`.

        Args:
          x: `[B, T, D]`.
          context: what is attended to, `[B, S, D]`; `x` itself if None.
          mask: bool `[B, T, S]` (or `[B, 1, S]`), who may see whom; None: all. An empty context gives zeros.
          angles: of the rotary positions, `[B, T, D / num_heads / 2]`; None: no rotation.
          decode: appends keys and values to the collection "cache", and attends to all that is there.

        Raises:
          ConfigError: the heads do not divide.
        """
        width, kv_heads = x.shape[-1], self.num_kv_heads or self.num_heads
        if width % self.num_heads or self.num_heads % kv_heads:
            raise ConfigError(
                f"num_heads: {self.num_heads} must divide the width, {width}; num_kv_heads: {kv_heads} must divide them"
            )
        size, source = width // self.num_heads, x if context is None else context
        dense = functools.partial(
            Dense, use_bias=self.use_bias, kernel_init=initializer(self.kernel_init), dtype=self.dtype
        )
        query = dense(width, name="query")(x).reshape(*x.shape[:2], self.num_heads, size)
        both = dense(2 * kv_heads * size, name="key_value")(source).reshape(*source.shape[:2], 2 * kv_heads, size)
        key, value = jnp.split(both, 2, axis=2)
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        if decode and context is None:
            key, value, mask = self._cached(key, value)
        mask = None if mask is None else mask[:, None]
        causal = self.causal and context is None and not decode
        outputs = dot_product_attention(query, key, value, mask, causal)
        if mask is not None and context is not None:
            outputs = jnp.where(mask.any(axis=-1)[:, 0, :, None, None], outputs, 0)
        return dense(width, name="output")(outputs.reshape(*x.shape[:2], width))

    def _cached(self, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Appends to the cache, and returns all of it with who may see what, `[1, T, S]`.

        It has room for as many steps, S, as the inputs had with which it was initialised (as in Flax's attention).
        """
        ready = self.has_variable("cache", "key")
        keys = self.variable("cache", "key", jnp.zeros, key.shape, key.dtype)
        values = self.variable("cache", "value", jnp.zeros, value.shape, value.dtype)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        start, length = index.value, key.shape[1]
        if ready:
            keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, key, start, axis=1)
            values.value = jax.lax.dynamic_update_slice_in_dim(values.value, value, start, axis=1)
            index.value = start + length
        seen = jnp.arange(keys.value.shape[1])[None, :] <= start + jnp.arange(length)[:, None]
        return keys.value, values.value, seen[None]


class Block(nn.Module):
    """A pre-norm block (Xiong et al., 2020): attention, cross-attention if wanted, and a dense layer pair.

    Attributes:
      num_heads: see `Attention`, as the others that are not named here.
      mlp_width: of the hidden dense layer; None: four times the width.
      gated: multiplies the hidden layer by another one (Shazeer, 2020).
      cross_attention: whether it attends to a context too.
      activation: of the hidden dense layer.
      dropout: rate after attention and dense layers, on what is added; may be traced.
      normalization: "layer" or "rms".
    """

    num_heads: int
    num_kv_heads: int | None = None
    mlp_width: int | None = None
    gated: bool = False
    causal: bool = False
    cross_attention: bool = False
    activation: Activation = "gelu"
    dropout: Any = 0.0
    normalization: Literal["layer", "rms"] = "layer"
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        width = x.shape[-1]
        init = initializer(self.kernel_init)
        attend = functools.partial(Attention, self.num_heads, self.num_kv_heads, use_bias=self.use_bias)
        attend = functools.partial(attend, kernel_init=self.kernel_init, dtype=self.dtype)
        dense = functools.partial(Dense, use_bias=self.use_bias, kernel_init=init, dtype=self.dtype)

        def normalized(x: jax.Array) -> jax.Array:
            return normalization(self.normalization, width, train, self.dtype)(x)

        def add(x: jax.Array, new: jax.Array) -> jax.Array:
            return x + Dropout(self.dropout)(new, train=train)

        attention = attend(causal=self.causal, name="attention")
        x = add(x, attention(normalized(x), mask=mask, angles=angles, decode=decode))
        if self.cross_attention:
            attention = attend(name="cross_attention")
            x = add(x, attention(normalized(x), context, mask=context_mask))
        hidden_width = self.mlp_width or 4 * width
        y = normalized(x)
        hidden = activation(self.activation)(dense(hidden_width, name="mlp_in")(y))
        if self.gated:
            hidden = hidden * dense(hidden_width, name="mlp_gate")(y)
        return add(x, dense(width, name="mlp_out")(hidden))


SHARED: tuple[str, ...] = ("num_heads", "num_kv_heads", "mlp_width", "gated", "causal", "cross_attention")
SHARED += ("activation", "dropout", "normalization", "use_bias", "kernel_init", "dtype")
"""Settings of a Transformer that are its blocks' too."""


class Transformer(nn.Module):
    """A pre-norm Transformer: `[B, T, C]`, or tokens `[B, T]`, to float32 `[B, T, features]` or `[B, features]`.

    An encoder as it is, a decoder with `causal=True`, and with `cross_attention=True` one that reads a context
    (translation). With `decode=True`, keys and values are kept in the collection "cache" (see `generate`).

    Attributes:
      features: width of the output; None: no dense layer after the last block.
      vocabulary_size: of tokens; None where inputs are floats, which a dense layer brings to `width`.
      width: of the blocks.
      depth: number of blocks.
      num_heads: of the queries; they divide the width.
      num_kv_heads: of keys and values, shared by groups of queries; None: as many as `num_heads`.
      mlp_width: of the hidden dense layers; None: four times the width.
      gated: multiplies the hidden dense layers by others: SwiGLU with activation "silu" (Shazeer, 2020).
      causal: a step sees only itself and what is before it.
      cross_attention: whether the blocks attend to a `context` too.
      positions: "rotary" (Su et al., 2021), "learned", or None.
      max_length: of a sequence; learned positions have as many parameters.
      pooling: "last", "mean" or "max" over time, or None: an output for every step.
      tie_embeddings: the output layer is the transposed embedding (Press & Wolf, 2017); `features` is the vocabulary.
      activation: of the hidden dense layers: a name of `ACTIVATIONS` or a function.
      dropout: rate after the embedding, and on what attention and dense layers add; may be traced.
      normalization: "layer" or "rms".
      use_bias: whether attention and dense layers have biases.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: computes each block anew in the backward pass, which saves memory.
      scan_layers: runs the blocks as a loop, so that compiling takes as long at any depth; parameters are stacked.
    """

    features: int | None = None
    vocabulary_size: int | None = None
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    mlp_width: int | None = None
    gated: bool = False
    causal: bool = False
    cross_attention: bool = False
    positions: Literal["rotary", "learned"] | None = "rotary"
    max_length: int = 1024
    pooling: Pooling | None = None
    tie_embeddings: bool = False
    activation: Activation = "gelu"
    dropout: Any = 0.0
    normalization: Literal["layer", "rms"] = "layer"
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, T, C]`, or int `[B, T]` with a `vocabulary_size`.
          mask: `[B, T]`; 0 or False is padding, which no step sees. Numbers above 0 are segments of packed sequences,
            which do not see each other and whose positions each start at 0.
          context: `[B, S, C]`, for cross-attention.
          context_mask: `[B, S]`, 0 or False where the context is padding.
          train: whether dropout acts.
          decode: `x` follows what is in the collection "cache", without a mask. Initialised with `decode=True`, the
            cache has room for as many steps as those inputs; whoever appends more gets wrong outputs.

        Raises:
          ConfigError: inputs that are neither tokens nor floats as announced, a sequence longer than `max_length`, a
            cache without `causal`, a context missing, or settings that do not fit each other.
        """
        check_settings(self)
        hidden, positions = self._entrance(x, mask, train, decode)
        self._check_inputs(x, mask, context, context_mask, decode)
        if context is not None and context_mask is not None:
            context = jnp.where((context_mask != 0)[..., None], context, 0)  # padding may be anything, NaN too
        inside = dict(
            mask=None if mask is None else same_segment(mask, mask),
            angles=rotary_angles(positions, self.width // self.num_heads) if self.positions == "rotary" else None,
            context=context,
            context_mask=None if context_mask is None else (context_mask != 0)[:, None, :],
        )
        options = {name: getattr(self, name) for name in SHARED}
        hidden = repeat(
            lambda x: Block(**options)(x, train=train, decode=decode, **inside),
            hidden,
            self.depth,
            scan=self.scan_layers,
            remat=self.remat,
            name="blocks",
        )
        return self._exit(normalization(self.normalization, self.width, train, self.dtype)(hidden), mask)

    def _entrance(self, x: jax.Array, mask: jax.Array | None, train: bool, decode: bool) -> tuple[jax.Array, jax.Array]:
        """Returns what the first block gets, `[B, T, width]`, and the positions, `[B, T]` or `[1, T]`."""
        hidden = embedded(self, x, mask, self.vocabulary_size, self.width)
        if x.shape[1] > self.max_length:
            raise ConfigError(f"Transformer: {x.shape[1]} steps are more than its max_length, {self.max_length}")
        if self.vocabulary_size is None:
            hidden = Dense(self.width, dtype=self.dtype, name="input")(hidden)
        positions = self._positions(x, mask, decode)
        if self.positions == "learned":
            hidden = hidden + nn.Embed(self.max_length, self.width, dtype=self.dtype, name="positions")(positions)
        return Dropout(self.dropout)(hidden, train=train), positions

    def _exit(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Returns the outputs of what the last block gave."""
        if self.pooling is not None:
            x = pool_sequence(x, self.pooling, mask)
        if self.tie_embeddings:
            x = flat_dot_general(x, self.get_variable("params", "embedding")["embedding"].astype(x.dtype).T)
        elif self.features is not None:
            x = Dense(self.features, dtype=self.dtype, name="output")(x)
        return x.astype(jnp.float32)

    def _check_inputs(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        context: jax.Array | None,
        context_mask: jax.Array | None,
        decode: bool,
    ) -> None:
        if decode and (not self.causal or mask is not None):
            raise ConfigError("Transformer: decode needs a causal model, and sequences without a mask")
        if self.cross_attention != (context is not None):
            said = "needs" if self.cross_attention else "takes no"
            raise ConfigError(f"Transformer: with cross_attention={self.cross_attention} it {said} context")
        if context is None:
            return
        if context.ndim != 3 or context.shape[0] != x.shape[0]:
            raise ConfigError(f"Transformer: the context must be [{x.shape[0]}, S, C], got {list(context.shape)}")
        if context_mask is not None and context_mask.shape != context.shape[:2]:
            raise ConfigError(
                f"Transformer: the context's mask must be {list(context.shape[:2])}, got {list(context_mask.shape)}"
            )

    def _positions(self, x: jax.Array, mask: jax.Array | None, decode: bool) -> jax.Array:
        """Returns the position of every step in its segment, `[B, T]` or `[1, T]`."""
        if mask is not None:
            return segment_positions(mask)
        steps = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
        if decode:
            ready = self.has_variable("cache", "position")
            position = self.variable("cache", "position", jnp.zeros, (), jnp.int32)
            steps = steps + position.value
            if ready:
                position.value = position.value + x.shape[1]
        return steps


def check_settings(model: Transformer) -> None:
    """Raises a ConfigError where a Transformer's settings do not fit each other."""
    if model.positions not in ("rotary", "learned", None):
        raise ConfigError(f"positions: {model.positions!r} is none of None, 'rotary' and 'learned'")
    if model.normalization not in ("layer", "rms"):  # the others mix steps, padding too
        raise ConfigError(f"normalization: {model.normalization!r} is neither 'layer' nor 'rms'")
    check_pooling(model.pooling)
    if model.width % model.num_heads:
        raise ConfigError(f"num_heads: {model.num_heads} must divide the width, {model.width}")
    if model.positions == "rotary" and model.width // model.num_heads % 2:
        raise ConfigError(f"num_heads: rotary positions turn pairs, but {model.width} / {model.num_heads} is odd")
    if model.tie_embeddings and (model.vocabulary_size is None or model.features not in (None, model.vocabulary_size)):
        raise ConfigError(
            f"tie_embeddings: {model.features} features must be the vocabulary's size, {model.vocabulary_size}"
        )


def rotary_angles(positions: jax.Array, size: int, base: float = 10_000.0) -> jax.Array:
    """Returns the angles `[B, T, size / 2]` by which pairs of a head's features turn (Su et al., 2021)."""
    frequencies = base ** (-jnp.arange(size // 2, dtype=jnp.float32) * 2 / size)
    return positions[..., None].astype(jnp.float32) * frequencies[None, None, :]


def rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Returns heads `[B, T, N, size]` turned by angles `[B, T, size / 2]`: feature i pairs with i + size / 2."""
    cosine, sine = jnp.cos(angles)[:, :, None].astype(x.dtype), jnp.sin(angles)[:, :, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
