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


def discretized_logistic(levels: int, mixture: int = 1) -> Likelihood:
    """Inputs are grey levels 0 to `levels` - 1, each the share of a density that lies nearest to it.

    The density is a mixture of logistic ones (Salimans et al., 2017, PixelCNN++): what lies beyond the first or the
    last level is theirs. Outputs are, for each of the `mixture`, a mean and a log scale, both in halves of the range
    (0 and 0: centre and half width), and with more than one of them logits.
    """
    if levels < 2 or mixture < 1:
        raise ConfigError(f"discretized_logistic: needs 2 or more levels and 1 or more parts, got {levels}, {mixture}")
    half = (levels - 1) / 2

    def parts(outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns means and inverse scales in levels, and log shares, each `[B, N, mixture]`."""
        means, log_scales, *logits = jnp.split(outputs, 2 if mixture == 1 else 3, axis=-1)
        inverse = jnp.exp(-jnp.clip(log_scales, -6.0, 6.0)) * (1 / half)
        shares = jax.nn.log_softmax(logits[0]) if logits else jnp.zeros_like(means)
        return half * (1 + means), inverse, shares

    def log_shares(outputs: jax.Array, inputs: jax.Array) -> jax.Array:
        """Returns the log probability `[B, N]` of each input."""
        means, inverse, shares = parts(outputs)
        distance = inputs[..., None] - means
        above, below = (distance + 0.5) * inverse, (distance - 0.5) * inverse
        # The difference of two sigmoids, as a product that keeps its precision where both are nearly equal.
        within = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-inverse))
        first, last = (inputs <= 0)[..., None], (inputs >= levels - 1)[..., None]
        within = jnp.where(first, jax.nn.log_sigmoid(above), jnp.where(last, jax.nn.log_sigmoid(-below), within))
        return jax.nn.logsumexp(within + shares, axis=-1)

    def log_probability(outputs: jax.Array, inputs: jax.Array) -> jax.Array:
        return log_shares(outputs, inputs).sum(axis=-1)

    def mean(outputs: jax.Array) -> jax.Array:
        def add(total: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
            return total + level * jnp.exp(log_shares(outputs, jnp.full(outputs.shape[:-1], level))), None

        return jax.lax.scan(add, jnp.zeros(outputs.shape[:-1]), jnp.arange(1, levels, dtype=jnp.float32))[0]

    def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
        means, inverse, shares = parts(outputs)
        part, own = jax.random.split(key)
        chosen = jax.nn.one_hot(jax.random.categorical(part, shares), mixture)
        mean, scale = (means * chosen).sum(axis=-1), (chosen * jnp.reciprocal(inverse)).sum(axis=-1)
        return jnp.clip(jnp.round(mean + scale * jax.random.logistic(own, mean.shape)), 0, levels - 1)

    return Likelihood(2 if mixture == 1 else 3 * mixture, log_probability, mean, sample)
