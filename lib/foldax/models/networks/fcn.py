"""The fully convolutional network for time series."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Conv, Initializer, Normalization, activation, initializer, normalization
from foldax.models.layers.building_blocks import Dropout, max_with_stable_gradient
from foldax.models.layers.sequences import Pooling, pool_sequence


class FCN(nn.Module):
    """Fully convolutional network for time series (Wang, Yan & Oates, 2017): `[B, T, C]` to float32 `[B, features]`.

    Stages of convolution over time, normalisation and activation, then global pooling and one dense layer. The defaults
    are the published FCN; the ResNet of the same paper is `FCN(features, (64, 128, 128), ((8, 5, 3),) * 3,
    residual=True)`. Padding has no influence: it is set to zero before every convolution, and left out of batch
    statistics, windows and pooling.

    Attributes:
      features: width of the output.
      channels: channels of each stage.
      kernel_sizes: kernel length of each stage, in steps; a tuple stands for several convolutions.
      residual: adds the input of a stage to its last normalised convolution, through a normalised convolution of
        length 1 where the number of channels changes.
      pool_size: length and stride of the max pooling between two stages, in steps; 1 for none.
      pooling: global pooling over time: "mean", "max" or "last".
      normalization: None, "batch", "layer", "group" or "rms".
      activation: a name of `ACTIVATIONS` or a function.
      dropout: dropout rate before the dense layer, in [0, 1]; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.

    >>> model = FCN(3, channels=(8, 8), kernel_sizes=(5, 3))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 20, 1)))[0].shape
    (2, 3)
    """

    features: int
    channels: tuple[int, ...] = (128, 256, 128)
    kernel_sizes: tuple[int | tuple[int, ...], ...] = (8, 5, 3)
    residual: bool = False
    pool_size: int = 1
    pooling: Pooling = "mean"
    normalization: Normalization | None = "batch"
    activation: Activation = "relu"
    dropout: chex.Numeric = 0.0
    kernel_init: Initializer = "he_normal"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, T, C]`.
          mask: `[B, T]`, 0 or False at padding; None: no padding.
          train: whether dropout and batch statistics are those of training.

        Returns:
          float32 `[B, features]`.

        Raises:
          ConfigError: inputs are not `[B, T, C]`, the mask has another shape, or `channels` and `kernel_sizes` differ
            in length.
        """
        if x.ndim != 3:
            raise ConfigError(f"FCN: inputs must be sequences [B, T, C], got {list(x.shape)}")
        if mask is not None and mask.shape != x.shape[:2]:
            raise ConfigError(f"FCN: the mask must be {list(x.shape[:2])} like the inputs, got {list(mask.shape)}")
        if len(self.channels) != len(self.kernel_sizes):
            needed = f"an entry for each of the channels {self.channels}"
            raise ConfigError(f"kernel_sizes: {self.kernel_sizes} must have {needed}")
        activate = activation(self.activation)
        real = None if mask is None else (mask != 0)[..., None]
        x = jnp.asarray(x, self.dtype)
        # 1. Stages of convolutions; padding is excluded from each of them.
        for stage, (width, sizes) in enumerate(zip(self.channels, self.kernel_sizes, strict=True)):
            if stage and self.pool_size > 1:
                x, real = masked_max_pool(x, real, self.pool_size)
            shortcut = x
            for index, size in enumerate((sizes,) if isinstance(sizes, int) else sizes):
                x = self._normalized_conv(activate(x) if index else x, width, size, real, train)
            if self.residual and shortcut.shape[-1] != width:
                shortcut = self._normalized_conv(shortcut, width, 1, real, train)
            x = activate(x + shortcut if self.residual else x)
        # 2. Global pooling and classifier
        x = pool_sequence(x, self.pooling, None if real is None else real[..., 0])
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)

    def _normalized_conv(self, x: jax.Array, width: int, size: int, real: jax.Array | None, train: bool) -> jax.Array:
        kernel_init, bias = initializer(self.kernel_init), self.normalization is None
        x = Conv(width, (size,), use_bias=bias, kernel_init=kernel_init, dtype=self.dtype)(_zero_padding(x, real))
        if self.normalization is None:
            return x
        return normalization(self.normalization, width, train, self.dtype)(x, mask=self._statistics_mask(x, real))

    def _statistics_mask(self, x: jax.Array, real: jax.Array | None) -> jax.Array | None:
        # "layer" and "rms" normalise every step by its own channels, which padding cannot influence.
        if real is None or self.normalization in ("layer", "rms"):
            return None
        if self.normalization == "batch":
            return real
        # Groups of a row that is all padding have the statistics of all its steps, as those of none would be NaN.
        return jnp.broadcast_to(real | ~real.any(axis=1, keepdims=True), x.shape)


def masked_max_pool(x: jax.Array, real: jax.Array | None, size: int) -> tuple[jax.Array, jax.Array | None]:
    """Max pooling over time that leaves padding out; the last window may be shorter.

    Args:
      x: `[B, T, C]`.
      real: bool `[B, T, 1]`, False at padding. None: no padding.
      size: length and stride of the window, in steps.

    Returns:
      The maxima `[B, ceil(T / size), C]`, zeros for windows of padding only, and which windows are real, bool
      `[B, ceil(T / size), 1]` or None.

    >>> masked_max_pool(jnp.array([[[1.0], [4.0], [2.0]]]), None, 2)[0][..., 0].tolist()
    [[4.0, 2.0]]
    """
    chex.assert_rank(x if real is None else [x, real], 3)
    # The lowest finite number never wins the maximum, in padding and in the part added to complete the last window.
    x = x if real is None else jnp.where(real, x, jnp.finfo(x.dtype).min)
    edges = ((0, 0), (0, -x.shape[1] % size), (0, 0))
    x = jnp.pad(x, edges, constant_values=jnp.finfo(x.dtype).min)
    x = max_with_stable_gradient(x.reshape(x.shape[0], -1, size, x.shape[-1]), 2)
    if real is None:
        return x, None
    real = jnp.pad(real, edges).reshape(real.shape[0], -1, size, 1).any(axis=2)
    return _zero_padding(x, real), real


def _zero_padding(x: jax.Array, real: jax.Array | None) -> jax.Array:
    return x if real is None else jnp.where(real, x, jnp.zeros((), x.dtype))
