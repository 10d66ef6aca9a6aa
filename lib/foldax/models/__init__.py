"""Networks and layers, as Flax Linen modules.

Every network is called as `model(x, train=...)`; networks for sequences also take `mask=...`, `[B, T]`, which is 0 at
padding and may hold segment ids of packed sequences. Outputs are float32 whatever type a network computes in, and
parameters are float32 always. Dropout rates may be traced, so sweeping them compiles once. A learner takes any network
with Flax's `init` and `apply`, so your own modules work wherever these do; `from_nnx` and `from_equinox` adapt modules
of Flax NNX and Equinox.

>>> import jax, jax.numpy as jnp
>>> model = MLP((32, 10), dropout=0.1)
>>> images = jnp.ones((4, 8, 8, 1))
>>> variables = model.init(jax.random.key(0), images)
>>> model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)}).shape
(4, 10)
"""

from foldax.models.adapters.equinox import EquinoxModel, from_equinox
from foldax.models.adapters.nnx import NNXModel, from_nnx
from foldax.models.distributions import (
    Categorical,
    Distribution,
    Joint,
    MultiCategorical,
    Normal,
    SquashedNormal,
    mask_distribution,
    mask_values,
)
from foldax.models.generation import generate, sample_tokens
from foldax.models.layers.activations import ACTIVATIONS, activation
from foldax.models.layers.building_blocks import Conv, ConvTranspose, Dropout, normalization, pool, repeat
from foldax.models.layers.convolution import convolution
from foldax.models.layers.initializers import INITIALIZERS, initializer
from foldax.models.layers.sequences import check_tokens, pool_sequence
from foldax.models.layers.spectral_norm import SpectralNorm
from foldax.models.networks.actor_critic import (
    ActorCritic,
    ActorCriticOutput,
    DeterministicActor,
    GaussianActor,
    RecurrentActorCritic,
    TwinCritic,
)
from foldax.models.networks.autoencoder import Autoencoder, AutoencoderOutput, LocalAutoregressiveHead, Upsampler
from foldax.models.networks.cnn import CNN, NatureCNN
from foldax.models.networks.denoisers import DiT, UNet
from foldax.models.networks.fcn import FCN
from foldax.models.networks.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderOutput, patchify, unpatchify
from foldax.models.networks.mlp import MLP
from foldax.models.networks.multi_input import MultiInputEncoder
from foldax.models.networks.patch_network import PatchNetwork
from foldax.models.networks.projection import ProjectionNetwork, SSLOutput
from foldax.models.networks.q_network import NoisyDense, QNetwork
from foldax.models.networks.recurrent import Recurrent
from foldax.models.networks.resnet import ResNet
from foldax.models.networks.transformer import HiddenStates, Transformer
from foldax.models.networks.vit import MLPMixer, ViT

# Networks for images and vectors
__all__ = ["MLP", "CNN", "NatureCNN", "ResNet", "ViT", "MLPMixer"]
# Networks for sequences
__all__ += ["FCN", "PatchNetwork", "Recurrent", "Transformer", "HiddenStates"]
# Generative networks
__all__ += ["Autoencoder", "AutoencoderOutput", "Upsampler", "LocalAutoregressiveHead", "UNet", "DiT"]
# Self-supervised networks
__all__ += ["MaskedAutoencoder", "MaskedAutoencoderOutput", "patchify", "unpatchify", "ProjectionNetwork", "SSLOutput"]
# Networks of agents, discrete and continuous
__all__ += ["ActorCritic", "ActorCriticOutput", "RecurrentActorCritic", "QNetwork", "NoisyDense"]
__all__ += ["DeterministicActor", "GaussianActor", "TwinCritic", "MultiInputEncoder"]
# Modules of Flax NNX and Equinox
__all__ += ["from_nnx", "NNXModel", "from_equinox", "EquinoxModel"]
# Distributions over actions
__all__ += ["Distribution", "Categorical", "Normal", "SquashedNormal", "MultiCategorical", "Joint"]
__all__ += ["mask_distribution", "mask_values"]
# Layers
__all__ += ["Conv", "ConvTranspose", "convolution", "Dropout", "SpectralNorm", "normalization", "repeat"]
__all__ += ["pool", "pool_sequence"]
# Activations and initialisers by name
__all__ += ["ACTIVATIONS", "activation", "INITIALIZERS", "initializer"]
# Generation of sequences
__all__ += ["generate", "sample_tokens", "check_tokens"]
