"""Autoencoders: reconstruct the input through a narrow, sparse or corrupted representation.

Batches are `{"inputs": [B, ...]}`; optional "targets" `[B]` do not affect training and are returned by `evaluate`.
"""

from collections.abc import Callable
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from foldax.augment import Augmentation, chain
from foldax.learner import Evaluation, Key, Learner, Metrics, Model, State, as_evaluation
from foldax.learners import losses, tasks
from foldax.models import AutoencoderOutput


def autoencoder(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.squared_error,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    postprocess: Callable[[jax.Array], jax.Array] = lambda outputs: outputs,
    corruption: Augmentation | None = None,
    corrupt_evaluation: bool = False,
    sparsity_coefficient: chex.Numeric | None = None,
    **options: Unpack[tasks.NetworkOptions],
) -> Learner:
    """Undercomplete, sparse or denoising autoencoder (Hinton & Salakhutdinov, 2006; Vincent et al., 2008).

    `update` reports "loss", "squared_error" (mean over the elements of an input, in the units of `preprocess`),
    "gradient_norm" and, with a sparsity coefficient, "latent_l1". `evaluate` reports the same metrics `[B]` without the
    gradient; "squared_error" is the usual anomaly score. Its outputs are "reconstructions" `[B, ...]`, "latents"
    `[B, D]` and, if the batch has them, "targets" `[B]`. `predict` returns an `AutoencoderOutput`.

    Args:
      model: a `models.Autoencoder`, or any model that returns an `AutoencoderOutput`.
      optimizer: an optax optimizer; its learning rate may be traced.
      loss: `(outputs [B, N], inputs [B, N]) -> [B]`, on flattened arrays; `losses.sigmoid_cross_entropy` suits inputs
        in [0, 1].
      preprocess: elementwise function of the inputs, such as `info.standardize`; None converts them to float32.
      postprocess: maps the model's outputs to reconstructions, such as `jax.nn.sigmoid`.
      corruption: `(key, batch) -> batch` (see `foldax.augment`), applied to the raw inputs after `augment`; the
        target of the reconstruction is the input before it.
      corrupt_evaluation: whether `evaluate` corrupts its inputs, too.
      sparsity_coefficient: weight of the mean absolute latent in the loss; None for no sparsity; may be traced.
      **options: see `learners.NetworkOptions`.

    >>> from foldax import models
    >>> model = models.Autoencoder(models.MLP((2,)), models.MLP((6,)), shape=(6,))
    >>> learner = autoencoder(model, optax.adam(1e-3))
    >>> batch = {"inputs": jnp.zeros((4, 6))}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> jax.eval_shape(learner.evaluate, state, batch, jax.random.key(1)).outputs["latents"].shape
    (4, 2)
    """
    losses.check_loss(loss)
    inputs_of = tasks.input_function(model, preprocess)

    # Loss: reconstruct the clean input (Vincent et al., 2008), plus a penalty on active latents.
    def train_metrics(output: AutoencoderOutput, batch: tasks.Batch) -> Metrics:
        clean = losses.flatten(inputs_of({"inputs": batch["clean"]}))
        metrics: Metrics = {"loss": loss(losses.flatten(output.reconstruction), clean)}
        metrics["squared_error"] = losses.squared_error(losses.flatten(postprocess(output.reconstruction)), clean)
        if sparsity_coefficient is not None:
            latent_l1 = jnp.abs(output.latents).mean(axis=-1)
            metrics |= {"latent_l1": latent_l1, "loss": metrics["loss"] + sparsity_coefficient * latent_l1}
        return metrics

    def evaluate_outputs(output: AutoencoderOutput, batch: tasks.Batch) -> Evaluation:
        outputs = {"reconstructions": postprocess(output.reconstruction), "latents": output.latents}
        return Evaluation(train_metrics(output, batch), outputs | tasks.target_outputs(batch))

    def postprocess_output(output: AutoencoderOutput, batch: tasks.Batch) -> AutoencoderOutput:
        return output._replace(reconstruction=postprocess(output.reconstruction))

    # The clean inputs are set aside after `augment` and before `corruption`; without either, `prepare` does it.
    options["augment"] = chain(options.get("augment"), lambda key, batch: with_clean_inputs(batch), corruption)
    task = tasks.Task(("inputs",), inputs_of, train_metrics, evaluate_outputs, postprocess_output, with_clean_inputs)
    learner = tasks.network_learner(model, optimizer, task, **options)

    def evaluate(state: State, batch: tasks.Batch, key: Key) -> Evaluation:
        # Set aside here, because `corruption` follows; the target stays clean.
        if corruption is not None and corrupt_evaluation:
            batch = corruption(key, with_clean_inputs(batch))
        return as_evaluation(learner.evaluate(state, batch, key))

    return learner._replace(evaluate=evaluate)


def with_clean_inputs(batch: tasks.Batch) -> tasks.Batch:
    """Copies "inputs" to "clean", the target of the reconstruction, unless the batch already has one.

    >>> sorted(with_clean_inputs({"inputs": jnp.zeros((2, 3))}))
    ['clean', 'inputs']
    """
    return {"clean": batch["inputs"], **batch}
