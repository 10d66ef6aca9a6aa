"""Encoders of observations with several parts, such as an image and a vector."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError


class MultiInputEncoder(nn.Module):
    """Encodes each part of a dict of arrays `[B, ...]` by a network of its own and joins the results, `[B, D]`.

    It is the `encoder` of `ActorCritic` and `QNetwork` for such observations.

    Attributes:
      encoders: network from `[B, ...]` to `[B, D]` for each key; None: the part is flattened.

    Raises:
      ConfigError: the observations have other keys.

    >>> from foldax.models import MLP
    >>> observations = {"image": jnp.zeros((5, 4, 4, 1)), "vector": jnp.zeros((5, 3))}
    >>> encoder = MultiInputEncoder({"image": MLP((8,)), "vector": None})
    >>> encoder.apply(encoder.init(jax.random.key(0), observations), observations).shape
    (5, 11)
    """

    encoders: Mapping[str, nn.Module | None]

    @nn.compact
    def __call__(self, x: Mapping[str, jax.Array], *, train: bool = False) -> jax.Array:
        """Applies the encoders to a dict of arrays `[B, ...]`."""
        found = sorted(x) if isinstance(x, Mapping) else f"one array {list(x.shape[1:])}"
        if found != sorted(self.encoders):
            raise ConfigError(
                f"MultiInputEncoder: observations are {found}, the encoders are for {sorted(self.encoders)}"
            )
        # In the order of the keys, which is also that of a tree's leaves.
        parts = [encode_observations(self.encoders[name], x[name], train) for name in sorted(x)]
        return jnp.concatenate(parts, axis=-1)


def encode_observations(encoder: nn.Module | None, x: Any, train: bool) -> jax.Array:
    """Applies an encoder to observations `[B, ...]` as float32, or flattens them to `[B, D]` if there is none.

    Args:
      encoder: network to `[B, D]`; None flattens.
      x: an array, or with an encoder for it a tree of arrays.
      train: whether the encoder runs in training mode.

    Raises:
      ConfigError: observations are a tree of arrays, and there is no encoder.
    """
    if encoder is None and not hasattr(x, "shape"):
        found = jax.tree.map(lambda part: list(part.shape[1:]), x)
        remedy = (
            'encoder=models.MultiInputEncoder({"image": models.CNN(...), "vector": None}), or an encoder of your own'
        )
        raise ConfigError(f"observations are {found}, and this network takes one array; give it {remedy}")
    x = jax.tree.map(lambda part: jnp.asarray(part, jnp.float32), x)
    return x.reshape(x.shape[0], -1) if encoder is None else encoder(x, train=train)
