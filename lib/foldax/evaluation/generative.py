"""How good generated images are: useful, true to the data, diverse, and not remembered.

One set of measures for all generators. Images are `[N, H, W, C]` (any shape after N), generated ones in the units of
real ones; distances are float64, on the host.

A generator's learner with an option `samples` above 0 returns from `evaluate` "samples" `[B, S, H, W, C]`, S of them
drawn for each example's class, and "targets" `[B]`; `with_images` adds the real "images". An experiment whose
`summarize` is `generative.summarize` then reports the accuracy of training on generated images, in lone runs and in
sweeps; `comparison` is what its figures may say of one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import experiment_name
from foldax.learner import Learner

BLOCK = 500  # examples at a time, so that distances and activations need little memory


def with_images(learner: Learner) -> Learner:
    """Returns the learner with the batch's "inputs" among what `evaluate` gives, as "images", and its "targets"."""

    def evaluate(state: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
        targets = jnp.asarray(batch["targets"], jnp.int32)
        return {"targets": targets, **learner.evaluate(state, batch, key), "images": jnp.asarray(batch["inputs"])}

    return learner._replace(evaluate=evaluate)


def summarize(values: dict[str, np.ndarray], count: int = 2000) -> dict[str, float]:
    """Returns {"generated_accuracy": `train_on_generated`} of a split: `Experiment.summarize` as it is.

    Without "samples" there is nothing to tell, nor where they are not finite or all the same: a run that has failed, or
    has not begun to learn, does not end for that.

    Args:
      values: "samples" `[N, S, ...]`, made for the classes "targets" int `[N]` of the real "images" `[N, ...]`.
      count: of samples to train on at most: the first of every example, then the second, and so on.

    Raises:
      ExperimentError: there are samples, but no targets or images.
    """
    if "samples" not in values:
        return {}
    for name in ("targets", "images"):
        if name not in values:
            raise ExperimentError(f'generative.summarize: evaluate gives "samples" but no "{name}" (see with_images)')
    samples, labels = drawn(values, count)
    if not np.isfinite(samples).all() or _constant(samples):
        return {}
    return {"generated_accuracy": train_on_generated(samples, labels, values["images"], values["targets"])}


def drawn(values: dict[str, np.ndarray], count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples `[M, ...]` of a split's values and their labels int `[M]`, `count` of them at most."""
    samples = np.asarray(values["samples"])
    flat = samples.swapaxes(0, 1).reshape(-1, *samples.shape[2:])
    return flat[:count], np.tile(np.asarray(values["targets"]), samples.shape[1])[:count]


def train_on_generated(samples: Any, labels: Any, images: Any, targets: Any) -> float:
    """Returns the accuracy on real images of a classifier that has seen generated ones alone (Esteban et al., 2017).

    The classifier is a support vector machine with an RBF kernel, C = 10 and gamma = 1 / (numbers of an image * their
    variance). Trained on 1,438 real digits it has 0.99.

    Args:
      samples: generated, `[M, ...]`.
      labels: their classes, int `[M]`.
      images: real, `[N, ...]`.
      targets: their classes, int `[N]`.

    Raises:
      ExperimentError: shapes differ, there are no real images, samples are of fewer than two classes, all the same or
        not finite.
    """
    from sklearn.svm import SVC

    samples, images = _rows(samples, "samples"), _rows(images, "images")
    labels, targets = _labels(labels, samples, "labels"), _labels(targets, images, "targets")
    _same_width(samples, images, "samples", "images")
    if _constant(samples):
        raise ExperimentError(f"samples: all {len(samples)} are the same image; nothing can be learned from them")
    if len(np.unique(labels)) < 2:
        raise ExperimentError(f"labels: a classifier needs samples of two classes or more, got {np.unique(labels)}")
    if not len(images):
        raise ExperimentError("images: there is no real image to test on")
    return float(SVC(C=10.0, gamma="scale").fit(samples, labels).score(images, targets))


def features(result: Any, images: Any) -> np.ndarray:
    """Returns what a trained classifier's last dense layer is given, float32 `[N, D]`, without dropout.

    Distances of such features are about what matters for the classes. They are NOT comparable with published Inception
    scores (FID), nor between two classifiers: compare generators by one classifier only, and name it.

    Args:
      result: `foldax.Result` of a Flax network that classifies.
      images: `[N, ...]`, as its learner takes them.

    Raises:
      ExperimentError: its learner cannot predict, or there is no `nn.Dense` in what it predicts with.
    """
    predict, images = result.learner.predict, np.asarray(images)
    if predict is None:
        raise ExperimentError("features: this learner has no `predict`")

    def penultimate(state: Any, images: jax.Array) -> jax.Array:
        given: list[jax.Array] = []

        def listen(call: Any, arguments: Any, options: Any, context: Any) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                given[:] = arguments[:1]
            return call(*arguments, **options)

        with nn.intercept_methods(listen):
            predict(state, images, jax.random.key(0))
        if not given:
            raise ExperimentError("features: the classifier has no nn.Dense, whose inputs could be its features")
        return given[0].reshape(len(images), -1).astype(jnp.float32)

    program = jax.jit(penultimate)
    return np.concatenate([np.asarray(program(result.state, images[block])) for block in _blocks(len(images))])


def frechet_distance(first: Any, second: Any) -> float:
    """Returns the squared Frechet distance of two sets of features as if each were normal (Heusel et al., 2017).

    It is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of means and covariances. Few examples make it larger: compare
    only what was measured with as many, and put beside it what real images have.

    Args:
      first: `[N, D]`.
      second: `[M, D]`.

    Raises:
      ExperimentError: a set has fewer than two rows or is not finite, or the widths differ.
    """
    first, second = _rows(first, "first"), _rows(second, "second")
    _same_width(first, second, "first", "second")
    for name, rows in (("first", first), ("second", second)):
        if len(rows) < 2:
            raise ExperimentError(f"{name}: a covariance needs two rows of features or more, got {len(rows)}")
    one, other = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (first, second))
    root = _root(one)
    # C1 C2 has the eigenvalues of this symmetric matrix, and so the trace of its root.
    product = np.linalg.eigvalsh(root @ other @ root)
    overlap = np.sqrt(np.maximum(product, 0)).sum()
    apart = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(max(apart + np.trace(one) + np.trace(other) - 2 * overlap, 0.0))


def precision_recall(real: Any, generated: Any, k: int = 3) -> tuple[float, float]:
    """Returns the improved precision and recall of generated features (Kynkaanniemi et al., 2019).

    Precision is the share of generated rows that lie within the distance of some real row to its k-th nearest real one:
    whether samples look real. Recall is the same with the two exchanged: whether all that is real could be generated.
    Both depend on how many rows there are; take as many of either.

    Args:
      real: `[N, D]`.
      generated: `[M, D]`.
      k: neighbours, 1 or more.

    Raises:
      ConfigError: k is below 1 or not below the number of rows.
      ExperimentError: the widths differ, rows are not finite, or the real ones all the same.
    """
    real, generated = _rows(real, "real"), _rows(generated, "generated")
    _same_width(real, generated, "real", "generated")
    if not 1 <= k < min(len(real), len(generated)):
        raise ConfigError(f"k: {k} must be from 1 to below the number of rows, {len(real)} and {len(generated)}")
    if _constant(real):
        raise ExperimentError(f"real: all {len(real)} rows are the same; there is nothing to be near to")
    return _within(generated, real, k), _within(real, generated, k)


def between(shape: tuple[int, ...], count: int, steps: int, seed: int) -> np.ndarray:
    """Returns `count` ways from one normal draw to another, float32 `[count, steps, *shape]`.

    They run along circles, so that what is on the way is as long as what is drawn (White, 2016).
    """
    first, second = np.random.default_rng(seed).standard_normal((2, count, 1, *shape))
    angle = np.linspace(0, np.pi / 2, steps).reshape(-1, *[1] * len(shape))
    return (np.cos(angle) * first + np.sin(angle) * second).astype(np.float32)


def nearest_neighbours(samples: Any, training_images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index int `[N]` of every sample's nearest training image, and its Euclidean distance `[N]`.

    Samples that were remembered have distances near 0. Put beside them the distances of real images that the generator
    has not seen: samples that are much nearer than those are copies.

    Raises:
      ExperimentError: shapes differ, something is not finite, or there are no training images.
    """
    samples, training = _rows(samples, "samples"), _rows(training_images, "training_images")
    _same_width(samples, training, "samples", "training_images")
    if not len(training):
        raise ExperimentError("training_images: there are none")
    found = [(d.argmin(axis=1), d.min(axis=1)) for d in _distances(samples, training)]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate([index for index, _ in found]), np.concatenate([distance for _, distance in found])


def comparison(
    samples: np.ndarray, labels: np.ndarray, train: dict[str, np.ndarray], test: dict[str, np.ndarray], classifier: Any
) -> str:
    """Returns a table of all measures against test images, of generated images and of real training images.

    Features are those of `classifier`. Distances, precision and recall are of equally many images of each kind.

    Args:
      samples: generated, `[M, ...]`.
      labels: their classes, int `[M]`.
      train: real images, "inputs" `[N, ...]`, and their classes, "targets" int `[N]`.
      test: the same, which neither generator nor classifier has seen.
      classifier: `foldax.Result` (see `features`).
    """
    real, unseen = (np.asarray(split["inputs"]) for split in (train, test))
    count = min(len(samples), len(real), len(unseen))
    expected = features(classifier, unseen[:count])
    columns: list[dict[str, float]] = []
    for images, targets, near in ((samples, labels, samples), (real, train["targets"], unseen)):
        found = features(classifier, images[:count])
        precision, recall = precision_recall(expected, found)
        columns.append(
            {
                "accuracy": train_on_generated(images, targets, unseen, test["targets"]),
                "Frechet distance": frechet_distance(expected, found),
                "precision": precision,
                "recall": recall,
                "distance": float(np.median(nearest_neighbours(near[:count], real)[1])),
            }
        )
    says = {
        "accuracy": f"on {len(unseen)} test images of an SVC trained on {len(samples)} and {len(real)}",
        "distance": "median, of generated and of test images to the nearest training image",
    }
    lines = [f"{'':<18}{'generated':>12}{'real':>12}"]
    for name, value in columns[0].items():
        lines.append(f"{name:<18}{value:>12.4f}{columns[1][name]:>12.4f}   {says.get(name, '')}".rstrip())
    lines.append(f"Frechet distance, precision, recall: {count} images generated, or of training, against as many")
    judge = experiment_name(classifier.experiment)
    return "\n".join([*lines, f"in features of our own classifier ({judge}): not comparable with Inception scores"])


def _within(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    """Returns the share of points that are no further from some centre than that is from its k-th nearest other one."""
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(centers, centers)])  # 0th: itself
    return float(np.concatenate([(d <= radii[None, :]).any(axis=1) for d in _distances(points, centers)]).mean())


def _distances(points: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    from scipy.spatial.distance import cdist

    return (cdist(points[block], others) for block in _blocks(len(points)))


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _root(matrix: np.ndarray) -> np.ndarray:
    """Returns the symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _rows(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < 2:
        raise ExperimentError(f"{name}: must be [N, ...], one row per example, got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ExperimentError(f"{name}: some numbers are not finite")
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def _labels(labels: Any, rows: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        raise ExperimentError(
            f"{name}: must be integers [{len(rows)}], one per image, got {labels.dtype} {list(labels.shape)}"
        )
    return labels


def _same_width(first: np.ndarray, second: np.ndarray, one: str, other: str) -> None:
    if first.shape[1] != second.shape[1]:
        raise ExperimentError(f"{one} have {first.shape[1]} numbers each and {other} {second.shape[1]}")


def _constant(rows: np.ndarray) -> bool:
    return len(rows) == 0 or bool((rows == rows[:1]).all())
