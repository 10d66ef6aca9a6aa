"""The boundaries between chunks: where a chunk ends, and what is due there."""

import contextlib
import time
from collections.abc import Iterator

import jax

from foldax import processes
from foldax.configuration import parse_interval
from foldax.engine.fold import MAX_LOG_PERIODS
from foldax.engine.setup import evaluation_splits
from foldax.engine.state import Callbacks, Run

PROFILED_STEPS = 20
CHUNK_SECONDS = 0.5  # aimed at: a signal or a save waits for two chunks at most


def next_boundary(run: Run, callbacks: Callbacks) -> int:
    """Finds the next step that a chunk must not run past.

    That is an evaluation, a checkpoint, a multiple of `Callbacks.intervals`, or the end of logs, data or run.
    """
    every_steps, _ = parse_interval(run.config.checkpoint_every)
    kept = run.config.keep_period if callbacks.checkpoints is not None else None
    periods = [every for every in (run.config.evaluation_period, every_steps, kept, *callbacks.intervals) if every]
    ends = [run.config.steps, *((run.step // every + 1) * every for every in periods)]
    # A chunk has room for so many log periods.
    ends.append((run.step // run.config.log_period + MAX_LOG_PERIODS) * run.config.log_period)
    return min(ends if run.block.end is None else [*ends, run.block.end])


def next_chunk(run: Run, callbacks: Callbacks, most: int) -> tuple[int, bool]:
    """Decides where the next chunk ends, and whether a checkpoint is made there; of several processes the first one.

    Args:
      run: the run, at the chunk's first step.
      callbacks: see `Callbacks`.
      most: step at which the chunk ends at the latest.
    """

    def decide() -> tuple[int, bool]:
        end = min(next_boundary(run, callbacks), most)
        if is_profiled(run, callbacks):
            end = min(end, run.step + PROFILED_STEPS)
        return end, save_is_due(run, callbacks, end)

    end, is_saved = processes.agree("chunk", decide)
    return end, is_saved


def is_profiled(run: Run, callbacks: Callbacks) -> bool:
    """Whether a profile is requested, and the next chunk is the third: the first two mostly compile."""
    return callbacks.profile_dir is not None and run.num_chunks == 2


def chunk_steps(run: Run, most: int) -> int:
    """Number of steps that take `CHUNK_SECONDS` at the run's speed, but `most` at most; 1 while that is unknown."""
    return min(most, max(1, int(CHUNK_SECONDS / run.seconds_per_step))) if run.seconds_per_step else 1


def log_ends(run: Run, start: int, end: int) -> list[int]:
    """Lists where the log periods between two steps end: at multiples of the log period, and at the last step."""
    every = run.config.log_period
    return [min(end, multiple) for multiple in range((start // every + 1) * every, end + every, every)]


def is_due(step: int, every: int) -> bool:
    """Whether a step is a multiple of an interval; an interval of 0 is never due.

    >>> is_due(1_000, 500), is_due(1_001, 500), is_due(1_000, 0)
    (True, False, False)
    """
    return every > 0 and step % every == 0


def evaluation_is_due(run: Run) -> bool:
    """Whether the splits but the test split are evaluated at the run's step."""
    has_splits = bool({*evaluation_splits(run.dataset)} - {"test"})
    return has_splits and (is_due(run.step, run.config.evaluation_period) or run.step == run.config.steps)


def save_is_due(run: Run, callbacks: Callbacks, step: int) -> bool:
    """Whether a checkpoint is made at a step that the run comes to next."""
    if callbacks.checkpoints is None:
        return False
    every_steps, every_seconds = parse_interval(run.config.checkpoint_every)
    overdue = time.perf_counter() - run.last_save_time >= every_seconds
    is_multiple = is_due(step, every_steps) or is_due(step, run.config.keep_period or 0)
    return is_multiple or (overdue and not callbacks.checkpoints.is_saving())


def interval_is_due(run: Run, callbacks: Callbacks) -> bool:
    """Whether `Callbacks.at_interval` has to be called at the run's step, and was not called there yet."""
    return run.interval_step != run.step and any(is_due(run.step, every) for every in callbacks.intervals)


@contextlib.contextmanager
def profile(run: Run, callbacks: Callbacks) -> Iterator[None]:
    """Records a profile of a chunk, if it is the one to be profiled."""
    if not is_profiled(run, callbacks):
        yield
        return
    jax.block_until_ready(run.fold)
    with jax.profiler.trace(str(callbacks.profile_dir)):
        yield
        jax.block_until_ready(run.fold)
