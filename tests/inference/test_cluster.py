"""`foldax cluster`: what is clustered and how, what is said of it and written, and what cannot be clustered."""

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
from foldax.inference.cluster import AT_ONCE, METHODS, cluster, silhouette
from tests.conftest import Config, tiny

CORNERS = np.float32([[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])


def made(arrays: dict[str, np.ndarray], values: Any = lambda batch: {}, **options: Any) -> Result:
    """A run of a learner that learns nothing; `values` is what its `evaluate` gives of a batch."""
    dataset = data.from_arrays(arrays, **{"batch_size": 4, "validation": 0.0, "test": 0.5} | options)

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def evaluate(state: dict, batch: dict, key: Any) -> dict[str, Any]:
            return {"loss": jnp.zeros(len(batch["inputs"])), **values(batch)}

        return foldax.Learner(lambda key, examples: {}, lambda state, batch, key: (state, {}), evaluate)

    experiment = foldax.Experiment(Config, learner, lambda config: dataset, name="made")
    return Result(
        experiment, tiny.config(), dataset.info, dataset, {}, {}, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0
    )


def blobs(count: int = 120, labels: bool = True, image: bool = False) -> dict[str, np.ndarray]:
    """Points around three corners, each corner a class; as images of 2 x 2 if wanted."""
    targets = np.arange(count) % 3
    inputs = CORNERS[targets] + np.random.RandomState(0).randn(count, 4).astype(np.float32)
    inputs = inputs.reshape(count, 2, 2, 1) if image else inputs
    return {"inputs": inputs, "targets": targets} if labels else {"inputs": inputs}


def coded(batch: dict) -> dict[str, Any]:
    """Codes that tell the corners apart, features that tell nothing, and clusters of its own."""
    points = batch["inputs"].reshape(len(batch["inputs"]), -1)
    return {"codes": points[:, :2], "features": points[:, 2:], "assignments": (points[:, 0] > 4).astype(jnp.int32)}


def only(*names: str) -> Any:
    return lambda batch: {name: coded(batch)[name] for name in names}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_groups_that_are_far_apart(method, tmp_path) -> None:
    found = cluster(made(blobs()), of="inputs", method=method, out=tmp_path, verbose=False)
    assert found.scores["adjusted_rand"] == found.scores["mutual_information"] == 1.0
    assert set(found.assignments) == {0, 1, 2}


def test_clusters_are_those_of_scikit_learn(tmp_path) -> None:
    result = made({"inputs": np.random.RandomState(0).randn(200, 4).astype(np.float32)})
    points = result.examples("test")["inputs"]
    run = dict(of="inputs", clusters=4, verbose=False)
    theirs = KMeans(4, n_init=50, random_state=0).fit(points)
    ours = cluster(result, out=tmp_path / "a", **run).assignments
    inertia = sum(np.square(points[ours == k] - points[ours == k].mean(0)).sum() for k in range(4))
    assert inertia < 1.02 * theirs.inertia_
    ours = cluster(result, out=tmp_path / "b", method="hierarchical", **run).assignments
    assert metrics.adjusted_rand_score(ours, AgglomerativeClustering(4).fit_predict(points)) == 1.0


def test_what_is_written(tmp_path) -> None:
    result = made(blobs(image=True), coded, class_names=("left", "right", "up"))
    found = cluster(result, of="codes", out=tmp_path, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "assignments.csv", "assignments.npy", "embedding.png", "members.png", "scores.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "assignments.npy"), found.assignments)
    with (tmp_path / "assignments.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = result.examples("test")["targets"]
    assert [row["class"] for row in rows] == [("left", "right", "up")[target] for target in targets]
    assert [int(row["cluster"]) for row in rows] == found.assignments.tolist()
    assert json.loads((tmp_path / "scores.json").read_text()) == found.scores | {"clusters": 3}


@pytest.mark.parametrize(("values", "of"), [(coded, "features"), (only("codes", "assignments"), "codes")])
def test_a_representation_is_found_by_itself(values, of, tmp_path) -> None:
    result = made(blobs(), values)
    found = cluster(result, out=tmp_path / "a", verbose=False)
    named = cluster(result, of=of, out=tmp_path / "b", verbose=False)
    np.testing.assert_array_equal(found.assignments, named.assignments)
    assert (found.scores["adjusted_rand"] == 1.0) == (of == "codes")


def test_a_run_that_clusters_keeps_its_clusters(tmp_path) -> None:
    result = made(blobs(2 * AT_ONCE + 60), only("assignments"))  # more than fit into one call
    found = cluster(result, out=tmp_path, verbose=False)
    np.testing.assert_array_equal(found.assignments, result.examples("test")["inputs"][:, 0] > 4)
    assert 0 < found.scores["adjusted_rand"] < 1


def test_directions_alone_count_where_points_are_normalized(tmp_path) -> None:
    rng = np.random.RandomState(0)
    targets = np.arange(80) % 2
    inputs = np.float32([[1, 0], [0, 1]])[targets] * np.exp(2 * rng.randn(80, 1)) * (1 + 0.01 * rng.randn(80, 2))
    result = made({"inputs": inputs.astype(np.float32), "targets": targets})
    scores = [
        cluster(result, of="inputs", normalize=value, out=tmp_path / str(value), verbose=False).scores["adjusted_rand"]
        for value in (True, False)
    ]
    assert scores[0] == 1.0 > scores[1]


def test_without_classes_there_is_no_agreement(tmp_path) -> None:
    found = cluster(made(blobs(labels=False)), of="inputs", clusters=3, out=tmp_path, verbose=False)
    assert found.scores.keys() == {"silhouette"}
    assert (tmp_path / "assignments.csv").read_text().startswith("row,cluster\n")


def test_the_training_split_is_clustered_too(tmp_path) -> None:
    result = made(blobs(), test=0.25)
    assert len(cluster(result, of="inputs", split="train", out=tmp_path, verbose=False).assignments) == 90


def test_silhouettes_are_those_of_scikit_learn() -> None:
    points, assignments = np.random.RandomState(0).randn(50, 3), np.arange(50) % 4
    assert silhouette(points, assignments)["silhouette"] == pytest.approx(metrics.silhouette_score(points, assignments))
    assert silhouette(points, np.zeros(50, int)) == silhouette(points, np.arange(50)) == {}


EQUAL = {"inputs": np.ones((40, 2, 2, 1), np.uint8), "targets": np.arange(40) % 2}
PAIRS = {"inputs": np.float32([[0, 1], [2, 3]] * 20), "targets": np.arange(40) % 2}
TOKENS = {"inputs": np.arange(80).reshape(40, 2) % 7, "targets": np.arange(40) % 2}


@pytest.mark.parametrize(
    ("result", "options", "error", "said"),
    [
        (blobs(), {}, ExperimentError, "--of inputs clusters the inputs"),
        (blobs(), {"of": "inputs", "clusters": 61}, ConfigError, "61 must be from 1 to the number of examples, 60"),
        (blobs(), {"of": "inputs", "clusters": 0}, ConfigError, "0 must be from 1"),
        (blobs(labels=False), {"of": "inputs"}, ConfigError, "say how many clusters"),
        (blobs(), {"of": "inputs", "method": "k-means"}, ConfigError, "no 'k-means'; did you mean 'kmeans'"),
        (blobs(), {"of": "inputs", "split": "tset"}, DataError, r"no split 'tset'; did you mean 'test'\?"),
        (blobs(), {"of": "input"}, ConfigError, "no representation 'input'; did you mean 'inputs'"),
        (EQUAL, {"of": "inputs"}, ConfigError, "all 20 examples have the same, so there is nothing to cluster"),
        (PAIRS, {"of": "inputs", "clusters": 3}, ConfigError, "3 is more than the 2 examples that differ"),
        (TOKENS, {"of": "inputs"}, ConfigError, "tokens"),
        (blobs(), {"of": "inputs", "out": None}, ConfigError, "no folder"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_clustered_says_so(result, options, error, said, tmp_path) -> None:
    with pytest.raises(error, match=said):
        cluster(made(result), **{"out": tmp_path, "verbose": False} | options)


def test_a_representation_that_is_wrong_says_so(tmp_path) -> None:
    options = dict(out=tmp_path, verbose=False)
    with pytest.raises(
        ConfigError, match=r"no representation 'code'; did you mean 'codes'\? \(there are assignments, codes"
    ):
        cluster(made(blobs(), coded), of="code", **options)
    with pytest.raises(ConfigError, match="the run's own clusters"):
        cluster(made(blobs(), only("assignments")), method="kmeans", **options)
    bad = made(blobs(), lambda batch: {"codes": jnp.log(batch["inputs"] - 100)})
    with pytest.raises(ExperimentError, match="codes: there are values that are not finite, first of example 0"):
        cluster(bad, **options)
    with pytest.raises(DataError, match="it streams"):
        cluster(made(blobs(), source="stream"), of="inputs", split="train", **options)


def test_the_command(tiny_file, tmp_path, capsys) -> None:
    """A classifier's run has no representation by itself; its inputs and its logits can be clustered."""
    run = tmp_path / "run"
    assert cli.main(["run", str(tiny_file), "--run-dir", str(run)]) == 0
    assert cli.main(["cluster", str(run)]) == cli.FAILED
    assert "--of inputs clusters the inputs as they are; or one of logits" in capsys.readouterr().err
    assert cli.main(["cluster", str(run), "--of", "logits", "--method", "hierarchical", "--clusters", "3"]) == 0
    said = capsys.readouterr().out
    assert "logits of 32 test examples, hierarchical" in said
    assert "adjusted_rand" in said
    assert (run / "clusters" / "test-logits-hierarchical" / "assignments.csv").exists()
    assert cli.main(["cluster", str(run), "--of", "inputs", "--method", "mixtures"]) == cli.USAGE
    assert "did you mean 'mixture'?" in capsys.readouterr().err
    assert cli.main(["cluster", str(tmp_path / "none")]) == cli.FAILED
