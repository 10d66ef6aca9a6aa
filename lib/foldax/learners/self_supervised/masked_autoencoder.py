"""Masked autoencoders (MAE; He et al., 2022): reconstruct the masked patches of an image from the visible ones.

Batches are `{"inputs": [B, H, W, C]}`; optional "targets" `[B]` do not affect training and are returned by `evaluate`.
"""

from collections.abc import Callable, Mapping
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.learner import Evaluation, Key, Learner, Metrics, as_evaluation
from foldax.learners import tasks
from foldax.learners.gradients import TrainState
from foldax.models import MaskedAutoencoder, MaskedAutoencoderOutput, patchify, unpatchify
from foldax.models.adapters.checks import check_model


def masked_autoencoder(
    model: MaskedAutoencoder,
    optimizer: optax.GradientTransformation,
    *,
    normalize_patches: bool = False,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """Masked autoencoder (He et al., 2022).

    `update` reports "loss", the squared error of the pixels of masked patches, and "gradient_norm". `evaluate` reports
    "loss" `[B]`. Its outputs are "features" `[B, width]` of the whole image, "reconstructions" `[B, H, W, C]` in the
    units of `preprocess`, "masks" `[B, H, W, C]` (1 where the image was masked) and, if the batch has them, "targets"
    `[B]`. `predict` returns the features.

    Args:
      model: the encoder and decoder; its `shape` is that of the preprocessed images.
      optimizer: an optax optimizer; its learning rate may be traced.
      normalize_patches: whether the target pixels of each patch are normalised by their mean and standard deviation
        (`norm_pix_loss` of the paper's code). Reconstructions are denormalised by the true mean and deviation.
      preprocess: elementwise function of the inputs, such as `info.standardize`; None converts them to float32.
      **options: see `learners.NetworkOptions`.

    >>> model = MaskedAutoencoder((4, 4, 1), patch_size=2, visible_patches=1, width=8, depth=1)
    >>> learner = masked_autoencoder(model, optax.adam(1e-3))
    >>> batch = {"inputs": jnp.zeros((3, 4, 4, 1))}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> result = jax.eval_shape(learner.evaluate, state, batch, jax.random.key(1))
    >>> result.outputs["features"].shape, result.outputs["reconstructions"].shape
    ((3, 8), (3, 4, 4, 1))
    """
    check_model(model)
    inputs_of, shape = tasks.input_function(model, preprocess), tuple(model.shape)

    def target_patches(batch: tasks.Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the target pixels `[B, N, size * size * C]`, and the mean and deviation `[B, N, 1]` of each patch."""
        patches = patchify(inputs_of(batch), model.patch_size)
        mean = patches.mean(axis=-1, keepdims=True)
        # Divided by one less than the number of elements, as in the authors' code.
        scale = 1.0 / max(patches.shape[-1] - 1, 1)
        std = jnp.sqrt(jnp.square(patches - mean).sum(axis=-1, keepdims=True) * scale + 1e-6)
        if not normalize_patches:
            mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
        return (patches - mean) * jnp.reciprocal(std), mean, std

    def train_metrics(output: MaskedAutoencoderOutput, batch: tasks.Batch) -> Metrics:
        # Mean squared error per patch, averaged over the masked patches only.
        error = jnp.square(output.patches - target_patches(batch)[0]).mean(axis=-1)
        return {"loss": (error * output.mask).sum(axis=1) * jnp.reciprocal(output.mask.sum(axis=1))}

    def evaluate_outputs(output: MaskedAutoencoderOutput, batch: tasks.Batch) -> Evaluation:
        # Predictions are in units of the patch, reconstructions in units of the image.
        _, mean, std = target_patches(batch)
        outputs = {"masks": unpatchify(jnp.broadcast_to(output.mask[..., None], output.patches.shape), shape)}
        outputs["reconstructions"] = unpatchify(output.patches * std + mean, shape)
        return Evaluation(train_metrics(output, batch), outputs | tasks.target_outputs(batch))

    task = tasks.Task(("inputs",), inputs_of, train_metrics=train_metrics, evaluate=evaluate_outputs)
    learner = tasks.network_learner(model, optimizer, task, **options)

    # Features come from the encoder alone, on all patches.
    def predict(state: TrainState, inputs: tasks.Batch, key: Key) -> jax.Array:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": jnp.asarray(inputs)}
        return model.apply(state.evaluation_variables, inputs_of(batch), method=MaskedAutoencoder.encode)

    def evaluate(state: TrainState, batch: tasks.Batch, key: Key) -> Evaluation:
        result = as_evaluation(learner.evaluate(state, batch, key))
        return result.with_values(outputs={"features": predict(state, batch, key)})

    return Learner(learner.init, learner.update, evaluate, predict)
