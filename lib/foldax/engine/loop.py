"""The driver of a run: chunks of compiled steps and, at each boundary between them, in this order: evaluate, log,
call callbacks, save, stop.

A chunk is dispatched before the previous one is read and saved, so an accelerator does not wait for the host, except
where a hook gets the state.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax import processes
from foldax.configuration import RLTraining
from foldax.data.protocol import Dataset
from foldax.engine import boundaries, compiled, evaluation
from foldax.engine.best_state import BestState
from foldax.engine.fold import SUM_STEPS, ChunkReport, Fold
from foldax.engine.policy import CurrentPolicy
from foldax.engine.result import Result, to_one_process
from foldax.engine.setup import (
    evaluation_splits,
    monitor_and_mode,
    monitored_split_and_metric,
    needs_monitor,
    nonresumable_reason,
    start_run,
    unused_patience,
)
from foldax.engine.state import NEVER, Callbacks, PendingChunk, Run, Timestamp
from foldax.errors import Interrupted, NonFiniteError, RunError
from foldax.experiment import Experiment

PARAMETERS = r"^0\.state\.(.*\.)?params\."  # paths in a checkpoint, whose first part is the fold

LogLine = tuple[int, str, dict[str, float]]  # step, split, metrics


def fit(
    experiment: Experiment,
    config: Any,
    callbacks: Callbacks = Callbacks(),
    dataset: Dataset | None = None,
    until: int = NEVER,
) -> Result:
    """Runs an experiment without a run folder; `foldax.train` adds the folder, the log and the progress bar.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      callbacks: callbacks for logs, progress, interruption and checkpoints.
      dataset: the data, if it is loaded already; else `experiment.dataset(config)`.
      until: step at which to end, if that is before the config's last step.

    Raises:
      ConfigError: the config does not fit the experiment, the data or the machine.
      DataError: the dataset is not available, or does not fit the config.
      ExperimentError: the experiment's own code failed, or its learner breaks a promise.
      NonFiniteError: a training metric became NaN or infinite; the last good checkpoint is kept.
      RunError: a checkpoint cannot be written or read.
    """
    compiled.drop_programs_near_map_limit()
    run = start_run(experiment, config, callbacks, dataset)
    with contextlib.closing(run.blocks), compiled.user_errors(run.program, **run.arguments):
        callbacks.on_start(run)
        evaluation.check_summarize(run)
        if unused := unused_patience(config, run.dataset):
            callbacks.warn(unused)
        try:
            status = train_loop(run, callbacks, until)
        except Exception as error:
            save_after_error(run, callbacks, error)
            raise
        save_checkpoint(run, callbacks, (run.fold, run.best))
        result = finish_run(run, status)
    if callbacks.checkpoints is not None:
        callbacks.checkpoints.wait()
    return result


def train_loop(
    run: Run,
    callbacks: Callbacks,
    until: int = NEVER,
    read: Callable[[Run, Callbacks, PendingChunk], bool] | None = None,
) -> str:
    """Trains up to the last step, an early stop, an interruption, or step `until`.

    Args:
      run: changed in place.
      callbacks: see `Callbacks`.
      until: step at which to pause.
      read: reads a finished chunk, takes it out of `run.unread`, and returns whether the run stopped; `read_chunk` by
        default.

    Returns:
      "finished", "stopped early", "interrupted" or "paused".
    """
    read = read_chunk if read is None else read
    last = min(until, run.config.steps)
    if run.is_evaluation_due:
        read_due_evaluation(run, callbacks)
    call_at_interval(run, callbacks)  # those that raised an error at this step before the run was resumed
    read_at, stopped = time.perf_counter(), bool(np.all(jax.device_get(run.best.stopped)))
    # One step at first; chunks double until they take `CHUNK_SECONDS`.
    steps = boundaries.chunk_steps(run, NEVER)
    while not stopped and run.step < last and not processes.any_requests(callbacks.stop_requested):
        # Dispatch the next chunk before the previous one is read: neither host nor device waits for the other.
        fetch_data_block(run)
        dispatch_chunk(run, callbacks, *boundaries.next_chunk(run, callbacks, min(run.step + steps, last)))
        # A hook gets the state of its step, which the chunk after it would overwrite.
        num_unread = 0 if boundaries.interval_is_due(run, callbacks) else 1
        while len(run.unread) > num_unread and not stopped:
            chunk = run.unread[0].with_snapshot_on_host()
            stopped = read(run, callbacks, chunk)
            now = time.perf_counter()
            run.seconds_per_step, read_at = (now - read_at) / (chunk.end - chunk.start), now
            run.loop_started_at = run.loop_started_at or Timestamp.now(chunk.end)
        steps = boundaries.chunk_steps(run, 2 * steps)
    if run.unread and not stopped:
        stopped = read(run, callbacks, run.unread[0].with_snapshot_on_host())
    run.unread.clear()
    if not stopped:
        return "finished" if run.step == run.config.steps else "paused" if run.step == last else "interrupted"
    run.step = int(run.fold.step)  # chunks dispatched after the stop did nothing
    return "stopped early"


def fetch_data_block(run: Run) -> None:
    """Advances to the block of data that holds the run's next step; data that depends on the learner is made now."""
    while run.block.end is not None and run.step >= run.block.end:
        config, seed = run.arguments["config"], run.arguments["seed"]
        with compiled.user_code_errors(run.program.experiment):
            run.block = run.blocks.send(CurrentPolicy(run.program, config, seed, run.fold.state, "data"))


def dispatch_chunk(run: Run, callbacks: Callbacks, end: int, is_saved: bool) -> None:
    """Dispatches the steps up to `end`, and the evaluation that is due there, without waiting; takes a due snapshot.

    The chunk is appended to `run.unread`.

    Args:
      run: changed in place.
      callbacks: see `Callbacks`.
      end: the step after the last one of the chunk.
      is_saved: whether to make a checkpoint at its end.
    """
    start = run.step
    with boundaries.profile(run, callbacks):
        report = advance(run, end)
    run.step, run.num_chunks = end, run.num_chunks + 1
    # Known from now on, so that its steps are not lost if their evaluation fails.
    run.unread.append(PendingChunk(start, end, report, None, None, None))
    # Only now, while the device computes this chunk; and before the best state, of which there is no copy, is donated.
    run.unread[0] = run.unread[0].with_snapshot_on_host()

    # 1. Evaluate, and compare with the best evaluation so far. (2. Log and 3. callbacks come when the chunk is read.)
    evaluations, stopped = evaluate_and_compare(run) if boundaries.evaluation_is_due(run) else (None, None)

    # 4. Save: copy the fold, because the next chunk overwrites its buffers (they are donated), in the devices' memory,
    # which waits for no transfer. From accelerators the copy, and the best state, go on to the host.
    snapshot = None
    if is_saved:
        run.last_save_time = time.perf_counter()
        if compiled.is_in_accelerator_memory(run.fold.step):
            snapshot = compiled.copy(run.fold), run.best
        else:
            snapshot = compiled.copy_in_place((run.fold, run.best))
    run.unread[-1] = run.unread[-1]._replace(evaluations=evaluations, stopped=stopped, snapshot=snapshot)


def evaluate_and_compare(run: Run) -> tuple[dict[str, evaluation.SplitEvaluation], jax.Array | None]:
    """Dispatches an evaluation of all splits but "test", and the comparison of the monitored one with its best so far.

    Returns:
      `(evaluations, stopped)`: by split; bool [], whether patience ran out, or None without the monitored split.
    """
    config, splits = run.config, evaluation_splits(run.dataset)
    evaluations = {s: evaluation.evaluate_split(run, run.fold.state, s) for s in splits if s != "test"}
    if (monitored := monitored_split_and_metric(config, splits))[0] not in evaluations:
        return evaluations, None
    evaluated, is_needed = evaluations[monitored[0]], needs_monitor(config)
    value = evaluation.monitored_metric(run.program, evaluated, monitored, run.num_members, is_needed)
    sign, patience = np.float32(1 if config.mode == "max" else -1), np.int32(min(config.patience or NEVER, NEVER))
    program, traced_config = run.program, run.arguments["config"]
    best = program, traced_config, run.best, run.fold, value, sign, patience
    run.best, stopped = run.compiled.update_best(*best)
    return evaluations, stopped


def read_due_evaluation(run: Run, callbacks: Callbacks) -> None:
    """Evaluates a run that failed in the evaluation at its step before it was resumed."""
    splits = evaluate_and_compare(run)[0].items()
    write_lines(
        run, callbacks, [(run.step, name, evaluation.split_metrics(run.program, split)) for name, split in splits]
    )
    run.is_evaluation_due = False


def read_chunk(run: Run, callbacks: Callbacks, chunk: PendingChunk) -> bool:
    """Waits for a dispatched chunk, logs and saves it, and returns whether the run stopped at its end.

    Raises:
      NonFiniteError: a training metric became NaN or infinite.
    """
    # 2. Log: training metrics, up to the first that is not finite, then those of evaluations.
    lines, nonfinite = log_lines(run, chunk, jax.device_get(chunk.report), chunk.evaluations)
    write_lines(run, callbacks, lines)
    run.unread.pop(0)
    if nonfinite:
        name, step = min(nonfinite.items(), key=lambda item: (item[1], item[0] != "loss"))
        kept = f"; the checkpoint of step {run.last_saved_step} is kept" if run.last_saved_step >= 0 else ""
        remedy = "Try a smaller learning rate, gradient clipping (optax.clip_by_global_norm), or look at the inputs"
        # The parameters that a non-finite loss spoils act only in the next step, so this return is the environment's.
        if isinstance(run.config, RLTraining) and nonfinite.get("return") == step:
            remedy = "The environment gave a reward that is not finite: look at how it computes rewards from actions"
        problem = f"training metric {name!r} became NaN or infinite at step {step}{kept}"
        raise NonFiniteError(step, f"{problem}. {remedy}")
    callbacks.progress(chunk.end)
    # 3. `at_interval`, if it is due at its end: then no later chunk was dispatched.
    if chunk.end == run.step:
        call_at_interval(run, callbacks)
    # 4. Save the copy.
    if chunk.snapshot is not None:
        save_checkpoint(run, callbacks, chunk.snapshot)
    # 5. Stop, if patience ran out.
    return chunk.stopped is not None and bool(chunk.stopped)


def call_at_interval(run: Run, callbacks: Callbacks) -> None:
    """Calls `Callbacks.at_interval`, if that is due at the run's step."""
    if boundaries.interval_is_due(run, callbacks):
        callbacks.at_interval(run)
        run.interval_step = run.step


def write_lines(run: Run, callbacks: Callbacks, lines: list[LogLine]) -> None:
    """Adds lines to the log, and warns of the first evaluation in which a metric is NaN or infinite."""
    new = [{"step": step, "split": split, **metrics} for step, split, metrics in lines]
    nonfinite = evaluation.nonfinite_metrics(new)
    known = evaluation.nonfinite_metrics(run.history) if nonfinite else {}  # a log may have millions of lines
    run.history.extend(new)
    for line in lines:
        callbacks.log(*line)
    for (split, name), (value, step) in nonfinite.items():
        if (split, name) not in known:
            callbacks.warn(f"{split} metric {name!r} is {value} at step {step}, which is never the best")


def log_lines(
    run: Run, chunk: PendingChunk, report: ChunkReport, evaluations: dict[str, evaluation.SplitEvaluation] | None
) -> tuple[list[LogLine], dict[str, int]]:
    """Makes the log lines of a chunk.

    Args:
      run: the run.
      chunk: what was dispatched.
      report: its training metrics, on the host; of one member where members are vmapped.
      evaluations: its evaluations by name of the split, if there were any; of one member likewise.

    Returns:
      `(lines, nonfinite)`: the lines, and by name of a metric the first step at which it was not finite.
    """
    nonfinite = {name: int(step) for name, step in report.nonfinite_step.items() if step >= 0}
    lines: list[LogLine] = []
    for row, end in enumerate(boundaries.log_ends(run, chunk.start, chunk.end)):
        # After a non-finite update the metrics mean nothing: the log ends before it.
        if end > min(nonfinite.values(), default=NEVER):
            break
        # In this order also where an evaluation failed, and was made when the run was resumed.
        if boundaries.is_due(end, run.config.log_period) or end == run.config.steps:
            lines.append((end, "train", evaluation.mean_metrics(evaluation.take_rows(report.logs, row))))
        if end == chunk.end:
            lines += [(end, name, evaluation.split_metrics(run.program, s)) for name, s in (evaluations or {}).items()]
    return lines, nonfinite


def save_checkpoint(run: Run, callbacks: Callbacks, tree: tuple[Fold, BestState]) -> None:
    """Starts writing a checkpoint, if the run has checkpoints and this step is not yet saved."""
    step = int(tree[0].step)
    if callbacks.checkpoints is not None and step != run.last_saved_step:
        meta: dict[str, Any] = {"nonresumable_reason": nonresumable_reason(run.dataset), "times": run_times(run)}
        meta |= {"monitor": monitor_and_mode(run.config), "is_evaluation_due": run.is_evaluation_due}
        meta["is_interval_due"] = step == run.step and boundaries.interval_is_due(run, callbacks)
        # Members of a vmapped sweep that are not finite stay as they are; a lone run must not keep such a state.
        finite = PARAMETERS if run.num_members is None else ""
        callbacks.checkpoints.save(step, tree, meta, finite)
        run.last_saved_step = step


def save_after_error(run: Run, callbacks: Callbacks, error: Exception) -> None:
    """Saves the state of a run that an error has ended, unless the error is that of the state or of the disk."""
    if callbacks.checkpoints is None or run.step == 0 or isinstance(error, (NonFiniteError, RunError, Interrupted)):
        return
    if processes.number_of_processes() > 1:  # the others need not have failed, and saving takes all of them
        return
    # Whatever fails here too, such as a device that is gone, must not hide the first error.
    with contextlib.suppress(Exception):
        for chunk in run.unread:
            report = jax.device_get(chunk.report)
            try:
                lines, nonfinite = log_lines(run, chunk, report, chunk.evaluations)
            except Exception:  # it was this evaluation that failed
                lines, nonfinite = log_lines(run, chunk, report, None)
            if nonfinite:
                return
            write_lines(run, callbacks, lines)
        run.is_evaluation_due = (
            bool(run.unread) and run.unread[-1].evaluations is None and boundaries.evaluation_is_due(run)
        )
        save_checkpoint(run, callbacks, (run.fold, run.best))
        callbacks.checkpoints.wait()
        callbacks.warn(
            f"the state of step {run.step} was saved before the error below; `foldax resume` goes on from it"
        )


def run_times(run: Run) -> dict[str, float]:
    """Times of a run so far, over all its sessions: "seconds" of wall time, and the "compile_seconds" among them."""
    now, start, before = Timestamp.now(run.step), run.started_at, run.times_before
    times = {"seconds": now.seconds - start.seconds, "compile_seconds": now.compile_seconds - start.compile_seconds}
    return {name: value + before.get(name, 0.0) for name, value in times.items()}


def finish_run(run: Run, status: str) -> Result:
    """Evaluates the state to keep, unless the run was interrupted, and makes the run's result.

    Its status names every metric of an evaluation that was NaN or infinite.
    """
    seconds_per_step, times = _seconds_per_step(run), run_times(run)
    # `best.state` is kept only with a validation split and `keep="best"`.
    best_step = int(run.best.step) if run.best.state is not None and int(run.best.step) >= 0 else None
    state = run.fold.state if best_step is None else run.best.state
    metrics, values = evaluation.final_metrics(run, state) if status != "interrupted" else ({}, {})
    if status != "interrupted":
        tested_at = run.step if best_step is None else best_step
        status = evaluation.status_with_nonfinite(status, run.history, metrics, tested_at)
    state, final_state, dataset = to_one_process(state, run.fold.state, run.dataset)
    return Result(
        experiment=run.program.experiment,
        config=run.config,
        info=run.program.info,
        dataset=dataset,
        state=state,
        final_state=final_state,
        step=run.step,
        best_step=best_step,
        status=status,
        metrics=metrics,
        values=values,
        history=run.history,
        seconds=times["seconds"],
        compile_seconds=times["compile_seconds"],
        steps_per_second=1 / seconds_per_step if seconds_per_step else 0.0,
    )


def advance(run: Run, end: int) -> ChunkReport:
    """Dispatches the steps from `run.step` to `end` alone, without evaluating or saving."""
    config, seed, block = run.arguments["config"], run.arguments["seed"], run.block
    arguments = dict(config=config, seed=seed, data=block.data, block_start=np.int32(block.start))
    log_every = np.int32(min(run.config.log_period, NEVER))
    if run.config.dispatch == "loop":
        until = np.int32(end)  # from NumPy: making a `jnp` scalar would compile a program of its own
        run.fold, report = run.compiled.advance(
            run.program, fold=run.fold, stopped=run.best.stopped, until=until, log_every=log_every, **arguments
        )
        return report
    # `dispatch="step"`: the same log rows, gathered from single steps.
    logs, step = [], run.step
    for last in [] if bool(run.best.stopped) else boundaries.log_ends(run, step, end):
        for done in range(step, last):
            if done % log_every % SUM_STEPS == 0 and done > step:
                run.fold = compiled.reset_metric_sums(run.fold, log_every)
            run.fold = compiled.advance_one_step(run.program, fold=run.fold, **arguments)
        logs.append(compiled.log_sums(run.fold))
        run.fold, step = compiled.reset_metric_sums(run.fold, log_every), last
    step, nonfinite = compiled.copy((run.fold.step, run.fold.nonfinite_step))
    rows = jax.tree.map(lambda *rows: jnp.stack(rows), *logs) if logs else run.fold.metric_sums
    return ChunkReport(step, rows, nonfinite)


def _seconds_per_step(run: Run) -> float:
    jax.block_until_ready(run.fold)
    if run.loop_started_at is None or run.loop_started_at.step >= run.step:
        return 0.0
    now, then = Timestamp.now(run.step), run.loop_started_at
    compiling = now.compile_seconds - then.compile_seconds
    return (now.seconds - then.seconds - compiling) / (now.step - then.step)
