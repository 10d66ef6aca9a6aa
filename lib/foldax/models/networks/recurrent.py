"""Recurrent networks: Elman's, LSTM and GRU.

A layer multiplies its inputs `[B, T, C]` of all steps in one matrix product before the scan over time (see
`scan_cell`), and only the hidden state inside it; Flax's cells do both step by step.
"""

import functools
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Dense, Dropout, Initializer, initializer, sequences
from foldax.models.layers.activations import look_up
from foldax.models.layers.recurrent_cells import Carry, ScanSettings, Step, scan_cell

CellKind = Literal["rnn", "lstm", "gru"]


def rnn_step(carry: Carry, inputs: Array, product: Array) -> Carry:
    """Step of a simple recurrent network with tanh (Elman, 1990).

    Args:
      carry: `(h,)`, each part of a carry `[B, width]`.
      inputs: W x + b, `[B, width]`.
      product: U h, `[B, width]`.

    Returns:
      The new carry.

    >>> rnn_step((jnp.zeros((2, 3)),), jnp.zeros((2, 3)), jnp.zeros((2, 3)))[0].shape
    (2, 3)
    """
    # h' = tanh(W x + U h + b)
    return (jnp.tanh(inputs + product),)


def lstm_step(carry: Carry, inputs: Array, product: Array) -> Carry:
    """Step of long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers et al., 2000).

    Args:
      carry: hidden state and cell, `(h, c)`, each `[B, width]`.
      inputs: W x + b of the gates i, f, g and o, `[B, 4 * width]`.
      product: U h of the same gates, `[B, 4 * width]`.

    Returns:
      The new carry.

    >>> hidden, cell = lstm_step((jnp.zeros((2, 3)),) * 2, jnp.zeros((2, 12)), jnp.zeros((2, 12)))
    >>> hidden.shape, cell.shape
    ((2, 3), (2, 3))
    """
    _, cell = carry
    # i, f, o = sigmoid(W x + U h + b), each with its own W, U and b; g = tanh(W x + U h + b)
    input_gate, forget_gate, candidate, output_gate = jnp.split(inputs + product, 4, axis=-1)
    # c' = f * c + i * g
    cell = jax.nn.sigmoid(forget_gate) * cell + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
    # h' = o * tanh(c')
    return jax.nn.sigmoid(output_gate) * jnp.tanh(cell), cell


def gru_step(carry: Carry, inputs: Array, product: Array) -> Carry:
    """Step of a gated recurrent unit (Cho et al., 2014), with the reset gate applied after the product, as in cuDNN.

    Args:
      carry: `(h,)`, `[B, width]`.
      inputs: `[B, 4 * width]`: W x + b of the gates r and z, the bias of the recurrent candidate, and W x + b of the
        candidate n.
      product: U h of r, z and n, `[B, 3 * width]`.

    Returns:
      The new carry.

    >>> gru_step((jnp.zeros((2, 3)),), jnp.zeros((2, 12)), jnp.zeros((2, 9)))[0].shape
    (2, 3)
    """
    # r, z = sigmoid(W x + U h + b)
    gates, candidate = jnp.split(inputs, [product.shape[-1]], axis=-1)
    reset_gate, update_gate, recurrent_candidate = jnp.split(gates + product, 3, axis=-1)
    update_gate = jax.nn.sigmoid(update_gate)
    # n = tanh(W x + b + r * (U h + b_n))
    candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset_gate) * recurrent_candidate)
    # h' = (1 - z) * n + z * h
    return ((1 - update_gate) * candidate + update_gate * carry[0],)


CELLS: dict[str, tuple[Step, int, int]] = {"rnn": (rnn_step, 1, 1), "lstm": (lstm_step, 4, 2), "gru": (gru_step, 3, 1)}
"""Cells by name: step function, number of gates, and number of arrays in the carry (the first is the output)."""


def get_cell(name: str) -> tuple[Step, int, int]:
    """Looks up an entry of `CELLS`; raises a ConfigError if the name is unknown.

    >>> get_cell("lstm")[1:]
    (4, 2)
    """
    return look_up("cell", name, CELLS)


class RecurrentLayer(nn.Module):
    """Recurrent layer in one direction: `[B, T, C]` to `[B, T, width]` and the carry after the last step.

    Parameters: "input", a dense layer to the gates; "kernel" `[width, gates * width]` of the hidden state, orthogonal
    per gate; and for a GRU "candidate_bias" `[width]`. The bias of an LSTM's forget gate starts at 1 (Jozefowicz et
    al., 2015).

    Attributes:
      width: size of the hidden state.
      cell: "rnn", "lstm" or "gru".
      reverse: runs from the last step to the first.
      kernel_init: initialiser of the input kernel.
      dtype: type to compute in.
      remat: recomputes the gates in the backward pass, and stores the carries only.

    >>> outputs, carry = jax.eval_shape(RecurrentLayer(4).init_with_output, jax.random.key(0), jnp.ones((2, 5, 3)))[0]
    >>> outputs.shape, len(carry)
    ((2, 5, 4), 2)
    """

    width: int
    cell: CellKind = "lstm"
    reverse: bool = False
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, carry: Carry | None = None) -> tuple[Array, Carry]:
        step, gates, carry_parts = get_cell(self.cell)
        bias_init = _forget_gate_bias if self.cell == "lstm" else nn.initializers.zeros
        dense = functools.partial(Dense, kernel_init=initializer(self.kernel_init), bias_init=bias_init)
        # 1. Input projections of all steps in one product, [T, B, gates * width]
        projected = dense(gates * self.width, dtype=self.dtype, name="input")(x.swapaxes(0, 1))
        kernel = self.param("kernel", _orthogonal_per_gate, (self.width, gates * self.width)).astype(projected.dtype)
        # A GRU multiplies the candidate's recurrent bias by the reset gate, so it is added inside the scan.
        if self.cell == "gru":
            bias = self.param("candidate_bias", nn.initializers.zeros, (self.width,)).astype(projected.dtype)
            bias = jnp.broadcast_to(bias[None, None, :], (*projected.shape[:2], self.width))
            reset_update, candidate = jnp.split(projected, [2 * self.width], axis=-1)
            projected = jnp.concatenate([reset_update, bias, candidate], axis=-1)
        # 2. Scan of the hidden state over time
        initial_carry = (jnp.zeros((x.shape[0], self.width)),) * carry_parts if carry is None else carry
        initial_carry = tuple(jnp.asarray(part, projected.dtype) for part in initial_carry)
        settings = ScanSettings(step, self.reverse, self.remat)
        last, outputs = scan_cell(settings, kernel, projected, initial_carry, *_mask_and_resets(mask, self.reverse))
        return outputs.swapaxes(0, 1), last


class Recurrent(nn.Module):
    """Stacked recurrent layers: `[B, T, C]`, or tokens `[B, T]`, to float32 `[B, T, features]` or `[B, features]`.

    Elman's network (1990), LSTM (Hochreiter & Schmidhuber, 1997) or GRU (Cho et al., 2014), in one or both directions
    (Schuster & Paliwal, 1997). With a `carry` (see `initial_carry`), it continues where an earlier part of the
    sequences ended and returns `(outputs, carry)`. With `decode=True`, the carry is kept in the collection "cache"
    instead (see `generate`).

    Attributes:
      features: width of the output; None: no dense layer after the last recurrent layer.
      hidden: width of every layer.
      cell: "rnn", "lstm" or "gru".
      bidirectional: runs each layer in both directions and concatenates the outputs, `[..., 2 * width]`.
      vocabulary_size: number of tokens, which are embedded with the first layer's width; None where inputs are floats.
      pooling: "last", "mean" or "max" over time; None: one output per step.
      dropout: dropout rate before every layer but the first, and before the output, in [0, 1]; may be traced.
      kernel_init: initialiser of the input kernels; the recurrent kernels are orthogonal.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes the gates in the backward pass, which saves memory on long sequences.

    >>> model = Recurrent(7, (8,), "gru", pooling="last")
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
    (2, 7)
    """

    features: int | None = None
    hidden: tuple[int, ...] = (128,)
    cell: CellKind = "lstm"
    bidirectional: bool = False
    vocabulary_size: int | None = None
    pooling: sequences.Pooling | None = None
    dropout: chex.Numeric = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        carry: tuple[Carry, ...] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Array | tuple[Array, tuple[Carry, ...]]:
        """Applies the network.

        Args:
          x: float `[B, T, C]`, or int `[B, T]` with a `vocabulary_size`.
          mask: `[B, T]`, 0 or False at padding, which keeps the carry and gives zeros to the output layer. Numbers
            above 0 are segment ids of packed sequences: the carry is reset where a new segment begins, except for the
            first, which continues from `carry`.
          carry: one carry per layer, each part `[B, width]`.
          train: whether dropout is active.
          decode: reads the carry from the collection "cache" and writes it back.

        Returns:
          float32 `[B, T, features]`, or `[B, features]` with pooling; with `carry`, a pair of that and the last carry.

        Raises:
          ConfigError: inputs that are neither the declared tokens nor floats, no layer, a carry of another number of
            layers, or a carry for a bidirectional network.
        """
        if not self.hidden:
            raise ConfigError("hidden: a recurrent network needs the width of at least one layer, got ()")
        if self.bidirectional and (decode or carry is not None):
            raise ConfigError("bidirectional: a network that also reads backwards cannot continue from a carry")
        if carry is not None and len(carry) != len(self.hidden):
            raise ConfigError(f"carry: {len(self.hidden)} layers need one each (see initial_carry), got {len(carry)}")
        sequences.check_pooling(self.pooling)
        return_carry = carry is not None
        if decode:
            cache_exists = self.has_variable("cache", "carry")
            cache = self.variable("cache", "carry", self.initial_carry, x.shape[0])
            carry = cache.value
        # 1. Embedding
        x = sequences.embed_inputs(self, x, mask, self.vocabulary_size, self.hidden[0])
        options = dict(cell=self.cell, kernel_init=self.kernel_init, dtype=self.dtype, remat=self.remat)
        layer = functools.partial(RecurrentLayer, **options)
        # 2. Layers
        carries = []
        for index, width in enumerate(self.hidden):
            x = Dropout(self.dropout)(x, train=train) if index else x
            outputs, last_carry = layer(width, name=f"layer_{index}")(x, mask, None if carry is None else carry[index])
            carries.append(last_carry)
            if self.bidirectional:
                backward, _ = layer(width, reverse=True, name=f"backward_{index}")(x, mask)
                outputs = jnp.concatenate([outputs, backward], axis=-1)
            x = outputs
        # While the cache is initialised it must stay at zeros.
        if decode and cache_exists:
            cache.value = tuple(carries)
        # 3. Pooling and output layer
        if self.pooling is not None:
            x = (sequences.pool_bidirectional if self.bidirectional else sequences.pool_sequence)(x, self.pooling, mask)
        if self.features is not None:
            x = Dropout(self.dropout)(x, train=train)
            x = Dense(self.features, dtype=self.dtype, name="output")(x)
        x = x.astype(jnp.float32)
        return (x, tuple(carries)) if return_carry else x

    def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
        """Returns zeros, the carry of `batch_size` sequences before their first step: parts `[B, width]` per layer.

        >>> [part.shape for part in Recurrent(hidden=(8,), cell="lstm").initial_carry(2)[0]]
        [(2, 8), (2, 8)]
        """
        dtype, count = self.dtype or jnp.float32, get_cell(self.cell)[2]
        return tuple((jnp.zeros((batch_size, width), dtype),) * count for width in self.hidden)


def _forget_gate_bias(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


def _orthogonal_per_gate(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns `[width, gates * width]`, one orthogonal matrix per gate."""
    width, total = shape
    init = nn.initializers.orthogonal()
    return jnp.concatenate([init(k, (width, width), dtype) for k in jax.random.split(key, total // width)], axis=1)


def _mask_and_resets(mask: Array | None, reverse: bool) -> tuple[Array | None, Array | None]:
    """Returns which steps are real and where the carry is reset, each `[T, B]` or None."""
    if mask is None:
        return None, None
    # A boolean mask marks padding only; segment ids also say where to reset.
    if mask.dtype == bool:
        return mask.T, None
    resets = jnp.flip(_resets(jnp.flip(mask, 1)), 1) if reverse else _resets(mask)
    return (mask != 0).T, resets.T


def _resets(mask: Array) -> Array:
    """Marks the starts of all segments but the first, bool `[B, T]`: the first continues from the initial carry."""
    starts = sequences.segment_starts(mask)
    return starts & (jnp.cumsum(starts, axis=1) > 1)
