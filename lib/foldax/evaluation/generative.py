"""Measures of generated images, shared by all generators: usefulness, fidelity, diversity and memorisation.

Images are `[N, H, W, C]` (or any shape after N), generated images in the units of real ones; distances are computed in
float64 on the host.

With `samples_per_example`, a generator's `evaluate` returns the outputs "samples" `[B, S, H, W, C]`, S per example and
of its class, and "targets" `[B]`; `with_images` adds the real "images". An experiment whose `summarize` is
`generative.summarize` then reports "tstr_accuracy" in single runs and in sweeps. `compare_to_real` makes a table of all
measures for the figures of one run.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import experiment_name
from foldax.learner import Batch, Evaluation, Key, Learner, State, as_evaluation

BLOCK_SIZE = 500  # examples processed at once, which bounds the memory of distances and activations


def with_images(learner: Learner) -> Learner:
    """Wraps a learner so that `evaluate` also returns the outputs "images", the batch's inputs, and "targets".

    Args:
      learner: a learner of batches {"inputs": `[B, ...]`, "targets": int `[B]`}.

    Returns:
      The wrapped learner.

    >>> learner = with_images(Learner(None, None, lambda state, batch, key: {"loss": jnp.zeros(2)}))
    >>> evaluation = learner.evaluate(None, {"inputs": np.zeros((2, 8, 8, 1)), "targets": np.array([3, 7])}, None)
    >>> sorted(evaluation.outputs)
    ['images', 'targets']
    """

    def evaluate(state: State, batch: Batch, key: Key) -> Evaluation:
        # A learner may return a plain dict of metrics.
        evaluation = as_evaluation(learner.evaluate(state, batch, key))
        targets = jnp.asarray(batch["targets"], jnp.int32)
        return evaluation.with_values(outputs={"targets": targets, "images": jnp.asarray(batch["inputs"])})

    return learner._replace(evaluate=evaluate)


def summarize(values: Mapping[str, np.ndarray], count: int = 2000) -> dict[str, float]:
    """Computes {"tstr_accuracy": ...} of a split; to be passed as `Experiment.summarize`.

    The result is empty without "samples", and if they are not finite or all equal: a run that failed, or has not begun
    to learn, still ends normally.

    Args:
      values: "samples" `[N, S, ...]`, of the classes "targets" int `[N]` of the real "images" `[N, ...]`.
      count: maximum number of samples to train on, in the order of `collect_samples`.

    Returns:
      Metrics by name.

    Raises:
      ExperimentError: there are samples but no targets or no images.

    >>> summarize({"targets": np.array([0, 1])})
    {}
    """
    if "samples" not in values:
        return {}
    for name in ("targets", "images"):
        if name not in values:
            problem = f'evaluate returns "samples" but no "{name}"'
            raise ExperimentError(f"summarize: {problem}; wrap the learner in with_images")
    samples, labels = collect_samples(values, count)
    # A failed generator must not fail the run that reports it.
    if not np.isfinite(samples).all() or _is_constant(samples):
        return {}
    return {"tstr_accuracy": tstr_accuracy(samples, labels, values["images"], values["targets"])}


def collect_samples(values: Mapping[str, np.ndarray], count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Collects the samples of a split: the first sample of every example, then the second, and so on.

    Args:
      values: "samples" `[N, S, ...]` and their classes "targets" int `[N]`.
      count: maximum number of samples; None: all.

    Returns:
      Samples `[M, ...]` and their labels int `[M]`.

    >>> samples, labels = collect_samples({"samples": np.zeros((3, 2, 8, 8, 1)), "targets": np.array([5, 6, 7])}, 4)
    >>> samples.shape, labels.tolist()
    ((4, 8, 8, 1), [5, 6, 7, 5])
    """
    samples = np.asarray(values["samples"])
    # [S, N, ...]: the first `count` samples are of as many different examples as possible.
    flat = samples.swapaxes(0, 1).reshape(-1, *samples.shape[2:])
    return flat[:count], np.tile(np.asarray(values["targets"]), samples.shape[1])[:count]


def tstr_accuracy(samples: ArrayLike, labels: ArrayLike, images: ArrayLike, targets: ArrayLike) -> float:
    """Accuracy on real images of a classifier trained on generated ones ("train on synthetic, test on real").

    The classifier is a support vector machine with an RBF kernel, C = 10 and gamma = 1 / (elements of an image *
    variance). Source: Esteban et al. (2017). Trained on 1,438 real digits it reaches 0.99.

    Args:
      samples: generated images, `[M, ...]`.
      labels: their classes, int `[M]`.
      images: real images, `[N, ...]`.
      targets: their classes, int `[N]`.

    Returns:
      Accuracy, from 0 to 1.

    Raises:
      ExperimentError: shapes differ; there are no real images; samples are all equal, not finite or of a single class.

    >>> samples = np.array([[0.0, 0.1], [0.1, 0.0], [1.0, 0.9], [0.9, 1.0]])
    >>> tstr_accuracy(samples, np.array([0, 0, 1, 1]), samples + 0.01, np.array([0, 0, 1, 1]))
    1.0
    """
    from sklearn.svm import SVC

    samples, images = _as_rows(samples, "samples"), _as_rows(images, "images")
    labels, targets = _check_labels(labels, samples, "labels"), _check_labels(targets, images, "targets")
    _check_same_width(samples, images, "samples", "images")
    if _is_constant(samples):
        raise ExperimentError(f"samples: all {len(samples)} are the same image; a classifier cannot learn from them")
    if len(np.unique(labels)) < 2:
        raise ExperimentError(f"labels: a classifier needs samples of two classes or more, got {np.unique(labels)}")
    if not len(images):
        raise ExperimentError("images: there are no real images to test on")
    return float(SVC(C=10.0, gamma="scale").fit(samples, labels).score(images, targets))


def classifier_features(result: Result, images: ArrayLike) -> np.ndarray:
    """Computes the inputs of a trained classifier's last dense layer, without dropout.

    Distances between such features depend on the classifier: they are NOT comparable with published Inception scores
    (FID), nor between two classifiers. Compare generators by the same classifier, and name it.

    Args:
      result: `foldax.Result` of a Flax network that classifies.
      images: `[N, ...]`, as its learner takes them.

    Returns:
      Features, float32 `[N, D]`.

    Raises:
      ExperimentError: the learner has no `predict`, or its network no `nn.Dense`.
    """
    predict, images = result.learner.predict, np.asarray(images)
    if predict is None:
        raise ExperimentError("classifier_features: this learner has no `predict`")

    def penultimate(state: State, images: jax.Array) -> jax.Array:
        dense_inputs: list[jax.Array] = []

        def record(call: Any, arguments: Any, options: Any, context: Any) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                dense_inputs[:] = arguments[:1]
            return call(*arguments, **options)

        # The last dense layer that is called while tracing leaves its inputs in the list.
        with nn.intercept_methods(record):
            predict(state, images, jax.random.key(0))
        if not dense_inputs:
            raise ExperimentError("classifier_features: the classifier has no nn.Dense, whose inputs are the features")
        return dense_inputs[0].reshape(len(images), -1).astype(jnp.float32)

    # Blocks of one size share a program; the last one may compile another.
    program = jax.jit(penultimate)
    return np.concatenate([np.asarray(program(result.state, images[block])) for block in _blocks(len(images))])


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Squared Fréchet distance between normal distributions fitted to two sets of features (Heusel et al., 2017).

    With means m and covariances C it is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). Its bias grows as sets get
    smaller: compare only sets of equal size, and report the value of real images beside it.

    Args:
      first: features, `[N, D]`.
      second: features, `[M, D]`.

    Returns:
      The distance, 0 or more.

    Raises:
      ExperimentError: a set has fewer than two rows or is not finite, or the widths differ.

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    first, second = _as_rows(first, "first"), _as_rows(second, "second")
    _check_same_width(first, second, "first", "second")
    if min(len(first), len(second)) < 2:
        raise ExperimentError(f"a covariance needs two rows of features or more, got {len(first)} and {len(second)}")
    # One feature has a scalar covariance; make it a matrix.
    covariance1, covariance2 = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (first, second))
    root = _symmetric_sqrt(covariance1)
    # C1 C2 has the eigenvalues of this symmetric matrix, and hence the trace of its root.
    product_eigenvalues = np.linalg.eigvalsh(root @ covariance2 @ root)
    overlap = np.sqrt(np.maximum(product_eigenvalues, 0)).sum()
    between_means = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(max(between_means + np.trace(covariance1) + np.trace(covariance2) - 2 * overlap, 0.0))


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of generated features (Kynkäänniemi et al., 2019).

    Precision (fidelity) is the fraction of generated rows within the distance of some real row to its k-th nearest real
    neighbour. Recall (diversity) is the same with the sets exchanged. Both depend on the sizes of the sets: use equal
    ones.

    Args:
      real: features, `[N, D]`.
      generated: features, `[M, D]`.
      k: number of neighbours, 1 or more and below N and M.

    Returns:
      Precision and recall, from 0 to 1.

    Raises:
      ConfigError: k is out of range.
      ExperimentError: the widths differ, rows are not finite, or all real rows are equal.

    >>> real = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> precision_recall(real, np.array([[0.5], [1.5], [9.0]]), k=1)
    (0.6666666666666666, 1.0)
    """
    real, generated = _as_rows(real, "real"), _as_rows(generated, "generated")
    _check_same_width(real, generated, "real", "generated")
    if not 1 <= k < min(len(real), len(generated)):
        raise ConfigError(f"k: {k} must be from 1 to below the number of rows, {len(real)} and {len(generated)}")
    if _is_constant(real):
        raise ExperimentError(f"real: all {len(real)} rows are the same, so distances between them are 0")
    return _covered_fraction(generated, real, k), _covered_fraction(real, generated, k)


def interpolate(shape: tuple[int, ...], count: int, steps: int, seed: int) -> np.ndarray:
    """Interpolates spherically between pairs of standard normal latents (White, 2016).

    On a circle intermediate latents keep the norm of the ends; on a straight line they would be shorter than any that
    the generator was trained with.

    Args:
      shape: shape of one latent.
      count: number of pairs.
      steps: latents per pair, both ends included.
      seed: random seed of the ends.

    Returns:
      Latents, float32 `[count, steps, *shape]`.

    >>> interpolate((16,), count=3, steps=5, seed=0).shape
    (3, 5, 16)
    """
    # Independent normal vectors are nearly orthogonal in high dimensions.
    first, second = np.random.default_rng(seed).standard_normal((2, count, 1, *shape))
    angle = np.linspace(0, np.pi / 2, steps).reshape(-1, *[1] * len(shape))
    return (np.cos(angle) * first + np.sin(angle) * second).astype(np.float32)


def nearest_neighbors(samples: ArrayLike, training_images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Finds every sample's nearest training image, a test for memorisation.

    Compare the distances with those of held-out real images: samples that are much nearer are copies.

    Args:
      samples: generated images, `[N, ...]`.
      training_images: `[M, ...]`.

    Returns:
      Index int `[N]` of the nearest training image, and the Euclidean distance to it `[N]`.

    Raises:
      ExperimentError: shapes differ, values are not finite, or there are no training images.

    >>> index, distance = nearest_neighbors(np.array([[0.0, 3.0]]), np.array([[9.0, 9.0], [0.0, 0.0]]))
    >>> index.tolist(), distance.tolist()
    ([1], [3.0])
    """
    samples, training = _as_rows(samples, "samples"), _as_rows(training_images, "training_images")
    _check_same_width(samples, training, "samples", "training_images")
    if not len(training):
        raise ExperimentError("training_images: there are none")
    # The whole matrix of distances [N, M] may not fit into memory.
    blocks = [(d.argmin(axis=1), d.min(axis=1)) for d in _distance_blocks(samples, training)]
    if not blocks:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate([index for index, _ in blocks]), np.concatenate([distance for _, distance in blocks])


def compare_to_real(
    samples: np.ndarray,
    labels: np.ndarray,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    classifier: Result,
) -> str:
    """Formats a table of all measures against test images, for generated images and for real training images.

    Fréchet distance, precision, recall and neighbours are computed on equally many images of each kind.

    Args:
      samples: generated images, `[M, ...]`.
      labels: their classes, int `[M]`.
      train: real "inputs" `[N, ...]` and their classes "targets" int `[N]`.
      test: the same, unseen by generator and classifier.
      classifier: `foldax.Result` of a classifier, whose features are used (see `classifier_features`).

    Returns:
      The table as text.
    """
    train_images, test_images = (np.asarray(split["inputs"]) for split in (train, test))
    count = min(len(samples), len(train_images), len(test_images))
    test_features = classifier_features(classifier, test_images[:count])
    columns: list[dict[str, float]] = []
    # The distance of real images is that of test images: a training image is its own nearest neighbour.
    for images, targets, unseen in ((samples, labels, samples), (train_images, train["targets"], test_images)):
        features = classifier_features(classifier, images[:count])
        # Real test images are the reference in both columns.
        precision, recall = precision_recall(test_features, features)
        column = {"TSTR accuracy": tstr_accuracy(images, targets, test_images, test["targets"])}
        column |= {"Fréchet distance": frechet_distance(test_features, features), "precision": precision}
        column |= {"recall": recall, "distance": np.median(nearest_neighbors(unseen[:count], train_images)[1])}
        columns.append(column)
    notes = {"distance": "median distance of generated and of test images to the nearest training image"}
    trained = f"trained on {len(samples)} and {len(train_images)}"
    notes["TSTR accuracy"] = f"on {len(test_images)} test images, {trained}"
    lines = [f"{'':<18}{'generated':>12}{'real':>12}"]
    for name, value in columns[0].items():
        lines.append(f"{name:<18}{value:>12.4f}{columns[1][name]:>12.4f}   {notes.get(name, '')}".rstrip())
    compared = f"{count} generated or training images against {count} test images"
    lines.append(f"Fréchet distance, precision, recall: {compared}")
    name = experiment_name(classifier.experiment)
    return "\n".join([*lines, f"in features of our own classifier ({name}): not comparable with Inception scores"])


def _covered_fraction(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    """Fraction of points that are within the k-th nearest neighbour distance of some center."""
    # Index k, not k - 1: the nearest neighbour of a center is itself.
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distance_blocks(centers, centers)])
    covered = [(d <= radii[None, :]).any(axis=1) for d in _distance_blocks(points, centers)]
    return float(np.concatenate(covered).mean())


def _distance_blocks(points: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    from scipy.spatial.distance import cdist

    return (cdist(points[block], others) for block in _blocks(len(points)))


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_SIZE) for start in range(0, count, BLOCK_SIZE))


def _symmetric_sqrt(matrix: np.ndarray) -> np.ndarray:
    # Rounding may make eigenvalues of a covariance slightly negative.
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    return (eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))) @ eigenvectors.T


def _as_rows(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim < 2:
        raise ExperimentError(f"{name}: must be [N, ...], one row per example, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ExperimentError(f"{name}: some values are not finite")
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def _check_labels(labels: ArrayLike, rows: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        expected = f"integers [{len(rows)}], one per image"
        raise ExperimentError(f"{name}: must be {expected}, got {labels.dtype} {list(labels.shape)}")
    return labels


def _check_same_width(first: np.ndarray, second: np.ndarray, name1: str, name2: str) -> None:
    if first.shape[1] != second.shape[1]:
        raise ExperimentError(f"{name1} have {first.shape[1]} elements each and {name2} {second.shape[1]}")


def _is_constant(rows: np.ndarray) -> bool:
    return len(rows) == 0 or bool((rows == rows[:1]).all())
