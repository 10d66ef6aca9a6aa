"""Residual networks (He et al., 2016).

A basic block is two 3 x 3 convolutions of C channels; a bottleneck is a 1 x 1 and a 3 x 3 convolution of C channels and
a 1 x 1 convolution of 4 C channels. Numbers of blocks in each stage of the published networks (table 1 and section 4.2
of the paper):

| stage | C, ImageNet | ResNet-18 | -34   | -50        | -101       | -152       | C, CIFAR | 6n + 2  | 9n + 2     |
| ----- | ----------- | --------- | ----- | ---------- | ---------- | ---------- | -------- | ------- | ---------- |
|       |             | basic     | basic | bottleneck | bottleneck | bottleneck |          | basic   | bottleneck |
| 1     | 64          | 2         | 3     | 3          | 3          | 3          | 16       | n       | n          |
| 2     | 128         | 2         | 4     | 4          | 4          | 8          | 32       | n       | n          |
| 3     | 256         | 2         | 6     | 6          | 23         | 36         | 64       | n       | n          |
| 4     | 512         | 2         | 3     | 3          | 3          | 3          |          |         |            |

Every stage but the first halves the image. The stem is a 7 x 7 convolution with stride 2 and a 3 x 3 max pooling with
stride 2 (ImageNet), or one 3 x 3 convolution (CIFAR); the head is the mean over the image and one dense layer.
"""

import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Conv, Initializer, Normalization, activation, initializer, normalization
from foldax.models.layers.building_blocks import Dropout, Remat, repeat

BlockKind = Literal["basic", "bottleneck"]
IMAGENET_BLOCKS: dict[int, tuple[BlockKind, tuple[int, ...]]]
IMAGENET_BLOCKS = {18: ("basic", (2, 2, 2, 2)), 34: ("basic", (3, 4, 6, 3)), 50: ("bottleneck", (3, 4, 6, 3))}
IMAGENET_BLOCKS |= {101: ("bottleneck", (3, 4, 23, 3)), 152: ("bottleneck", (3, 8, 36, 3))}
CONVOLUTIONS_PER_BLOCK: dict[BlockKind, int] = {"basic": 2, "bottleneck": 3}


def block_counts(
    depth: int | tuple[int, ...], stem: Literal["cifar", "imagenet"], block: BlockKind | None = None
) -> tuple[BlockKind, tuple[int, ...]]:
    """Derives the kind of block and the number of blocks in each stage from a published depth.

    Args:
      depth: number of layers. For CIFAR 6n + 2 (basic blocks) or 9n + 2 (bottlenecks) with n blocks in each of three
        stages, basic ones where both fit; for ImageNet 18, 34, 50, 101 or 152. A tuple gives the numbers of blocks.
      stem: "cifar" or "imagenet".
      block: "basic", "bottleneck", or None for the published kind.

    Returns:
      The kind of block, and the number of blocks of each stage.

    Raises:
      ConfigError: there is no such depth, stem or block.

    >>> block_counts(20, "cifar"), block_counts(50, "imagenet")
    (('basic', (3, 3, 3)), ('bottleneck', (3, 4, 6, 3)))
    """
    if stem not in ("cifar", "imagenet"):
        raise ConfigError(f"stem: {stem!r} is unknown; choose 'cifar' or 'imagenet'")
    if block not in (None, *CONVOLUTIONS_PER_BLOCK):
        raise ConfigError(f"block: {block!r} is unknown; choose None, 'basic' or 'bottleneck'")
    if isinstance(depth, tuple):
        if not depth or min(depth) < 1:
            raise ConfigError(f"depth: {depth!r} must give one block or more for each stage")
        return block or "basic", depth
    if stem == "imagenet":
        if depth not in IMAGENET_BLOCKS or block not in (None, IMAGENET_BLOCKS[depth][0]):
            known = ", ".join(f"{number} ({kind})" for number, (kind, _) in IMAGENET_BLOCKS.items())
            asked = f"ResNet-{depth} of {block or 'any'} blocks"
            raise ConfigError(f"depth: there is no ImageNet {asked}; there are {known}")
        return IMAGENET_BLOCKS[depth]
    # CIFAR: a stem, three stages of equally many blocks, and a dense layer.
    for kind, convolutions in CONVOLUTIONS_PER_BLOCK.items():
        count, rest = divmod(depth - 2, 3 * convolutions)
        if count > 0 and not rest and block in (None, kind):
            return kind, (count,) * 3
    known = "6n + 2 (basic: 8, 14, 20, ...) nor 9n + 2 (bottleneck: 11, 20, 29, ...)"
    raise ConfigError(f"depth: {depth} is neither {known}")


class Block(nn.Module):
    """Residual block: `[B, ..., C]` to `[B, ..., width]`, or to `[B, ..., 4 * width]` for a bottleneck.

    Attributes:
      kind: "basic": two 3 x 3 convolutions; "bottleneck": 1 x 1, 3 x 3 (with the stride) and 1 x 1.
      width: channels of the 3 x 3 convolutions.
      stride: stride of the block.
      shortcut: as in `ResNet`, as are the remaining attributes.

    >>> block = Block("bottleneck", 8, stride=2)
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 4, 4, 32)
    """

    kind: BlockKind
    width: int
    stride: int = 1
    shortcut: Literal["projection", "pad"] = "projection"
    preactivation: bool = False
    normalization: Normalization | None = "batch"
    activation: Activation = "relu"
    kernel_init: Initializer = "he_normal"
    dtype: DTypeLike | None = None
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        activate = activation(self.activation)

        def normalized(x: jax.Array, scale_init: Any = nn.initializers.ones) -> jax.Array:
            return normalization(self.normalization, x.shape[-1], train, self.dtype, scale_init)(x)

        layers = [(self.width, 3, self.stride), (self.width, 3, 1)]  # (channels, kernel size, stride)
        if self.kind == "bottleneck":
            layers = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        outputs = layers[-1][0]
        changes_shape = self.stride != 1 or x.shape[-1] != outputs
        # Original block: relu(x + F(x)), with batch normalisation after each convolution.
        # Pre-activation: x + F(x), with normalisation and activation before each convolution, and nothing on the sum.
        y = activate(normalized(x)) if self.preactivation else x
        short = y if changes_shape else x
        # Shortcut: identity, or where the shape changes, a strided slice with zero channels (option A) or a 1 x 1
        # convolution (option B).
        if changes_shape and self.shortcut == "pad":
            short = short[(slice(None), *(slice(None, None, self.stride),) * (x.ndim - 2))]
            short = jnp.pad(short, [(0, 0)] * (x.ndim - 1) + [(0, outputs - x.shape[-1])])
        elif changes_shape:
            short = same_conv(self, short, outputs, 1, self.stride)
            short = short if self.preactivation else normalized(short)
        # Residual branch F(x)
        for index, (width, size, stride) in enumerate(layers):
            if self.preactivation and index:
                y = activate(normalized(y))
            y = same_conv(self, y, width, size, stride)
            if not self.preactivation and index + 1 < len(layers):
                y = activate(normalized(y))
            elif not self.preactivation:
                y = normalized(y, nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones)
        return y + short if self.preactivation else activate(y + short)


BLOCK_FIELDS: tuple[str, ...] = ("shortcut", "preactivation", "normalization", "activation", "kernel_init", "dtype")
BLOCK_FIELDS += ("zero_init_residual",)
"""Attributes that a `ResNet` passes on to its blocks."""


class ResNet(nn.Module):
    """Residual network (He et al., 2016): `[B, H, W, C]` to float32 `[B, features]`; `[B, T, C]` is accepted too.

    With `stem="imagenet"` and 1,000 classes, or `stem="cifar"`, `shortcut="pad"` and 10 classes, it has the published
    numbers of parameters. The stride of a bottleneck is in its 3 x 3 convolution ("ResNet v1.5"), not in the first.

    Attributes:
      features: width of the output.
      depth: published number of layers (see `block_counts`), or the number of blocks of each stage.
      block: "basic", "bottleneck", or None for the published kind of the depth.
      stem: "cifar": one 3 x 3 convolution; "imagenet": a 7 x 7 convolution and max pooling, both with stride 2.
      width: channels of the first stage; each further stage has twice as many. None: 16 (cifar) or 64 (imagenet).
      shortcut: shortcut where the shape changes: "projection" (1 x 1 convolution) or "pad" (strided, with zeros for
        the new channels).
      preactivation: normalises and activates before each convolution (He et al., 2016, "Identity mappings in deep
        residual networks"); needed for hundreds of layers.
      normalization: "batch", "layer", "group", "rms", or None (convolutions then have biases).
      activation: a name of `ACTIVATIONS` or a function.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dropout: dropout rate before the last dense layer, in [0, 1]; may be traced.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes each block in the backward pass, or what a policy does not save, see `models.repeat`.
      scan_layers: runs the blocks of a stage after its first as a scan, so that compile time does not depend on the
        depth; their parameters are stacked.
      zero_init_residual: the scale of the last normalisation of each block starts at 0, so that the block starts as its
        shortcut (Goyal et al., 2017, section 5.1); not with `preactivation`, whose branches end with a convolution.

    >>> model = ResNet(10, depth=8, width=4)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 10)
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
    dropout: chex.Numeric = 0.0
    dtype: DTypeLike | None = None
    remat: Remat = False
    scan_layers: bool = False
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if x.ndim < 3:
            raise ConfigError(f"ResNet: inputs must be images [B, H, W, C] (or sequences [B, T, C]), got {x.shape}")
        if self.shortcut not in ("projection", "pad"):
            raise ConfigError(f"shortcut: {self.shortcut!r} is unknown; choose 'projection' or 'pad'")
        if self.zero_init_residual and (self.preactivation or self.normalization is None):
            remedy = "leave it False with preactivation or without normalization"
            raise ConfigError(f"zero_init_residual: the residual branch ends with no normalisation; {remedy}")
        kind, counts = block_counts(self.depth, self.stem, self.block)
        width = self.width or (16 if self.stem == "cifar" else 64)
        options = {name: getattr(self, name) for name in BLOCK_FIELDS}

        def activated(x: jax.Array) -> jax.Array:
            return activation(self.activation)(normalization(self.normalization, x.shape[-1], train, self.dtype)(x))

        # 1. Stem
        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = same_conv(self, jnp.asarray(x, self.dtype), width, size, stride)
        x = x if self.preactivation else activated(x)
        if self.stem == "imagenet":
            spatial_axes = x.ndim - 2
            x = nn.max_pool(x, (3,) * spatial_axes, (2,) * spatial_axes, [(1, 1)] * spatial_axes)

        # 2. Stages: the first block of each may change the shape, so only the others can be scanned.
        for stage, count in enumerate(counts):

            def block(x: jax.Array, stage: int = stage, stride: int = 1) -> jax.Array:
                return Block(kind, width * 2**stage, stride, **options)(x, train=train)

            first = functools.partial(block, stride=2 if stage else 1)
            x = repeat(first, x, 1, remat=self.remat, name=f"first_{stage}")
            x = repeat(block, x, count - 1, scan=self.scan_layers, remat=self.remat, name=f"stage_{stage}")

        # 3. Head: mean over the image, then one dense layer
        x = activated(x) if self.preactivation else x
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.features, dtype=self.dtype)(x).astype(jnp.float32)


def same_conv(module: Block | ResNet, x: jax.Array, width: int, size: int, stride: int) -> jax.Array:
    """Applies a new convolution of a module with kernels of odd `size`, padded by half of it.

    `[B, H, W, C]` becomes `[B, ceil(H / stride), ceil(W / stride), width]`.
    """
    axes, half = x.ndim - 2, (size // 2, size // 2)
    use_bias, kernel_init = module.normalization is None, initializer(module.kernel_init)
    options = dict(use_bias=use_bias, kernel_init=kernel_init, dtype=module.dtype)
    return Conv(width, (size,) * axes, (stride,) * axes, padding=[half] * axes, **options)(x)
