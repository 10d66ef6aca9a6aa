"""The study of generators: a complete table, equal budgets, and the known values of real images."""

import importlib.util
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "generators" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("generators_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_complete_and_resumes(study: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = {"GAN": study.GENERATORS["GAN"]}  # the others take long to compile
    monkeypatch.setattr(study, "GENERATORS", fastest)
    monkeypatch.setattr(study, "QUICK", study.QUICK._replace(flops=1e10))
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert list(table["generator"]) == ["training images", *["GAN"] * study.QUICK.seeds]
    real, generated = table[table["generator"] == "training images"].iloc[0], table[table["generator"] == "GAN"]
    assert real["tstr_accuracy"] > 0.97
    assert (generated["tstr_accuracy"] < real["tstr_accuracy"]).all()
    assert (generated["frechet_distance"] > real["frechet_distance"]).all()
    assert generated["flops"].iloc[0] == pytest.approx(study.QUICK.flops, rel=0.1)
    assert np.isfinite(
        generated["sampling_seconds"]
    ).all()  # a difference of two durations, which noise can make negative
    assert generated["bits"].isna().all()
    assert (tmp_path / "out" / "generators.png").read_bytes().startswith(b"\x89PNG")
    first = table.drop(columns="sampling_seconds")
    study.main(arguments)
    again = pandas.read_csv(tmp_path / "out" / "results.csv").drop(columns="sampling_seconds")
    pandas.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("name", ["VAE", "GAN", "diffusion", "flow matching", "autoregression"])
def test_the_number_of_steps_uses_up_the_budget(study: Any, name: str) -> None:
    generator = study.GENERATORS[name]
    _, config, flops = study.prepare(generator, study.Sizes())
    assert config.steps == round(study.Sizes().flops / flops)
    assert config.samples_per_example == study.Sizes().samples_per_example
    for field, value in generator.fields.items():
        assert getattr(config, field) == value
    assert np.isfinite(flops)
