"""The study of vanishing gradients: its tables are complete, and its gradients are those of the network by hand."""

import contextlib
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "vanishing_gradients" / "study.py"
CHANCE = 0.1


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("vanishing_gradients_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick study."""
    path = tmp_path_factory.mktemp("study")
    study.main(["--quick", "--runs", str(path / "runs"), "--out", str(path / "out")])
    return path


def cells(grid: Any, study: Any) -> set[tuple]:
    plain = itertools.product(["plain"], grid.activations, study.INITIALIZERS, grid.depths)
    return {*plain, *itertools.product(grid.cures, grid.activations, ["glorot"], grid.cure_depths)}


def test_tables_have_every_cell_once(study: Any, folder: Path) -> None:
    grid = study.QUICK
    for name in ("results", "ratios"):
        table = pandas.read_csv(folder / "out" / f"{name}.csv")
        assert sorted(table[study.CELL].itertuples(index=False, name=None)) == sorted(cells(grid, study))
    results, gradients = (pandas.read_csv(folder / "out" / f"{name}.csv") for name in ("results", "gradients"))
    assert (results["seeds"] == grid.seeds).all()
    assert results["test_accuracy"].between(results["min"], results["max"]).all()
    assert set(results["learning_rate"]) <= set(grid.learning_rates)
    for (*_, depth), rows in gradients.groupby(study.CELL):
        assert list(rows["layer"]) == list(range(1, depth + 2))


def test_figures_are_written(folder: Path) -> None:
    names = {path.stem for path in (folder / "out").glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert names == {"gradient_by_layer", "gradient_ratio", "accuracy", "cures"}


def test_a_second_run_repeats_no_training_and_writes_the_same(study: Any, folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("results.parquet")}
    members, _ = study.train_all(study.QUICK, folder / "runs")
    study.choose(members).to_csv(tmp_path / "results.csv", index=False, float_format="%.6g")
    assert (tmp_path / "results.csv").read_text() == (folder / "out" / "results.csv").read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 2


def norms(study: Any, seeds: int = 2, **fields: Any) -> tuple[np.ndarray, Any, Any, dict[str, jax.Array]]:
    config = study.Config(**fields)
    dataset = study.dataset(config)
    batch = {name: values[:32] for name, values in dataset.train.examples().items()}
    actual = study.gradient_norms(config, jnp.arange(seeds), batch, dataset.info)
    return np.asarray(actual), config, dataset.info, batch


@pytest.mark.parametrize(("activation", "function", "depth"), [("tanh", jnp.tanh, 1), ("sigmoid", jax.nn.sigmoid, 4)])
def test_gradient_norms_are_those_of_the_network_by_hand(
    study: Any, activation: str, function: Any, depth: int
) -> None:
    actual, config, info, batch = norms(study, seeds=1, depth=depth, activation=activation)
    inputs = (batch["inputs"].astype(jnp.float32) - info.mean[0]) / info.std[0]
    params = study.network(config, info).init(jax.random.key(0), inputs)["params"]
    first, last = params["Dense_0"]["kernel"], params["Dense_1"]["kernel"]
    kernels = [first, *(params["layers"]["Dense_0"]["kernel"] if depth > 1 else ()), last]

    def loss(kernels: list[jax.Array]) -> jax.Array:
        x = inputs.reshape(len(inputs), -1)
        for kernel in kernels[:-1]:
            x = function(x @ kernel)
        scores = jax.nn.log_softmax(x @ kernels[-1])
        return -jnp.take_along_axis(scores, batch["targets"][:, None], axis=1).mean()

    by_hand = [float(jnp.sqrt((gradient**2).sum())) for gradient in jax.grad(loss)(kernels)]
    np.testing.assert_allclose(actual[0], by_hand, rtol=2e-4)


def test_known_gradients_of_deep_networks(study: Any) -> None:
    """The slope of a sigmoid is at most 1/4, so 16 layers lose at least eight orders of magnitude; He's ReLU none."""
    he = study.INITIALIZERS["he"]
    sigmoid, *_ = norms(study, depth=16, activation="sigmoid")
    relu, *_ = norms(study, depth=16, activation="relu", inverse_variance=he)
    assert (sigmoid[:, 0] < 1e-8 * sigmoid[:, -1]).all()
    np.testing.assert_array_less(np.abs(np.log10(relu[:, 0] / relu[:, -1])), 1.0)
    steps = sigmoid[:, 2:-1] / sigmoid[:, 1:-2]  # from a hidden layer to the next one
    np.testing.assert_allclose(np.median(steps), 4.0, rtol=0.25)


def test_norms_whose_squares_underflow_float32_are_not_zero(study: Any) -> None:
    tree = {name: {"kernel": jnp.full((3, 4), 1e-30)} for name in ("Dense_0", "Dense_1")}
    np.testing.assert_allclose(study.kernel_norms(tree), 1e-30 * np.sqrt(12), rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, tree)
    assert (np.asarray(study.kernel_norms(zero)) == 0).all()


def test_initialisers_have_their_variances(study: Any) -> None:
    shape = (400, 100)
    for name, variance in {"glorot": 2 / 500, "he": 2 / 400, "normal": 1e-4}.items():
        kernel = study.kernel_init(study.INITIALIZERS[name], jax.random.key(0), shape, jnp.float32)
        np.testing.assert_allclose(jnp.var(kernel), variance, rtol=0.05)


def members(rows: list[tuple[float, str, float, float]]) -> pandas.DataFrame:
    columns = ["learning_rate", "status", "validation/accuracy", "test/accuracy"]
    cell = {"cure": "plain", "activation": "relu", "initializer": "he", "depth": 2}
    return pandas.DataFrame(rows, columns=columns).assign(**cell)


def test_learning_rate_is_chosen_by_validation_and_divergence_counts_as_a_guess(study: Any) -> None:
    table = members(
        [
            (0.1, "finished", 0.8, 0.9),
            (0.1, "finished", 0.6, 0.7),
            (0.5, "finished", 0.9, 1.0),
            (0.5, "not finite", np.nan, np.nan),
            (1.0, "finished", 0.5, 1.0),
            (1.0, "finished", 0.5, 1.0),
        ]
    )
    (row,) = study.choose(table).to_dict("records")
    assert row["learning_rate"] == 0.1
    assert (row["test_accuracy"], row["min"], row["max"]) == (pytest.approx(0.8), 0.7, 0.9)
    assert (row["seeds"], row["not_finite"]) == (2, 0)
    (row,) = study.choose(table[table["learning_rate"] == 0.5]).to_dict("records")
    assert row["test_accuracy"] == pytest.approx((1.0 + CHANCE) / 2)
    assert row["not_finite"] == 1


def test_help_lists_the_options(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        study.main(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--quick", "--runs", "--out"))
