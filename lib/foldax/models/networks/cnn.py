"""The convolutional network."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, Dropout, Normalization, normalization, pool
from foldax.models.layers.initializers import Initializer, initializer
from foldax.models.networks.mlp import MLP


class CNN(nn.Module):
    """Convolutions with pooling, then dense layers: `[B, H, W, C]` to float32 `[B, features]`.

    A stage is one convolution or several (convolution, normalisation, activation), then pooling and dropout. Inputs
    may also be `[B, T, C]` or `[B, D, H, W, C]`: kernels and windows have as many dimensions as they need.

    Attributes:
      features: width of the output.
      channels: one entry per stage; a tuple makes several convolutions: `((32, 32), (64, 64))`.
      kernel_size: length of a kernel's sides; the image is padded, so convolutions keep its size.
      pooling: "max", "mean", or None for none.
      pool_size: length of a window's sides, and its step.
      dense: widths of the hidden dense layers.
      activation: what follows every convolution and hidden layer: a name of `ACTIVATIONS` or a function.
      dropout: rate after every hidden dense layer; may be traced.
      conv_dropout: rate after every stage; may be traced.
      normalization: None, "batch", "layer", "group" or "rms"; in convolutions and dense layers.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`; biases start at 0.
      activate_final: whether it and all else follow the last layer too, for what other layers come after.
    """

    features: int
    channels: tuple[int | tuple[int, ...], ...] = (32, 64)
    kernel_size: int = 3
    pooling: Literal["max", "mean"] | None = "max"
    pool_size: int = 2
    dense: tuple[int, ...] = (256,)
    activation: Activation = "relu"
    dropout: Any = 0.0
    conv_dropout: Any = 0.0
    normalization: Normalization | None = None
    dtype: Any = None
    kernel_init: Initializer = "lecun_normal"
    activate_final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if x.ndim < 3:
            raise ConfigError(f"CNN: inputs must be images [B, H, W, C] (or [B, T, C]), got {x.shape}")
        sides, kernel_init = x.ndim - 2, initializer(self.kernel_init)
        if self.dtype is not None:
            x = jnp.asarray(x, self.dtype)
        for stage in self.channels:
            for width in (stage,) if isinstance(stage, int) else stage:
                x = Conv(width, (self.kernel_size,) * sides, dtype=self.dtype, kernel_init=kernel_init)(x)
                x = activation(self.activation)(normalization(self.normalization, width, train, self.dtype)(x))
            if self.pooling is not None:
                x = pool(x, self.pooling, (self.pool_size,) * sides)
            x = Dropout(self.conv_dropout)(x, train=train)
        options = (self.activation, self.dropout, self.normalization, self.dtype, kernel_init)
        head = MLP((*self.dense, self.features), *options, activate_final=self.activate_final)
        return head(x, train=train)
