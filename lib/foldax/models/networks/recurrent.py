"""Recurrent networks: vanilla, LSTM and GRU.

A layer's product with all its inputs `[B, T, C]` is one matrix product before the loop over time (see `recurrence`),
which does the product of the state alone; Flax's cells do both, step by step.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError, nearest
from foldax.models.layers.building_blocks import Dense, Dropout
from foldax.models.layers.initializers import Initializer, initializer
from foldax.models.layers.recurrent_cells import Carry, Loop, Step, recurrence
from foldax.models.layers.sequences import (
    Pooling,
    check_pooling,
    embedded,
    pool_both_ways,
    pool_sequence,
    segment_starts,
)

CellKind = Literal["rnn", "lstm", "gru"]


def rnn_step(carry: Carry, inputs: jax.Array, product: jax.Array) -> Carry:
    """The simple recurrent cell of Elman (1990) with tanh."""
    return (jnp.tanh(inputs + product),)


def lstm_step(carry: Carry, inputs: jax.Array, product: jax.Array) -> Carry:
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers et al., 2000)."""
    enter, forget, candidate, leave = jnp.split(inputs + product, 4, axis=-1)
    memory = jax.nn.sigmoid(forget) * carry[1] + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
    return jax.nn.sigmoid(leave) * jnp.tanh(memory), memory


def gru_step(carry: Carry, inputs: jax.Array, product: jax.Array) -> Carry:
    """The gated recurrent unit (Cho et al., 2014), its reset gate after the product as in cuDNN."""
    gates, candidate = jnp.split(inputs, [product.shape[-1]], axis=-1)
    reset, update, state = jnp.split(gates + product, 3, axis=-1)
    update = jax.nn.sigmoid(update)
    candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset) * state)
    return ((1 - update) * candidate + update * carry[0],)


CELLS: dict[str, tuple[Step, int, int]] = {"rnn": (rnn_step, 1, 1), "lstm": (lstm_step, 4, 2), "gru": (gru_step, 3, 1)}
"""By name: a step, its number of gates, and of arrays in its carry (the first one is the output)."""


def cell_named(name: str) -> tuple[Step, int, int]:
    """Returns the entry of `CELLS`; ConfigError if there is none."""
    if name not in CELLS:
        raise ConfigError(f"cell: there is no {name!r}{nearest(str(name), CELLS)} (known: {', '.join(CELLS)})")
    return CELLS[name]


class RecurrentLayer(nn.Module):
    """One layer in one direction: `[B, T, C]` to `[B, T, width]` and the carry after the last step.

    Parameters: "input" (a dense layer to the gates), "kernel" `[width, gates * width]` of the state, orthogonal for
    each gate, and for a GRU "candidate_bias" `[width]`. An LSTM's forget gate starts with bias 1 (Jozefowicz et al.,
    2015).

    Attributes:
      width: of the state.
      cell: "rnn", "lstm" or "gru".
      reverse: from the last step to the first.
      kernel_init: of the input's kernel.
      dtype: type to compute in.
      remat: computes a step's gates anew in the backward pass, and keeps the carries only.
    """

    width: int
    cell: CellKind = "lstm"
    reverse: bool = False
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: Carry | None = None
    ) -> tuple[jax.Array, Carry]:
        step, gates, states = cell_named(self.cell)
        dense = Dense(
            gates * self.width,
            dtype=self.dtype,
            kernel_init=initializer(self.kernel_init),
            bias_init=_forget_one if self.cell == "lstm" else nn.initializers.zeros,
            name="input",
        )
        projected = dense(x.swapaxes(0, 1))  # [T, B, gates * width]
        kernel = self.param("kernel", _orthogonal_gates, (self.width, gates * self.width)).astype(projected.dtype)
        if self.cell == "gru":
            bias = self.param("candidate_bias", nn.initializers.zeros, (self.width,)).astype(projected.dtype)
            bias = jnp.broadcast_to(bias[None, None, :], (*projected.shape[:2], self.width))
            resets, candidate = jnp.split(projected, [2 * self.width], axis=-1)
            projected = jnp.concatenate([resets, bias, candidate], axis=-1)
        begin = (jnp.zeros((x.shape[0], self.width)),) * states if carry is None else carry
        begin = tuple(jnp.asarray(part, projected.dtype) for part in begin)
        loop = Loop(step, self.reverse, self.remat)
        end, outputs = recurrence(loop, kernel, projected, begin, *_turned(mask, self.reverse))
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
      remat: computes the gates of a step anew in the backward pass, which saves memory on long sequences.
    """

    features: int | None = None
    hidden: tuple[int, ...] = (128,)
    cell: CellKind = "lstm"
    bidirectional: bool = False
    vocabulary_size: int | None = None
    pooling: Pooling | None = None
    dropout: Any = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    remat: bool = False

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
            Numbers above 0 are segments of packed sequences: the carry starts anew where another one begins; the first
            one goes on from the carry that was given.
          carry: one for every layer.
          train: whether dropout acts.
          decode: takes the carry from the collection "cache", and leaves it there.

        Raises:
          ConfigError: inputs that are neither tokens nor floats as announced, no layer, or a carry for both directions
            or of another number of layers.
        """
        if not self.hidden:
            raise ConfigError("hidden: a recurrent network needs the width of one layer or more, got ()")
        if self.bidirectional and (decode or carry is not None):
            raise ConfigError("bidirectional: a network that reads backwards cannot go on from a carry")
        if carry is not None and len(carry) != len(self.hidden):
            raise ConfigError(f"carry: {len(self.hidden)} layers need one each (see initial_carry), got {len(carry)}")
        check_pooling(self.pooling)
        given = carry
        if decode:
            ready = self.has_variable("cache", "carry")
            cache = self.variable("cache", "carry", self.initial_carry, x.shape[0])
            carry = cache.value
        x = embedded(self, x, mask, self.vocabulary_size, self.hidden[0])
        make = functools.partial(
            RecurrentLayer, cell=self.cell, kernel_init=self.kernel_init, dtype=self.dtype, remat=self.remat
        )
        ends = []
        for index, width in enumerate(self.hidden):
            if index:
                x = Dropout(self.dropout)(x, train=train)
            before = None if carry is None else carry[index]
            outputs, end = make(width, name=f"layer_{index}")(x, mask, before)
            ends.append(end)
            if self.bidirectional:
                backward, _ = make(width, reverse=True, name=f"backward_{index}")(x, mask)
                outputs = jnp.concatenate([outputs, backward], axis=-1)
            x = outputs
        if decode and ready:
            cache.value = tuple(ends)
        if self.pooling is not None:
            x = pool_both_ways(x, self.pooling, mask) if self.bidirectional else pool_sequence(x, self.pooling, mask)
        if self.features is not None:
            x = Dropout(self.dropout)(x, train=train)
            x = Dense(self.features, dtype=self.dtype, name="output")(x)
        x = x.astype(jnp.float32)
        return x if given is None else (x, tuple(ends))

    def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
        """Returns the carry of `batch_size` sequences before their first step, zeros."""
        dtype, count = self.dtype or jnp.float32, cell_named(self.cell)[2]
        return tuple((jnp.zeros((batch_size, width), dtype),) * count for width in self.hidden)


def _forget_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


def _orthogonal_gates(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns `[width, gates * width]`, an orthogonal matrix for every gate."""
    width, total = shape
    make = nn.initializers.orthogonal()
    return jnp.concatenate([make(k, (width, width), dtype) for k in jax.random.split(key, total // width)], axis=1)


def _turned(mask: jax.Array | None, reverse: bool) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns which steps are real, and where the carry starts anew, `[T, B]`; None where there is no such thing."""
    if mask is None:
        return None, None
    if mask.dtype == bool:
        return mask.T, None
    starts = jnp.flip(_changes(jnp.flip(mask, 1)), 1) if reverse else _changes(mask)
    return (mask != 0).T, starts.T


def _changes(mask: jax.Array) -> jax.Array:
    """Returns where a segment `[B, T]` begins that is not the first."""
    starts = segment_starts(mask)
    return starts & (jnp.cumsum(starts, axis=1) > 1)
