"""Fashion-MNIST without labels: a Transformer sees a quarter of an image's patches and tells the others.

    foldax run experiments/unsupervised/masked_fashion.py

Accuracy on 10,000 test images with 10,000 labels (seed 0), of the image's 784 pixels and of the 64 features:

                                        pixels    features
    logistic regression                 0.834     0.743
    20 neighbours                       0.796     0.775

On this budget, not quite five epochs of a small network, the features know less of the classes than the pixels do. The
squared error of hidden pixels, in units of their patch's deviation, is 0.486; `hidden.png` shows what was told. Some
four minutes on 2 CPU cores that others used too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, optim, plots


@foldax.config
class Config(foldax.Training):
    steps: int = 2_000
    log_every = 100
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    batch_size: int = 128
    """Images per step."""
    patch_size: int = 4
    """Sides of a patch: 4 makes 49 patches of an image of 28 x 28."""
    visible: int = 12
    """Patches that the encoder sees while it learns."""
    width: int = 64
    """Of the encoder, and of the features."""
    depth: int = 3
    """Blocks of the encoder."""
    decoder_width: int = 32
    """Of the decoder, which has one block."""
    normalized: bool = True
    """Tell each patch's pixels from their mean, in units of their deviation."""
    learning_rate: float = 2e-3
    """Peak of AdamW's schedule: linear warmup, then cosine decay."""
    weight_decay: float = 5e-2
    """Of AdamW."""
    probe_rate: float = 3e-3
    """Peak of the cosine schedule of the linear probe's Adam."""
    memory: int = 4_096
    """Images among which neighbours are looked for."""
    compared: int = 10_000
    """Training images with which pixels and features are compared in the end."""


def dataset(config: Config) -> data.Dataset:
    return data.load("fashion_mnist", batch_size=config.batch_size)


def unit(images: jax.Array) -> jax.Array:
    """Returns images of 0 to 255 as floats from 0 to 1."""
    return jnp.asarray(images, jnp.float32) * (1 / 255)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MaskedAutoencoder(
        info.shapes["inputs"],
        patch_size=config.patch_size,
        visible=config.visible,
        width=config.width,
        depth=config.depth,
        decoder_width=config.decoder_width,
    )
    schedule = optim.warmup_cosine(config.learning_rate, config.steps, warmup=0.05)
    made = learners.masked_autoencoder(
        model,
        optax.adamw(schedule, b2=0.95, eps=1e-6, weight_decay=config.weight_decay),
        normalized=config.normalized,
        preprocess=unit,
        augment=augment.random_flip(),
    )
    probe = optax.adam(optax.cosine_decay_schedule(config.probe_rate, config.steps), eps=1e-4)
    return learners.probed(made, info.num_classes, probe, memory=config.memory)


def figures(result: foldax.Result) -> dict[str, Any]:
    test = result.values["test"]
    return {
        "comparison": comparison(result),
        "hidden": hidden(test, np.asarray(unit(result.examples("test")["inputs"][:2_000]))),
        "features": plots.embedding(test["features"], test["targets"], result.info.class_names),
    }


def comparison(result: foldax.Result) -> str:
    """Returns a table of what a linear probe and neighbours make of pixels and of what was learned."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, scores, test = result.dataset.train.examples(), result.metrics["test"], result.values["test"]
    chosen = slice(0, result.config.compared)
    labels, images = np.asarray(train["targets"][chosen]), np.asarray(train["inputs"][chosen])
    blocks = [np.asarray(result.predict(images[i : i + 500])) for i in range(0, len(images), 500)]
    pixels = images.reshape(len(images), -1).astype(np.float32)
    rows = result.examples("test")["inputs"].reshape(len(test["targets"]), -1).astype(np.float32)
    both = ((pixels, rows), (np.concatenate(blocks), test["features"]))
    makers = {
        f"logistic regression, {len(labels):,} labels": lambda: make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1_000)
        ),
        f"20 neighbours, {len(labels):,} labels": lambda: KNeighborsClassifier(20, metric="cosine", weights="distance"),
    }
    table: dict[str, list[float | None]] = {
        name: [make().fit(known, labels).score(new, test["targets"]) for known, new in both]
        for name, make in makers.items()
    }
    table["linear probe, trained on the way"] = [None, scores["probe_accuracy"]]
    table[f"20 neighbours among {result.config.memory:,}"] = [None, scores["knn_accuracy"]]
    lines = [f"{'':<38}{'pixels':>10}{'features':>10}"]
    for name, values in table.items():
        lines.append(f"{name:<38}" + "".join(f"{'' if value is None else f'{value:.4f}':>10}" for value in values))
    return f"accuracy on {len(rows):,} test images\n" + "\n".join(lines)


def hidden(test: dict[str, np.ndarray], images: np.ndarray, columns: int = 10) -> Any:
    """Draws images of all classes: what was seen, what was told of the rest, and what is there."""
    labels = test["targets"][: len(images)]
    rows = np.array([np.flatnonzero(labels == label)[0] for label in np.unique(labels)[:columns]])
    masks, told = test["masks"][rows], test["reconstructions"][rows]
    seen = np.where(masks > 0, 0.5, images[rows])  # what is hidden is grey
    whole = np.where(masks > 0, told, images[rows])
    return plots.image_rows(np.stack([seen, whole, images[rows]]).clip(0, 1), ("seen", "told", "there"))


experiment = foldax.Experiment(Config, learner, dataset, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
