"""Augmentations of time series `[B, T, C]`; `gaussian_noise` (jitter) fits them too."""

import jax
import jax.numpy as jnp
from chex import Numeric

from foldax.augment import augmentation
from foldax.augment.augmentation import Augmentation, Batch
from foldax.augment.images import Padding, random_translation

_SERIES = "[B, T, C]"


def time_mask(max_length: int, *, count: int = 1, fill: float = 0.0) -> Augmentation:
    """Masks random time intervals, all channels at once (SpecAugment: Park et al., 2019).

    Args:
      max_length: maximum length of an interval in steps; lengths are uniform from 0, as are positions.
      count: number of intervals.
      fill: value of the masked steps.

    >>> mask = time_mask(3)
    >>> int((mask(jax.random.key(0), {"inputs": jnp.ones((1, 8, 2))})["inputs"] == 0).any(axis=2).sum()) <= 3
    True
    """
    return _mask("time_mask", 1, max_length, count, fill)


def channel_mask(max_length: int, *, count: int = 1, fill: float = 0.0) -> Augmentation:
    """Masks random bands of neighbouring channels, such as frequencies (SpecAugment: Park et al., 2019).

    Args:
      max_length: maximum width of a band in channels; widths are uniform from 0, as are positions.
      count: number of bands.
      fill: value of the masked channels.

    >>> mask = channel_mask(1)
    >>> mask(jax.random.key(0), {"inputs": jnp.ones((1, 8, 2))})["inputs"].shape
    (1, 8, 2)
    """
    return _mask("channel_mask", 2, max_length, count, fill)


def random_shift(max_steps: int, *, mode: Padding = "edge", fill: float = 0.0) -> Augmentation:
    """Shifts each series in time by whole steps, together with its "mask" `[B, T]`.

    Args:
      max_steps: maximum shift in both directions.
      mode: padding mode of `jnp.pad`: by default the first or last value is repeated; "wrap" rotates a series.
      fill: value of "constant" padding.

    >>> shift = random_shift(2, mode="wrap")
    >>> sorted(shift(jax.random.key(0), {"inputs": jnp.arange(4.0).reshape(1, 4, 1)})["inputs"].ravel().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """

    def apply(key: jax.Array, batch: Batch) -> Batch:
        x = augmentation.batch_inputs("random_shift", batch, _SERIES)
        augmentation.check_size("random_shift", "max_steps", max_steps, x.shape[1], f"series of {x.shape[1]} steps")
        changed = {"inputs": random_translation(key, x, max_steps, mode, fill)}
        if "mask" in batch:
            # The same key draws the same shifts; steps from outside of a series are padding.
            mask = jnp.asarray(batch["mask"])[..., None]
            mask_mode: Padding = "wrap" if mode == "wrap" else "constant"
            changed["mask"] = random_translation(key, mask, max_steps, mask_mode, 0)[..., 0]
        return {**batch, **changed}

    return apply


def random_scaling(std: Numeric) -> Augmentation:
    """Multiplies each channel of each series by a normally distributed factor of mean 1 (Um et al., 2017).

    Args:
      std: standard deviation of the factor; may be traced.

    >>> scale = random_scaling(0.1)
    >>> scale(jax.random.key(0), {"inputs": jnp.ones((1, 8, 2))})["inputs"].std(axis=1).tolist()
    [[0.0, 0.0]]
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        factors = augmentation.materialize(1.0 + std * jax.random.normal(key, (x.shape[0], 1, x.shape[2])))
        return augmentation.apply_in_float32(lambda x: x * factors, x)

    return augmentation.input_augmentation("random_scaling", change, _SERIES)


def _mask(name: str, axis: int, max_length: int, count: int, fill: float) -> Augmentation:
    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        size = x.shape[axis]
        augmentation.check_size(name, "max_length", max_length, size, f"inputs {list(x.shape)}")
        length_key, start_key = jax.random.split(key)
        length = jax.random.randint(length_key, (x.shape[0], count, 1), 0, max_length + 1)
        start = jax.random.randint(start_key, (x.shape[0], count, 1), 0, size - length + 1)
        start, end = augmentation.materialize(jnp.stack([start, start + length]))
        positions = jnp.arange(size)[None, None, :]
        masked = ((positions >= start) & (positions < end)).any(axis=1)
        return jnp.where(jnp.expand_dims(masked, 3 - axis), jnp.asarray(fill, x.dtype), x)

    return augmentation.input_augmentation(name, change, _SERIES)
