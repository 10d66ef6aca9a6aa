"""Flax Linen modules; every network is called as `model(x, train=...)`, one of sequences also with `mask=...`."""

from foldax.models.generation import generate, sample
from foldax.models.layers.activations import ACTIVATIONS, activation
from foldax.models.layers.building_blocks import Conv, ConvTranspose, Dropout, normalization, pool, repeat
from foldax.models.layers.convolution import convolution
from foldax.models.layers.initializers import INITIALIZERS, initializer
from foldax.models.layers.sequences import check_tokens, pool_sequence
from foldax.models.layers.spectral_norm import SpectralNorm
from foldax.models.networks.actor_critic import ActorCritic, Opinion, RecurrentActorCritic
from foldax.models.networks.autoencoder import Autoencoder, Coded, Upsampler
from foldax.models.networks.cnn import CNN
from foldax.models.networks.continuous_control import Actor, GaussianActor, TwinCritic
from foldax.models.networks.denoisers import DiT, UNet
from foldax.models.networks.fcn import FCN
from foldax.models.networks.local_autoregressive import Neighbours
from foldax.models.networks.masked_autoencoder import Masked, MaskedAutoencoder, patched, unpatched
from foldax.models.networks.mlp import MLP
from foldax.models.networks.nature_cnn import NatureCNN
from foldax.models.networks.patch_network import Patched
from foldax.models.networks.projection import Projected, Represented
from foldax.models.networks.q_network import NoisyDense, QNetwork
from foldax.models.networks.recurrent import Recurrent
from foldax.models.networks.resnet import ResNet
from foldax.models.networks.transformer import Transformer
from foldax.models.networks.vit import MLPMixer, ViT

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
