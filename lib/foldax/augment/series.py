"""Augmentations of series `[B, T, C]`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from foldax.augment.steps import Augmentation, of_each
from foldax.errors import ExperimentError


def time_mask(max_length: int) -> Augmentation:
    """Returns an augmentation that sets up to `max_length` steps in a row to 0 (Park et al., 2019).

    Raises:
      ExperimentError: `max_length` is below 1; while tracing, it is more than the steps there are.
    """
    return _masking(max_length, 0, "time_mask")


def channel_mask(max_length: int) -> Augmentation:
    """Returns an augmentation that sets up to `max_length` neighbouring channels to 0, as the bands of a spectrogram.

    Raises:
      ExperimentError: `max_length` is below 1; while tracing, it is more than the channels there are.
    """
    return _masking(max_length, 1, "channel_mask")


def random_shift(max_steps: int) -> Augmentation:
    """Returns an augmentation that moves series by up to `max_steps` steps; the first or last value fills the gap.

    Raises:
      ExperimentError: `max_steps` is negative.
    """
    if max_steps < 0:
        raise ExperimentError(f"augment.random_shift: max_steps={max_steps} must be at least 0")

    def shift(key: jax.Array, series: jax.Array) -> jax.Array:
        steps = jax.random.randint(key, (), -max_steps, max_steps + 1)
        return series[jnp.clip(jnp.arange(series.shape[0]) - steps, 0, series.shape[0] - 1)]

    return of_each(shift, "random_shift", (3,))


def random_scaling(std: Any) -> Augmentation:
    """Returns an augmentation that multiplies each channel by 1 plus normal noise of some deviation (may be traced)."""

    def scale(key: jax.Array, series: jax.Array) -> jax.Array:
        return series * (1.0 + std * jax.random.normal(key, (1, series.shape[1])))

    return of_each(scale, "random_scaling", (3,))


def _masking(max_length: int, axis: int, name: str) -> Augmentation:
    if max_length < 1:
        raise ExperimentError(f"augment.{name}: max_length={max_length} must be at least 1")

    def mask(key: jax.Array, series: jax.Array) -> jax.Array:
        size = series.shape[axis]
        if max_length > size:
            raise ExperimentError(f"augment.{name}: max_length={max_length} is more than there are, {size}")
        length_key, start_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), 0, max_length + 1)
        start = jax.random.randint(start_key, (), 0, size - length + 1)
        places = jnp.arange(size)
        hidden = (places >= start) & (places < start + length)
        return jnp.where(jnp.expand_dims(hidden, 1 - axis), jnp.zeros((), series.dtype), series)

    return of_each(mask, name, (3,))
