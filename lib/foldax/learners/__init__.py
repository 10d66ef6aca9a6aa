"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, kmeans, likelihoods, losses, network, processes
from foldax.learners.autoencoder import autoencoder
from foldax.learners.diffusion import Sampler, diffusion
from foldax.learners.gan import GAN, gan
from foldax.learners.sequences import forecaster, language_model, perplexity, sequence_classifier, step_classifier
from foldax.learners.subset import subset
from foldax.learners.supervised import classifier, gaussian_regressor, regressor
from foldax.learners.vae import VAE, vae

__all__ = [
    "GAN",
    "VAE",
    "Sampler",
    "autoencoder",
    "classifier",
    "diffusion",
    "forecaster",
    "gan",
    "gaussian_regressor",
    "gradients",
    "kmeans",
    "language_model",
    "likelihoods",
    "losses",
    "network",
    "perplexity",
    "processes",
    "regressor",
    "sequence_classifier",
    "step_classifier",
    "subset",
    "vae",
]
