"""A convolution whose gradients keep their speed inside compiled loops on the CPU.

XLA's CPU code for a convolution's own weight gradient is 20 to 100 times slower in a loop body (`scan`) than outside,
and for its input gradient 2 to 4 times. Here both are made of what is fast in either place: the weight gradient is a
product of shifted input slices with the output gradient, the input gradient a plain convolution with the flipped
kernel. Other platforms keep their native forms.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Sizes = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Returns `lax.conv_general_dilated` of the same arguments, with gradients that are fast in CPU loops.

    Those need Flax's layout (`[B, ..., C]` inputs, `[..., C, features]` kernels), one group and no input dilation;
    else all is native. Differentiates in reverse, as often as wanted; forward-mode (`jvp`) works only on native ones.
    """
    count = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = tuple(range(1, count + 1))
    channels_last = (0, count + 1, *spatial)
    plain = (
        numbers == lax.ConvDimensionNumbers(channels_last, (count + 1, count, *range(count)), channels_last)
        and feature_group_count == batch_group_count == 1
        and all(step == 1 for step in lhs_dilation or ())
        and preferred_element_type in (None, lhs.dtype)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    dilation = (1,) * count if rhs_dilation is None else tuple(rhs_dilation)
    if isinstance(padding, str):
        window = [(size - 1) * step + 1 for size, step in zip(rhs.shape, dilation)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, window_strides, padding)
    pairs = tuple((int(low), int(high)) for low, high in padding)
    return _convolve(lhs, rhs, tuple(window_strides), pairs, dilation, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(
    lhs: jax.Array, rhs: jax.Array, strides: Sizes, padding: Padding, dilation: Sizes, precision: Any
) -> jax.Array:
    return _native(lhs, rhs, strides, padding, dilation, precision)


def _native(
    lhs: jax.Array, rhs: jax.Array, strides: Sizes, padding: Padding, dilation: Sizes, precision: Any
) -> jax.Array:
    count = lhs.ndim - 2
    channels_last = (0, count + 1, *range(1, count + 1))
    numbers = lax.ConvDimensionNumbers(channels_last, (count + 1, count, *range(count)), channels_last)
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers, precision=precision
    )


def _forward(lhs: jax.Array, rhs: jax.Array, *static: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(lhs, rhs, *static), (lhs, rhs)


def _backward(
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    precision: Any,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    static = (strides, padding, dilation, precision)

    def native(lhs: jax.Array, rhs: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda lhs, rhs: _native(lhs, rhs, *static), lhs, rhs)[1](gradient)

    def cpu(lhs: jax.Array, rhs: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _input_gradient(lhs, rhs, gradient, *static), _kernel_gradient(lhs, rhs, gradient, *static)

    return lax.platform_dependent(*saved, gradient, cpu=cpu, default=native)


def _input_gradient(
    lhs: jax.Array,
    rhs: jax.Array,
    gradient: jax.Array,
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    precision: Any,
) -> jax.Array:
    """A convolution of the output gradient, spread by the strides, with the flipped kernel."""
    count = len(strides)
    if any(step > 1 for step in strides):
        spread = [(0, 0, 0), *((0, 0, step - 1) for step in strides), (0, 0, 0)]
        gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), spread)
    reach = [(size - 1) * step for size, step in zip(rhs.shape, dilation)]
    sizes = zip(lhs.shape[1:], gradient.shape[1:], reach, padding)
    pairs = tuple((far - low, size - given + low) for size, given, far, (low, _) in sizes)
    flipped = jnp.flip(rhs, tuple(range(count))).swapaxes(-1, -2)
    return _convolve(gradient, flipped, (1,) * count, pairs, dilation, precision)


def _kernel_gradient(
    lhs: jax.Array,
    rhs: jax.Array,
    gradient: jax.Array,
    strides: Sizes,
    padding: Padding,
    dilation: Sizes,
    precision: Any,
) -> jax.Array:
    """Every kernel offset's slice of the input, as a matrix `[positions, channels]`, times the output gradient."""
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])
    channels, features = rhs.shape[-2:]
    outputs = gradient.reshape(-1, features)

    def shifted(offset: Sizes) -> jax.Array:
        start = [o * step for o, step in zip(offset, dilation)]
        stop = [s + (size - 1) * step + 1 for s, size, step in zip(start, gradient.shape[1:], strides)]
        return lax.slice(padded, (0, *start, 0), (lhs.shape[0], *stop, channels), (1, *strides, 1))

    offsets = list(itertools.product(*(range(size) for size in rhs.shape[:-2])))
    # Few channels make thin matrices: take all offsets in one product then, else a row of the kernel at a time.
    together = len(offsets) if len(offsets) * channels <= 128 else rhs.shape[-3]
    rows = []
    for first in range(0, len(offsets), together):
        patches = jnp.concatenate([shifted(o) for o in offsets[first : first + together]], axis=-1)
        patches = patches.reshape(-1, together * channels)
        rows.append(jnp.matmul(patches.T, outputs, precision=precision, preferred_element_type=jnp.float32))
    return jnp.concatenate(rows).reshape(rhs.shape).astype(rhs.dtype)


_convolve.defvjp(_forward, _backward)
