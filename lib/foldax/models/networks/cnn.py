"""Convolutional networks: a general one, and the encoder of Atari agents."""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Initializer, Normalization, activation, initializer, normalization, pool
from foldax.models.layers.building_blocks import Conv, Dense, Dropout, check_widths
from foldax.models.networks.mlp import MLP

KERNELS_AND_STRIDES = ((8, 4), (4, 2), (3, 1))


class CNN(nn.Module):
    """Convolutional network (LeCun et al., 1998): images `[B, H, W, C]` to float32 `[B, features]`.

    Stages of convolution, normalisation and activation, each followed by pooling and dropout, then an `MLP`. Sequences
    `[B, T, C]` and volumes `[B, D, H, W, C]` are accepted too: kernels and windows take the rank of the input.

    Attributes:
      features: width of the output.
      channels: channels of each stage; a tuple stands for several convolutions: `((32, 32), (64, 64))`.
      kernel_size: length of a kernel's sides; convolutions are padded and keep the size of the image.
      pooling: "max", "mean", or None for no pooling.
      pool_size: length of the pooling window's sides, which is also its stride.
      dense: widths of the hidden dense layers.
      activation: activation of convolutions and hidden layers, a name of `ACTIVATIONS` or a function.
      dropout: dropout rate of the hidden dense layers, in [0, 1]; may be traced.
      conv_dropout: dropout rate after each stage, in [0, 1]; may be traced.
      normalization: None, "batch", "layer", "group" or "rms", of convolutions and hidden dense layers.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`; biases start at 0.
      activate_final: applies normalisation, activation and dropout to the last layer too, for use as a feature
        extractor.

    >>> model = CNN(10, channels=(4, 8), dense=(16,))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 1)))[0].shape
    (2, 10)
    """

    features: int
    channels: tuple[int | tuple[int, ...], ...] = (32, 64)
    kernel_size: int = 3
    pooling: Literal["max", "mean"] | None = "max"
    pool_size: int = 2
    dense: tuple[int, ...] = (256,)
    activation: Activation = "relu"
    dropout: chex.Numeric = 0.0
    conv_dropout: chex.Numeric = 0.0
    normalization: Normalization | None = None
    dtype: DTypeLike | None = None
    kernel_init: Initializer = "lecun_normal"
    activate_final: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if x.ndim < 3:
            raise ConfigError(f"CNN: inputs must be images [B, H, W, C] (or sequences [B, T, C]), got {x.shape}")
        check_widths("CNN.channels", self.channels)
        check_widths("CNN.dense", self.dense)
        spatial_axes, kernel_init = x.ndim - 2, initializer(self.kernel_init)
        x = jnp.asarray(x, self.dtype)
        # 1. Stages of convolutions, pooling and dropout
        for stage in self.channels:
            for width in (stage,) if isinstance(stage, int) else stage:
                x = Conv(width, (self.kernel_size,) * spatial_axes, dtype=self.dtype, kernel_init=kernel_init)(x)
                x = activation(self.activation)(normalization(self.normalization, width, train, self.dtype)(x))
            x = x if self.pooling is None else pool(x, self.pooling, (self.pool_size,) * spatial_axes)
            x = Dropout(self.conv_dropout)(x, train=train)
        # 2. Dense layers on the flattened image
        options = (self.activation, self.dropout, self.normalization, self.dtype, kernel_init)
        return MLP((*self.dense, self.features), *options, activate_final=self.activate_final)(x, train=train)


class NatureCNN(nn.Module):
    """Three convolutions and a dense layer: images `[B, H, W, C]`, 0 to 255, to `[B, features]` (Mnih et al., 2015).

    Attributes:
      features: width of the output.
      channels: output channels of the convolutions, whose kernels have sides 8, 4 and 3 and strides 4, 2 and 1.
      channels_first: whether images are `[B, C, H, W]`, as stacks of frames are.

    >>> model = NatureCNN(features=16, channels=(4, 4, 4))
    >>> frames = jnp.zeros((2, 84, 84, 4), jnp.uint8)
    >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), frames)[0]).shape
    (2, 16)
    """

    features: int = 512
    channels: tuple[int, ...] = (32, 64, 64)
    channels_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Encodes images `[B, H, W, C]`, as features float32 `[B, features]`."""
        chex.assert_rank(x, 4)
        x = jnp.moveaxis(x, 1, -1) if self.channels_first else x
        x = jnp.asarray(x, jnp.float32) * (1 / 255)
        init = nn.initializers.orthogonal(math.sqrt(2))
        for width, (size, stride) in zip(self.channels, KERNELS_AND_STRIDES, strict=False):
            x = nn.relu(Conv(width, (size, size), (stride, stride), padding="VALID", kernel_init=init)(x))
        return nn.relu(Dense(self.features, kernel_init=init)(x.reshape(x.shape[0], -1)))
