"""The networks of learners whose actions are numbers: what to do, and what doing it is worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.models.layers.activations import Activation
from foldax.models.networks.mlp import MLP


class GaussianActor(nn.Module):
    """Dense layers to means and log deviations of numbers that are squashed: `[B, ...]` to two of `[B, actions]`.

    Attributes:
      actions: A.
      hidden: widths of the hidden layers.
      activation: a name of `ACTIVATIONS` or a function.
      low: bound of the log deviations.
      high: the other one.
    """

    actions: int
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    low: float = -5.0
    high: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(x, jnp.float32)
        mean, free = jnp.split(MLP((*self.hidden, 2 * self.actions), self.activation)(x), 2, axis=-1)
        # Between the bounds by a curve and not by a cut, which would stop gradients.
        return mean, self.low + 0.5 * (self.high - self.low) * (jnp.tanh(free) + 1.0)


class Actor(nn.Module):
    """Dense layers to numbers from -1 to 1: `[B, ...]` to `[B, actions]`.

    Attributes:
      actions: A.
      hidden: widths of the hidden layers.
      activation: a name of `ACTIVATIONS` or a function.
    """

    actions: int
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return jnp.tanh(MLP((*self.hidden, self.actions), self.activation)(jnp.asarray(x, jnp.float32)))


class TwinCritic(nn.Module):
    """Two networks of dense layers that share nothing: observations `[B, ...]` and actions `[B, A]` to `[B, 2]`.

    Attributes:
      hidden: widths of the hidden layers of both.
      activation: a name of `ACTIVATIONS` or a function.
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, actions: jax.Array, *, train: bool = False) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        both = jnp.concatenate([x.reshape(x.shape[0], -1), actions], axis=-1)
        # One after the other: on a CPU, products of stacked kernels are slower than two.
        values = [MLP((*self.hidden, 1), self.activation, name=name)(both) for name in ("first", "second")]
        return jnp.concatenate(values, axis=-1)
