"""The study of regularisation: its table is complete, and the gains are those of the sweeps."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "regularization" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("regularization_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick study."""
    path = tmp_path_factory.mktemp("study")
    study.main(["--quick", "--runs", str(path / "runs"), "--out", str(path / "out")])
    return path


def test_the_table_has_every_regularizer_at_every_size(study: Any, folder: Path) -> None:
    table = pandas.read_csv(folder / "out" / "results.csv")
    cells = sorted(table[["regularizer", "examples_per_class"]].itertuples(index=False, name=None))
    assert cells == sorted(itertools.product(study.REGULARIZERS, study.QUICK.examples_per_class))
    assert (table["seeds"] == study.QUICK.seeds).all()
    none = table[table["regularizer"] == "none"]
    assert (none[["accuracy_gain", "loss_gain"]] == 0).all(axis=None)
    assert table["accuracy"].between(table["accuracy_low"], table["accuracy_high"]).all()
    together = table[table["regularizer"] == "all together"]
    assert set(together["strength"]) <= set(study.QUICK.strength_fractions)


def test_figures_are_written(folder: Path) -> None:
    names = {path.stem for path in (folder / "out").glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert names == {"accuracy_gains", "loss_gains", "strengths"}


def test_regularisers_share_a_program_for_each_size_and_only_early_stopping_stops_early(
    study: Any, folder: Path
) -> None:
    grid, read = study.QUICK, pandas.read_parquet
    traced = read(folder / "runs" / "traced" / "results.parquet")
    assert traced["group"].nunique() == len(grid.examples_per_class)
    assert traced["strengths"].nunique() == 1 + sum(map(len, grid.strengths))
    assert (traced["steps_done"] == grid.config.steps).all()
    assert traced["best_step"].isna().all()
    early = read(folder / "runs" / "early-stopping" / "results.parquet")
    assert early["best_step"].notna().all()
    assert (early["best_step"] % grid.evaluate_every == 0).all()


def test_a_second_run_repeats_no_training_and_gains_are_paired_by_seed(study: Any, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("results.parquet")}
    members = study.train_all(study.QUICK, folder / "runs")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 3 + len(study.QUICK.examples_per_class)
    (row,) = study.choose(members).query("regularizer == 'L2' and examples_per_class == 5").to_dict("records")
    cell = members[(members["examples_per_class"] == 5) & (members["learning_rate"] == row["learning_rate"])]
    scores = cell.set_index(["regularizer", "seed"])["test/accuracy"]
    gains = [scores["L2", seed] - scores["none", seed] for seed in range(study.QUICK.seeds)]
    assert row["accuracy_gain"] == pytest.approx(np.mean(gains))


def member(regularizer: str, strength: float, seed: int, validation: float, test: float, status: str) -> dict[str, Any]:
    scores = {"validation/accuracy": validation, "validation/loss": 1.0, "test/accuracy": test, "test/loss": 1.0}
    cell = {
        "regularizer": regularizer,
        "strength": strength,
        "seed": seed,
        "examples_per_class": 5,
        "learning_rate": 0.1,
    }
    return {**cell, **scores, "status": status, "steps_done": 20}


def test_strength_is_chosen_by_validation_and_divergence_counts_as_a_guess(study: Any) -> None:
    rows = [
        member("none", 0.0, 0, 0.5, 0.5, "finished"),
        member("none", 0.0, 1, 0.5, 0.6, "finished"),
        member("L1", 0.1, 0, 0.6, 0.7, "finished"),
        member("L1", 0.1, 1, 0.6, 0.7, "finished"),
        member("L1", 0.2, 0, 0.9, 1.0, "finished"),
        member("L1", 0.2, 1, np.nan, np.nan, "not finite"),
        member("L1", 0.3, 0, 0.5, 1.0, "finished"),
        member("L1", 0.3, 1, 0.5, 1.0, "finished"),
    ]
    table = pandas.DataFrame(rows)
    row = study.choose(table).set_index("regularizer").loc["L1"]
    assert (row["strength"], row["not_finite"]) == (0.1, 1)
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["accuracy_gain"] == pytest.approx(0.15)
    row = study.choose(table[table["strength"].isin([0.0, 0.2])]).set_index("regularizer").loc["L1"]
    assert row["accuracy"] == pytest.approx((1.0 + 0.1) / 2)
    assert row["loss"] == pytest.approx((1.0 + np.log(10)) / 2)


def test_zero_strength_is_no_regularizer(study: Any) -> None:
    """With all strengths 0 the learner is the plain one: same loss, no penalty, unchanged images."""
    import jax
    import optax

    from foldax import learners, models

    config = study.Config(examples_per_class=5, hidden=(8,))
    dataset = study.dataset(config)
    model = models.MLP((8, 10))
    optimizer = optax.sgd(config.learning_rate, momentum=0.9)
    inner = learners.classifier(model, optimizer, preprocess=dataset.info.standardize)
    plain = learners.subset(inner, 5, dataset.info)
    split, key = dataset.train.examples(), jax.random.key(0)
    batch = {name: values[:50] for name, values in split.items()}

    def updated(learner: Any) -> Any:
        return jax.jit(lambda: learner.update(learner.init(key, split), batch, key))()

    (state, metrics), (_, expected) = updated(study.learner(config, dataset.info)), updated(plain)
    assert metrics["penalty"] == 0
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], expected["gradient_norm"], rtol=1e-4)
    assert len(state.examples["targets"]) == 50
