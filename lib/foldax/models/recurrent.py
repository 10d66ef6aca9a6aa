"""Recurrent networks: vanilla, LSTM and GRU.

A layer's product with all its inputs `[B, T, C]` is one matrix product before the loop over time, which does
the product of the state alone; Flax's cells do both, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError, nearest
from foldax.models.initializers import Initializer, initializer
from foldax.models.layers import Dropout, Pooling, pool_sequence

Carry = tuple[jax.Array, ...]  # each [B, width]


def rnn_step(carry: Carry, projected: jax.Array, product: Callable[[jax.Array], jax.Array]) -> Carry:
    """The simple recurrent cell of Elman (1990) with tanh."""
    return (jnp.tanh(projected + product(carry[0])),)


def lstm_step(carry: Carry, projected: jax.Array, product: Callable[[jax.Array], jax.Array]) -> Carry:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers et al., 2000)."""
    hidden, memory = carry
    enter, forget, candidate, leave = jnp.split(projected + product(hidden), 4, axis=-1)
    memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
    return jax.nn.sigmoid(leave) * jnp.tanh(memory), memory


def gru_step(carry: Carry, projected: jax.Array, product: Callable[[jax.Array], jax.Array]) -> Carry:
    """The gated recurrent unit (Cho et al., 2014), its reset gate after the product as in cuDNN."""
    (hidden,) = carry
    reset, update, candidate = jnp.split(projected, 3, axis=-1)
    reset_state, update_state, candidate_state = jnp.split(product(hidden), 3, axis=-1)
    update = jax.nn.sigmoid(update + update_state)
    candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset + reset_state) * candidate_state)
    return ((1 - update) * candidate + update * hidden,)


CELLS: dict[str, tuple[Callable[..., Carry], int, int]] = {
    "rnn": (rnn_step, 1, 1),
    "lstm": (lstm_step, 4, 2),
    "gru": (gru_step, 3, 1),
}
"""By name: a step, its number of gates, and of arrays in its carry (the first one is the output)."""


class RecurrentLayer(nn.Module):
    """One layer in one direction: `[B, T, C]` to `[B, T, width]` and the carry after the last step.

    Parameters: "input" (a dense layer to the gates), "kernel" `[width, gates * width]` of the state, and for a GRU
    "candidate_bias" `[width]`. An LSTM's forget gate starts with bias 1 (Jozefowicz et al., 2015).

    Attributes:
      width: of the state.
      cell: "rnn", "lstm" or "gru".
      reverse: from the last step to the first.
      kernel_init: of the input's kernel; the state's is orthogonal.
      dtype: type to compute in.
    """

    width: int
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    reverse: bool = False
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: Carry | None = None
    ) -> tuple[jax.Array, Carry]:
        if self.cell not in CELLS:
            raise ConfigError(f"cell: there is no {self.cell!r}{nearest(self.cell, CELLS)} (known: {', '.join(CELLS)})")
        step, gates, states = CELLS[self.cell]
        kernel = self.param("kernel", nn.initializers.orthogonal(), (self.width, gates * self.width))
        dense = nn.Dense(
            gates * self.width,
            dtype=self.dtype,
            kernel_init=initializer(self.kernel_init),
            bias_init=_forget_one if self.cell == "lstm" else nn.initializers.zeros,
            name="input",
        )
        projected = dense(x)
        kernel = kernel.astype(projected.dtype)
        bias = jnp.zeros((1, gates * self.width), projected.dtype)
        if self.cell == "gru":
            own = self.param("candidate_bias", nn.initializers.zeros, (self.width,))
            bias = bias.at[0, -self.width :].set(own.astype(projected.dtype))
        zeros = (jnp.zeros((x.shape[0], self.width), projected.dtype),) * states
        begin: Carry = zeros if carry is None else carry

        def one(carry: Carry, now: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> tuple[Carry, jax.Array]:
            inputs, real, starts = now
            before = carry if starts is None else jax.tree.map(lambda c: jnp.where(starts[:, None], 0, c), carry)
            after = step(before, inputs, lambda hidden: hidden @ kernel + bias)
            if real is None:
                return after, after[0]
            after = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), after, carry)
            return after, jnp.where(real[:, None], after[0], 0)

        real, starts = None, None
        if mask is not None:
            real, starts = (mask != 0).T, _starts(mask, self.reverse).T
        end, outputs = jax.lax.scan(one, begin, (projected.swapaxes(0, 1), real, starts), reverse=self.reverse)
        return outputs.swapaxes(0, 1), end


class Recurrent(nn.Module):
    """Stacked recurrent layers: `[B, T, C]`, or tokens `[B, T]`, to float32 `[B, T, features]` or `[B, features]`.

    With `carry` (see `initial_carry`) it goes on where an earlier part of the sequences ended and returns
    `(outputs, carry)`. With `decode=True` the carry is kept in the collection "cache" instead (see `generate`).

    Attributes:
      features: width of the output; None: no dense layer after the last recurrent one.
      hidden: width of every layer.
      cell: "rnn", "lstm" or "gru".
      bidirectional: each layer reads both ways, and its outputs `[..., 2 * width]` stand side by side.
      vocabulary_size: of tokens, which are embedded with the first layer's width; None where inputs are floats.
      pooling: "last", "mean" or "max" over time, or None: an output for every step.
      dropout: rate before every layer but the first, and before the output; may be traced.
      kernel_init: of the inputs' kernels; the states' are orthogonal.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
    """

    features: int | None = None
    hidden: tuple[int, ...] = (128,)
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    bidirectional: bool = False
    vocabulary_size: int | None = None
    pooling: Pooling | None = None
    dropout: Any = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        carry: tuple[Carry, ...] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Any:
        """Applies the network.

        Args:
          x: `[B, T, C]`, or int `[B, T]` with a `vocabulary_size`.
          mask: `[B, T]`; 0 or False is padding: it changes nothing, and its outputs are 0 before the last dense layer.
            Numbers above 0 are segments of packed sequences: the carry starts anew where another one begins.
          carry: one for every layer.
          train: whether dropout acts.
          decode: takes the carry from the collection "cache", and leaves it there.

        Raises:
          ConfigError: tokens without a vocabulary, or a carry for both directions.
        """
        if self.bidirectional and (decode or carry is not None):
            raise ConfigError("bidirectional: a network that reads backwards cannot go on from a carry")
        given = carry
        if decode:
            ready = self.has_variable("cache", "carry")
            cache = self.variable("cache", "carry", self.initial_carry, x.shape[0])
            carry = cache.value
        x = embedded(self, x, self.vocabulary_size, self.hidden[0])
        ends = []
        for index, width in enumerate(self.hidden):
            if index:
                x = Dropout(self.dropout)(x, train=train)
            before = None if carry is None else carry[index]
            layer = RecurrentLayer(width, self.cell, False, self.kernel_init, self.dtype, name=f"layer_{index}")
            forward, end = layer(x, mask, before)
            ends.append(end)
            if self.bidirectional:
                layer = RecurrentLayer(width, self.cell, True, self.kernel_init, self.dtype, name=f"backward_{index}")
                forward = jnp.concatenate([forward, layer(x, mask)[0]], axis=-1)
            x = forward
        if decode and ready:
            cache.value = tuple(ends)
        if self.pooling is not None:
            x = pool_both_ways(x, self.pooling, mask) if self.bidirectional else pool_sequence(x, self.pooling, mask)
        if self.features is not None:
            x = Dropout(self.dropout)(x, train=train)
            x = nn.Dense(self.features, dtype=self.dtype, name="output")(x)
        x = x.astype(jnp.float32)
        return x if given is None else (x, tuple(ends))

    def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
        """Returns the carry of `batch_size` sequences before their first step, zeros."""
        dtype, count = self.dtype or jnp.float32, CELLS[self.cell][2]
        return tuple((jnp.zeros((batch_size, width), dtype),) * count for width in self.hidden)


def embedded(module: nn.Module, x: jax.Array, vocabulary_size: int | None, width: int) -> jax.Array:
    """Returns tokens `[B, T]` embedded as `[B, T, width]`, and floats `[B, T, C]` as they are.

    Raises:
      ConfigError: tokens without a vocabulary, floats with one, or the wrong number of axes.
    """
    name = type(module).__name__
    if jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 2:
        if vocabulary_size is None:
            raise ConfigError(f"{name}: tokens [B, T] need a vocabulary_size")
        return nn.Embed(vocabulary_size, width, dtype=getattr(module, "dtype", None), name="embedding")(x)
    if x.ndim != 3 or vocabulary_size is not None:
        wanted = "floats [B, T, C]" if vocabulary_size is None else "integer tokens [B, T]"
        raise ConfigError(f"{name}: inputs must be {wanted}, got {x.dtype}{list(x.shape)}")
    return x


def pool_both_ways(x: jax.Array, kind: Pooling, mask: jax.Array | None) -> jax.Array:
    """Pools the outputs of both directions; the last step of the backward one is the first of the sequence."""
    if kind != "last":
        return pool_sequence(x, kind, mask)
    forward, backward = jnp.split(x, 2, axis=-1)
    flipped = None if mask is None else jnp.flip(mask, 1)
    ends = pool_sequence(forward, kind, mask), pool_sequence(jnp.flip(backward, 1), kind, flipped)
    return jnp.concatenate(ends, axis=-1)


def _forget_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


def _starts(mask: jax.Array, reverse: bool) -> jax.Array:
    """Returns where a segment `[B, T]` begins in the direction of reading; the first step goes on from the carry."""
    segments = mask.astype(jnp.int32)
    if reverse:
        return jnp.flip(_starts(jnp.flip(segments, 1), False), 1)
    steps = jnp.arange(segments.shape[1])[None, :]
    last = jax.lax.cummax(jnp.where(segments != 0, steps, -1), axis=1)  # the last step that is no padding
    before = jnp.concatenate([jnp.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    previous = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
    return (segments != 0) & (before >= 0) & (segments != previous)
