"""Diffusion and flow matching: a network learns to take noise away, and then makes data of noise alone.

Batches are `{"inputs": [B, ...]}`, with "targets" int `[B]` for a model with classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax.augment import chain
from foldax.errors import ConfigError, ExperimentError
from foldax.learner import Learner
from foldax.learners import losses, tasks
from foldax.learners.generative import noise_schedule
from foldax.learners.generative.noise_schedule import Prediction, Process
from foldax.learners.tasks import Batch, Options, Task, Values


class Sampler(NamedTuple):
    """How data are made of noise.

    Attributes:
      steps: at most as many as the process has.
      eta: 0 is deterministic (DDIM: Song et al., 2021), 1 adds all of the posterior's noise (DDPM); may be traced.
      clip: largest absolute value of preprocessed data, to which every step keeps; None: none.
      guidance: weight of the class (Ho & Salimans, 2021): 1 is the conditional model, more is more typical of the class
        and less diverse; None: 1, without the second pass that other weights take; may be traced.
    """

    steps: int = 50
    eta: Any = 0.0
    clip: float | None = 1.0
    guidance: Any = None


class Denoising(NamedTuple):
    """What is learned: which network says what of which process."""

    model: Any
    process: Process
    prediction: Prediction
    prepared: Callable[[Batch], jax.Array]

    @property
    def conditional(self) -> bool:
        """Whether the network is told classes."""
        return self.model.num_classes is not None


def diffusion(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    shape: Sequence[int],
    process: Process | None = None,
    prediction: Prediction = "v",
    sampler: Sampler = Sampler(),
    unconditional_rate: Any = 0.1,
    samples: int = 0,
    levels: int | None = None,
    evaluation_times: int = 16,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    finish: Callable[[jax.Array], jax.Array] = lambda x: x,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of denoising (DDPM: Ho et al., 2020); of flow matching (Lipman et al., 2023) with
    `process=processes.flow()` and prediction "velocity".

    `update` reports "loss", the mean squared error of the prediction at a random time, and "gradient_norm". `evaluate`
    reports "loss" `[B]`, with `levels` also "elbo" in nats and "bits_per_dimension" (a bound by all of the process's
    steps: Kingma et al., 2021), and with `samples` "samples" `[B, samples, ...]` of each example's class; "targets",
    where there are some. `predict` takes classes int `[B]`, of which only the number counts if the model has none, or
    a mapping {"inputs": classes, "noise": `[B, ...]` to begin with}, and gives samples `[B, ...]`.

    Args:
      model: `(x, times, labels, train=...)` with `num_classes`, such as `models.UNet` or `models.DiT`.
      optimizer: of optax; its rates may be traced.
      shape: of one input.
      process: how data turn into noise; `processes.cosine()` if None.
      prediction: what the network says: "epsilon", "v", "velocity" or "sample".
      sampler: how `evaluate` and `predict` sample.
      unconditional_rate: probability in training that an example's class is not told; may be traced.
      samples: how many evaluation draws for each example.
      levels: inputs are integers from 0 to `levels` - 1, whose likelihood is bounded.
      evaluation_times: at how many times each example is evaluated, spread evenly.
      preprocess: pure function of the inputs, elementwise, to about [-1, 1]; by default they become float32.
      finish: its inverse, for samples.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ConfigError: guidance of a model without classes; a number or prediction is out of range.
      ExperimentError: while tracing, inputs have another shape.
    """
    shape, process = tuple(shape), noise_schedule.cosine() if process is None else process
    task_of = Denoising(model, process, prediction, tasks.inputs_of(model, preprocess))
    _check(task_of, sampler, samples, levels, evaluation_times)

    def noised(key: jax.Array, batch: Batch) -> Batch:
        of_times, of_noise, of_labels = jax.random.split(key, 3)
        size = len(batch["inputs"])
        hidden = jax.random.bernoulli(of_labels, unconditional_rate, (size,))
        return at_times(task_of, batch, jax.random.randint(of_times, (size,), 1, process.steps + 1), of_noise, hidden)

    augment = options.get("augment")
    options["augment"] = noised if augment is None else chain(augment, noised)
    inner = tasks.learner(model, optimizer, _task(task_of, shape), **options)

    def evaluate(state: Any, batch: Any, key: jax.Array) -> Values:
        of_loss, of_samples = jax.random.split(key)
        batch = {name: jnp.asarray(leaf) for name, leaf in batch.items()}

        def once(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jax.random.fold_in(of_loss, index)
            share = (index + jax.random.uniform(own, (len(batch["inputs"]),))) * (1 / evaluation_times)
            times = jnp.clip(jnp.int32(share * process.steps) + 1, 1, process.steps)
            given = at_times(task_of, batch, times, jax.random.fold_in(own, 1))
            values = inner.evaluate(state, given, own)
            x, _ = noise_schedule.separated(process, prediction, given["noisy"], values["outputs"], times)
            step = _step_bound(process, levels, times) * jnp.square(_flat(x - task_of.prepared(batch))).sum(axis=-1)
            return values["loss"], step

        loss, steps = jax.lax.map(once, jnp.arange(evaluation_times))
        values = {"loss": loss.mean(axis=0)}
        if levels is not None:
            ends = _ends_bound(task_of, batch, levels, jax.random.fold_in(of_loss, evaluation_times))
            values["elbo"] = -process.steps * steps.mean(axis=0) - ends
            values["bits_per_dimension"] = -values["elbo"] * (1 / (math.prod(shape) * math.log(2)))
        if samples:
            labels = batch["targets"] if task_of.conditional else jnp.zeros(len(batch["inputs"]), jnp.int32)
            start, of_steps = standard_noise(of_samples, len(labels) * samples)
            drawn = finish(draw(task_of, state, jnp.repeat(labels, samples), of_steps, start, sampler))
            values["samples"] = drawn.reshape(len(labels), samples, *shape)
        return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})

    def predict(state: Any, inputs: Any, key: jax.Array) -> jax.Array:
        given = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        labels = jnp.asarray(given["inputs"])
        if task_of.conditional and (labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer)):
            raise ExperimentError(f"samples are of classes, int [B]; got {labels.dtype}{list(labels.shape)}")
        start, of_steps = standard_noise(key, len(labels))
        return finish(draw(task_of, state, labels, of_steps, jnp.asarray(given.get("noise", start)), sampler))

    def standard_noise(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        of_start, of_steps = jax.random.split(key)
        return jax.random.normal(of_start, (count, *shape)), of_steps

    return Learner(inner.init, inner.update, evaluate, predict)


def at_times(task: Denoising, batch: Batch, times: jax.Array, key: jax.Array, hidden: jax.Array | None = None) -> Batch:
    """Returns the batch with "noisy" inputs at these times int `[B]`, what is "wanted" of them, and "labels".

    The classes of those that are `hidden`, bool `[B]`, are not told.
    """
    x, told = task.prepared(batch), {}
    noise = jax.random.normal(key, x.shape)
    if task.conditional:
        labels = batch["targets"].astype(jnp.int32)
        told = {"labels": labels if hidden is None else jnp.where(hidden, task.model.num_classes, labels)}
    noisy = noise_schedule.perturbed(task.process, x, noise, times)
    wanted = noise_schedule.target(task.process, task.prediction, x, noise, times)
    return {**batch, "noisy": noisy, "times": times, "wanted": wanted, **told}


def draw(
    task: Denoising, state: Any, labels: jax.Array, key: jax.Array, noise: jax.Array, sampler: Sampler
) -> jax.Array:
    """Returns preprocessed samples `[B, ...]` of classes int `[B]`, which a model without classes does not see."""
    of_steps, of_network = jax.random.split(key)
    variables = {"params": state.averaged, **state.model_state}
    nobody = jnp.full(len(labels), task.model.num_classes or 0)

    def outputs(noisy: jax.Array, times: jax.Array, labels: jax.Array) -> jax.Array:
        told = _told(task, {"times": times, "labels": labels})
        return task.model.apply(variables, noisy, train=False, rngs={"dropout": of_network}, **told)

    def denoise(noisy: jax.Array, times: jax.Array) -> jax.Array:
        conditional = outputs(noisy, times, labels)
        if sampler.guidance is None:
            return conditional
        free = outputs(noisy, times, nobody)
        return free + sampler.guidance * (conditional - free)

    how = dict(steps=sampler.steps, eta=sampler.eta, clip=sampler.clip)
    return noise_schedule.sample(denoise, task.process, task.prediction, of_steps, noise, **how)


def _task(task: Denoising, shape: tuple[int, ...]) -> Task:
    def prepare(batch: Batch) -> Batch:
        if batch["inputs"].shape[1:] != shape:
            raise ExperimentError(f"inputs must be [B, ...] of shape {shape}, got {list(batch['inputs'].shape)}")
        return (
            batch if "noisy" in batch else at_times(task, batch, jnp.ones(len(batch["inputs"]), int), jax.random.key(0))
        )

    def training(outputs: jax.Array, batch: Batch) -> Values:
        return {"loss": losses.squared_error(_flat(outputs), _flat(batch["wanted"]))}

    def evaluation(outputs: jax.Array, batch: Batch) -> Values:
        return {**training(outputs, batch), "outputs": outputs}

    def told(batch: Batch) -> dict[str, Any]:
        return _told(task, batch)

    fields = ("inputs", "targets") if task.conditional else ("inputs",)
    return Task(fields, lambda batch: batch["noisy"], training, evaluation, prepare=prepare, extras=told)


def _told(task: Denoising, batch: Batch) -> dict[str, Any]:
    told = {"labels": batch["labels"]} if task.conditional else {}
    return {"times": batch["times"] * (1.0 / task.process.steps), **told}


def _first(process: Process, levels: int) -> int:
    """Returns the first time at which the noise is a quarter of the distance of two levels (of -1 to 1).

    Levels read there are hardly ever wrong, and less noise would cost a network that does not know the levels more.
    """
    return int(np.argmax(process.noise[1:] * (levels - 1) >= process.signal[1:] / 2)) + 1


def _step_bound(process: Process, levels: int | None, times: jax.Array) -> jax.Array:
    """Returns what a squared error at times `[B]` costs in nats: half of how much the ratio of signal to noise falls.

    (Equation 14 of Kingma et al., 2021.) Nothing up to the time from which levels are read.
    """
    first = 1 if levels is None else _first(process, levels)
    ratio = np.square(process.signal[first:].astype(np.float64) / process.noise[first:])
    costs = np.concatenate([np.zeros(first + 1), (ratio[:-1] - ratio[1:]) / 2]).astype(np.float32)
    return jnp.asarray(costs)[times]


def _ends_bound(task: Denoising, batch: Batch, levels: int, key: jax.Array) -> jax.Array:
    """Returns the nats `[B]` of reading levels at the first time, and of what is left of the data at the last."""
    process, x = task.process, task.prepared(batch)
    first = _first(process, levels)
    times = jnp.full(len(x), first)
    noisy = noise_schedule.perturbed(process, x, jax.random.normal(key, x.shape), times)
    values = task.prepared({"inputs": jnp.arange(levels)}).reshape(*[1] * x.ndim, levels)
    distances = (noisy[..., None] - process.signal[first] * values) * (1 / process.noise[first])
    chosen = jax.nn.one_hot(batch["inputs"].astype(jnp.int32), levels)
    read = _flat(jnp.sum(chosen * jax.nn.log_softmax(-0.5 * jnp.square(distances)), axis=-1)).sum(axis=-1)
    signal, variance = float(process.signal[-1]), float(process.noise[-1]) ** 2
    left = 0.5 * (jnp.square(signal * _flat(x)) + variance - 1 - math.log(variance)).sum(axis=-1)
    return left - read


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _check(task: Denoising, sampler: Sampler, samples: int, levels: int | None, evaluation_times: int) -> None:
    noise_schedule.check(task.process, task.prediction)
    if sampler.guidance is not None and not task.conditional:
        raise ConfigError("guidance: the model has no num_classes, so there is no class to guide to")
    if not 1 <= sampler.steps <= task.process.steps:
        raise ConfigError(f"sampler: {sampler.steps} steps must be from 1 to the process's {task.process.steps}")
    for name, value, least in (
        ("samples", samples, 0),
        ("evaluation_times", evaluation_times, 1),
        ("levels", levels, 2),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name}: {value} must be {least} or more")
