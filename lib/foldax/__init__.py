"""foldax: a training run is a fold of one pure function.

Import what you use: `import foldax` is light; datasets, checkpoints and plots are loaded when needed.
"""

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any

import jax

from foldax.config_fields import driver, structural
from foldax.configuration import RLTraining, Training, config, config_hash, from_json, to_json
from foldax.engine.result import Result
from foldax.errors import FoldaxError
from foldax.experiment import Experiment, load_experiment
from foldax.learner import Average, EnvironmentSteps, Evaluation, InputSpec, Learner, Sampler
from foldax.runs.hooks import Every, HookContext
from foldax.runs.trackers.protocol import TrackedRun, Tracker
from foldax.runs.train import train
from foldax.sweeps.launchers.ray import Ray
from foldax.sweeps.launchers.slurm import Slurm
from foldax.sweeps.populations import PBT, SuccessiveHalving
from foldax.sweeps.search import Optuna
from foldax.sweeps.space import Range
from foldax.sweeps.sweep import SweepResult, sweep

if TYPE_CHECKING:
    from foldax import augment, data, evaluation, laws, learners, models, optim, plots, rl
    from foldax.cli import run_experiment as main
    from foldax.inference.cluster import cluster
    from foldax.inference.export import export
    from foldax.inference.sample import sample
    from foldax.runs import transfer
    from foldax.runs.load import load_run
    from foldax.runs.transfer.pretrained import pretrained

__version__ = "0.1.0"
# Experiments
__all__ = ["Experiment", "load_experiment"]
# Configs
__all__ += ["config", "Training", "RLTraining", "structural", "driver", "config_hash", "to_json", "from_json"]
# Learners
__all__ += ["Learner", "InputSpec", "Sampler", "Evaluation", "Average", "EnvironmentSteps"]
# Runs
__all__ += ["train", "Result", "load_run", "main", "export", "sample", "cluster", "pretrained", "transfer"]
__all__ += ["FoldaxError"]
# Trackers and hooks
__all__ += ["Tracker", "TrackedRun", "Every", "HookContext"]
# Sweeps
__all__ += ["sweep", "SweepResult", "Range", "SuccessiveHalving", "PBT", "Optuna", "Ray", "Slurm"]
# Packages
__all__ += ["augment", "data", "evaluation", "laws", "learners", "models", "optim", "plots", "rl"]

# Modules and functions that import heavy libraries, loaded at first use.
_PACKAGES = ("augment", "data", "evaluation", "laws", "learners", "models", "optim", "plots", "rl")
_LAZY: dict[str, tuple[str, str | None]] = {name: (f"foldax.{name}", None) for name in _PACKAGES} | {
    "cluster": ("foldax.inference.cluster", "cluster"),
    "export": ("foldax.inference.export", "export"),
    "sample": ("foldax.inference.sample", "sample"),
    "load_run": ("foldax.runs.load", "load_run"),
    "main": ("foldax.cli", "run_experiment"),
    "pretrained": ("foldax.runs.transfer.pretrained", "pretrained"),
    "transfer": ("foldax.runs.transfer", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foldax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    # Kept, so that `__getattr__` is not asked again.
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _use_cores_as_devices() -> None:
    """Makes each core of the CPU a device, unless the user has set their number or JAX has already started."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if getattr(jax.config, "jax_num_cpu_devices", None) in (None, -1):
        with contextlib.suppress(RuntimeError):  # JAX has already started, and its devices cannot change any more
            jax.config.update("jax_num_cpu_devices", min(cores, 64))


_use_cores_as_devices()
