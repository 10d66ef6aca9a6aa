"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, heads, kmeans, likelihoods, losses, mixture, network, processes
from foldax.learners.a2c import a2c
from foldax.learners.autoencoder import autoencoder
from foldax.learners.byol import byol, slowing
from foldax.learners.contrastive import nt_xent, simclr
from foldax.learners.diffusion import Sampler, diffusion
from foldax.learners.dqn import dqn
from foldax.learners.gan import GAN, gan
from foldax.learners.masked import masked_autoencoder
from foldax.learners.off_policy import Memory
from foldax.learners.ppo import Surrogate, ppo
from foldax.learners.pqn import pqn
from foldax.learners.probe import probed
from foldax.learners.recurrent_ppo import recurrent_ppo
from foldax.learners.reinforce import reinforce
from foldax.learners.sac import sac
from foldax.learners.sequences import forecaster, language_model, perplexity, sequence_classifier, step_classifier
from foldax.learners.subset import subset
from foldax.learners.supervised import classifier, gaussian_regressor, regressor
from foldax.learners.td3 import Noise, td3
from foldax.learners.vae import VAE, decoded_images, vae

__all__ = [
    "GAN",
    "Memory",
    "Noise",
    "VAE",
    "Sampler",
    "Surrogate",
    "a2c",
    "autoencoder",
    "byol",
    "classifier",
    "decoded_images",
    "diffusion",
    "dqn",
    "forecaster",
    "gan",
    "gaussian_regressor",
    "gradients",
    "heads",
    "kmeans",
    "language_model",
    "likelihoods",
    "losses",
    "masked_autoencoder",
    "mixture",
    "network",
    "nt_xent",
    "perplexity",
    "processes",
    "ppo",
    "pqn",
    "probed",
    "recurrent_ppo",
    "regressor",
    "reinforce",
    "sac",
    "sequence_classifier",
    "simclr",
    "slowing",
    "step_classifier",
    "subset",
    "td3",
    "vae",
]
