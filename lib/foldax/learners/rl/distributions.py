"""Distributions of actions, as a network's outputs describe them; everything is per example, `[B]`."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Categorical(NamedTuple):
    """One of A actions.

    Attributes:
      logits: `[B, A]`.
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Returns actions int32 `[B]`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """Returns the likeliest actions int32 `[B]`."""
        return self.logits.argmax(axis=-1).astype(jnp.int32)

    def log_probability(self, actions: jax.Array) -> jax.Array:
        """Returns nats `[B]`, at most 0."""
        chosen = jax.nn.one_hot(actions, self.logits.shape[-1])
        return (jax.nn.log_softmax(self.logits) * chosen).sum(axis=-1)

    def entropy(self) -> jax.Array:
        """Returns nats `[B]`, at most log A."""
        logs = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(logs) * logs).sum(axis=-1)


class Normal(NamedTuple):
    """A numbers, independent of each other.

    Attributes:
      mean: `[B, A]`.
      log_std: `[B, A]`.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Returns actions `[B, A]`."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """Returns the likeliest actions `[B, A]`."""
        return self.mean

    def log_probability(self, actions: jax.Array) -> jax.Array:
        """Returns the log density `[B]`."""
        distance = (actions - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * jnp.square(distance) + self.log_std + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self) -> jax.Array:
        """Returns the differential entropy `[B]` in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(axis=-1)


class Squashed(NamedTuple):
    """A numbers from -1 to 1: hyperbolic tangents of normal ones (Haarnoja et al., 2018, appendix C).

    Attributes:
      mean: of the normal ones, `[B, A]`.
      log_std: of these, `[B, A]`.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Returns actions `[B, A]`."""
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def sampled(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns actions `[B, A]` and their log densities `[B]`, which no action tells well near its bounds."""
        normal = Normal(self.mean, self.log_std)
        free = normal.sample(key)
        # log (1 - tanh(x)^2), without the difference that rounds to 0
        slope = 2 * (math.log(2) - free - jax.nn.softplus(-2 * free))
        return jnp.tanh(free), normal.log_probability(free) - slope.sum(axis=-1)

    def mode(self) -> jax.Array:
        """Returns the actions `[B, A]` of the likeliest normal numbers."""
        return jnp.tanh(self.mean)


def policy(outputs: jax.Array, log_std: jax.Array | None = None) -> Categorical | Normal:
    """Returns the distribution that outputs `[B, A]` stand for: of choices, or of numbers if there are deviations."""
    return Categorical(outputs) if log_std is None else Normal(outputs, log_std)


def exploration(steps: jax.Array, epsilon: jax.Array, epsilon_steps: jax.Array) -> jax.Array:
    """Returns the probability of a random action after as many steps: from 1 to `epsilon` in a straight line."""
    share = jnp.clip(steps * jnp.reciprocal(jnp.maximum(epsilon_steps, 1.0)), 0.0, 1.0)
    return 1.0 + share * (epsilon - 1.0)


def epsilon_greedy(values: jax.Array, epsilon: jax.Array, key: jax.Array) -> jax.Array:
    """Returns actions int32 `[B]`: each the one of the largest of values `[B, A]`, or with `epsilon` any of A."""
    of_chance, of_choice = jax.random.split(key)
    count, actions = values.shape
    anything = jax.random.randint(of_choice, (count,), 0, actions)
    return jnp.where(jax.random.bernoulli(of_chance, epsilon, (count,)), anything, values.argmax(axis=-1))
