"""Layers and functions shared by networks."""

from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.attention import dot_product_attention
from foldax.models.layers.building_blocks import Conv, Dense, Dropout, Normalization, Remat, normalization, pool, repeat
from foldax.models.layers.initializers import Initializer, initializer

__all__ = ["Activation", "activation", "Initializer", "initializer", "Normalization", "normalization"]
__all__ += ["Conv", "Dense", "Dropout", "dot_product_attention", "pool", "Remat", "repeat"]
