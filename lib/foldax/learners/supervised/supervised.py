"""Supervised learning: classifiers and regressors from any model, optimizer and loss.

Batches are `{"inputs": [B, ...], "targets": [B] or [B, K]}`, for sequences also `"mask"` `[B, T]`.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError
from foldax.learner import Learner
from foldax.learners import losses, tasks
from foldax.learners.tasks import Batch, Options, Task, Values

FIELDS = ("inputs", "targets")


def classifier(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.softmax_cross_entropy,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    label_smoothing: Any = None,
    class_weights: Any = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of classes: one of C (`[B, C]` logits), of two (`[B, 1]`), or several of K (`[B, K]` targets).

    `update` reports "loss" (as trained on, without the penalty), "accuracy", "gradient_norm" and, where there is one,
    "penalty". `evaluate` reports "loss" (plain: no smoothing, no weights) and "accuracy" `[B]`, "logits" `[B, C]` and
    integer "targets". Where `augment` makes shares `[B, C]` of classes `[B]` (mixup), the accuracy while training is
    that of the class with the largest share.

    Args:
      model: gives logits `[B, C]`, `[B, 1]` or `[B]`.
      optimizer: of optax; its rates may be traced.
      loss: `(logits, targets) -> [B]`.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32, or stay
        integers for a model with a vocabulary.
      label_smoothing: passed on to the loss while training.
      class_weights: `[C]` weight of every class; the loss is the weighted mean.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: if the loss takes no `label_smoothing`; while tracing, if a batch has not what is needed.
    """
    smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
    if smoothing and "label_smoothing" not in inspect.signature(loss).parameters:
        raise ExperimentError(f"label_smoothing: the loss {getattr(loss, '__name__', loss)!r} does not take it")

    def weighted(
        batch: Batch,
    ) -> Batch:  # to mean 1 over the whole batch, so that microbatches add up to the weighted mean
        given = _weights(batch["targets"], jnp.asarray(class_weights, jnp.float32))
        return {**batch, "class_weights": given * jnp.reciprocal(given.mean())}

    def training(logits: jax.Array, batch: Batch) -> Values:
        logits, targets = losses.as_columns(logits), batch["targets"]
        values = loss(logits, targets, **smoothing)
        if class_weights is not None:
            values = values * batch["class_weights"]
        shares = options.get("augment") is not None and loss is losses.softmax_cross_entropy and targets.ndim == 2
        return {"loss": values, "accuracy": accuracy(logits, targets.argmax(axis=-1) if shares else targets)}

    def evaluation(logits: jax.Array, batch: Batch) -> Values:
        logits, targets = losses.as_columns(logits), batch["targets"]
        kept = targets.astype(jnp.int32)
        return {"loss": loss(logits, targets), "accuracy": accuracy(logits, targets), "logits": logits, "targets": kept}

    task = Task(FIELDS, tasks.inputs_of(model, preprocess), training, evaluation, _columns)
    task = task if class_weights is None else task._replace(prepare=weighted)
    return tasks.learner(model, optimizer, task, **options)


def regressor(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.squared_error,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    target_mean: Any = 0.0,
    target_std: Any = 1.0,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of numbers: targets `[B]` with a model of one output, or `[B, O]`.

    The model learns `(targets - target_mean) / target_std`, and "loss" is in these units; errors and predictions are
    in the targets' own. `update` reports "loss", "squared_error", "absolute_error", "gradient_norm" and, where there
    is one, "penalty". `evaluate` reports "loss", "squared_error", "absolute_error" `[B]`, and "predictions" and
    "targets" `[B, O]` (`[B, 1]` too, so that the driver takes no mean of them) for what is no mean, such as R^2.

    Args:
      model: gives `[B, O]`, or `[B]` for one output.
      optimizer: of optax; its rates may be traced.
      loss: `(predictions, targets) -> [B]` of standardised numbers `[B, O]`.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      target_mean: mean of the targets, a number or `[O]`.
      target_std: standard deviation of the targets, a number or `[O]`.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: while tracing, if a batch has not what is needed.
    """
    mean, std = _row(target_mean), _row(target_std)
    inverse = jnp.reciprocal(std)

    def finish(outputs: jax.Array, batch: Batch) -> jax.Array:
        return losses.as_columns(outputs) * std + mean

    def training(outputs: jax.Array, batch: Batch) -> Values:
        outputs, targets = losses.as_columns(outputs), losses.as_columns(batch["targets"]).astype(jnp.float32)
        values = {"loss": loss(outputs, (targets - mean) * inverse)}
        return values | errors(finish(outputs, batch), targets)

    def evaluation(outputs: jax.Array, batch: Batch) -> Values:
        kept = losses.as_columns(batch["targets"]).astype(jnp.float32)
        return {**training(outputs, batch), "predictions": finish(outputs, batch), "targets": kept}

    task = Task(FIELDS, tasks.inputs_of(model, preprocess), training, evaluation, finish)
    return tasks.learner(model, optimizer, task, **options)


def gaussian_regressor(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    interval: float = 0.9,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    target_mean: Any = 0.0,
    target_std: Any = 1.0,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of numbers and of their uncertainty: a normal distribution for each (Nix & Weigend, 1994).

    "loss" is the negative log-likelihood in nats of the standardised targets. `evaluate` reports it, "squared_error"
    and "absolute_error" of the mean, "coverage" (the share of targets inside the central interval) and
    "interval_width" `[B]`, and "predictions", "std" and "targets" `[B, O]`; all but the loss in the targets' units.
    `predict` returns {"mean", "std"} `[B, O]`.

    Args:
      model: gives `[B, 2 * O]`: O means, then O log standard deviations.
      optimizer: of optax; its rates may be traced.
      interval: probability of the interval that is measured, above 0 and below 1.
      preprocess: as in `regressor`.
      target_mean: as in `regressor`.
      target_std: as in `regressor`.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: `interval` is out of range; while tracing, if a batch has not what is needed.
    """
    mean, std = _row(target_mean), _row(target_std)
    inverse, width = jnp.reciprocal(std), interval_width(interval)

    def finish(outputs: jax.Array, batch: Batch) -> Values:
        location, log_std = losses.mean_and_log_std(outputs)
        return {"mean": location * std + mean, "std": jnp.exp(log_std) * std}

    def training(outputs: jax.Array, batch: Batch) -> Values:
        targets = losses.as_columns(batch["targets"]).astype(jnp.float32)
        values = {"loss": losses.gaussian_nll(outputs, (targets - mean) * inverse)}
        return values | errors(finish(outputs, batch)["mean"], targets)

    def evaluation(outputs: jax.Array, batch: Batch) -> Values:
        kept = losses.as_columns(batch["targets"]).astype(jnp.float32)
        predicted = finish(outputs, batch)
        values = {"predictions": predicted["mean"], "std": predicted["std"], "targets": kept}
        return training(outputs, batch) | interval_values(**predicted, targets=kept, width=width) | values

    task = Task(FIELDS, tasks.inputs_of(model, preprocess), training, evaluation, finish)
    return tasks.learner(model, optimizer, task, **options)


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the share of labels right `[B]`: the largest of `[B, C]` logits; in `[B, 1]` or `[B, K]` all above 0."""
    if targets.ndim == 1 and logits.shape[1] > 1:
        return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return ((logits > 0) == (losses.as_columns(targets) > 0)).astype(jnp.float32).mean(axis=-1)


def interval_width(probability: float) -> float:
    """Returns how many standard deviations to each side a normal distribution's central interval reaches.

    Raises:
      ExperimentError: the probability is not between 0 and 1.
    """
    if not 0.0 < probability < 1.0:
        raise ExperimentError(f"interval: {probability} must be above 0 and below 1")
    return statistics.NormalDist().inv_cdf(0.5 + probability / 2)


def interval_values(mean: jax.Array, std: jax.Array, targets: jax.Array, width: float) -> Values:
    """Returns "coverage" and "interval_width" `[B]`, means over outputs `[B, O]`."""
    inside = (jnp.abs(targets - mean) <= width * std).astype(jnp.float32)
    return {"coverage": inside.mean(axis=-1), "interval_width": (2.0 * width * std).mean(axis=-1)}


def errors(predictions: jax.Array, targets: jax.Array) -> Values:
    return {
        "squared_error": losses.squared_error(predictions, targets),
        "absolute_error": losses.absolute_error(predictions, targets),
    }


def _columns(logits: jax.Array, batch: Batch) -> jax.Array:
    return losses.as_columns(logits)


def _row(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32).reshape(1, -1)


def _weights(targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weight `[B]` of classes `[B]`, or of shares of classes `[B, C]`."""
    if targets.ndim == 2 and targets.shape[1] == len(weights) and jnp.issubdtype(targets.dtype, jnp.floating):
        return targets @ weights
    if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ExperimentError(
            f"class_weights: need integer classes [B] as targets, got {targets.dtype}{list(targets.shape)}"
        )
    return weights[targets]
