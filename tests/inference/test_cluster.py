"""`foldax cluster`: representations, methods, scores and files, and what cannot be clustered."""

import csv
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics
from sklearn.cluster import AgglomerativeClustering, KMeans

import foldax
from foldax import cli, data
from foldax.engine.result import Result
from foldax.errors import ConfigError, DataError, ExperimentError
from foldax.inference.cluster import METHODS, cluster, silhouette
from foldax.inference.inputs import MAX_BATCH
from tests.conftest import Config, tiny

CORNERS = np.float32([[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])


def run_result(arrays: dict[str, np.ndarray], outputs: Any = lambda batch: {}, **options: Any) -> Result:
    """The result of a learner that learns nothing, whose `evaluate` returns `outputs(batch)`."""
    dataset = data.from_arrays(arrays, **{"batch_size": 4, "validation": 0.0, "test": 0.5} | options)

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def evaluate(state: dict, batch: dict, key: Any) -> foldax.Evaluation:
            return foldax.Evaluation({"loss": jnp.zeros(len(batch["inputs"]))}, outputs(batch))

        return foldax.Learner(lambda key, examples: {}, lambda state, batch, key: (state, {}), evaluate)

    experiment = foldax.Experiment(Config, learner, lambda config: dataset, name="constant")
    return Result(
        experiment, tiny.config(), dataset.info, dataset, {}, {}, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0
    )


def blobs(count: int = 120, labels: bool = True, image: bool = False) -> dict[str, np.ndarray]:
    """Points around three corners, each corner a class; optionally as images of 2 x 2."""
    targets = np.arange(count) % 3
    inputs = CORNERS[targets] + np.random.RandomState(0).randn(count, 4).astype(np.float32)
    inputs = inputs.reshape(count, 2, 2, 1) if image else inputs
    return {"inputs": inputs, "targets": targets} if labels else {"inputs": inputs}


def representations(batch: dict) -> dict[str, Any]:
    """Latents that separate the corners, features that do not, and clusters of the learner's own."""
    points = batch["inputs"].reshape(len(batch["inputs"]), -1)
    return {"latents": points[:, :2], "features": points[:, 2:], "assignments": (points[:, 0] > 4).astype(jnp.int32)}


def some_of(*names: str) -> Any:
    return lambda batch: {name: representations(batch)[name] for name in names}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_well_separated_clusters(method, tmp_path) -> None:
    clustering = cluster(run_result(blobs()), representation="inputs", method=method, out=tmp_path, verbose=False)
    assert clustering.scores["adjusted_rand_index"] == clustering.scores["normalized_mutual_information"] == 1.0
    assert set(clustering.assignments) == {0, 1, 2}


def test_clusters_equal_those_of_scikit_learn(tmp_path) -> None:
    result = run_result({"inputs": np.random.RandomState(0).randn(200, 4).astype(np.float32)})
    points = result.examples("test")["inputs"]
    run = dict(representation="inputs", num_clusters=4, verbose=False)
    theirs = KMeans(4, n_init=50, random_state=0).fit(points)
    ours = cluster(result, out=tmp_path / "a", **run).assignments
    inertia = sum(np.square(points[ours == k] - points[ours == k].mean(0)).sum() for k in range(4))
    assert inertia < 1.02 * theirs.inertia_
    ours = cluster(result, out=tmp_path / "b", method="hierarchical", **run).assignments
    assert metrics.adjusted_rand_score(ours, AgglomerativeClustering(4).fit_predict(points)) == 1.0


def test_the_files_hold_assignments_classes_and_scores(tmp_path) -> None:
    result = run_result(blobs(image=True), representations, class_names=("left", "right", "up"))
    clustering = cluster(result, representation="latents", out=tmp_path, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "assignments.csv", "assignments.npy", "embedding.png", "members.png", "scores.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "assignments.npy"), clustering.assignments)
    with (tmp_path / "assignments.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = result.examples("test")["targets"]
    assert [row["class"] for row in rows] == [("left", "right", "up")[target] for target in targets]
    assert [int(row["cluster"]) for row in rows] == clustering.assignments.tolist()
    assert json.loads((tmp_path / "scores.json").read_text()) == clustering.scores | {"num_clusters": 3}


@pytest.mark.parametrize(
    ("outputs", "representation"), [(representations, "features"), (some_of("latents", "assignments"), "latents")]
)
def test_the_default_representation_is_the_first_available(outputs, representation, tmp_path) -> None:
    result = run_result(blobs(), outputs)
    default = cluster(result, out=tmp_path / "a", verbose=False)
    named = cluster(result, representation=representation, out=tmp_path / "b", verbose=False)
    np.testing.assert_array_equal(default.assignments, named.assignments)
    assert (default.scores["adjusted_rand_index"] == 1.0) == (representation == "latents")


def test_the_clusters_of_a_clustering_run_are_kept(tmp_path) -> None:
    result = run_result(blobs(2 * MAX_BATCH + 60), some_of("assignments"))  # more than two batches
    clustering = cluster(result, out=tmp_path, verbose=False)
    np.testing.assert_array_equal(clustering.assignments, result.examples("test")["inputs"][:, 0] > 4)
    assert 0 < clustering.scores["adjusted_rand_index"] < 1


def test_only_directions_matter_if_points_are_normalized(tmp_path) -> None:
    rng = np.random.RandomState(0)
    targets = np.arange(80) % 2
    inputs = np.float32([[1, 0], [0, 1]])[targets] * np.exp(2 * rng.randn(80, 1)) * (1 + 0.01 * rng.randn(80, 2))
    result = run_result({"inputs": inputs.astype(np.float32), "targets": targets})
    scores = [
        cluster(result, representation="inputs", normalize=value, out=tmp_path / str(value), verbose=False).scores[
            "adjusted_rand_index"
        ]
        for value in (True, False)
    ]
    assert scores[0] == 1.0 > scores[1]


def test_without_classes_only_the_silhouette_is_reported(tmp_path) -> None:
    clustering = cluster(
        run_result(blobs(labels=False)), representation="inputs", num_clusters=3, out=tmp_path, verbose=False
    )
    assert clustering.scores.keys() == {"silhouette"}
    assert (tmp_path / "assignments.csv").read_text().startswith("row,cluster\n")


def test_the_training_split_can_be_clustered(tmp_path) -> None:
    result = run_result(blobs(), test=0.25)
    assert len(cluster(result, representation="inputs", split="train", out=tmp_path, verbose=False).assignments) == 90


def test_silhouettes_equal_those_of_scikit_learn() -> None:
    points, assignments = np.random.RandomState(0).randn(50, 3), np.arange(50) % 4
    assert silhouette(points, assignments)["silhouette"] == pytest.approx(metrics.silhouette_score(points, assignments))
    assert silhouette(points, np.zeros(50, int)) == silhouette(points, np.arange(50)) == {}


EQUAL = {"inputs": np.ones((40, 2, 2, 1), np.uint8), "targets": np.arange(40) % 2}
PAIRS = {"inputs": np.float32([[0, 1], [2, 3]] * 20), "targets": np.arange(40) % 2}
TOKENS = {"inputs": np.arange(80).reshape(40, 2) % 7, "targets": np.arange(40) % 2}


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        (blobs(), {}, ExperimentError, "--representation inputs to cluster the raw inputs"),
        (
            blobs(),
            {"representation": "inputs", "num_clusters": 61},
            ConfigError,
            "61 must be from 1 to the number of examples, 60",
        ),
        (blobs(), {"representation": "inputs", "num_clusters": 0}, ConfigError, "0 must be from 1"),
        (blobs(labels=False), {"representation": "inputs"}, ConfigError, "this option is needed"),
        (
            blobs(),
            {"representation": "inputs", "method": "k-means"},
            ConfigError,
            "no 'k-means'; did you mean 'kmeans'",
        ),
        (blobs(), {"representation": "inputs", "split": "tset"}, DataError, r"no split 'tset'; did you mean 'test'\?"),
        (blobs(), {"representation": "input"}, ConfigError, "no representation 'input'; did you mean 'inputs'"),
        (EQUAL, {"representation": "inputs"}, ConfigError, "all 20 examples are equal, so there is nothing to cluster"),
        (PAIRS, {"representation": "inputs", "num_clusters": 3}, ConfigError, "3 is more than the 2 distinct examples"),
        (TOKENS, {"representation": "inputs"}, ConfigError, "tokens"),
        (blobs(), {"representation": "inputs", "out": None}, ConfigError, "no folder"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_clustered_is_an_error(arrays, options, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message):
        cluster(run_result(arrays), **{"out": tmp_path, "verbose": False} | options)


def test_a_representation_that_cannot_be_clustered_is_an_error(tmp_path) -> None:
    options = dict(out=tmp_path, verbose=False)
    with pytest.raises(
        ConfigError,
        match=r"no representation 'latent'; did you mean 'latents'\? \(there are assignments, features, latents",
    ):
        cluster(run_result(blobs(), representations), representation="latent", **options)
    with pytest.raises(ConfigError, match="the run's own clusters"):
        cluster(run_result(blobs(), some_of("assignments")), method="kmeans", **options)
    bad = run_result(blobs(), lambda batch: {"latents": jnp.log(batch["inputs"] - 100)})
    with pytest.raises(ExperimentError, match="latents: some values are not finite, first in example 0"):
        cluster(bad, **options)
    with pytest.raises(DataError, match="this split is streamed"):
        cluster(run_result(blobs(), source="stream"), representation="inputs", split="train", **options)


def test_the_command_line(tiny_file, tmp_path, capsys) -> None:
    """A classifier has no default representation; its inputs and its logits can be clustered."""
    run = tmp_path / "run"
    assert cli.main(["run", str(tiny_file), "--run-dir", str(run)]) == 0
    assert cli.main(["cluster", str(run)]) == cli.FAILED
    assert "--representation inputs to cluster the raw inputs; or choose one of logits" in capsys.readouterr().err
    assert (
        cli.main(["cluster", str(run), "--representation", "logits", "--method", "hierarchical", "--num-clusters", "3"])
        == 0
    )
    output = capsys.readouterr().out
    assert "logits of 32 test examples, hierarchical" in output
    assert "adjusted_rand_index" in output
    assert (run / "clusters" / "test-logits-hierarchical" / "assignments.csv").exists()
    assert cli.main(["cluster", str(run), "--representation", "inputs", "--method", "mixtures"]) == cli.USAGE
    assert "did you mean 'mixture'?" in capsys.readouterr().err
    assert cli.main(["cluster", str(tmp_path / "none")]) == cli.FAILED
