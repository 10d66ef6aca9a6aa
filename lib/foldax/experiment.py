"""An experiment: a config class, a learner built from a config, and the data it learns from."""

import functools
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax.errors import ExperimentError
from foldax.learner import Learner

_folders: list[str] = []  # of experiment files that were imported, as they are in `sys.path`
_importing: ContextVar[tuple[Path, ...]] = ContextVar("importing", default=())  # files whose code runs now


class _ImportsItselfError(ExperimentError):
    """An experiment file loads itself while it is imported."""


class Experiment(NamedTuple):
    """A training run as an experiment file defines it; `foldax.train`, `foldax run` and `foldax check` take it.

    Attributes:
      config: the config class (see `foldax.config`), a subclass of `Training` or `RLTraining`.
      learner: `(config, info) -> Learner`; called inside the traced program, where the config's floats are arrays.
        `info` holds static facts of the training split; None without a dataset.
      dataset: `(config) -> data.Dataset`, usually `data.load(...)`; None where the learner makes its own experience
        (reinforcement learning).
      summarize: `(values) -> {name: float}` on the host, for metrics that are not means (AUROC). `values` holds the
        metrics and outputs of `evaluate` for all examples of a split, as NumPy arrays `[N, ...]`.
      figures: `(result) -> {name: figure or str}` at the end of a run: matplotlib figures are saved as PNG, strings are
        printed and saved as text.
      name: name of the run folders; by default the file's name.
      environment: `(config) -> rl.Environment`, the environment of `foldax play`; training never reads it.

    >>> import foldax, optax
    >>> def learner(config, info):
    ...     return foldax.learners.classifier(foldax.models.MLP((info.num_classes,)), optax.sgd(config.learning_rate))
    >>> def dataset(config):
    ...     return foldax.data.load("digits", batch_size=32)
    >>> Experiment(foldax.Training, learner, dataset, name="linear_digits").name
    'linear_digits'
    """

    config: type[Any]
    learner: Callable[[Any, Any], Learner]
    dataset: Callable[[Any], Any] | None = None
    summarize: Callable[[dict[str, np.ndarray]], dict[str, float]] | None = None
    figures: Callable[[Any], dict[str, Any]] | None = None
    name: str | None = None
    environment: Callable[[Any], Any] | None = None


def experiment_file(experiment: Experiment) -> Path | None:
    """Finds the file that defines the experiment; None in a notebook or at a prompt."""
    # The file that holds it as `experiment`; its learner may come from elsewhere. Of several, the last was imported by
    # the others.
    learner = _unwrap(experiment.learner)
    modules = [*sys.modules.values(), sys.modules.get(getattr(learner, "__module__", ""))]
    holders = [module for module in modules if getattr(module, "__dict__", {}).get("experiment") is experiment]
    try:
        file = getattr(holders[-1], "__file__", None) if holders else inspect.getsourcefile(learner)
    except TypeError:
        return None
    return Path(file).resolve() if file and Path(file).is_file() else None


def _unwrap(function: Any) -> Any:
    """Returns what a function calls in the end, or the class of a callable object."""
    while isinstance(function := inspect.unwrap(function), functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def experiment_name(experiment: Experiment) -> str:
    """Names the experiment: by its `name`, else by its file, else "experiment".

    >>> experiment_name(Experiment(config=dict, learner=dict, name="tiny"))
    'tiny'
    """
    file = experiment_file(experiment)
    return experiment.name or (file.stem if file else "experiment")


def load_experiment(path: str | Path) -> Experiment:
    """Imports a Python file, which may import modules beside it, and returns its `experiment`.

    Raises:
      ExperimentError: there is no such file, its code fails or loads the file again, or it defines no `experiment`.
    """
    path = Path(path)
    if not path.is_file():
        neighbours = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" (in that folder: {', '.join(neighbours)})" if neighbours else ""
        raise ExperimentError(f"there is no experiment file {str(path)!r}{hint}; `foldax list` shows all")
    path = path.resolve()
    try:
        path.read_bytes()
    except OSError as error:
        raise ExperimentError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    # Two files of one name in two folders are two modules.
    name = f"foldax_experiment_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", str(path)) != str(path):
        name += f"_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{str(path)!r} is not a Python file (its name must end in .py)")
    if path in _importing.get():
        remedy = (
            'put such calls below `if __name__ == "__main__":`, or hand the experiment over: load_run(path, experiment)'
        )
        raise _ImportsItselfError(
            f"{path.name} would import itself without end: it loads its runs while imported; {remedy}"
        )
    module = importlib.util.module_from_spec(spec)
    # Registered before its code runs: dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    _import_from(path.parent)
    token = _importing.set((*_importing.get(), path))
    try:
        spec.loader.exec_module(module)
    except _ImportsItselfError:
        raise
    except Exception as error:
        raise ExperimentError(f"{path.name} failed while it was imported:\n{user_traceback(error, path)}") from error
    finally:
        _importing.reset(token)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        remedy = "end it with `experiment = foldax.Experiment(Config, learner, dataset)`"
        raise ExperimentError(f"{path.name} has no `experiment`: {remedy} (`foldax new NAME` writes a template)")
    return experiment


def _import_from(folder: Path) -> None:
    """Lets imports find the modules in an experiment's folder, not their namesakes beside an earlier experiment."""
    others = [path for path in _folders if path != str(folder)]
    if str(folder) in _folders or str(folder) not in sys.path:
        # At the end, so that a file beside the experiment hides no installed package.
        sys.path[:] = [path for path in sys.path if path not in _folders] + [str(folder), *others]
        _folders[:] = [str(folder), *others]
    here = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    for name in here & sys.modules.keys():
        places = getattr(sys.modules[name], "__path__", [getattr(sys.modules[name], "__file__", None) or ""])
        if any(str(Path(place).parent) in others for place in places):
            # The earlier experiment keeps the modules that it has imported.
            for loaded in [other for other in sys.modules if other.partition(".")[0] == name]:
                del sys.modules[loaded]


def user_traceback(error: BaseException, file: Path | None) -> str:
    """Formats an error's traceback from the first frame in the user's `file` on, without library frames."""
    # Frames of the library and of JAX say nothing to the author of the file.
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if file and Path(frame.filename) == file), 0)
    # A syntax error has no frame of the user's file; its message shows the line.
    kept = [] if isinstance(error, SyntaxError) else [f for f in frames[first:] if not _is_library(f.filename)]
    summary = traceback.TracebackException.from_exception(error, limit=0)
    summary.__notes__ = [note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note]
    return "".join([*traceback.format_list(kept), *summary.format_exception_only()]).rstrip()


def _is_library(filename: str) -> bool:
    here = str(Path(__file__).resolve().parent)
    return filename.startswith(here) or any(f"site-packages/{name}/" in filename for name in ("jax", "flax"))
