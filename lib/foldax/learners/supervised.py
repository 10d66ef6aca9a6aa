"""Supervised learning: classifiers and regressors from any model, optimizer and loss.

Batches are `{"inputs": [B, ...], "targets": [B] or [B, K]}`. A model is any object with Flax's
`init(rngs, inputs, train=...)` and `apply(variables, inputs, train=..., rngs=..., mutable=...)`. Every float setting
may be a traced array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError
from foldax.learner import Learner
from foldax.learners import gradients, losses
from foldax.learners.gradients import TrainState

Values = dict[str, jax.Array]


def as_float(inputs: jax.Array) -> jax.Array:
    """Returns the inputs as float32."""
    return jnp.asarray(inputs, jnp.float32)


def classifier(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.softmax_cross_entropy,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    label_smoothing: Any = None,
    class_weights: Any = None,
    l1: Any = None,
    l2: Any = None,
    ema_decay: Any = None,
    accumulate: int = 1,
) -> Learner:
    """Returns a learner of classes: one of C (`[B, C]` logits), of two (`[B, 1]`), or several of K (`[B, K]` targets).

    `update` reports "loss" (as trained on, without the penalty), "accuracy", "gradient_norm" and, where there is one,
    "penalty". `evaluate` reports "loss" (plain: no smoothing, no weights) and "accuracy" `[B]`, "logits" `[B, C]` and
    integer "targets"; it uses running statistics, no dropout, and the averaged parameters where there are any.

    Args:
      model: gives logits `[B, C]`, `[B, 1]` or `[B]`.
      optimizer: of optax; its rates may be traced.
      loss: `(logits, targets) -> [B]`.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      label_smoothing: passed on to the loss while training.
      class_weights: `[C]` weight of every class; the loss is the weighted mean.
      l1: adds `l1 * sum |w|` over kernels (leaves of rank 2 or more; no biases, no norms).
      l2: adds `l2 / 2 * sum w^2` over kernels.
      ema_decay: evaluate with an exponential moving average of the parameters that weighs the past by this.
      accumulate: number of microbatches that a batch is worked through in.

    Raises:
      ExperimentError: if the loss takes no `label_smoothing`; while tracing, if a batch has not what is needed.
    """
    smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
    if smoothing and "label_smoothing" not in inspect.signature(loss).parameters:
        raise ExperimentError(f"label_smoothing: the loss {getattr(loss, '__name__', loss)!r} does not take it")

    def weights(targets: jax.Array) -> jax.Array:
        if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ExperimentError(
                f"class_weights: need integer classes [B] as targets, got {targets.dtype}{list(targets.shape)}"
            )
        return jnp.asarray(class_weights, jnp.float32)[targets]

    def evaluation(logits: jax.Array, targets: jax.Array) -> Values:
        kept = targets.astype(jnp.int32)
        return {"loss": loss(logits, targets), "accuracy": accuracy(logits, targets), "logits": logits, "targets": kept}

    return _supervised(
        model,
        optimizer,
        objective=lambda logits, targets: loss(logits, targets, **smoothing),
        measures={"accuracy": accuracy},
        evaluation=evaluation,
        finish=lambda logits: logits,
        preprocess=preprocess,
        weights=None if class_weights is None else weights,
        l1=l1,
        l2=l2,
        ema_decay=ema_decay,
        accumulate=accumulate,
    )


def regressor(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.squared_error,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    target_mean: Any = 0.0,
    target_std: Any = 1.0,
    l1: Any = None,
    l2: Any = None,
    ema_decay: Any = None,
    accumulate: int = 1,
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
      l1: adds `l1 * sum |w|` over kernels (leaves of rank 2 or more; no biases, no norms).
      l2: adds `l2 / 2 * sum w^2` over kernels.
      ema_decay: evaluate with an exponential moving average of the parameters that weighs the past by this.
      accumulate: number of microbatches that a batch is worked through in.

    Raises:
      ExperimentError: while tracing, if a batch has not what is needed.
    """
    mean = jnp.asarray(target_mean, jnp.float32).reshape(1, -1)
    std = jnp.asarray(target_std, jnp.float32).reshape(1, -1)
    inverse = jnp.reciprocal(std)

    def finish(outputs: jax.Array) -> jax.Array:
        return outputs * std + mean

    def objective(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return loss(outputs, (losses.as_columns(targets).astype(jnp.float32) - mean) * inverse)

    measures = {
        name: lambda outputs, targets, measure=measure: measure(finish(outputs), targets)
        for name, measure in (("squared_error", losses.squared_error), ("absolute_error", losses.absolute_error))
    }

    def evaluation(outputs: jax.Array, targets: jax.Array) -> Values:
        values = {name: measure(outputs, targets) for name, measure in measures.items()}
        kept = losses.as_columns(targets).astype(jnp.float32)
        return {"loss": objective(outputs, targets), **values, "predictions": finish(outputs), "targets": kept}

    return _supervised(
        model,
        optimizer,
        objective=objective,
        measures=measures,
        evaluation=evaluation,
        finish=finish,
        preprocess=preprocess,
        weights=None,
        l1=l1,
        l2=l2,
        ema_decay=ema_decay,
        accumulate=accumulate,
    )


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the share of labels right `[B]`: the largest of `[B, C]` logits; in `[B, 1]` or `[B, K]` all above 0."""
    if targets.ndim == 1 and logits.shape[1] > 1:
        return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return ((logits > 0) == (losses.as_columns(targets) > 0)).astype(jnp.float32).mean(axis=-1)


def penalty(params: Any, l1: Any = None, l2: Any = None) -> jax.Array:
    """Returns `l1 * sum |w| + l2 / 2 * sum w^2` over kernels: leaves of rank 2 or more."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
    total = jnp.zeros(())
    if l1 is not None:
        total += l1 * sum(jnp.abs(kernel).sum() for kernel in kernels)
    if l2 is not None:
        total += l2 * 0.5 * sum(jnp.square(kernel).sum() for kernel in kernels)
    return total


def _supervised(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    objective: Callable[[jax.Array, jax.Array], jax.Array],
    measures: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]],
    evaluation: Callable[[jax.Array, jax.Array], Values],
    finish: Callable[[jax.Array], jax.Array],
    preprocess: Callable[[jax.Array], jax.Array] | None,
    weights: Callable[[jax.Array], jax.Array] | None,
    l1: Any,
    l2: Any,
    ema_decay: Any,
    accumulate: int,
) -> Learner:
    """What both have in common; `objective`, `measures` and `evaluation` answer per example."""
    prepare = as_float if preprocess is None else preprocess
    penalised = l1 is not None or l2 is not None

    def init(key: jax.Array, examples: Any) -> TrainState:
        inputs = prepare(_field(examples, "inputs")[:1])
        streams = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        model_state = dict(model.init(streams, inputs, train=False))
        params = model_state.pop("params")
        return gradients.create(params, optimizer, model_state, ema_decay=ema_decay)

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, tuple[Any, Values]]:
        variables = {"params": params, **model_state}
        streams = {"dropout": key}
        outputs, changed = model.apply(
            variables, prepare(batch["inputs"]), train=True, rngs=streams, mutable=list(model_state)
        )
        outputs = losses.as_columns(outputs)
        values = objective(outputs, batch["targets"])
        metrics = {name: measure(outputs, batch["targets"]).mean() for name, measure in measures.items()}
        metrics["loss"] = total = (values * batch["weights"]).mean() if weights else values.mean()
        if penalised:
            metrics["penalty"] = penalty(params, l1, l2)
            total = total + metrics["penalty"]
        return total, ({**model_state, **changed}, metrics)

    def update(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Values]:
        fields = {"inputs": _field(batch, "inputs"), "targets": _field(batch, "targets")}
        if weights:  # scaled to mean 1 over the whole batch, so that microbatches add up to the weighted mean
            given = weights(fields["targets"])
            fields["weights"] = given * jnp.reciprocal(given.mean())
        return gradients.step(state, loss, optimizer, fields, key, accumulate=accumulate, ema_decay=ema_decay)

    def outputs_of(state: TrainState, inputs: jax.Array) -> jax.Array:
        variables = {"params": state.averaged, **state.model_state}
        return losses.as_columns(model.apply(variables, prepare(inputs), train=False))

    def evaluate(state: TrainState, batch: Any, key: jax.Array) -> Values:
        return evaluation(outputs_of(state, _field(batch, "inputs")), _field(batch, "targets"))

    def predict(state: TrainState, inputs: jax.Array, key: jax.Array) -> jax.Array:
        return finish(outputs_of(state, inputs))

    return Learner(init, update, evaluate, predict)


def _field(batch: Any, name: str) -> jax.Array:
    if not isinstance(batch, Mapping) or name not in batch:
        got = f"the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ExperimentError(
            f'supervised learners take batches {{"inputs", "targets"}}; {name!r} is missing: got {got}'
        )
    return jnp.asarray(batch[name])
