"""Pixels that depend on those before them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Dense


class Neighbours(nn.Module):
    """What is said of each pixel, by what a decoder says of it and by pixels before it (van den Oord et al., 2016).

    Before are those to the left in its row, and all in the rows above; it looks at those that are at most `reach` away
    along both sides. Two dense layers that all pixels share make of them, and of the decoder's numbers, the outputs.

    Attributes:
      features: outputs of a pixel.
      shape: `(H, W, C)` of an image; channels are pixels beside each other.
      reach: how far it looks, in pixels.
      width: numbers that the decoder gives for each pixel, and of the hidden layer.
      scale: the largest value of a pixel, which becomes 1.
      activation: of the hidden layer: a name of `ACTIVATIONS` or a function.
    """

    features: int
    shape: Sequence[int]
    reach: int = 2
    width: int = 32
    scale: float = 1.0
    activation: Activation = "gelu"

    @nn.compact
    def __call__(self, decoded: jax.Array, pixels: jax.Array) -> jax.Array:
        """Returns `[B, H * W * C, features]`.

        Args:
          decoded: `[B, H * W * C * width]`.
          pixels: `[B, H * W * C]`; of no matter for outputs of pixels before them.

        Raises:
          ConfigError: `decoded` or `pixels` have other shapes.
        """
        height, across = self.shape[0], math.prod(self.shape[1:])
        if pixels.shape[1:] != (height * across,) or decoded[0].size != height * across * self.width:
            raise ConfigError(
                f"Neighbours: images {tuple(self.shape)} have {height * across} pixels, of each of which the decoder "
                f"gives {self.width} numbers, got {list(pixels.shape)} and {list(decoded.shape)}"
            )
        reach, step = self.reach, math.prod(self.shape[2:])
        images = pixels.reshape(-1, height, across) * (1 / self.scale)
        padded = jnp.pad(images, [(0, 0), (reach, 0), (reach * step, reach * step)])
        rows = [padded[:, row : row + height, start : start + across] for row, start in self._places(step)]
        near = jnp.stack(rows, axis=-1).reshape(-1, height * across, len(rows))
        hidden = decoded.reshape(-1, height * across, self.width) + Dense(self.width, name="near")(near)
        return Dense(self.features, name="output")(activation(self.activation)(hidden)).astype(jnp.float32)

    def _places(self, step: int) -> list[tuple[int, int]]:
        """Returns where, in the padded image, rows and columns of each neighbour of the first pixel are."""
        reach = self.reach * step
        above = [(row, start) for row in range(self.reach) for start in range(2 * reach + 1)]
        return above + [(self.reach, start) for start in range(reach)]
