"""The study of generators: its table is whole, all have the same budget, and real images have what they must."""

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


def test_the_quick_study_is_whole_and_goes_on(study: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"GAN": study.GENERATORS["GAN"]}  # the others take long to compile, and each keeps the laws
    monkeypatch.setattr(study, "GENERATORS", some)
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert list(table["generator"]) == ["training images", *["GAN"] * study.QUICK.seeds]
    real, made = table[table["generator"] == "training images"].iloc[0], table[table["generator"] == "GAN"]
    assert real["generated_accuracy"] > 0.97
    assert (made["generated_accuracy"] < real["generated_accuracy"]).all()
    assert (made["frechet_distance"] > real["frechet_distance"]).all()
    assert made["operations"].iloc[0] == pytest.approx(study.QUICK.operations, rel=0.1)
    assert np.isfinite(made["sampling_seconds"]).all()  # a difference of two times: below 0 where noise is larger
    assert made["bits"].isna().all()
    assert (tmp_path / "out" / "generators.png").read_bytes().startswith(b"\x89PNG")
    first = table.drop(columns="sampling_seconds")
    study.main(arguments)
    again = pandas.read_csv(tmp_path / "out" / "results.csv").drop(columns="sampling_seconds")
    pandas.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("name", ["VAE", "GAN", "diffusion", "flow matching", "autoregression"])
def test_a_budget_is_as_many_steps_as_cost_it(study: Any, name: str) -> None:
    generator = study.GENERATORS[name]
    _, config, operations = study.prepared(generator, study.Sizes())
    assert config.steps == round(study.Sizes().operations / operations)
    assert config.samples == study.Sizes().samples
    for field, value in generator.fields.items():
        assert getattr(config, field) == value
    assert np.isfinite(operations)
