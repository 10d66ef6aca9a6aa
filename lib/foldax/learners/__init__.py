"""Learners: one module per algorithm, each a function that returns a `foldax.Learner`.

`Task`, `network_learner` and `gradient_step` are the parts of a learner of your own (see `foldax.learners.tasks`).
"""

from foldax.learners import gradients, losses, tasks
from foldax.learners.clustering import kmeans, mixture
from foldax.learners.generative import likelihoods, noise_schedule
from foldax.learners.generative.diffusion import SamplerSettings, diffusion
from foldax.learners.generative.gan import GAN, gan
from foldax.learners.generative.vae import VAE, decode_images, vae
from foldax.learners.gradients import LossFunction, TrainState, gradient_step, init_train_state, minibatch_epochs
from foldax.learners.rl import on_policy, return_distributions
from foldax.learners.rl.a2c import A2CSettings, a2c, policy_gradient_loss
from foldax.learners.rl.alphazero import AlphaZeroSettings, alphazero, alphazero_loss
from foldax.learners.rl.dqn import DQNSettings, dqn
from foldax.learners.rl.off_policy import ReplaySettings
from foldax.learners.rl.ppo import PPOSettings, ppo, ppo_loss
from foldax.learners.rl.pqn import PQNSettings, pqn
from foldax.learners.rl.recurrent_ppo import recurrent_ppo
from foldax.learners.rl.reinforce import ReinforceSettings, reinforce
from foldax.learners.rl.sac import SACSettings, sac
from foldax.learners.rl.td3 import TD3Settings, td3
from foldax.learners.self_supervised.autoencoder import autoencoder
from foldax.learners.self_supervised.byol import byol, byol_momentum_schedule
from foldax.learners.self_supervised.masked_autoencoder import masked_autoencoder
from foldax.learners.self_supervised.simclr import nt_xent, simclr
from foldax.learners.supervised.classification import classifier
from foldax.learners.supervised.forecasting import forecaster
from foldax.learners.supervised.regression import gaussian_regressor, regressor
from foldax.learners.supervised.sequences import language_model, perplexity, sequence_classifier, step_classifier
from foldax.learners.tasks import NetworkOptions, Task, input_function, network_learner
from foldax.learners.wrappers.probe import with_probe
from foldax.learners.wrappers.subset import subset

# Supervised learning
__all__ = ["classifier", "regressor", "gaussian_regressor", "forecaster"]
__all__ += ["language_model", "perplexity", "sequence_classifier", "step_classifier"]
# Self-supervised learning
__all__ += ["autoencoder", "masked_autoencoder", "simclr", "nt_xent", "byol", "byol_momentum_schedule"]
# Generative models
__all__ += ["VAE", "vae", "decode_images", "likelihoods", "GAN", "gan"]
__all__ += ["diffusion", "SamplerSettings", "noise_schedule"]
# Clustering
__all__ += ["kmeans", "mixture"]
# On-policy reinforcement learning
__all__ += ["a2c", "A2CSettings", "policy_gradient_loss", "ppo", "PPOSettings", "ppo_loss", "recurrent_ppo"]
__all__ += ["reinforce", "ReinforceSettings", "pqn", "PQNSettings", "on_policy"]
# Off-policy reinforcement learning
__all__ += ["dqn", "DQNSettings", "sac", "SACSettings", "td3", "TD3Settings", "ReplaySettings", "return_distributions"]
# Self-play
__all__ += ["alphazero", "AlphaZeroSettings", "alphazero_loss"]
# Learners around a learner
__all__ += ["subset", "with_probe"]
# Parts of a learner of your own
__all__ += ["Task", "tasks", "network_learner", "NetworkOptions", "input_function", "losses"]
__all__ += ["gradients", "TrainState", "LossFunction", "init_train_state", "gradient_step", "minibatch_epochs"]
