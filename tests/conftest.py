"""Fixtures of all tests: tiny experiments; the settings are those of the `conftest.py` above."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

import foldax
from foldax import data, learners, models
from foldax.configuration import with_steps
from foldax.data.sources import Split
from foldax.field_values import is_config

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


@foldax.config
class Config(foldax.Training):
    steps: int = 12
    log_every: int = 4
    evaluate_every: int = 6
    batch_size: int = 16
    hidden: tuple[int, ...] = (8,)
    learning_rate: float = 1e-2
    dropout: float = 0.1


def tiny_arrays(count: int = 160) -> dict[str, np.ndarray]:
    """Two noisy classes that a line separates."""
    rng = np.random.RandomState(0)
    targets = rng.randint(0, 2, count)
    inputs = rng.randn(count, 6) + 2.0 * targets[:, None] * np.array([1, -1, 0, 0, 0.5, 0])
    return {"inputs": inputs.astype(np.float32), "targets": targets}


def tiny_dataset(config: Config, source: str = "device") -> data.Dataset:
    return data.from_arrays(tiny_arrays(), batch_size=config.batch_size, validation=0.2, test=0.2, source=source)


def tiny_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MLP((*config.hidden, info.num_classes), dropout=config.dropout)
    return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)


tiny = foldax.Experiment(Config, tiny_learner, tiny_dataset, name="tiny")


# Packages and extras of the experiments that need more than the base install.
EXTRAS = {"time_series": ("aeon", "series"), "forecast": ("statsmodels", "series")}
EXTRAS |= {"gymnasium_cartpole": ("gymnasium", "gymnasium"), "atari_pong": ("ale_py", "atari")}
EXTRAS |= {"ppo_playground": ("mujoco_playground", "robotics"), "halfcheetah": ("mujoco", "mujoco")}
EXTRAS |= {"alphazero_tictactoe": ("mctx", "games"), "alphazero_connect_four": ("mctx", "games")}
EXTRAS |= {"ppo_minatar": ("gymnax", "rl"), "rainbow_minatar": ("gymnax", "rl")}


def shrunk(path: Path) -> tuple[foldax.Experiment, foldax.Training]:
    """Returns an experiment of the checkout and a config with which it takes a few small steps."""
    if ("fashion" in path.stem or path.stem == "image_resnet") and not Path(
        "/usr/share/datasets/fashion-mnist"
    ).exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    package, extra = EXTRAS.get(path.stem, (None, None))
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'foldax[{extra}]'")
    experiment = foldax.load_experiment(path)
    if experiment.dataset is not None:
        experiment = experiment._replace(dataset=functools.partial(with_few_evaluated, experiment.dataset))
    # The rate falls to 0 in so many steps; a contrastive loss, which depends on views, needs more of them to fall.
    steps = 80 if path.stem == "contrastive_digits" else 12
    config = experiment.config()
    small = {
        "batch_size": 16,
        "hidden": (8, 8) if path.stem == "dqn_mountain_car" else (8,),
        "channels": (4, 4),
        "dense": 8,
        "width": 8,
    }
    small |= {"blocks": 1, "depth": 20 if "resnet" in path.stem else 1, "decoder_width": 8, "memory_size": 64}
    small |= {
        "samples_per_example": 2,
        "num_samples": 2,
        "num_inference_steps": 3,
        "num_evaluation_times": 2,
        "comparison_examples": 20,
    }
    small |= {"evaluation_episodes": 2, "evaluation_steps": 50, "size": 42}
    # Agents: few environments, and a replay buffer that is full before the steps are over.
    small |= {"num_envs": 4, "rollout_steps": 4, "num_epochs": 2, "num_minibatches": 2, "capacity": 160}
    small |= {"num_simulations": 3, "evaluation_simulations": 0, "evaluation_games": 2}
    small |= {"learning_starts": 32 if getattr(config, "learning_starts", 0) else 0}
    config = with_steps(_with_values(config, small), steps)
    if getattr(getattr(config, "optimizer", None), "name", None) == "nesterov":
        # Its own warmup begins as low; without it, a rate for large batches makes of rounding another run in ten steps.
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-4))
    if hasattr(config, "base_learning_rate"):
        config = dataclasses.replace(config, base_learning_rate=1e-4 * 256 / config.batch_size)
    return experiment, config


def with_few_evaluated(load: Callable[[Any], data.Dataset], config: Any) -> data.Dataset:
    """Loads a dataset with 64 examples in each split that is evaluated, if it is held in arrays."""
    dataset = load(config)
    splits = {
        name: Split(split.all_examples, split.indices[:64], split.batch_size, whole=True)
        if isinstance(split, Split)
        else split
        for name, split in dataset.splits.items()
    }
    return dataset._replace(splits=splits)


def _with_values(config: Any, values: dict[str, Any]) -> Any:
    """Sets the fields of these names, in nested configs too, where they have values of the same type."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if is_config(value):
            changes[field.name] = _with_values(value, values)
        elif field.name in values and isinstance(value, type(values[field.name])):
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


@pytest.fixture
def experiment() -> foldax.Experiment:
    """A tiny classifier, whose config has few steps."""
    return tiny


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """The same classifier as an experiment file, for the command line."""
    return write_tiny_file(tmp_path)


def write_tiny_file(folder: Path) -> Path:
    """Writes the file to a folder."""
    path = folder / "tiny_file.py"
    path.write_text(
        '"""A tiny experiment."""\n'
        "import foldax\nimport numpy as np\nimport optax\nfrom foldax import data, learners, models\n\n\n"
        "@foldax.config\nclass Config(foldax.Training):\n"
        "    steps: int = 12\n    log_every: int = 4\n    batch_size: int = 16\n"
        "    hidden: tuple[int, ...] = (8,)\n    learning_rate: float = 1e-2\n    dropout: float = 0.0\n\n\n"
        "def dataset(config):\n"
        "    rng = np.random.RandomState(0)\n    targets = rng.randint(0, 2, 160)\n"
        "    inputs = (rng.randn(160, 6) + targets[:, None]).astype(np.float32)\n"
        '    return data.from_arrays({"inputs": inputs, "targets": targets}, batch_size=config.batch_size)\n\n\n'
        "def learner(config, info):\n"
        "    model = models.MLP((*config.hidden, info.num_classes))\n"
        "    return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)\n\n\n"
        "experiment = foldax.Experiment(Config, learner, dataset)\n"
    )
    return path
