"""Augmentations that mix examples, and their classes as shares: targets become float32 `[B, num_classes]`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.augment.steps import Augmentation, Batch, computed_once, in_floats, inputs_of
from foldax.errors import ConfigError, DataError, ExperimentError


def soft_targets(num_classes: int) -> Augmentation:
    """Returns the augmentation that only makes classes `[B]` shares `[B, num_classes]`; shares stay as they are.

    Raises:
      ExperimentError: targets are neither.
      DataError: a class is not below `num_classes` (inside a compiled program its shares are NaN, which stops the run).
    """
    _check_classes("soft_targets", num_classes)
    return lambda key, batch: {**batch, "targets": _shares("soft_targets", batch, num_classes)}


def mixup(alpha: Any, num_classes: int) -> Augmentation:
    """Returns the augmentation that mixes each example with the one before it in the batch (Zhang et al., 2018).

    Batches are shuffled, so that this is any other example. Inputs are `[B, ...]`.

    Args:
      alpha: of the Beta distribution of an example's own share; may be traced; 0 mixes nothing.
      num_classes: number of classes.

    Raises:
      ExperimentError, DataError: as `soft_targets`; inputs are tokens, or have a mask.
    """
    _check_classes("mixup", num_classes)

    def step(key: jax.Array, batch: Batch) -> Batch:
        x, targets = _mixable("mixup", batch), _shares("mixup", batch, num_classes)
        own = _own_share(key, alpha, x.shape[0])
        inputs = in_floats(lambda x: _mixed(x, own), x)
        return {**batch, "inputs": inputs, "targets": _mixed(targets, own)}

    return step


def cutmix(alpha: Any, num_classes: int) -> Augmentation:
    """Returns the augmentation that puts a part of the example before it into each (Yun et al., 2019).

    The part is a box of images `[B, H, W, C]`, or a stretch of series `[B, T, C]`; the share of its pixels is the
    share of the other's class.

    Args:
      alpha: of the Beta distribution of an example's own share, before the box is cut off at the edges; may be
        traced; 0 mixes nothing.
      num_classes: number of classes.

    Raises:
      ExperimentError, DataError: as `mixup`; inputs are neither images nor series.
    """
    _check_classes("cutmix", num_classes)

    def step(key: jax.Array, batch: Batch) -> Batch:
        x, targets = _mixable("cutmix", batch), _shares("cutmix", batch, num_classes)
        if x.ndim not in (3, 4):
            raise ExperimentError(f"cutmix: the inputs must be [B, H, W, C] or [B, T, C], and are {list(x.shape)}")
        sides = x.shape[1:-1]
        share_key, place_key = jax.random.split(key)
        part = jnp.power(1.0 - _own_share(share_key, alpha, x.shape[0]), 1.0 / len(sides))
        places = jax.random.uniform(place_key, (len(sides), x.shape[0]))
        taken, share = jnp.ones((x.shape[0], *[1] * (x.ndim - 1)), bool), jnp.ones(x.shape[0])
        for axis, (side, place) in enumerate(zip(sides, places), start=1):
            length, center = jnp.round(part * side), jnp.floor(place * side)
            start = center - jnp.floor(length * 0.5)
            first, last = computed_once(jnp.clip(jnp.stack([start, start + length])[..., None], 0, side))
            positions = jnp.arange(side, dtype=jnp.float32)[None, :]
            inside = (positions >= first) & (positions < last)
            taken = taken & jnp.expand_dims(inside, [one for one in range(1, x.ndim) if one != axis])
            share = share * inside.mean(axis=1)
        inputs = jnp.where(taken, jnp.roll(x, 1, axis=0), x)
        return {**batch, "inputs": inputs, "targets": _mixed(targets, 1.0 - share)}

    return step


def _own_share(key: jax.Array, alpha: Any, count: int) -> jax.Array:
    alpha = jnp.asarray(alpha, jnp.float32)
    drawn = jax.random.beta(key, jnp.maximum(alpha, 1e-3), jnp.maximum(alpha, 1e-3), (count,))
    return computed_once(jnp.where(alpha > 0, drawn, 1.0))


def _mixed(x: jax.Array, own: jax.Array) -> jax.Array:
    own = own.reshape(-1, *[1] * (x.ndim - 1))
    return own * x + (1.0 - own) * jnp.roll(x, 1, axis=0)


def _mixable(name: str, batch: Batch) -> jax.Array:
    if "mask" in batch:
        raise ExperimentError(f"{name}: sequences with a mask, each with a length of its own, cannot be mixed")
    return inputs_of(name, batch)


def _check_classes(name: str, num_classes: Any) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ConfigError(f"{name}: num_classes {num_classes!r} is no number of classes; give info.num_classes")


def _shares(name: str, batch: Batch, num_classes: int) -> jax.Array:
    targets = batch["targets"]
    shape, dtype = jnp.shape(targets), jnp.result_type(targets)
    if len(shape) == 2 and shape[1] == num_classes and jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(targets, jnp.float32)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ExperimentError(
            f"{name}: the targets must be integer classes [B] or float shares [B, {num_classes}], and are "
            f"{dtype}{list(shape)}"
        )
    if not isinstance(targets, jax.core.Tracer) and np.size(targets):
        classes = np.asarray(targets)
        low, highest = int(classes.min()), int(classes.max())
        if low < 0 or highest >= num_classes:
            raise DataError(
                f"{name}: classes must be from 0 to {num_classes - 1} (num_classes={num_classes}), and there is "
                f"{low if low < 0 else highest}"
            )
    targets = jnp.asarray(targets)
    known = ((targets >= 0) & (targets < num_classes))[:, None]
    return jnp.where(known, jax.nn.one_hot(targets, num_classes, dtype=jnp.float32), jnp.nan)
