"""Forecasters: learners that continue a time series, with or without the uncertainty of their forecasts."""

from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError
from foldax.learner import Evaluation, Learner, Metrics, Model
from foldax.learners import losses, tasks
from foldax.learners.supervised.regression import error_metrics, interval_half_width, interval_metrics


def forecaster(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    gaussian: bool = True,
    normalization: Literal["window", "last"] | None = "window",
    interval_probability: float = 0.9,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """Learns to continue a series: targets `[B, H]` are the next H values of channel 0 of contexts `[B, T, C]`.

    Each channel of a context is normalised by its own statistics, so that the level of a series does not matter
    (reversible instance normalisation: Kim et al., 2022); a constant channel is only centred. "loss" is in normalised
    units: nats if `gaussian`, else squared errors. `evaluate` reports it, "squared_error", "absolute_error" and, if
    `gaussian`, "coverage" and "interval_width" (all `[B]`, means over the horizon), with the outputs "predictions",
    "targets" and, if `gaussian`, "std" `[B, H]`, in the units of the series. `predict` returns {"mean", "std"} `[B, H]`
    if `gaussian`, else the mean.

    Args:
      model: returns `[B, H]`, or if `gaussian` `[B, 2 * H]`: H means, then H log standard deviations.
      optimizer: Optax optimizer; its learning rate may be traced.
      gaussian: whether the model predicts a normal distribution of each value.
      normalization: "window" subtracts the mean of the context, "last" its last value, and both divide by its standard
        deviation; None changes nothing.
      interval_probability: probability of the prediction interval that "coverage" checks, between 0 and 1.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: `normalization` or `interval_probability` is not allowed; while tracing, if the batch lacks a
        required field, or the inputs are not `[B, T, C]`.

    >>> from foldax.models import MLP
    >>> learner = forecaster(MLP((4,)), optax.adam(0.01), normalization="last")
    >>> batch = {"inputs": jnp.arange(6.0).reshape(1, 6, 1), "targets": jnp.array([[6.0, 7.0]])}
    >>> state = learner.init(jax.random.key(0), batch)
    >>> learner.predict(state, batch["inputs"], jax.random.key(0))["std"].shape
    (1, 2)
    """
    if normalization not in ("window", "last", None):
        raise ExperimentError(f"normalization: {normalization!r} is none of 'window', 'last' and None")
    half_width = interval_half_width(interval_probability)

    def location_and_scale(batch: tasks.Batch) -> tuple[jax.Array, jax.Array]:  # of each channel, [B, 1, C]
        # Statistics of the context only: those of the targets would reveal the future.
        context = _float_contexts(batch["inputs"])
        mean, std = context.mean(axis=1, keepdims=True), context.std(axis=1, keepdims=True)
        if normalization is None:
            return jnp.zeros_like(mean), jnp.ones_like(std)
        # A constant channel has a std of rounding errors, or 0: it is only centred.
        std = jnp.where(std > 1e-6 * jnp.abs(mean) + 1e-30, std, 1.0)
        return (mean if normalization == "window" else context[:, -1:]), std

    def target_location_and_scale(batch: tasks.Batch) -> tuple[jax.Array, ...]:  # of channel 0, [B, 1]
        return tuple(value[:, 0, :1] for value in location_and_scale(batch))

    # 1. Normalise the context, 2. forecast in normalised units, 3. undo the normalisation.
    def inputs(batch: tasks.Batch) -> jax.Array:
        location, scale = location_and_scale(batch)
        return (_float_contexts(batch["inputs"]) - location) * jnp.reciprocal(scale)

    def postprocess(outputs: jax.Array, batch: tasks.Batch) -> tasks.Outputs:
        location, scale = target_location_and_scale(batch)
        if not gaussian:
            return outputs * scale + location
        mean, log_std = losses.mean_and_log_std(outputs)
        return {"mean": mean * scale + location, "std": jnp.exp(log_std) * scale}

    def train_metrics(outputs: jax.Array, batch: tasks.Batch) -> Metrics:
        location, scale = target_location_and_scale(batch)
        targets = batch["targets"].astype(jnp.float32)
        loss = losses.gaussian_nll if gaussian else losses.squared_error
        # Errors are in the units of the series, the loss in normalised units.
        mean = postprocess(outputs, batch)["mean"] if gaussian else postprocess(outputs, batch)
        metrics: Metrics = {"loss": loss(outputs, (targets - location) * jnp.reciprocal(scale))}
        return metrics | error_metrics(mean, targets)

    def evaluate(outputs: jax.Array, batch: tasks.Batch) -> Evaluation:
        targets, predicted = batch["targets"].astype(jnp.float32), postprocess(outputs, batch)
        metrics = train_metrics(outputs, batch)
        if not gaussian:
            return Evaluation(metrics, {"predictions": predicted, "targets": targets})
        metrics |= interval_metrics(**predicted, targets=targets, half_width=half_width)
        return Evaluation(metrics, {"predictions": predicted["mean"], "std": predicted["std"], "targets": targets})

    task = tasks.Task(tasks.INPUTS_AND_TARGETS, inputs, train_metrics, evaluate, postprocess)
    return tasks.network_learner(model, optimizer, task, **options)


def _float_contexts(inputs: jax.Array) -> jax.Array:
    if inputs.ndim != 3:
        raise ExperimentError(f"forecaster: the inputs must be contexts [B, T, C], got {inputs.shape}")
    return inputs.astype(jnp.float32)
