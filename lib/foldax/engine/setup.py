"""The start of a run: its program, its first fold or the newest checkpoint, and its first block of data."""

import contextlib
from collections.abc import Collection, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from foldax import processes
from foldax.configuration import RLTraining, traced_config
from foldax.data.protocol import DataBlock, Dataset, EvaluationBlock, Policy
from foldax.engine import compiled, contracts
from foldax.engine.best_state import initial_best
from foldax.engine.durations import count_seconds
from foldax.engine.fold import Program, make_learner
from foldax.engine.history import History
from foldax.engine.layout import MIN_DIVIDED_SIZE, Layout, make_mesh
from foldax.engine.state import NEVER, Callbacks, Run, Timestamp
from foldax.engine.state_leaves import leaves_by_path
from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import Experiment
from foldax.learner import Learner, State
from foldax.mesh import BATCH_AXES, put


def start_run(
    experiment: Experiment,
    config: Any,
    callbacks: Callbacks,
    dataset: Dataset | None,
    device: jax.Device | Mesh | None = None,
) -> Run:
    """Creates a run before its first step, or restores it from the newest checkpoint.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      callbacks: with the checkpoints to resume from, and the initial state to start from.
      dataset: the data; None to load it.
      device: where to run; None for the default device, or the first devices that `config.mesh` takes.

    Raises:
      ConfigError: the config does not fit the experiment, the data or the machine, or there is no metric to monitor.
      ExperimentError: the experiment's own code failed, or its learner breaks a promise.
    """
    started_at = Timestamp.now()
    if not isinstance(config, experiment.config):
        raise ConfigError(f"expected a config of class {experiment.config.__name__}, got {type(config).__name__}")
    if dataset is None:
        dataset = processes.together("data", lambda: load_dataset(experiment, config))
    if nonresumable_reason(dataset) is not None and getattr(config, "learning_starts", None):
        raise ConfigError(
            f"learning_starts: {config.learning_starts} must be 0 where environments are on the host: there, random "
            "steps are part of the first updates; set the learner's own `learning_starts` instead"
        )
    # 1. The first fold: learner, optimizer state and metrics of step 0.
    program = make_program(experiment, config, dataset, device if isinstance(device, Mesh) else None)
    check_processes(config, program.num_devices, nonresumable_reason(dataset))
    if program.layout is not None and dataset is not None:
        # Once: else every chunk would copy the data to the other devices.
        dataset = dataset.to(program.layout.batch_sharding)
    traced_config, seed = _place(program, device, compiled.traced_config_and_seed(config))
    blocks = data_blocks(dataset, config.seed, 0)
    block = next(blocks)
    examples = dataset.train.examples() if dataset is not None else None
    arguments = dict(config=traced_config, seed=seed, examples=examples, data=block.data)
    with compiled.user_errors(program, **arguments):
        fold = compiled.initial_fold(program, **arguments)
        fold = fold if program.layout is not None else jax.device_put(fold, device)
        leaves_by_path(fold.state)  # refuses states that could not be saved
        names = check_evaluate(program, traced_config, seed, fold.state, dataset)
        check_monitor(config, experiment, dataset, names)
        keeps_best = config.keep == "best" and has_monitored_split(config, dataset)
        best = _place(program, device, initial_best(None))
        if keeps_best:
            best = best._replace(state=compiled.inference_state(program, traced_config, fold.state))
            check_evaluate(program, traced_config, seed, best.state, dataset)
    if program.layout is not None:
        # Only shapes from now on: the examples may be a copy of the whole training split on each device.
        arguments["examples"] = jax.eval_shape(lambda: examples)
    # 2. The newest checkpoint, else the parameters of another run.
    restored = callbacks.checkpoints.restore((fold, best)) if callbacks.checkpoints is not None else None
    if restored is None and callbacks.replace_initial_state is not None:
        fold = fold._replace(state=compiled.copy(_place(program, device, callbacks.replace_initial_state(fold.state))))
        if keeps_best:
            best = best._replace(state=compiled.inference_state(program, traced_config, fold.state))
    run = Run(program, config, arguments, dataset, fold, best, 0, blocks, block, started_at)
    if restored is not None:
        tree, meta = restored
        run.fold, run.best = (_place(program, device, part) for part in tree)
        run.step = run.last_saved_step = int(run.fold.step)
        run.times_before = meta.get("times", {})
        run.is_evaluation_due = meta.get("is_evaluation_due", False)
        run.interval_step = -1 if meta.get("is_interval_due") else run.step
        _apply_monitor(run, callbacks, meta.get("monitor", monitor_and_mode(config)), device)
        # The first block was for shapes; the run goes on with the block of its step.
        run.blocks.close()
        run.blocks = data_blocks(dataset, config.seed, run.step)
        run.block = next(run.blocks)
    # Also without a checkpoint: a run that was killed before its first one logs its first steps again.
    run.history = History(callbacks.load_history(run.step))
    return run


def move_run(run: Run, dataset: Dataset | None, device: jax.Device | None) -> None:
    """Moves a paused run to another device (None: the default one), on which its dataset is already."""
    placed = (run.fold, run.best, run.arguments["config"], run.arguments["seed"])
    # Arrays that were put on a device by name stay committed to it, and would compile another program for the default
    # device; a copy on the host is free of that.
    run.fold, run.best, config, seed = jax.device_put(jax.device_get(placed) if device is None else placed, device)
    run.dataset, run.block = dataset, next(data_blocks(dataset, run.config.seed, run.step))
    run.arguments = dict(config=config, seed=seed, examples=run.arguments["examples"], data=run.block.data)


def initial_fold_arguments(
    experiment: Experiment, config: Any, dataset: Dataset | None
) -> tuple[Program, tuple[Any, ...]]:
    """Prepares a call of `compiled.initial_fold`: the program, and config, seed, examples and data."""
    program = make_program(experiment, config, dataset)
    if program.layout is not None and dataset is not None:
        dataset = dataset.to(program.layout.batch_sharding)
    block = next(data_blocks(dataset, config.seed, 0))
    examples = None if dataset is None else dataset.train.examples()
    return program, (*compiled.traced_config_and_seed(config), examples, block.data)


def make_program(experiment: Experiment, config: Any, dataset: Dataset | None, mesh: Mesh | None = None) -> Program:
    """Gathers what is static in a run.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      dataset: the data, or None.
      mesh: devices of the run; by default the first ones that `config.mesh` takes.

    Raises:
      ConfigError: `config.mesh` does not fit the machine, or does not divide the batches or parallel environments.
    """
    program = Program(experiment) if dataset is None else Program(experiment, dataset.info, dataset.train.feed)
    if mesh is None:
        mesh = make_mesh(config.mesh, jax.local_devices() if processes.is_alone() else None)
    if mesh is None:
        return program
    layout, learners = Layout(mesh, threshold=MIN_DIVIDED_SIZE), list[Learner]()
    # An error in the experiment's code comes again, and with an explanation, where the first fold is made.
    with contextlib.suppress(Exception):
        jax.eval_shape(lambda config: learners.append(make_learner(program, config)), traced_config(config))
    for learner in learners:
        check_batch_size(config, layout, learner, getattr(program.info, "batch_size", None))
        layout = layout.with_rules(learner.sharding_rules)
    return program._replace(layout=layout)


def check_processes(config: Any, num_devices: int, reason: str | None) -> None:
    """Checks that a run in several processes uses the devices of all of them, and can.

    Args:
      config: the run's config.
      num_devices: of its mesh.
      reason: why its data cannot resume, see `nonresumable_reason`.

    Raises:
      ConfigError: it does not, or the processes are not connected.
    """
    count = jax.process_count()
    if count == 1 or processes.is_alone():
        return
    if processes.number_of_processes() == 1:
        raise ConfigError(
            f"this process sees the devices of {count} processes, which are not connected; call "
            "jax.distributed.initialize() before anything else, or set FOLDAX_DISTRIBUTED=1 for the command line"
        )
    if num_devices != jax.device_count():
        problem = f"{config.mesh!r} takes {num_devices} of the {jax.device_count()} devices of {count} processes"
        remedy = "a run needs all of them, as with --mesh data=-1; FOLDAX_DISTRIBUTED=0 makes each process its own run"
        raise ConfigError(f"mesh: {problem}; {remedy}")
    if reason is not None:
        raise ConfigError(f"mesh: {config.mesh!r} takes {count} processes, but its data serve only one: {reason}")


def check_batch_size(config: Any, layout: Layout, learner: Learner, batch_size: int | None) -> None:
    """Checks that the devices divide the batches of a run, or the parallel environments of an agent.

    Raises:
      ConfigError: they do not, or there is nothing to divide.
    """
    name, size = "batch size", batch_size
    if isinstance(config, RLTraining):
        name, size = "num_envs", config.num_envs
    elif size is None and learner.environment_steps is None:
        problem = "has neither a dataset nor environments that they could divide, so each would do the same"
        raise ConfigError(f"mesh: {config.mesh!r} takes {layout.mesh.size} devices, but this run {problem}")
    if size is not None and size % layout.num_shards:
        axes = " and ".join(f"{axis} ({layout.mesh.shape[axis]})" for axis in BATCH_AXES)
        raise ConfigError(f"mesh: {axes} of {config.mesh!r} do not divide the {name}, {size}, into equal parts")


def check_evaluate(
    program: Program, config: Any, seed: jax.Array, state: State, dataset: Dataset | None
) -> tuple[str, ...]:
    """Traces `Learner.evaluate`, so that a run with a broken one ends before its first step.

    The trace is not wasted: the first evaluation finds it in JAX's cache.

    Returns:
      The names of the metrics.

    Raises:
      ExperimentError: see `contracts.check_evaluation`.
    """
    block = EvaluationBlock(None, None)  # type: ignore[arg-type]  # without a dataset
    if dataset is not None:
        names = evaluation_splits(dataset)
        if not names:
            return ()
        block = dataset.splits[names[0]].block_spec()
    sums, _ = compiled.evaluate.eval_shape(
        program,
        config,
        seed,
        state,
        block.batches,
        block.mask,
        jnp.int32(0),
        collect=collects_values(program, is_final=False),
    )
    return tuple(sums)


def check_monitor(config: Any, experiment: Experiment, dataset: Dataset | None, names: Collection[str]) -> None:
    """Checks that the metric to be monitored exists, unless `summarize` may compute it.

    Args:
      config: the run's config.
      experiment: its experiment.
      dataset: its data.
      names: of the metrics of an evaluation.

    Raises:
      ConfigError: there is no such metric.
    """
    if experiment.summarize is None and needs_monitor(config) and has_monitored_split(config, dataset):
        contracts.check_monitor(*monitored_split_and_metric(config, evaluation_splits(dataset)), names)


def needs_monitor(config: Any) -> bool:
    """Whether evaluations are compared, to keep the best state or to stop early."""
    return config.keep == "best" or config.patience is not None


def unused_patience(config: Any, dataset: Dataset | None) -> str | None:
    """Explains why patience can never run out, or returns None if it can or there is none."""
    every = config.evaluation_period or config.steps
    count = -(-config.steps // every) if has_monitored_split(config, dataset) else 0
    if config.patience is None or count > config.patience:
        return None
    reason = f"in {config.steps} steps there are only {count} evaluations (evaluate_every: {config.evaluation_period})"
    reason = reason if count else "there is no validation split"
    return f"patience: {config.patience} has no effect, as {reason}"


def monitor_and_mode(config: Any) -> list[str]:
    """The fields that say which evaluation is best, as a checkpoint records them."""
    return [config.monitor, config.mode]


def _apply_monitor(run: Run, callbacks: Callbacks, before: list[str], device: Any) -> None:
    """Applies `monitor`, `mode` and `patience` of a resumed run, which may have changed since its checkpoint."""
    if before != monitor_and_mode(run.config):
        was, now = (f"{monitor!r} ({mode})" for monitor, mode in (before, monitor_and_mode(run.config)))
        callbacks.warn(f"monitor was {was}, is {now}: earlier evaluations do not count")
        run.best = _place(run.program, device, initial_best(None))._replace(state=run.best.state)
    # The patience of now decides, for it may have grown since the run stopped.
    stopped = int(run.best.evaluations_without_improvement) >= (run.config.patience or NEVER)
    run.best = run.best._replace(stopped=_place(run.program, device, np.array(stopped)))


def collects_values(program: Program, is_final: bool) -> bool:
    """Whether an evaluation keeps the values of every example: for `summarize`, or at the end for `figures`."""
    return program.experiment.summarize is not None or (is_final and program.experiment.figures is not None)


def evaluation_splits(dataset: Dataset | None) -> tuple[str, ...]:
    """Names the splits that can be evaluated: "validation", "test", then named sets; without a dataset the first two.

    >>> evaluation_splits(None)
    ('validation', 'test')
    """
    names = ("validation", "test")
    if dataset is None:
        return names
    return (*(name for name in names if name in dataset.splits), *(n for n in dataset.splits if n not in names))


def monitored_split_and_metric(config: Any, splits: Collection[str]) -> tuple[str, str]:
    """Splits `config.monitor`: "ood/loss" is a metric of the set "ood"; others are metrics of the validation split.

    Args:
      config: the run's config.
      splits: names of the splits; "test" is for reporting, not for selection.
    """
    split, slash, metric = config.monitor.partition("/")
    return (split, metric) if slash and split in splits and split != "test" else ("validation", config.monitor)


def has_monitored_split(config: Any, dataset: Dataset | None) -> bool:
    """Whether there is the split whose metric is monitored."""
    splits = evaluation_splits(dataset)
    return monitored_split_and_metric(config, splits)[0] in splits


def nonresumable_reason(dataset: Dataset | None) -> str | None:
    """Explains why this dataset cannot resume bit for bit, or returns None if it can."""
    return getattr(dataset, "nonresumable_reason", None)


def data_blocks(dataset: Dataset | None, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
    """Yields the blocks of training data from a step on; without a dataset, one block for every step.

    >>> next(data_blocks(None, 0, 0)).data is None
    True
    """
    if dataset is None:
        yield DataBlock()
    else:
        yield from dataset.train.blocks(seed, step)


def load_dataset(experiment: Experiment, config: Any) -> Dataset | None:
    """Loads the dataset of a config; None where the experiment has none.

    Raises:
      ExperimentError: `Experiment.dataset` failed, or returned no dataset.
    """
    if experiment.dataset is None:
        return None
    with count_seconds("data"), compiled.user_code_errors(experiment):
        dataset = experiment.dataset(config)
    if not hasattr(dataset, "splits"):
        raise ExperimentError(f"the experiment's `dataset` returned {type(dataset).__name__}, not a data.Dataset")
    return dataset


def _place(program: Program, device: Any, tree: Any) -> Any:
    return put(tree, device if program.layout is None else program.layout.shardings(tree))
