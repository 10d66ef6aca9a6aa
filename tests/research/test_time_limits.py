"""The study of time limits: its table is complete, it resumes, and its cases are agents with time limits."""

import importlib.util
from typing import Any

import jax
import numpy as np
import pandas
import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def study() -> Any:
    path = ROOT / "research" / "time_limits" / "study.py"
    spec = importlib.util.spec_from_file_location("time_limits_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_complete_and_resumes(study: Any, tmp_path: Any) -> None:
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    first = (tmp_path / "out" / "results.csv").read_text()
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert table.groupby("limit").size().to_dict() == {"truncated": 2, "terminated": 2}
    summary = pandas.read_csv(tmp_path / "out" / "summary.csv").iloc[0]
    for name in study.TREATMENTS:
        assert summary[name] == pytest.approx(table.loc[table["limit"] == name, "return"].mean(), rel=1e-4)
    assert (tmp_path / "out" / "returns.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (tmp_path / "out" / "results.csv").read_text() == first


def test_cases_are_agents_in_environments_with_a_time_limit(study: Any) -> None:
    for case in study.CASES:
        experiment = study.experiment(case)
        assert experiment.config().terminate_on_time_limit is False
        environment = study.ENVIRONMENTS[case.environment]()
        learner = experiment.learner(experiment.config(), None)
        state = jax.eval_shape(learner.init, jax.random.key(0), None)
        assert any(np.shape(leaf)[1:] == environment.observation_space.shape for leaf in jax.tree.leaves(state)), case
