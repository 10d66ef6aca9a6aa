"""Masked autoencoders (He et al., 2022): most of an image is hidden, and is to be told from the rest.

Batches are `{"inputs": [B, H, W, C]}`; "targets" `[B]`, where there are some, are passed on and teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from foldax.learner import Learner
from foldax.learners import tasks
from foldax.learners.tasks import Batch, Options, Task, Values
from foldax.models import Masked, MaskedAutoencoder, patched, unpatched


def masked_autoencoder(
    model: MaskedAutoencoder,
    optimizer: optax.GradientTransformation,
    *,
    normalized: bool = False,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of what is hidden.

    `update` reports "loss", the squared error of the hidden patches' pixels, and "gradient_norm". `evaluate` reports
    "loss" `[B]`, "features" `[B, width]` of whole images, "reconstructions" `[B, H, W, C]` in units of `preprocess`,
    "masks" of that shape, 1 where patches were hidden, and "targets" where there are some. `predict` gives features.

    Args:
      model: inputs become what `preprocess` makes of them.
      optimizer: of optax; its rates may be traced.
      normalized: whether each patch's pixels are told apart from their mean, in units of their deviation. The
        reconstructions are put back with the true ones.
      preprocess: pure function of the inputs, such as `info.standardize`; by default they become float32.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.
    """
    prepared = tasks.inputs_of(model, preprocess)

    def pixels(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the patches as they are to be told, and their means and deviations, `[B, N, 1]`."""
        x = patched(prepared(batch), model.patch_size)
        mean = x.mean(axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.square(x - mean).mean(axis=-1, keepdims=True) + 1e-6)
        if not normalized:
            mean, deviation = jnp.zeros_like(mean), jnp.ones_like(deviation)
        return (x - mean) * jnp.reciprocal(deviation), mean, deviation

    def training(made: Masked, batch: Batch) -> Values:
        error = jnp.square(made.outputs - pixels(batch)[0]).mean(axis=-1)
        return {"loss": (error * made.mask).sum(axis=1) * jnp.reciprocal(made.mask.sum(axis=1))}

    def evaluation(made: Masked, batch: Batch) -> Values:
        _, mean, deviation = pixels(batch)
        hidden = jnp.broadcast_to(made.mask[..., None], made.outputs.shape)
        values = training(made, batch) | {"masks": unpatched(hidden, tuple(model.shape))}
        values["reconstructions"] = unpatched(made.outputs * deviation + mean, tuple(model.shape))
        return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})

    inner = tasks.learner(model, optimizer, Task(("inputs",), prepared, training, evaluation), **options)

    def predict(state: Any, inputs: Any, key: jax.Array) -> jax.Array:
        batch = dict(inputs) if isinstance(inputs, dict) else {"inputs": jnp.asarray(inputs)}
        variables = {"params": state.averaged, **state.model_state}
        return nn.apply(lambda module: module.encode(prepared(batch)), model)(variables)

    def evaluate(state: Any, batch: Any, key: jax.Array) -> Values:
        return inner.evaluate(state, batch, key) | {"features": predict(state, batch, key)}

    return Learner(inner.init, inner.update, evaluate, predict)
