"""The study of representations: its table is complete, and probes see only the sampled labels."""

import importlib.util
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT

STUDY = ROOT / "research" / "representations" / "study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("representations_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_study_is_complete_and_continues(study: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = study.methods()
    assert set().union(*(method.outputs for method in methods)) | {"pixels", "PCA", study.SUPERVISED} == set(
        study.STYLES
    )
    shown = [method for method in methods if "masked autoencoder" in method.outputs]  # the others take long to compile
    monkeypatch.setattr(study, "methods", lambda: shown)
    monkeypatch.setattr(study, "QUICK", study.QUICK._replace(steps=5, labels=(5,)))
    kept = ("pixels", "PCA", "masked autoencoder", study.SUPERVISED)
    monkeypatch.setattr(study, "STYLES", {name: study.STYLES[name] for name in kept})
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    study.main(arguments)
    written = (tmp_path / "out" / "results.csv").read_text()
    table = pandas.read_csv(tmp_path / "out" / "results.csv")
    assert {tuple(cell) for cell in table[["method", "examples_per_class"]].to_numpy()} == {
        (name, count) for name in kept for count in study.QUICK.labels
    }
    assert (table["seeds"] == study.QUICK.seeds).all()
    assert (table["mean"] > 0.1).all()
    assert (tmp_path / "out" / "representations.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (tmp_path / "out" / "results.csv").read_text() == written


def test_labels_are_drawn_from_every_class_and_differ_by_seed(study: Any) -> None:
    targets = np.repeat(np.arange(3), 20)
    chosen = [study.draw_labelled(targets, 4, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert set(chosen[0]) != set(chosen[2])
    for each in chosen:
        assert len(set(each)) == 12
        np.testing.assert_array_equal(np.bincount(targets[each]), [4, 4, 4])


def test_probes_are_perfect_on_separable_classes_and_guess_on_noise(study: Any) -> None:
    rng = np.random.RandomState(0)
    targets = rng.randint(0, 3, 300)
    pool, test = ({"inputs": np.zeros((len(t), 1)), "targets": t} for t in (targets[:200], targets[200:]))
    digits, sizes = study.Digits(pool, test), study.Sizes(seeds=2, labels=(5,))
    accuracies = study.probe_accuracies(digits, np.eye(3)[targets] + 0.01 * rng.randn(300, 3), sizes)
    assert accuracies == {(5, 0): 1.0, (5, 1): 1.0}
    for score in study.probe_accuracies(digits, rng.randn(300, 3), sizes).values():
        assert score < 0.6
