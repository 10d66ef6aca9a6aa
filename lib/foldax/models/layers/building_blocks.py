"""Layers missing from Flax, or rewritten to be fast on the CPU and to accept traced settings: dense, transposed
convolution, dropout, normalisation, pooling, and stacks of identical blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.mesh import shard_batch
from foldax.models.layers.convolution import convolution

Normalization = Literal["batch", "layer", "group", "rms"]
RematPolicy = Literal[
    "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable"
]  # of `jax.checkpoint_policies`
Remat = bool | RematPolicy  # True: "nothing_saveable"
X = TypeVar("X", bound=chex.ArrayTree)

Conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: convolution)
"""`flax.linen.Conv` whose gradients stay fast inside a compiled loop on the CPU; same arguments, same parameters."""


def flat_dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any = None, **options: Any) -> jax.Array:
    """Multiplies `[..., C]` by `[C, features]` as one matrix product, with all leading axes flattened.

    A drop-in for `lax.dot_general` in a dense layer. With two leading axes, XLA's CPU backend first copies the output
    gradient, transposed, to compute the kernel gradient; the copy takes about as long as the product.

    >>> flat_dot_general(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    chex.assert_rank(rhs, 2)
    flat = jax.lax.dot_general(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*lhs.shape[:-1], rhs.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=flat_dot_general)
"""`flax.linen.Dense` whose kernel gradient is fast on the CPU; same arguments, same parameters."""


def ConvTranspose(features: int, kernel_size: tuple[int, ...], strides: tuple[int, ...], **options: Any) -> nn.Module:
    """Builds a transposed convolution that multiplies every side by its stride, as Flax's with padding "SAME".

    Args:
      features: output channels.
      kernel_size: one length per spatial axis.
      strides: upsampling factor of each spatial axis.
      **options: further arguments of `Conv`.

    Returns:
      A module with the parameters of `flax.linen.ConvTranspose`, `[B, H, W, C]` to
      `[B, strides[0] * H, strides[1] * W, features]`.

    >>> upsample = ConvTranspose(8, (3, 3), (2, 2))
    >>> jax.eval_shape(upsample.init_with_output, jax.random.key(0), jnp.ones((1, 4, 5, 3)))[0].shape
    (1, 8, 10, 8)
    """
    # The padding of Flax's "SAME" transposed convolution, as explicit padding of the dilated input.
    padding = []
    for size, stride in zip(kernel_size, strides, strict=True):
        low = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
        padding.append((low, size + stride - 2 - low))
    return Conv(features, kernel_size, padding=padding, input_dilation=strides, **options)


def check_widths(name: str, widths: Any) -> None:
    """Checks the widths of layers: a tuple of integers of 1 or more, or of tuples of them.

    Raises:
      ConfigError: they are something else.

    >>> check_widths("MLP.features", 64)
    Traceback (most recent call last):
    foldax.errors.ConfigError: MLP.features: 64 must be a tuple, such as (64,)
    """
    if not isinstance(widths, tuple | list):
        raise ConfigError(f"{name}: {widths!r} must be a tuple, such as (64,)")
    for width in widths:
        if isinstance(width, tuple | list):
            check_widths(name, width)
        elif not isinstance(width, int | np.integer) or width < 1:
            raise ConfigError(f"{name}: {width!r} in {tuple(widths)} must be an integer of 1 or more")


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) with a rate that may be traced, so that sweeping it compiles once.

    Random masks come from the "dropout" stream. A rate of `None` or the Python number 0 is the identity and draws no
    random numbers.

    Attributes:
      rate: probability of zeroing an element, in [0, 1]; may be traced.

    >>> float(Dropout(0.5).apply({}, jnp.ones((2, 3))).sum())  # the identity unless train=True
    6.0
    """

    rate: chex.Numeric | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if isinstance(self.rate, int | float):
            if not 0 <= self.rate <= 1:
                raise ConfigError(f"dropout: the rate {self.rate} must be a probability, from 0 to 1")
            if self.rate == 0:
                return x
        if not train or self.rate is None:
            return x
        keep_probability = 1.0 - jnp.asarray(self.rate, jnp.float32)
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep_probability, x.shape)
        # Multiplied by a reciprocal, not divided: XLA rewrites a traced division differently in each program.
        # The lower bound avoids NaN at a rate of 1.
        scale = jnp.reciprocal(jnp.maximum(keep_probability, jnp.finfo(jnp.float32).tiny)).astype(x.dtype)
        return jnp.where(mask, x * scale, jnp.zeros((), x.dtype))


def normalization(
    kind: Normalization | None,
    channels: int,
    train: bool,
    dtype: DTypeLike | None = None,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> Callable[..., jax.Array]:
    """Builds a normalisation layer for `[..., channels]`, inside a compact module.

    Args:
      kind: "batch" (Ioffe & Szegedy, 2015; running statistics in "batch_stats" with momentum 0.9), "layer" (Ba et al.,
        2016), "group" (Wu & He, 2018; up to 8 groups), "rms" (Zhang & Sennrich, 2019), or None for the identity.
      channels: size of the last axis.
      train: whether batch normalisation uses the statistics of the batch, and updates the running ones.
      dtype: type to compute in.
      scale_init: initializer of the scale.

    Returns:
      A function `[..., channels]` to `[..., channels]`.

    Raises:
      ConfigError: `kind` is unknown.

    >>> normalization(None, 3, train=False)(jnp.ones((2, 3))).shape
    (2, 3)
    """
    if kind is None:
        return lambda x: x
    if kind == "batch":
        # Given in the call, where `gradient_step` finds it if the layer is frozen.
        norm = nn.BatchNorm(momentum=0.9, dtype=dtype, scale_init=scale_init)
        return functools.partial(norm, use_running_average=not train)
    if kind == "layer":
        return nn.LayerNorm(dtype=dtype, scale_init=scale_init)
    if kind == "group":
        return nn.GroupNorm(num_groups=math.gcd(8, channels), dtype=dtype, scale_init=scale_init)
    if kind == "rms":
        return nn.RMSNorm(dtype=dtype, scale_init=scale_init)
    raise ConfigError(f"normalization: {kind!r} is unknown; choose None, 'batch', 'layer', 'group' or 'rms'")


def pool(x: jax.Array, kind: Literal["max", "mean"], size: tuple[int, ...]) -> jax.Array:
    """Pools non-overlapping windows of `[B, ..., C]`; an incomplete window at the far edge is dropped.

    Where windows divide the image, pooling is a reshape and a reduction, several times faster on the CPU than XLA's
    window reduction. Among equal maxima, one receives the whole gradient.

    Args:
      x: images `[B, H, W, C]`, or `[B, ..., C]` with any number of spatial axes.
      kind: "max" or "mean".
      size: length of the window along each spatial axis.

    Returns:
      `[B, H // size[0], W // size[1], C]`.

    Raises:
      ConfigError: `kind` is unknown, or a window is larger than the image.

    >>> pool(jnp.arange(16.0).reshape(1, 4, 4, 1), "max", (2, 2))[0, ..., 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if kind not in ("max", "mean"):
        raise ConfigError(f"pool: {kind!r} is unknown; choose 'max' or 'mean'")
    chex.assert_rank(x, len(size) + 2)
    image = x.shape[1:-1]
    if any(window > length for window, length in zip(size, image, strict=True)):
        raise ConfigError(f"pool: a window of {size} is larger than the image, {image}, after the layers before it")
    # Incomplete windows: XLA's window reduction. Complete ones: [B, H / h, h, W / w, w, C], reduced over h and w.
    if any(length % window for window, length in zip(size, image, strict=True)):
        return nn.max_pool(x, size, size) if kind == "max" else nn.avg_pool(x, size, size)
    split = [part for window, length in zip(size, image, strict=True) for part in (length // window, window)]
    windows = x.reshape(x.shape[0], *split, x.shape[-1])
    axes = range(2, 2 * len(size) + 1, 2)
    return max_with_stable_gradient(windows, *axes) if kind == "max" else windows.mean(tuple(axes))


def max_with_stable_gradient(x: jax.Array, *axes: int) -> jax.Array:
    """Computes the maximum over short axes by pairwise selection; the first of equal maxima receives the gradient.

    JAX's gradient of `max` finds the maximum by testing the operand for equality with it. XLA may recompute the operand
    (such as a batch normalisation) in the backward pass and round it differently; then nothing is equal and the
    gradient is lost: https://github.com/jax-ml/jax/issues/40564. On the CPU, gradients of an `FCN` were wrong by 66% to
    121% of their largest entry. Selection by `where` needs no equality.

    Args:
      x: any array.
      *axes: the axes to reduce; the computation unrolls over them.

    Returns:
      `x` without the axes; NaN where the maximum is over a NaN.

    >>> jax.grad(lambda x: max_with_stable_gradient(x, 0))(jnp.array([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    for axis in sorted(axes, reverse=True):
        maximum, *others = (jax.lax.index_in_dim(x, index, axis, keepdims=False) for index in range(x.shape[axis]))
        for other in others:
            maximum = jnp.where((maximum >= other) | jnp.isnan(maximum), maximum, other)
        x = maximum
    return x


class _Scope(nn.Module):
    """Gives the modules created by a function a scope of their own."""

    function: Callable[[chex.ArrayTree], chex.ArrayTree]

    @nn.compact
    def __call__(self, x: chex.ArrayTree) -> tuple[chex.ArrayTree, None]:
        return self.function(x), None


def remat_policy(remat: Remat) -> Callable[..., bool] | None:
    """Returns the policy of `jax.checkpoint` for a `remat` that is not False; None: nothing is saved.

    Raises:
      ConfigError: there is no such policy.

    >>> remat_policy("dots")
    Traceback (most recent call last):
    foldax.errors.ConfigError: remat: 'dots' is unknown; choose True, False, 'nothing_saveable', 'dots_saveable', \
'dots_with_no_batch_dims_saveable' or 'everything_saveable'
    """
    if remat is True:
        return None
    if not isinstance(remat, str) or remat not in get_args(RematPolicy):
        *names, last = map(repr, get_args(RematPolicy))
        raise ConfigError(f"remat: {remat!r} is unknown; choose True, False, {', '.join(names)} or {last}")
    return getattr(jax.checkpoint_policies, remat)


def repeat(
    block: Callable[[X], X], x: X, count: int, *, scan: bool = False, remat: Remat = False, name: str = "block"
) -> X:
    """Applies `count` copies of a block in sequence, each with its own parameters, inside a compact module.

    Args:
      block: function that creates modules; it keeps the structure, shapes and dtypes of its argument.
      x: input of the first block.
      count: number of blocks.
      scan: runs the blocks as a `lax.scan`, so that many compile as fast as one. Their parameters, statistics and
        caches are then stacked, `[count, ...]`.
      remat: recomputes a block in the backward pass instead of storing its activations (Chen et al., 2016); or the
        name of the policy of `jax.checkpoint_policies` that says which of them are stored: "dots_saveable" the results
        of matrix products, "dots_with_no_batch_dims_saveable" those of dense layers and not of attention.
      name: scope of the blocks: `name_0`, `name_1`, ..., or `name` alone if stacked.

    Returns:
      The output of the last block.

    Raises:
      ConfigError: `remat` is no such policy.

    >>> class Deep(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return repeat(lambda x: nn.Dense(4)(x), x, 3, scan=True, name="layers")
    >>> params = jax.eval_shape(Deep().init, jax.random.key(0), jnp.ones((2, 4)))["params"]
    >>> params["layers"]["Dense_0"]["kernel"].shape
    (3, 4, 4)
    """

    def sharded_block(x: X) -> X:
        # Each device keeps to its part of the batch; else XLA may divide a block by its parameters' axes instead.
        return shard_batch(block(shard_batch(x)))

    # Inside a scan, XLA cannot merge the recomputation with the forward pass, so no barrier against CSE is needed.
    scope = nn.remat(_Scope, prevent_cse=not scan, policy=remat_policy(remat)) if remat else _Scope
    if not scan:
        for index in range(count):
            x, _ = scope(sharded_block, name=f"{name}_{index}")(x)
        return x
    axes = {"params": 0, "batch_stats": 0, "cache": 0}
    loop = nn.scan(scope, variable_axes=axes, split_rngs={"params": True, "dropout": True}, length=count)
    return loop(sharded_block, name=name)(x)[0] if count else x
