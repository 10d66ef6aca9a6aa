"""Learners of sequences: language models, and classifiers of whole sequences or of their steps.

Sequences of different lengths share a batch by a "mask" `[B, T]`: 0 is padding, positive values number the segments of
sequences packed into one row. Padding counts nowhere: every mean is taken over real steps.
"""

from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax import models
from foldax.errors import ExperimentError
from foldax.learner import Average, Evaluation, Learner, Metrics, Model, Sampler
from foldax.learners import tasks
from foldax.learners.gradients import TrainState
from foldax.learners.supervised.classification import classifier
from foldax.learners.supervised.step_losses import StepLoss
from foldax.learners.tasks import INPUTS_AND_TARGETS, Batch, NetworkOptions, Preprocess, Task


def language_model(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    token_bytes: chex.Array | None = None,
    label_smoothing: chex.Numeric | None = None,
    tokenizer: Any = None,
    num_output_chunks: int | None = None,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learns to predict each token from the tokens before it (autoregressive language modelling).

    Batches are {"inputs": int `[B, T + 1]`}, optionally with "mask" `[B, T + 1]` and "weights" `[B, T + 1]`, above 0
    for tokens to predict (see `data.token_windows`). The first token of a row or segment is never predicted.

    `update` reports "loss" (nats per token), "accuracy" and "gradient_norm". `evaluate` reports "loss", "accuracy" and
    "bits_per_byte" as `Average`s over predicted tokens, with the outputs "nats" `[B, T]` and "loss_mask" bool `[B, T]`,
    True for predicted tokens; `perplexity` summarises them. `predict` returns the logits `[B, T, V]` of the tokens that
    follow `[B, T]`.

    Args:
      model: causal model of `[B, T]` tokens that returns logits `[B, T, V]`.
      optimizer: Optax optimizer; its learning rate may be traced.
      token_bytes: number of bytes of each token, `[V]` (a tokenizer's `token_bytes`); None: 1.
      label_smoothing: probability mass that is spread evenly over all tokens in training; may be traced.
      tokenizer: with which `foldax sample` reads and writes text (see `foldax.data`); None: it cannot.
      num_output_chunks: number of parts of a sequence whose logits and loss are computed one part after the other, to
        save the memory of `[B, T, V]` logits; for a model that returns hidden states (`models.HiddenStates`), as a
        `models.Transformer` does. None: 16 where there are 2^26 logits or more and the model returns them, else 1.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: `num_output_chunks` is set for a model that returns no hidden states; while tracing, if the batch
        has no integer "inputs" `[B, T + 1]` or the model returns no `[B, T, V]`.

    >>> from foldax.models import Recurrent
    >>> learner = language_model(Recurrent(5, (4,), vocabulary_size=5), optax.adam(0.01))
    >>> batch = {"inputs": jnp.array([[1, 2, 3, 4], [2, 3, 4, 1]])}
    >>> state = learner.init(jax.random.key(0), batch)
    >>> learner.evaluate(state, batch, jax.random.key(0)).metrics["loss"].count  # predicted tokens of each row
    Array([3., 3.], dtype=float32)
    """

    step_loss = StepLoss(model, label_smoothing, num_output_chunks)
    step_loss.check()

    def prepare(batch: Batch) -> Batch:
        tokens = batch["inputs"]
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            got = f"{tokens.dtype}{list(tokens.shape)}"
            raise ExperimentError(f"language_model: the inputs must be integer tokens [B, T + 1], got {got}")
        # Position t of the targets is token t + 1 of the inputs.
        loss_mask = jnp.ones_like(tokens[:, 1:], bool)
        if "mask" in batch:
            segments = batch["mask"].astype(jnp.int32)
            # A token is predicted only from its own segment: not the first of a segment, and not padding.
            loss_mask = (segments[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1])
            batch = {**batch, "mask": segments[:, :-1]}
        # Context tokens of overlapping windows are read, but not predicted again.
        if "weights" in batch:
            loss_mask &= batch["weights"][:, 1:] > 0
        tokens = tokens.astype(jnp.int32)
        batch = {**batch, "inputs": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": loss_mask}
        return {**batch, "step_weights": _step_weights(loss_mask)}

    def evaluate(outputs: Any, batch: Batch) -> Evaluation:
        evaluation = _evaluate_steps(*step_loss.scores(outputs, batch), batch)
        # Bits of all predicted tokens over the bytes that they stand for, which compares tokenizers.
        num_bytes = batch["loss_mask"].astype(jnp.float32)
        if token_bytes is not None:
            num_bytes = num_bytes * jnp.asarray(token_bytes, jnp.float32)[batch["targets"]]
        bits = evaluation.outputs["nats"].sum(axis=1) * (1 / float(np.log(2)))
        return evaluation.with_values(metrics={"bits_per_byte": Average(bits, num_bytes.sum(axis=1))})

    task = Task(
        ("inputs",),
        lambda batch: batch["inputs"].astype(jnp.int32),
        step_loss.train_metrics,
        evaluate,
        prepare=prepare,
        model_kwargs=step_loss.model_kwargs,
    )

    def draw(state: TrainState, prompt: jax.Array, key: jax.Array, num_tokens: int) -> jax.Array:
        tokens, window = prompt, getattr(model, "max_length", prompt.shape[1] + num_tokens)
        while tokens.shape[1] < prompt.shape[1] + num_tokens:
            # A full window continues from its last half.
            context = tokens if tokens.shape[1] < window else tokens[:, -max(1, window // 2) :]
            count = max(1, min(window - context.shape[1], prompt.shape[1] + num_tokens - tokens.shape[1]))
            key, sample_key = jax.random.split(key)
            new = models.generate(model, state.evaluation_variables, context, sample_key, num_tokens=count)
            tokens = jnp.concatenate([tokens, new], axis=1)
        return tokens[:, prompt.shape[1] :]

    learner = tasks.network_learner(model, optimizer, task, **options)
    return learner._replace(sampler=Sampler(draw, "prompt", tokenizer=tokenizer))


def perplexity(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Perplexity of a language model, the exponential of its mean loss; an `Experiment.summarize`.

    Args:
      values: "nats" and "loss_mask" `[N, T]`, as `language_model` evaluates.

    >>> perplexity({"nats": np.log([[2.0, 8.0]]), "loss_mask": np.ones((1, 2), bool)})
    {'perplexity': 4.0}
    """
    # Over all tokens, not a mean of rows, which may have different numbers of them.
    tokens = max(1, values["loss_mask"].sum())
    return {"perplexity": float(np.exp(values["nats"].sum(dtype=np.float64) / tokens))}


def sequence_classifier(model: Model, optimizer: optax.GradientTransformation, **options: Any) -> Learner:
    """Learns a class for each sequence, of floats `[B, T, C]` or tokens `[B, T]`, with or without "mask" `[B, T]`.

    Args:
      model: pools over time and returns logits `[B, C]`.
      optimizer: Optax optimizer; its learning rate may be traced.
      **options: those of `classifier`.

    Raises:
      ExperimentError: the model does not pool; while tracing, if the batch lacks a required field.

    >>> from foldax.models import Recurrent
    >>> learner = sequence_classifier(Recurrent(3, (4,), pooling="mean"), optax.adam(0.01))
    >>> batch = {"inputs": jnp.ones((2, 6, 1)), "targets": jnp.array([0, 2])}
    >>> learner.predict(learner.init(jax.random.key(0), batch), batch["inputs"], jax.random.key(0)).shape
    (2, 3)
    """
    if getattr(model, "pooling", "mean") is None:
        raise ExperimentError("sequence_classifier: the model returns an output for every step; set its `pooling`")
    return classifier(model, optimizer, **options)


def step_classifier(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    preprocess: Preprocess | None = None,
    label_smoothing: chex.Numeric | None = None,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learns a class for every step of a sequence: targets int `[B, T]`, with or without "mask" `[B, T]`.

    `update` reports "loss" and "accuracy" (means over real steps) and "gradient_norm". `evaluate` reports "loss" and
    "accuracy" as `Average`s over real steps, with the outputs "nats" and "loss_mask" `[B, T]`, "logits" `[B, T, C]` and
    "targets" `[B, T]`.

    Args:
      model: returns logits `[B, T, C]`.
      optimizer: Optax optimizer; its learning rate may be traced.
      preprocess: as in `classifier`.
      label_smoothing: probability mass that is spread evenly over all classes in training; may be traced.
      **options: those of `learners.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Raises:
      ExperimentError: while tracing, if the batch has no integer "targets" `[B, T]` or the model returns no logits
        `[B, T, C]`.

    >>> from foldax.models import Recurrent
    >>> learner = step_classifier(Recurrent(3, (4,)), optax.adam(0.01))
    >>> batch = {"inputs": jnp.ones((1, 4, 1)), "targets": jnp.zeros((1, 4), int), "mask": jnp.array([[1, 1, 1, 0]])}
    >>> learner.evaluate(learner.init(jax.random.key(0), batch), batch, jax.random.key(0)).metrics["loss"].count
    Array([3.], dtype=float32)
    """

    step_loss = StepLoss(model, label_smoothing)

    def prepare(batch: Batch) -> Batch:
        targets = batch["targets"]
        if targets.ndim != 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ExperimentError(f"step_classifier: the targets must be integer classes [B, T], got {targets.shape}")
        # Every real step counts, the first one too: nothing is predicted from the step before.
        loss_mask = batch["mask"] != 0 if "mask" in batch else jnp.ones_like(targets, bool)
        return {**batch, "loss_mask": loss_mask, "step_weights": _step_weights(loss_mask)}

    def evaluate(logits: jax.Array, batch: Batch) -> Evaluation:
        evaluation = _evaluate_steps(*step_loss.scores(logits, batch), batch)
        return evaluation.with_values(outputs={"logits": logits, "targets": batch["targets"]})

    inputs = tasks.input_function(model, preprocess)
    task = Task(INPUTS_AND_TARGETS, inputs, step_loss.train_metrics, evaluate, prepare=prepare)
    return tasks.network_learner(model, optimizer, task, **options)


def _step_weights(loss_mask: jax.Array) -> jax.Array:
    """Weights `[B, T]` under which the sum over time, averaged over rows, is the mean over all unmasked steps.

    They are computed for the whole batch, so that microbatches with different numbers of steps average correctly.
    """
    count = jnp.maximum(loss_mask.sum(), 1).astype(jnp.float32)
    return loss_mask.astype(jnp.float32) * (loss_mask.shape[0] * jnp.reciprocal(count))


def _evaluate_steps(nats: jax.Array, correct: jax.Array, batch: Batch) -> Evaluation:
    loss_mask = batch["loss_mask"]
    nats, correct = jnp.where(loss_mask, nats, 0.0), jnp.where(loss_mask, correct, 0.0)
    # `Average`s, because rows have different numbers of real steps.
    count = loss_mask.sum(axis=1).astype(jnp.float32)
    metrics: Metrics = {"loss": Average(nats.sum(axis=1), count), "accuracy": Average(correct.sum(axis=1), count)}
    return Evaluation(metrics, {"nats": nats, "loss_mask": loss_mask})
