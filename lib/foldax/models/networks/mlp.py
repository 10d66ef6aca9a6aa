"""The multi-layer perceptron."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Dropout, Normalization, normalization, repeat
from foldax.models.layers.initializers import Initializer, initializer


class MLP(nn.Module):
    """Dense layers of the given widths, the last one plain by default: `[B, ...]` to float32 `[B, features[-1]]`.

    Inputs are flattened. A hidden layer is dense, normalisation, activation, dropout.

    Attributes:
      features: width of every layer, the output's too: `(128, 128, info.num_classes)`.
      activation: what follows every hidden layer: a name of `ACTIVATIONS` or a function.
      dropout: rate after every hidden layer; may be traced.
      normalization: None, "batch", "layer", "group" or "rms".
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`; biases start at 0.
      residual: adds to what a hidden dense layer gives that of the one before, where both are equally wide:
        pre-activation residual units (He et al., 2016, "Identity mappings") of one dense layer each.
      scan_layers: runs the hidden layers after the first, all of one width, as a loop, so that a deep network compiles
        as fast as a shallow one. Their parameters are stacked, `[layers, ...]`, under the names of one layer.
      activate_final: whether normalisation, activation and dropout follow the last layer too, for what other layers
        come after; it adds nothing to another, also with `residual`.
    """

    features: tuple[int, ...]
    activation: Activation = "relu"
    dropout: Any = 0.0
    normalization: Normalization | None = None
    dtype: Any = None
    kernel_init: Initializer = "lecun_normal"
    residual: bool = False
    scan_layers: bool = False
    activate_final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        *hidden, outputs = self.features
        activate = activation(self.activation)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=initializer(self.kernel_init))

        def activated(sums: jax.Array) -> jax.Array:
            sums = normalization(self.normalization, sums.shape[-1], train, self.dtype)(sums)
            return Dropout(self.dropout)(activate(sums), train=train)

        def layer(sums: jax.Array, width: int) -> jax.Array:
            new = dense(width)(activated(sums))
            return new + sums if self.residual and width == sums.shape[-1] else new

        x = x.reshape(x.shape[0], -1)
        if hidden:
            x = dense(hidden[0])(x)
            if self.scan_layers and len(hidden) > 1:
                if len(set(hidden)) > 1:
                    raise ConfigError(f"scan_layers: hidden layers must be equally wide, got {tuple(hidden)}")
                width = hidden[0]
                x = repeat(lambda sums: layer(sums, width), x, len(hidden) - 1, scan=True, name="layers")
            else:
                for width in hidden[1:]:
                    x = layer(x, width)
            x = activated(x)
        x = dense(outputs)(x)
        return (activated(x) if self.activate_final else x).astype(jnp.float32)
