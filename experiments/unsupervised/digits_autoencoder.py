"""Handwritten digits through a few numbers and back: an autoencoder beside principal components.

    foldax run experiments/unsupervised/digits_autoencoder.py
    foldax run experiments/unsupervised/digits_autoencoder.py --codes 16

Mean squared error of 359 test images (pixels from 0 to 1), mean and standard deviation over seeds 0 to 7, beside that
of as many principal components; 12 s a run on 2 CPU cores:

    8 codes     0.01128 +- 0.00011    PCA 0.0237
    16 codes    0.00558 +- 0.00020    PCA 0.0113

    foldax sweep experiments/unsupervised/digits_autoencoder.py --exact --codes 8 16 --seeds 8
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, plots


@foldax.config
class Config(foldax.Training):
    steps: int = 6_000
    log_every = 200
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    codes: int = 8
    """Numbers that an image is described by."""
    batch_size: int = 64
    """Examples per step."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers; the decoder's are these in reverse."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule of AdamW."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    amount: float = 0.3
    """Of augmentation: 1 turns by up to 20 degrees, moves by up to a pixel and resizes by up to 15%."""
    noise: float = 0.0
    """Deviation of what is added to the inputs, of 16 grey levels, and is to be taken away."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def unit(images: jax.Array) -> jax.Array:
    """Returns images of 0 to 16 as floats from 0 to 1."""
    return jnp.asarray(images, jnp.float32) * (1 / 16)


def network(config: Config, info: data.Info) -> Any:
    shape = info.shapes["inputs"]
    encoder = models.MLP((*config.hidden, config.codes), activation="gelu")
    decoder = models.MLP((*reversed(config.hidden), int(np.prod(shape))), activation="gelu")
    return models.Autoencoder(encoder, decoder, shape)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    amount = config.amount
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return learners.autoencoder(
        network(config, info),
        optax.adamw(schedule, weight_decay=config.weight_decay),
        preprocess=unit,
        augment=augment.random_affine(rotation=20 * amount, translation=amount / 8, scale=0.15 * amount),
        corruption=augment.noise(config.noise),
    )


def principal_components(train: np.ndarray, test: np.ndarray, count: int) -> np.ndarray:
    """Returns test rows `[N, D]` as the training rows' first components give them back."""
    from sklearn.decomposition import PCA

    model = PCA(count, svd_solver="full").fit(train)
    return model.inverse_transform(model.transform(test))


def figures(result: foldax.Result) -> dict[str, Any]:
    test, count = result.values["test"], result.config.codes
    images = np.asarray(unit(result.examples("test")["inputs"]))
    rows, train = images.reshape(len(images), -1), np.asarray(unit(result.dataset.train.examples()["inputs"]))
    by_pca = principal_components(train.reshape(len(train), -1), rows, count)
    ours, theirs = result.metrics["test"]["squared_error"], float(np.square(by_pca - rows).mean())
    shown = np.stack([images, test["reconstructions"], by_pca.reshape(images.shape)])[:, :12].clip(0, 1)
    names = [name for name in ("given", "autoencoder", f"PCA, {count}") for _ in range(shown.shape[1])]
    return {
        "comparison": f"mean squared error of {len(images)} test images, pixels from 0 to 1, {count} codes\n"
        f"autoencoder, seed {result.config.seed:<10}{ours:.4f}\n{'PCA':<28}{theirs:.4f}\n"
        f"{1 - ours / theirs:.0%} lower",
        "reconstructions": plots.image_grid(shown.reshape(-1, *images.shape[1:]), names, columns=shown.shape[1]),
        "codes": plots.embedding(test["codes"], test["targets"], result.info.class_names),
    }


experiment = foldax.Experiment(Config, learner, dataset, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
