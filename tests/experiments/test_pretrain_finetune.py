"""Pretraining without labels: what a run of contrastive_digits leaves to a classifier, and when that moves."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import foldax
from foldax import parameter_paths
from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "unsupervised"
KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"channels": (4, 4), "width": 8, "projection_size": 4, "batch_size": 20, "steps": 4}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A short run of contrastive_digits, and its parameters by path."""
    experiment = foldax.load_experiment(FOLDER / "contrastive_digits.py")
    folder = tmp_path_factory.mktemp("run") / "simclr"
    result = foldax.train(experiment, experiment.config(**SMALL), run_dir=folder, verbose=False)
    state = result.state.learner
    statistics = parameter_paths.leaves_by_path(state.model_state["batch_stats"])
    return folder, {k: np.asarray(v) for k, v in (parameter_paths.leaves_by_path(state.params) | statistics).items()}


@pytest.fixture(scope="module")
def experiment() -> foldax.Experiment:
    return foldax.load_experiment(FOLDER / "pretrain_finetune.py")


def arrays(state: Any) -> dict[str, np.ndarray]:
    state = state.learner
    statistics = parameter_paths.leaves_by_path(state.model_state["batch_stats"])
    return {k: np.asarray(v) for k, v in (parameter_paths.leaves_by_path(state.params) | statistics).items()}


@pytest.mark.parametrize("layer", ["features", "projections"])
def test_a_frozen_encoder_stays_what_the_run_left(before: Any, experiment: Any, layer: str) -> None:
    folder, theirs = before
    config = experiment.config(**SMALL, examples_per_class=2, frozen=True, layer=layer, init_from=str(folder))
    ours = arrays(foldax.train(experiment, config, save=False, verbose=False).state)
    below = {path for path in theirs if layer == "projections" or path.startswith("encoder/")}
    assert ours.keys() == below | {"output/kernel", "output/bias"}
    for path in below:
        assert ours[path].tobytes() == theirs[path].tobytes(), path
    assert np.abs(ours["output/bias"]).max() > 0


def test_what_is_thawed_late_moves_late(before: Any, experiment: Any) -> None:
    config = experiment.config(
        **SMALL, examples_per_class=2, freeze_fraction=0.5, weight_decay=0.0, use_running_statistics=True
    )
    dataset = experiment.dataset(config)
    learner, split = experiment.learner(config, dataset.info), dataset.train.examples()
    batch = {name: values[:20] for name, values in split.items()}
    state, update, moved = jax.jit(learner.init)(KEY, split), jax.jit(learner.update), []
    for _ in range(4):
        after, _ = update(state, batch, KEY)
        old, new = arrays(state), arrays(after)
        moved.append({top: any((old[p] != new[p]).any() for p in old if p.startswith(top)) for top in ("enc", "out")})
        state = after
    assert [one["enc"] for one in moved] == [False, False, True, True]
    assert all(one["out"] for one in moved)
