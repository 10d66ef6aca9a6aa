"""The study of transfer: its table is complete, and each cell is the setting with the best validation accuracy."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "transfer" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("transfer_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_complete_and_resumes(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    written = (tmp_path / "out" / "results.csv").read_text()
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert sorted(table["method"]) == sorted(study.METHODS)
    assert (table["source"] == np.where(table["method"].str[:1] == "f", "zero_to_four", "none"))[
        table["method"] != "from scratch"
    ].all()
    assert (table["seeds"] == study.QUICK.seeds).all()
    results = pandas.read_parquet(tmp_path / "runs" / "sweep" / "results.parquet")
    assert len(results) == 4 * study.QUICK.seeds
    assert results["group"].nunique() == 2  # frozen or not: initial parameters need no program of their own
    scratch = results[results["init_from"].isna() & ~results["frozen"]]
    row = table.set_index("method").loc["from scratch"]
    assert row["test_accuracy"] == pytest.approx(scratch["test/accuracy"].mean(), rel=1e-5)
    assert (tmp_path / "out" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (tmp_path / "out" / "results.csv").read_text() == written
    assert "with frozen convolutions" in capsys.readouterr().out


def test_rates_are_chosen_by_validation_and_gains_are_paired_by_seed(study: Any) -> None:
    rows = []
    for path, rate, seed, validation, test in [
        (None, 0.1, 0, 0.5, 0.4),
        (None, 0.1, 1, 0.7, 0.6),
        (None, 0.2, 0, 0.5, 0.9),
        (None, 0.2, 1, 0.5, 0.9),
        ("runs/zero_to_four", 0.1, 0, 0.6, 0.5),
        ("runs/zero_to_four", 0.1, 1, 0.6, 0.8),
        ("runs/zero_to_four", 0.2, 0, 0.9, 1.0),
        ("runs/zero_to_four", 0.2, 1, np.nan, np.nan),
    ]:
        scores = {"validation/accuracy": validation, "test/accuracy": test}
        cell = {"init_from": path, "frozen": False, "examples_per_class": 5, "learning_rate": rate, "layer_decay": 1.0}
        status = "not finite" if np.isnan(test) else "finished"
        rows.append({**cell, **scores, "seed": seed, "status": status})
    table = study.choose(pandas.DataFrame(rows)).set_index("method")
    scratch, tuned = table.loc["from scratch"], table.loc["fine-tuning"]
    assert (scratch["learning_rate"], scratch["test_accuracy"], scratch["not_finite"]) == (0.1, pytest.approx(0.5), 0)
    assert (tuned["learning_rate"], tuned["test_accuracy"], tuned["not_finite"]) == (0.1, pytest.approx(0.65), 1)
    assert tuned["gain"] == pytest.approx(0.15)
    assert (scratch["gain_low"], scratch["gain_high"]) == (0, 0)
