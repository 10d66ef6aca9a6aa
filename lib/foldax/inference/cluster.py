"""`foldax cluster`: clusters the examples of a trained run, by one of its representations or by the raw inputs."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax import plots
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, DataError, ExperimentError, did_you_mean, display_path
from foldax.experiment import experiment_name
from foldax.field_values import to_plain
from foldax.inference.inputs import map_in_batches
from foldax.inference.outputs import output_path, write_csv
from foldax.learner import Batch, Key, State, as_evaluation
from foldax.learners.clustering import kmeans, mixture
from foldax.plots.style import Figure
from foldax.runs import tables
from foldax.runs.folder import write_errors
from foldax.runs.load import load_run
from foldax.runs.terminal import echo, print_table

REPRESENTATIONS = ("projections", "features", "latents", "assignments")  # defaults, in order of preference
MAX_FULL_COVARIANCE_DIM = 128
MAX_HIERARCHICAL_POINTS = 20_000  # whose distances between all pairs fit into memory
MAX_SILHOUETTE_POINTS = 2_000

Examples = dict[str, np.ndarray]
Method = Callable[[np.ndarray, int, int], np.ndarray]
"""`(points [N, D], number of clusters, seed) -> assignments [N]`."""


class Clustering(NamedTuple):
    """Result of `cluster`.

    Attributes:
      assignments: int `[N]`, clusters 0 to K - 1.
      scores: "silhouette" where it is defined and, for data with classes, "adjusted_rand_index" and
        "normalized_mutual_information".
      folder: the folder with all files.
    """

    assignments: np.ndarray
    scores: dict[str, float]
    folder: Path


def cluster(
    run: Result | str | Path,
    *,
    representation: str | None = None,
    split: str = "test",
    method: str | None = None,
    num_clusters: int | None = None,
    normalize: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    verbose: bool = True,
) -> Clustering:
    """Clusters the examples of a split; writes `assignments.csv` and `.npy`, `scores.json` and figures.

    Args:
      run: a run folder, or the `foldax.Result` of `foldax.train`.
      representation: name of a float output `[B, ...]` of the learner's `evaluate`, or "inputs"; "assignments" are the
        clusters of a learner that has its own. None: the first of `REPRESENTATIONS` that the run has.
      split: "train", "validation" or "test".
      method: "kmeans", "mixture" or "hierarchical"; k-means if None.
      num_clusters: K; the number of classes if None.
      normalize: whether points are scaled to length 1.
      seed: random seed of k-means and mixtures.
      out: output folder; `clusters/<split>-<representation>-<method>` in the run folder if None.
      verbose: whether to print a table of the clusters and the scores.

    Raises:
      ConfigError: an unknown name, a number of clusters that does not fit the points, or points that are all equal.
      DataError: the split does not exist or is streamed.
      ExperimentError: the run has no representation, or it contains values that are not finite.
      RunError: the run cannot be loaded, or the folder cannot be written.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(f"--method: there is no {_with_suggestion(method, METHODS)}")
    # 1. Points: a representation of every example of the split.
    result = run if isinstance(run, Result) else load_run(run)
    examples = _examples(result, split)
    name = _representation_name(result, examples, representation)
    values = examples["inputs"] if name == "inputs" else evaluate_output(result, examples, name)
    own_clusters = name == "assignments"
    if own_clusters and (num_clusters is not None or method is not None):
        problem = "these are the run's own clusters, so --num-clusters and --method do not apply"
        raise ConfigError(f"--representation assignments: {problem}; use --representation inputs to cluster anew")
    points = _points(examples["inputs"] if own_clusters else values, "inputs" if own_clusters else name, normalize)
    # 2. Clusters
    classes = examples.get("targets") if result.info.num_classes is not None else None
    if own_clusters:
        assignments, count = values.astype(np.int64), int(values.max()) + 1
    else:
        count = _checked_count(num_clusters if num_clusters is not None else result.info.num_classes, points)
        assignments = METHODS[method or "kmeans"](points, count, seed)
    # 3. Scores
    scores = silhouette(points, assignments)
    if classes is not None:
        scores = kmeans.clustering_scores({"targets": classes, "assignments": assignments}) | scores
    # 4. Files and figures
    label = name if own_clusters else f"{name}-{method or 'kmeans'}"
    folder = output_path(result, out, f"clusters/{split}-{label}")
    class_names = result.info.class_names or [str(label) for label in range(result.info.num_classes or 0)]
    columns: dict[str, Any] = {"row": range(len(assignments)), "cluster": assignments}
    if classes is not None:
        columns["class"] = [class_names[label] for label in classes]
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "assignments.csv", columns)
        np.save(folder / "assignments.npy", assignments, allow_pickle=False)
        (folder / "scores.json").write_text(json.dumps(to_plain(scores | {"num_clusters": count}), indent=2) + "\n")
    for figure_name, figure in _figures(points, assignments, classes, class_names, examples["inputs"]).items():
        figure.savefig(folder / f"{figure_name}.png", dpi=120)
    if verbose:
        how = "its own clusters" if own_clusters else method or "kmeans"
        echo(f"{experiment_name(result.experiment)}: {name} of {len(points):,} {split} examples, {how}")
        _print_table(assignments, classes, class_names, scores)
        for path in sorted(folder.iterdir()):
            echo(display_path(path))
    return Clustering(assignments, scores, folder)


# -- points to cluster -----------------------------------------------------------------------------


def _examples(result: Result, split: str) -> Examples:
    if not hasattr(result.info, "num_examples"):  # no dataset, or environments on the host in its place
        raise ExperimentError("this experiment has no dataset, so there is nothing to cluster")
    splits = ("train", *result.dataset.splits)
    if split not in splits:
        raise DataError(f"--split: there is no split {_with_suggestion(split, splits)}")
    if split != "train":
        return result.examples(split)
    examples = jax.device_get(result.dataset.train.examples())
    if len(next(iter(examples.values()))) < result.info.num_examples.get("train", math.inf):
        raise DataError("--split train: this split is streamed and not in memory; choose another split")
    return examples


def _representation_name(result: Result, examples: Examples, name: str | None) -> str:
    """Checks the name of a representation, or finds the default one.

    Raises:
      ConfigError: the run has no such representation.
      ExperimentError: no name, and the run has none of `REPRESENTATIONS`.
    """
    if name == "inputs":
        return name
    # Traced with one example: only names, shapes and dtypes of the outputs are needed.
    first = {key: array[:1] for key, array in examples.items()}
    with compiled.user_code_errors(result.experiment):
        values = jax.eval_shape(_evaluate(result), result.state, first, jax.random.key(0))
    arrays = {key: leaf for key, leaf in values.items() if hasattr(leaf, "dtype")}
    wide = {key for key, leaf in arrays.items() if leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)}
    allowed = [key for key in arrays if key in wide or key == "assignments"]
    if name is None:
        name = next((default for default in REPRESENTATIONS if default in allowed), None)
        if name is None:
            alternatives = f"; or choose one of {', '.join(allowed)}" if allowed else ""
            remedy = f"use --representation inputs to cluster the raw inputs{alternatives}"
            raise ExperimentError(f"`evaluate` of this run returns none of {', '.join(REPRESENTATIONS)}: {remedy}")
    if name not in allowed:
        described = _with_suggestion(name, [*allowed, "inputs"])
        raise ConfigError(f"--representation: this run has no representation {described}")
    return name


def _with_suggestion(name: str, allowed: Iterable[str]) -> str:
    return f"{name!r}{did_you_mean(name, allowed)} (there are {', '.join(allowed)})"


def _evaluate(result: Result) -> Callable[[State, Batch, Key], dict[str, Any]]:
    return lambda state, batch, key: as_evaluation(result.learner.evaluate(state, batch, key)).values


def evaluate_output(result: Result, examples: Examples, name: str) -> np.ndarray:
    """Computes one metric or output of the learner's `evaluate` for all examples, `[N, ...]`."""
    evaluate = jax.jit(lambda state, batch, key: _evaluate(result)(state, batch, key)[name])
    with compiled.user_code_errors(result.experiment):
        return map_in_batches(lambda batch, seed: evaluate(result.state, batch, jax.random.key(seed)), examples)


def _points(values: np.ndarray, name: str, normalize: bool) -> np.ndarray:
    """Flattens values to float32 points `[N, D]` and drops constant columns.

    Raises:
      ConfigError: all points are equal, or the values are tokens.
      ExperimentError: a value is not finite.
    """
    if values.ndim == 2 and name == "inputs" and values.dtype.kind in "iu":
        raise ConfigError("--representation inputs: these are tokens, which have no distances")
    points = values.reshape(len(values), -1).astype(np.float32)
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ExperimentError(f"{name}: some values are not finite, first in example {bad}")
    if normalize:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    # Constant columns do not change distances, but a Gaussian has no density there.
    points = points[:, np.ptp(points, axis=0) > 0]
    if not points.shape[1]:
        raise ConfigError(f"{name}: all {len(points):,} examples are equal, so there is nothing to cluster")
    return points


def _checked_count(count: int | None, points: np.ndarray) -> int:
    if count is None:
        raise ConfigError("--num-clusters: the data has no classes to take their number from, so this option is needed")
    if not 1 <= count <= len(points):
        raise ConfigError(f"--num-clusters: {count} must be from 1 to the number of examples, {len(points):,}")
    distinct = len(np.unique(points, axis=0))
    if count > distinct:
        raise ConfigError(f"--num-clusters: {count} is more than the {distinct:,} distinct examples")
    return count


# -- methods ---------------------------------------------------------------------------------------


def _kmeans(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    centers, _ = jax.jit(kmeans.fit, static_argnums=2)(jax.random.key(seed), points, num_clusters)
    return np.asarray(kmeans.assign(jnp.asarray(points), centers))


def _mixture(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Gaussian mixture; with full covariances if D is small and the average cluster has 2 D points or more."""
    # Scaled to a mean variance of 1, so that the default regularization fits.
    scaled = points / np.sqrt(points.var(axis=0).mean())
    small = points.shape[1] <= min(MAX_FULL_COVARIANCE_DIM, len(points) // (2 * num_clusters))
    kind: mixture.CovarianceType = "full" if small else "diagonal"
    fit = jax.jit(lambda key, points: mixture.fit(key, points, num_clusters, covariance_type=kind, num_restarts=5)[0])
    return np.asarray(mixture.assign(fit(jax.random.key(seed), scaled), jnp.asarray(scaled)))


def _hierarchical(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Agglomerative clustering by Ward's criterion (1963): merges the two clusters that add the least inertia."""
    if len(points) > MAX_HIERARCHICAL_POINTS:
        limit = f"it compares all pairs of examples, so it takes at most {MAX_HIERARCHICAL_POINTS:,} of them"
        raise ConfigError(f"--method hierarchical: {limit}, got {len(points):,}; use kmeans or mixture")
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(num_clusters).fit_predict(points) if len(points) > 1 else np.zeros(1, np.int64)


METHODS: dict[str, Method] = {"kmeans": _kmeans, "mixture": _mixture, "hierarchical": _hierarchical}


# -- scores, files and figures ---------------------------------------------------------------------


def silhouette(points: np.ndarray, assignments: np.ndarray) -> dict[str, float]:
    """Mean silhouette (Rousseeuw, 1987): -1 to 1, high where points are nearer to their own cluster than to the next.

    Args:
      points: `[N, D]`; of more than 2,000 points a random subset is scored.
      assignments: int `[N]`.

    Returns:
      "silhouette"; nothing where it is not defined, for a single cluster or for one cluster per point.

    >>> silhouette(np.array([[0.0], [0.0], [9.0], [9.0]]), np.array([0, 0, 1, 1]))
    {'silhouette': 1.0}
    """
    from sklearn import metrics

    chosen = np.random.RandomState(0).permutation(len(points))[:MAX_SILHOUETTE_POINTS]
    if not 2 <= len(np.unique(assignments[chosen])) < len(chosen):
        return {}
    return {"silhouette": float(metrics.silhouette_score(points[chosen], assignments[chosen]))}


def _figures(
    points: np.ndarray, assignments: np.ndarray, classes: np.ndarray | None, names: Sequence[str], inputs: np.ndarray
) -> dict[str, Figure]:
    labels: dict[str, Any] = {"by cluster": (assignments, None)}
    if classes is not None:
        labels["by class"] = (classes, names)
    figures = {"embedding": plots.embeddings(points, labels)}
    if inputs.ndim == 4 and inputs.shape[-1] in (1, 3):
        _, indices = np.unique(assignments, return_inverse=True)
        centers = np.stack([points[indices == index].mean(axis=0) for index in range(indices.max() + 1)])
        distances = np.linalg.norm(points - centers[indices], axis=1)
        figures["members"] = plots.cluster_members(inputs, assignments, distances)
    return figures


def _print_table(
    assignments: np.ndarray, classes: np.ndarray | None, class_names: Sequence[str], scores: dict[str, float]
) -> None:
    columns, rows = ["cluster", "examples"], []
    if classes is not None:
        columns.append("most frequent classes")
    for label, count in zip(*np.unique(assignments, return_counts=True)):
        row = [str(label), f"{count:,}"]
        if classes is not None:
            present, counts = np.unique(classes[assignments == label], return_counts=True)
            top = np.argsort(-counts, kind="stable")[:4]
            dots = " ..." if len(present) > 4 else ""
            row.append(", ".join(f"{class_names[present[i]]} {counts[i]:,}" for i in top) + dots)
        rows.append(row)
    print_table(tables.text_table(columns, rows, left=columns[2:]))
    echo("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
