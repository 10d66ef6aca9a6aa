"""Variational autoencoders (Kingma & Welling, 2014), with a bound on the likelihood in place of an error.

Batches are `{"inputs": [B, ...]}`; a conditional one also needs integer "targets" `[B]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners import tasks
from foldax.learners.generative.likelihoods import Likelihood
from foldax.learners.tasks import Batch, Options, Task, Values


class Bound(NamedTuple):
    """What a `VAE` says of inputs.

    Attributes:
      log_likelihood: `[B]`, of the inputs given sampled codes, in nats.
      divergence: `[B, D]`, of the codes' posterior from their prior (Kullback & Leibler), in nats.
      codes: `[B, D]`, the posterior's means.
      importance: `[B]`, log of the inputs' probability as these sampled codes alone estimate it.
    """

    log_likelihood: jax.Array
    divergence: jax.Array
    codes: jax.Array
    importance: jax.Array


class VAE(nn.Module):
    """An encoder and a decoder whose codes are normal: `[B, ...]` to `Bound`; the prior is a standard normal.

    Attributes:
      encoder: any network `[B, ...]` to `[B, 2 * D]`, means and log deviations.
      decoder: any network of codes `[B, D]` to as many outputs as the likelihood wants for all numbers of an input, or
        as many as `neighbours` wants for each of them.
      likelihood: of `foldax.learners.generative.likelihoods`.
      num_classes: where both are told the class; inputs are flattened then. None: not told.
      neighbours: a network of what the decoder says and of the inputs `[B, N]`, to the likelihood's outputs
        `[B, N, width]`, each of which depends on inputs before its own alone (see `models.Neighbours`): codes need not
        tell what a pixel's neighbours tell already (Gulrajani et al., 2017, PixelVAE). None: pixels are independent,
        given the codes.
      preprocess: pure function of the inputs that the encoder is given, such as `info.standardize`.
    """

    encoder: Any
    decoder: Any
    likelihood: Likelihood
    num_classes: int | None = None
    neighbours: Any = None
    preprocess: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, x: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> Bound:
        """Encodes, draws codes (from the stream "dropout") and decodes."""
        mean, log_std = self.encode(x, labels, train=train)
        noise = jax.random.normal(self.make_rng("dropout"), mean.shape)
        codes = mean + jnp.exp(log_std) * noise
        flat = x.reshape(x.shape[0], -1)
        outputs = self.outputs(self.decode(codes, labels, train=train), flat)
        likelihood = self.likelihood.log_probability(outputs, flat)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std
        ratio = 0.5 * (jnp.square(noise) - jnp.square(codes)) + log_std  # prior over posterior, at the codes
        importance = likelihood + ratio.sum(axis=-1)
        return Bound(likelihood, divergence, mean, importance)

    def encode(self, x: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> Any:
        """Returns the posterior's means and log deviations, both `[B, D]`."""
        x = x if self.preprocess is None else self.preprocess(x)
        if self.num_classes is not None:
            x = jnp.concatenate([x.reshape(x.shape[0], -1), self._shares(labels)], axis=-1)
        outputs = self.encoder(x, train=train)
        if outputs.shape[-1] % 2:
            raise ConfigError(f"VAE: the encoder must give means and log deviations, got {outputs.shape[-1]} numbers")
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, -7.0, 7.0)

    def decode(self, codes: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Returns what the decoder says `[B, ...]` of codes `[B, D]`, of which `outputs` makes the likelihood's."""
        if self.num_classes is not None:
            codes = jnp.concatenate([codes, self._shares(labels)], axis=-1)
        return self.decoder(codes, train=train)

    def outputs(self, decoded: jax.Array, inputs: jax.Array) -> jax.Array:
        """Returns the likelihood's outputs `[B, N, width]` of what the decoder says, and of the inputs `[B, N]`."""
        if self.neighbours is not None:
            return self.neighbours(decoded, inputs)
        return decoded.reshape(decoded.shape[0], -1, self.likelihood.width)

    def _shares(self, labels: jax.Array | None) -> jax.Array:
        if labels is None or self.num_classes is None:
            raise ConfigError("VAE: a conditional one (num_classes) needs labels")
        return jax.nn.one_hot(labels, self.num_classes)


def decoded_images(
    model: VAE,
    variables: Any,
    codes: jax.Array,
    shape: tuple[int, ...],
    labels: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns inputs `[B, *shape]` of codes: drawn with a key, else their means, of each number given those before it.

    Args:
      model: a `VAE`.
      variables: its parameters, `{"params": ...}`.
      codes: `[B, D]`.
      shape: of one input.
      labels: int `[B]`, classes where the model is conditional.
      key: randomness of the draws; None: no draws.
    """
    decoded = model.apply(variables, codes, labels, method=VAE.decode)
    count = math.prod(shape)

    def chosen(flat: jax.Array, key: jax.Array | None) -> jax.Array:
        outputs = model.apply(variables, decoded, flat, method=VAE.outputs)
        return model.likelihood.mean(outputs) if key is None else model.likelihood.sample(key, outputs)

    def add(flat: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        own = None if key is None else jax.random.fold_in(key, place)
        here = (jnp.arange(count) == place)[None, :]
        return jnp.where(here, chosen(flat, own), flat), None

    flat = jnp.zeros((codes.shape[0], count))
    flat = chosen(flat, key) if model.neighbours is None else jax.lax.scan(add, flat, jnp.arange(count))[0]
    return flat.reshape(-1, *shape)


def vae(
    model: VAE,
    optimizer: optax.GradientTransformation,
    *,
    beta: Any = 1.0,
    free_nats: Any = 0.0,
    importance_samples: int = 0,
    samples: int = 0,
    **options: Unpack[Options],
) -> Learner:
    """Returns a learner of the evidence lower bound (ELBO).

    `update` and `evaluate` report "loss", "reconstruction" (minus the log likelihood given the codes) and "divergence"
    in nats for an input, "elbo" (minus their sum) and "bits_per_dimension" (the ELBO's, of each number of an input).
    `evaluate` also gives "codes" `[B, D]`, "divergences" `[B, D]`, "targets" where there are some and, with
    `importance_samples`, "importance_bound" in nats and "importance_bits_per_dimension"; with `samples`, "samples"
    `[B, samples, ...]`, drawn from codes of the prior, for each example's class by a conditional model. `predict` gives
    the inputs' means given the means of their codes, `[B, ...]`.

    Args:
      model: its inputs become float32, in the units of its likelihood.
      optimizer: of optax; its rates may be traced.
      beta: weight of the divergence in the loss (Higgins et al., 2017); may be traced.
      free_nats: least divergence of each code, a mean over the batch, that the loss sees (Kingma et al., 2016).
      importance_samples: k of the importance-weighted bound (Burda et al., 2016) in evaluation; 0: none.
      samples: inputs to draw for each example in evaluation.
      **options: those of `network.Options`: augment, frozen, l1, l2, ema_decay, accumulate.

    Raises:
      ConfigError: `importance_samples` or `samples` is negative; while tracing, a conditional model has no targets.
    """
    if min(importance_samples, samples) < 0:
        raise ConfigError(f"importance_samples and samples: {importance_samples}, {samples} must be 0 or more")
    conditional = model.num_classes is not None

    def labels(batch: Batch) -> dict[str, Any]:
        return {"labels": batch["targets"]} if conditional else {}

    def training(bound: Bound, batch: Batch) -> Values:
        reconstruction, divergence = -bound.log_likelihood, bound.divergence.sum(axis=-1)
        seen = jnp.maximum(bound.divergence.mean(axis=0), free_nats).sum() - bound.divergence.mean(axis=0).sum()
        elbo = -reconstruction - divergence
        values = {"loss": reconstruction + beta * (divergence + seen), "reconstruction": reconstruction}
        return values | {"divergence": divergence, "elbo": elbo, "bits_per_dimension": _bits(elbo, batch)}

    def evaluation(bound: Bound, batch: Batch) -> Values:
        values = training(bound, batch)
        values["loss"] = values["reconstruction"] + beta * values["divergence"]  # of each example alone
        values |= {"codes": bound.codes, "divergences": bound.divergence}
        return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})

    fields = ("inputs", "targets") if conditional else ("inputs",)
    task = Task(fields, tasks.inputs_of(model, None), training, evaluation, extras=labels)
    inner = tasks.learner(model, optimizer, task, **options)

    def variables(state: Any) -> Any:
        return {"params": state.averaged, **state.model_state}

    def evaluate(state: Any, batch: Any, key: jax.Array) -> Values:
        first, own = jax.random.split(key)
        values = inner.evaluate(state, batch, first)
        if importance_samples:

            def estimate(step: jax.Array) -> jax.Array:
                streams = {"dropout": jax.random.fold_in(own, step)}
                return model.apply(variables(state), task.inputs(batch), **labels(batch), rngs=streams).importance

            bound = _log_mean(estimate, len(batch["inputs"]), importance_samples)
            values |= {"importance_bound": bound, "importance_bits_per_dimension": _bits(bound, batch)}
        if samples:

            def draw(key: jax.Array) -> jax.Array:
                prior, pixels = jax.random.split(key)
                codes = jax.random.normal(prior, values["codes"].shape)
                return decoded_images(model, variables(state), codes, shape, **labels(batch), key=pixels)

            shape = batch["inputs"].shape[1:]
            keys = jax.random.split(jax.random.fold_in(own, importance_samples), samples)
            values["samples"] = jnp.moveaxis(jax.lax.map(draw, keys), 0, 1)
        return values

    def predict(state: Any, inputs: Any, key: jax.Array) -> jax.Array:
        batch = dict(inputs) if isinstance(inputs, dict) else {"inputs": jnp.asarray(inputs)}
        x = task.inputs(batch)
        codes, _ = model.apply(variables(state), x, **labels(batch), method=VAE.encode)
        return decoded_images(model, variables(state), codes, x.shape[1:], **labels(batch))

    return Learner(inner.init, inner.update, evaluate, predict)


def _log_mean(estimate: Callable[[jax.Array], jax.Array], size: int, count: int) -> jax.Array:
    """Returns the log `[B]` of the mean of `count` numbers, whose logs `estimate(0)`, `estimate(1)`, ... gives."""

    def add(total: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        return jnp.logaddexp(total, estimate(step)), None

    return jax.lax.scan(add, jnp.full(size, -jnp.inf), jnp.arange(count))[0] - math.log(count)


def _bits(nats: jax.Array, batch: Batch) -> jax.Array:
    return -nats / (math.prod(batch["inputs"].shape[1:]) * math.log(2))
