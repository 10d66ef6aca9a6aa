"""Autoencoder of any encoder and decoder, a convolutional decoder, and an autoregressive head for decoders."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Conv, Initializer, Normalization, activation, initializer, normalization
from foldax.models.layers.building_blocks import ConvTranspose, Dense


class AutoencoderOutput(NamedTuple):
    """Output of an `Autoencoder`.

    Attributes:
      reconstruction: `[B, ...]`, in the shape of the inputs.
      latents: `[B, D]`.
    """

    reconstruction: jax.Array
    latents: jax.Array


class Autoencoder(nn.Module):
    """Encoder and decoder (Hinton & Salakhutdinov, 2006): `[B, ...]` to `AutoencoderOutput`.

    Apply it with `method=Autoencoder.encode` or `method=Autoencoder.decode` for one half.

    Attributes:
      encoder: network `[B, ...]` to latents `[B, D]`.
      decoder: network of latents `[B, D]` whose outputs have as many elements as an input.
      shape: shape of one input.

    >>> from foldax.models import MLP
    >>> model = Autoencoder(MLP((2,)), MLP((12,)), shape=(3, 4))
    >>> output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((5, 3, 4)))
    >>> output.reconstruction.shape, output.latents.shape
    ((5, 3, 4), (5, 2))
    """

    encoder: nn.Module
    decoder: nn.Module
    shape: Sequence[int]

    def __call__(self, x: jax.Array, *, train: bool = False) -> AutoencoderOutput:
        """Encodes and decodes inputs `[B, ...]`.

        Raises:
          ConfigError: the inputs do not have the announced shape, or the decoder's outputs another number of elements.
        """
        latents = self.encode(x, train=train)
        return AutoencoderOutput(self.decode(latents, train=train), latents)

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the latents `[B, D]` of inputs `[B, ...]`."""
        if x.shape[1:] != tuple(self.shape):
            raise ConfigError(f"Autoencoder: inputs must be [B, ...] of shape {tuple(self.shape)}, got {list(x.shape)}")
        return self.encoder(x, train=train)

    def decode(self, latents: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the reconstruction `[B, ...]` from latents `[B, D]`."""
        outputs = self.decoder(latents, train=train)
        if math.prod(outputs.shape[1:]) != math.prod(self.shape):
            shapes = f"{list(outputs.shape[1:])}, inputs are {list(self.shape)}"
            raise ConfigError(f"Autoencoder: the decoder outputs {shapes}")
        return outputs.reshape(-1, *self.shape)


class Upsampler(nn.Module):
    """Convolutional decoder: a dense layer, then transposed convolutions that each double the sides of the image.

    Attributes:
      shape: `(H, W, C)` of the output.
      channels: channels before each doubling; H and W must be divisible by 2 to the power of their number.
      kernel_size: side length of the transposed convolutions' kernels.
      activation: a name of `ACTIVATIONS` or a function, after every layer but the last.
      normalization: None, "batch", "layer", "group" or "rms".
      dtype: type of the computation, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function.

    >>> model = Upsampler((8, 8, 1), channels=(16, 8))
    >>> images, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((5, 3)))
    >>> images.shape
    (5, 8, 8, 1)
    """

    shape: Sequence[int]
    channels: tuple[int, ...] = (64, 32)
    kernel_size: int = 4
    activation: Activation = "relu"
    normalization: Normalization | None = None
    dtype: DTypeLike | None = None
    kernel_init: Initializer = "lecun_normal"

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool = False) -> jax.Array:
        """Decodes latents `[B, D]` to float32 images `[B, H, W, C]`.

        Raises:
          ConfigError: the sides of the image are not divisible by 2 to the power of the number of doublings.
        """
        *sides, outputs = self.shape
        scale = 2 ** len(self.channels)
        if not self.channels or any(side % scale for side in sides):
            doublings = f"{self.channels} double the image {len(self.channels)} times (at least once)"
            raise ConfigError(f"channels: {doublings}, so its sides must be divisible by {scale}; got {sides}")
        activate, init = activation(self.activation), initializer(self.kernel_init)

        def normalize_and_activate(x: jax.Array) -> jax.Array:
            return activate(normalization(self.normalization, x.shape[-1], train, self.dtype)(x))

        # Dense layer to the smallest image
        small = [side // scale for side in sides]
        x = nn.Dense(math.prod(small) * self.channels[0], dtype=self.dtype, kernel_init=init)(latents)
        x = normalize_and_activate(x.reshape(-1, *small, self.channels[0]))
        size, strides = (self.kernel_size,) * len(sides), (2,) * len(sides)
        # Every transposed convolution doubles the image.
        for width in self.channels[1:]:
            x = normalize_and_activate(ConvTranspose(width, size, strides, dtype=self.dtype, kernel_init=init)(x))
        x = ConvTranspose(self.channels[-1], size, strides, dtype=self.dtype, kernel_init=init)(x)
        # A last convolution smooths the checkerboard of the transposed ones.
        x = Conv(outputs, (3,) * len(sides), dtype=self.dtype, kernel_init=init)(normalize_and_activate(x))
        return x.astype(jnp.float32)


class LocalAutoregressiveHead(nn.Module):
    """Outputs for every pixel from a decoder's features and the preceding pixels nearby (PixelCNN, PixelVAE).

    Preceding pixels, in raster order (van den Oord et al., 2016), are those to the left in the same row and all in the
    rows above; the head sees those at most `context_radius` away in both directions. Two dense layers, shared by all
    pixels, map them and the decoder's features to the outputs (compare Gulrajani et al., 2017).

    Attributes:
      features: outputs per pixel.
      shape: `(H, W, C)` of an image; channels count as adjacent pixels.
      context_radius: how many rows above and columns to either side are visible.
      width: decoder features per pixel, and size of the hidden layer.
      scale: pixels are divided by it; the largest pixel value.
      activation: a name of `ACTIVATIONS` or a function, of the hidden layer.

    >>> head = LocalAutoregressiveHead(features=2, shape=(3, 3, 1), width=4)
    >>> outputs, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), jnp.zeros((5, 36)), jnp.zeros((5, 9)))
    >>> outputs.shape
    (5, 9, 2)
    """

    features: int
    shape: Sequence[int]
    context_radius: int = 2
    width: int = 32
    scale: float = 1.0
    activation: Activation = "gelu"

    @nn.compact
    def __call__(self, decoded: jax.Array, pixels: jax.Array) -> jax.Array:
        """Computes the outputs of all pixels at once.

        Args:
          decoded: the decoder's features, with `H * W * C * width` elements per image, `[B, ...]`.
          pixels: `[B, H * W * C]`; the outputs of a pixel depend on preceding pixels only.

        Returns:
          Outputs, float32 `[B, H * W * C, features]`.

        Raises:
          ConfigError: `decoded` or `pixels` have the wrong shape.
        """
        height, row_length = self.shape[0], math.prod(self.shape[1:])
        count = height * row_length
        if pixels.shape[1:] != (count,) or decoded[0].size != count * self.width:
            expected = f"images {tuple(self.shape)} have {count} pixels with {self.width} decoder features each"
            raise ConfigError(f"LocalAutoregressiveHead: {expected}, got {list(pixels.shape)}, {list(decoded.shape)}")
        # Rows above and columns to either side are padded with 0; there is nothing below to pad.
        radius, reach = self.context_radius, self.context_radius * math.prod(self.shape[2:])
        images = pixels.reshape(-1, height, row_length) * (1 / self.scale)
        padded = jnp.pad(images, [(0, 0), (radius, 0), (reach, reach)])
        # The context of a pixel: whole rows above, then what is to the left in the same row.
        offsets = [(row, start) for row in range(radius) for start in range(2 * reach + 1)]
        offsets += [(radius, start) for start in range(reach)]
        # Each shift of the padded image is one pixel of every context: [B, pixels, context].
        shifted = [padded[:, row : row + height, start : start + row_length] for row, start in offsets]
        context = jnp.stack(shifted, axis=-1).reshape(-1, count, len(shifted))
        hidden = decoded.reshape(-1, count, self.width) + Dense(self.width, name="near")(context)
        return Dense(self.features, name="output")(activation(self.activation)(hidden)).astype(jnp.float32)
