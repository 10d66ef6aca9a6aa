"""The multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.models.layers import Dropout, Normalization, normalization


class MLP(nn.Module):
    """Dense layers of the given widths, the last one plain: `[B, ...]` to float32 `[B, features[-1]]`.

    Inputs are flattened. A hidden layer is dense, normalisation, activation, dropout.

    Attributes:
      features: width of every layer, the output's too: `(128, 128, info.num_classes)`.
      activation: what follows every layer but the last.
      dropout: rate after every hidden layer; may be traced.
      normalization: None, "batch", "layer" or "group".
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
    """

    features: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: Any = 0.0
    normalization: Normalization | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.features[:-1]:
            x = nn.Dense(width, dtype=self.dtype)(x)
            x = normalization(self.normalization, width, train, self.dtype)(x)
            x = Dropout(self.dropout)(self.activation(x), train=train)
        return nn.Dense(self.features[-1], dtype=self.dtype)(x).astype(jnp.float32)
