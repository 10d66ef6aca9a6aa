"""Diffusion models and flow matching: a network learns to remove noise, and samples start from noise alone.

Batches are `{"inputs": [B, ...]}`, with "targets" int `[B]` for a class-conditional model. Schedules, prediction
targets and the sampler are in `noise_schedule`; the gradient step is that of every network (`tasks.network_learner`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax.augment import chain
from foldax.errors import ConfigError, ExperimentError, check_positive
from foldax.learner import Evaluation, Key, Learner, Model, Sampler, as_evaluation
from foldax.learners import losses, tasks
from foldax.learners.generative import noise_schedule as schedules
from foldax.learners.generative.noise_schedule import NoiseSchedule, PredictionType
from foldax.learners.gradients import TrainState
from foldax.learners.tasks import Batch, NetworkOptions, Task
from foldax.models.adapters.checks import check_model


class Denoiser(Model, Protocol):
    """A network `(x [B, ...], times [B] from 0 to 1, labels int [B], train=...) -> [B, ...]`.

    Times and labels are passed by keyword, so their names are binding. `num_classes` is None for a network without
    labels; otherwise the label `num_classes` means "no class".
    """

    num_classes: int | None


class SamplerSettings(NamedTuple):
    """Settings of the DDIM sampler.

    Attributes:
      num_inference_steps: number of steps, at most that of the noise schedule.
      eta: 0 is deterministic (DDIM: Song et al., 2021), 1 adds all of the posterior's noise (DDPM); may be traced.
      clip_sample_range: largest absolute value of the predicted data at every step; the default of 1 is right only for
        data that `preprocess` scales to [-1, 1]. None: no clipping.
      guidance_scale: classifier-free guidance (Ho & Salimans, 2021): 1 is the conditional model, more is more typical
        of the class and less diverse; may be traced. None: no guidance, one forward pass per step.

    >>> SamplerSettings(25, guidance_scale=1.5).eta
    0.0
    """

    num_inference_steps: int = 50
    eta: chex.Numeric = 0.0
    clip_sample_range: float | None = 1.0
    guidance_scale: chex.Numeric | None = None


class DenoisingTask(NamedTuple):
    """Everything that defines the regression problem of a denoising network.

    Attributes:
      model: network of noisy data, times and labels.
      noise_schedule: how data turn into noise.
      prediction_type: target of the network, see `noise_schedule.prediction_target`.
      clean_data: `batch -> x_0`, preprocessed inputs `[B, ...]`.
    """

    model: Denoiser
    noise_schedule: NoiseSchedule
    prediction_type: PredictionType
    clean_data: Callable[[Batch], jax.Array]

    @property
    def conditional(self) -> bool:
        """Whether the network takes class labels."""
        return self.model.num_classes is not None


def make_noisy_batch(
    task: DenoisingTask, batch: Batch, times: jax.Array, key: jax.Array, drop_label: jax.Array | None = None
) -> Batch:
    """Adds to a batch the network's inputs and its regression target.

    Args:
      task: model, noise schedule and prediction type.
      batch: "inputs" `[B, ...]`, and "targets" int `[B]` for a conditional model.
      times: int `[B]`, 1 to T.
      key: random key of the noise.
      drop_label: bool `[B]`, where the label is replaced by the null label; None: nowhere.

    Returns:
      The batch with "noisy" `[B, ...]`, "times" `[B]`, "prediction_target" `[B, ...]` and, for a conditional model,
      "labels" int `[B]`.

    Raises:
      ExperimentError: the model is conditional and "targets" are no class labels.
    """
    x = task.clean_data(batch)
    noise = jax.random.normal(key, x.shape)
    noisy = schedules.add_noise(task.noise_schedule, x, noise, times)
    target = schedules.prediction_target(task.noise_schedule, task.prediction_type, x, noise, times)
    batch = {**batch, "noisy": noisy, "times": times, "prediction_target": target}
    null_label = task.model.num_classes
    if null_label is None:
        return batch
    labels = _class_labels("targets of a conditional model", batch["targets"]).astype(jnp.int32)
    return {**batch, "labels": labels if drop_label is None else jnp.where(drop_label, null_label, labels)}


def _regression_task(task: DenoisingTask, shape: tuple[int, ...]) -> Task:
    """Mean squared error between the network's output and the prediction target (Ho et al., equation 14)."""

    def prepare(batch: Batch) -> Batch:
        if batch["inputs"].shape[1:] != shape:
            raise ExperimentError(f"inputs must be [B, ...] of shape {shape}, got {list(batch['inputs'].shape)}")
        # Only `init` passes a batch without noise, and looks only at its shapes.
        times = jnp.ones(len(batch["inputs"]), int)
        return batch if "noisy" in batch else make_noisy_batch(task, batch, times, jax.random.key(0))

    def train_metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": losses.squared_error(losses.flatten(outputs), losses.flatten(batch["prediction_target"]))}

    def evaluate(outputs: jax.Array, batch: Batch) -> Evaluation:
        return Evaluation({**train_metrics(outputs, batch)}, {"prediction": outputs})

    fields = ("inputs", "targets") if task.conditional else ("inputs",)
    kwargs = functools.partial(_conditioning, task)
    return Task(fields, lambda batch: batch["noisy"], train_metrics, evaluate, prepare=prepare, model_kwargs=kwargs)


def _conditioning(task: DenoisingTask, batch: Batch) -> dict[str, jax.Array]:
    """Keyword arguments of the network: times from 0 to 1 and, if it is conditional, labels."""
    times = batch["times"].astype(jnp.float32) * (1.0 / task.noise_schedule.steps)
    return {"times": times, "labels": batch["labels"]} if task.conditional else {"times": times}


def _class_labels(name: str, labels: jax.Array) -> jax.Array:
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ExperimentError(f"{name}: labels must be int [B], got {labels.dtype}{list(labels.shape)}")
    return labels


def diffusion(
    model: Denoiser,
    optimizer: optax.GradientTransformation,
    *,
    shape: Sequence[int],
    noise_schedule: NoiseSchedule | None = None,
    prediction_type: PredictionType = "v",
    sampler: SamplerSettings = SamplerSettings(),
    class_dropout_prob: chex.Numeric = 0.1,
    samples_per_example: int = 0,
    num_levels: int | None = None,
    num_evaluation_times: int = 16,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    postprocess: Callable[[jax.Array], jax.Array] = lambda x: x,
    **options: Unpack[NetworkOptions],
) -> Learner:
    """Learner of a diffusion model (DDPM: Ho et al., 2020; improved: Nichol & Dhariwal, 2021).

    With `noise_schedule=noise_schedule.flow()` and `prediction_type="flow"` it is flow matching (Lipman et al., 2023).

    An update takes four steps: `augment`, add noise to the batch, prepare the batch, gradient step. `update` reports
    "loss", the mean squared error of the prediction at a uniformly random time, and "gradient_norm". `evaluate` reports
    the metrics "loss" `[B]` and, with `num_levels`, "elbo" (nats) and "bits_per_dimension"; its outputs are "targets",
    where the batch has them, and, with `samples_per_example`, "samples" `[B, S, ...]` of each example's class.
    `predict` takes labels int `[B]` (an unconditional model uses only their count), or a mapping {"inputs": labels,
    "noise": initial x_T `[B, ...]`}, and returns samples `[B, ...]`.

    Args:
      model: denoising network, such as `models.UNet` or `models.DiT`.
      optimizer: Optax optimizer; its rates may be traced.
      shape: shape of one input.
      noise_schedule: how data turn into noise; None: `noise_schedule.cosine()`.
      prediction_type: target of the network: "noise", "x0", "v" or "flow"; see `noise_schedule.prediction_target`.
      sampler: settings of the sampler in `evaluate` and `predict`.
      class_dropout_prob: probability from 0 to 1 that training replaces a label by the null label, which
        classifier-free guidance needs; may be traced.
      samples_per_example: S, number of samples per example in evaluation.
      num_levels: if inputs are integers from 0 to `num_levels` - 1, evaluation bounds their likelihood (Kingma et al.,
        2021).
      num_evaluation_times: number of stratified times at which each example's loss is averaged.
      preprocess: pure elementwise function of the inputs, to about [-1, 1]; None: conversion to float32.
      postprocess: inverse of `preprocess`, applied to samples.
      **options: those of `tasks.NetworkOptions`: augment, frozen, l1, l2, ema_decay, microbatches.

    Returns:
      The learner; its state is a `gradients.TrainState`.

    Raises:
      ConfigError: guidance without classes; a number or the prediction type is out of range.
      ExperimentError: while tracing, inputs do not have the announced shape, or labels of a conditional model are not
        int `[B]` (`augment.mixup` makes them soft).

    >>> from foldax import models
    >>> learner = diffusion(models.DiT(width=8, depth=1, num_heads=2), optax.adam(1e-3), shape=(4, 4, 1))
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), {"inputs": jnp.zeros((8, 4, 4, 1))})
    >>> jax.eval_shape(learner.predict, state, jnp.zeros(5, int), jax.random.key(0)).shape
    (5, 4, 4, 1)
    """
    check_model(model)
    shape, schedule = tuple(shape), noise_schedule or schedules.cosine()
    task = DenoisingTask(model, schedule, prediction_type, tasks.input_function(model, preprocess))
    _check_settings(task, sampler, samples_per_example, num_levels)
    check_positive(num_evaluation_times=num_evaluation_times)

    def add_training_noise(key: jax.Array, batch: Batch) -> Batch:
        # Algorithm 1 of Ho et al.: t ~ Uniform(1, ..., T) and epsilon ~ N(0, I); labels are dropped for guidance.
        time_key, noise_key, label_key = jax.random.split(key, 3)
        size = len(batch["inputs"])
        drop_label = jax.random.bernoulli(label_key, class_dropout_prob, (size,))
        times = jax.random.randint(time_key, (size,), 1, schedule.steps + 1)
        return make_noisy_batch(task, batch, times, noise_key, drop_label)

    # An update: 1. `augment`, 2. `add_training_noise`, 3. `prepare` of the task, 4. the gradient step of all networks.
    # The noise is added as the last augmentation, because only an augmentation gets a random key. Alone
    # it takes that key as it is, whereas `chain` would fold an index into it.
    augment = options.get("augment")
    options["augment"] = add_training_noise if augment is None else chain(augment, add_training_noise)
    learner = tasks.network_learner(model, optimizer, _regression_task(task, shape), **options)

    def initial_noise(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        noise_key, sampler_key = jax.random.split(key)
        return jax.random.normal(noise_key, (count, *shape)), sampler_key

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Evaluation:
        loss_key, sample_key = jax.random.split(key)
        batch, size = {name: jnp.asarray(leaf) for name, leaf in batch.items()}, len(batch["inputs"])

        def denoising_errors(index: jax.Array) -> tuple[Any, jax.Array]:
            time_key = jax.random.fold_in(loss_key, index)
            # Stratified: a uniform time from the index-th of equal intervals.
            fraction = (index.astype(jnp.float32) + jax.random.uniform(time_key, (size,))) * (1 / num_evaluation_times)
            times = jnp.clip(jnp.int32(fraction * schedule.steps) + 1, 1, schedule.steps)
            noisy_batch = make_noisy_batch(task, batch, times, jax.random.fold_in(time_key, 1))
            metrics, outputs = as_evaluation(learner.evaluate(state, noisy_batch, time_key))
            noisy, prediction = noisy_batch["noisy"], outputs["prediction"]
            x0, _ = schedules.predict_x0_and_noise(schedule, prediction_type, noisy, prediction, times)
            squared_error = jnp.square(losses.flatten(x0 - task.clean_data(batch))).sum(axis=-1)
            return metrics["loss"], _diffusion_weights(schedule, num_levels, times) * squared_error

        # 1. Loss
        loss, diffusion_terms = jax.lax.map(denoising_errors, jnp.arange(num_evaluation_times))
        metrics = {"loss": loss.mean(axis=0)}
        outputs = tasks.target_outputs(batch)
        # 2. Evidence lower bound: -T E_t[diffusion term] - prior and reconstruction terms (Kingma et al., equation 11)
        if num_levels is not None:
            key = jax.random.fold_in(loss_key, num_evaluation_times)
            end_terms = _prior_and_reconstruction_terms(task, batch, num_levels, key)
            metrics["elbo"] = -schedule.steps * diffusion_terms.mean(axis=0) - end_terms
            metrics["bits_per_dimension"] = -metrics["elbo"] * (1 / (math.prod(shape) * math.log(2)))
        # 3. Samples
        if samples_per_example:
            labels = batch["targets"] if task.conditional else jnp.zeros(size, jnp.int32)
            noise, sampler_key = initial_noise(sample_key, size * samples_per_example)
            labels = jnp.repeat(labels, samples_per_example)
            samples = postprocess(sample_images(task, state, labels, sampler_key, noise, sampler))
            outputs["samples"] = samples.reshape(size, samples_per_example, *shape)
        return Evaluation(metrics, outputs)

    def predict(state: TrainState, inputs: jax.Array | Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        labels = _class_labels("predict", batch["inputs"]) if task.conditional else jnp.asarray(batch["inputs"])
        noise, sampler_key = initial_noise(key, labels.shape[0])
        noise = jnp.asarray(batch.get("noise", noise))
        return postprocess(sample_images(task, state, labels, sampler_key, noise, sampler))

    draws = Sampler(lambda state, labels, key, shape: predict(state, labels, key), num_classes=model.num_classes)
    inputs = tasks.label_inputs(model.num_classes)
    return Learner(learner.init, learner.update, evaluate, predict, predict_inputs=inputs, sampler=draws)


def sample_images(
    task: DenoisingTask, state: TrainState, labels: jax.Array, key: Key, noise: jax.Array, sampler: SamplerSettings
) -> jax.Array:
    """Samples from the model with the averaged parameters, in units of `preprocess`.

    Args:
      task: model, noise schedule and prediction type.
      state: state of the learner.
      labels: int `[B]`; an unconditional model uses only their count.
      key: random key of the noise added on the way.
      noise: initial standard normal x_T, `[B, ...]`.
      sampler: settings of the sampler.

    Returns:
      Samples, `[B, ...]`.
    """
    sampler_key, network_key = jax.random.split(key)
    variables = state.evaluation_variables
    null_labels = jnp.full(labels.shape[0], task.model.num_classes or 0)
    options = sampler._asdict()
    guidance_scale = options.pop("guidance_scale")

    def predict(noisy: jax.Array, times: jax.Array, labels: jax.Array) -> jax.Array:
        conditioning = _conditioning(task, {"times": times, "labels": labels})
        return task.model.apply(variables, noisy, train=False, rngs={"dropout": network_key}, **conditioning)

    def denoise(noisy: jax.Array, times: jax.Array) -> jax.Array:
        conditional = predict(noisy, times, labels)
        if guidance_scale is None:
            return conditional
        # Classifier-free guidance (Ho & Salimans, equation 6, with a scale of 1 + w)
        unconditional = predict(noisy, times, null_labels)
        return unconditional + guidance_scale * (conditional - unconditional)

    return schedules.sample_ddim(denoise, task.noise_schedule, task.prediction_type, sampler_key, noise, **options)


def _first_bounded_time(schedule: NoiseSchedule, num_levels: int) -> int:
    """First time at which sigma / alpha is a quarter of the distance between two levels, scaled to [-1, 1].

    At this noise level the nearest level is almost always the true one. Earlier terms would only penalise the network
    for not rounding.
    """
    return int(np.argmax(schedule.sigma[1:] * (num_levels - 1) >= schedule.alpha[1:] / 2)) + 1


def _diffusion_weights(schedule: NoiseSchedule, num_levels: int | None, times: jax.Array) -> jax.Array:
    """Weights (SNR(t - 1) - SNR(t)) / 2 of squared errors in the bound (Kingma et al., 2021, equation 14).

    Zero for t <= the first bounded time, which the reconstruction term covers.
    """
    first = 1 if num_levels is None else _first_bounded_time(schedule, num_levels)
    snr = np.square(schedule.alpha[first:].astype(np.float64) / schedule.sigma[first:])
    weights = np.concatenate([np.zeros(first + 1), (snr[:-1] - snr[1:]) / 2]).astype(np.float32)
    return jnp.asarray(weights)[times]


def _prior_and_reconstruction_terms(task: DenoisingTask, batch: Batch, num_levels: int, key: jax.Array) -> jax.Array:
    """Sum `[B]`, in nats, of KL(q(x_T | x_0) | N(0, I)) and -log p(levels | x at the first bounded time)."""
    schedule, x = task.noise_schedule, task.clean_data(batch)

    # Reconstruction: every level decoded independently, with a probability proportional to q(x_t | level)
    first = _first_bounded_time(schedule, num_levels)
    noisy = schedules.add_noise(schedule, x, jax.random.normal(key, x.shape), jnp.full(len(x), first))
    values = task.clean_data({"inputs": jnp.arange(num_levels)}).reshape(*[1] * x.ndim, num_levels)
    distances = (noisy[..., None] - schedule.alpha[first] * values) * (1 / schedule.sigma[first])
    one_hot = jax.nn.one_hot(batch["inputs"].astype(jnp.int32), num_levels)
    log_prob = losses.flatten(jnp.sum(one_hot * jax.nn.log_softmax(-0.5 * jnp.square(distances)), axis=-1)).sum(axis=-1)

    # Prior: x_T ~ N(alpha_T x_0, sigma_T^2)
    alpha, variance = float(schedule.alpha[-1]), float(schedule.sigma[-1]) ** 2
    kl = 0.5 * (jnp.square(alpha * losses.flatten(x)) + variance - 1 - math.log(variance)).sum(axis=-1)
    return kl - log_prob


def _check_settings(task: DenoisingTask, sampler: SamplerSettings, samples: int, num_levels: int | None) -> None:
    schedules.check_prediction_type(task.noise_schedule, task.prediction_type)
    if sampler.guidance_scale is not None and not task.conditional:
        raise ConfigError("guidance_scale: the model has no num_classes, so there is no class to guide towards")
    schedules.check_num_inference_steps(task.noise_schedule, sampler.num_inference_steps)
    for name, value, minimum in (("samples_per_example", samples, 0), ("num_levels", num_levels, 2)):
        if value is not None and value < minimum:
            raise ConfigError(f"{name}: {value} must be {minimum} or more")
