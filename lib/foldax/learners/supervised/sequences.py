"""Learners of sequences: language models, classifiers of sequences or of their steps, and forecasters.

Sequences of different lengths share a batch by a "mask" `[B, T]`: 0 is padding, numbers above 0 are segments of
sequences packed into one row. What is padded counts nowhere: every mean is taken over real steps.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax.errors import ExperimentError
from foldax.learner import Average, Learner
from foldax.learners import losses, tasks
from foldax.learners.supervised import supervised
from foldax.learners.tasks import Batch, Options, Task, Values

LN2 = float(np.log(2))


def language_model(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    token_bytes: Any = None,
    label_smoothing: Any = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner that predicts each token from those before it.

    Batches are {"inputs": int `[B, T + 1]`}, optionally with "mask" `[B, T + 1]` and "weights" `[B, T + 1]`, above 0
    where a token is to be predicted (see `data.windows`). The first token of a row or of a segment is never predicted.

    `update` reports "loss" (nats per token), "accuracy" and "gradient_norm". `evaluate` reports "loss", "accuracy" and
    "bits_per_byte" as `Average`s over predicted tokens, and "nats" `[B, T]` and bool "real" `[B, T]` (which tokens are
    predicted), of which `perplexity` is made. `predict` returns the logits `[B, T, V]` that follow tokens `[B, T]`.

    Args:
      model: a causal model, `[B, T]` to `[B, T, V]`.
      optimizer: of optax; its rates may be traced.
      token_bytes: `[V]` number of bytes that each token stands for (a tokenizer's `token_bytes`); 1 by default.
      label_smoothing: share of the target spread evenly over all tokens while training.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: while tracing, if a batch has not what is needed.
    """

    def prepare(batch: Batch) -> Batch:
        """Cuts rows of T + 1 tokens into T inputs and T targets, and says which of these are predicted."""
        tokens = batch["inputs"]
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ExperimentError(
                f"language_model: the inputs must be integer tokens [B, T + 1], got {tokens.dtype}{list(tokens.shape)}"
            )
        real = jnp.ones_like(tokens[:, 1:], bool)
        if "mask" in batch:
            segments = batch["mask"].astype(jnp.int32)
            real = (segments[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1])
            batch = {**batch, "mask": segments[:, :-1]}
        if "weights" in batch:
            real &= batch["weights"][:, 1:] > 0
        tokens = tokens.astype(jnp.int32)
        batch = {**batch, "inputs": tokens[:, :-1], "targets": tokens[:, 1:], "real": real}
        return {**batch, "shares": _shares(real)}

    def evaluation(logits: jax.Array, batch: Batch) -> Values:
        values = _step_values(logits, batch["targets"], batch["real"])
        size = batch["real"].astype(jnp.float32)
        if token_bytes is not None:
            size = size * jnp.asarray(token_bytes, jnp.float32)[batch["targets"]]
        return {**values, "bits_per_byte": Average(values["nats"].sum(axis=1) * (1 / LN2), size.sum(axis=1))}

    def training(logits: jax.Array, batch: Batch) -> Values:
        return _step_means(logits, batch, label_smoothing)

    task = Task(("inputs",), lambda batch: batch["inputs"].astype(jnp.int32), training, evaluation, prepare=prepare)
    return tasks.learner(model, optimizer, task, **options)


def perplexity(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the exponential of a language model's mean loss: `Experiment.summarize` as it is."""
    return {"perplexity": float(np.exp(values["nats"].sum(dtype=np.float64) / max(1, values["real"].sum())))}


def sequence_classifier(model: Any, optimizer: optax.GradientTransformation, **options: Any) -> Learner:
    """Returns a `classifier` of whole sequences: floats `[B, T, C]` or tokens `[B, T]`, with a "mask" `[B, T]` or not.

    Args:
      model: pools over time and gives logits `[B, C]`.
      optimizer: of optax; its rates may be traced.
      **options: those of `classifier`.

    Raises:
      ExperimentError: while tracing, if the model gives no logits `[B, C]` or a batch has not what is needed.
    """
    if getattr(model, "pooling", "mean") is None:
        raise ExperimentError("sequence_classifier: the model gives an output for every step; set its `pooling`")
    return supervised.classifier(model, optimizer, **options)


def step_classifier(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    preprocess: Any = None,
    label_smoothing: Any = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of a class for every step of a sequence: targets int `[B, T]`, "mask" `[B, T]` or none.

    `update` reports "loss", "accuracy" (means over real steps) and "gradient_norm"; `evaluate` reports "loss" and
    "accuracy" as `Average`s over real steps, "nats" and "real" `[B, T]`, "logits" `[B, T, C]` and "targets" `[B, T]`.

    Args:
      model: gives logits `[B, T, C]`.
      optimizer: of optax; its rates may be traced.
      preprocess: as in `classifier`.
      label_smoothing: share of the target spread evenly over all classes while training.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: while tracing, if a batch has not what is needed.
    """

    def prepare(batch: Batch) -> Batch:
        targets = batch["targets"]
        if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ExperimentError(f"step_classifier: the targets must be integer classes [B, T], got {targets.shape}")
        real = batch["mask"] != 0 if "mask" in batch else jnp.ones_like(targets, bool)
        return {**batch, "real": real, "shares": _shares(real)}

    def evaluation(logits: jax.Array, batch: Batch) -> Values:
        values = _step_values(logits, batch["targets"], batch["real"])
        return {**values, "logits": logits, "targets": batch["targets"]}

    def training(logits: jax.Array, batch: Batch) -> Values:
        return _step_means(logits, batch, label_smoothing)

    inputs = tasks.inputs_of(model, preprocess)
    task = Task(supervised.FIELDS, inputs, training, evaluation, prepare=prepare)
    return tasks.learner(model, optimizer, task, **options)


def forecaster(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    gaussian: bool = True,
    scale: Literal["window", "last"] | None = "window",
    interval: float = 0.9,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner that continues a series: contexts `[B, T, C]`, of which channel 0 goes on as targets `[B, H]`.

    Each channel of a context is standardised by itself, so that the level of a series does not matter (Kim et al.,
    2022); a constant channel is only centred. "loss" is in these units: nats with `gaussian`, else squared errors.
    `evaluate` reports it, "squared_error", "absolute_error" and, with `gaussian`, "coverage" and "interval_width"
    `[B]` (means over the horizon), "predictions", "targets" and "std" `[B, H]`, in the series' units. `predict` returns
    {"mean", "std"} `[B, H]`, or without `gaussian` the mean alone.

    Args:
      model: gives `[B, H]`, or with `gaussian` `[B, 2 * H]`: H means, then H log standard deviations.
      optimizer: of optax; its rates may be traced.
      gaussian: whether the model tells its uncertainty.
      scale: "window": minus the context's mean, by its standard deviation; "last": minus its last value; None: as is.
      interval: probability of the interval that is measured, above 0 and below 1.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ExperimentError: `scale` or `interval` is not allowed; while tracing, if a batch has not what is needed.
    """
    if scale not in ("window", "last", None):
        raise ExperimentError(f"scale: {scale!r} is none of 'window', 'last' and None")
    width = supervised.interval_width(interval)

    def level(batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns location and scale of each channel, `[B, 1, C]`."""
        context = _floats(batch["inputs"])
        mean, std = context.mean(axis=1, keepdims=True), context.std(axis=1, keepdims=True)
        if scale is None:
            return jnp.zeros_like(mean), jnp.ones_like(std)
        std = jnp.where(std > 1e-6 * jnp.abs(mean) + 1e-30, std, 1.0)
        return (mean if scale == "window" else context[:, -1:]), std

    def inputs(batch: Batch) -> jax.Array:
        location, size = level(batch)
        return (_floats(batch["inputs"]) - location) * jnp.reciprocal(size)

    def finish(outputs: jax.Array, batch: Batch) -> Any:
        location, size = (value[:, 0, :1] for value in level(batch))
        if not gaussian:
            return outputs * size + location
        mean, log_std = losses.mean_and_log_std(outputs)
        return {"mean": mean * size + location, "std": jnp.exp(log_std) * size}

    def training(outputs: jax.Array, batch: Batch) -> Values:
        location, size = (value[:, 0, :1] for value in level(batch))
        targets = batch["targets"].astype(jnp.float32)
        loss = losses.gaussian_nll if gaussian else losses.squared_error
        mean = finish(outputs, batch)["mean"] if gaussian else finish(outputs, batch)
        values = {"loss": loss(outputs, (targets - location) * jnp.reciprocal(size))}
        return values | supervised.errors(mean, targets)

    def evaluation(outputs: jax.Array, batch: Batch) -> Values:
        targets, predicted = batch["targets"].astype(jnp.float32), finish(outputs, batch)
        values = training(outputs, batch)
        if not gaussian:
            return {**values, "predictions": predicted, "targets": targets}
        values |= supervised.interval_values(**predicted, targets=targets, width=width)
        return {**values, "predictions": predicted["mean"], "std": predicted["std"], "targets": targets}

    task = Task(supervised.FIELDS, inputs, training, evaluation, finish)
    return tasks.learner(model, optimizer, task, **options)


def _floats(context: jax.Array) -> jax.Array:
    if context.ndim != 3:
        raise ExperimentError(f"forecaster: the inputs must be contexts [B, T, C], got {context.shape}")
    return context.astype(jnp.float32)


def _nats(logits: jax.Array, targets: jax.Array, label_smoothing: Any = None) -> jax.Array:
    """Returns the cross-entropy of every step `[B, T]` of logits `[B, T, V]`."""
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ExperimentError(
            f"the model must give logits [B, T, V] for every step of targets {targets.shape}, got {logits.shape}"
        )
    flat = losses.softmax_cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), label_smoothing)
    return flat.reshape(targets.shape)


def _shares(real: jax.Array) -> jax.Array:
    """Returns weights `[B, T]` with which the sum over time, averaged over rows, is the mean over all real steps."""
    count = jnp.maximum(real.sum(), 1).astype(jnp.float32)
    return real.astype(jnp.float32) * (real.shape[0] * jnp.reciprocal(count))


def _step_means(logits: jax.Array, batch: Batch, label_smoothing: Any) -> Values:
    nats = _nats(logits, batch["targets"], label_smoothing)
    right = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
    return {"loss": (nats * batch["shares"]).sum(axis=1), "accuracy": (right * batch["shares"]).sum(axis=1)}


def _step_values(logits: jax.Array, targets: jax.Array, real: jax.Array) -> Values:
    nats = jnp.where(real, _nats(logits, targets), 0.0)
    right = (jnp.argmax(logits, axis=-1) == targets) & real
    count = real.sum(axis=1).astype(jnp.float32)
    averages = {"loss": Average(nats.sum(axis=1), count), "accuracy": Average(right.sum(axis=1), count)}
    return {**averages, "nats": nats, "real": real}
