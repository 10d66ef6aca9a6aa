"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, kmeans, likelihoods, losses, network
from foldax.learners.autoencoder import autoencoder
from foldax.learners.sequences import forecaster, language_model, perplexity, sequence_classifier, step_classifier
from foldax.learners.subset import subset
from foldax.learners.supervised import classifier, gaussian_regressor, regressor
from foldax.learners.vae import VAE, decoded_images, vae

__all__ = [
    "VAE",
    "autoencoder",
    "classifier",
    "decoded_images",
    "forecaster",
    "gaussian_regressor",
    "gradients",
    "kmeans",
    "language_model",
    "likelihoods",
    "losses",
    "network",
    "perplexity",
    "regressor",
    "sequence_classifier",
    "step_classifier",
    "subset",
    "vae",
]
