"""An encoder with a projection head, and optionally a predictor: the network of SimCLR and BYOL."""

from typing import NamedTuple

import jax
from flax import linen as nn


class SSLOutput(NamedTuple):
    """Output of a `ProjectionNetwork`.

    Attributes:
      features: `[B, D]`, the representation that is used after training.
      projections: `[B, P]`, the vectors that the loss compares.
      predictions: `[B, P]`, predictions of another view's projections, or None without a predictor.
    """

    features: jax.Array
    projections: jax.Array
    predictions: jax.Array | None = None


class ProjectionNetwork(nn.Module):
    """An encoder, a projection head (Chen et al., 2020) and optionally a predictor (Grill et al., 2020).

    With `method=ProjectionNetwork.encode` it returns the features alone.

    Attributes:
      encoder: a network from inputs `[B, ...]` to features `[B, D]`.
      head: a network from features `[B, D]` to projections `[B, P]`; discarded after training.
      predictor: a network from projections `[B, P]` to predictions `[B, P]`, or None.

    >>> import jax.numpy as jnp
    >>> from foldax.models import MLP
    >>> model = ProjectionNetwork(encoder=MLP((8, 4)), head=MLP((2,)))
    >>> output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((3, 5)))
    >>> output.features.shape, output.projections.shape
    ((3, 4), (3, 2))
    """

    encoder: nn.Module
    head: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, x: jax.Array, *, train: bool = False) -> SSLOutput:
        """Computes features, projections and predictions."""
        features = self.encode(x, train=train)
        projections = self.head(features, train=train)
        predictions = None if self.predictor is None else self.predictor(projections, train=train)
        return SSLOutput(features, projections, predictions)

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the features `[B, D]` of inputs."""
        return self.encoder(x, train=train)
