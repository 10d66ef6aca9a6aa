"""The network of value-based learners: what each action is worth."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Dense, Normalization, normalization


class NoisyDense(nn.Module):
    """A dense layer whose parameters are disturbed by factorised noise, as much as it learns (Fortunato et al., 2018).

    The noise is drawn from the stream "dropout", once a call, for all examples; without `train` there is none.

    Attributes:
      features: width of the output.
      std: of the noise at first, for a layer of one input.
    """

    features: int
    std: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        inputs = x.shape[-1]
        bound = 1.0 / math.sqrt(inputs)

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        spread = nn.initializers.constant(self.std * bound)
        kernel, bias = (
            self.param("kernel", uniform, (inputs, self.features)),
            self.param("bias", uniform, (self.features,)),
        )
        kernel_std = self.param("kernel_std", spread, (inputs, self.features))
        bias_std = self.param("bias_std", spread, (self.features,))
        if train:
            # One draw for both sides: a network has many such layers, and each draw takes its time to compile.
            noise = jax.random.normal(self.make_rng("dropout"), (inputs + self.features,))
            noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
            left, right = noise[:inputs, None], noise[None, inputs:]
            kernel, bias = kernel + kernel_std * left * right, bias + bias_std * right[0]
        return x @ kernel + bias[None, :]


class QNetwork(nn.Module):
    """Dense layers to what actions are worth: `[B, ...]` to float32 `[B, actions, width]`.

    Attributes:
      actions: number of actions.
      width: numbers that describe an action's return, see `learners.heads`.
      hidden: widths of the hidden layers.
      dueling: what the state is worth, and what each action adds to it, from hidden layers of their own after the
        encoder, or without one after the first of them (Wang et al., 2016).
      noisy: whether all but an encoder are `NoisyDense`.
      activation: a name of `ACTIVATIONS` or a function.
      encoder: any network `[B, ...]` to `[B, D]` that comes first; None: observations are flattened.
      normalization: None, "layer" or another of `models.normalization`, of what a hidden layer activates.

    Raises:
      ConfigError: dueling streams have no hidden layer, so that they would be one linear layer.
    """

    actions: int
    width: int = 1
    hidden: tuple[int, ...] = (120, 84)
    dueling: bool = False
    noisy: bool = False
    activation: Activation = "relu"
    encoder: Any = None
    normalization: Normalization | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        x = x.reshape(x.shape[0], -1) if self.encoder is None else self.encoder(x, train=train)

        def dense(x: jax.Array, features: int, name: str) -> jax.Array:
            return NoisyDense(features, name=name)(x, train=train) if self.noisy else Dense(features, name=name)(x)

        def hidden(x: jax.Array, widths: tuple[int, ...], name: str) -> jax.Array:
            for index, width in enumerate(widths):
                x = normalization(self.normalization, width, train)(dense(x, width, f"{name}_{index}"))
                x = activation(self.activation)(x)
            return x

        if not self.dueling:
            outputs = dense(hidden(x, self.hidden, "hidden"), self.actions * self.width, "output")
            return outputs.reshape(-1, self.actions, self.width)
        shared = 1 if self.encoder is None else 0
        if len(self.hidden) <= shared:
            raise ConfigError(
                f"dueling: hidden {self.hidden} must have a layer for each stream"
                + (", after the first one, which they share" if shared else "")
            )
        x = hidden(x, self.hidden[:shared], "hidden")
        value = dense(hidden(x, self.hidden[shared:], "value"), self.width, "value_output")
        gain = dense(hidden(x, self.hidden[shared:], "gain"), self.actions * self.width, "gain_output")
        gain = gain.reshape(-1, self.actions, self.width)
        return value[:, None, :] + gain - gain.mean(axis=1, keepdims=True)
