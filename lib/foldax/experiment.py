"""An experiment: a config, a learner made from it, and the data it learns from."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from foldax.errors import ExperimentError
from foldax.learner import Learner


class Experiment(NamedTuple):
    """What an experiment file states; `foldax.train`, `foldax run` and `foldax check` take it.

    Attributes:
      config: the config class (see `foldax.config`), a subclass of `Training` or `Interaction`.
      learner: `(config, info) -> Learner`; called inside the traced program, so the config's floats
        are arrays there. `info` holds static facts of the training split (None without a dataset).
      dataset: `(config) -> data.Dataset`, usually `data.load(...)`; None where the learner makes its
        own experience (reinforcement learning).
      summarize: `(values) -> {name: float}` on the host, for metrics that are no means (AUROC): it is
        given what `evaluate` returned for all examples of a split, as NumPy arrays `[N, ...]`.
      figures: `(result) -> {name: figure or str}` at the end of a run: matplotlib figures are saved
        as PNG, strings are printed and saved as text.
      name: name of the run folders; the file's name if None.
      environment: `(config) -> rl.Environment`, what `foldax play` plays in; training never reads it.
    """

    config: type[Any]
    learner: Callable[[Any, Any], Learner]
    dataset: Callable[[Any], Any] | None = None
    summarize: Callable[[dict[str, Any]], dict[str, float]] | None = None
    figures: Callable[[Any], dict[str, Any]] | None = None
    name: str | None = None
    environment: Callable[[Any], Any] | None = None


def experiment_file(experiment: Experiment) -> Path | None:
    """Returns the file that defines the experiment's learner, or None (a notebook, a prompt)."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(experiment.learner))
    except TypeError:
        return None
    return Path(file).resolve() if file and Path(file).is_file() else None


def experiment_name(experiment: Experiment) -> str:
    """Returns the experiment's name: the one it states, else its file's, else "experiment"."""
    file = experiment_file(experiment)
    return experiment.name or (file.stem if file else "experiment")


def load_experiment(path: str | Path) -> Experiment:
    """Imports a Python file and returns its `experiment`; the file's folder can be imported from.

    Raises:
      ExperimentError: if there is no such file, its code fails, or it has no `experiment`.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" (in that folder: {', '.join(near)})" if near else ""
        raise ExperimentError(f"there is no experiment file {str(path)!r}{hint}; `foldax list` shows all")
    path = path.resolve()
    name = f"foldax_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{str(path)!r} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ExperimentError(f"{path.name} failed while it was imported:\n{own_traceback(error, path)}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ExperimentError(
            f"{path.name} has no `experiment`: end it with "
            "`experiment = foldax.Experiment(Config, learner, dataset)` (`foldax new NAME` writes a template)"
        )
    return experiment


def own_traceback(error: BaseException, file: Path | None) -> str:
    """Returns the error's traceback from the first frame in the user's `file` on, without ours."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).resolve().parent)
    skipped = (here, "jax", "flax")
    first = next((i for i, frame in enumerate(frames) if file and Path(frame.filename) == file), 0)
    kept = [f for f in frames[first:] if not _from_library(f.filename, skipped)]
    if isinstance(error, SyntaxError):
        kept = []
    told = traceback.TracebackException.from_exception(error, limit=0)
    told.__notes__ = [note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note]
    return "".join([*traceback.format_list(kept), *told.format_exception_only()]).rstrip()


def _from_library(filename: str, skipped: tuple[str, ...]) -> bool:
    return filename.startswith(skipped[0]) or any(f"site-packages/{name}/" in filename for name in skipped[1:])
