"""Layers that Flax has not, or not in a form that keeps its speed and takes traced settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.convolution import convolution

Normalization = Literal["batch", "layer", "group", "rms"]

Conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: convolution)
"""Flax's `nn.Conv`, with gradients that are fast in a compiled loop on the CPU; same arguments, same parameters."""


def flat_dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any = None, **options: Any) -> jax.Array:
    """Returns the product of `[..., C]` and `[C, features]` with all leading axes as one.

    With two of them, XLA's CPU code copies the output gradient, transposed, to make the kernel's gradient, which takes
    about as long as the product itself.
    """
    flat = jax.lax.dot_general(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*lhs.shape[:-1], rhs.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=flat_dot_general)
"""Flax's `nn.Dense`, whose kernel's gradient is fast on the CPU; same arguments, same parameters."""


def ConvTranspose(features: int, kernel_size: tuple[int, ...], strides: tuple[int, ...], **options: Any) -> nn.Module:
    """Returns a transposed convolution that makes every side `strides` times as long (Flax's with padding "SAME").

    Its parameters are those of `nn.ConvTranspose`; `options` are those of `Conv`.
    """
    pads = []
    for size, step in zip(kernel_size, strides, strict=True):
        low = size - 1 if step > size - 1 else -(-(size + step - 2) // 2)
        pads.append((low, size + step - 2 - low))
    return Conv(features, kernel_size, padding=pads, input_dilation=strides, **options)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose rate may be traced, so that sweeping it compiles once.

    A rate of `None` or a Python 0 is the identity and draws no random numbers. Draws from the "dropout" stream.
    """

    rate: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if not train or self.rate is None or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return x
        keep = 1.0 - jnp.asarray(self.rate, jnp.float32)
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        # Multiplied by a reciprocal: XLA rewrites a traced division as it likes. The bound keeps rate 1 free of NaN.
        scale = jnp.reciprocal(jnp.maximum(keep, jnp.finfo(jnp.float32).tiny)).astype(x.dtype)
        return jnp.where(mask, x * scale, jnp.zeros((), x.dtype))


def normalization(kind: Normalization | None, channels: int, train: bool, dtype: Any = None) -> Any:
    """Returns a function (to be called inside a compact module) that normalises `[..., channels]`.

    "batch" (Ioffe & Szegedy, 2015) keeps running statistics in "batch_stats" with momentum 0.9, "layer" is Ba et
    al. (2016), "group" is Wu & He (2018) with up to 8 groups, "rms" Zhang & Sennrich (2019); None is the identity.

    Raises:
      ConfigError: for any other kind.
    """
    if kind is None:
        return lambda x: x
    if kind == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype)
    if kind == "layer":
        return nn.LayerNorm(dtype=dtype)
    if kind == "group":
        return nn.GroupNorm(num_groups=math.gcd(8, channels), dtype=dtype)
    if kind == "rms":
        return nn.RMSNorm(dtype=dtype)
    raise ConfigError(f"normalization: {kind!r} is none of None, 'batch', 'layer', 'group' and 'rms'")


def pool(x: jax.Array, kind: Literal["max", "mean"], size: tuple[int, ...]) -> jax.Array:
    """Pools windows `size` of `[B, ..., C]` that do not overlap; what is left over at the far edges is dropped.

    Windows that divide the image are a reshape and a reduction, several times faster than XLA's windows on the CPU.
    The gradient of equal maxima goes to one of them.

    Raises:
      ConfigError: for any other kind, or a window that is larger than the image.
    """
    if kind not in ("max", "mean"):
        raise ConfigError(f"pool: {kind!r} is neither 'max' nor 'mean'")
    image = x.shape[1:-1]
    if any(window > length for window, length in zip(size, image, strict=True)):
        raise ConfigError(f"pool: a window of {size} is larger than what is left of the image, {image}")
    if any(length % window for window, length in zip(size, image, strict=True)):
        return nn.max_pool(x, size, size) if kind == "max" else nn.avg_pool(x, size, size)
    pairs = [part for window, length in zip(size, image, strict=True) for part in (length // window, window)]
    windows = x.reshape(x.shape[0], *pairs, x.shape[-1])
    axes = range(2, 2 * len(size) + 1, 2)
    return largest(windows, *axes) if kind == "max" else windows.mean(tuple(axes))


def largest(x: jax.Array, *axes: int) -> jax.Array:
    """Returns the maxima over short axes, by comparing one after the other; of equals the first has the gradient.

    The gradient of `jnp.max` compares its operand with the maximum. XLA may compute the operand anew for that, such as
    a batch normalisation, and round it otherwise, so that nothing is equal: on a CPU gradients of an `FCN` were out by
    66 to 121% of their largest number. Nothing here must be equal to anything.
    """
    for axis in sorted(axes, reverse=True):
        first, *others = (jax.lax.index_in_dim(x, index, axis, keepdims=False) for index in range(x.shape[axis]))
        for other in others:
            first = jnp.where((first >= other) | jnp.isnan(first), first, other)
        x = first
    return x


class _Scope(nn.Module):
    """A scope of its own for the parameters of a function that makes modules."""

    function: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> tuple[Any, None]:
        return self.function(x), None


def repeat(
    block: Callable[[Any], Any], x: Any, count: int, *, scan: bool = False, remat: bool = False, name: str = "block"
) -> Any:
    """Applies a block `count` times, each time with parameters of its own; inside a compact module only.

    Args:
      block: `x -> x`, which makes modules; it keeps the structure, shapes and dtypes of `x`.
      x: what it is applied to.
      count: how often.
      scan: as a loop, so that compiling takes as long for many blocks as for one. The blocks' parameters, statistics
        and caches are stacked then, `[count, ...]`, under one name.
      remat: computes a block anew in the backward pass instead of keeping what it computed (Chen et al., 2016).
      name: of the blocks: `name_0`, `name_1`, ..., or `name` alone where they are stacked.
    """
    scope = nn.remat(_Scope, prevent_cse=not scan) if remat else _Scope
    if not scan:
        for index in range(count):
            x, _ = scope(block, name=f"{name}_{index}")(x)
        return x
    axes = {"params": 0, "batch_stats": 0, "cache": 0}
    loop = nn.scan(scope, variable_axes=axes, split_rngs={"params": True, "dropout": True}, length=count)
    return loop(block, name=name)(x)[0] if count else x
