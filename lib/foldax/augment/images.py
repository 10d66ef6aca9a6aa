"""Augmentations of images `[B, H, W, C]`; `fill` is the value outside of an image, in the units of its pixels."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from chex import Numeric

from foldax.augment import augmentation
from foldax.augment.augmentation import Augmentation
from foldax.errors import ConfigError, ExperimentError

Padding = Literal["constant", "edge", "reflect", "wrap"]
_IMAGES = "[B, H, W, C]"


def random_crop(padding: int, *, mode: Padding = "constant", fill: float = 0) -> Augmentation:
    """Pads all sides of an image, then crops the original size at a random offset (He et al., 2016, with 4 pixels).

    Args:
      padding: pixels added on each side, and the largest shift of an image; at most its height and width.
      mode: padding mode of `jnp.pad`.
      fill: value of "constant" padding.

    >>> crop = random_crop(2)
    >>> crop(jax.random.key(0), {"inputs": jnp.ones((4, 8, 8, 3))})["inputs"].shape
    (4, 8, 8, 3)
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        augmentation.check_size("random_crop", "padding", padding, min(height, width), f"images {height} x {width}")
        return random_translation(key, x, padding, mode, fill)

    return augmentation.input_augmentation("random_crop", change, _IMAGES)


def random_translation(key: jax.Array, x: jax.Array, max_offset: int, mode: Padding, fill: float) -> jax.Array:
    """Translates each example of `[B, ..., C]` by whole positions, up to `max_offset` along each inner axis."""
    axes = x.ndim - 2
    options: dict[str, Any] = {"constant_values": jnp.asarray(fill, x.dtype)} if mode == "constant" else {}
    # Padded once for the whole batch; every example then takes its own window.
    padded = jnp.pad(x, [(0, 0), *[(max_offset, max_offset)] * axes, (0, 0)], mode=mode, **options)
    # Offset `max_offset` leaves an image where it was.
    starts = augmentation.materialize(jax.random.randint(key, (x.shape[0], axes), 0, 2 * max_offset + 1))

    # On CPUs a slice for each example is several times faster than selecting among rolled images or multiplying by
    # matrices of ones and zeros.
    def cut(padded: jax.Array, starts: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (*starts, jnp.zeros_like(starts[0])), x.shape[1:])

    return jax.vmap(cut)(padded, starts)


def random_flip(probability: Numeric = 0.5, axis: Literal["horizontal", "vertical"] = "horizontal") -> Augmentation:
    """Flips each image with a probability.

    Args:
      probability: in [0, 1]; may be traced.
      axis: "horizontal" swaps left and right, "vertical" top and bottom.

    Raises:
      ConfigError: the axis or the probability is not allowed.

    >>> flip = random_flip(1.0)
    >>> flip(jax.random.key(0), {"inputs": jnp.arange(3.0).reshape(1, 1, 3, 1)})["inputs"].ravel().tolist()
    [2.0, 1.0, 0.0]
    """
    augmentation.check_fraction("random_flip", probability=probability)
    if axis not in ("horizontal", "vertical"):
        raise ConfigError(f"random_flip: axis {axis!r} is neither 'horizontal' nor 'vertical'")

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        chosen = augmentation.materialize(jax.random.bernoulli(key, probability, (x.shape[0], 1, 1, 1)))
        return jnp.where(chosen, jnp.flip(x, 2 if axis == "horizontal" else 1), x)

    return augmentation.input_augmentation("random_flip", change, _IMAGES)


def random_rotation(degrees: Numeric, *, fill: Numeric = 0.0) -> Augmentation:
    """Rotates each image about its centre by an angle uniform in [-degrees, degrees], which may be traced.

    >>> rotate = random_rotation(15.0)
    >>> rotate(jax.random.key(0), {"inputs": jnp.ones((1, 8, 8, 1))})["inputs"].shape
    (1, 8, 8, 1)
    """
    return random_affine(degrees, fill=fill)


def random_affine(
    rotation: Numeric = 0.0,
    translation: Numeric = 0.0,
    scale: Numeric = 0.0,
    shear: Numeric = 0.0,
    *,
    fill: Numeric = 0.0,
) -> Augmentation:
    """Rotates, translates, scales and shears each image about its centre in one bilinear resampling.

    Each parameter is uniform up to its argument in both directions; all arguments may be traced.

    Args:
      rotation: maximum angle in degrees.
      translation: maximum shift along each axis, as a fraction of the side.
      scale: 0.2 scales by a factor between 0.8 and 1.2; below 1.
      shear: maximum shear angle along rows, in degrees; below 90.
      fill: value outside of an image.

    Raises:
      ConfigError: `translation` or `scale` is out of range.

    >>> affine = random_affine(rotation=10.0, translation=0.1, scale=0.1)
    >>> affine(jax.random.key(0), {"inputs": jnp.ones((2, 8, 8, 1))})["inputs"].shape
    (2, 8, 8, 1)
    """
    augmentation.check_fraction("random_affine", translation=translation, scale=scale)

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        # One sample per parameter and image: angle, shear, scale and two shifts.
        samples = jax.random.uniform(key, (5, x.shape[0], 1, 1), minval=-1.0, maxval=1.0)
        angle, slope = jnp.radians(rotation) * samples[0], jnp.tan(jnp.radians(shear) * samples[1])
        cosine, sine, inverse_scale = jnp.cos(angle), jnp.sin(angle), jnp.reciprocal(1.0 + scale * samples[2])
        # Each output pixel looks up its source position, so that the inverse transformation is applied.
        inverse = [cosine, sine, -sine - slope * cosine, cosine - slope * sine]
        shifts = [translation * height * samples[3], translation * width * samples[4]]
        parameters = jnp.stack([inverse_scale * entry for entry in inverse] + shifts)
        a, b, c, d, down, right = augmentation.materialize(parameters)
        # Coordinates relative to the centre, about which images rotate.
        center = ((height - 1) / 2, (width - 1) / 2)
        row = jnp.arange(height, dtype=jnp.float32)[None, :, None] - center[0] - down
        column = jnp.arange(width, dtype=jnp.float32)[None, None, :] - center[1] - right
        # Source position of each output pixel, [B, H, W].
        rows, columns = a * row + b * column + center[0], c * row + d * column + center[1]
        return augmentation.apply_in_float32(lambda x: resample(x, rows, columns, fill), x)

    return augmentation.input_augmentation("random_affine", change, _IMAGES)


def resample(x: jax.Array, rows: jax.Array, columns: jax.Array, fill: Numeric = 0.0) -> jax.Array:
    """Samples images bilinearly at given positions, as `scipy.ndimage.map_coordinates(order=1, mode="grid-constant")`.

    Args:
      x: float images `[B, H, W, C]`.
      rows: row of each sample, `[B, H, W]`, in pixels; may lie outside of the image.
      columns: column of each sample, `[B, H, W]`.
      fill: value of all pixels outside of an image.

    Returns:
      Float images `[B, H, W, C]`.

    >>> image = jnp.array([0.0, 10.0]).reshape(1, 1, 2, 1)
    >>> resample(image, jnp.zeros((1, 1, 2)), jnp.array([[[0.5, 1.5]]])).ravel().tolist()
    [5.0, 5.0]
    """
    chex.assert_rank(x, 4)
    chex.assert_type(x, float)
    chex.assert_shape([rows, columns], x.shape[:3])
    batch, height, width, channels = x.shape
    # One pixel of fill before and two after an image, so that all four neighbours of any position exist.
    flat = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=fill).reshape(batch, -1, channels)
    # Positions far outside are clipped to the border of fill, where the result is the same.
    top, left = jnp.clip(jnp.floor(rows), -1, height), jnp.clip(jnp.floor(columns), -1, width)
    below, right = jnp.clip(rows - top, 0.0, 1.0)[..., None], jnp.clip(columns - left, 0.0, 1.0)[..., None]
    # Index of the upper left neighbour in the flattened padded image.
    first = ((top + 1) * (width + 3) + left + 1).astype(jnp.int32).reshape(batch, -1, 1)

    def neighbour(offset: int) -> jax.Array:
        return jnp.take_along_axis(flat, first + offset, axis=1, mode="promise_in_bounds").reshape(x.shape)

    # Linear interpolation along columns in both rows, then between the rows.
    above_row = neighbour(0) * (1 - right) + neighbour(1) * right
    below_row = neighbour(width + 3) * (1 - right) + neighbour(width + 4) * right
    return above_row * (1 - below) + below_row * below


def color_jitter(
    brightness: Numeric | None = None,
    contrast: Numeric | None = None,
    saturation: Numeric | None = None,
    hue: Numeric | None = None,
    *,
    max_value: Numeric | None = None,
) -> Augmentation:
    """Changes brightness, contrast, saturation and hue of each image at random, in this order, by dm-pix.

    All arguments may be traced.

    Args:
      brightness: maximum offset in both directions, as a fraction of `max_value`.
      contrast: 0.2 multiplies the distance from each channel's mean by a factor between 0.8 and 1.2.
      saturation: likewise for saturation; needs RGB images.
      hue: maximum shift in both directions, as a fraction of the colour circle; needs RGB images.
      max_value: largest value of a pixel, to which results are clipped (the smallest is 0); None: the maximum of the
        dtype for integers, and 1 for floats.

    Raises:
      ConfigError: an argument is out of range.
      ExperimentError: while tracing, if `saturation` or `hue` meets images without 3 channels.

    >>> jitter = color_jitter(brightness=0.2, contrast=0.2)
    >>> jitter(jax.random.key(0), {"inputs": jnp.full((1, 4, 4, 1), 100, jnp.uint8)})["inputs"].dtype.name
    'uint8'
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    augmentation.check_fraction("color_jitter", **strengths)

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        import dm_pix

        if (saturation is not None or hue is not None) and x.shape[-1] != 3:
            raise ExperimentError(f"color_jitter: saturation and hue need 3 channels, the images have {x.shape[-1]}")
        default = 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).max
        high = default if max_value is None else max_value
        samples = augmentation.materialize(jax.random.uniform(key, (4, x.shape[0]), minval=-1.0, maxval=1.0))

        def adjust(image: jax.Array, samples: jax.Array) -> jax.Array:
            if brightness is not None:
                image = jnp.clip(dm_pix.adjust_brightness(image, brightness * samples[0]), 0.0, 1.0)
            if contrast is not None:
                image = jnp.clip(dm_pix.adjust_contrast(image, 1.0 + contrast * samples[1]), 0.0, 1.0)
            if saturation is not None:
                image = dm_pix.adjust_saturation(image, 1.0 + saturation * samples[2])
            return image if hue is None else dm_pix.adjust_hue(image, hue * samples[3])

        # dm-pix expects values in [0, 1].
        unit = jnp.reciprocal(jnp.asarray(high, jnp.float32))
        return augmentation.apply_in_float32(lambda x: jax.vmap(adjust, (0, 1))(x * unit, samples) * high, x)

    return augmentation.input_augmentation("color_jitter", change, _IMAGES)


def cutout(size: int, *, fill: float = 0) -> Augmentation:
    """Covers a square of each image, centred on a random pixel (DeVries & Taylor, 2017).

    Args:
      size: side of the square in pixels, at most the height and width of an image; the part outside of it is cut off.
      fill: value of the covered pixels.

    >>> cover = cutout(3, fill=7)
    >>> int((cover(jax.random.key(0), {"inputs": jnp.zeros((1, 9, 9, 1))})["inputs"] == 7).sum()) <= 9
    True
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        augmentation.check_size("cutout", "size", size, min(x.shape[1:3]), f"images {x.shape[1]} x {x.shape[2]}")
        # Centres are uniform over the pixels, so that squares may reach beyond the border.
        sides = jnp.asarray(x.shape[1:3])[:, None, None]
        centers = augmentation.materialize(jax.random.randint(key, (2, x.shape[0], 1), 0, sides))
        offsets = (jnp.arange(side)[None, :] - start for side, start in zip(x.shape[1:3], centers - size // 2))
        rows, columns = ((offset >= 0) & (offset < size) for offset in offsets)
        # A pixel is covered if both its row and its column are.
        covered = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(covered, jnp.asarray(fill, x.dtype), x)

    return augmentation.input_augmentation("cutout", change, _IMAGES)
