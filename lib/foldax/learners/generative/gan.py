"""Generative adversarial networks (Goodfellow et al., 2014): non-saturating, Wasserstein and hinge objectives.

Batches are `{"inputs": [B, ...]}`; a conditional GAN also needs "targets" int `[B]`. The losses of the two networks do
not measure progress, because each rises when the other network improves. The metric "loss" is therefore the energy
score, which neither network is trained on: its expectation is lowest for the true distribution and for no other
(Gneiting & Raftery, 2007), so it falls as the generator improves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import chex
import jax
import jax.numpy as jnp
import optax
from flax.typing import VariableDict
from jax import Array

from foldax.errors import ConfigError, ExperimentError, check_positive, did_you_mean
from foldax.learner import Evaluation, Key, Learner, Metrics, Model, Params, Sampler
from foldax.learners import tasks
from foldax.learners.gradients import LossFunction, TrainState, gradient_step, init_network
from foldax.learners.losses import energy_score

Objective = Literal["non_saturating", "wasserstein", "hinge"]
Applied: TypeAlias = tuple[Array, VariableDict]  # outputs, and the collections that changed


class GAN(NamedTuple):
    """Generator and discriminator, both conditioned on the class if there are classes.

    Attributes:
      generator: network of latents `[B, D]`, with one-hot classes appended, whose outputs have as many elements as an
        image.
      discriminator: network `[B, ...]` to scores `[B, 1]`, or `[B, num_classes]` of which the image's class is
        selected: one linear function of features per class (Miyato & Koyama, 2018). It must not use batch
        normalisation.
      shape: shape of one image.
      latent_size: D, dimension of the standard normal latents.
      num_classes: number of classes; None: unconditional.
      output_activation: applied to the generator's outputs, such as `jnp.tanh` for images in [-1, 1].

    >>> from foldax import models
    >>> model = GAN(models.MLP((8, 4)), models.MLP((8, 3)), shape=(2, 2, 1), latent_size=5, num_classes=3)
    >>> model.generator_inputs(jnp.zeros((6, 5)), jnp.zeros(6, int)).shape
    (6, 8)
    """

    generator: Model
    discriminator: Model
    shape: Sequence[int]
    latent_size: int
    num_classes: int | None = None
    output_activation: Callable[[Array], Array] = lambda outputs: outputs

    def generator_inputs(self, latents: Array, labels: Array) -> Array:
        """Appends one-hot labels int `[B]` to latents `[B, D]` if the GAN is conditional."""
        if self.num_classes is None:
            return latents
        return jnp.concatenate([latents, jax.nn.one_hot(labels, self.num_classes)], axis=-1)

    def generate(self, variables: VariableDict, latents: Array, labels: Array, **kwargs: Any) -> Applied:
        """Returns images `[B, ...]` and the changed collections; `kwargs` are those of Flax's `apply`."""
        outputs, changed = self.generator.apply(variables, self.generator_inputs(latents, labels), **kwargs)
        if math.prod(outputs.shape[1:]) != math.prod(self.shape):
            raise ConfigError(f"GAN: the generator outputs {list(outputs.shape[1:])}, images are {list(self.shape)}")
        return self.output_activation(outputs.reshape(-1, *self.shape)), changed

    def score(self, variables: VariableDict, images: Array, labels: Array, **kwargs: Any) -> Applied:
        """Returns the discriminator's scores `[B]` of images with labels int `[B]`, and the changed collections."""
        outputs, changed = self.discriminator.apply(variables, images, **kwargs)
        expected = (len(images), self.num_classes or 1)
        if outputs.shape != expected:
            raise ConfigError(f"GAN: the discriminator must output {list(expected)}, got {list(outputs.shape)}")
        # Projection discriminator: one score per class, of which the label selects one.
        selected = jnp.zeros_like(labels) if self.num_classes is None else labels
        return jnp.take_along_axis(outputs, selected[:, None], axis=1)[:, 0], changed

    def batch_labels(self, batch: tasks.Batch) -> Array:
        """Returns a batch's labels int `[B]`, all 0 if the GAN is unconditional."""
        if self.num_classes is None:
            return jnp.zeros(len(batch["inputs"]), jnp.int32)
        return batch["targets"].astype(jnp.int32)


class GANState(NamedTuple):
    """State of both networks.

    Attributes:
      generator: state of the generator; evaluation uses its moving average where there is one.
      discriminator: state of the discriminator.
    """

    generator: TrainState
    discriminator: TrainState

    @property
    def params(self) -> dict[str, Params]:
        """Trained parameters of both networks."""
        return {"generator": self.generator.params, "discriminator": self.discriminator.params}


def discriminator_losses(objective: Objective, real: Array, fake: Array) -> Array:
    """Computes the discriminator's loss per pair of scores.

    Args:
      objective: "non_saturating" (Goodfellow et al., 2014, equation 1), "wasserstein" (Arjovsky et al., 2017,
        equation 2) or "hinge" (Lim & Ye, 2017; Miyato et al., 2018, equation 16).
      real: scores of real images, `[B]`.
      fake: scores of generated images, `[B]`.

    Returns:
      Losses, `[B]`.

    >>> discriminator_losses("hinge", jnp.array([2.0]), jnp.array([-0.5])).tolist()
    [0.5]
    """
    chex.assert_equal_shape([real, fake])
    if objective == "wasserstein":
        return fake - real
    if objective == "hinge":
        return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)  # -log D(x) - log(1 - D(G(z))), D the sigmoid of the score


def generator_losses(objective: Objective, fake: Array) -> Array:
    """Computes the generator's loss `[B]` from the scores `[B]` of its images.

    Args:
      objective: see `discriminator_losses`.
      fake: scores of generated images, `[B]`.

    Returns:
      Losses, `[B]`.

    >>> generator_losses("wasserstein", jnp.array([0.5])).tolist()
    [-0.5]
    """
    return jax.nn.softplus(-fake) if objective == "non_saturating" else -fake


def gradient_penalty(score: Callable[[Array], Array], images: Array) -> Array:
    """Computes (||gradient of the score||_2 - 1)^2 at each image (WGAN-GP: Gulrajani et al., 2017, equation 3).

    Args:
      score: images `[B, ...]` to scores `[B]`, each of which depends on its own image only.
      images: points at which the gradient is taken, `[B, ...]`.

    Returns:
      Penalties, `[B]`.

    >>> gradient_penalty(lambda images: 3 * images[:, 0], jnp.zeros((2, 4))).tolist()
    [4.0, 4.0]
    """
    slopes = jax.grad(lambda images: score(images).sum())(images).reshape(len(images), -1)
    # The norm has no gradient at 0; 1e-12 gives it one.
    return jnp.square(jnp.sqrt(jnp.square(slopes).sum(axis=1) + 1e-12) - 1)


def discriminator_loss(
    model: GAN, objective: Objective, gradient_penalty_weight: chex.Numeric | None = None
) -> LossFunction:
    """Builds the discriminator's loss for batches of "real" and "fake" images `[B, ...]` and "labels" int `[B]`.

    Args:
      model: both networks.
      objective: see `discriminator_losses`.
      gradient_penalty_weight: see `gan`.

    Returns:
      `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
    """

    def loss(params: Params, model_state: VariableDict, batch: tasks.Batch, key: Key) -> Any:
        keys = jax.random.split(key, 3)
        variables, labels = {"params": params, **model_state}, batch["labels"]
        # Real and generated images go through the discriminator in one pass.
        images, both_labels = jnp.concatenate([batch["real"], batch["fake"]]), jnp.concatenate([labels, labels])
        kwargs = dict(train=True, rngs={"dropout": keys[0]}, mutable=list(model_state))
        scores, changed = model.score(variables, images, both_labels, **kwargs)
        real, fake = jnp.split(scores, 2)
        total = discriminator_losses(objective, real, fake).mean()
        metrics = {"score_gap": real.mean() - fake.mean()}
        if gradient_penalty_weight is not None:
            # Points on straight lines between real and generated images (Gulrajani et al., algorithm 1)
            epsilon = jax.random.uniform(keys[1], (len(labels),) + (1,) * len(model.shape))
            interpolates = epsilon * batch["real"] + (1 - epsilon) * batch["fake"]

            def score(images: Array) -> Array:
                return model.score(variables, images, labels, train=True, rngs={"dropout": keys[2]}, mutable=[])[0]

            metrics["gradient_penalty"] = gradient_penalty(score, interpolates).mean()
            total = total + gradient_penalty_weight * metrics["gradient_penalty"]
        return total, ({**model_state, **changed}, {**metrics, "discriminator_loss": total})

    return loss


def generator_loss(model: GAN, objective: Objective, discriminator: TrainState) -> LossFunction:
    """Builds the generator's loss, given the discriminator, for batches of "labels" int `[B]`.

    Args:
      model: both networks.
      objective: see `discriminator_losses`.
      discriminator: state of the discriminator, held fixed.

    Returns:
      `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
    """

    def loss(params: Params, model_state: VariableDict, batch: tasks.Batch, key: Key) -> Any:
        labels, (latent_key, dropout_key) = batch["labels"], jax.random.split(key)
        fake, changed = generate_images(model, {"params": params, **model_state}, labels, latent_key)
        # The discriminator is fixed, its running statistics too (`mutable=[]`): only its own step changes them.
        variables = {"params": discriminator.params, **discriminator.model_state}
        scores, _ = model.score(variables, fake, labels, train=True, rngs={"dropout": dropout_key}, mutable=[])
        total = generator_losses(objective, scores).mean()
        return total, ({**model_state, **changed}, {"generator_loss": total})

    return loss


def gan(
    model: GAN,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    *,
    objective: Objective = "non_saturating",
    gradient_penalty_weight: chex.Numeric | None = None,
    discriminator_steps: int = 1,
    preprocess: Callable[[Array], Array] | None = None,
    postprocess: Callable[[Array], Array] = lambda images: images,
    augment: Callable[[Array, tasks.Batch], tasks.Batch] | None = None,
    ema_decay: chex.Numeric | None = None,
    samples_per_example: int = 0,
) -> Learner:
    """Learner of a generative adversarial network (Goodfellow et al., 2014).

    `update` reports "loss" (the energy score, in units of `preprocess`), "generator_loss", "discriminator_loss" (with
    the penalty), "score_gap" (mean score of real minus generated images; with "wasserstein" an estimate of the
    Wasserstein distance), "gradient_penalty" where there is one, and the generator's "gradient_norm". `evaluate`
    reports the metric "loss" `[B]`; its outputs are "targets", where the batch has them, and, with
    `samples_per_example`, "samples" `[B, S, ...]` of each example's class. `predict` takes labels int `[B]` (an
    unconditional GAN uses only their count), or a mapping {"inputs": labels, "latents": `[B, D]`}, and returns images
    `[B, ...]`.

    Args:
      model: both networks, in units of `preprocess`.
      generator_optimizer: Optax optimizer; its rates may be traced.
      discriminator_optimizer: likewise; it takes `discriminator_steps` steps an update, which its schedule counts:
        build it for `steps * discriminator_steps`.
      objective: "non_saturating", "wasserstein" (to be used with a gradient penalty or `models.SpectralNorm`) or
        "hinge"; see `discriminator_losses`.
      gradient_penalty_weight: lambda of WGAN-GP (Gulrajani et al., 2017, who use 10); may be traced. None: no penalty,
        and no second derivatives.
      discriminator_steps: discriminator steps per generator step. They share the batch, so they must divide its size.
      preprocess: pure function of the inputs; None: conversion to float32.
      postprocess: inverse of `preprocess`, applied to generated images.
      augment: `(key, batch) -> batch`, applied to real images (see `foldax.augment`).
      ema_decay: decay, from 0 to 1, of a moving average of the generator that is used in evaluation; may be traced.
      samples_per_example: S, number of samples per example in evaluation.

    Returns:
      The learner; its state is a `GANState`.

    Raises:
      ConfigError: the objective is unknown or a count is too small; while tracing, a network's outputs have the wrong
        shape, the discriminator uses batch normalisation, inputs do not have the model's shape, or
        `discriminator_steps` does not divide the batch.
      ExperimentError: while tracing, the batch lacks a field, or labels or latents are not as `predict` takes them.

    >>> from foldax import models
    >>> model = GAN(models.MLP((8, 4)), models.MLP((8, 1)), shape=(2, 2, 1), latent_size=3)
    >>> learner = gan(model, optax.adam(1e-3), optax.adam(1e-3), objective="hinge")
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), {"inputs": jnp.zeros((6, 2, 2, 1))})
    >>> jax.eval_shape(learner.predict, state, jnp.zeros(5, int), jax.random.key(0)).shape
    (5, 2, 2, 1)
    """
    _check_settings(model, objective, discriminator_steps, samples_per_example)
    fields = ("inputs",) if model.num_classes is None else ("inputs", "targets")
    real_images = tasks.input_function(None, preprocess)
    loss = discriminator_loss(model, objective, gradient_penalty_weight)

    def init(key: Key, examples: tasks.Batch) -> GANState:
        first = {name: leaf[:1] for name, leaf in tasks.require_fields(examples, fields).items()}
        latents, generator_key, discriminator_key = jnp.zeros((1, model.latent_size)), *jax.random.split(key)
        inputs = model.generator_inputs(latents, model.batch_labels(first))
        generator = init_network(generator_key, model.generator, generator_optimizer, inputs, ema_decay=ema_decay)
        images = real_images(first)
        discriminator = init_network(discriminator_key, model.discriminator, discriminator_optimizer, images)
        if "batch_stats" in discriminator.model_state:
            raise ConfigError("GAN: the discriminator uses batch normalisation, so scores would depend on other images")
        return GANState(generator, discriminator)

    def update(state: GANState, batch: tasks.Batch, key: Key) -> tuple[GANState, Metrics]:
        batch, keys = tasks.require_fields(batch, fields), jax.random.split(key, 4)
        batch = batch if augment is None else augment(keys[0], batch)
        real = real_images(batch)
        if real.shape[1:] != tuple(model.shape):
            raise ConfigError(f"GAN: inputs must be [B, ...] of shape {tuple(model.shape)}, got {list(real.shape)}")
        parts = _split_batch({"real": real, "labels": model.batch_labels(batch)}, discriminator_steps)
        generator, variables = state.generator, {"params": state.generator.params, **state.generator.model_state}

        # 1. Discriminator: a step on each part of the batch, with as many generated images of the same classes
        def discriminator_step(discriminator: TrainState, part: tuple[tasks.Batch, Key]) -> tuple[TrainState, Any]:
            images, (latent_key, loss_key) = part[0], jax.random.split(part[1])
            fake, _ = generate_images(model, variables, images["labels"], latent_key)
            return gradient_step(discriminator, loss, discriminator_optimizer, {**images, "fake": fake}, loss_key)

        step_keys = jax.random.split(keys[1], discriminator_steps)
        discriminator, step_metrics = jax.lax.scan(discriminator_step, state.discriminator, (parts, step_keys))

        # 2. Generator: one step, with the labels of the last part, against the new discriminator
        last = jax.tree.map(lambda leaf: leaf[-1], parts)
        g_loss = generator_loss(model, objective, discriminator)
        generator, metrics = gradient_step(generator, g_loss, generator_optimizer, last, keys[2], ema_decay=ema_decay)

        # 3. Progress: the energy score of two images per label, by the generator before its step
        score = energy_score(sample_images(model, variables, last["labels"], keys[3], 2), last["real"]).mean()
        means = {name: value.mean() for name, value in step_metrics.items() if name != "gradient_norm"}
        return GANState(generator, discriminator), {"loss": score, **means, **metrics}

    def evaluate(state: GANState, batch: tasks.Batch, key: Key) -> Evaluation:
        batch, variables = tasks.require_fields(batch, fields), state.generator.evaluation_variables
        # The energy score needs two samples at least.
        draws = sample_images(model, variables, model.batch_labels(batch), key, max(samples_per_example, 2))
        outputs = tasks.target_outputs(batch)
        if samples_per_example:
            outputs["samples"] = postprocess(draws[:, :samples_per_example])
        return Evaluation({"loss": energy_score(draws, real_images(batch))}, outputs)

    def predict(state: GANState, inputs: Array | Mapping[str, Array], key: Key) -> Array:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        labels = jnp.asarray(batch["inputs"])
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ExperimentError(f"GAN: predict takes class labels, int [B], got {labels.dtype} {list(labels.shape)}")
        variables = state.generator.evaluation_variables
        return postprocess(generate_images(model, variables, labels, key, batch.get("latents"), train=False)[0])

    sampler = Sampler(lambda state, labels, key, shape: predict(state, labels, key), num_classes=model.num_classes)
    inputs = tasks.label_inputs(model.num_classes)
    return Learner(init, update, evaluate, predict, predict_inputs=inputs, sampler=sampler)


def generate_images(
    model: GAN, variables: VariableDict, labels: Array, key: Key, latents: Array | None = None, train: bool = True
) -> Applied:
    """Generates one image per label.

    Args:
      model: both networks.
      variables: the generator's collections.
      labels: int `[B]`.
      key: random key of latents and dropout.
      latents: `[B, D]`; None: sampled from a standard normal.
      train: whether dropout is on and running statistics are updated.

    Returns:
      Images `[B, ...]` in units of `preprocess`, and the changed collections.

    Raises:
      ExperimentError: latents have the wrong shape.
    """
    latent_key, dropout_key = jax.random.split(key)
    if latents is None:
        latents = jax.random.normal(latent_key, (labels.shape[0], model.latent_size))
    if latents.shape != (labels.shape[0], model.latent_size):
        raise ExperimentError(f"GAN: latents must be [{len(labels)}, {model.latent_size}], got {list(latents.shape)}")
    # Running statistics change in training only.
    mutable = [name for name in variables if name != "params"] if train else []
    return model.generate(variables, latents, labels, train=train, rngs={"dropout": dropout_key}, mutable=mutable)


def sample_images(model: GAN, variables: VariableDict, labels: Array, key: Key, count: int) -> Array:
    """Generates `count` images for each label int `[B]`, `[B, count, ...]`, in units of `preprocess`."""
    images, _ = generate_images(model, variables, jnp.repeat(labels, count), key, train=False)
    return images.reshape(len(labels), count, *model.shape)


def _split_batch(batch: tasks.Batch, parts: int) -> tasks.Batch:
    size = len(batch["labels"])
    if size % parts:
        raise ConfigError(f"discriminator_steps: {parts} does not divide a batch of {size} into equal parts")
    # Leading axis: the steps of the scan.
    return {name: leaf.reshape(parts, size // parts, *leaf.shape[1:]) for name, leaf in batch.items()}


def _check_settings(model: GAN, objective: str, discriminator_steps: int, samples_per_example: int) -> None:
    known = get_args(Objective)
    if objective not in known:
        hint = did_you_mean(str(objective), known)
        raise ConfigError(f"objective: there is no {objective!r}{hint} (known: {', '.join(known)})")
    check_positive(latent_size=model.latent_size, discriminator_steps=discriminator_steps)
    if samples_per_example < 0:
        raise ConfigError(f"samples_per_example: {samples_per_example} must be 0 or more")
