"""Augmentations of series `[B, T, C]`; `noise` is jitter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from foldax.augment.images import Padding, moved
from foldax.augment.steps import Augmentation, Batch, check_size, computed_once, in_floats, inputs_of, on_inputs

_SERIES = "[B, T, C]"


def time_mask(max_length: int, *, count: int = 1, fill: Any = 0.0) -> Augmentation:
    """Returns the augmentation that covers stretches of time, all channels at once (SpecAugment: Park et al., 2019).

    Args:
      max_length: largest length of a stretch, in steps; lengths are uniform from 0, as are places.
      count: number of stretches.
      fill: the value that covers.
    """
    return _mask("time_mask", 1, max_length, count, fill)


def channel_mask(max_length: int, *, count: int = 1, fill: Any = 0.0) -> Augmentation:
    """Returns the augmentation that covers bands of neighbouring channels, such as frequencies (Park et al., 2019).

    Args:
      max_length: largest width of a band, in channels; widths are uniform from 0, as are places.
      count: number of bands.
      fill: the value that covers.
    """
    return _mask("channel_mask", 2, max_length, count, fill)


def random_shift(max_steps: int, *, mode: Padding = "edge", fill: Any = 0.0) -> Augmentation:
    """Returns the augmentation that moves series in time, a batch's "mask" `[B, T]` with them.

    Args:
      max_steps: largest number of steps, either way.
      mode: what comes in, as in `jnp.pad`: by default the first or last value again; "wrap" turns series round.
      fill: the value of "constant".
    """

    def step(key: jax.Array, batch: Batch) -> Batch:
        x = inputs_of("random_shift", batch, _SERIES)
        check_size("random_shift", "max_steps", max_steps, x.shape[1], f"series of {x.shape[1]} steps")
        changed = {"inputs": moved(key, x, max_steps, mode, fill)}
        if "mask" in batch:
            mask = jnp.asarray(batch["mask"])[..., None]
            changed["mask"] = moved(key, mask, max_steps, "wrap" if mode == "wrap" else "constant", 0)[..., 0]
        return {**batch, **changed}

    return step


def random_scaling(std: Any) -> Augmentation:
    """Returns the augmentation that multiplies each channel of each series by a normal factor (Um et al., 2017).

    Args:
      std: the factor's standard deviation about 1; may be traced.
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        factors = computed_once(1.0 + std * jax.random.normal(key, (x.shape[0], 1, x.shape[2])))
        return in_floats(lambda x: x * factors, x)

    return on_inputs("random_scaling", change, _SERIES)


def _mask(name: str, axis: int, max_length: int, count: int, fill: Any) -> Augmentation:
    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        size = x.shape[axis]
        check_size(name, "max_length", max_length, size, f"inputs {list(x.shape)}")
        lengths, places = jax.random.split(key)
        length = jax.random.randint(lengths, (x.shape[0], count, 1), 0, max_length + 1)
        start = jax.random.randint(places, (x.shape[0], count, 1), 0, size - length + 1)
        start, last = computed_once(jnp.stack([start, start + length]))
        positions = jnp.arange(size)[None, None, :]
        covered = ((positions >= start) & (positions < last)).any(axis=1)
        return jnp.where(jnp.expand_dims(covered, 3 - axis), jnp.asarray(fill, x.dtype), x)

    return on_inputs(name, change, _SERIES)
