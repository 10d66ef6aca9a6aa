"""Writes what a run logs while it trains: its metrics and, in another file, its speed; both go to the trackers."""

import contextlib
from pathlib import Path

from foldax.configuration import to_json
from foldax.engine.state import Run
from foldax.experiment import experiment_name
from foldax.runs import folder
from foldax.runs.log import Log
from foldax.runs.performance import Performance
from foldax.runs.trackers.protocol import TrackedRun
from foldax.runs.trackers.tracking import Tracking

PERFORMANCE_LOG = "performance.jsonl"


class Recorder:
    """Writes `metrics.jsonl` and `performance.jsonl`, and sends the same to the trackers.

    There are two files, because metrics are the same bits in every run, and speeds are not.

    Args:
      path: the run folder.
      tracking: the trackers.
      performance: the measurements.
    """

    def __init__(self, path: Path, tracking: Tracking, performance: Performance) -> None:
        self._path, self._log, self._performance_log = path, Log(path), Log(path, PERFORMANCE_LOG)
        self._tracking, self._performance = tracking, performance
        self._log_step: int | None = None

    def start(self, run: Run) -> None:
        """Starts the trackers of a run, before its first chunk.

        Lines after its step, which it writes again, are removed; those of metrics before it become its history.

        Raises:
          RunError: a tracker cannot start, or a file cannot be written.
        """
        config, name = run.config, experiment_name(run.program.experiment)
        tracked_run = TrackedRun(name, self._path.resolve().name, self._path, to_json(config), run.step)
        ids = folder.read_json(self._path / "manifest.json").get("trackers", {})
        new_ids = self._tracking.start(tracked_run, ids)
        # Ids of trackers that are not used now are kept, for a session that chooses them again.
        folder.update_manifest(self._path, trackers=ids | new_ids, chosen_trackers=list(new_ids))
        self._performance_log.rewind(run.step)
        run.history = self._log.rewind(run.step)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step.

        Raises:
          RunError: the files cannot be written, for example because the disk is full.
        """
        self._log.write(step, split, metrics)
        self._tracking.log(step, split, metrics)
        # The speed is known when the whole chunk is read; `write_performance` writes it.
        if split == "train":
            self._log_step = step

    def write_performance(self) -> None:
        """Writes speed, memory and learning rate, if training metrics were written since the last call.

        Raises:
          RunError: the files cannot be written.
        """
        if self._log_step is not None:
            line = self._performance.measure(self._log_step)
            self._performance_log.write(self._log_step, "performance", line)
            self._tracking.log(self._log_step, "performance", line)
            self._log_step = None

    def close(self) -> None:
        """Closes the files.

        Raises:
          RunError: they cannot be written.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._performance_log.close)
            stack.callback(self._log.close)
