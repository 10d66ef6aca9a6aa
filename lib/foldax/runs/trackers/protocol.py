"""The protocol that trackers of experiments implement."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TrackedRun(NamedTuple):
    """A run, as a tracker gets it.

    Attributes:
      experiment: name of the experiment, under which its runs are grouped.
      name: name of the run.
      folder: the run folder; files of the tracker may go there.
      config: the fields of the config, as plain JSON values.
      step: number of updates done: those of the checkpoint from which a resumed run goes on, which logs all later steps
        again.
      id: what `Tracker.start` returned in an earlier session of the run, or None.
      group: name of the sweep of which the run is a member, or None.

    >>> TrackedRun("digits", "first", Path("runs/digits/first"), {"steps": 100}).step
    0
    """

    experiment: str
    name: str
    folder: Path
    config: dict[str, Any]
    step: int = 0
    id: str | None = None
    group: str | None = None


class Tracker(Protocol):
    """Takes what a run logs; `foldax.train(..., tracker=...)` accepts any object with these five methods.

    `start` is called before the first step, and an error of it ends the run. All other methods are called in order in a
    thread of the tracker's own, with values on the host: they may wait, and an error of them is a warning.

    >>> class Printer:
    ...     def start(self, run):
    ...         print(run.experiment, run.step)
    ...     def log(self, step, split, metrics):
    ...         print(step, split, sorted(metrics))
    ...     def figure(self, step, name, path):
    ...         pass
    ...     def summary(self, metrics):
    ...         pass
    ...     def finish(self, status):
    ...         print(status)
    >>> tracker: Tracker = Printer()
    """

    def start(self, run: TrackedRun) -> str | None:
        """Starts the run, or goes on with the run `run.id`; returns an id for that."""

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Takes the metrics of a split, or with the split "performance" speed, memory and learning rate."""

    def figure(self, step: int, name: str, path: Path) -> None:
        """Takes a figure: the path of a PNG, or of a text (.txt)."""

    def summary(self, metrics: dict[str, float]) -> None:
        """Takes the final metrics, by names such as "test/accuracy"."""

    def finish(self, status: str) -> None:
        """Ends the run with "finished", "stopped early", "interrupted" or "failed: ..."."""
