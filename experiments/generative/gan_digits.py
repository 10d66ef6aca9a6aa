"""Class-conditional Wasserstein GAN with gradient penalty on handwritten digits (8 x 8 pixels).

    foldax run experiments/generative/gan_digits.py

TSTR accuracy (an SVC trained on 2,000 generated digits, tested on 359 real ones): 0.9788 +- 0.0030, mean and standard
deviation over seeds 8 to 15 (trained on the 1,258 real digits: 0.983). A run takes 35 s of CPU time, 72 s on 2 shared
cores.

    foldax sweep experiments/generative/gan_digits.py --exact --seed 8 --seeds 8

The other objectives with the same settings, seeds 0 and 1: hinge with spectral normalisation 0.983, non-saturating
0.935. Samples are less diverse than real digits: their recall is 0.55 with seed 0 (training images: 0.79), and 0.69
after twice the steps.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, plots
from foldax.evaluation import generative


@foldax.config
class Config(foldax.Training):
    steps: int = 4_000
    log_every = 200
    evaluate_every = 1_000
    keep = "last"  # evaluation uses a moving average of the generator
    objective: Literal["non_saturating", "wasserstein", "hinge"] = "wasserstein"
    """Objective of both networks."""
    discriminator_steps: int = 2
    """Discriminator steps per generator step, which share the batch."""
    gradient_penalty_weight: float = 1.0
    """Weight of the gradient penalty; used by the Wasserstein objective without spectral normalisation."""
    spectral_norm: bool = False
    """Spectral normalisation of the discriminator."""
    latent_size: int = 32
    """Dimension of the latents."""
    batch_size: int = 128
    """Real images per update."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of both networks."""
    learning_rate: float = 1e-3
    """Learning rate of the generator's Adam, which has no momentum."""
    discriminator_learning_rate: float = 1e-3
    """Learning rate of the discriminator's Adam."""
    ema_decay: float = 0.999
    """Decay of the moving average of the generator, which is evaluated."""
    augmentation_strength: float = 0.2
    """Strength: 1 rotates by up to 20 degrees, shifts by up to a pixel and scales by up to 15%."""
    samples_per_example: int = 12
    """Samples per example of a split, of its class; at most 2,000 of them train the SVC."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def normalize(images: jax.Array) -> jax.Array:
    """Scales grey levels 0 to 16 to [-1, 1]."""
    return jnp.asarray(images, jnp.float32) * (1 / 8) - 1


def learner(config: Config, info: data.Info) -> foldax.Learner:
    shape, strength = info.shapes["inputs"], config.augmentation_strength
    generator = models.MLP((*config.hidden, int(np.prod(shape))), "gelu")
    discriminator = models.MLP((*config.hidden, info.num_classes), "leaky_relu")
    if config.spectral_norm:
        discriminator = models.SpectralNorm(discriminator)
    penalized = config.objective == "wasserstein" and not config.spectral_norm
    rates = config.learning_rate, config.discriminator_learning_rate
    inner = learners.gan(
        learners.GAN(generator, discriminator, shape, config.latent_size, info.num_classes, jnp.tanh),
        *[optax.adam(rate, b1=0.0, b2=0.9) for rate in rates],
        objective=config.objective,
        gradient_penalty_weight=config.gradient_penalty_weight if penalized else None,
        discriminator_steps=config.discriminator_steps,
        preprocess=normalize,
        postprocess=lambda images: 8 * (images + 1),
        augment=augment.random_affine(rotation=20 * strength, translation=strength / 8, scale=0.15 * strength),
        ema_decay=config.ema_decay,
        samples_per_example=config.samples_per_example,
    )
    return generative.with_images(inner)


def interpolations(result: foldax.Result, labels: np.ndarray, steps: int = 10) -> np.ndarray:
    """Generates images `[N, steps, H, W, C]` from latents interpolated between two draws, for each label."""
    size = result.config.latent_size
    latents = generative.interpolate((size,), len(labels), steps, result.config.seed).reshape(-1, size)
    images = result.predict({"inputs": np.repeat(labels, steps), "latents": latents})
    return np.asarray(images).reshape(len(labels), steps, *result.info.shapes["inputs"])


def figures(result: foldax.Result) -> dict[str, Any]:
    names = result.info.class_names
    train = {name: np.asarray(leaf) for name, leaf in result.dataset.train.examples().items()}
    images = np.asarray(result.predict(np.repeat(np.arange(10), 12))).reshape(10, 12, *result.info.shapes["inputs"])
    flat = images.reshape(-1, *images.shape[2:])
    nearest, distances = generative.nearest_neighbors(flat, train["inputs"])
    closest = np.argsort(distances)[:12]
    drawings = {
        "samples": plots.image_rows(images, names, title="samples of each class"),
        "interpolation": plots.image_rows(
            interpolations(result, np.arange(10)), names, title="interpolation of the latents"
        ),
        "neighbours": plots.nearest_neighbors(
            flat[closest],
            train["inputs"][nearest[closest]],
            distances[closest],
            f"the {len(closest)} of {len(flat)} samples that are nearest to a training image",
        ),
    }
    if not result.config.samples_per_example:
        return drawings
    digits = foldax.load_experiment(Path(__file__).parents[1] / "supervised" / "digits.py")
    classifier = foldax.train(digits, save=False, verbose=False)
    samples, labels = generative.collect_samples(result.values["test"], 2000)
    table = generative.compare_to_real(samples, labels, train, result.examples("test"), classifier)
    return {"comparison": table, **drawings}


experiment = foldax.Experiment(Config, learner, dataset, generative.summarize, figures)

if __name__ == "__main__":
    foldax.main(experiment)
