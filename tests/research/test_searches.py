"""The study of searches: its table is complete, and its best members are those of the sweeps."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "searches" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("searches_study", STUDY)
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
    assert len(table) == len(study.COLORS) * study.QUICK.repetitions
    assert (table["programs"] == 1).all()
    for row in table.to_dict("records"):
        results = pandas.read_parquet(tmp_path / "runs" / f"{row['search']}-{row['repetition']}" / "results.parquet")
        finished = results[results["status"] == "finished"]
        assert row["best_validation_loss"] == pytest.approx(finished[study.METRIC].min(), rel=1e-5)
        assert row["member_steps"] == results["steps_done"].sum()
    steps = table.groupby("search")["member_steps"].mean()
    assert steps["grid"] == study.QUICK.steps * np.prod(study.QUICK.values)
    assert max(steps["halving"], steps["pbt"]) <= steps["grid"] / 2
    assert (tmp_path / "out" / "searches.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (tmp_path / "out" / "results.csv").read_text() == written
    assert "| pbt | 3 |" in capsys.readouterr().out


def test_the_full_study_gives_the_population_half_of_the_steps_of_the_grid(study: Any) -> None:
    sizes = study.Sizes()
    grid = study.grid(sizes)
    assert [len(values) for values in grid.values()] == list(sizes.values)
    for name, values in grid.items():
        assert values[0] == pytest.approx(study.RANGES[name].low)
        assert values[-1] == pytest.approx(study.RANGES[name].high)
    assert sizes.population * 2 == np.prod(sizes.values)
