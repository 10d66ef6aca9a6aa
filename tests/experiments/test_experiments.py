"""Every experiment file trains, is tested, and makes its figures, shrunk to a few steps."""

import functools
from pathlib import Path

import numpy as np
import pytest
from sklearn import manifold

import foldax
from foldax.evaluation import likelihood
from foldax.inference.export import check_export
from tests.conftest import EXPERIMENTS, shrunk


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_runs_to_its_end(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.manifold.TSNE", functools.partial(manifold.TSNE, max_iter=250))
    fewer = functools.partial(likelihood.mixture_bits, components=(2,))
    monkeypatch.setattr(likelihood, "mixture_bits", fewer)
    experiment, config = shrunk(path)
    made = []

    def figures(result: foldax.Result) -> dict:
        found = experiment.figures(result)
        made.extend(found)
        return found

    watched = experiment if experiment.figures is None else experiment._replace(figures=figures)
    result = foldax.train(watched, config, run_dir=tmp_path / "run", verbose=False)
    assert result.status == "finished"
    splits = {"validation", "test"} if result.dataset is None else result.dataset.splits
    assert result.metrics.keys() == {"train", *splits}
    assert "test" in result.metrics
    assert all(np.isfinite(list(values.values())).all() for values in result.metrics.values())
    assert result.figures.keys() == {"learning_curves", *made}
    assert bool(made) == (experiment.figures is not None)
    for file in result.figures.values():
        assert file.stat().st_size > 0
        assert file.suffix == ".txt" or file.read_bytes().startswith(b"\x89PNG")
    if result.learner.predict is not None:
        check_export(result)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_says_what_it_trains_how_and_how_well(path: Path) -> None:
    text = path.read_text()
    assert f"foldax run experiments/{path.parent.name}/{path.name}" in text
    assert "seed" in text.split(chr(34) * 3)[1]
