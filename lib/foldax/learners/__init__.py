"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, losses, tasks
from foldax.learners.clustering import kmeans, mixture
from foldax.learners.generative import likelihoods, noise_schedule
from foldax.learners.generative.diffusion import Sampler, diffusion
from foldax.learners.generative.gan import GAN, gan
from foldax.learners.generative.vae import VAE, decoded_images, vae
from foldax.learners.rl import return_distributions
from foldax.learners.rl.a2c import a2c
from foldax.learners.rl.dqn import dqn
from foldax.learners.rl.off_policy import Memory
from foldax.learners.rl.ppo import Surrogate, ppo
from foldax.learners.rl.pqn import pqn
from foldax.learners.rl.recurrent_ppo import recurrent_ppo
from foldax.learners.rl.reinforce import reinforce
from foldax.learners.rl.sac import sac
from foldax.learners.rl.td3 import Noise, td3
from foldax.learners.self_supervised.autoencoder import autoencoder
from foldax.learners.self_supervised.byol import byol, slowing
from foldax.learners.self_supervised.masked_autoencoder import masked_autoencoder
from foldax.learners.self_supervised.simclr import nt_xent, simclr
from foldax.learners.supervised.sequences import (
    forecaster,
    language_model,
    perplexity,
    sequence_classifier,
    step_classifier,
)
from foldax.learners.supervised.supervised import classifier, gaussian_regressor, regressor
from foldax.learners.wrappers.probe import probed
from foldax.learners.wrappers.subset import subset

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
    "return_distributions",
    "kmeans",
    "language_model",
    "likelihoods",
    "losses",
    "masked_autoencoder",
    "mixture",
    "tasks",
    "nt_xent",
    "perplexity",
    "noise_schedule",
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
