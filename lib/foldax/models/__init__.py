"""Flax Linen modules; every network is called as `model(x, train=...)`."""

from foldax.models.cnn import CNN
from foldax.models.convolution import convolution
from foldax.models.layers import Conv, ConvTranspose, Dropout, normalization, pool
from foldax.models.mlp import MLP

__all__ = ["CNN", "MLP", "Conv", "ConvTranspose", "Dropout", "convolution", "normalization", "pool"]
