"""Networks that are told how noisy their input is, and of which class: the U-Net and the Diffusion Transformer.

Both take images `[B, H, W, C]`, times `[B]` from 0 to 1 and, where there are classes, labels int `[B]`, of which
`num_classes` itself means "of no class", and give float32 `[B, H, W, features]`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, Dense, Dropout, normalization, pool, repeat
from foldax.models.networks.transformer import Attention
from foldax.models.networks.vit import patches


def condition(times: jax.Array, labels: jax.Array | None, num_classes: int | None, width: int) -> jax.Array:
    """Returns what a network is told, `[B, width]`: waves of the time, and the class; in a compact module only.

    Raises:
      ConfigError: there are classes and no labels, or labels and no classes.
    """
    if (labels is None) != (num_classes is None):
        raise ConfigError("a network with num_classes takes labels, and one without takes none")
    frequencies = jnp.exp(jnp.linspace(0.0, math.log(1000.0), width // 2))
    angles = times[:, None] * frequencies[None, :]
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    told = Dense(width, name="time_output")(nn.silu(Dense(width, name="time_hidden")(waves)))
    if num_classes is not None and labels is not None:
        told = told + nn.Embed(num_classes + 1, width, name="classes")(labels)
    return nn.silu(told)


class DenoisingBlock(nn.Module):
    """Two 3 x 3 convolutions, between which the condition scales and shifts: `[B, H, W, C]` to `[B, H, W, width]`."""

    width: int
    activation: Activation = "silu"
    dropout: Any = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, told: jax.Array, *, train: bool = False) -> jax.Array:
        activate = activation(self.activation)
        convolve = functools.partial(Conv, self.width, (3, 3), dtype=self.dtype)
        y = convolve()(activate(normalization("group", x.shape[-1], train, self.dtype)(x)))
        scale, shift = jnp.split(Dense(2 * self.width, dtype=self.dtype)(told)[:, None, None, :], 2, axis=-1)
        y = activate(normalization("group", self.width, train, self.dtype)(y) * (1 + scale) + shift)
        y = convolve(kernel_init=nn.initializers.zeros)(Dropout(self.dropout)(y, train=train))
        return y + (x if x.shape[-1] == self.width else Dense(self.width, dtype=self.dtype)(x))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) as in Ho et al. (2020): halves the image level by level, and doubles it again.

    Attributes:
      features: channels of the output.
      channels: of each level; all but the last halve the image, which must be divisible.
      blocks: residual blocks at each level, on the way down and up.
      num_heads: of attention in the middle; 0: none.
      num_classes: None: it takes no labels.
      activation: a name of `ACTIVATIONS` or a function.
      dropout: rate inside of the blocks; may be traced.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
    """

    features: int = 1
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    num_heads: int = 4
    num_classes: int | None = None
    activation: Activation = "silu"
    dropout: Any = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, times: jax.Array, labels: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Applies the network.

        Raises:
          ConfigError: the image cannot be halved often enough; labels and classes do not go together.
        """
        parts = 2 ** (len(self.channels) - 1)
        if x.ndim != 4 or any(side % parts for side in x.shape[1:3]):
            raise ConfigError(
                f"UNet: {len(self.channels)} levels need images whose sides {parts} divides, got {x.shape}"
            )
        told = condition(times, labels, self.num_classes, 2 * self.channels[-1])

        def block(x: jax.Array, width: int) -> jax.Array:
            return DenoisingBlock(width, self.activation, self.dropout, self.dtype)(x, told, train=train)

        x = Conv(self.channels[0], (3, 3), dtype=self.dtype, name="stem")(x)
        kept = [x]
        for level, width in enumerate(self.channels):
            x = pool(x, "mean", (2, 2)) if level else x
            for _ in range(self.blocks):
                x = block(x, width)
                kept.append(x)
        x = block(x, self.channels[-1])
        if self.num_heads:
            batch, height, width, features = x.shape
            rows = nn.LayerNorm(dtype=self.dtype)(x).reshape(batch, height * width, features)
            x = x + Attention(self.num_heads, dtype=self.dtype)(rows).reshape(x.shape)
        for level, width in reversed(list(enumerate(self.channels))):
            for _ in range(self.blocks):
                x = block(jnp.concatenate([x, kept.pop()], axis=-1), width)
            x = doubled(x) if level else x
        x = jnp.concatenate([x, kept.pop()], axis=-1)
        x = activation(self.activation)(normalization("group", x.shape[-1], train, self.dtype)(x))
        return Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros, name="output")(x).astype(jnp.float32)


def doubled(x: jax.Array) -> jax.Array:
    """Returns images `[B, H, W, C]` with every pixel four times, `[B, 2 H, 2 W, C]`."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class DiT(nn.Module):
    """The Diffusion Transformer (Peebles & Xie, 2023), whose blocks the condition scales, shifts and gates.

    Attributes:
      features: channels of the output.
      patch_size: sides of a patch; they divide the image.
      width: of the blocks.
      depth: number of blocks.
      num_heads: of attention.
      mlp_width: of the hidden dense layers; None: four times the width.
      num_classes: None: it takes no labels.
      dropout: rate on what attention and dense layers add; may be traced.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: computes each block anew in the backward pass, which saves memory.
      scan_layers: runs the blocks as a loop, so that compiling takes as long for any depth; parameters are stacked.
    """

    features: int = 1
    patch_size: int = 2
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int | None = None
    num_classes: int | None = None
    dropout: Any = 0.0
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, times: jax.Array, labels: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Applies the network.

        Raises:
          ConfigError: the patches do not divide the image; labels and classes do not go together.
        """
        batch, height, width, _ = x.shape
        told = condition(times, labels, self.num_classes, self.width)
        dense = functools.partial(Dense, dtype=self.dtype)
        zeros = functools.partial(dense, kernel_init=nn.initializers.zeros)

        def modulated(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
            return nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x) * (1 + scale) + shift

        def block(x: jax.Array) -> jax.Array:
            parts = jnp.split(zeros(6 * self.width)(told)[:, None, :], 6, axis=-1)
            y = Attention(self.num_heads, dtype=self.dtype)(modulated(x, *parts[:2]))
            x = x + parts[2] * Dropout(self.dropout)(y, train=train)
            y = dense(self.mlp_width or 4 * self.width)(modulated(x, *parts[3:5]))
            return x + parts[5] * Dropout(self.dropout)(dense(self.width)(nn.gelu(y)), train=train)

        x = patches(x, self.patch_size, self.width, "glorot_uniform", self.dtype)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = repeat(block, x, self.depth, scan=self.scan_layers, remat=self.remat, name="blocks")
        x = modulated(x, *jnp.split(zeros(2 * self.width, name="output_condition")(told)[:, None, :], 2, axis=-1))
        x = zeros(self.patch_size**2 * self.features, name="output")(x)
        rows, columns, size = height // self.patch_size, width // self.patch_size, self.patch_size
        x = x.reshape(batch, rows, columns, size, size, self.features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height, width, self.features).astype(jnp.float32)
