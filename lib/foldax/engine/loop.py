"""The driver of a run: chunks of compiled steps and, at each boundary between them, in this order: evaluate, log,
save, stop.

A chunk is dispatched before the previous one is read, so the device never waits for the host.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import parse_interval
from foldax.data.protocol import Dataset
from foldax.engine import compiled, evaluation
from foldax.engine.evaluation import SplitEvaluation
from foldax.engine.fold import MAX_LOG_PERIODS, BestState, ChunkReport, Fold
from foldax.engine.policy import CurrentPolicy
from foldax.engine.result import Result
from foldax.engine.setup import collects_values, has_split, nonresumable_reason, start_run
from foldax.engine.state import NEVER, Hooks, PendingChunk, Run, Timestamp
from foldax.errors import NonFiniteError
from foldax.experiment import Experiment
from foldax.learner import State

CHUNK_SECONDS = 0.5  # aimed at: a signal or a save waits for two chunks at most
PROFILED_STEPS = 20
PARAMETERS = r"^0\.state\.(.*\.)?params\."  # paths in a checkpoint, whose first part is the fold

LogLine = tuple[int, str, dict[str, float]]  # step, split, metrics


def fit(experiment: Experiment, config: Any, hooks: Hooks = Hooks(), dataset: Dataset | None = None) -> Result:
    """Runs an experiment without a run folder; `foldax.train` adds the folder, the log and the progress bar.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      hooks: callbacks for logs, progress, interruption and checkpoints.
      dataset: the data, if it is loaded already; else `experiment.dataset(config)`.

    Raises:
      ConfigError: the config does not fit the experiment, the data or the machine.
      DataError: the dataset is not available, or does not fit the config.
      ExperimentError: the experiment's own code failed, or its learner breaks a promise.
      NonFiniteError: a training metric became NaN or infinite; the last good checkpoint is kept.
      RunError: a checkpoint cannot be written or read.
    """
    compiled.drop_programs_near_map_limit()
    run = start_run(experiment, config, hooks, dataset)
    hooks.on_start(run)
    with contextlib.closing(run.blocks), compiled.user_errors(run.program, **run.arguments):
        status = train_loop(run, hooks)
        save_checkpoint(run, hooks, (run.fold, run.best), run.block.cursor)
        result = finish_run(run, status)
    if hooks.checkpoints is not None:
        hooks.checkpoints.wait()
    return result


def train_loop(
    run: Run, hooks: Hooks, until: int = NEVER, read: Callable[[Run, Hooks, PendingChunk], bool] | None = None
) -> str:
    """Trains up to the last step, an early stop, an interruption, or step `until`.

    Args:
      run: changed in place.
      hooks: see `Hooks`.
      until: step at which to pause.
      read: reads a finished chunk, and returns whether the run stopped; `read_chunk` by default.

    Returns:
      "finished", "stopped early", "interrupted" or "paused".
    """
    read = read_chunk if read is None else read
    last = min(until, run.config.steps)
    pending: PendingChunk | None = None
    read_at, stopped = time.perf_counter(), bool(np.all(jax.device_get(run.best.stopped)))
    steps = _chunk_steps(run, NEVER)  # one step at first; chunks double until they take `CHUNK_SECONDS`
    while not stopped and run.step < last and not hooks.stop_requested():
        # Dispatch the next chunk before the previous one is read: neither host nor device waits for the other.
        fetch_data_block(run)
        chunk = dispatch_chunk(run, hooks, min(_next_due(run), run.step + steps, last))
        if pending is not None:
            stopped = read(run, hooks, pending)
            now = time.perf_counter()
            run.seconds_per_step, read_at = (now - read_at) / (pending.end - pending.start), now
            run.loop_started_at = run.loop_started_at or Timestamp.now(pending.end)
        pending = chunk
        steps = _chunk_steps(run, 2 * steps)
    if pending is not None and not stopped:
        stopped = read(run, hooks, pending)
    if not stopped:
        return "finished" if run.step == run.config.steps else "paused" if run.step == last else "interrupted"
    run.step = int(run.fold.step)  # chunks dispatched after the stop did nothing
    return "stopped early"


def fetch_data_block(run: Run) -> None:
    """Advances to the block of data that holds the run's next step; data that depends on the learner is made now."""
    while run.block.end is not None and run.step >= run.block.end:
        config, seed = run.arguments["config"], run.arguments["seed"]
        run.block = run.blocks.send(CurrentPolicy(run.program, config, seed, run.fold.state, "data"))


def dispatch_chunk(run: Run, hooks: Hooks, end: int) -> PendingChunk:
    """Dispatches the steps up to `end`, and the evaluation and snapshot that are due there, without waiting."""
    start, config = run.step, run.config
    with _profile(run, hooks) as max_steps:
        end = min(end, start + max_steps)
        report = _advance(run, end)
    run.step, run.num_chunks = end, run.num_chunks + 1

    # 1. Evaluate, and compare with the best evaluation so far. (2. Log comes when the chunk is read.)
    split, stopped = None, None
    if has_split(run.dataset, "validation") and (_is_due(end, config.evaluate_every) or end == config.steps):
        split = evaluate_split(run, run.fold.state, "validation")
        value = evaluation.monitored_metric(run.program, split, config.monitor, run.num_members)
        sign, patience = np.float32(1 if config.mode == "max" else -1), np.int32(config.patience or NEVER)
        run.best, stopped = run.compiled.update_best(run.best, run.fold, value, sign, patience)

    # 3. Save: copy the fold, because the next chunk overwrites its buffers (they are donated).
    snapshot = None
    if _save_is_due(run, hooks):
        snapshot, run.last_save_time = compiled.copy((run.fold, run.best)), time.perf_counter()
    return PendingChunk(start, end, report, split, stopped, snapshot, run.block.cursor)


def read_chunk(run: Run, hooks: Hooks, chunk: PendingChunk) -> bool:
    """Waits for a dispatched chunk, logs and saves it, and returns whether the run stopped at its end.

    Raises:
      NonFiniteError: a training metric became NaN or infinite.
    """
    # 2. Log: validation metrics, then training metrics, up to the first that is not finite.
    lines, nonfinite = log_lines(run, chunk, jax.device_get(chunk.report), chunk.evaluation)
    run.history += [{"step": step, "split": split, **metrics} for step, split, metrics in lines]
    for line in lines:
        hooks.log(*line)
    if nonfinite:
        name = min(nonfinite, key=lambda name: (nonfinite[name], name != "loss"))
        kept = f"; the checkpoint of step {run.last_saved_step} is kept" if run.last_saved_step >= 0 else ""
        raise NonFiniteError(
            nonfinite[name],
            f"training metric {name!r} became NaN or infinite at step {nonfinite[name]}{kept}. "
            "Try a smaller learning rate, gradient clipping (optax.clip_by_global_norm), or look at the inputs",
        )
    hooks.progress(chunk.end)
    # 3. Save the copy.
    if chunk.snapshot is not None:
        save_checkpoint(run, hooks, chunk.snapshot, chunk.cursor)
    # 4. Stop, if patience ran out.
    return chunk.stopped is not None and bool(chunk.stopped)


def log_lines(
    run: Run, chunk: PendingChunk, report: ChunkReport, split: SplitEvaluation | None
) -> tuple[list[LogLine], dict[str, int]]:
    """Makes the log lines of a chunk.

    Args:
      run: the run.
      chunk: what was dispatched.
      report: its training metrics, on the host; of one member where members are vmapped.
      split: its evaluation, if there was one; of one member likewise.

    Returns:
      `(lines, nonfinite)`: the lines, and by name of a metric the first step at which it was not finite.
    """
    nonfinite = {name: int(step) for name, step in report.nonfinite_step.items() if step >= 0}
    lines: list[LogLine] = []
    for row, end in enumerate(_log_ends(run, chunk.start, chunk.end)):
        # After a non-finite update the metrics mean nothing: the log ends before it.
        if end > min(nonfinite.values(), default=NEVER):
            break
        if end == chunk.end and split is not None:
            lines.append((end, "validation", evaluation.split_metrics(run.program, split)))
        if _is_due(end, run.config.log_every) or end == run.config.steps:
            lines.append((end, "train", evaluation.mean_metrics(evaluation.take_rows(report.logs, row))))
    return lines, nonfinite


def evaluate_split(run: Run, state: State, split: str) -> SplitEvaluation:
    """Dispatches the evaluation of a split, block by block, without waiting for it.

    Without a dataset there is one call, with the split's own random key.

    Args:
      run: the run; the values of every example are kept where its experiment needs them.
      state: the learner's state, which need not be the run's current one.
      split: "validation" or "test".
    """
    program, config, seed = run.program, run.arguments["config"], run.arguments["seed"]
    collect = collects_values(program)
    evaluate = functools.partial(run.compiled.evaluate, program, config, seed, state, collect=collect)
    if run.dataset is None:
        sums, values = evaluate(None, None, jnp.int32(("validation", "test").index(split)))
        return SplitEvaluation(sums, [values] if collect else [], [None] if collect else [])
    sums, blocks, masks = None, [], []
    policy = CurrentPolicy(program, config, seed, state, "evaluate")
    # Nothing waits here: the device evaluates one block while the host prepares the next.
    for index, block in enumerate(run.dataset.splits[split].blocks(policy)):
        block_sums, values = evaluate(block.batches, block.mask, jnp.int32(index))
        sums = block_sums if sums is None else jax.tree.map(jnp.add, sums, block_sums)
        if collect:
            blocks.append(values)
            masks.append(block.mask)
    return SplitEvaluation(sums or {}, blocks, masks)


def save_checkpoint(run: Run, hooks: Hooks, tree: tuple[Fold, BestState], cursor: dict[str, Any] | None) -> None:
    """Starts writing a checkpoint, if the run has checkpoints and this step is not yet saved."""
    step = int(tree[0].step)
    if hooks.checkpoints is not None and step != run.last_saved_step:
        meta = {"cursor": cursor, "nonresumable_reason": nonresumable_reason(run.dataset)}
        # Members of a vmapped sweep that are not finite stay as they are; a lone run must not keep such a state.
        finite = PARAMETERS if run.num_members is None else ""
        hooks.checkpoints.save(step, tree, meta, finite)
        run.last_saved_step = step


def finish_run(run: Run, status: str) -> Result:
    """Evaluates the state to keep, unless the run was interrupted, and makes the run's result."""
    seconds_per_step = _seconds_per_step(run)
    # `best.state` is kept only with a validation split and `keep="best"`.
    best_step = int(run.best.step) if run.best.state is not None and int(run.best.step) >= 0 else None
    state = run.fold.state if best_step is None else run.best.state
    metrics, values = final_metrics(run, state) if status != "interrupted" else ({}, {})
    now = Timestamp.now(run.step)
    return Result(
        experiment=run.program.experiment,
        config=run.config,
        info=run.program.info,
        dataset=run.dataset,
        state=state,
        final_state=run.fold.state,
        step=run.step,
        best_step=best_step,
        status=status,
        metrics=metrics,
        values=values,
        history=run.history,
        seconds=now.seconds - run.started_at.seconds,
        compile_seconds=now.compile_seconds - run.started_at.compile_seconds,
        steps_per_second=1 / seconds_per_step if seconds_per_step else 0.0,
    )


def final_metrics(run: Run, state: State) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Evaluates a state on all evaluation splits.

    Returns:
      `(metrics, values)` by split: metrics, with the newest training metrics as "train", and the values of every
      example `[N, ...]`, where they are collected.
    """
    metrics, values = last_training_metrics(run.history), {}
    for name in ("validation", "test"):
        if has_split(run.dataset, name):
            split = evaluate_split(run, state, name)
            metrics[name] = evaluation.split_metrics(run.program, split)
            if split.blocks:
                values[name] = evaluation.collect_values(split)
    return metrics, values


def last_training_metrics(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Selects the newest training metrics of a log, as {"train": metrics}; empty if there are none.

    >>> last_training_metrics([{"step": 5, "split": "train", "loss": 0.5}, {"step": 5, "split": "test", "loss": 0.9}])
    {'train': {'loss': 0.5}}
    """
    lines = [line for line in history if line["split"] == "train"]
    return {"train": {k: v for k, v in lines[-1].items() if k not in ("step", "split")}} if lines else {}


def _advance(run: Run, end: int) -> ChunkReport:
    config, seed, block = run.arguments["config"], run.arguments["seed"], run.block
    arguments = dict(config=config, seed=seed, data=block.data, block_start=np.int32(block.start))
    log_every = np.int32(run.config.log_every)
    if run.config.dispatch == "loop":
        until = np.int32(end)  # from NumPy: making a `jnp` scalar would compile a program of its own
        run.fold, report = run.compiled.advance(
            run.program, fold=run.fold, stopped=run.best.stopped, until=until, log_every=log_every, **arguments
        )
        return report
    # `dispatch="step"`: the same log rows, gathered from single steps.
    logs, step = [], run.step
    for last in [] if bool(run.best.stopped) else _log_ends(run, step, end):
        for _ in range(step, last):
            run.fold = compiled.advance_one_step(run.program, fold=run.fold, **arguments)
        logs.append(compiled.copy(run.fold.metric_sums))
        run.fold, step = compiled.reset_metric_sums(run.fold, log_every), last
    step, nonfinite = compiled.copy((run.fold.step, run.fold.nonfinite_step))
    rows = jax.tree.map(lambda *rows: jnp.stack(rows), *logs) if logs else run.fold.metric_sums
    return ChunkReport(step, rows, nonfinite)


def _log_ends(run: Run, start: int, end: int) -> list[int]:
    """Lists where the log periods between two steps end: at multiples of `log_every`, and at the last step."""
    every = run.config.log_every
    return [min(end, multiple) for multiple in range((start // every + 1) * every, end + every, every)]


def _chunk_steps(run: Run, most: int) -> int:
    return min(most, max(1, int(CHUNK_SECONDS / run.seconds_per_step))) if run.seconds_per_step else 1


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next_due(run: Run) -> int:
    """Finds the next step that a chunk must not run past: an evaluation, a checkpoint, the end of logs or of data."""
    every_steps, _ = parse_interval(run.config.checkpoint_every)
    periods = [every for every in (run.config.evaluate_every, every_steps) if every]
    ends = [run.config.steps, *((run.step // every + 1) * every for every in periods)]
    # A chunk has room for so many log periods.
    ends.append((run.step // run.config.log_every + MAX_LOG_PERIODS) * run.config.log_every)
    return min(ends if run.block.end is None else [*ends, run.block.end])


def _save_is_due(run: Run, hooks: Hooks) -> bool:
    if hooks.checkpoints is None:
        return False
    every_steps, every_seconds = parse_interval(run.config.checkpoint_every)
    overdue = time.perf_counter() - run.last_save_time >= every_seconds
    return _is_due(run.step, every_steps) or (overdue and not hooks.checkpoints.is_saving())


def _seconds_per_step(run: Run) -> float:
    jax.block_until_ready(run.fold)
    if run.loop_started_at is None or run.loop_started_at.step >= run.step:
        return 0.0
    now, then = Timestamp.now(run.step), run.loop_started_at
    compiling = now.compile_seconds - then.compile_seconds
    return (now.seconds - then.seconds - compiling) / (now.step - then.step)


@contextlib.contextmanager
def _profile(run: Run, hooks: Hooks) -> Iterator[int]:
    """Records the third chunk if a profile is requested (the first two mostly compile); yields its largest size."""
    if hooks.profile_dir is None or run.num_chunks != 2:
        yield NEVER
        return
    jax.block_until_ready(run.fold)
    with jax.profiler.trace(str(hooks.profile_dir)):
        yield PROFILED_STEPS
        jax.block_until_ready(run.fold)
