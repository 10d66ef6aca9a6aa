"""Classifiers: supervised learning of classes from any model, optimizer and loss.

Batches are `{"inputs": [B, ...], "targets": [B] or [B, K]}`, for sequences also `"mask"` `[B, T]`.
"""

import inspect
from collections.abc import Callable
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax.errors import ExperimentError
from foldax.learner import Evaluation, Learner, Metrics, Model
from foldax.learners import losses, tasks
from foldax.learners.tasks import INPUTS_AND_TARGETS, Batch, NetworkOptions, Preprocess, Task


def classifier(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] = losses.softmax_cross_entropy,
    preprocess: Preprocess | None = None,
    label_smoothing: chex.Numeric | None = None,
    class_weights: chex.Array | None = None,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learns classes: one of C (logits `[B, C]`), one of two (logits `[B, 1]`), or several of K (targets `[B, K]`).

    `update` reports "loss" (weighted and smoothed, without the penalty), "accuracy", "gradient_norm" and, with `l1` or
    `l2`, "penalty". `evaluate` reports "loss" (neither weighted nor smoothed) and "accuracy", with the outputs "logits"
    `[B, C]` and integer "targets". If `augment` turns classes `[B]` into soft labels `[B, C]` (mixup), the training
    accuracy is that of the most probable class.

    Args:
      model: returns logits `[B, C]`, `[B, 1]` or `[B]`.
      optimizer: Optax optimizer; its learning rate may be traced.
      loss: `(logits, targets) -> [B]`, such as those of `learners.losses`.
      preprocess: pure function of the inputs, such as `info.standardize`. By default inputs become float32, or int32
        for a model with a vocabulary.
      label_smoothing: passed to the loss in training; may be traced.
      class_weights: weight of each class, `[C]`, at least 0; the training loss is the weighted mean, 0 for a batch
        whose examples all have weight 0. With `label_smoothing`, the whole smoothed loss of an example has the weight
        of its class, as in Keras; PyTorch weights the term of each class in it.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: the loss is no function or has no `label_smoothing`, or class weights are out of range; while
        tracing, if the batch lacks a required field, or logits, targets and class weights do not match.

    >>> from foldax.models import MLP
    >>> batch = {"inputs": jnp.array([[0.0, 1.0], [1.0, 0.0]]), "targets": jnp.array([0, 1])}
    >>> learner = classifier(MLP((2,)), optax.sgd(1.0))
    >>> state = learner.init(jax.random.key(0), batch)
    >>> for step in range(5):
    ...     state, metrics = learner.update(state, batch, jax.random.key(step))
    >>> learner.evaluate(state, batch, jax.random.key(0)).metrics["accuracy"]
    Array([1., 1.], dtype=float32)
    """
    losses.check_loss(loss)
    if class_weights is not None:
        check_class_weights(class_weights)
    smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
    if smoothing and "label_smoothing" not in inspect.signature(loss).parameters:
        raise ExperimentError(f"label_smoothing: the loss {getattr(loss, '__name__', loss)!r} does not take it")

    def with_weights(batch: Batch) -> Batch:
        weights = example_weights(batch["targets"], jnp.asarray(class_weights, jnp.float32))
        # Mean 1 over the whole batch, so that the mean over microbatches is the weighted mean; 0 if all weights are 0.
        scale = jnp.reciprocal(jnp.maximum(weights.mean(), jnp.finfo(jnp.float32).tiny))
        return {**batch, "example_weights": weights * scale}

    def train_metrics(logits: jax.Array, batch: Batch) -> Metrics:
        logits, targets = losses.as_columns(logits), batch["targets"]
        num_weights = None if class_weights is None else len(jnp.asarray(class_weights))
        # Two classes may have one logit.
        if num_weights is not None and num_weights != max(logits.shape[1], 2):
            raise ExperimentError(f"class_weights: {num_weights} weights do not fit the {logits.shape[1]} logits")
        values = loss(logits, targets, **smoothing)
        values = values if class_weights is None else values * batch["example_weights"]
        # An augmentation such as mixup may have made soft labels of the classes.
        soft = options.get("augment") is not None and loss is losses.softmax_cross_entropy and targets.ndim == 2
        return {"loss": values, "accuracy": accuracy(logits, targets.argmax(axis=-1) if soft else targets)}

    def evaluate(logits: jax.Array, batch: Batch) -> Evaluation:
        logits, targets = losses.as_columns(logits), batch["targets"]
        # Neither smoothed nor weighted, so that losses of different options compare.
        metrics: Metrics = {"loss": loss(logits, targets), "accuracy": accuracy(logits, targets)}
        return Evaluation(metrics, {"logits": logits, "targets": targets.astype(jnp.int32)})

    inputs = tasks.input_function(model, preprocess)
    task = Task(INPUTS_AND_TARGETS, inputs, train_metrics, evaluate, lambda logits, batch: losses.as_columns(logits))
    task = task if class_weights is None else task._replace(prepare=with_weights)
    return tasks.network_learner(model, optimizer, task, **options)


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Fraction of correct labels of each example, `[B]`; a logit that is NaN predicts nothing right.

    Args:
      logits: `[B, C]`, whose largest is the prediction; or `[B, 1]` or `[B, K]`, where logits above 0 predict a label.
      targets: classes `[B]`; or labels `[B, K]`, positive above 0.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    chex.assert_rank(logits, 2)
    # Classes: the largest logit. Labels: each logit by its sign.
    if targets.ndim == 1 and logits.shape[1] > 1:
        return losses.is_correct(logits, targets).astype(jnp.float32)
    correct = ((logits > 0) == (losses.as_columns(targets) > 0)) & ~jnp.isnan(logits)
    return correct.astype(jnp.float32).mean(axis=-1)


def check_class_weights(class_weights: chex.ArrayTree) -> None:
    """Checks weights `[C]` of classes; traced ones, whose values are unknown, pass.

    Raises:
      ExperimentError: they are not `[C]`, one is negative, NaN or infinite, or all are 0.

    >>> check_class_weights((1.0, float("inf")))
    Traceback (most recent call last):
    foldax.errors.ExperimentError: class_weights: inf of class 1 must be finite and at least 0 (0 for an absent class)
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(class_weights)):
        return
    weights = np.asarray(class_weights, np.float32)
    if weights.ndim != 1 or not (weights != 0).any():
        raise ExperimentError(f"class_weights: must be one weight for each class, [C], not all 0; got {class_weights}")
    if wrong := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0))).tolist():
        allowed = "must be finite and at least 0 (0 for an absent class)"
        raise ExperimentError(f"class_weights: {weights[wrong[0]]} of class {wrong[0]} {allowed}")


def example_weights(targets: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Weight `[B]` of each example, from the weights `[C]` of classes `[B]` or of soft labels `[B, C]`.

    Raises:
      ExperimentError: targets are neither integer classes nor soft labels.

    >>> example_weights(jnp.array([0, 1, 1]), jnp.array([2.0, 5.0])).tolist()
    [2.0, 5.0, 5.0]
    """
    chex.assert_rank(class_weights, 1)
    if targets.ndim == 2 and targets.shape[1] == len(class_weights) and jnp.issubdtype(targets.dtype, jnp.floating):
        # The expected weight under soft labels.
        return targets @ class_weights
    if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
        got = f"{targets.dtype}{list(targets.shape)}"
        raise ExperimentError(f"class_weights: the targets must be integer classes [B], got {got}")
    return class_weights[targets]
