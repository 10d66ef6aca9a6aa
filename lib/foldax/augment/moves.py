"""Augmentations that move or remove pixels."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from foldax.augment.steps import Augmentation, of_each
from foldax.errors import ExperimentError


def random_crop(padding: int, mode: Literal["constant", "reflect", "edge"] = "constant") -> Augmentation:
    """Returns an augmentation that moves images `[B, H, W, C]` by up to `padding` pixels along each side.

    The image is padded and cut out anew somewhere (He et al., 2016); its size and dtype stay.

    Args:
      padding: pixels added on each side, at least 0.
      mode: what they are, as in `jax.numpy.pad`: zeros, the image reflected, or its edge.

    Raises:
      ExperimentError: `padding` is negative; while tracing, the inputs are no images.
    """
    if padding < 0:
        raise ExperimentError(f"augment.random_crop: padding={padding} must be at least 0")

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        if not padding:
            return image
        padded = jnp.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode=mode)
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)

    return of_each(crop, "random_crop", (4,))


def random_flip(probability: Any = 0.5, axis: Literal["horizontal", "vertical"] = "horizontal") -> Augmentation:
    """Returns an augmentation that mirrors images `[B, H, W, C]` with some probability, which may be traced."""
    if axis not in ("horizontal", "vertical"):
        raise ExperimentError(f"augment.random_flip: axis={axis!r} is neither 'horizontal' nor 'vertical'")
    index = 1 if axis == "horizontal" else 0

    def flip(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, probability), jnp.flip(image, index), image)

    return of_each(flip, "random_flip", (4,))


def random_rotation(degrees: Any) -> Augmentation:
    """Returns an augmentation that turns images about their centre by up to `degrees`, which may be traced."""
    return random_affine(rotation=degrees)


def random_affine(rotation: Any = 0.0, translation: Any = 0.0, scale: Any = 0.0, shear: Any = 0.0) -> Augmentation:
    """Returns an augmentation that turns, moves, scales and shears images `[B, H, W, C]`, all in one interpolation.

    Every number is drawn uniformly between minus and plus the one given, all of which may be traced. Pixels are
    interpolated linearly, and are 0 beyond the image; integers are rounded.

    Args:
      rotation: degrees, about the centre.
      translation: share of the sides.
      scale: share of the size: 0.1 is 0.9 to 1.1 times as large.
      shear: degrees by which columns lean.
    """

    def affine(key: jax.Array, image: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (5,), jnp.float32, -1.0, 1.0)
        turn, lean = draws[0] * jnp.deg2rad(rotation), draws[1] * jnp.deg2rad(shear)
        inverse = jnp.reciprocal(1.0 + draws[2] * scale)
        height, width, _ = image.shape
        moved = draws[3:] * translation * jnp.array([height, width], jnp.float32)
        centre = jnp.array([(height - 1) / 2, (width - 1) / 2], jnp.float32)
        cosine, sine = jnp.cos(turn) * inverse, jnp.sin(turn) * inverse
        matrix = jnp.array([[cosine, -sine], [sine, cosine]]) @ jnp.array([[1.0, 0.0], [jnp.tan(lean), 1.0]])
        rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
        places = jnp.stack([rows, columns]).astype(jnp.float32).reshape(2, -1) - (centre + moved)[:, None]
        source = (matrix @ places + centre[:, None]).reshape(2, height, width)
        sample = jax.vmap(
            lambda channel: jax.scipy.ndimage.map_coordinates(channel, list(source), order=1), in_axes=2, out_axes=2
        )
        values = sample(image.astype(jnp.float32))
        return (jnp.round(values) if jnp.issubdtype(image.dtype, jnp.integer) else values).astype(image.dtype)

    return of_each(affine, "random_affine", (4,))


def cutout(size: int) -> Augmentation:
    """Returns an augmentation that sets a square of images `[B, H, W, C]` to 0 (DeVries & Taylor, 2017).

    Its centre is anywhere in the image, so the square may reach beyond the edge.

    Args:
      size: side of the square in pixels, at least 1.

    Raises:
      ExperimentError: `size` is below 1; while tracing, it is larger than the image.
    """
    if size < 1:
        raise ExperimentError(f"augment.cutout: size={size} must be at least 1")

    def cut(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        if size > min(height, width):
            raise ExperimentError(f"augment.cutout: size={size} is larger than the image, {height} x {width}")
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (), 0, height) - size // 2
        left = jax.random.randint(column_key, (), 0, width) - size // 2
        rows, columns = jnp.arange(height), jnp.arange(width)
        inside = ((rows >= top) & (rows < top + size))[:, None] & ((columns >= left) & (columns < left + size))[None, :]
        return jnp.where(inside[:, :, None], jnp.zeros((), image.dtype), image)

    return of_each(cut, "cutout", (4,))
