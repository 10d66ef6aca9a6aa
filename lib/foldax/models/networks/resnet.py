"""Residual networks."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, Dropout, Normalization, normalization, repeat
from foldax.models.layers.initializers import Initializer, initializer

BlockKind = Literal["basic", "bottleneck"]
IMAGENET: dict[int, tuple[BlockKind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
LAYERS = {"basic": 2, "bottleneck": 3}  # of a block, all convolutions


def stages(
    depth: int | tuple[int, ...], stem: Literal["cifar", "imagenet"], block: BlockKind | None = None
) -> tuple[BlockKind, tuple[int, ...]]:
    """Returns the kind of blocks and how many of them each stage has.

    A depth for CIFAR is 6n + 2 (basic blocks) or 9n + 2 (bottlenecks) with n blocks in each of three stages; basic ones
    where both fit. A depth for ImageNet is one of the published five. A tuple is taken as it is.

    Raises:
      ConfigError: there is no such depth, stem or block.
    """
    if stem not in ("cifar", "imagenet"):
        raise ConfigError(f"stem: {stem!r} is neither 'cifar' nor 'imagenet'")
    if block not in (None, *LAYERS):
        raise ConfigError(f"block: {block!r} is none of None, 'basic' and 'bottleneck'")
    if isinstance(depth, tuple):
        if not depth or min(depth) < 1:
            raise ConfigError(f"depth: {depth!r} must name one block or more for each stage")
        return block or "basic", depth
    if stem == "imagenet":
        if depth not in IMAGENET or block not in (None, IMAGENET[depth][0]):
            known = ", ".join(f"{number} ({kind})" for number, (kind, _) in IMAGENET.items())
            raise ConfigError(
                f"depth: there is no ImageNet ResNet-{depth} of {block or 'any'} blocks; there are {known}"
            )
        return IMAGENET[depth]
    for kind, layers in LAYERS.items():
        count, rest = divmod(depth - 2, 3 * layers)
        if count > 0 and not rest and block in (None, kind):
            return kind, (count,) * 3  # type: ignore[return-value]
    raise ConfigError(
        f"depth: {depth} is neither 6n + 2 (basic: 8, 14, 20, ...) nor 9n + 2 (bottleneck: 11, 20, 29, ...)"
    )


class Block(nn.Module):
    """A residual block: `[B, ..., C]` to `[B, ..., width]`, or `[B, ..., 4 * width]` for a bottleneck.

    Attributes:
      kind: "basic": two 3 x 3 convolutions; "bottleneck": 1 x 1, 3 x 3 (which has the stride) and 1 x 1.
      width: channels of the 3 x 3 convolutions.
      stride: step of the block.
      others: as in `ResNet`.
    """

    kind: BlockKind
    width: int
    stride: int = 1
    shortcut: Literal["projection", "pad"] = "projection"
    preactivation: bool = False
    normalization: Normalization | None = "batch"
    activation: Activation = "relu"
    kernel_init: Initializer = "he_normal"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        activate = activation(self.activation)

        def normalized(x: jax.Array) -> jax.Array:
            return normalization(self.normalization, x.shape[-1], train, self.dtype)(x)

        convolve = functools.partial(
            same_conv, bias=self.normalization is None, kernel_init=self.kernel_init, dtype=self.dtype
        )
        plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.kind == "bottleneck":
            plan = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        outputs = plan[-1][0]
        changes = self.stride != 1 or x.shape[-1] != outputs
        y, short = x, x
        if self.preactivation:
            y = activate(normalized(x))
            short = y if changes else x
        if changes and self.shortcut == "pad":
            short = short[(slice(None), *(slice(None, None, self.stride),) * (x.ndim - 2))]
            short = jnp.pad(short, [(0, 0)] * (x.ndim - 1) + [(0, outputs - x.shape[-1])])
        elif changes:
            short = convolve(short, outputs, 1, self.stride)
            short = short if self.preactivation else normalized(short)
        for index, (width, size, stride) in enumerate(plan):
            if self.preactivation and index:
                y = activate(normalized(y))
            y = convolve(y, width, size, stride)
            if not self.preactivation:
                y = normalized(y)
                y = activate(y) if index + 1 < len(plan) else y
        return y + short if self.preactivation else activate(y + short)


class ResNet(nn.Module):
    """A residual network (He et al., 2016): `[B, H, W, C]` to float32 `[B, features]`; `[B, T, C]` works too.

    With stem "imagenet", projections and 1,000 classes its parameters are as many as published; so are they with stem
    "cifar", shortcut "pad" and 10 classes. A bottleneck's stride is in its 3 x 3 convolution, as everywhere today.

    Attributes:
      features: width of the output.
      depth: number of layers as published (see `stages`), or the number of blocks in every stage.
      block: "basic", "bottleneck", or None for what the depth is published with.
      stem: "cifar": one 3 x 3 convolution; "imagenet": a 7 x 7 one and max pooling, both with stride 2.
      width: channels of the first stage; each next stage has twice as many. None: 16 (cifar) or 64 (imagenet).
      shortcut: where the shape changes: "projection" (1 x 1 convolution) or "pad" (strided, padded with zeros).
      preactivation: normalises and activates before every convolution (He et al., 2016, "Identity mappings"), which
        networks of hundreds of layers need.
      normalization: "batch", "layer", "group", "rms", or None (then convolutions have biases).
      activation: a name of `ACTIVATIONS` or a function.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dropout: rate before the last dense layer; may be traced.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: computes each block anew in the backward pass, which saves memory.
      scan_layers: runs the blocks of a stage after its first as a loop, so that compiling takes as long for any depth;
        their parameters are stacked.
    """

    features: int
    depth: int | tuple[int, ...] = 20
    block: BlockKind | None = None
    stem: Literal["cifar", "imagenet"] = "cifar"
    width: int | None = None
    shortcut: Literal["projection", "pad"] = "projection"
    preactivation: bool = False
    normalization: Normalization | None = "batch"
    activation: Activation = "relu"
    kernel_init: Initializer = "he_normal"
    dropout: Any = 0.0
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if x.ndim < 3:
            raise ConfigError(f"ResNet: inputs must be images [B, H, W, C] (or [B, T, C]), got {x.shape}")
        if self.shortcut not in ("projection", "pad"):
            raise ConfigError(f"shortcut: {self.shortcut!r} is neither 'projection' nor 'pad'")
        kind, counts = stages(self.depth, self.stem, self.block)
        width = self.width or (16 if self.stem == "cifar" else 64)
        shared = dict(normalization=self.normalization, activation=self.activation, dtype=self.dtype)
        make = functools.partial(
            Block,
            kind,
            shortcut=self.shortcut,
            preactivation=self.preactivation,
            kernel_init=self.kernel_init,
            **shared,
        )

        def activated(x: jax.Array) -> jax.Array:
            return activation(self.activation)(normalization(self.normalization, x.shape[-1], train, self.dtype)(x))

        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = jnp.asarray(x, self.dtype)
        x = same_conv(x, width, size, stride, self.normalization is None, self.kernel_init, self.dtype)
        x = x if self.preactivation else activated(x)
        if self.stem == "imagenet":
            sides = x.ndim - 2
            x = nn.max_pool(x, (3,) * sides, (2,) * sides, [(1, 1)] * sides)
        for stage, count in enumerate(counts):

            def block(x: jax.Array, stage: int = stage, stride: int = 1) -> jax.Array:
                return make(width * 2**stage, stride)(x, train=train)

            first = functools.partial(block, stride=2 if stage else 1)
            x = repeat(first, x, 1, remat=self.remat, name=f"first_{stage}")
            x = repeat(block, x, count - 1, scan=self.scan_layers, remat=self.remat, name=f"stage_{stage}")
        x = activated(x) if self.preactivation else x
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.features, dtype=self.dtype)(x).astype(jnp.float32)


def same_conv(
    x: jax.Array, width: int, size: int, stride: int, bias: bool, kernel_init: Initializer, dtype: Any = None
) -> jax.Array:
    """Applies a new convolution with kernels of odd `size`, padded by half of it; inside a compact module only."""
    sides = x.ndim - 2
    return Conv(
        width,
        (size,) * sides,
        (stride,) * sides,
        padding=[(size // 2, size // 2)] * sides,
        use_bias=bias,
        kernel_init=initializer(kernel_init),
        dtype=dtype,
    )(x)
