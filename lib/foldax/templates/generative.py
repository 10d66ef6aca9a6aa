"""NAME: say here which data are modelled, and how many bits per dimension the model needs.

foldax run FILE
foldax run FILE --latent-size 8 --beta 0.5 --seed 1
foldax check FILE
"""

from typing import Any

import numpy as np
import optax

import foldax
from foldax import data, learners, models, plots

NUM_LEVELS = 17  # values of a pixel: 0 to 16


@foldax.config
class Config(foldax.Training):  # steps, seed, log_every, evaluate_every, patience, ...: `foldax run FILE --help`
    """Hyperparameters of the autoencoder and its training."""

    steps: int = 1_000
    batch_size: int = 64
    """Examples per step."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the hidden layers of encoder and decoder."""
    latent_size: int = 8
    """Dimension of the latents."""
    beta: float = 1.0  # a float is traced: changing it compiles nothing, sweeping it compiles once
    """Weight of the KL divergence."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""


def dataset(config: Config) -> data.Dataset:
    """Loads images `[8, 8, 1]` of handwritten digits."""
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """Builds a variational autoencoder of two MLPs."""
    # The encoder outputs mean and log standard deviation of the latents, the decoder the likelihood's parameters.
    likelihood, pixels = learners.likelihoods.discretized_logistic(NUM_LEVELS), int(np.prod(info.shapes["inputs"]))
    encoder = models.MLP((*config.hidden, 2 * config.latent_size))
    decoder = models.MLP((*config.hidden, likelihood.num_parameters * pixels))
    model = learners.VAE(encoder, decoder, likelihood, preprocess=info.standardize)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return learners.vae(model, optax.adamw(schedule), beta=config.beta, samples_per_example=1)


def figures(result: foldax.Result) -> dict[str, Any]:
    """Draws images that the decoder generates."""
    # Outputs of `evaluate` by name, for every example of a split.
    samples = np.asarray(result.values["test"]["samples"])[:64, 0]
    return {"samples": plots.image_grid(samples)}


experiment = foldax.Experiment(Config, learner, dataset, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
