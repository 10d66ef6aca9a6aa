"""Regressors: supervised learning of continuous targets, with or without their uncertainty.

Batches are `{"inputs": [B, ...], "targets": [B] or [B, O]}`, for sequences also `"mask"` `[B, T]`.
"""

import statistics
from collections.abc import Callable
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError
from foldax.learner import Evaluation, Learner, Metrics, Model
from foldax.learners import losses, tasks
from foldax.learners.tasks import INPUTS_AND_TARGETS, Batch, NetworkOptions, Preprocess, Task


def regressor(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.squared_error,
    preprocess: Preprocess | None = None,
    target_mean: chex.Array | float = 0.0,
    target_std: chex.Array | float = 1.0,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learns continuous targets, `[B, O]`, or `[B]` with a model of one output.

    The model predicts standardised targets, `(targets - target_mean) / target_std`, and "loss" is in these units;
    errors and predictions are in the units of the targets. `update` reports "loss", "squared_error", "absolute_error",
    "gradient_norm" and, with `l1` or `l2`, "penalty". `evaluate` reports "loss", "squared_error" and "absolute_error",
    with the outputs "predictions" and "targets" `[B, O]`, for statistics that are no means of examples, such as R^2.

    Args:
      model: returns `[B, O]`, or `[B]` for one output.
      optimizer: Optax optimizer; its learning rate may be traced.
      loss: `(predictions, targets) -> [B]` of standardised values `[B, O]`, such as `losses.huber`.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      target_mean: mean of the targets, a scalar or `[O]`.
      target_std: standard deviation of the targets, a scalar or `[O]`.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: while tracing, if the batch lacks a required field, or predictions and targets do not match.

    >>> from foldax.models import MLP
    >>> batch = {"inputs": jnp.arange(4.0)[:, None], "targets": 10 + 2 * jnp.arange(4.0)}
    >>> learner = regressor(MLP((1,)), optax.sgd(0.1), target_mean=13.0, target_std=2.0)
    >>> state = learner.init(jax.random.key(0), batch)
    >>> learner.evaluate(state, batch, jax.random.key(0)).outputs["predictions"].shape
    (4, 1)
    """
    losses.check_loss(loss)
    mean, std = as_row(target_mean), as_row(target_std)
    inverse_std = jnp.reciprocal(std)

    def postprocess(outputs: jax.Array, batch: Batch) -> jax.Array:
        return losses.as_columns(outputs) * std + mean

    def train_metrics(outputs: jax.Array, batch: Batch) -> Metrics:
        outputs, targets = losses.as_columns(outputs), losses.as_columns(batch["targets"]).astype(jnp.float32)
        # The loss in standardised units, errors in the units of the targets.
        metrics: Metrics = {"loss": loss(outputs, (targets - mean) * inverse_std)}
        return metrics | error_metrics(postprocess(outputs, batch), targets)

    def evaluate(outputs: jax.Array, batch: Batch) -> Evaluation:
        targets = losses.as_columns(batch["targets"]).astype(jnp.float32)
        predictions = postprocess(outputs, batch)
        return Evaluation(train_metrics(outputs, batch), {"predictions": predictions, "targets": targets})

    task = Task(INPUTS_AND_TARGETS, tasks.input_function(model, preprocess), train_metrics, evaluate, postprocess)
    return tasks.network_learner(model, optimizer, task, **options)


def gaussian_regressor(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    interval_probability: float = 0.9,
    preprocess: Preprocess | None = None,
    target_mean: chex.Array | float = 0.0,
    target_std: chex.Array | float = 1.0,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learns the mean and the standard deviation of normally distributed targets (Nix & Weigend, 1994).

    "loss" is the negative log-likelihood of the standardised targets, in nats. `evaluate` reports it, "squared_error"
    and "absolute_error" of the mean, "coverage" (fraction of targets inside the central prediction interval) and
    "interval_width", with the outputs "predictions", "std" and "targets" `[B, O]`; all but the loss are in the units of
    the targets. `predict` returns {"mean", "std"} `[B, O]`.

    Args:
      model: returns `[B, 2 * O]`: O means, then O log standard deviations.
      optimizer: Optax optimizer; its learning rate may be traced.
      interval_probability: probability of the prediction interval that "coverage" checks, between 0 and 1.
      preprocess: as in `regressor`.
      target_mean: as in `regressor`.
      target_std: as in `regressor`.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: `interval_probability` is out of range; while tracing, if the batch lacks a required field, or
        outputs and targets do not match.

    >>> from foldax.models import MLP
    >>> batch = {"inputs": jnp.ones((4, 1)), "targets": jnp.arange(4.0)}
    >>> learner = gaussian_regressor(MLP((2,)), optax.sgd(0.1), target_mean=1.5, target_std=1.1)
    >>> state = learner.init(jax.random.key(0), batch)
    >>> sorted(learner.predict(state, batch["inputs"], jax.random.key(0)))
    ['mean', 'std']
    """
    mean, std = as_row(target_mean), as_row(target_std)
    inverse_std, half_width = jnp.reciprocal(std), interval_half_width(interval_probability)

    def postprocess(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        # Undo the standardisation: scale mean and standard deviation, shift the mean.
        location, log_std = losses.mean_and_log_std(outputs)
        return {"mean": location * std + mean, "std": jnp.exp(log_std) * std}

    def train_metrics(outputs: jax.Array, batch: Batch) -> Metrics:
        targets = losses.as_columns(batch["targets"]).astype(jnp.float32)
        metrics: Metrics = {"loss": losses.gaussian_nll(outputs, (targets - mean) * inverse_std)}
        return metrics | error_metrics(postprocess(outputs, batch)["mean"], targets)

    def evaluate(outputs: jax.Array, batch: Batch) -> Evaluation:
        targets = losses.as_columns(batch["targets"]).astype(jnp.float32)
        predicted = postprocess(outputs, batch)
        metrics = train_metrics(outputs, batch) | interval_metrics(**predicted, targets=targets, half_width=half_width)
        return Evaluation(metrics, {"predictions": predicted["mean"], "std": predicted["std"], "targets": targets})

    task = Task(INPUTS_AND_TARGETS, tasks.input_function(model, preprocess), train_metrics, evaluate, postprocess)
    return tasks.network_learner(model, optimizer, task, **options)


def interval_half_width(probability: float) -> float:
    """Half the width of a normal distribution's central interval, in standard deviations.

    Raises:
      ExperimentError: the probability is not between 0 and 1.

    >>> round(interval_half_width(0.95), 2)
    1.96
    """
    if not 0.0 < probability < 1.0:
        raise ExperimentError(f"interval_probability: {probability} is out of range; it must be above 0 and below 1")
    return statistics.NormalDist().inv_cdf(0.5 + probability / 2)


def interval_metrics(mean: jax.Array, std: jax.Array, targets: jax.Array, half_width: float) -> dict[str, jax.Array]:
    """Computes "coverage" and "interval_width" `[B]` of intervals `mean +- half_width * std`, averaged over `[B, O]`.

    >>> metrics = interval_metrics(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[1.0, 3.0]]), half_width=2.0)
    >>> float(metrics["coverage"][0]), float(metrics["interval_width"][0])
    (0.5, 4.0)
    """
    chex.assert_equal_shape([mean, std, targets])
    # Calibrated predictions cover the nominal fraction of targets.
    inside = (jnp.abs(targets - mean) <= half_width * std).astype(jnp.float32)
    return {"coverage": inside.mean(axis=-1), "interval_width": (2.0 * half_width * std).mean(axis=-1)}


def error_metrics(predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """Computes "squared_error" and "absolute_error" `[B]`, averaged over outputs `[B, O]`."""
    squared_error = losses.squared_error(predictions, targets)
    return {"squared_error": squared_error, "absolute_error": losses.absolute_error(predictions, targets)}


def as_row(value: chex.Array | float) -> jax.Array:
    """Reshapes a scalar or `[O]` to float32 `[1, O]`, which broadcasts against a batch.

    >>> as_row(2.0).shape, as_row([1.0, 2.0]).shape
    ((1, 1), (1, 2))
    """
    return jnp.asarray(value, jnp.float32).reshape(1, -1)
