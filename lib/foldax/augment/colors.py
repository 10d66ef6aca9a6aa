"""Augmentations that change values: colours by dm-pix, and noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from foldax.augment.steps import Augmentation, checked, of_each
from foldax.errors import ExperimentError


def color(
    brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0, *, white: float = 255.0
) -> Augmentation:
    """Returns an augmentation that changes the colours of images `[B, H, W, C]` (then float32, 0 to `white`).

    Changes are drawn uniformly between minus and plus the numbers given, which may be traced.

    Args:
      brightness: added, as a share of `white`.
      contrast: share by which distances to the mean change.
      saturation: share by which the colourfulness changes; of three channels only.
      hue: turn of the colour circle, of which 1 is all; of three channels only.
      white: the largest value of a pixel.

    Raises:
      ExperimentError: while tracing, if saturation or hue change in images that have not three channels.
    """
    colored = not all(isinstance(value, (int, float)) and value == 0 for value in (saturation, hue))

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        import dm_pix

        if colored and image.shape[-1] != 3:
            raise ExperimentError(f"augment.color: saturation and hue need three channels, got {image.shape[-1]}")
        draws = jax.random.uniform(key, (4,), jnp.float32, -1.0, 1.0)
        values = image.astype(jnp.float32) * (1.0 / white) + draws[0] * brightness
        values = dm_pix.adjust_contrast(values, 1.0 + draws[1] * contrast)
        if colored:
            values = dm_pix.adjust_saturation(jnp.clip(values, 0.0, 1.0), 1.0 + draws[2] * saturation)
            values = dm_pix.adjust_hue(jnp.clip(values, 0.0, 1.0), draws[3] * hue)
        return jnp.clip(values, 0.0, 1.0) * white

    return of_each(change, "color", (4,))


def noise(std: Any) -> Augmentation:
    """Returns an augmentation that adds normal noise to images `[B, H, W, C]` or series `[B, T, C]`, made float32.

    Args:
      std: its standard deviation, in units of the inputs; may be traced.
    """

    def augment(key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs = checked(batch, "noise", (3, 4)).astype(jnp.float32)
        return {**batch, "inputs": inputs + std * jax.random.normal(key, inputs.shape)}

    return augment
