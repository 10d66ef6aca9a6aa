"""The study of a deep Q-network's parts: every variant lacks what it says, and its table is whole."""

import dataclasses
import importlib.util
from typing import Any

import jax
import pandas
import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def study() -> Any:
    path = ROOT / "research" / "dqn_parts" / "study.py"
    spec = importlib.util.spec_from_file_location("dqn_parts_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_whole(study: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "PARTS", ("replay",))  # each variant is a program of its own
    study.main(["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert table.groupby("variant").size().to_dict() == {"all": 2, "no replay": 2}
    summary = pandas.read_csv(tmp_path / "out" / "summary.csv").set_index("variant")
    assert summary.loc["all", "return"] == pytest.approx(
        table.loc[table["variant"] == "all", "return"].mean(), rel=1e-4
    )
    assert 0 <= summary.loc["no replay", "better"] <= 1
    assert (tmp_path / "out" / "parts.png").read_bytes().startswith(b"\x89PNG")


def test_each_variant_lacks_its_part(study: Any) -> None:
    programs = {}
    for name, fields in study.variants().items():
        config = dataclasses.replace(study.Config(), **fields)
        learner = study.learner(config, None)
        state = jax.eval_shape(learner.init, jax.random.key(0), None)
        programs[name] = str(jax.make_jaxpr(learner.update)(state, None, jax.random.key(0)))
    assert list(programs) == ["all", *(f"no {part}" for part in study.PARTS)]
    assert len(set(programs.values())) == len(programs)
