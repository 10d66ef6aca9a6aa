"""Sequences read several steps at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from foldax.errors import ConfigError


class Patched(nn.Module):
    """A network of sequences that reads patches of steps (Nie et al., 2023): `[B, T, C]` to what the network gives.

    Long series become short ones of patches, `[B, N, size * C]`. With the dense layer by which recurrent networks and
    Transformers begin, that is a strided convolution. N is 1 and one more for every `stride` steps, or part of them,
    after the first patch; the last one is filled up with zeros.

    Attributes:
      network: takes `[B, N, size * C]`, `mask` and `train`.
      size: steps of a patch.
      stride: steps from one patch to the next, at most `size`.
    """

    network: Any
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Applies the network; a patch is padding if it has no real step that the one before it has not.

        Raises:
          ConfigError: size or stride are out of range, or inputs are no `[B, T, C]`.
        """
        if not 1 <= self.stride <= self.size:
            raise ConfigError(f"Patched: the stride, {self.stride}, must be 1 to the patches' size, {self.size}")
        if x.ndim != 3:
            raise ConfigError(f"Patched: inputs must be sequences [B, T, C], got {list(x.shape)}")
        starts = np.arange(0, max(x.shape[1] - self.size + self.stride, 1), self.stride)
        steps = starts[:, None] + np.arange(self.size)
        filled = ((0, 0), (0, max(steps[-1, -1] + 1 - x.shape[1], 0)))
        x = x if mask is None else jnp.where((mask != 0)[..., None], x, jnp.zeros((), x.dtype))
        x = jnp.pad(x, (*filled, (0, 0)))[:, steps].reshape(x.shape[0], len(starts), -1)
        if mask is None:
            return self.network(x, train=train)
        real = jnp.pad(mask != 0, filled)[:, steps]
        new = jnp.concatenate([real[:, :1].any(axis=2), real[:, 1:, self.size - self.stride :].any(axis=2)], axis=1)
        return self.network(x, mask=new, train=train)
