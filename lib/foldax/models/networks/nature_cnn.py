"""The network of Atari's players."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.models.layers.building_blocks import Conv, Dense

WINDOWS = ((8, 4), (4, 2), (3, 1))  # length of a kernel's sides, and its step


class NatureCNN(nn.Module):
    """Three convolutions and a dense layer: images `[B, H, W, C]`, 0 to 255, to `[B, features]` (Mnih et al., 2015).

    Attributes:
      features: width of the output.
      channels: of the convolutions, whose kernels are of 8, 4 and 3, in steps of 4, 2 and 1.
      channels_first: whether images are `[B, C, H, W]`, as stacked frames are.
    """

    features: int = 512
    channels: tuple[int, ...] = (32, 64, 64)
    channels_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = jnp.moveaxis(x, 1, -1) if self.channels_first else x
        x = jnp.asarray(x, jnp.float32) * (1 / 255)
        options: dict[str, Any] = dict(kernel_init=nn.initializers.orthogonal(math.sqrt(2)))
        for width, (size, step) in zip(self.channels, WINDOWS, strict=False):
            x = nn.relu(Conv(width, (size, size), (step, step), padding="VALID", **options)(x))
        return nn.relu(Dense(self.features, **options)(x.reshape(x.shape[0], -1)))
