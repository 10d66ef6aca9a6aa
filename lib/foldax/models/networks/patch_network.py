"""Patches of time steps: a wrapper that shortens sequences for any sequence network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from foldax.errors import ConfigError


class PatchNetwork(nn.Module):
    """Feeds a sequence network patches of consecutive steps instead of single steps (PatchTST; Nie et al., 2023).

    A series `[B, T, C]` becomes `[B, N, patch_size * C]`. Together with the dense input layer of `Recurrent` and
    `Transformer` this is a strided convolution. N is 1, plus 1 for every `stride` steps begun after the first patch;
    the last patch is padded with zeros.

    Attributes:
      network: a network of sequences `[B, N, patch_size * C]` with the arguments `mask` and `train`.
      patch_size: steps in a patch.
      stride: steps from the start of one patch to the next, 1 to `patch_size`.

    >>> class Identity(nn.Module):
    ...     def __call__(self, x, *, mask=None, train=False):
    ...         return x
    >>> PatchNetwork(Identity(), patch_size=4, stride=2).apply({}, jnp.arange(6.0).reshape(1, 6, 1)).tolist()
    [[[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]]]
    """

    network: nn.Module
    patch_size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False) -> Any:
        """Applies the network to the patches of `x` `[B, T, C]`.

        Args:
          x: sequences.
          mask: `[B, T]`, 0 for padding. A patch without a real step that its predecessor lacks is padding.
          train: passed to the network.

        Raises:
          ConfigError: `patch_size` or `stride` is out of range, or `x` is not `[B, T, C]`.
        """
        size, stride = self.patch_size, self.stride
        if not 1 <= stride <= size:
            raise ConfigError(f"PatchNetwork: the stride, {stride}, must be 1 to the patch size, {size}")
        if x.ndim != 3:
            raise ConfigError(f"PatchNetwork: inputs must be sequences [B, T, C], got {list(x.shape)}")
        # Indices [N, size] of the steps of each patch, the last of which may reach beyond the series.
        starts = np.arange(0, max(x.shape[1] - size + stride, 1), stride)
        steps = starts[:, None] + np.arange(size)
        padding = ((0, 0), (0, max(steps[-1, -1] + 1 - x.shape[1], 0)))
        # Padding becomes zeros, whatever it holds (NaN, too).
        x = x if mask is None else jnp.where((mask != 0)[..., None], x, jnp.zeros((), x.dtype))
        x = jnp.pad(x, (*padding, (0, 0)))[:, steps].reshape(x.shape[0], len(starts), -1)
        if mask is None:
            return self.network(x, train=train)
        # Of a later patch, only the last `stride` steps are new.
        real = jnp.pad(mask != 0, padding)[:, steps]
        patch_mask = jnp.concatenate([real[:, :1].any(axis=2), real[:, 1:, size - stride :].any(axis=2)], axis=1)
        return self.network(x, mask=patch_mask, train=train)
