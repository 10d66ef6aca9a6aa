"""Flax Linen modules; every one is called as `model(x, train=...)`."""

from foldax.models.layers import Dropout
from foldax.models.mlp import MLP

__all__ = ["MLP", "Dropout"]
