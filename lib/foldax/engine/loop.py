"""The driver: folds in chunks and, at each boundary, evaluates, logs, saves, stops, in this order.

A chunk is dispatched before the one before it is read, so the device never waits for the host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import parse_every
from foldax.data.protocol import Block
from foldax.engine import compiled, evaluation
from foldax.engine.evaluation import Evaluation
from foldax.engine.fold import LOGS, Best, Fold, Program, Report, first_best
from foldax.engine.policy import Newest
from foldax.engine.result import Result
from foldax.engine.state import NEVER, Boundary, Hooks, Run
from foldax.errors import ConfigError, ExperimentError, NonFiniteError
from foldax.experiment import Experiment

TARGET_SECONDS = 0.5  # of a chunk: a signal or a save is never further away than two of them
PROFILED_STEPS = 20


def fit(experiment: Experiment, config: Any, hooks: Hooks = Hooks(), dataset: Any = None) -> Result:
    """Runs an experiment: the function under `foldax.train`, without a run folder.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      hooks: what is told and asked on the way.
      dataset: the data, if it is loaded already; else `experiment.dataset(config)`.

    Raises:
      ConfigError: the config does not fit the experiment, the data or the machine.
      DataError: the dataset cannot be had, or does not fit the config.
      ExperimentError: the experiment's own code failed.
      NonFiniteError: a training metric became NaN or infinite; the last good checkpoint is kept.
      RunError: a checkpoint cannot be written or read.
    """
    compiled.make_room()
    run = begin(experiment, config, hooks, dataset)
    hooks.ready(run)
    with contextlib.closing(run.blocks), compiled.explained(run.program, **run.arguments):
        status = fold_all(run, hooks)
        save(run, hooks, (run.fold, run.best), run.block.cursor)
        result = finish(run, status)
    if hooks.checkpoints is not None:
        hooks.checkpoints.wait()
    return result


def finish(run: Run, status: str) -> Result:
    """Returns the result of a run that has come to its end; the last metrics are taken unless it was interrupted."""
    seconds_per_step = _seconds_per_step(run)
    best_step = int(run.best.step) if run.best.state is not None and int(run.best.step) >= 0 else None
    state = run.fold.state if best_step is None else run.best.state
    metrics, values = final_metrics(run, state) if status != "interrupted" else ({}, {})
    return Result(
        experiment=run.program.experiment,
        config=run.config,
        info=run.program.info,
        dataset=run.dataset,
        state=state,
        final=run.fold.state,
        step=run.step,
        best_step=best_step,
        status=status,
        metrics=metrics,
        values=values,
        history=run.history,
        seconds=time.perf_counter() - run.began[0],
        compile_seconds=compiled.compile_seconds() - run.began[1],
        steps_per_second=1 / seconds_per_step if seconds_per_step else 0.0,
    )


def begin(experiment: Experiment, config: Any, hooks: Hooks, dataset: Any, device: jax.Device | None = None) -> Run:
    """Makes the first fold, or takes it from the newest checkpoint."""
    began = (time.perf_counter(), compiled.compile_seconds())
    if not isinstance(config, experiment.config):
        raise ConfigError(f"expected a config of class {experiment.config.__name__}, got {type(config).__name__}")
    if dataset is None and experiment.dataset is not None:
        with compiled.own_code(experiment):
            dataset = experiment.dataset(config)
        if not hasattr(dataset, "splits"):
            raise ExperimentError(f"the experiment's `dataset` returned {type(dataset).__name__}, not a data.Dataset")
    if unsaved(dataset) is not None and getattr(config, "start_steps", None):
        raise ConfigError(
            f"start_steps: {config.start_steps} must be 0 where environments are on the host: what is done at random "
            "there is part of the first updates (a learner's `start`)"
        )
    program = make_program(experiment, config, dataset)
    traced, key = _place(program, device, compiled.prepared(config))
    blocks = blocks_of(dataset, config.seed, 0, None)
    block = next(blocks)
    arguments = dict(
        config=traced, seed=key, examples=dataset.train.examples() if dataset is not None else None, data=block.data
    )
    with compiled.explained(program, **arguments):
        fold = _place(program, device, compiled.start(program, **arguments))
        keeps_best = config.keep == "best" and has(dataset, "validation")
        best = _place(program, device, first_best(compiled.copy(fold.state) if keeps_best else None))
    restored = hooks.checkpoints.restore((fold, best)) if hooks.checkpoints is not None else None
    if restored is None and hooks.initial is not None:
        fold = fold._replace(state=compiled.copy(_place(program, device, hooks.initial(fold.state))))
        best = best._replace(state=compiled.copy(fold.state) if keeps_best else None)
    run = Run(program, config, arguments, dataset, fold, best, 0, blocks, block, [], time.perf_counter(), began)
    if restored is not None:
        tree, meta = restored
        run.fold, run.best = _place(program, device, tree)
        run.step = run.saved_step = int(run.fold.step)
        run.blocks.close()
        run.blocks = blocks_of(dataset, config.seed, run.step, meta["cursor"])
        run.block = next(run.blocks)
    run.history = hooks.resumed(run.step)  # also without a checkpoint: what was logged is done again
    return run


def move(run: Run, dataset: Any, device: jax.Device | None) -> None:
    """Moves a paused run to another device (None: the default one), where its dataset is already."""
    placed = (run.fold, run.best, run.arguments["config"], run.arguments["seed"])
    # What was put on a device by name stays bound to it, and that would be another program for the default one.
    run.fold, run.best, config, seed = jax.device_put(jax.device_get(placed) if device is None else placed, device)
    run.dataset, run.block = dataset, next(blocks_of(dataset, run.config.seed, run.step, run.block.cursor))
    run.arguments = dict(config=config, seed=seed, examples=run.arguments["examples"], data=run.block.data)


def start_arguments(experiment: Experiment, config: Any, dataset: Any) -> tuple[Program, tuple[Any, ...]]:
    """Returns the program of a run and the arguments of `compiled.start`: config, seed, examples and data."""
    block = next(blocks_of(dataset, config.seed, 0, None))
    examples = None if dataset is None else dataset.train.examples()
    return make_program(experiment, config, dataset), (*compiled.prepared(config), examples, block.data)


def make_program(experiment: Experiment, config: Any, dataset: Any) -> Program:
    """Returns what is static in a run.

    Raises:
      ConfigError: the machine has fewer devices than `config.devices`, or they do not divide a batch.
    """
    mesh = None
    if config.devices > 1:
        if config.devices > jax.device_count():
            raise ConfigError(f"devices: {config.devices} asked for, but this machine has {jax.device_count()}")
        if dataset is not None and dataset.info.batch_size % config.devices:
            raise ConfigError(f"devices: {config.devices} do not divide the batch size, {dataset.info.batch_size}")
        kinds = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((config.devices,), ("batch",), kinds, devices=jax.devices()[: config.devices])
    if dataset is None:
        return Program(experiment, mesh=mesh)
    return Program(experiment, dataset.info, dataset.train.feed, mesh)


def read(run: Run, hooks: Hooks, boundary: Boundary) -> bool:
    """Reads what was dispatched up to a boundary: logs it, saves it, and says whether the run stopped.

    Raises:
      NonFiniteError: a training metric became NaN or infinite.
    """
    lines, bad = log_lines(run, boundary, jax.device_get(boundary.report), boundary.evaluation)
    run.history += [{"step": step, "split": split, **metrics} for step, split, metrics in lines]
    for line in lines:
        hooks.log(*line)
    if bad:
        name = min(bad, key=lambda name: (bad[name], name != "loss"))
        kept = f"; the checkpoint of step {run.saved_step} is kept" if run.saved_step >= 0 else ""
        raise NonFiniteError(
            bad[name],
            f"training metric {name!r} became NaN or infinite at step {bad[name]}{kept}. "
            "Try a smaller learning rate, gradient clipping (optax.clip_by_global_norm), or look at the inputs",
        )
    hooks.progress(boundary.end)
    if boundary.snapshot is not None:
        save(run, hooks, boundary.snapshot, boundary.cursor)
    return boundary.stopped is not None and bool(boundary.stopped)


def log_lines(
    run: Run, boundary: Boundary, report: Report, found: Evaluation | None
) -> tuple[list[tuple[int, str, dict[str, float]]], dict[str, int]]:
    """Returns what a chunk logs, as (step, split, metrics), and which metrics are not finite from which step on."""
    bad = {name: int(step) for name, step in report.bad.items() if step >= 0}
    lines: list[tuple[int, str, dict[str, float]]] = []
    for row, end in enumerate(_log_ends(run, boundary.start, boundary.end)):
        if end > min(bad.values(), default=NEVER):
            break
        if end == boundary.end and found is not None:
            lines.append((end, "validation", evaluation.metrics(run.program, found)))
        if _due(end, run.config.log_every) or end == run.config.steps:
            lines.append((end, "train", evaluation.means(evaluation.taken(report.logs, row))))
    return lines, bad


def fold_all(run: Run, hooks: Hooks, until: int = NEVER, read: Callable[[Run, Hooks, Boundary], bool] = read) -> str:
    """Folds to the last step, the early stop or an interruption, and says which it was; "paused" at step `until`."""
    last = min(until, run.config.steps)
    unread: Boundary | None = None
    read_at, stopped = time.perf_counter(), bool(np.all(jax.device_get(run.best.stopped)))
    chunk = _chunk(NEVER, run)
    while not stopped and run.step < last and not hooks.interrupted():
        refill(run)
        boundary = dispatch_chunk(run, hooks, min(_next_due(run), run.step + chunk, last))
        if unread is not None:
            stopped = read(run, hooks, unread)
            now = time.perf_counter()
            run.seconds_per_step, read_at = (now - read_at) / (unread.end - unread.start), now
            run.loop_began = run.loop_began or (unread.end, now, compiled.compile_seconds())
        unread = boundary
        chunk = _chunk(2 * chunk, run)
    if unread is not None and not stopped:
        stopped = read(run, hooks, unread)
    if not stopped:
        return "finished" if run.step == run.config.steps else "paused" if run.step == last else "interrupted"
    run.step = int(run.fold.step)  # chunks dispatched after the stop did nothing
    return "stopped early"


def refill(run: Run) -> None:
    """Takes the block of data that the run's next step is in; where data depends on the state, the newest makes it."""
    while run.block.end is not None and run.step >= run.block.end:
        config, seed = run.arguments["config"], run.arguments["seed"]
        run.block = run.blocks.send(Newest(run.program, config, seed, run.fold.state, "data"))


def _chunk(most: int, run: Run) -> int:
    return min(most, max(1, int(TARGET_SECONDS / run.seconds_per_step))) if run.seconds_per_step else 1


def dispatch_chunk(run: Run, hooks: Hooks, end: int) -> Boundary:
    """Dispatches the steps up to `end` and what is due there; waits for nothing."""
    start, config = run.step, run.config
    with _profile(run, hooks) as most:
        end = min(end, start + most)
        report = _advance(run, end)
    run.step, run.chunks = end, run.chunks + 1
    found, stopped = None, None
    if has(run.dataset, "validation") and (_due(end, config.evaluate_every) or end == config.steps):
        found = evaluated(run, run.fold.state, "validation")
        value = evaluation.monitored(run.program, found, config.monitor, run.rows)
        sign = np.float32(1 if config.mode == "max" else -1)
        run.best, stopped = run.calls.observe(run.best, run.fold, value, sign, np.int32(config.patience or NEVER))
    snapshot = None
    if _save_due(run, hooks):
        snapshot, run.saved_at = compiled.copy((run.fold, run.best)), time.perf_counter()
    return Boundary(start, end, report, found, stopped, snapshot, run.block.cursor)


def save(run: Run, hooks: Hooks, tree: tuple[Fold, Best], cursor: dict[str, Any] | None) -> None:
    """Starts writing a checkpoint, if there is somewhere to write and it is a new one."""
    step = int(tree[0].step)
    if hooks.checkpoints is not None and step != run.saved_step:
        hooks.checkpoints.save(step, tree, {"cursor": cursor, "unsaved": unsaved(run.dataset)})
        run.saved_step = step


def final_metrics(run: Run, state: Any) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
    """Returns metrics and, if the experiment wants them, values of each split for the state to keep."""
    metrics, values = last_training_metrics(run.history), {}
    for split in ("validation", "test"):
        if has(run.dataset, split):
            found = evaluated(run, state, split)
            metrics[split] = evaluation.metrics(run.program, found)
            if found.blocks:
                values[split] = evaluation.collected(found)
    return metrics, values


def last_training_metrics(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns {"train": the newest training metrics of a log}, or nothing if there are none."""
    lines = [line for line in history if line["split"] == "train"]
    return {"train": {k: v for k, v in lines[-1].items() if k not in ("step", "split")}} if lines else {}


def _advance(run: Run, end: int) -> Report:
    data, log_every = dict(data=run.block.data, first=np.int32(run.block.start)), np.int32(run.config.log_every)
    arguments = dict(config=run.arguments["config"], seed=run.arguments["seed"], **data)
    if run.config.dispatch == "loop":
        until = np.int32(end)  # NumPy: a jnp scalar would be a program of its own
        run.fold, report = run.calls.advance(
            run.program, fold=run.fold, stopped=run.best.stopped, until=until, log_every=log_every, **arguments
        )
        return report
    logs, step = [], run.step
    for last in [] if bool(run.best.stopped) else _log_ends(run, step, end):
        for _ in range(step, last):
            run.fold = compiled.advance_once(run.program, fold=run.fold, **arguments)
        logs.append(compiled.copy(run.fold.sums))
        run.fold, step = compiled.forget(run.fold, log_every), last
    step, bad = compiled.copy((run.fold.step, run.fold.bad))
    return Report(step, jax.tree.map(lambda *rows: jnp.stack(rows), *logs) if logs else run.fold.sums, bad)


def _log_ends(run: Run, start: int, end: int) -> list[int]:
    """Returns where the log periods between two steps end: at multiples of `log_every`, and at the last step."""
    every = run.config.log_every
    return [min(end, multiple) for multiple in range((start // every + 1) * every, end + every, every)]


def evaluated(run: Run, state: Any, split: str) -> Evaluation:
    """Dispatches the evaluation of a split with some state."""
    config, seed, experiment = run.arguments["config"], run.arguments["seed"], run.program.experiment
    collect = experiment.summarize is not None or experiment.figures is not None  # one program for all evaluations
    return evaluation.dispatch(run.program, config, seed, state, run.dataset, split, collect, run.calls.evaluate)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _next_due(run: Run) -> int:
    """Returns the next step at which something is due."""
    every_steps, _ = parse_every(run.config.checkpoint_every)
    periods = [every for every in (run.config.evaluate_every, every_steps) if every]
    ends = [run.config.steps, *((run.step // every + 1) * every for every in periods)]
    ends.append((run.step // run.config.log_every + LOGS) * run.config.log_every)
    return min(ends if run.block.end is None else [*ends, run.block.end])


def _save_due(run: Run, hooks: Hooks) -> bool:
    every_steps, every_seconds = parse_every(run.config.checkpoint_every)
    if hooks.checkpoints is None:
        return False
    if _due(run.step, every_steps):
        return True
    return time.perf_counter() - run.saved_at >= every_seconds and not hooks.checkpoints.busy()


def has(dataset: Any, split: str) -> bool:
    return dataset is None or split in dataset.splits


def unsaved(dataset: Any) -> str | None:
    """Returns what of its own state the source of data cannot save, as a clause; None if a resumed run has the bits."""
    return getattr(dataset, "unsaved", None)


def blocks_of(dataset: Any, seed: int, step: int, cursor: dict[str, Any] | None) -> Generator[Any, Any, None]:
    if dataset is None:
        yield Block()
    else:
        yield from dataset.train.blocks(seed, step, cursor)


def _place(program: Program, device: Any, tree: Any) -> Any:
    if program.mesh is not None:
        device = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, device)


def _seconds_per_step(run: Run) -> float:
    jax.block_until_ready(run.fold)
    if run.loop_began is None or run.loop_began[0] >= run.step:
        return 0.0
    step, began, compiling = run.loop_began
    return (time.perf_counter() - began - (compiled.compile_seconds() - compiling)) / (run.step - step)


@contextlib.contextmanager
def _profile(run: Run, hooks: Hooks) -> Iterator[int]:
    """Records the third chunk, or the first that is the last, if a profile is wanted; gives its most steps."""
    if hooks.profile is None or run.chunks != 2:
        yield NEVER
        return
    jax.block_until_ready(run.fold)
    with jax.profiler.trace(str(hooks.profile)):
        yield PROFILED_STEPS
        jax.block_until_ready(run.fold)
