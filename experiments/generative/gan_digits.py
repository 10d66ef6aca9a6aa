"""Handwritten digits by two players: a generator told which digit to write, and a critic of what it wrote.

    foldax run experiments/generative/gan_digits.py

seed
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models
from foldax.evaluation import generative


@foldax.config
class Config(foldax.Training):
    steps: int = 20_000
    log_every = 500
    evaluate_every = 0  # only at the end
    keep = "last"  # the loss is no more than a hint
    game: str = "wasserstein"
    """Or "non_saturating" or "hinge"."""
    codes: int = 32
    """Numbers that an image is made of, beside its class."""
    batch_size: int = 128
    """Real images per step, shared among the critic's."""
    critic_steps: int = 2
    """Steps of the critic within one update."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of both networks."""
    spectral: bool = False
    """Whether the critic's kernels are divided by their largest singular values."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule of the generator's Adam."""
    critic_rate: float = 1e-3
    """Of the critic's."""
    gradient_penalty: float = 1.0
    """Weight."""
    ema_decay: float = 0.999
    """Of the generator that is evaluated."""
    amount: float = 0.2
    """Of augmentation."""
    dropout: float = 0.0
    """Rate of the critic."""
    samples: int = 12
    """Drawn for each example of an evaluation."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def unit(images: jax.Array) -> jax.Array:
    """Returns images of 0 to 16 as floats from -1 to 1."""
    return jnp.asarray(images, jnp.float32) * (1 / 8) - 1


def learner(config: Config, info: data.Info) -> foldax.Learner:
    shape, amount = info.shapes["inputs"], config.amount
    maker = models.MLP((*config.hidden, int(np.prod(shape))), "gelu")
    critic = models.MLP((*config.hidden, info.num_classes), "leaky_relu", dropout=config.dropout)
    if config.spectral:
        critic = models.SpectralNorm(critic)
    adam = [
        optax.adam(optax.cosine_decay_schedule(rate, steps), b1=0.0, b2=0.9)
        for rate, steps in (
            (config.learning_rate, config.steps),
            (config.critic_rate, config.steps * config.critic_steps),
        )
    ]
    made = learners.gan(
        learners.GAN(maker, critic, shape, config.codes, info.num_classes, jnp.tanh),
        *adam,
        game=config.game,
        gradient_penalty=None if config.spectral else config.gradient_penalty,
        discriminator_steps=config.critic_steps,
        preprocess=unit,
        finish=lambda images: 8 * (images + 1),
        augment=augment.random_affine(rotation=20 * amount, translation=amount / 8, scale=0.15 * amount),
        ema_decay=config.ema_decay,
        samples=config.samples,
    )
    return generative.with_images(made)


experiment = foldax.Experiment(Config, learner, dataset, summarize=generative.summarize)

if __name__ == "__main__":
    foldax.main(experiment)
