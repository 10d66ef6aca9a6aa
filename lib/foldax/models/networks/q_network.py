"""Q-networks for discrete actions, with dueling streams and noisy layers as options."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Dense, Normalization, activation, normalization
from foldax.models.networks.multi_input import encode_observations


class NoisyDense(nn.Module):
    """Dense layer with factorised Gaussian noise of learned scale on its parameters (Fortunato et al., 2018).

    With `train`, noise is sampled from the stream "dropout" once per call, for all examples; without it there is none.

    Attributes:
      features: width of the output.
      initial_std: the paper's sigma_0; the initial standard deviation is this over the root of the number of inputs.

    >>> layer, x = NoisyDense(3), jnp.ones((1, 2))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}).shape
    (1, 3)
    """

    features: int
    initial_std: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the layer to `[..., D]`."""
        inputs = x.shape[-1]
        bound = 1.0 / math.sqrt(inputs)

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        constant = nn.initializers.constant(self.initial_std * bound)
        kernel = self.param("kernel", uniform, (inputs, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_std = self.param("kernel_std", constant, (inputs, self.features))
        bias_std = self.param("bias_std", constant, (self.features,))
        if train:
            # One draw for inputs and outputs: a network has many such layers, and every draw takes time to compile.
            noise = jax.random.normal(self.make_rng("dropout"), (inputs + self.features,))
            # f(x) = sign(x) sqrt(|x|); the noise of a weight is f(e_i) f(e_j)  (equation 10)
            noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
            input_noise, output_noise = noise[:inputs, None], noise[None, inputs:]
            kernel, bias = kernel + kernel_std * input_noise * output_noise, bias + bias_std * output_noise[0]
        return x @ kernel + bias[None, :]


class QNetwork(nn.Module):
    """MLP from observations `[B, ...]` to outputs float32 `[B, A, K]`: K numbers per action that represent its return.

    Attributes:
      num_actions: A, number of actions.
      num_outputs: K, outputs per action; 1 for a Q-value, more for a `learners.return_distributions`.
      hidden: widths of the hidden layers.
      dueling: whether state value and advantages have streams of hidden layers of their own (Wang et al., 2016). After
        an encoder all hidden layers are in the streams; without one the first hidden layer is shared.
      noisy: whether all layers but the encoder's are `NoisyDense`.
      activation: a name in `ACTIVATIONS` or a function.
      encoder: network from `[B, ...]` to `[B, D]` that comes first; None: observations are flattened.
      normalization: of the hidden layers before their activation, as in `models.normalization`; None: there is none.

    Raises:
      ConfigError: the dueling streams have no hidden layer, so that they would be one linear layer.

    >>> model, observations = QNetwork(num_actions=3, hidden=(8,)), jnp.zeros((5, 4))
    >>> model.apply(model.init(jax.random.key(0), observations), observations).shape
    (5, 3, 1)
    """

    num_actions: int
    num_outputs: int = 1
    hidden: tuple[int, ...] = (120, 84)
    dueling: bool = False
    noisy: bool = False
    activation: Activation = "relu"
    encoder: nn.Module | None = None
    normalization: Normalization | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the network to observations `[B, ...]`; with `train`, noisy layers add noise."""
        x = encode_observations(self.encoder, x, train)

        def dense(x: jax.Array, features: int, name: str) -> jax.Array:
            return NoisyDense(features, name=name)(x, train=train) if self.noisy else Dense(features, name=name)(x)

        def mlp(x: jax.Array, widths: tuple[int, ...], name: str) -> jax.Array:
            for index, width in enumerate(widths):
                x = normalization(self.normalization, width, train)(dense(x, width, f"{name}_{index}"))
                x = activation(self.activation)(x)
            return x

        num_outputs = self.num_actions * self.num_outputs
        if not self.dueling:
            outputs = dense(mlp(x, self.hidden, "hidden"), num_outputs, "output")
            return outputs.reshape(-1, self.num_actions, self.num_outputs)
        # Dueling: state value V and advantages A from separate streams
        shared = 1 if self.encoder is None else 0
        if len(self.hidden) <= shared:
            after = ", after the first one, which they share" if shared else ""
            raise ConfigError(f"dueling: hidden {self.hidden} must have a layer for each stream{after}")
        x = mlp(x, self.hidden[:shared], "hidden")
        value = dense(mlp(x, self.hidden[shared:], "value"), self.num_outputs, "value_output")
        # The stream keeps the name "gain" in parameter paths, on which the keys of initialisation depend.
        advantages = dense(mlp(x, self.hidden[shared:], "gain"), num_outputs, "gain_output")
        advantages = advantages.reshape(-1, self.num_actions, self.num_outputs)
        # Q = V + A - mean A  (equation 9)
        return value[:, None, :] + advantages - advantages.mean(axis=1, keepdims=True)
