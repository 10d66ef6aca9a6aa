"""A convolution whose gradients stay fast inside compiled loops on the CPU.

XLA's CPU code for the weight gradient of a convolution is 20 to 100 times slower inside a loop body (`lax.scan`) than
outside, and its input gradient 2 to 4 times: https://github.com/jax-ml/jax/issues/12868. Every training step runs
inside a loop, so both gradients are written here with operations that are equally fast in either place: the weight
gradient as matrix products of shifted input slices with the output gradient, the input gradient as a plain convolution
with the flipped kernel. With few channels the weight gradient is a convolution too, the batch taking the place of the
channels. Other platforms keep their native gradients.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

Sizes = tuple[int, ...]


def convolution(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Computes `lax.conv_general_dilated`, with gradients that are fast inside loops on the CPU.

    The fast gradients need Flax's layout (inputs `[B, ..., C]`, kernels `[..., C, features]`) and a single group; any
    other call is passed on to JAX. Forward and reverse mode work to any order.

    Args:
      lhs: inputs `[B, H, W, C]`, or with any other number of spatial axes.
      rhs: kernel `[h, w, C, features]`.
      window_strides: one stride per spatial axis.
      padding: "SAME", "VALID", or a pair (low, high) per spatial axis.
      lhs_dilation: spacing of the input's elements (as in a transposed convolution), 1 by default.
      rhs_dilation: spacing of the kernel's elements, 1 by default.
      dimension_numbers: the layout, as in JAX.
      feature_group_count: as in JAX.
      batch_group_count: as in JAX.
      precision: as in JAX.
      preferred_element_type: as in JAX.

    Returns:
      `[B, H', W', features]`.

    >>> layout = ("NHWC", "HWIO", "NHWC")
    >>> images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    >>> convolution(images, kernel, (2, 2), "SAME", dimension_numbers=layout).shape
    (2, 4, 4, 4)
    """
    num_axes = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    strides = tuple(window_strides)
    lhs_dilation = (1,) * num_axes if lhs_dilation is None else tuple(lhs_dilation)
    rhs_dilation = (1,) * num_axes if rhs_dilation is None else tuple(rhs_dilation)
    supported = (
        numbers == _channels_last(num_axes)
        and feature_group_count == batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
        and not (isinstance(padding, str) and max(lhs_dilation) > 1)  # JAX refuses this, with its own message
    )
    if not supported:
        groups = (feature_group_count, batch_group_count)
        arguments = (strides, padding, lhs_dilation, rhs_dilation, numbers, *groups, precision, preferred_element_type)
        return lax.conv_general_dilated(lhs, rhs, *arguments)
    # The gradients need padding in numbers: one pair per spatial axis.
    if isinstance(padding, str):
        window = [(size - 1) * step + 1 for size, step in zip(rhs.shape, rhs_dilation)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, strides, padding)
    pairs = tuple((int(low), int(high)) for low, high in padding)
    return _convolve(lhs, rhs, Geometry(strides, pairs, lhs_dilation, rhs_dilation, precision))


class Geometry(NamedTuple):
    """The static arguments of a convolution, with one entry per spatial axis."""

    strides: Sizes
    padding: tuple[tuple[int, int], ...]
    input_dilation: Sizes
    kernel_dilation: Sizes
    precision: lax.PrecisionLike


def _channels_last(num_axes: int) -> lax.ConvDimensionNumbers:
    images = (0, num_axes + 1, *range(1, num_axes + 1))
    return lax.ConvDimensionNumbers(images, (num_axes + 1, num_axes, *range(num_axes)), images)


def _native(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    return lax.conv_general_dilated(lhs, rhs, *geometry[:4], _channels_last(lhs.ndim - 2), precision=geometry.precision)


def _convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    return _convolution_p.bind(lhs, rhs, geometry=geometry)


def _batched(arguments: Sequence[Array], axes: Sequence[int | None], *, geometry: Geometry) -> tuple[Array, int]:
    """Vmaps a convolution over inputs or kernels, by more images or more features, or over both, by JAX's own rule."""
    (lhs, rhs), (lhs_axis, rhs_axis) = arguments, axes
    if rhs_axis is None and lhs_axis is not None:
        images = jnp.moveaxis(lhs, lhs_axis, 0)
        outputs = _convolve(images.reshape(-1, *images.shape[2:]), rhs, geometry)
        return outputs.reshape(*images.shape[:2], *outputs.shape[1:]), 0
    if lhs_axis is None and rhs_axis is not None:
        kernels = jnp.moveaxis(rhs, rhs_axis, -2)
        outputs = _convolve(lhs, kernels.reshape(*kernels.shape[:-2], -1), geometry)
        return outputs.reshape(*outputs.shape[:-1], *kernels.shape[-2:]), outputs.ndim - 1
    native = functools.partial(_native, geometry=geometry)
    return jax.vmap(native, in_axes=(lhs_axis, rhs_axis))(lhs, rhs), 0


def _gradient(index: int, output_gradient: Array, lhs: Any, rhs: Any, *, geometry: Geometry) -> Array:
    """Gradient by the inputs (index 0) or the kernel (1); of that one only shape and dtype are known."""
    unknown, known = (lhs, rhs) if index == 0 else (rhs, lhs)

    def native(known: Array, output_gradient: Array) -> Array:
        def convolve(unknown: Array) -> Array:
            return _native(*((unknown, known) if index == 0 else (known, unknown)), geometry)

        # Without its sharding: jax 0.7 cannot vmap a gradient that has one, as inside of `jax.shard_map`.
        aval = jax.ShapeDtypeStruct(unknown.aval.shape, unknown.aval.dtype)
        return jax.linear_transpose(convolve, aval)(output_gradient)[0]

    def cpu(known: Array, output_gradient: Array) -> Array:
        if index == 0:
            return _input_gradient(unknown.aval, known, output_gradient, geometry)
        return _kernel_gradient(known, unknown.aval, output_gradient, geometry)

    # The platform is known at lowering only, so both versions are traced.
    return lax.platform_dependent(known, output_gradient, cpu=cpu, default=native)


def _input_gradient(lhs: Array, rhs: Array, output_gradient: Array, geometry: Geometry) -> Array:
    """Convolves the output gradient with the flipped kernel; strides and input dilation exchange their roles."""
    padding = []
    for axis, (low, _) in enumerate(geometry.padding):
        kernel_reach = (rhs.shape[axis] - 1) * geometry.kernel_dilation[axis]
        dilated_output = (output_gradient.shape[axis + 1] - 1) * geometry.strides[axis] + 1
        dilated_input = (lhs.shape[axis + 1] - 1) * geometry.input_dilation[axis] + 1
        padding.append((kernel_reach - low, dilated_input - dilated_output + low))
    # Input and output channels of the kernel exchange places too.
    flipped = jnp.flip(rhs, tuple(range(rhs.ndim - 2))).swapaxes(-1, -2)
    exchanged = geometry._replace(strides=geometry.input_dilation, input_dilation=geometry.strides)
    return _convolve(output_gradient, flipped, exchanged._replace(padding=tuple(padding)))


def _kernel_gradient(lhs: Array, rhs: Array, output_gradient: Array, geometry: Geometry) -> Array:
    channels, features = rhs.shape[-2:]
    # Thresholds are measured: with few channels the matrix products are too thin to be fast.
    few_channels = max(geometry.strides) == 1 and channels >= 8 and channels * features <= 256
    gradient = _kernel_gradient_by_convolution if few_channels else _kernel_gradient_by_products
    return gradient(lhs, rhs, output_gradient, geometry)


def _kernel_gradient_by_convolution(lhs: Array, rhs: Array, output_gradient: Array, geometry: Geometry) -> Array:
    """Convolves the input, its batch as channels, with the output gradient, whose strides become dilation.

    Saves the copies into thin matrices: a ResNet-20 of width 16 takes 0.8 of the time. With more channels it is slower.
    """
    strides, geometry_padding, input_dilation, kernel_dilation, precision = geometry
    axes, padding = tuple(range(1, lhs.ndim - 1)), []
    for axis, (low, _) in enumerate(geometry_padding):
        dilated_input = (lhs.shape[axis + 1] - 1) * input_dilation[axis] + 1
        kernel_reach = (rhs.shape[axis] - 1) * kernel_dilation[axis]
        reach = (output_gradient.shape[axis + 1] - 1) * strides[axis] + kernel_reach + 1
        padding.append((low, reach - dilated_input - low))
    images = lhs.transpose(lhs.ndim - 1, *axes, 0)  # [C, ..., B]
    kernel = output_gradient.transpose(*axes, 0, lhs.ndim - 1)  # [..., B, features]
    exchanged = Geometry(kernel_dilation, tuple(padding), input_dilation, strides, precision)
    return _convolve(images, kernel, exchanged).transpose(*axes, 0, lhs.ndim - 1).astype(rhs.dtype)


def _kernel_gradient_by_products(lhs: Array, rhs: Array, output_gradient: Array, geometry: Geometry) -> Array:
    """Multiplies the input's slice at every kernel offset, `[positions, C]`, by the output gradient."""
    strides, padding, input_dilation, kernel_dilation, precision = geometry
    edges = [(low, high, step - 1) for (low, high), step in zip(padding, input_dilation)]
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    channels, features = rhs.shape[-2:]
    outputs = output_gradient.reshape(-1, features)

    def input_slice(offset: Sizes) -> Array:
        start = [index * step for index, step in zip(offset, kernel_dilation)]
        lengths = zip(start, output_gradient.shape[1:], strides)
        stop = [first + (length - 1) * stride + 1 for first, length, stride in lengths]
        return lax.slice(padded, (0, *start, 0), (lhs.shape[0], *stop, channels), (1, *strides, 1))

    offsets = list(itertools.product(*(range(size) for size in rhs.shape[:-2])))
    # Few channels make thin matrices, so all offsets share one product; otherwise one product per row of the kernel.
    group = len(offsets) if len(offsets) * channels <= 128 else rhs.shape[-3]
    products = []
    for first in range(0, len(offsets), group):
        patches = jnp.concatenate([input_slice(offset) for offset in offsets[first : first + group]], axis=-1)
        # [group * C, positions] @ [positions, features], accumulated in float32
        patches = patches.reshape(-1, group * channels)
        products.append(jnp.matmul(patches.T, outputs, precision=precision, preferred_element_type=jnp.float32))
    return jnp.concatenate(products).reshape(rhs.shape).astype(rhs.dtype)


# A primitive, since a function has a derivative of its own in reverse mode (`jax.custom_vjp`) or in forward mode
# (`jax.custom_jvp`), not in both. A bilinear one has its tangents from itself and its gradients from here.
_convolution_p = Primitive("convolution")
_convolution_p.def_impl(jax.jit(_native, static_argnames="geometry"))
_convolution_p.def_abstract_eval(
    lambda lhs, rhs, *, geometry: jax.typeof(jax.eval_shape(functools.partial(_native, geometry=geometry), lhs, rhs))
)
ad.defbilinear(_convolution_p, functools.partial(_gradient, 0), functools.partial(_gradient, 1))
batching.primitive_batchers[_convolution_p] = _batched
mlir.register_lowering(_convolution_p, mlir.lower_fun(_native, multiple_results=False))
