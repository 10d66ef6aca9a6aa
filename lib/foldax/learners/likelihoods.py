"""Likelihoods: how probable an input is, given what a decoder says of it; one value per example `[B]`, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError


class Likelihood(NamedTuple):
    """A distribution of each number of an input, all independent.

    Attributes:
      width: how many outputs a decoder gives for each number of an input.
      log_probability: `(outputs [B, N, width], inputs [B, N]) -> [B]`, summed over the N numbers.
      mean: `outputs [B, N, width] -> [B, N]`.
      sample: `(key, outputs [B, N, width]) -> [B, N]`.
    """

    width: int
    log_probability: Callable[[jax.Array, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    sample: Callable[[jax.Array, jax.Array], jax.Array]


def bernoulli() -> Likelihood:
    """Inputs are 0 or 1, or shares between them; outputs are logits."""

    def log_probability(outputs: jax.Array, inputs: jax.Array) -> jax.Array:
        logits = outputs[..., 0]
        return (inputs * jax.nn.log_sigmoid(logits) + (1 - inputs) * jax.nn.log_sigmoid(-logits)).sum(axis=-1)

    def mean(outputs: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(outputs[..., 0])

    def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, mean(outputs)).astype(jnp.float32)

    return Likelihood(1, log_probability, mean, sample)


def gaussian(std: float | None = None) -> Likelihood:
    """Inputs are numbers; outputs are means, and with no `std`, which is above 0, log deviations too."""
    if std is not None and not std > 0:
        raise ConfigError(f"gaussian: std {std} must be above 0, or None to learn it")

    def log_std(outputs: jax.Array) -> jax.Array:
        return outputs[..., 1] if std is None else jnp.full(outputs.shape[:-1], math.log(std))

    def log_probability(outputs: jax.Array, inputs: jax.Array) -> jax.Array:
        scale = log_std(outputs)
        distance = (inputs - outputs[..., 0]) * jnp.exp(-scale)
        return -(0.5 * jnp.square(distance) + scale + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
        means = outputs[..., 0]
        return means + jnp.exp(log_std(outputs)) * jax.random.normal(key, means.shape)

    return Likelihood(1 if std is not None else 2, log_probability, lambda outputs: outputs[..., 0], sample)


def categorical(levels: int) -> Likelihood:
    """Inputs are grey levels 0 to `levels` - 1; outputs are a logit for each."""
    if levels < 2:
        raise ConfigError(f"categorical: levels {levels} must be at least 2")

    def log_probability(outputs: jax.Array, inputs: jax.Array) -> jax.Array:
        chosen = jax.nn.one_hot(inputs.astype(jnp.int32), levels)
        return (jax.nn.log_softmax(outputs) * chosen).sum(axis=(-2, -1))

    def mean(outputs: jax.Array) -> jax.Array:
        return jax.nn.softmax(outputs) @ jnp.arange(levels, dtype=jnp.float32)

    def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
        return jax.random.categorical(key, outputs).astype(jnp.float32)

    return Likelihood(levels, log_probability, mean, sample)
