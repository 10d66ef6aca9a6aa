"""The multi-layer perceptron."""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Dropout, Initializer, Normalization, activation, initializer, normalization
from foldax.models.layers.building_blocks import check_widths, repeat


class MLP(nn.Module):
    """Multi-layer perceptron: `[B, ...]`, flattened, to float32 `[B, features[-1]]`.

    A hidden layer is dense, normalisation, activation, dropout. With `residual`, hidden layers of equal width are
    pre-activation residual units (He et al., 2016, "Identity mappings in deep residual networks") of one dense layer.

    Attributes:
      features: width of every layer, including the output: `(128, 128, info.num_classes)`.
      activation: activation of hidden layers, a name of `ACTIVATIONS` or a function.
      dropout: dropout rate of hidden layers, in [0, 1]; may be traced.
      normalization: None, "batch", "layer", "group" or "rms".
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`; biases start at 0.
      residual: adds a skip connection around each hidden dense layer whose input is as wide as its output.
      scan_layers: runs the hidden layers after the first, all of one width, as a scan, so that a deep network compiles
        as fast as a shallow one. Their parameters are stacked, `[layers, ...]`.
      activate_final: applies normalisation, activation and dropout to the last layer too, for use as a feature
        extractor. The last layer has no skip connection.

    >>> model = MLP((32, 10))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((4, 8, 8, 1)))[0].shape
    (4, 10)
    """

    features: tuple[int, ...]
    activation: Activation = "relu"
    dropout: chex.Numeric = 0.0
    normalization: Normalization | None = None
    dtype: DTypeLike | None = None
    kernel_init: Initializer = "lecun_normal"
    residual: bool = False
    scan_layers: bool = False
    activate_final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_widths("MLP.features", self.features)
        if not self.features:
            raise ConfigError("MLP.features: () has no widths; the last one is that of the output")
        *hidden, outputs = self.features
        activate = activation(self.activation)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=initializer(self.kernel_init))

        def activated(preactivations: jax.Array) -> jax.Array:
            x = normalization(self.normalization, preactivations.shape[-1], train, self.dtype)(preactivations)
            return Dropout(self.dropout)(activate(x), train=train)

        def layer(preactivations: jax.Array, width: int) -> jax.Array:
            new = dense(width)(activated(preactivations))
            return new + preactivations if self.residual and width == preactivations.shape[-1] else new

        # The loop carries preactivations: a residual unit adds to them before normalisation and activation.
        x = x.reshape(x.shape[0], -1)
        if hidden:
            x = dense(hidden[0])(x)
            if self.scan_layers and len(hidden) > 1:
                if len(set(hidden)) > 1:
                    raise ConfigError(f"scan_layers: hidden layers must be equally wide, got {tuple(hidden)}")
                x = repeat(lambda x: layer(x, hidden[0]), x, len(hidden) - 1, scan=True, name="layers")
            else:
                for width in hidden[1:]:
                    x = layer(x, width)
            x = activated(x)
        x = dense(outputs)(x)
        return (activated(x) if self.activate_final else x).astype(jnp.float32)
