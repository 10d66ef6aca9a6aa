"""foldax: a training run is a fold of one pure function.

Import what you use: `import foldax` is light; datasets, checkpoints and plots are loaded when needed.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

import jax

from foldax.configuration import Interaction, Training, config, config_hash, driver, from_json, structural, to_json
from foldax.engine.result import Result
from foldax.errors import FoldaxError
from foldax.experiment import Experiment, load_experiment
from foldax.learner import Acts, Average, Evaluation, Learner
from foldax.runs.train import train  # not lazy: the folder of the same name would hide it
from foldax.sweeps.launchers.launch import Ray, Slurm
from foldax.sweeps.populations import PBT, Halving
from foldax.sweeps.search import Optuna
from foldax.sweeps.space import Range
from foldax.sweeps.sweep import Sweep, sweep

if TYPE_CHECKING:
    from foldax import augment, data, evaluation, laws, learners, models, optim, plots, rl
    from foldax.cli import run_experiment as main
    from foldax.inference.cluster import cluster
    from foldax.inference.export import export
    from foldax.runs import transfer
    from foldax.runs.load import load_run

__version__ = "0.1.0"
__all__ = [
    "Acts",
    "Average",
    "Evaluation",
    "Experiment",
    "FoldaxError",
    "Halving",
    "Interaction",
    "Learner",
    "Optuna",
    "PBT",
    "Range",
    "Ray",
    "Result",
    "Slurm",
    "Sweep",
    "Training",
    "augment",
    "cluster",
    "config",
    "config_hash",
    "data",
    "driver",
    "evaluation",
    "export",
    "from_json",
    "laws",
    "learners",
    "load_experiment",
    "load_run",
    "main",
    "models",
    "optim",
    "plots",
    "rl",
    "structural",
    "sweep",
    "to_json",
    "train",
    "transfer",
]

_LAZY = {
    "augment": ("foldax.augment", None),
    "cluster": ("foldax.inference.cluster", "cluster"),
    "data": ("foldax.data", None),
    "evaluation": ("foldax.evaluation", None),
    "export": ("foldax.inference.export", "export"),
    "laws": ("foldax.laws", None),
    "learners": ("foldax.learners", None),
    "load_run": ("foldax.runs.load", "load_run"),
    "main": ("foldax.cli", "run_experiment"),
    "models": ("foldax.models", None),
    "optim": ("foldax.optim", None),
    "plots": ("foldax.plots", None),
    "rl": ("foldax.rl", None),
    "transfer": ("foldax.runs.transfer", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foldax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def _use_cores_as_devices() -> None:
    """Makes the CPU's cores devices, unless the user has chosen, or JAX has started, already."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if getattr(jax.config, "jax_num_cpu_devices", None) in (None, -1):
            jax.config.update("jax_num_cpu_devices", min(cores, 64))
    except RuntimeError:  # JAX has started: its devices stay as they are
        pass


_use_cores_as_devices()
