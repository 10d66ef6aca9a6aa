"""The start of a run: its program, its first fold or the newest checkpoint, and its first block of data."""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp

from foldax.data.protocol import DataBlock, Dataset, EvaluationBlock, Policy
from foldax.engine import compiled
from foldax.engine.checkpoint import leaves_by_path
from foldax.engine.fold import Program, initial_best
from foldax.engine.state import Hooks, Run, Timestamp
from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import Experiment
from foldax.learner import State


def start_run(
    experiment: Experiment, config: Any, hooks: Hooks, dataset: Dataset | None, device: jax.Device | None = None
) -> Run:
    """Creates a run before its first step, or restores it from the newest checkpoint.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      hooks: with the checkpoints to resume from, and the initial state to start from.
      dataset: the data; None to load it.
      device: where to run; None for the default device.

    Raises:
      ConfigError: the config does not fit the experiment, the data or the machine.
      ExperimentError: the experiment's own code failed, or its learner breaks a promise.
    """
    started_at = Timestamp.now()
    if not isinstance(config, experiment.config):
        raise ConfigError(f"expected a config of class {experiment.config.__name__}, got {type(config).__name__}")
    if dataset is None:
        dataset = load_dataset(experiment, config)
    if nonresumable_reason(dataset) is not None and getattr(config, "learning_starts", None):
        raise ConfigError(
            f"learning_starts: {config.learning_starts} must be 0 where environments are on the host: there, random "
            "steps are part of the first updates; set the learner's own `learning_starts` instead"
        )
    # 1. The first fold: learner, optimizer state and metrics of step 0.
    program = make_program(experiment, config, dataset)
    traced_config, seed = _place(program, device, compiled.traced_config_and_seed(config))
    blocks = data_blocks(dataset, config.seed, 0, None)
    block = next(blocks)
    examples = dataset.train.examples() if dataset is not None else None
    arguments = dict(config=traced_config, seed=seed, examples=examples, data=block.data)
    with compiled.user_errors(program, **arguments):
        fold = _place(program, device, compiled.initial_fold(program, **arguments))
        leaves_by_path(fold.state)  # refuses states that could not be saved
        check_evaluate(program, traced_config, seed, fold.state, dataset)
        keeps_best = config.keep == "best" and has_split(dataset, "validation")
        best = _place(program, device, initial_best(compiled.copy(fold.state) if keeps_best else None))
    # 2. The newest checkpoint, else the parameters of another run.
    restored = hooks.checkpoints.restore((fold, best)) if hooks.checkpoints is not None else None
    if restored is None and hooks.replace_initial_state is not None:
        fold = fold._replace(state=compiled.copy(_place(program, device, hooks.replace_initial_state(fold.state))))
        best = best._replace(state=compiled.copy(fold.state) if keeps_best else None)
    run = Run(program, config, arguments, dataset, fold, best, 0, blocks, block, started_at)
    if restored is not None:
        tree, meta = restored
        run.fold, run.best = _place(program, device, tree)
        run.step = run.last_saved_step = int(run.fold.step)
        # The first block was for shapes; the run goes on with the block of its step.
        run.blocks.close()
        run.blocks = data_blocks(dataset, config.seed, run.step, meta["cursor"])
        run.block = next(run.blocks)
    # Also without a checkpoint: a run that was killed before its first one logs its first steps again.
    run.history = hooks.load_history(run.step)
    return run


def move_run(run: Run, dataset: Dataset | None, device: jax.Device | None) -> None:
    """Moves a paused run to another device (None: the default one), on which its dataset is already."""
    placed = (run.fold, run.best, run.arguments["config"], run.arguments["seed"])
    # Arrays that were put on a device by name stay committed to it, and would compile another program for the default
    # device; a copy on the host is free of that.
    run.fold, run.best, config, seed = jax.device_put(jax.device_get(placed) if device is None else placed, device)
    run.dataset, run.block = dataset, next(data_blocks(dataset, run.config.seed, run.step, run.block.cursor))
    run.arguments = dict(config=config, seed=seed, examples=run.arguments["examples"], data=run.block.data)


def initial_fold_arguments(
    experiment: Experiment, config: Any, dataset: Dataset | None
) -> tuple[Program, tuple[Any, ...]]:
    """Prepares a call of `compiled.initial_fold`: the program, and config, seed, examples and data."""
    block = next(data_blocks(dataset, config.seed, 0, None))
    examples = None if dataset is None else dataset.train.examples()
    return make_program(experiment, config, dataset), (*compiled.traced_config_and_seed(config), examples, block.data)


def make_program(experiment: Experiment, config: Any, dataset: Dataset | None) -> Program:
    """Gathers what is static in a run.

    Raises:
      ConfigError: the machine has fewer devices than `config.devices`, or they do not divide a batch.
    """
    mesh = None
    if config.devices > 1:
        if config.devices > jax.device_count():
            raise ConfigError(f"devices: {config.devices} asked for, but this machine has {jax.device_count()}")
        if dataset is not None and dataset.info.batch_size % config.devices:
            raise ConfigError(f"devices: {config.devices} do not divide the batch size, {dataset.info.batch_size}")
        # Auto axes: the state is replicated, batches are divided, and XLA lays out everything between.
        axis_types = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((config.devices,), ("batch",), axis_types, devices=jax.devices()[: config.devices])
    if dataset is None:
        return Program(experiment, mesh=mesh)
    return Program(experiment, dataset.info, dataset.train.feed, mesh)


def check_evaluate(program: Program, config: Any, seed: jax.Array, state: State, dataset: Dataset | None) -> None:
    """Traces `Learner.evaluate`, so that a run with a broken one ends before its first step.

    The trace is not wasted: the first evaluation finds it in JAX's cache.

    Raises:
      ExperimentError: see `contracts.check_evaluation`.
    """
    block = EvaluationBlock(None, None)  # type: ignore[arg-type]  # without a dataset
    if dataset is not None:
        split = next((split for split in ("validation", "test") if has_split(dataset, split)), None)
        if split is None:
            return
        block = dataset.splits[split].block_spec()
    compiled.evaluate.eval_shape(
        program, config, seed, state, block.batches, block.mask, jnp.int32(0), collect=collects_values(program)
    )


def collects_values(program: Program) -> bool:
    """Whether evaluations keep the values of every example; for all evaluations alike, so that they are one program."""
    return program.experiment.summarize is not None or program.experiment.figures is not None


def has_split(dataset: Dataset | None, split: str) -> bool:
    """Whether a split can be evaluated; without a dataset, every split can."""
    return dataset is None or split in dataset.splits


def nonresumable_reason(dataset: Dataset | None) -> str | None:
    """Explains why this dataset cannot resume bit for bit, or returns None if it can."""
    return getattr(dataset, "nonresumable_reason", None)


def data_blocks(
    dataset: Dataset | None, seed: int, step: int, cursor: dict[str, Any] | None
) -> Generator[DataBlock, Policy | None, None]:
    """Yields the blocks of training data from a step on; without a dataset, one block for every step.

    >>> next(data_blocks(None, 0, 0, None)).data is None
    True
    """
    if dataset is None:
        yield DataBlock()
    else:
        yield from dataset.train.blocks(seed, step, cursor)


def load_dataset(experiment: Experiment, config: Any) -> Dataset | None:
    """Loads the dataset of a config; None where the experiment has none.

    Raises:
      ExperimentError: `Experiment.dataset` failed, or returned no dataset.
    """
    if experiment.dataset is None:
        return None
    with compiled.user_code_errors(experiment):
        dataset = experiment.dataset(config)
    if not hasattr(dataset, "splits"):
        raise ExperimentError(f"the experiment's `dataset` returned {type(dataset).__name__}, not a data.Dataset")
    return dataset


def _place(program: Program, device: Any, tree: Any) -> Any:
    if program.mesh is not None:
        device = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, device)
