"""Losses: pure functions of what a model says and what is true, one value per example `[B]`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: Any = None) -> jax.Array:
    """Cross-entropy `[B]` of logits `[B, C]` and integer classes `[B]`, or shares of classes `[B, C]` that add up to 1.

    `label_smoothing` (Szegedy et al., 2016; may be traced) is the share of the target spread evenly over all classes.

    Raises:
      ExperimentError: if there are fewer than two logits, or targets are neither integers `[B]` nor floats `[B, C]`.
    """
    if targets.shape == logits.shape and jnp.issubdtype(targets.dtype, jnp.floating) and logits.shape[-1] > 1:
        loss = optax.softmax_cross_entropy(logits, targets)
    else:
        _check_labels("softmax_cross_entropy", logits, targets)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing is None:
        return loss
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1.0 - label_smoothing) * loss + label_smoothing * uniform


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: Any = None) -> jax.Array:
    """Binary cross-entropy `[B]`: logits `[B]` or `[B, 1]` with targets `[B]`, or both `[B, K]` (mean over K labels).

    Targets are 0 or 1; `label_smoothing` a draws them to a / 2 and 1 - a / 2.

    Raises:
      ExperimentError: if logits and targets do not match.
    """
    logits, targets = _aligned("sigmoid_cross_entropy", logits, targets)
    if label_smoothing is not None:
        targets = (1.0 - label_smoothing) * targets + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def hinge(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Hinge loss `[B]`: logits `[B]` or `[B, 1]` and two classes (above 0, or not), or `[B, C]` and classes `[B]`.

    With many classes it is Crammer & Singer's (2001): the margin to the best wrong class.

    Raises:
      ExperimentError: if logits and targets do not match.
    """
    if logits.ndim == 2 and logits.shape[1] > 1:
        _check_labels("hinge", logits, targets)
        return optax.losses.multiclass_hinge_loss(logits, targets)
    logits, targets = _aligned("hinge", logits, targets)
    return optax.hinge_loss(logits, jnp.where(targets > 0, 1.0, -1.0)).mean(axis=-1)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error `[B]`, a mean over outputs; both are `[B]` or `[B, O]`.

    Raises:
      ExperimentError: if predictions and targets do not match.
    """
    predictions, targets = _aligned("squared_error", predictions, targets)
    return optax.squared_error(predictions, targets).mean(axis=-1)


def absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Absolute error `[B]`, a mean over outputs; both are `[B]` or `[B, O]`.

    Raises:
      ExperimentError: if predictions and targets do not match.
    """
    predictions, targets = _aligned("absolute_error", predictions, targets)
    return jnp.abs(predictions - targets).mean(axis=-1)


def huber(predictions: jax.Array, targets: jax.Array, delta: Any = 1.0) -> jax.Array:
    """Huber's loss `[B]` (1964), a mean over outputs: squared up to an error of `delta` (may be traced), then linear.

    Raises:
      ExperimentError: if predictions and targets do not match.
    """
    predictions, targets = _aligned("huber", predictions, targets)
    return optax.huber_loss(predictions, targets, delta=delta).mean(axis=-1)


def mean_and_log_std(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits `[B, 2 * O]` into means and log standard deviations `[B, O]`, the latter kept between -7 and 7.

    Raises:
      ExperimentError: the number of outputs is odd.
    """
    if outputs.ndim != 2 or outputs.shape[1] % 2:
        raise ExperimentError(
            f"a Gaussian needs two outputs for each target, [B, 2 * O]; the model gave {outputs.shape}"
        )
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    return mean, jnp.clip(log_std, -7.0, 7.0)


def gaussian_nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood `[B]` in nats, a mean over outputs; `[B, 2 * O]` means, then log standard deviations.

    Raises:
      ExperimentError: if outputs and targets `[B, O]` do not match.
    """
    mean, log_std = mean_and_log_std(outputs)
    mean, targets = _aligned("gaussian_nll", mean, targets)
    scaled = (targets - mean) * jnp.exp(-log_std)
    return (0.5 * jnp.square(scaled) + log_std + 0.5 * math.log(2 * math.pi)).mean(axis=-1)


def as_columns(values: jax.Array) -> jax.Array:
    """Returns `[B]` as `[B, 1]` and leaves `[B, O]` alone."""
    return values[:, None] if values.ndim == 1 else values


def _aligned(name: str, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both as float `[B, O]`."""
    left, right = as_columns(outputs), as_columns(targets)
    if left.ndim != 2 or left.shape != right.shape:
        raise ExperimentError(
            f"{name}: the model's outputs {outputs.shape} and the targets {targets.shape} must match: "
            "[B] or [B, 1] outputs for targets [B], [B, K] outputs for targets [B, K]"
        )
    return left, right.astype(left.dtype)


def _check_labels(name: str, logits: jax.Array, targets: jax.Array) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ExperimentError(
            f"{name}: the model must give logits [B, classes] for two classes or more, got {logits.shape}; "
            "one logit goes with losses.sigmoid_cross_entropy"
        )
    if targets.shape != logits.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ExperimentError(
            f"{name}: the targets must be integer classes of shape {logits.shape[:1]}, got {targets.dtype}"
            f"{list(targets.shape)}"
        )


def normalized(x: jax.Array) -> jax.Array:
    """Returns `[B, D]` divided by lengths; zeros stay."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
