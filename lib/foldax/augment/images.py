"""Augmentations of images `[B, H, W, C]`; what comes in from outside an image is `fill`, in the images' own units."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from foldax.augment.steps import Augmentation, check_share, check_size, computed_once, in_floats, on_inputs
from foldax.errors import ConfigError, ExperimentError

Padding = Literal["constant", "edge", "reflect", "wrap"]
_IMAGES = "[B, H, W, C]"


def random_crop(padding: int, *, mode: Padding = "constant", fill: Any = 0) -> Augmentation:
    """Returns the augmentation that pads all sides and cuts the old size out anywhere (He et al., 2016, with 4).

    Args:
      padding: pixels on each side; an image moves by at most so many.
      mode: what the padding is, as in `jnp.pad`.
      fill: the value of "constant".
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        check_size("random_crop", "padding", padding, min(x.shape[1:3]), f"images {x.shape[1]} x {x.shape[2]}")
        return moved(key, x, padding, mode, fill)

    return on_inputs("random_crop", change, _IMAGES)


def moved(key: jax.Array, x: jax.Array, most: int, mode: Padding, fill: Any) -> jax.Array:
    """Moves examples `[B, ..., C]` by whole steps, up to `most` along each axis between the first and the last."""
    axes = x.ndim - 2
    pads = [(0, 0), *[(most, most)] * axes, (0, 0)]
    options = {"constant_values": jnp.asarray(fill, x.dtype)} if mode == "constant" else {}
    padded = jnp.pad(x, pads, mode=mode, **options)
    starts = computed_once(jax.random.randint(key, (x.shape[0], axes), 0, 2 * most + 1))

    # On CPUs a slice for each example is several times faster than selecting among rolled images or multiplying by
    # matrices of ones and zeros.
    def cut(padded: jax.Array, starts: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (*starts, jnp.zeros_like(starts[0])), x.shape[1:])

    return jax.vmap(cut)(padded, starts)


def random_flip(probability: Any = 0.5, axis: Literal["horizontal", "vertical"] = "horizontal") -> Augmentation:
    """Returns the augmentation that mirrors images with a probability in [0, 1], which may be traced.

    Raises:
      ConfigError: there is no such axis.
    """
    check_share("random_flip", probability=probability)
    if axis not in ("horizontal", "vertical"):
        raise ConfigError(f"random_flip: axis {axis!r} is neither 'horizontal' nor 'vertical'")

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        chosen = computed_once(jax.random.bernoulli(key, probability, (x.shape[0], 1, 1, 1)))
        return jnp.where(chosen, jnp.flip(x, 2 if axis == "horizontal" else 1), x)

    return on_inputs("random_flip", change, _IMAGES)


def random_rotation(degrees: Any, *, fill: Any = 0.0) -> Augmentation:
    """Returns the augmentation that turns images by up to `degrees` either way; may be traced."""
    return random_affine(degrees, fill=fill)


def random_affine(
    rotation: Any = 0.0, translation: Any = 0.0, scale: Any = 0.0, shear: Any = 0.0, *, fill: Any = 0.0
) -> Augmentation:
    """Returns the augmentation that turns, moves, scales and shears images about their centres, at once.

    Every number is drawn uniformly up to the given one either way, all of which may be traced. Pixels between four
    are interpolated bilinearly.

    Args:
      rotation: in degrees.
      translation: along each axis, in shares of the side.
      scale: 0.2 is between 0.8 and 1.2 times as large; below 1.
      shear: in degrees along rows; below 90.
      fill: the value outside of an image.
    """
    check_share("random_affine", translation=translation, scale=scale)

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        draws = jax.random.uniform(key, (5, x.shape[0], 1, 1), minval=-1.0, maxval=1.0)
        angle, slope = jnp.radians(rotation) * draws[0], jnp.tan(jnp.radians(shear) * draws[1])
        cosine, sine, smaller = jnp.cos(angle), jnp.sin(angle), jnp.reciprocal(1.0 + scale * draws[2])
        # Each pixel looks up where it comes from, so that all is undone in the opposite order.
        undone = [cosine, sine, -sine - slope * cosine, cosine - slope * sine]
        moves = [translation * height * draws[3], translation * width * draws[4]]
        a, b, c, d, down, right = computed_once(jnp.stack([smaller * one for one in undone] + moves))
        center = ((height - 1) / 2, (width - 1) / 2)
        row = jnp.arange(height, dtype=jnp.float32)[None, :, None] - center[0] - down
        column = jnp.arange(width, dtype=jnp.float32)[None, None, :] - center[1] - right
        rows, columns = a * row + b * column + center[0], c * row + d * column + center[1]
        return in_floats(lambda x: resample(x, rows, columns, fill), x)

    return on_inputs("random_affine", change, _IMAGES)


def resample(x: jax.Array, rows: jax.Array, columns: jax.Array, fill: Any = 0.0) -> jax.Array:
    """Returns float images `[B, H, W, C]` at positions `[B, H, W]`, bilinearly; `fill` goes on outside of them.

    The same as `scipy.ndimage.map_coordinates(..., order=1, mode="grid-constant")`.
    """
    batch, height, width, channels = x.shape
    # One pixel of fill before and two after: whatever the position, all four neighbours are there.
    flat = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=fill).reshape(batch, -1, channels)
    top, left = jnp.clip(jnp.floor(rows), -1, height), jnp.clip(jnp.floor(columns), -1, width)
    below, right = jnp.clip(rows - top, 0.0, 1.0)[..., None], jnp.clip(columns - left, 0.0, 1.0)[..., None]
    first = ((top + 1) * (width + 3) + left + 1).astype(jnp.int32).reshape(batch, -1, 1)

    def neighbour(offset: int) -> jax.Array:
        return jnp.take_along_axis(flat, first + offset, axis=1, mode="promise_in_bounds").reshape(x.shape)

    above_row = neighbour(0) * (1 - right) + neighbour(1) * right
    below_row = neighbour(width + 3) * (1 - right) + neighbour(width + 4) * right
    return above_row * (1 - below) + below_row * below


def color(
    brightness: Any = None, contrast: Any = None, saturation: Any = None, hue: Any = None, *, white: Any = None
) -> Augmentation:
    """Returns the augmentation that changes colours, in this order, by dm-pix; all numbers may be traced.

    Args:
      brightness: adds up to this either way; 1 is black to white.
      contrast: the distance from each channel's mean is up to 1 +- this times as large.
      saturation: is up to 1 +- this times as large; needs red, green and blue.
      hue: moves by up to this either way; 1 is once around; needs red, green and blue.
      white: the largest value of a pixel (0 is the smallest), to which results are clipped; None: the dtype's own for
        integers, and 1 for floats.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    check_share("color", **strengths)

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        import dm_pix

        if (saturation is not None or hue is not None) and x.shape[-1] != 3:
            raise ExperimentError(f"color: saturation and hue need 3 channels, and the images have {x.shape[-1]}")
        own = 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).max
        high = own if white is None else white
        draws = computed_once(jax.random.uniform(key, (4, x.shape[0]), minval=-1.0, maxval=1.0))

        def one(image: jax.Array, draws: jax.Array) -> jax.Array:
            if brightness is not None:
                image = jnp.clip(dm_pix.adjust_brightness(image, brightness * draws[0]), 0.0, 1.0)
            if contrast is not None:
                image = jnp.clip(dm_pix.adjust_contrast(image, 1.0 + contrast * draws[1]), 0.0, 1.0)
            if saturation is not None:
                image = dm_pix.adjust_saturation(image, 1.0 + saturation * draws[2])
            return image if hue is None else dm_pix.adjust_hue(image, hue * draws[3])

        unit = jnp.reciprocal(jnp.asarray(high, jnp.float32))
        return in_floats(lambda x: jax.vmap(one, (0, 1))(x * unit, draws) * high, x)

    return on_inputs("color", change, _IMAGES)


def cutout(size: int, *, fill: Any = 0) -> Augmentation:
    """Returns the augmentation that covers a square of each image, its centre anywhere (DeVries & Taylor, 2017).

    Args:
      size: of the square's side; what would lie outside of the image is cut off.
      fill: the value that covers.
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        check_size("cutout", "size", size, min(x.shape[1:3]), f"images {x.shape[1]} x {x.shape[2]}")
        sides = jnp.asarray(x.shape[1:3])[:, None, None]
        centers = computed_once(jax.random.randint(key, (2, x.shape[0], 1), 0, sides))
        rows, columns = (
            (jnp.arange(side)[None, :] >= start) & (jnp.arange(side)[None, :] < start + size)
            for side, start in zip(x.shape[1:3], centers - size // 2)
        )
        covered = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(covered, jnp.asarray(fill, x.dtype), x)

    return on_inputs("cutout", change, _IMAGES)
