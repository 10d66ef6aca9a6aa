"""An encoder whose features are learned through a head that is thrown away: what contrastive learners train."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import linen as nn


class Represented(NamedTuple):
    """What a `Projected` makes of inputs.

    Attributes:
      features: `[B, D]`, what is used afterwards.
      projections: `[B, P]`, what the loss compares.
      predictions: `[B, P]`, of another view's projections, or None.
    """

    features: jax.Array
    projections: jax.Array
    predictions: jax.Array | None = None


class Projected(nn.Module):
    """An encoder, a projection head (Chen et al., 2020) and maybe a predictor (Grill et al., 2020) on top of it.

    With `method=Projected.encode` it gives features alone.

    Attributes:
      encoder: any network `[B, ...]` to `[B, D]`.
      head: any network of features `[B, D]` to `[B, P]`.
      predictor: any network of projections `[B, P]` to `[B, P]`, or None.
    """

    encoder: Any
    head: Any
    predictor: Any = None

    def __call__(self, x: jax.Array, *, train: bool = False) -> Represented:
        """Returns features, projections and predictions."""
        features = self.encode(x, train=train)
        projections = self.head(features, train=train)
        predictions = None if self.predictor is None else self.predictor(projections, train=train)
        return Represented(features, projections, predictions)

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the features `[B, D]` of inputs."""
        return self.encoder(x, train=train)
