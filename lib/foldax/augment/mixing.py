"""Augmentations that mix examples and their classes: targets become soft labels, float32 `[B, num_classes]`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Numeric

from foldax.augment.augmentation import Augmentation, Batch, apply_in_float32, batch_inputs, materialize
from foldax.errors import ConfigError, DataError, ExperimentError


def soft_targets(num_classes: int) -> Augmentation:
    """Converts classes `[B]` to one-hot probabilities `[B, num_classes]`; soft labels stay as they are.

    Raises:
      ConfigError: `num_classes` is no positive integer.
      ExperimentError: while tracing, if targets are neither integer classes nor soft labels.
      DataError: a class is not below `num_classes`; in a compiled program its probabilities are NaN, which stops the
        run.

    >>> soft_targets(3)(jax.random.key(0), {"inputs": jnp.zeros((1, 2)), "targets": jnp.array([2])})["targets"].tolist()
    [[0.0, 0.0, 1.0]]
    """
    _check_num_classes("soft_targets", num_classes)
    return lambda key, batch: {**batch, "targets": _soft_labels("soft_targets", batch, num_classes)}


def mixup(alpha: Numeric, num_classes: int) -> Augmentation:
    """Mixes each example of a shuffled batch with the example before it (Zhang et al., 2018).

    Inputs `[B, ...]` and soft labels become `lambda * own + (1 - lambda) * other`.

    Args:
      alpha: lambda is sampled from Beta(alpha, alpha); may be traced; 0 mixes nothing.
      num_classes: number of classes.

    Raises:
      ConfigError: `num_classes` is no positive integer.
      ExperimentError: while tracing, if inputs are tokens or have a mask, or targets are not classes.
      DataError: a class is not below `num_classes`.

    >>> mix = mixup(0.4, num_classes=2)
    >>> mixed = mix(jax.random.key(0), {"inputs": jnp.array([[0.0], [1.0]]), "targets": jnp.array([0, 1])})
    >>> bool(jnp.allclose(mixed["inputs"][:, 0], mixed["targets"][:, 1]))
    True
    """
    _check_num_classes("mixup", num_classes)

    def apply(key: jax.Array, batch: Batch) -> Batch:
        x, targets = _mixable_inputs("mixup", batch), _soft_labels("mixup", batch, num_classes)
        # One lambda per example; the authors' code samples one per batch.
        weight = _sample_weights(key, alpha, x.shape[0])
        inputs = apply_in_float32(lambda x: _mix_with_previous(x, weight), x)
        return {**batch, "inputs": inputs, "targets": _mix_with_previous(targets, weight)}

    return apply


def cutmix(alpha: Numeric, num_classes: int) -> Augmentation:
    """Pastes a part of the example before it into each example (CutMix: Yun et al., 2019).

    The part is a box of images `[B, H, W, C]`, or an interval of series `[B, T, C]`. The pasted fraction of pixels is
    the probability of the other class.

    Args:
      alpha: the example keeps a fraction lambda of its pixels, sampled from Beta(alpha, alpha), before the box is
        clipped to the image; may be traced; 0 mixes nothing.
      num_classes: number of classes.

    Raises:
      ConfigError, ExperimentError, DataError: as `mixup`; also if inputs are neither images nor series.

    >>> mix = cutmix(1.0, num_classes=2)
    >>> batch = {"inputs": jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((2, 8, 8, 1)), "targets": jnp.array([0, 1])}
    >>> mixed = mix(jax.random.key(0), batch)
    >>> bool(jnp.allclose(mixed["inputs"].mean((1, 2, 3)), mixed["targets"][:, 1]))
    True
    """
    _check_num_classes("cutmix", num_classes)

    def apply(key: jax.Array, batch: Batch) -> Batch:
        x, targets = _mixable_inputs("cutmix", batch), _soft_labels("cutmix", batch, num_classes)
        if x.ndim not in (3, 4):
            raise ExperimentError(f"cutmix: the inputs must be [B, H, W, C] or [B, T, C], and are {list(x.shape)}")
        sides = x.shape[1:-1]
        weight_key, center_key = jax.random.split(key)
        # The box has a fraction 1 - lambda of the pixels, and the proportions of the image.
        scale = jnp.power(1.0 - _sample_weights(weight_key, alpha, x.shape[0]), 1.0 / len(sides))
        centers = jax.random.uniform(center_key, (len(sides), x.shape[0]))
        pasted, pasted_fraction = jnp.ones((x.shape[0], *[1] * (x.ndim - 1)), bool), jnp.ones(x.shape[0])
        # A box is an intersection of one interval per axis; clipped at the border, as in the paper.
        for axis, (side, place) in enumerate(zip(sides, centers), start=1):
            length, center = jnp.round(scale * side), jnp.floor(place * side)
            start = center - jnp.floor(length * 0.5)
            first, last = materialize(jnp.clip(jnp.stack([start, start + length])[..., None], 0, side))
            positions = jnp.arange(side, dtype=jnp.float32)[None, :]
            # Indicator of the interval, [B, side].
            inside = (positions >= first) & (positions < last)
            pasted = pasted & jnp.expand_dims(inside, [other for other in range(1, x.ndim) if other != axis])
            # The fraction after clipping, so that targets match the pixels.
            pasted_fraction = pasted_fraction * inside.mean(axis=1)
        inputs = jnp.where(pasted, jnp.roll(x, 1, axis=0), x)
        return {**batch, "inputs": inputs, "targets": _mix_with_previous(targets, 1.0 - pasted_fraction)}

    return apply


def _sample_weights(key: jax.Array, alpha: Numeric, count: int) -> jax.Array:
    """Samples the weight lambda of each example itself, `[count]`; 1 if alpha is 0."""
    alpha = jnp.asarray(alpha, jnp.float32)
    # Beta(0, 0) is undefined; the next line replaces its samples.
    samples = jax.random.beta(key, jnp.maximum(alpha, 1e-3), jnp.maximum(alpha, 1e-3), (count,))
    return materialize(jnp.where(alpha > 0, samples, 1.0))


def _mix_with_previous(x: jax.Array, weight: jax.Array) -> jax.Array:
    weight = weight.reshape(-1, *[1] * (x.ndim - 1))
    return weight * x + (1.0 - weight) * jnp.roll(x, 1, axis=0)


def _mixable_inputs(name: str, batch: Batch) -> jax.Array:
    if "mask" in batch:
        raise ExperimentError(f"{name}: sequences with a mask have different lengths and cannot be mixed")
    return batch_inputs(name, batch)


def _check_num_classes(name: str, num_classes: Any) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ConfigError(f"{name}: num_classes {num_classes!r} is no number of classes; pass info.num_classes")


def _soft_labels(name: str, batch: Batch, num_classes: int) -> jax.Array:
    """Converts the targets of a batch to class probabilities `[B, num_classes]`."""
    targets = batch["targets"]
    shape, dtype = jnp.shape(targets), jnp.result_type(targets)
    if len(shape) == 2 and shape[1] == num_classes and jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(targets, jnp.float32)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        allowed = f"integer classes [B] or float probabilities [B, {num_classes}]"
        raise ExperimentError(f"{name}: the targets must be {allowed}, and are {dtype}{list(shape)}")
    if not isinstance(targets, jax.core.Tracer) and np.size(targets):
        classes = np.asarray(targets)
        # Concrete targets can be checked now, before any step is taken.
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= num_classes:
            allowed = f"from 0 to {num_classes - 1} (num_classes={num_classes})"
            raise DataError(f"{name}: classes must be {allowed}, but the batch has class {low if low < 0 else high}")
    # In a compiled program an unknown class cannot raise: NaN makes the loss non-finite, which stops the run.
    targets = jnp.asarray(targets)
    known = ((targets >= 0) & (targets < num_classes))[:, None]
    return jnp.where(known, jax.nn.one_hot(targets, num_classes, dtype=jnp.float32), jnp.nan)
