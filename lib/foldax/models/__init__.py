"""Flax Linen modules; every network is called as `model(x, train=...)`, one of sequences also with `mask=...`."""

from foldax.models.activations import ACTIVATIONS, activation
from foldax.models.actor_critic import ActorCritic, Opinion, RecurrentActorCritic
from foldax.models.autoencoder import Autoencoder, Coded, Upsampler
from foldax.models.cnn import CNN
from foldax.models.continuous import Actor, GaussianActor, TwinCritic
from foldax.models.convolution import convolution
from foldax.models.denoisers import DiT, UNet
from foldax.models.fcn import FCN
from foldax.models.generate import generate, sample
from foldax.models.initializers import INITIALIZERS, initializer
from foldax.models.layers import Conv, ConvTranspose, Dropout, normalization, pool, repeat
from foldax.models.masked import Masked, MaskedAutoencoder, patched, unpatched
from foldax.models.mlp import MLP
from foldax.models.nature import NatureCNN
from foldax.models.neighbours import Neighbours
from foldax.models.patches import Patched
from foldax.models.projected import Projected, Represented
from foldax.models.q_network import NoisyDense, QNetwork
from foldax.models.recurrent import Recurrent
from foldax.models.resnet import ResNet
from foldax.models.sequences import check_tokens, pool_sequence
from foldax.models.spectral import SpectralNorm
from foldax.models.transformer import Transformer
from foldax.models.vit import MLPMixer, ViT

__all__ = [
    "ACTIVATIONS",
    "Actor",
    "ActorCritic",
    "Autoencoder",
    "CNN",
    "Coded",
    "FCN",
    "GaussianActor",
    "INITIALIZERS",
    "MLP",
    "Conv",
    "DiT",
    "ConvTranspose",
    "Dropout",
    "MLPMixer",
    "NoisyDense",
    "Opinion",
    "QNetwork",
    "Masked",
    "MaskedAutoencoder",
    "NatureCNN",
    "Neighbours",
    "Patched",
    "Projected",
    "Recurrent",
    "RecurrentActorCritic",
    "Represented",
    "ResNet",
    "SpectralNorm",
    "Transformer",
    "TwinCritic",
    "UNet",
    "Upsampler",
    "ViT",
    "activation",
    "check_tokens",
    "convolution",
    "generate",
    "initializer",
    "normalization",
    "patched",
    "pool",
    "pool_sequence",
    "repeat",
    "sample",
    "unpatched",
]
