"""Augmentations that mix two examples; their targets become shares of classes, float32 `[B, C]`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from foldax.augment.steps import Augmentation, Batch, checked
from foldax.errors import ExperimentError


def mixup(alpha: Any, num_classes: int) -> Augmentation:
    """Returns an augmentation that averages each example with another one of the batch (Zhang et al., 2018).

    Inputs become float32, classes `[B]` shares `[B, num_classes]`.

    Args:
      alpha: the weight is drawn from Beta(alpha, alpha) for each example; may be traced; above 0.
      num_classes: number of classes.

    Raises:
      ExperimentError: while tracing, if the targets are no classes `[B]` or shares `[B, num_classes]`.
    """

    def augment(key: jax.Array, batch: Batch) -> Batch:
        order_key, key = jax.random.split(key)
        inputs = batch["inputs"].astype(jnp.float32)
        weight = jax.random.beta(key, alpha, alpha, (inputs.shape[0],))
        other = jax.random.permutation(order_key, inputs.shape[0])
        shares = _shares(batch["targets"], num_classes, "mixup")
        return {**batch, "inputs": _mixed(inputs, other, weight), "targets": _mixed(shares, other, weight)}

    return augment


def cutmix(alpha: Any, num_classes: int) -> Augmentation:
    """Returns an augmentation that puts a rectangle of another image into each one (Yun et al., 2019).

    Classes `[B]` become shares `[B, num_classes]`, which are those of the pixels; the rectangle's share of the image is
    drawn from Beta(alpha, alpha), and what would reach beyond the edge is left out.

    Args:
      alpha: may be traced; above 0.
      num_classes: number of classes.

    Raises:
      ExperimentError: while tracing, if inputs are no images `[B, H, W, C]` or targets no classes or shares.
    """

    def augment(key: jax.Array, batch: Batch) -> Batch:
        inputs = checked(batch, "cutmix", (4,))
        size, height, width, _ = inputs.shape
        order_key, area_key, place_key = jax.random.split(key, 3)
        other = jax.random.permutation(order_key, size)
        side = jnp.sqrt(jax.random.beta(area_key, alpha, alpha, (size, 1)))
        centres = jax.random.uniform(place_key, (2, size, 1))

        def inside(length: int, centre: jax.Array) -> jax.Array:
            places = (jnp.arange(length, dtype=jnp.float32) + 0.5)[None, :]
            return jnp.abs(places - centre * length) < 0.5 * side * length

        pasted = inside(height, centres[0])[:, :, None] & inside(width, centres[1])[:, None, :]
        kept = 1.0 - pasted.astype(jnp.float32).mean(axis=(1, 2))
        shares = _shares(batch["targets"], num_classes, "cutmix")
        mixed = jnp.where(pasted[..., None], inputs[other], inputs)
        return {**batch, "inputs": mixed, "targets": _mixed(shares, other, kept)}

    return augment


def _mixed(values: jax.Array, other: jax.Array, weight: jax.Array) -> jax.Array:
    weight = weight.reshape(-1, *(1,) * (values.ndim - 1))
    return weight * values + (1.0 - weight) * values[other]


def _shares(targets: jax.Array, num_classes: int, name: str) -> jax.Array:
    if targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer):
        return jax.nn.one_hot(targets, num_classes)
    if targets.ndim == 2 and targets.shape[1] == num_classes and jnp.issubdtype(targets.dtype, jnp.floating):
        return targets
    raise ExperimentError(
        f"augment.{name}: the targets must be integer classes [B] or shares [B, {num_classes}], "
        f"got {targets.dtype}{list(targets.shape)}"
    )
