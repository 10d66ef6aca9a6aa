"""The study of time limits: its table is whole, it goes on, and both ways differ in nothing but what a limit means."""

import importlib.util
from typing import Any

import jax
import numpy as np
import pandas
import pytest

from foldax import rl
from tests.conftest import ROOT

pytest.importorskip("gymnax", reason="gymnax is not installed: pip install 'foldax[rl]' (Python 3.11)")


@pytest.fixture(scope="module")
def study() -> Any:
    path = ROOT / "research" / "time_limits" / "study.py"
    spec = importlib.util.spec_from_file_location("time_limits_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_whole_and_goes_on(study: Any, tmp_path: Any) -> None:
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    first = (tmp_path / "out" / "results.csv").read_text()
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert table.groupby("limit").size().to_dict() == {"cut off": 2, "over": 2}
    summary = pandas.read_csv(tmp_path / "out" / "summary.csv").iloc[0]
    for way in study.WAYS:
        assert summary[way] == pytest.approx(table.loc[table["limit"] == way, "return"].mean(), rel=1e-4)
    assert (tmp_path / "out" / "returns.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (tmp_path / "out" / "results.csv").read_text() == first


def test_cases_are_agents_in_worlds_with_a_limit(study: Any) -> None:
    for case in study.CASES:
        experiment = study.experiment(case)
        assert experiment.config().over is False
        world = rl.gymnax(case.world)
        learner = experiment.learner(experiment.config(), None)
        state = jax.eval_shape(learner.init, jax.random.key(0), None)
        assert any(np.shape(leaf)[1:] == world.observations.shape for leaf in jax.tree.leaves(state)), case
