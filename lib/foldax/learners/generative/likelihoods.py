"""Likelihoods p(x | z) of decoders: log-probabilities per example in nats, means and samples."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError


class Likelihood(NamedTuple):
    """A distribution over inputs with N independent dimensions, given P parameters for each of them.

    Attributes:
      num_parameters: P, how many outputs of a decoder parametrise each dimension.
      log_prob: `(parameters [B, N, P], inputs [B, N]) -> [B]`, summed over dimensions, in nats.
      mean: `parameters [B, N, P] -> [B, N]`.
      sample: `(key, parameters [B, N, P]) -> [B, N]`.
      in_support: `inputs [B, N] -> bool [B]`, which examples have a likelihood; None: all have.

    >>> likelihood = categorical(4)
    >>> parameters = jnp.zeros((2, 3, likelihood.num_parameters))
    >>> likelihood.log_prob(parameters, jnp.zeros((2, 3))).shape, likelihood.mean(parameters).shape
    ((2,), (2, 3))
    """

    num_parameters: int
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    sample: Callable[[jax.Array, jax.Array], jax.Array]
    in_support: Callable[[jax.Array], jax.Array] | None = None


def bernoulli() -> Likelihood:
    """Bernoulli likelihood of inputs that are 0 or 1; the parameter is the logit.

    Inputs in between (grey values) give a cross-entropy, which is no likelihood of grey values: `vae` then reports no
    "bits_per_dimension". `discretized_logistic` has a likelihood for grey levels.

    >>> bool(bernoulli().log_prob(jnp.zeros((1, 2, 1)), jnp.array([[0.0, 1.0]]))[0] == 2 * jnp.log(0.5))
    True
    """

    def log_prob(parameters: jax.Array, inputs: jax.Array) -> jax.Array:
        # Log-sigmoids of logits stay finite where a probability would round to 0.
        logits = parameters[..., 0]
        return (inputs * jax.nn.log_sigmoid(logits) + (1 - inputs) * jax.nn.log_sigmoid(-logits)).sum(axis=-1)

    def mean(parameters: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(parameters[..., 0])

    def sample(key: jax.Array, parameters: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, mean(parameters)).astype(jnp.float32)

    return Likelihood(1, log_prob, mean, sample, lambda inputs: ((inputs == 0) | (inputs == 1)).all(axis=-1))


def gaussian(std: float | None = None) -> Likelihood:
    """Normal likelihood of continuous inputs; the parameters are the mean and, without `std`, the log of the deviation.

    Args:
      std: fixed standard deviation, above 0; None: it is a second parameter.

    Raises:
      ConfigError: `std` is not above 0.

    >>> gaussian(0.5).num_parameters, gaussian().num_parameters
    (1, 2)
    """
    if std is not None and not std > 0:
        raise ConfigError(f"gaussian: std {std} must be above 0, or None to learn it")

    def log_std(parameters: jax.Array) -> jax.Array:
        return parameters[..., 1] if std is None else jnp.full(parameters.shape[:-1], math.log(std))

    def log_prob(parameters: jax.Array, inputs: jax.Array) -> jax.Array:
        log_scale = log_std(parameters)
        distance = (inputs - parameters[..., 0]) * jnp.exp(-log_scale)
        return -(0.5 * jnp.square(distance) + log_scale + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def sample(key: jax.Array, parameters: jax.Array) -> jax.Array:
        mean = parameters[..., 0]
        return mean + jnp.exp(log_std(parameters)) * jax.random.normal(key, mean.shape)

    return Likelihood(1 if std is not None else 2, log_prob, lambda parameters: parameters[..., 0], sample)


def categorical(num_levels: int) -> Likelihood:
    """Categorical likelihood of integer inputs 0 to `num_levels` - 1; the parameters are a logit per level.

    Args:
      num_levels: number of levels, 2 or more.

    Raises:
      ConfigError: `num_levels` is below 2.

    >>> categorical(3).mean(jnp.zeros((1, 1, 3))).tolist()
    [[1.0]]
    """
    if num_levels < 2:
        raise ConfigError(f"categorical: num_levels {num_levels} must be at least 2")

    def log_prob(parameters: jax.Array, inputs: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(inputs.astype(jnp.int32), num_levels)
        return (jax.nn.log_softmax(parameters) * one_hot).sum(axis=(-2, -1))

    def mean(parameters: jax.Array) -> jax.Array:
        return jax.nn.softmax(parameters) @ jnp.arange(num_levels, dtype=jnp.float32)

    def sample(key: jax.Array, parameters: jax.Array) -> jax.Array:
        return jax.random.categorical(key, parameters).astype(jnp.float32)

    return Likelihood(num_levels, log_prob, mean, sample)


def discretized_logistic(num_levels: int, num_mixtures: int = 1) -> Likelihood:
    """Discretised mixture of logistics over integer inputs 0 to `num_levels` - 1 (PixelCNN++: Salimans et al., 2017).

    The probability of a level is the mass of the mixture that lies nearest to it, so the first and the last level have
    the tails. The parameters are, for each component, a mean and a log scale, both in units of half the range (0 and 0:
    centre and half width), and, for two or more components, mixture logits.

    Args:
      num_levels: number of levels, 2 or more.
      num_mixtures: number of components K, 1 or more.

    Raises:
      ConfigError: an argument is too small.

    >>> discretized_logistic(256).num_parameters, discretized_logistic(256, num_mixtures=5).num_parameters
    (2, 15)
    """
    if num_levels < 2 or num_mixtures < 1:
        raise ConfigError(
            f"discretized_logistic: {num_levels} levels must be 2 or more, {num_mixtures} mixtures 1 or more"
        )
    half = (num_levels - 1) / 2

    def components(parameters: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Means and inverse scales in levels, and log mixture weights, each `[B, N, K]`."""
        # Scales are bounded, below by -7 as in the authors' code, so that the mass of a level does not vanish early in
        # training.
        means, log_scales, *logits = jnp.split(parameters, 2 if num_mixtures == 1 else 3, axis=-1)
        inverse_scales = jnp.exp(-jnp.clip(log_scales, -7.0, 6.0)) * (1 / half)
        log_weights = jax.nn.log_softmax(logits[0]) if logits else jnp.zeros_like(means)
        return half * (1 + means), inverse_scales, log_weights

    def log_probs(parameters: jax.Array, inputs: jax.Array) -> jax.Array:
        """Log-probability of each dimension, `[B, N]` (equation 2 of the paper)."""
        means, inverse_scales, log_weights = components(parameters)
        distance = inputs[..., None] - means
        upper, lower = (distance + 0.5) * inverse_scales, (distance - 0.5) * inverse_scales
        # log(sigmoid(upper) - sigmoid(lower)) as a product, which keeps its precision where both are nearly equal.
        log_mass = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-inverse_scales))
        # The first and the last level have the tails of the density.
        first, last = (inputs <= 0)[..., None], (inputs >= num_levels - 1)[..., None]
        log_mass = jnp.where(first, jax.nn.log_sigmoid(upper), jnp.where(last, jax.nn.log_sigmoid(-lower), log_mass))
        return jax.nn.logsumexp(log_mass + log_weights, axis=-1)

    def log_prob(parameters: jax.Array, inputs: jax.Array) -> jax.Array:
        return log_probs(parameters, inputs).sum(axis=-1)

    def mean(parameters: jax.Array) -> jax.Array:
        def add(total: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
            return total + level * jnp.exp(log_probs(parameters, jnp.full(parameters.shape[:-1], level))), None

        # A scan over levels: `[B, N, num_levels]` would not fit into memory for 256 levels.
        return jax.lax.scan(add, jnp.zeros(parameters.shape[:-1]), jnp.arange(1, num_levels, dtype=jnp.float32))[0]

    def sample(key: jax.Array, parameters: jax.Array) -> jax.Array:
        means, inverse_scales, log_weights = components(parameters)
        component_key, logistic_key = jax.random.split(key)
        # A component, then a logistic draw from it, rounded to the nearest level.
        selected = jax.nn.one_hot(jax.random.categorical(component_key, log_weights), num_mixtures)
        mean, scale = (means * selected).sum(axis=-1), (selected * jnp.reciprocal(inverse_scales)).sum(axis=-1)
        return jnp.clip(jnp.round(mean + scale * jax.random.logistic(logistic_key, mean.shape)), 0, num_levels - 1)

    return Likelihood(2 if num_mixtures == 1 else 3 * num_mixtures, log_prob, mean, sample)
