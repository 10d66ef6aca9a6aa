"""`foldax cluster`: groups of a trained run's examples, by what the run makes of them or as they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, DataError, ExperimentError, RunError, nearest
from foldax.experiment import experiment_name
from foldax.learners.clustering import kmeans, mixture
from foldax.plots import common
from foldax.runs import tables
from foldax.runs.load import load_run

REPRESENTATIONS = ("projections", "features", "codes", "assignments")  # by default the first that `evaluate` gives
AT_ONCE = 256  # examples in a call
WIDE = 128  # numbers of a point whose covariances are full
PAIRS = 20_000  # points whose pairs all fit into memory
LOOKED_AT = 2_000  # points of a silhouette

Examples = dict[str, np.ndarray]


class Clustering(NamedTuple):
    """What `cluster` found.

    Attributes:
      assignments: int `[N]`, clusters 0 to K - 1.
      scores: by name; "adjusted_rand" and "mutual_information" where there are classes, and "silhouette".
      folder: where all is written.
    """

    assignments: np.ndarray
    scores: dict[str, float]
    folder: Path


def cluster(
    run: Result | str | Path,
    *,
    of: str | None = None,
    split: str = "test",
    method: str | None = None,
    clusters: int | None = None,
    normalize: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    verbose: bool = True,
) -> Clustering:
    """Clusters the examples of a split; writes `assignments.csv` and `.npy`, `scores.json` and figures.

    Args:
      run: a run folder, or what `foldax.train` returned.
      of: a value of the learner's `evaluate`, floats `[B, ...]`, or "inputs"; "assignments" are the clusters of a run
        that has its own. None: the first of `REPRESENTATIONS` that there is.
      split: "train", "validation" or "test".
      method: a name of `METHODS`; k-means if None.
      clusters: their number; that of the classes if None.
      normalize: whether points are scaled to length 1.
      seed: of k-means and mixtures.
      out: the folder to write to; `clusters/<split>-<of>-<method>` in the run folder if None.
      verbose: whether to say what was found.

    Raises:
      ConfigError: an unknown name, a number of clusters that does not fit the points, or points that are all equal.
      DataError: the split is not there.
      ExperimentError: the run has no representation, or gives something that is not finite.
      RunError: see `load_run`; or the folder cannot be written.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(
            f"--method: there is no {method!r}{nearest(method, METHODS)} (there are {', '.join(METHODS)})"
        )
    result = run if isinstance(run, Result) else load_run(run)
    examples = _examples(result, split)
    of = _representation(result, examples, of)
    values = examples["inputs"] if of == "inputs" else evaluated(result, examples, of)
    own = of == "assignments"
    if own and (clusters is not None or method is not None):
        raise ConfigError(
            "--of assignments: these are the run's own clusters, so --clusters and --method do not apply; --of inputs "
            "clusters anew"
        )
    how = "its own" if own else method or "kmeans"
    points = _points(examples["inputs"] if own else values, "inputs" if own else of, normalize)
    classes = examples.get("targets") if result.info.num_classes is not None else None
    if own:
        assignments, count = values.astype(np.int64), int(values.max()) + 1
    else:
        count = clusters if clusters is not None else result.info.num_classes
        _check_count(count, points)
        assignments = METHODS[how](points, count, seed)
    scores = agreement(assignments, classes) | silhouette(points, assignments)
    folder = _folder(result, out, f"{split}-{of}" if own else f"{split}-{of}-{how}")
    names = result.info.class_names or [str(label) for label in range(result.info.num_classes or 0)]
    title = f"{experiment_name(result.experiment)}: {of} of {len(points):,} {split} examples, {how}"
    _write(folder, assignments, classes, names, scores | {"clusters": count})
    shown = _figures(points, assignments, classes, names, examples["inputs"])
    for name, figure in shown.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    if verbose:
        _show(title, assignments, classes, names, scores)
        for path in sorted(folder.iterdir()):
            print(tables.shown(path))
    return Clustering(assignments, scores, folder)


# What is clustered


def _examples(result: Result, split: str) -> Examples:
    if not hasattr(result.info, "num_examples"):  # also where the data are what environments answer
        raise ExperimentError("this experiment has no dataset, so there is nothing to cluster")
    splits = ("train", *result.dataset.splits)
    if split not in splits:
        raise DataError(f"--split: there is no split {split!r}{nearest(split, splits)} (there are {', '.join(splits)})")
    if split != "train":
        return result.examples(split)
    examples = jax.device_get(result.dataset.train.examples())
    if len(next(iter(examples.values()))) < result.info.num_examples["train"]:
        raise DataError("--split train: it streams, so it is not there as a whole; choose another split")
    return examples


def _representation(result: Result, examples: Examples, of: str | None) -> str:
    """Returns the name of what is to be clustered.

    Raises:
      ConfigError: there is no such name.
      ExperimentError: none was given, and the run has none of its own.
    """
    if of == "inputs":
        return of
    some = {name: array[:1] for name, array in examples.items()}
    with compiled.own_code(result.experiment):
        values = jax.eval_shape(result.learner.evaluate, result.state, some, jax.random.key(0))
    arrays = {name: leaf for name, leaf in values.items() if hasattr(leaf, "dtype")}
    wide = {name for name, leaf in arrays.items() if leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)}
    allowed = [name for name in arrays if name in wide or name == "assignments"]
    if of is None:
        of = next((name for name in REPRESENTATIONS if name in allowed), None)
        if of is None:
            others = f"; or one of {', '.join(allowed)}" if allowed else ""
            raise ExperimentError(
                f"`evaluate` of this run gives none of {', '.join(REPRESENTATIONS)}: --of inputs clusters the inputs "
                f"as they are{others}"
            )
    if of not in allowed:
        raise ConfigError(
            f"--of: this run has no representation {of!r}{nearest(of, [*allowed, 'inputs'])} "
            f"(there are {', '.join([*allowed, 'inputs'])})"
        )
    return of


def evaluated(result: Result, examples: Examples, name: str) -> np.ndarray:
    """Returns one of the values of the learner's `evaluate` for all examples, `[N, ...]`."""
    evaluate = jax.jit(lambda state, batch, key: result.learner.evaluate(state, batch, key)[name])
    count, parts = len(examples["inputs"]), []
    size = min(count, AT_ONCE)
    for number, first in enumerate(range(0, count, size)):
        rows = np.minimum(np.arange(first, first + size), count - 1)  # the last part is filled up: one program for all
        some = {key: array[rows] for key, array in examples.items()}
        with compiled.own_code(result.experiment):
            parts.append(np.asarray(evaluate(result.state, some, jax.random.key(number)))[: count - first])
    return np.concatenate(parts)


def _points(values: np.ndarray, of: str, normalize: bool) -> np.ndarray:
    """Returns the values as float32 rows `[N, D]`, without the columns that are constant.

    Raises:
      ConfigError: they are all equal, or tokens.
      ExperimentError: one is not finite.
    """
    if values.ndim == 2 and of == "inputs" and values.dtype.kind in "iu":
        raise ConfigError("--of inputs: these are tokens, between which there are no distances")
    points = values.reshape(len(values), -1).astype(np.float32)
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ExperimentError(f"{of}: there are values that are not finite, first of example {bad}")
    if normalize:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    points = points[:, np.ptp(points, axis=0) > 0]
    if not points.shape[1]:
        raise ConfigError(f"{of}: all {len(points):,} examples have the same, so there is nothing to cluster")
    return points


def _check_count(count: int | None, points: np.ndarray) -> None:
    if count is None:
        raise ConfigError("--clusters: the data has no classes to take their number from, so say how many clusters")
    if not 1 <= count <= len(points):
        raise ConfigError(f"--clusters: {count} must be from 1 to the number of examples, {len(points):,}")
    different = len(np.unique(points, axis=0))
    if count > different:
        raise ConfigError(f"--clusters: {count} is more than the {different:,} examples that differ")


# How


def _kmeans(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    centers, _ = jax.jit(kmeans.fit, static_argnums=2)(jax.random.key(seed), points, count)
    return np.asarray(kmeans.assign(jnp.asarray(points), centers))


def _mixture(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Clusters by a Gaussian mixture: of full covariances where they are small and have the points that they take."""
    scaled = points / np.sqrt(points.var(axis=0).mean())
    small = points.shape[1] <= min(WIDE, len(points) // (2 * count))
    kind: mixture.Covariance = "full" if small else "diagonal"
    fit = jax.jit(lambda key, points: mixture.fit(key, points, count, covariance=kind, restarts=5)[0])
    return np.asarray(mixture.assign(fit(jax.random.key(seed), scaled), jnp.asarray(scaled)))


def _hierarchical(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Merges the two clusters whose union has the least more inertia, until so many are left (Ward, 1963)."""
    if len(points) > PAIRS:
        raise ConfigError(
            f"--method hierarchical: it compares all pairs, and {len(points):,} examples have too many (at most "
            f"{PAIRS:,} examples); kmeans and mixture do not"
        )
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(count).fit_predict(points) if len(points) > 1 else np.zeros(1, np.int64)


METHODS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "kmeans": _kmeans,
    "mixture": _mixture,
    "hierarchical": _hierarchical,
}


# What is said of it


def agreement(assignments: np.ndarray, classes: np.ndarray | None) -> dict[str, float]:
    """Returns how clusters agree with classes, if there are any; see `learners.kmeans.agreement`."""
    return {} if classes is None else kmeans.agreement({"targets": classes, "assignments": assignments})


def silhouette(points: np.ndarray, assignments: np.ndarray) -> dict[str, float]:
    """Returns how much nearer points are to their own cluster than to the next (Rousseeuw, 1987), from -1 to 1.

    Of many points some are chosen. Empty where it is not defined: one cluster, or one for each point.
    """
    from sklearn import metrics

    chosen = np.random.RandomState(0).permutation(len(points))[:LOOKED_AT]
    if not 2 <= len(np.unique(assignments[chosen])) < len(chosen):
        return {}
    return {"silhouette": float(metrics.silhouette_score(points[chosen], assignments[chosen]))}


def _figures(
    points: np.ndarray, assignments: np.ndarray, classes: np.ndarray | None, names: Any, inputs: np.ndarray
) -> dict[str, Any]:
    by: dict[str, Any] = {"by cluster": (assignments, None)}
    if classes is not None:
        by["by class"] = (classes, names)
    made = {"embedding": common.embeddings(points, by)}
    if inputs.ndim == 4 and inputs.shape[-1] in (1, 3):
        _, places = np.unique(assignments, return_inverse=True)
        centers = np.stack([points[places == place].mean(axis=0) for place in range(places.max() + 1)])
        distances = np.linalg.norm(points - centers[places], axis=1)
        made["members"] = common.members(inputs, assignments, distances)
    return made


def _folder(result: Result, out: str | Path | None, name: str) -> Path:
    if out is None and result.run_dir is None:
        raise ConfigError("out: the run has no folder, so say where to write")
    folder = Path(out) if out is not None else Path(str(result.run_dir)) / "clusters" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def _write(
    folder: Path, assignments: np.ndarray, classes: np.ndarray | None, names: Any, scores: dict[str, Any]
) -> None:
    columns: dict[str, Any] = {"row": range(len(assignments)), "cluster": assignments.tolist()}
    if classes is not None:
        columns["class"] = [names[label] for label in classes]
    try:
        with (folder / "assignments.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
        np.save(folder / "assignments.npy", assignments, allow_pickle=False)
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error


def _show(
    title: str, assignments: np.ndarray, classes: np.ndarray | None, names: Any, scores: dict[str, float]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("cluster", justify="right")
    table.add_column("examples", justify="right")
    if classes is not None:
        table.add_column("of these classes")
    for label, count in zip(*np.unique(assignments, return_counts=True)):
        row = [str(label), f"{count:,}"]
        if classes is not None:
            found, numbers = np.unique(classes[assignments == label], return_counts=True)
            most = np.argsort(-numbers, kind="stable")[:4]
            row.append(
                ", ".join(f"{names[found[i]]} {numbers[i]:,}" for i in most) + (" ..." if len(found) > 4 else "")
            )
        table.add_row(*map(Text, row))
    print(title)
    console = Console()
    console.print(table)
    console.print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()), highlight=False)
