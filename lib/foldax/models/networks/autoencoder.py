"""A network that describes its inputs by codes, and makes inputs of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, ConvTranspose, Normalization, normalization
from foldax.models.layers.initializers import Initializer, initializer


class Coded(NamedTuple):
    """What an `Autoencoder` makes of inputs.

    Attributes:
      outputs: `[B, ...]`, of the inputs' shape.
      codes: `[B, D]`.
    """

    outputs: jax.Array
    codes: jax.Array


class Autoencoder(nn.Module):
    """An encoder and a decoder (Hinton & Salakhutdinov, 2006): `[B, ...]` to `Coded`.

    With `method=Autoencoder.encode` it gives codes alone, with `method=Autoencoder.decode` it takes them.

    Attributes:
      encoder: any network `[B, ...]` to `[B, D]`.
      decoder: any network of codes `[B, D]` that gives as many numbers as an input has.
      shape: of one input.
    """

    encoder: Any
    decoder: Any
    shape: Sequence[int]

    def __call__(self, x: jax.Array, *, train: bool = False) -> Coded:
        """Encodes and decodes.

        Raises:
          ConfigError: inputs have another shape than was announced, or the decoder gives another number of numbers.
        """
        codes = self.encode(x, train=train)
        return Coded(self.decode(codes, train=train), codes)

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the codes `[B, D]` of inputs."""
        if x.shape[1:] != tuple(self.shape):
            raise ConfigError(f"Autoencoder: inputs must be [B, ...] of shape {tuple(self.shape)}, got {list(x.shape)}")
        return self.encoder(x, train=train)

    def decode(self, codes: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns what the codes `[B, D]` stand for, in the inputs' shape."""
        outputs = self.decoder(codes, train=train)
        if math.prod(outputs.shape[1:]) != math.prod(self.shape):
            raise ConfigError(
                f"Autoencoder: the decoder gives {list(outputs.shape[1:])} and the inputs are {list(self.shape)}"
            )
        return outputs.reshape(-1, *self.shape)


class Upsampler(nn.Module):
    """A dense layer, then convolutions that each double the image: `[B, D]` to float32 `[B, H, W, C]`.

    Attributes:
      shape: `(H, W, C)` of the output.
      channels: of the image before each doubling; H and W must be divisible by 2 to the power of their number.
      kernel_size: length of a kernel's sides.
      activation: after every layer but the last: a name of `ACTIVATIONS` or a function.
      normalization: None, "batch", "layer", "group" or "rms".
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function.
    """

    shape: Sequence[int]
    channels: tuple[int, ...] = (64, 32)
    kernel_size: int = 4
    activation: Activation = "relu"
    normalization: Normalization | None = None
    dtype: Any = None
    kernel_init: Initializer = "lecun_normal"

    @nn.compact
    def __call__(self, codes: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the network.

        Raises:
          ConfigError: the sides cannot be doubled to the shape.
        """
        *sides, outputs = self.shape
        scale = 2 ** len(self.channels)
        if not self.channels or any(side % scale for side in sides):
            raise ConfigError(
                f"channels: {self.channels} double an image {len(self.channels)} times, which {scale} must divide, "
                f"and the image is {sides}"
            )
        activate, init = activation(self.activation), initializer(self.kernel_init)

        def activated(x: jax.Array) -> jax.Array:
            return activate(normalization(self.normalization, x.shape[-1], train, self.dtype)(x))

        small = [side // scale for side in sides]
        x = nn.Dense(math.prod(small) * self.channels[0], dtype=self.dtype, kernel_init=init)(codes)
        x = activated(x.reshape(-1, *small, self.channels[0]))
        size, steps = (self.kernel_size,) * len(sides), (2,) * len(sides)
        for width in self.channels[1:]:
            x = activated(ConvTranspose(width, size, steps, dtype=self.dtype, kernel_init=init)(x))
        x = ConvTranspose(self.channels[-1], size, steps, dtype=self.dtype, kernel_init=init)(x)
        return Conv(outputs, (3,) * len(sides), dtype=self.dtype, kernel_init=init)(activated(x)).astype(jnp.float32)
