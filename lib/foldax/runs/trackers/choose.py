"""Makes the trackers that an option names."""

import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from foldax.errors import ConfigError, did_you_mean
from foldax.runs.terminal import warn
from foldax.runs.trackers.protocol import Tracker

Trackers: TypeAlias = str | Tracker | Sequence[str | Tracker]  # names may be joined by commas


class Backend(NamedTuple):
    """A tracker of this package.

    Attributes:
      class_name: its class, in the module that has the tracker's name.
      package: the package that it needs; its extra has the name of the tracker.
    """

    class_name: str
    package: str


BACKENDS = {
    "tensorboard": Backend("TensorBoard", "tensorboardX"),
    "csv": Backend("CSV", "csv"),
    "wandb": Backend("WandB", "wandb"),
    "mlflow": Backend("MLflow", "mlflow"),
    "trackio": Backend("Trackio", "trackio"),
}
DEFAULT = "tensorboard"
NONE = "none"
NAMES = (*BACKENDS, NONE)
METHODS = ("start", "log", "figure", "summary", "finish")


def make_trackers(chosen: Trackers) -> dict[str, Tracker]:
    """Makes trackers from their names or objects, by name; that of an object is its class's.

    Raises:
      ConfigError: there is no tracker of that name, its package is not installed, or an object is no tracker.

    >>> list(make_trackers("csv,tensorboard")), make_trackers("none")
    (['csv', 'tensorboard'], {})
    """
    trackers: dict[str, Tracker] = {}
    for one in [chosen] if isinstance(chosen, str) or not isinstance(chosen, Sequence) else chosen:
        if isinstance(one, str):
            names = [name.strip() for name in one.split(",")]
            trackers |= {name: _make(name) for name in names if name != NONE}
            continue
        missing = [name for name in METHODS if not callable(getattr(one, name, None))]
        if inspect.isclass(one) and not missing:
            raise ConfigError(f"tracker: {one.__name__} is a class; give an instance, {one.__name__}(...)")
        if missing:
            problem = f"{type(one).__name__} is no tracker: it has no method {', '.join(missing)}"
            raise ConfigError(f"tracker: {problem} (see foldax.Tracker)")
        trackers[type(one).__name__] = one
    return trackers


def recorded_names(names: Iterable[str]) -> str:
    """Names the trackers with which a resumed run goes on; of objects that it had, there is only a warning.

    >>> recorded_names(["csv", "wandb"]), recorded_names([])
    ('csv,wandb', 'none')
    """
    for name in names:
        if name not in BACKENDS:
            warn(f"tracker {name} of earlier sessions gets nothing now; go on with it by tracker={name}(...)")
    return ",".join(name for name in names if name in BACKENDS) or NONE


def _make(name: str) -> Tracker:
    if name not in BACKENDS:
        raise ConfigError(f"tracker: there is no {name!r}{did_you_mean(name, NAMES)} (allowed: {', '.join(NAMES)})")
    backend = BACKENDS[name]
    spec = importlib.util.find_spec(backend.package)
    # A folder of the package's name, such as that of W&B's files, would be imported as an empty package.
    if spec is None or spec.origin is None:
        remedy = f"pip install 'foldax[{name}]'"
        raise ConfigError(f"tracker: {name!r} needs the package {backend.package}, which is not installed: {remedy}")
    return getattr(importlib.import_module(f"foldax.runs.trackers.{name}"), backend.class_name)()
