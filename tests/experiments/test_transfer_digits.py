"""Transfer between digits: disjoint tasks, a new head, and frozen convolutions that stay and cost no gradients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foldax
from foldax import parameter_paths
from tests.conftest import ROOT

experiment = foldax.load_experiment(ROOT / "experiments" / "supervised" / "transfer_digits.py")
KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"channels": (4, 4), "dense": 8, "batch_size": 10, "steps": 4}


def config(**fields: Any) -> Any:
    return experiment.config(**{**SMALL, "task": "five_to_nine", "examples_per_class": 2, **fields})


def initialised(config: Any) -> tuple[foldax.Learner, Any, dict[str, jax.Array]]:
    """Returns the learner of a config, its initial state, and a batch."""
    dataset = experiment.dataset(config)
    learner, split = experiment.learner(config, dataset.info), dataset.train.examples()
    batch = {name: values[: config.batch_size] for name, values in split.items()}
    return learner, jax.jit(learner.init)(KEY, split), batch


def params(state: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in parameter_paths.leaves_by_path(state.learner.params).items()}


def test_the_tasks_are_five_digits_each() -> None:
    digits = {}
    for task, names in (("zero_to_four", "01234"), ("five_to_nine", "56789")):
        dataset = experiment.dataset(config(task=task, examples_per_class=None))
        assert dataset.info.class_names == tuple(names)
        images = np.asarray(dataset.train.examples()["inputs"])
        digits[task] = {image.tobytes() for image in images}
        assert sum(dataset.info.num_examples.values()) in (896, 901)
    assert not digits["zero_to_four"] & digits["five_to_nine"]
    assert min(dataset.info.class_counts) >= 50  # the largest number of labels of the study


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").exists(), reason="dataset-fashion-mnist is missing")
def test_clothes_are_means_of_squares_of_the_padded_image() -> None:
    dataset = experiment.dataset(config(task="clothes", examples_per_class=None))
    assert dataset.info.shapes["inputs"] == (8, 8, 1)
    whole = foldax.data.load("fashion_mnist", batch_size=10, validation=0.0, test=0.0).train.examples()
    means = np.asarray(whole["inputs"], np.float64).sum((1, 2, 3)) / 32**2
    ours = np.asarray(dataset.train.examples()["inputs"], np.float64).mean((1, 2, 3))
    assert np.isin(ours.astype(np.float32)[:200].round(2), means.astype(np.float32).round(2)).all()


def test_features_are_those_of_the_source_run_the_head_is_new_and_frozen_features_stay(tmp_path: Path) -> None:
    before = foldax.train(
        experiment, config(task="zero_to_four", examples_per_class=None), run_dir=tmp_path, verbose=False
    )
    theirs = parameter_paths.leaves_by_path(before.state.params)
    result = foldax.train(experiment, config(frozen=True, init_from=str(tmp_path)), save=False, verbose=False)
    ours = params(result.state)
    convolutions = {path for path in ours if path.startswith("Conv_")}
    assert convolutions == {"Conv_0/bias", "Conv_0/kernel", "Conv_1/bias", "Conv_1/kernel"}
    assert ours.keys() & theirs.keys() == convolutions
    for path in convolutions:
        assert ours[path].tobytes() == np.asarray(theirs[path]).tobytes()
    _, first, _ = initialised(config(frozen=True))
    heads = [path for path in ours if path.startswith("five_to_nine_head/")]
    assert len(heads) == 4
    assert all((ours[path] != params(first)[path]).any() for path in heads)


def test_frozen_convolutions_have_no_gradients() -> None:
    """Of three matrix products per layer (forward, and two gradients) only the forward one remains."""

    def flops(function: Any, *arguments: Any) -> float:
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    update_flops, forward = {}, 0.0
    for frozen in (False, True):
        learner, state, batch = initialised(config(frozen=frozen, channels=(16, 32), dense=4, batch_size=50))
        update_flops[frozen] = flops(learner.update, state, batch, KEY)
        forward = flops(learner.predict, state, batch["inputs"], KEY)
        moments = [path for path in parameter_paths.leaves_by_path(state.learner.optimizer_state) if "Conv_" in path]
        assert bool(moments) is not frozen
    assert update_flops[True] < 1.3 * forward  # the head is small; the optimizer and sampling have no products
    assert update_flops[False] > 2.2 * forward


def test_learning_rates_decay_layer_by_layer() -> None:
    """The size of the first update of Adam is the learning rate, whatever the gradient."""
    learner, state, batch = initialised(config(layer_decay=0.5, learning_rate=0.01, weight_decay=0.0))
    after, _ = jax.jit(learner.update)(state, batch, KEY)
    old, new = params(state), params(after)
    change = {path: float(jnp.abs(new[path] - old[path]).max()) for path in old if path.endswith("kernel")}
    expected = {
        "Conv_0/kernel": 0.00125,
        "Conv_1/kernel": 0.0025,
        "five_to_nine_head/Dense_0/kernel": 0.005,
        "five_to_nine_head/Dense_1/kernel": 0.01,
    }
    assert change == pytest.approx(expected, rel=1e-3)
