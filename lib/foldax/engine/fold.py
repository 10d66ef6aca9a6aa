"""The fold: a training run as pure functions, to be compiled, mapped over members, sharded and resumed.

Everything here is traced. `Program` holds what is static; seed, config, data and the bounds of the loop are arguments,
so one compiled program serves any seed, any chunk size and any value of a traced config field.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp

from foldax.configuration import RLTraining
from foldax.data import protocol
from foldax.engine.contracts import check_evaluation, check_logits, check_update
from foldax.engine.layout import Layout
from foldax.errors import ExperimentError
from foldax.experiment import Experiment
from foldax.learner import Average, Batch, Key, Learner, State, as_average
from foldax.mesh import shard_batch

T = TypeVar("T")

SUM_STEPS = 1_024  # steps over which a training metric is summed plainly; longer sums are compensated
MAX_LOG_PERIODS = 32  # log periods of one chunk: their metrics have a row each


class NoDataFeed(NamedTuple):
    """The feed where there is no dataset: an agent makes its own experience, so every batch is None."""

    def batch(self, data: Batch, key: Key, step: jax.Array, start: jax.Array) -> Batch:
        """Returns None."""
        del data, key, step, start


class Program(NamedTuple):
    """The static part of a run: a new value is a new compiled program.

    Attributes:
      experiment: the experiment.
      info: static facts of the training split; None without a dataset.
      feed: selects a step's batch from a block of data.
      layout: of batches and state over several devices; None for a single one.
    """

    experiment: Experiment
    info: Any = None
    feed: protocol.Feed = NoDataFeed()
    layout: Layout | None = None

    @property
    def num_devices(self) -> int:
        """Number of devices on which the run trains."""
        return 1 if self.layout is None else self.layout.mesh.size

    def activate(self) -> AbstractContextManager:
        """Lets the learner and the feed lay out their arrays, while they are traced, over the run's devices."""
        return nullcontext() if self.layout is None else self.layout.activate()

    def constrain(self, tree: T) -> T:
        """Lays out the arrays of a fold or a part of it."""
        return tree if self.layout is None else self.layout.constrain(tree)


class KeyStreams(NamedTuple):
    """The random keys of a run, one stream per purpose, all from one seed."""

    init: Key
    data: Key
    update: Key
    evaluate: Key


class Fold(NamedTuple):
    """The carry of the fold: all that changes from step to step.

    Attributes:
      step: int32 [], number of updates done.
      state: the learner's state.
      metric_sums: training metrics by name, summed since the last log or over the last steps of a long log period.
      nonfinite_step: int32 [] by name, the first step whose metric was not finite, or -1.
      earlier_sums: sums by name over the steps of the log period before those, and the rounding errors of these sums.
    """

    step: jax.Array
    state: State
    metric_sums: dict[str, Average]
    nonfinite_step: dict[str, jax.Array]
    earlier_sums: tuple[dict[str, Average], dict[str, Average]]


class ChunkReport(NamedTuple):
    """The metrics of a chunk of steps, which the host reads while the next chunk runs.

    Attributes:
      step: int32 [], step at which the chunk ended.
      logs: `Average`s `[MAX_LOG_PERIODS]` by name: training metrics summed over each log period that ended or began in
        the chunk, in order.
      nonfinite_step: as in `Fold`.
    """

    step: jax.Array
    logs: dict[str, Average]
    nonfinite_step: dict[str, jax.Array]


def key_streams(seed: jax.Array) -> KeyStreams:
    """Derives the key streams of a run from its seed.

    >>> sorted(key_streams(0)._fields)
    ['data', 'evaluate', 'init', 'update']
    """
    key = jax.random.key(seed)
    # `fold_in`, not `split`: a further stream would not change the others.
    return KeyStreams(*(jax.random.fold_in(key, i) for i in range(4)))


def make_learner(program: Program, config: Any) -> Learner:
    """Builds the learner from the traced config.

    Raises:
      ExperimentError: the experiment's `learner` returned something else.
      ConfigError: an agent takes other numbers of environment steps than the config counts.
    """
    learner = program.experiment.learner(config, program.info)
    if not isinstance(learner, Learner):
        raise ExperimentError(f"the experiment's `learner` returned {type(learner).__name__}, not a foldax.Learner")
    if learner.environment_steps is not None and isinstance(config, RLTraining):
        config.check_environment_steps(learner.environment_steps)
    return learner


def initial_fold(program: Program, config: Any, seed: jax.Array, examples: Batch, data: Batch) -> Fold:
    """Initialises the learner and checks what its `update` returns.

    Args:
      program: the static part of the run.
      config: the experiment's traced config.
      seed: uint32 [].
      examples: for `Learner.init`: the training split or one batch.
      data: first block of data, of which only shapes matter.
    """
    learner, keys = make_learner(program, config), key_streams(seed)
    zero = jnp.int32(0)
    with program.activate():
        state = without_weak_types(learner.init(keys.init, examples))
        # Only shapes: the loop's carry needs a place for every metric before the first update.
        batch = jax.eval_shape(program.feed.batch, data, keys.data, zero, zero)
        metrics = check_update(state, jax.eval_shape(learner.update, state, batch, keys.update))
    sums = {
        name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(as_average, value))
        for name, value in metrics.items()
    }
    # Copies, because each buffer of a fold is donated by itself.
    earlier_sums = jax.tree.map(jnp.copy, sums), jax.tree.map(jnp.copy, sums)
    return program.constrain(Fold(zero, state, sums, {name: jnp.int32(-1) for name in sums}, earlier_sums))


def advance(
    program: Program,
    config: Any,
    seed: jax.Array,
    fold: Fold,
    stopped: jax.Array,
    data: Batch,
    block_start: jax.Array,
    until: jax.Array,
    log_every: jax.Array,
) -> tuple[Fold, ChunkReport]:
    """Folds `update` over the steps from `fold.step` to `until`; does nothing if `stopped`.

    The bounds of the loop are data, not structure: every chunk size runs the same program and gives the same bits, and
    a run that stopped early costs nothing.

    Args:
      program: the static part of the run.
      config: the experiment's traced config.
      seed: uint32 [].
      fold: where to go on from.
      stopped: bool [].
      data: a block of data.
      block_start: int32 [], first step of the block.
      until: int32 [], exclusive; at most `MAX_LOG_PERIODS` log periods away.
      log_every: int32 [], length of a log period: metrics are summed over the steps between two of its multiples.
    """
    step = step_function(program, config, seed, data, block_start)
    # A stopped run ends where it begins, so its loop has no iteration.
    until = jnp.where(stopped, fold.step, until)

    def log_period(carry: tuple[Fold, Any, jax.Array]) -> tuple[Fold, Any, jax.Array]:
        fold, logs, row = carry
        # Steps of one log period, or some of a long one; the outer loop runs over these. No sum here exceeds 31 bits.
        position = fold.step % log_every
        steps = jnp.minimum(log_every - position, SUM_STEPS - position % SUM_STEPS)
        end = fold.step + jnp.minimum(steps, until - fold.step)
        fold = jax.lax.while_loop(lambda fold: fold.step < end, step, fold)
        logs = jax.tree.map(lambda log, total: log.at[row].set(total), logs, log_sums(fold))
        return reset_metric_sums(fold, log_every), logs, row + (fold.step % log_every == 0).astype(jnp.int32)

    # A row per log period; rows that the chunk does not reach keep count 0.
    logs = jax.tree.map(lambda total: jnp.zeros((MAX_LOG_PERIODS, *total.shape), total.dtype), fold.metric_sums)
    carry = (fold, logs, jnp.int32(0))
    fold, logs, _ = jax.lax.while_loop(lambda carry: carry[0].step < until, log_period, carry)
    # Where a chunk ends its layout is that of its start, so that the old fold's memory can be reused.
    return program.constrain(fold), program.constrain(ChunkReport(fold.step, logs, fold.nonfinite_step))


def reset_metric_sums(fold: Fold, log_every: jax.Array) -> Fold:
    """Sets the summed metrics to zero if a log period ends at this step, and adds them up every `SUM_STEPS` steps.

    In float32 a sum of millions of steps would stop growing, so that of sums is compensated (Kahan, 1965).
    """
    position = fold.step % log_every
    ends, is_due = position == 0, position % SUM_STEPS == 0
    earlier, _ = fold.earlier_sums
    totals = jax.tree.map(jnp.add, earlier, fold.metric_sums)

    def error(total: jax.Array, earlier: jax.Array, new: jax.Array) -> jax.Array:
        # Knuth's two-sum: exact, whichever of the two is larger.
        rounded = total - earlier
        return (earlier - (total - rounded)) + (new - rounded)

    errors = jax.tree.map(error, totals, earlier, fold.metric_sums)
    errors = jax.tree.map(jnp.add, fold.earlier_sums[1], errors)
    earlier_sums = jax.tree.map(
        lambda old, new: jnp.where(ends, 0.0, jnp.where(is_due, new, old)), fold.earlier_sums, (totals, errors)
    )
    sums = jax.tree.map(lambda total: jnp.where(is_due, 0.0, total), fold.metric_sums)
    return fold._replace(metric_sums=sums, earlier_sums=earlier_sums)


def log_sums(fold: Fold) -> dict[str, Average]:
    """Returns the training metrics summed since the last log, by name."""
    return jax.tree.map(lambda last, total, error: total + (error + last), fold.metric_sums, *fold.earlier_sums)


def advance_one_step(
    program: Program, config: Any, seed: jax.Array, fold: Fold, data: Batch, block_start: jax.Array
) -> Fold:
    """Takes one step outside of any loop, for programs that XLA compiles badly inside one (`dispatch="step"`)."""
    return program.constrain(step_function(program, config, seed, data, block_start)(fold))


def step_function(
    program: Program, config: Any, seed: jax.Array, data: Batch, block_start: jax.Array
) -> Callable[[Fold], Fold]:
    """Builds the function that is folded: `Fold -> Fold`, one update on one batch."""
    learner = make_learner(program, config)

    def step(fold: Fold) -> Fold:
        # Made of the seed in each step: a key that a loop closes over counts as used again (JAX_DEBUG_KEY_REUSE).
        keys = key_streams(seed)
        with program.activate():
            # 1. Batch: an index into the block, divided over the mesh.
            batch = program.feed.batch(data, keys.data, fold.step, block_start)
            batch = shard_batch(batch, getattr(program.feed, "batch_axis", 0))
            # 2. Update: the key depends only on seed and step, so a resumed run draws the same numbers.
            state, metrics = learner.update(fold.state, batch, jax.random.fold_in(keys.update, fold.step))
        state = without_weak_types(state)
        # 3. Metrics: summed for the log, and watched for NaN and infinity.
        averages = {name: as_average(value) for name, value in metrics.items()}
        sums = jax.tree.map(jnp.add, fold.metric_sums, averages)
        nonfinite = {
            name: jnp.where((first < 0) & ~jnp.isfinite(averages[name].total).all(), fold.step, first)
            for name, first in fold.nonfinite_step.items()
        }
        return program.constrain(Fold(fold.step + 1, state, sums, nonfinite, fold.earlier_sums))

    return step


def evaluate(
    program: Program,
    config: Any,
    seed: jax.Array,
    state: State,
    batches: Batch,
    mask: jax.Array | None,
    index: jax.Array,
    collect: bool,
) -> tuple[dict[str, Average], dict[str, Any]]:
    """Evaluates a block of batches `[K, B, ...]`, counting each example that `mask` `[K, B]` marks exactly once.

    Without a dataset, `batches` and `mask` are None and `Learner.evaluate` is called once.

    Args:
      program: the static part of the run.
      config: the experiment's traced config.
      seed: uint32 [].
      state: the learner's state.
      batches: arrays `[K, B, ...]` by name.
      mask: bool `[K, B]`, False for padding.
      index: int32 [], number of the block; determines its random keys.
      collect: whether to return the values of every example.

    Returns:
      `(metric_sums, values)`: metrics summed over examples, by name, and, if `collect`, all metrics and outputs
      `[K, B, ...]`.

    Raises:
      ExperimentError: while tracing, `Learner.evaluate` breaks its promises (see `check_evaluation` and
        `check_logits`).
    """
    learner = make_learner(program, config)
    batch_size = None if mask is None else mask.shape[1]

    def one_batch(batch: Batch, mask: Any, index: jax.Array) -> tuple[dict[str, Average], dict[str, Any]]:
        with program.activate():
            key = jax.random.fold_in(key_streams(seed).evaluate, index)
            result = learner.evaluate(state, shard_batch(batch), key)
        evaluation = check_evaluation(result, batch_size)
        check_logits(evaluation, program.info)
        averages = {name: as_average(value) for name, value in evaluation.metrics.items()}
        if mask is not None:  # padding may hold anything, also NaN, so it is selected away, not multiplied by zero
            averages = jax.tree.map(lambda x: jnp.where(mask, x, 0.0), averages)
        return jax.tree.map(jnp.sum, averages), evaluation.values if collect else {}

    if mask is None:
        return one_batch(None, None, index)
    chex.assert_rank(mask, 2)
    num_batches = mask.shape[0]
    # Every batch of every block has its own random key.
    indices = index * num_batches + jnp.arange(num_batches)
    # `lax.map`, not `vmap`: activations of one batch at a time.
    sums, values = jax.lax.map(lambda args: one_batch(*args), (batches, mask, indices))
    return program.constrain(jax.tree.map(lambda x: x.sum(axis=0), sums)), values


def without_weak_types(tree: State) -> State:
    """Gives the arrays of a pytree their own dtypes: JAX would compile another program for weakly typed ones.

    >>> jax.jit(without_weak_types)(jnp.asarray(1.0)).weak_type
    False
    """

    def strong(x: Any) -> Any:
        kind = jax.typeof(x)
        return jax.lax.convert_element_type(x, kind.dtype) if kind.weak_type else x

    return jax.tree.map(strong, tree)


def inference_state(program: Program, config: Any, state: State) -> State:
    """Selects what evaluation and prediction need of a learner's state; see `Learner.inference_state`."""
    select = make_learner(program, config).inference_state
    return state if select is None else select(state)
