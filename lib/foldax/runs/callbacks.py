"""What a run does between its chunks: it shows progress, writes its log, calls hooks and checks its inputs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foldax.engine.setup import nonresumable_reason
from foldax.engine.state import Callbacks, Run
from foldax.runs import folder, tables, terminal
from foldax.runs import resume as resuming
from foldax.runs.first_step import FirstStepTimer
from foldax.runs.hooks import Every, call_hooks
from foldax.runs.performance import Performance
from foldax.runs.progress import Progress
from foldax.runs.recorder import Recorder
from foldax.runs.trackers.tracking import Tracking
from foldax.runs.transfer import initial_parameters, matching, pretrained
from foldax.runs.transfer.initial_parameters import ReadSource


class RunFiles(NamedTuple):
    """Where a run is recorded.

    Attributes:
      path: the run folder.
      recorder: writes its logs.
      tracking: its trackers.
      allow_other_data: whether it may go on with other data than it began with.
    """

    path: Path
    recorder: Recorder
    tracking: Tracking
    allow_other_data: bool = False


@dataclasses.dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run of `foldax.train`, a method each.

    Attributes:
      progress: the bar.
      timer: ends at the first step.
      performance: measures the speed.
      hooks: functions of the user.
      verbose: whether to print tables.
      files: where the run is recorded; None writes nothing to disk.
    """

    progress: Progress
    timer: FirstStepTimer
    performance: Performance
    hooks: Sequence[Every]
    verbose: bool
    files: RunFiles | None = None

    def for_engine(self, stop_requested: Callable[[], bool], source: ReadSource | None, **others: Any) -> Callbacks:
        """Names the methods as the engine calls them.

        Args:
          stop_requested: see `Callbacks`.
          source: of initial parameters.
          **others: further fields of `Callbacks`.
        """
        return Callbacks(
            log=self.log,
            progress=self.step,
            stop_requested=stop_requested,
            on_start=self.start,
            warn=terminal.warn,
            replace_initial_state=initial_parameters.initial_state_hook(source, self.match),
            intervals=tuple(hook.steps for hook in self.hooks),
            at_interval=self.at_interval,
            **others,
        )

    def start(self, run: Run) -> None:
        """Checks and records what the run reads, before its first chunk; prints the sizes of its model."""
        if self.files is not None:
            _check_inputs(self.files, run)
            # Only now are its files changed: until here, a finished run is as it was.
            self.files.recorder.start(run)
            _record_start(self.files.path, run)
        self.performance.start(run, with_learning_rates=self.files is not None)
        if self.verbose:
            terminal.print_table(tables.model_table(run))
            if run.step == 0 and (reason := nonresumable_reason(run.dataset)):
                terminal.echo(f"note: {reason}")

    def match(self, match: matching.Match) -> None:
        """Records and shows which initial parameters fit."""
        if self.files is not None:
            counts = {status: match.count(status) for status in matching.STATUSES}
            folder.update_manifest(self.files.path, init_from=match.source.provenance | counts)
        if self.verbose:
            matching.show(match)

    def step(self, step: int) -> None:
        """Shows that `step` updates are done, and writes the speed."""
        self.timer.stop()
        self.performance.add_chunk(step)
        self.progress.step(step, self.performance.text)
        if self.files is not None:
            self.files.recorder.write_performance()

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Shows and writes the metrics of a step."""
        self.progress.metrics(split, metrics)
        self.performance.note_split(split)
        if self.files is not None:
            self.files.recorder.write(step, split, metrics)

    def at_interval(self, run: Run) -> None:
        """Calls the hooks that are due, whose time is no training."""
        path, tracking = (None, None) if self.files is None else (self.files.path, self.files.tracking)
        self.performance.exclude(call_hooks(self.hooks, run, path, tracking))


def _check_inputs(files: RunFiles, run: Run) -> None:
    """Records the data of a run; raises an error if they, or other runs that it reads, are not those it had."""
    resuming.check_steps(files.path, run.config, run.step)
    pretrained.check_inputs(folder.read_json(files.path / "manifest.json"), files.allow_other_data)
    info = run.program.info
    if info is not None:
        reason = nonresumable_reason(run.dataset)
        folder.record_data(files.path, info.fingerprint, files.allow_other_data, nonresumable_reason=reason)


def _record_start(path: Path, run: Run) -> None:
    """Records the config with which a run goes on, and what it reads."""
    if folder.read_json(path / "manifest.json")["sessions"]:
        resuming.record_config(path, run.config, run.step)
    pretrained.record_inputs(path, run.program.experiment, [run.config])
