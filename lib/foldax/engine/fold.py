"""The fold: a training run as pure functions, to be compiled, mapped, sharded and resumed.

Everything here is traced. `Program` names what is static; seed, config, data and step bounds are
arguments, so one compiled program serves any seed, any chunk size and any traced config field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import Interaction
from foldax.errors import ExperimentError
from foldax.experiment import Experiment
from foldax.learner import Average, Batch, Learner, State, as_average

LOGS = 32  # log periods that one call can tell apart


class Feed(NamedTuple):
    """How a block of data becomes a batch, where there is no dataset: always None."""

    def batch(self, data: Any, key: jax.Array, step: jax.Array, start: jax.Array) -> Batch:
        """Returns None: such a learner makes its own experience."""
        del data, key, step, start


class Program(NamedTuple):
    """What is static in a run: the experiment, the facts of its data, and how data becomes batches."""

    experiment: Experiment
    info: Any = None
    feed: Any = Feed()
    mesh: jax.sharding.Mesh | None = None


class Streams(NamedTuple):
    """The named key streams of a run, all from one seed."""

    init: jax.Array
    data: jax.Array
    update: jax.Array
    evaluate: jax.Array


class Fold(NamedTuple):
    """What a run folds over its data.

    Attributes:
      step: int32 [], number of updates done.
      state: the learner's state.
      sums: training metrics since the last log, by name.
      bad: int32 [] by name, the first step whose metric was not finite, or -1.
    """

    step: jax.Array
    state: State
    sums: dict[str, Average]
    bad: dict[str, jax.Array]


class Best(NamedTuple):
    """The best evaluation so far; `state` is None where it is not kept.

    Attributes:
      value: float32 [], of the monitored metric.
      step: int32 [], when it was reached, or -1.
      waited: int32 [], evaluations since.
      stopped: bool [], whether patience ran out: from then on `advance` does nothing.
    """

    value: jax.Array
    step: jax.Array
    waited: jax.Array
    stopped: jax.Array
    state: State | None


class Report(NamedTuple):
    """What the host reads of a chunk, one chunk late.

    Attributes:
      step: int32 [], where it ended.
      logs: `[LOGS]` by name, training metrics summed over each log period that the chunk ended or began, in order.
      bad: as in `Fold`.
    """

    step: jax.Array
    logs: dict[str, Average]
    bad: dict[str, jax.Array]


def streams(seed: jax.Array) -> Streams:
    """Returns the run's key streams."""
    key = jax.random.key(seed)
    return Streams(*(jax.random.fold_in(key, i) for i in range(4)))


def make_learner(program: Program, config: Any) -> Learner:
    """Builds the learner from the (traced) config."""
    learner = program.experiment.learner(config, program.info)
    if not isinstance(learner, Learner):
        raise ExperimentError(f"the experiment's `learner` returned {type(learner).__name__}, not a foldax.Learner")
    if learner.acts is not None and isinstance(config, Interaction):
        config.check_acts(learner.acts)
    return learner


def _metrics_of(state: Any, updated: Any) -> dict[str, Any]:
    """Returns the metrics of what `update` returned, if it kept its promises."""
    if not (isinstance(updated, tuple) and len(updated) == 2 and isinstance(updated[1], dict)):
        raise ExperimentError(f"`update` must return (state, metrics), a dict; it returned {type(updated).__name__}")
    before, after = (
        {
            jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}"
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (jax.eval_shape(lambda: state), updated[0])
    )
    for path in before | after:
        if before.get(path) != after.get(path):
            was, now = before.get(path, "nothing"), after.get(path, "nothing")
            raise ExperimentError(f"`update` must keep the state's structure; state{path} was {was}, and became {now}")
    for name, value in updated[1].items():
        if any(leaf.shape for leaf in jax.tree.leaves(value)):
            raise ExperimentError(f"`update` must return scalars or Averages as metrics; {name!r} is {value}")
    return updated[1]


def start(program: Program, config: Any, seed: jax.Array, examples: Any, data: Any) -> Fold:
    """Returns the run's first `Fold`; `data` is a block that `program.feed` understands."""
    learner = make_learner(program, config)
    keys = streams(seed)
    state = learner.init(keys.init, examples)
    zero = jnp.int32(0)
    batch = jax.eval_shape(program.feed.batch, data, keys.data, zero, zero)
    metrics = _metrics_of(state, jax.eval_shape(learner.update, state, batch, keys.update))
    sums = {
        name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(as_average, value))
        for name, value in metrics.items()
    }
    return Fold(zero, state, sums, {name: jnp.int32(-1) for name in sums})


def advance(
    program: Program,
    config: Any,
    seed: jax.Array,
    fold: Fold,
    stopped: jax.Array,
    data: Any,
    first: jax.Array,
    until: jax.Array,
    log_every: jax.Array,
) -> tuple[Fold, Report]:
    """Folds `update` over the steps from `fold.step` to `until`; no step if `stopped`.

    The loop's bounds are data, not structure: every chunk size is the same program and gives the same
    bits, and a run that stopped early costs nothing.

    Args:
      program: what is static.
      config: the experiment's traced config.
      seed: uint32 [].
      fold: where to go on from.
      stopped: bool [].
      data: a block of data; its first batch is that of step `first`.
      first: int32 [].
      until: int32 [], exclusive; at most `LOGS` log periods away.
      log_every: int32 [], length of a log period: metrics are summed over the steps between two of its multiples.
    """
    body = step_function(program, config, seed, data, first)
    until = jnp.where(stopped, fold.step, until)

    def period(carry: tuple[Fold, Any, jax.Array]) -> tuple[Fold, Any, jax.Array]:
        fold, logs, row = carry
        end = jnp.minimum(until, (fold.step // log_every + 1) * log_every)
        fold = jax.lax.while_loop(lambda fold: fold.step < end, body, fold)
        logs = jax.tree.map(lambda log, total: log.at[row].set(total), logs, fold.sums)
        return forget(fold, log_every), logs, row + 1

    logs = jax.tree.map(lambda total: jnp.zeros((LOGS, *total.shape), total.dtype), fold.sums)
    carry = (fold, logs, jnp.int32(0))
    fold, logs, _ = jax.lax.while_loop(lambda carry: carry[0].step < until, period, carry)
    return fold, Report(fold.step, logs, fold.bad)


def forget(fold: Fold, log_every: jax.Array) -> Fold:
    """Forgets the metrics summed so far at the end of a log period."""
    over = fold.step % log_every == 0
    return fold._replace(sums=jax.tree.map(lambda total: jnp.where(over, 0.0, total), fold.sums))


def advance_once(program: Program, config: Any, seed: jax.Array, fold: Fold, data: Any, first: jax.Array) -> Fold:
    """Does one step outside of any loop, for what XLA compiles badly inside one (`dispatch="step"`)."""
    return step_function(program, config, seed, data, first)(fold)


def step_function(
    program: Program, config: Any, seed: jax.Array, data: Any, first: jax.Array
) -> Callable[[Fold], Fold]:
    """Returns the function that is folded: `Fold -> Fold`, one update on one batch."""
    learner, keys = make_learner(program, config), streams(seed)

    def step(fold: Fold) -> Fold:
        batch = program.feed.batch(data, keys.data, fold.step, first)
        if program.mesh is not None:
            sharding = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec("batch"))
            batch = jax.lax.with_sharding_constraint(batch, sharding)
        state, metrics = learner.update(fold.state, batch, jax.random.fold_in(keys.update, fold.step))
        averages = {name: as_average(value) for name, value in metrics.items()}
        sums = jax.tree.map(jnp.add, fold.sums, averages)
        bad = {
            name: jnp.where((fold.bad[name] < 0) & ~jnp.isfinite(average.total).all(), fold.step, fold.bad[name])
            for name, average in averages.items()
        }
        return Fold(fold.step + 1, state, sums, bad)

    return step


def evaluate(
    program: Program,
    config: Any,
    seed: jax.Array,
    state: State,
    batches: Any,
    mask: Any,
    index: jax.Array,
    collect: bool,
) -> tuple[dict[str, Average], dict[str, Any]]:
    """Evaluates a block of batches `[K, B, ...]`, each example that `mask` `[K, B]` shows exactly once.

    Without a dataset, `batches` and `mask` are None and `evaluate` is called once.

    Returns:
      `(sums, values)`: sums over examples of what can be averaged, by name, and, if `collect`, all
      that the learner's `evaluate` returned, `[K, B, ...]`.
    """
    learner, key = make_learner(program, config), streams(seed).evaluate

    def one(batch: Any, shown: Any, index: jax.Array) -> tuple[dict[str, Average], dict[str, Any]]:
        values = learner.evaluate(state, batch, jax.random.fold_in(key, index))
        sums = {}
        for name, value in values.items():
            if isinstance(value, Average) or (jnp.ndim(value) == 1 and jnp.issubdtype(value.dtype, jnp.floating)):
                average = as_average(value)
                if shown is not None:  # padding may hold anything, so select instead of multiplying
                    average = jax.tree.map(lambda x: jnp.where(shown, x, 0.0), average)
                sums[name] = jax.tree.map(jnp.sum, average)
        return sums, values if collect else {}

    if batches is None:
        return one(None, None, index)
    size = mask.shape[0]
    order = index * size + jnp.arange(size)
    sums, values = jax.lax.map(lambda args: one(*args), (batches, mask, order))
    return jax.tree.map(lambda x: x.sum(axis=0), sums), values


def first_best(state: State | None) -> Best:
    """Returns `Best` before any evaluation, on the host; with a state, the best state will be kept."""
    value, step, waited, stopped = np.float32(0), np.int32(-1), np.int32(0), np.bool_(False)
    return Best(*map(np.asarray, (value, step, waited, stopped)), state)  # type: ignore[call-arg,arg-type]


def observe(best: Best, fold: Fold, value: jax.Array, sign: jax.Array, patience: jax.Array) -> tuple[Best, jax.Array]:
    """Takes an evaluation's monitored `value` into account; `sign` is -1 for "min" and 1 for "max".

    Returns:
      `(best, stopped)`; the second is for the host to read while the first goes on.
    """
    value = jnp.asarray(value, jnp.float32)
    finite = jnp.stack([bad < 0 for bad in fold.bad.values()]).all() if fold.bad else jnp.bool_(True)
    better = jnp.isfinite(value) & ((best.step < 0) | (sign * value > sign * best.value)) & ~best.stopped & finite
    waited = jnp.where(better, 0, best.waited + jnp.where(best.stopped, 0, 1))
    state = best.state
    if state is not None:
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), fold.state, state)
    stopped = best.stopped | (waited >= patience) | ~finite
    value, step = jnp.where(better, value, best.value), jnp.where(better, fold.step, best.step)
    return Best(value, step, waited, stopped, state), stopped
