"""Handwritten digits without labels: what stays the same when an image is turned, moved and blurred by noise.

    foldax run experiments/unsupervised/contrastive_digits.py
    foldax run experiments/unsupervised/contrastive_digits.py --method byol

SimCLR on 359 test images, mean and standard deviation over seeds 0 to 7, beside the pixels themselves (seed 0 and
`comparison.txt` for those):

                                              SimCLR               pixels
    linear probe, accuracy                    0.9868 +- 0.0039     0.975
    20 neighbours, accuracy                   0.9788 +- 0.0036     0.972
    10 clusters of projections, Rand index    0.8894 +- 0.0132
    10 clusters of features, Rand index       0.8590 +- 0.0285     0.627

    foldax sweep experiments/unsupervised/contrastive_digits.py --exact --seeds 8

The Rand index is adjusted for chance: k-means on rows of length 1. Temperature and layer matter to clusters, and little
to a probe: means of seeds 0 to 3 (`--temperature 0.1 0.3 0.5`; 1.0: 0 to 7), with 1e-5 for Adam's eps:

    temperature                      0.1      0.3      0.5      1.0
    linear probe, accuracy           0.987    0.990    0.987    0.988
    Rand index of features           0.754    0.829    0.856    0.879
    Rand index of projections        0.339    0.860    0.907    0.892

About a minute a run on 2 CPU cores.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, plots
from foldax.learners.clustering import kmeans


@foldax.config
class Config(foldax.Training):
    steps: int = 2_000
    log_every = 100
    evaluate_every = 500
    monitor = "knn_accuracy"  # a contrastive loss is of batches, and there is none of an example
    mode = "max"
    keep = "last"  # the rate decays to 0
    method: Literal["simclr", "byol"] = "simclr"
    """Views are told from other images' (SimCLR), or foretold by a slower copy of the network (BYOL)."""
    batch_size: int = 128
    """Images per step, of two views each."""
    channels: tuple[int, ...] = (32, 64)
    """Channels of the encoder's convolutions; each is followed by pooling."""
    width: int = 256
    """Number of features."""
    projections: int = 64
    """Numbers that the loss compares."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule of AdamW."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    temperature: float = 1.0
    """Of SimCLR's cross-entropy."""
    decay: float = 0.99
    """Of BYOL's target network at the start; it rises to 1."""
    amount: float = 1.0
    """Of augmentation: 1 turns by up to 15 degrees, moves by up to a pixel, resizes by up to 20%, shears by up to 10
    degrees, and adds noise of one grey level of 16."""
    probe_rate: float = 1e-2
    """Peak of the cosine schedule of the linear probe's Adam."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def unit(images: jax.Array) -> jax.Array:
    """Returns images of 0 to 16 as floats from 0 to 1."""
    return jnp.asarray(images, jnp.float32) * (1 / 16)


def encoder(config: Any) -> models.CNN:
    """Returns the network whose features are learned; pretrain_finetune has it too."""
    return models.CNN(config.width, config.channels, dense=(), normalization="batch")


def head(config: Any) -> models.MLP:
    """Returns the network that makes projections of features; pretrain_finetune may have it too."""
    return models.MLP((config.width, config.projections), normalization="batch")


def views(amount: Any) -> augment.Augmentation:
    """Returns the augmentation that draws a view; strengths as in `Config.amount`."""
    moved = augment.random_affine(rotation=15 * amount, translation=amount / 8, scale=0.2 * amount, shear=10 * amount)
    return augment.chain(moved, augment.noise(amount))


def learner(config: Config, info: data.Info) -> foldax.Learner:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, eps=1e-4, weight_decay=config.weight_decay)  # see `learners.simclr`
    common: dict[str, Any] = dict(views=views(config.amount), preprocess=unit)
    if config.method == "simclr":
        made = learners.simclr(
            models.Projected(encoder(config), head(config)), optimizer, temperature=config.temperature, **common
        )
    else:
        model = models.Projected(encoder(config), head(config), head(config))
        decay = learners.slowing(config.decay, config.steps)
        made = learners.byol(model, optimizer, decay=decay, **common)
    probe = optax.adam(optax.cosine_decay_schedule(config.probe_rate, config.steps), eps=1e-4)
    return learners.probed(made, info.num_classes, probe)


def summarize(values: dict[str, Any]) -> dict[str, float]:
    """Returns how ten clusters of normalised features, and of projections, agree with the classes (Rand, adjusted)."""
    return {f"{name}_rand": clustered(values[name], values["targets"]) for name in ("features", "projections")}


def clustered(rows: np.ndarray, targets: np.ndarray) -> float:
    """Returns the adjusted Rand index of k-means on rows `[N, D]` of length 1 and classes `[N]`."""
    rows = unit_rows(rows)
    count = min(10, len(rows))
    centers, _ = jax.jit(kmeans.fit, static_argnums=2)(jax.random.key(0), rows, count)
    found = {"targets": targets, "assignments": np.asarray(kmeans.assign(rows, centers))}
    return kmeans.agreement(found)["adjusted_rand"]


def figures(result: foldax.Result) -> dict[str, Any]:
    test, train = result.values["test"], result.dataset.train.examples()
    images, seen = result.examples("test")["inputs"], np.asarray(train["inputs"])
    labels, names = np.asarray(train["targets"]), result.info.class_names
    features = np.asarray(result.predict(seen).features)
    shown = np.unique(test["targets"], return_index=True)[1][:6]  # the first image of each of six classes
    return {
        "comparison": comparison(result, seen.reshape(len(seen), -1), features, labels, images),
        "projections": plots.embedding(test["projections"], test["targets"], names),
        "neighbors": neighbors(images[shown], test["features"][shown], seen, features, labels, names),
        "views": drawn_views(result, images[shown]),
    }


def comparison(
    result: foldax.Result, pixels: np.ndarray, features: np.ndarray, labels: np.ndarray, images: np.ndarray
) -> str:
    """Returns a table of what a probe, neighbours and clusters make of pixels and of what was learned."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    test, scores = result.values["test"], result.metrics["test"]
    rows = images.reshape(len(images), -1).astype(np.float32)
    table = {
        "scikit-learn's logistic regression": [
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            .fit(known, labels)
            .score(new, test["targets"])
            for known, new in ((pixels, rows), (features, test["features"]))
        ],
        "linear probe, trained on the way": [None, scores["probe_accuracy"]],
        "20 neighbours": [
            KNeighborsClassifier(20, metric="cosine", weights="distance")
            .fit(pixels, labels)
            .score(rows, test["targets"]),
            scores["knn_accuracy"],
        ],
        "10 clusters, adjusted Rand index": [clustered(rows, test["targets"]), scores["features_rand"]],
        "the same of projections": [None, scores["projections_rand"]],
    }
    lines = [f"{'':<38}{'pixels':>10}{result.config.method:>10}"]
    for name, values in table.items():
        lines.append(f"{name:<38}" + "".join(f"{'' if value is None else f'{value:.4f}':>10}" for value in values))
    return f"{len(images)} test images\n" + "\n".join(lines)


def neighbors(
    images: np.ndarray,
    features: np.ndarray,
    seen: np.ndarray,
    known: np.ndarray,
    labels: np.ndarray,
    names: Any,
    columns: int = 8,
) -> Any:
    """Draws test images `[R, ...]`, and behind each the training images whose features are likest."""
    cosines = unit_rows(features) @ unit_rows(known).T
    likest = np.argsort(-cosines, axis=1)[:, : columns - 1]
    shown = np.concatenate([np.concatenate([images[i : i + 1], seen[likest[i]]]) for i in range(len(images))])
    titles = [
        text for i in range(len(images)) for text in ("test image", *(names[label] for label in labels[likest[i]]))
    ]
    return plots.image_grid(shown, titles, columns=columns, title="nearest training images by features, with class")


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def drawn_views(result: foldax.Result, images: np.ndarray, count: int = 6) -> Any:
    """Draws images, and behind each some views as training draws them."""
    keys = jax.random.split(jax.random.key(result.config.seed), count)
    draw = views(result.config.amount)
    drawn = np.stack(
        [
            images.astype(np.float32),
            *(np.asarray(draw(k, {"inputs": images.astype(np.float32)})["inputs"]) for k in keys),
        ],
        axis=1,
    )
    titles = ["image", *["view"] * count] * len(images)
    return plots.image_grid(drawn.reshape(-1, *images.shape[1:]).clip(0, 16), titles, columns=count + 1)


experiment = foldax.Experiment(Config, learner, dataset, summarize=summarize, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
