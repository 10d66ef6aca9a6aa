"""Denoising networks of diffusion models, conditioned on time and class: U-Net and Diffusion Transformer.

Both map images `[B, H, W, C]`, times `[B]` from 0 to 1 and, if they are conditional, labels int `[B]` to float32
`[B, H, W, features]`. The label `num_classes` is the null label of classifier-free guidance: "no class".
"""

import functools
import math

import chex
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Conv, Dense, Dropout, Remat, activation, normalization, pool, repeat
from foldax.models.layers.attention import Attention
from foldax.models.networks.masked_autoencoder import unpatchify
from foldax.models.networks.vit import embed_patches


def embed_conditioning(times: Array, labels: Array | None, num_classes: int | None, width: int) -> Array:
    """Embeds times (sinusoidal features, then two dense layers) and labels; to be called in a compact module.

    Args:
      times: `[B]`, from 0 to 1.
      labels: int `[B]`, from 0 to `num_classes`, which is the null label; None: unconditional.
      num_classes: number of classes; None: unconditional.
      width: size of the embedding.

    Returns:
      Sum of both embeddings, after a SiLU, `[B, width]`.

    Raises:
      ConfigError: there are classes and no labels, or labels and no classes.
    """
    chex.assert_rank(times, 1)
    if (labels is None) != (num_classes is None):
        raise ConfigError("a denoising network takes labels if and only if it has num_classes")
    # Sinusoidal features with frequencies from 1 to 1,000 radians per unit of time
    frequencies = jnp.exp(jnp.linspace(0.0, math.log(1000.0), width // 2))
    angles = times[:, None] * frequencies[None, :]
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    embedding = Dense(width, name="time_output")(nn.silu(Dense(width, name="time_hidden")(features)))
    if num_classes is not None and labels is not None:
        embedding = embedding + nn.Embed(num_classes + 1, width, name="classes")(labels)
    return nn.silu(embedding)


class DenoisingBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions; the conditioning scales and shifts the hidden features.

    Attributes:
      width: channels of the output.
      activation: a name of `ACTIVATIONS` or a function.
      dropout: dropout rate before the second convolution, in [0, 1]; may be traced.
      dtype: type of the computation; parameters stay float32.

    >>> import jax
    >>> block = DenoisingBlock(width=8)
    >>> x, conditioning = jnp.zeros((2, 4, 4, 8)), jnp.zeros((2, 16))
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), x, conditioning)[0].shape
    (2, 4, 4, 8)
    """

    width: int
    activation: Activation = "silu"
    dropout: chex.Numeric = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, conditioning: Array, *, train: bool = False) -> Array:
        """Maps `[B, H, W, C]` and the conditioning `[B, D]` to `[B, H, W, width]`."""
        activate = activation(self.activation)
        convolve = functools.partial(Conv, self.width, (3, 3), dtype=self.dtype)
        y = convolve()(activate(normalization("group", x.shape[-1], train, self.dtype)(x)))
        # The conditioning enters between the convolutions, after the second normalisation (FiLM).
        scale, shift = jnp.split(Dense(2 * self.width, dtype=self.dtype)(conditioning)[:, None, None, :], 2, axis=-1)
        y = activate(normalization("group", self.width, train, self.dtype)(y) * (1 + scale) + shift)
        # Zero-initialised: the block starts as its shortcut.
        y = convolve(kernel_init=nn.initializers.zeros)(Dropout(self.dropout)(y, train=train))
        return y + (x if x.shape[-1] == self.width else Dense(self.width, dtype=self.dtype)(x))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) in the form of Ho et al. (2020), with attention at the lowest resolution.

    Attributes:
      features: channels of the output.
      channels: channels at each resolution. Each but the first halves the image, whose sides must be divisible.
      blocks: residual blocks at each resolution, on the way down and on the way up.
      num_heads: attention heads at the lowest resolution; 0: no attention.
      num_classes: number of classes; None: unconditional.
      activation: a name of `ACTIVATIONS` or a function.
      dropout: dropout rate inside the residual blocks, in [0, 1]; may be traced.
      dtype: type of the computation, such as `jnp.bfloat16`; parameters stay float32.

    >>> import jax
    >>> model, x = UNet(channels=(8,), num_heads=0), jnp.zeros((2, 4, 4, 1))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x, jnp.zeros(2))[0].shape
    (2, 4, 4, 1)
    """

    features: int = 1
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    num_heads: int = 4
    num_classes: int | None = None
    activation: Activation = "silu"
    dropout: chex.Numeric = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, times: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        """Denoises images.

        Args:
          x: noisy images, `[B, H, W, C]`.
          times: `[B]`, from 0 to 1.
          labels: int `[B]`, for a conditional network.
          train: whether dropout is on.

        Returns:
          The prediction, float32 `[B, H, W, features]`.

        Raises:
          ConfigError: the sides of the image are not divisible; labels without classes or the reverse.
        """
        divisor = 2 ** (len(self.channels) - 1)
        if x.ndim != 4 or any(side % divisor for side in x.shape[1:3]):
            needed = f"images [B, H, W, C] with sides divisible by {divisor}"
            raise ConfigError(f"UNet: {len(self.channels)} resolutions need {needed}, got {x.shape}")
        conditioning = embed_conditioning(times, labels, self.num_classes, 2 * self.channels[-1])

        def block(x: Array, width: int) -> Array:
            return DenoisingBlock(width, self.activation, self.dropout, self.dtype)(x, conditioning, train=train)

        # Down: the output of every block is kept for the way up.
        x = Conv(self.channels[0], (3, 3), dtype=self.dtype, name="stem")(x)
        skips = [x]
        for level, width in enumerate(self.channels):
            x = pool(x, "mean", (2, 2)) if level else x
            for _ in range(self.blocks):
                x = block(x, width)
                skips.append(x)

        # Middle
        x = block(x, self.channels[-1])
        if self.num_heads:
            tokens = nn.LayerNorm(dtype=self.dtype)(x).reshape(x.shape[0], -1, x.shape[-1])
            x = x + Attention(self.num_heads, dtype=self.dtype)(tokens).reshape(x.shape)

        # Up
        for level, width in reversed(list(enumerate(self.channels))):
            for _ in range(self.blocks):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), width)
            x = upsample(x) if level else x
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = activation(self.activation)(normalization("group", x.shape[-1], train, self.dtype)(x))
        return Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros, name="output")(x).astype(jnp.float32)


def upsample(x: Array) -> Array:
    """Doubles the sides of images by repeating pixels: `[B, H, W, C]` to `[B, 2 H, 2 W, C]`.

    >>> upsample(jnp.array([[1.0, 2.0]]).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class DiT(nn.Module):
    """Diffusion Transformer with adaLN-Zero blocks (Peebles & Xie, 2023).

    Attributes:
      features: channels of the output.
      patch_size: side length of a patch; it must divide the sides of the image.
      width: size of the token embeddings.
      depth: number of blocks.
      num_heads: attention heads; they divide the width.
      mlp_width: width of the hidden dense layers; None: four times `width`.
      num_classes: number of classes; None: unconditional.
      dropout: dropout rate of the residual branches, in [0, 1]; may be traced.
      dtype: type of the computation, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes each block in the backward pass, or what a policy does not save, see `models.repeat`.
      scan_layers: runs the blocks as a `lax.scan`, so that compile time does not grow with depth; parameters are
        stacked.

    >>> import jax
    >>> model, x = DiT(width=8, depth=1, num_heads=2, num_classes=3), jnp.zeros((2, 4, 4, 1))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x, jnp.zeros(2), jnp.array([0, 3]))[0].shape
    (2, 4, 4, 1)
    """

    features: int = 1
    patch_size: int = 2
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int | None = None
    num_classes: int | None = None
    dropout: chex.Numeric = 0.0
    dtype: DTypeLike | None = None
    remat: Remat = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, x: Array, times: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        """Denoises images.

        Args:
          x: noisy images, `[B, H, W, C]`.
          times: `[B]`, from 0 to 1.
          labels: int `[B]`, for a conditional network.
          train: whether dropout is on.

        Returns:
          The prediction, float32 `[B, H, W, features]`.

        Raises:
          ConfigError: the patches do not divide the image; labels without classes or the reverse.
        """
        image = x.shape[1:3]
        conditioning = embed_conditioning(times, labels, self.num_classes, self.width)
        dense = functools.partial(Dense, dtype=self.dtype)
        zero_dense = functools.partial(dense, kernel_init=nn.initializers.zeros)

        def modulate(x: Array, scale: Array, shift: Array) -> Array:
            return nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x) * (1 + scale) + shift

        def block(x: Array) -> Array:
            # adaLN-Zero: scale, shift and gate of both branches start at 0, so each block starts as the identity.
            scales = jnp.split(zero_dense(6 * self.width)(conditioning)[:, None, :], 6, axis=-1)
            y = Attention(self.num_heads, dtype=self.dtype)(modulate(x, *scales[:2]))
            x = x + scales[2] * Dropout(self.dropout)(y, train=train)
            y = dense(self.mlp_width or 4 * self.width)(modulate(x, *scales[3:5]))
            return x + scales[5] * Dropout(self.dropout)(dense(self.width)(nn.gelu(y)), train=train)

        x = embed_patches(x, self.patch_size, self.width, "glorot_uniform", self.dtype)
        # Learned position embeddings
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = repeat(block, x, self.depth, scan=self.scan_layers, remat=self.remat, name="blocks")
        # Final adaptive norm and zero-initialised output: the network starts by predicting 0.
        scales = zero_dense(2 * self.width, name="output_condition")(conditioning)[:, None, :]
        x = modulate(x, *jnp.split(scales, 2, axis=-1))
        x = zero_dense(self.patch_size**2 * self.features, name="output")(x)

        # Tokens back to pixels
        return unpatchify(x, (*image, self.features)).astype(jnp.float32)
