"""Flax Linen modules; every network is called as `model(x, train=...)`."""

from foldax.models.activations import ACTIVATIONS, activation
from foldax.models.cnn import CNN
from foldax.models.convolution import convolution
from foldax.models.initializers import INITIALIZERS, initializer
from foldax.models.layers import Conv, ConvTranspose, Dropout, normalization, pool
from foldax.models.mlp import MLP

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "INITIALIZERS",
    "MLP",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "activation",
    "convolution",
    "initializer",
    "normalization",
    "pool",
]
