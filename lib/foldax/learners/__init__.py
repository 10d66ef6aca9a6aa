"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, kmeans, likelihoods, losses, mixture, network, processes, returns
from foldax.learners.a2c import a2c
from foldax.learners.autoencoder import autoencoder
from foldax.learners.byol import byol, slowing
from foldax.learners.contrastive import nt_xent, simclr
from foldax.learners.diffusion import Sampler, diffusion
from foldax.learners.dqn import Memory, dqn
from foldax.learners.gan import GAN, gan
from foldax.learners.masked import masked_autoencoder
from foldax.learners.ppo import Surrogate, ppo
from foldax.learners.pqn import pqn
from foldax.learners.probe import probed
from foldax.learners.recurrent_ppo import recurrent_ppo
from foldax.learners.reinforce import reinforce
from foldax.learners.sequences import forecaster, language_model, perplexity, sequence_classifier, step_classifier
from foldax.learners.subset import subset
from foldax.learners.supervised import classifier, gaussian_regressor, regressor
from foldax.learners.vae import VAE, decoded_images, vae

__all__ = [
    "GAN",
    "Memory",
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
    "returns",
    "sequence_classifier",
    "simclr",
    "slowing",
    "step_classifier",
    "subset",
    "vae",
]
