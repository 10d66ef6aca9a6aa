"""The fully convolutional network over time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, Dropout, Normalization, largest, normalization
from foldax.models.layers.initializers import Initializer, initializer
from foldax.models.layers.sequences import Pooling, pool_sequence


class FCN(nn.Module):
    """A fully convolutional network (Wang, Yan & Oates, 2017): `[B, T, C]` to float32 `[B, features]`.

    Convolutions over time, each with normalisation and activation, then the mean over time and one dense layer. Padding
    changes nothing: it is zero before every convolution, and no statistics, windows or means count it. The published
    network has channels (128, 256, 128) and kernel sizes (8, 5, 3); the residual one of the same paper channels
    (64, 128, 128), kernel sizes ((8, 5, 3),) * 3 and `residual=True`.

    Attributes:
      features: width of the output.
      channels: of the convolutions, one entry per stage.
      kernel_sizes: steps that a convolution sees, one entry per stage; a tuple makes several convolutions.
      residual: adds a stage's input to what its last normalisation gives, convolved (1 step) where its width differs.
      pool_size: steps of the windows whose maximum is taken between two stages; 1 for none.
      pooling: over time, at the end: "mean", "max" or "last".
      normalization: None, "batch", "layer", "group" or "rms".
      activation: a name of `ACTIVATIONS` or a function.
      dropout: rate before the dense layer; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
    """

    features: int
    channels: tuple[int, ...] = (128, 256, 128)
    kernel_sizes: tuple[int | tuple[int, ...], ...] = (8, 5, 3)
    residual: bool = False
    pool_size: int = 1
    pooling: Pooling = "mean"
    normalization: Normalization | None = "batch"
    activation: Activation = "relu"
    dropout: Any = 0.0
    kernel_init: Initializer = "he_normal"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Applies the network; `mask` `[B, T]` is 0 or False where there is padding.

        Raises:
          ConfigError: inputs are no `[B, T, C]`, the mask has another shape, or channels and kernels do not match.
        """
        if x.ndim != 3:
            raise ConfigError(f"FCN: inputs must be sequences [B, T, C], got {list(x.shape)}")
        if mask is not None and mask.shape != x.shape[:2]:
            raise ConfigError(f"FCN: the mask must be {list(x.shape[:2])} as the inputs, got {list(mask.shape)}")
        if len(self.channels) != len(self.kernel_sizes):
            raise ConfigError(
                f"kernel_sizes: {self.kernel_sizes} must have an entry for each of the channels {self.channels}"
            )
        activate = activation(self.activation)
        real = None if mask is None else (mask != 0)[..., None]
        x = jnp.asarray(x, self.dtype)
        for stage, (width, sizes) in enumerate(zip(self.channels, self.kernel_sizes, strict=True)):
            if stage and self.pool_size > 1:
                x, real = max_windows(x, real, self.pool_size)
            before = x
            for index, size in enumerate((sizes,) if isinstance(sizes, int) else sizes):
                x = self._normalized(activate(x) if index else x, width, size, real, train)
            if self.residual:
                x = x + (before if before.shape[-1] == width else self._normalized(before, width, 1, real, train))
            x = activate(x)
        x = pool_sequence(x, self.pooling, None if real is None else real[..., 0])
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)

    def _normalized(self, x: jax.Array, width: int, size: int, real: jax.Array | None, train: bool) -> jax.Array:
        """Returns a new convolution of what is real, normalised."""
        kernel_init, bias = initializer(self.kernel_init), self.normalization is None
        x = Conv(width, (size,), use_bias=bias, kernel_init=kernel_init, dtype=self.dtype)(_where(real, x))
        if self.normalization is None:
            return x
        return normalization(self.normalization, width, train, self.dtype)(x, mask=real)


def max_windows(x: jax.Array, real: jax.Array | None, size: int) -> tuple[jax.Array, jax.Array | None]:
    """Returns the maxima of windows of `size` real steps `[B, T, C]`, the last one maybe shorter, and what is real.

    Args:
      x: `[B, T, C]`.
      real: bool `[B, T, 1]`; a window without a real step is none. None: all are real.
      size: steps of a window, and between two.
    """
    x = x if real is None else jnp.where(real, x, jnp.finfo(x.dtype).min)
    missing = -x.shape[1] % size
    pairs = ((0, 0), (0, missing), (0, 0))
    x = jnp.pad(x, pairs, constant_values=jnp.finfo(x.dtype).min)
    x = largest(x.reshape(x.shape[0], -1, size, x.shape[-1]), 2)
    if real is None:
        return x, None
    real = jnp.pad(real, pairs).reshape(real.shape[0], -1, size, 1).any(axis=2)
    return _where(real, x), real


def _where(real: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if real is None else jnp.where(real, x, jnp.zeros((), x.dtype))
