"""The state of a run on the host, and the callbacks through which its driver talks to the outside."""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from foldax.data.protocol import DataBlock, Dataset, Policy
from foldax.engine import compiled
from foldax.engine.best_state import BestState
from foldax.engine.fold import ChunkReport, Fold, Program
from foldax.engine.history import History
from foldax.learner import Average, State

NEVER = 2**31 - 1  # a step that no run reaches


class CheckpointStore(Protocol):
    """Where checkpoints are saved to and resumed from; `checkpoint.Checkpoints` writes them to a folder."""

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""

    def save(self, step: int, tree: Any, meta: dict[str, Any], finite: str = "") -> None:
        """Starts writing a checkpoint: a pytree of arrays, of which some must be finite, and a JSON-able dict."""

    def wait(self) -> None:
        """Waits until everything is written."""

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads `(tree, meta)` of the newest intact checkpoint; None if there is none."""


class Callbacks(NamedTuple):
    """Callbacks of a run's driver; the defaults do nothing.

    Attributes:
      log: `(step, split, metrics)`, called in the order of the steps.
      progress: `(step)`, for a progress bar.
      stop_requested: `()`, whether to save and stop at the next boundary between chunks.
      load_history: `(step) -> history`, the log lines up to the step of a checkpoint.
      on_start: `(run)`, called once before the first chunk.
      warn: `(message)`, about what is odd but no error.
      replace_initial_state: `(state) -> state` on the host, applied to the first state, such as to load the parameters
        of another run.
      checkpoints: where to save to and resume from; None: nowhere.
      profile_dir: folder for a profile; None: none is recorded.
      intervals: numbers of steps; at their multiples chunks end, and `at_interval` is called.
      at_interval: `(run)`, called after the log of such a step, while `run.fold` is its state.
    """

    log: Callable[[int, str, dict[str, float]], None] = lambda step, split, metrics: None
    progress: Callable[[int], None] = lambda step: None
    stop_requested: Callable[[], bool] = lambda: False
    load_history: Callable[[int], Iterable[dict[str, Any]]] = lambda step: ()
    on_start: "Callable[[Run], None]" = lambda run: None
    warn: Callable[[str], None] = lambda message: None
    replace_initial_state: Callable[[State], State] | None = None
    checkpoints: CheckpointStore | None = None
    profile_dir: Path | None = None
    intervals: tuple[int, ...] = ()
    at_interval: "Callable[[Run], None]" = lambda run: None


class CompiledFunctions(NamedTuple):
    """The compiled functions of a run: those of `engine.compiled`, or the same mapped over the members of a sweep."""

    advance: Callable[..., Any] = compiled.advance
    evaluate: Callable[..., Any] = compiled.evaluate
    update_best: Callable[..., Any] = compiled.update_best


class SplitEvaluation(NamedTuple):
    """A dispatched evaluation of a split: device arrays that may still be computed.

    Attributes:
      metric_sums: `Average`s [] by name, summed over all examples.
      blocks: metrics and outputs `[K, B, ...]` by name, for each block; empty if they are not collected.
      masks: bool `[K, B]` for each block, False for padding; None without a dataset.
    """

    metric_sums: dict[str, Average]
    blocks: list[dict[str, Any]]
    masks: list[Any]


class Timestamp(NamedTuple):
    """A moment of a run.

    Attributes:
      step: updates done.
      seconds: on a monotonic clock.
      compile_seconds: spent by this process on tracing and compiling up to then.
    """

    step: int
    seconds: float
    compile_seconds: float

    @classmethod
    def now(cls, step: int = 0) -> "Timestamp":
        """Takes the time.

        >>> Timestamp.now(7).step
        7
        """
        return cls(step, time.perf_counter(), compiled.compile_seconds())


@dataclasses.dataclass
class Run:
    """The host's view of a run; `fold` and `best` are all that a checkpoint has to hold.

    Attributes:
      program: the static part of the run.
      config: the config as the user made it.
      arguments: of the compiled programs: traced config, seed, examples and a block of data.
      dataset: the data, or None.
      fold: on the device, after all steps dispatched so far.
      best: likewise, the best evaluation so far.
      step: number of steps dispatched so far.
      blocks: the blocks of data to come.
      block: the current block.
      started_at: when the run started.
      times_before: times of earlier sessions, up to the checkpoint; see `loop.run_times`.
      history: the log lines so far.
      last_save_time: on a monotonic clock.
      last_saved_step: step of the newest checkpoint, or -1.
      num_chunks: number of chunks dispatched so far.
      unread: chunks that were dispatched, but not read so far.
      is_evaluation_due: whether the run failed in the evaluation at this step, and owes it.
      interval_step: step of the newest call of `Callbacks.at_interval`.
      loop_started_at: end of the first chunk, whose time is mostly compiling; None before.
      seconds_per_step: of the last chunk that was read, or 0.
      num_members: number of vmapped members; None for a lone run.
      compiled: the compiled functions.
    """

    program: Program
    config: Any
    arguments: dict[str, Any]
    dataset: Dataset | None
    fold: Fold
    best: BestState
    step: int
    blocks: Generator[DataBlock, Policy | None, None]
    block: DataBlock
    started_at: Timestamp
    times_before: dict[str, float] = dataclasses.field(default_factory=dict)
    history: History = dataclasses.field(default_factory=History)
    last_save_time: float = dataclasses.field(default_factory=time.perf_counter)
    last_saved_step: int = -1
    num_chunks: int = 0
    unread: "list[PendingChunk]" = dataclasses.field(default_factory=list)
    is_evaluation_due: bool = False
    interval_step: int = 0
    loop_started_at: Timestamp | None = None
    seconds_per_step: float = 0.0
    num_members: int | None = None
    compiled: CompiledFunctions = dataclasses.field(default_factory=CompiledFunctions)


class PendingChunk(NamedTuple):
    """A chunk of steps that was dispatched, to be read while the next one runs.

    Attributes:
      start: its first step.
      end: the step after its last one.
      report: its training metrics.
      evaluations: by name of the split, at its end, if they were due.
      stopped: bool [], whether patience ran out at its end; None without an evaluation.
      snapshot: copies of fold and best state, to be saved, if a checkpoint was due; on accelerators the best state
        is no copy until it is on the host.
    """

    start: int
    end: int
    report: ChunkReport
    evaluations: dict[str, SplitEvaluation] | None
    stopped: jax.Array | None
    snapshot: tuple[Fold, BestState] | None

    def with_snapshot_on_host(self) -> "PendingChunk":
        """Copies the snapshot to the host, if it is on accelerators, so that they hold one at a time."""
        if self.snapshot is None or not compiled.is_in_accelerator_memory(self.snapshot[0].step):
            return self
        return self._replace(snapshot=compiled.copy_to_host(self.snapshot))
