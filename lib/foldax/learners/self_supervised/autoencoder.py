"""Autoencoders: networks that learn to give back what they were given, through something narrow or in spite of noise.

Batches are `{"inputs": [B, ...]}`; "targets" `[B]`, where there are some, are passed on and teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation, chain
from foldax.learner import Learner
from foldax.learners import losses, tasks
from foldax.learners.tasks import Batch, Options, Task, Values


def autoencoder(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.squared_error,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    finish: Callable[[jax.Array], jax.Array] = lambda outputs: outputs,
    corruption: Augmentation | None = None,
    corrupted_evaluation: bool = False,
    sparsity: Any = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of reconstructions: undercomplete, sparse or denoising (Vincent et al., 2008).

    `update` reports "loss" (as trained on), "squared_error" (means over all numbers of an input, in units of
    `preprocess`), "gradient_norm" and, with sparsity, "activity". `evaluate` reports "loss" and "squared_error" `[B]`,
    which is the anomaly score, "reconstructions" `[B, ...]`, "codes" `[B, D]` and "targets" where there are some.
    `predict` gives a `Coded`.

    Args:
      model: an `Autoencoder`, or what gives a `Coded` likewise.
      optimizer: of optax; its rates may be traced.
      loss: `(outputs, inputs) -> [B]` of `[B, numbers]`, such as `losses.sigmoid_cross_entropy` for inputs in [0, 1].
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      finish: makes reconstructions of the model's outputs, such as `jax.nn.sigmoid`.
      corruption: `(key, batch) -> batch` (see `foldax.augment`), of the inputs as they are in the data; what was there
        before it, and after `augment`, is to be given back.
      corrupted_evaluation: whether evaluation corrupts too.
      sparsity: weight of the codes' mean absolute value; may be traced.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.
    """
    prepared = tasks.inputs_of(model, preprocess)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)

    def training(coded: Any, batch: Batch) -> Values:
        clean = flat(prepared({"inputs": batch["clean"]}))
        values = {"loss": loss(flat(coded.outputs), clean)}
        values["squared_error"] = losses.squared_error(flat(finish(coded.outputs)), clean)
        if sparsity is not None:
            values["activity"] = jnp.abs(coded.codes).mean(axis=-1)
            values["loss"] = values["loss"] + sparsity * values["activity"]
        return values

    def evaluation(coded: Any, batch: Batch) -> Values:
        values = training(coded, batch) | {"reconstructions": finish(coded.outputs), "codes": coded.codes}
        return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})

    def finished(coded: Any, batch: Batch) -> Any:
        return coded._replace(outputs=finish(coded.outputs))

    task = Task(("inputs",), prepared, training, evaluation, finished, _remembered)
    steps = [step for step in (options.get("augment"), _kept, corruption) if step is not None]
    options["augment"] = chain(*steps)
    inner = tasks.learner(model, optimizer, task, **options)

    def evaluate(state: Any, batch: Any, key: jax.Array) -> Values:
        if corruption is not None and corrupted_evaluation:
            batch = corruption(key, _remembered(batch))
        return inner.evaluate(state, batch, key)

    return inner._replace(evaluate=evaluate)


def _kept(key: jax.Array, batch: Batch) -> Batch:
    return _remembered(batch)


def _remembered(batch: Batch) -> Batch:
    """Returns the batch with its inputs as they are now as "clean", unless it has them."""
    return {"clean": batch["inputs"], **batch}
