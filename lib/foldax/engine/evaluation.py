"""Evaluation of a split, on the host's side: sums over examples become means, blocks the values of every example."""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax import processes
from foldax.engine import compiled
from foldax.engine.contracts import LOG_FIELDS, check_monitor, check_summary
from foldax.engine.fold import Program
from foldax.engine.policy import CurrentPolicy
from foldax.engine.setup import (
    collects_values,
    evaluation_splits,
    monitored_split_and_metric,
    needs_monitor,
    nonresumable_reason,
)
from foldax.engine.state import Run, SplitEvaluation
from foldax.errors import ExperimentError
from foldax.learner import Average, State
from foldax.mesh import fetch


def collect_values(evaluation: SplitEvaluation) -> dict[str, np.ndarray]:
    """Gathers the collected metrics and outputs of all examples in order, `[N, ...]` by name, without padding.

    `Average`s become their means.

    >>> block = {"loss": np.array([[1.0, 2.0], [3.0, 0.0]])}
    >>> collect_values(SplitEvaluation({}, [block], [np.array([[True, True], [True, False]])]))["loss"]
    array([1., 2., 3.])
    """

    def examples(values: Any, mask: Any) -> np.ndarray:
        if isinstance(values, Average):
            # An absent value (count 0, total 0) becomes 0, not NaN.
            values = np.asarray(values.total) / np.maximum(np.asarray(values.count), 1e-38)
        return np.asarray(values) if mask is None else np.asarray(values)[np.asarray(mask)]

    parts = [
        {name: examples(value, mask) for name, value in block.items()}
        for block, mask in fetch(list(zip(evaluation.blocks, evaluation.masks, strict=True)))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def mean_metrics(sums: dict[str, Average]) -> dict[str, float]:
    """Divides sums by counts; metrics that were absent (count 0) are left out.

    >>> mean_metrics({"loss": Average(np.float32(3), np.float32(2)), "return": Average(np.float32(0), np.float32(0))})
    {'loss': 1.5}
    """
    return {
        name: float(np.float64(average.total) / np.float64(average.count))
        for name, average in sums.items()
        if average.count > 0
    }


def take_rows(tree: Any, row: Any) -> Any:
    """Selects a row, or rows, of NumPy arrays (indexing a sharded JAX array loses the sign of a zero).

    >>> take_rows({"x": np.array([1, 2, 3])}, 1)["x"].item()
    2
    """
    return jax.tree.map(lambda x: x[row], tree)


def member_evaluation(evaluation: SplitEvaluation, row: int) -> SplitEvaluation:
    """Selects one member's part of an evaluation of vmapped members, which must be on the host."""
    return SplitEvaluation(take_rows(evaluation.metric_sums, row), take_rows(evaluation.blocks, row), evaluation.masks)


def split_metrics(program: Program, evaluation: SplitEvaluation) -> dict[str, float]:
    """Computes the metrics of a split: means, and the results of the experiment's `summarize`."""
    metrics = mean_metrics(jax.device_get(evaluation.metric_sums))
    if program.experiment.summarize is not None:
        # By one of several processes: hosts may round differently, and the best state is chosen by it.
        values = collect_values(evaluation)
        metrics |= processes.agree("summary", lambda: _summary(program, values, metrics))
    return metrics


def _summary(program: Program, values: dict[str, np.ndarray], metrics: dict[str, float]) -> dict[str, float]:
    summarize = program.experiment.summarize
    assert summarize is not None
    with compiled.user_code_errors(program.experiment):
        summary = summarize(values)
    return check_summary(summary, metrics.keys())


def nonfinite_metrics(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Finds metrics of evaluations that are NaN or infinite, each with its first such value.

    Args:
      lines: of the log, `{"step": ..., "split": ..., name: value}`.

    Returns:
      `(value, step)` by `(split, name)`.

    >>> nonfinite_metrics([{"step": 6, "split": "test", "loss": float("nan")}, {"step": 6, "split": "train", "x": 0.5}])
    {('test', 'loss'): (nan, 6)}
    """
    first_values: dict[tuple[str, str], tuple[float, int]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, float) and not math.isfinite(value) and line["split"] != "train":
                first_values.setdefault((line["split"], name), (value, line["step"]))
    return first_values


def status_with_nonfinite(
    status: str, history: Iterable[dict[str, Any]], metrics: dict[str, dict[str, float]], tested_at: int
) -> str:
    """Adds to the status of a run every metric of its evaluations that was NaN or infinite.

    Args:
      status: how the run ended.
      history: the lines of its log.
      metrics: final metrics by split.
      tested_at: step of the state that has them.

    >>> status_with_nonfinite("finished", [], {"test": {"loss": float("inf")}}, 9)
    'finished (test loss is inf at step 9)'
    """
    final = [{"step": tested_at, "split": split, **line} for split, line in metrics.items()]
    nonfinite = nonfinite_metrics([*history, *final])
    texts = [f"{split} {name} is {value} at step {step}" for (split, name), (value, step) in nonfinite.items()]
    return f"{status} ({'; '.join(texts)})" if texts else status


def monitored_metric(
    program: Program,
    evaluation: SplitEvaluation,
    monitored: tuple[str, str],
    num_members: int | None = None,
    is_needed: bool = True,
) -> jax.Array:
    """Looks up the monitored metric, on the device; waits for the evaluation only if `summarize` computes it.

    Args:
      program: the static part of the run.
      evaluation: of the monitored split.
      monitored: names of the split and of the metric; see `setup.monitored_split_and_metric`.
      num_members: number of vmapped members; None for a lone run.
      is_needed: whether it is an error if there is no such metric; else it is NaN, which is never the best.

    Returns:
      float [], or `[num_members]`.

    Raises:
      ConfigError: there is no metric of this name.
    """
    metric = monitored[1]
    if metric in evaluation.metric_sums:
        # On the device: early stopping needs no round trip to the host.
        average = evaluation.metric_sums[metric]
        return average.total / average.count
    if program.experiment.summarize is None and not is_needed:
        return jnp.asarray(np.full(() if num_members is None else (num_members,), np.nan, np.float32))
    if num_members is not None:
        # `summarize` runs on the host, member by member.
        on_host = jax.device_get(evaluation)
        members = [member_evaluation(on_host, row) for row in range(num_members)]
        values = [monitored_metric(program, member, monitored, is_needed=is_needed) for member in members]
        return jnp.stack(values)
    metrics = split_metrics(program, evaluation)
    if is_needed:
        check_monitor(*monitored, metrics)
    return jnp.float32(metrics.get(metric, math.nan))


def check_summarize(run: Run) -> None:
    """Calls the experiment's `summarize` with an evaluation of the run's state, before its first step.

    Raises:
      ConfigError: the metric to be monitored is none of those of `evaluate` and `summarize`.
      ExperimentError: `summarize` failed, or its result is not what it should be.
    """
    names = evaluation_splits(run.dataset)
    # Episodes of environments on the host would change those that come after.
    if run.program.experiment.summarize is None or not names or nonresumable_reason(run.dataset):
        return
    monitored, metric = monitored_split_and_metric(run.config, names)
    split = monitored if monitored in names else names[0]
    try:
        metrics = split_metrics(run.program, evaluate_split(run, run.fold.state, split, max_blocks=1))
    except ExperimentError:
        # One block may be too small for a measure, for example if it holds one class only.
        metrics = split_metrics(run.program, evaluate_split(run, run.fold.state, split))
    if needs_monitor(run.config) and split == monitored:
        check_monitor(split, metric, metrics)


def evaluate_split(
    run: Run, state: State, split: str, max_blocks: int | None = None, is_final: bool = False
) -> SplitEvaluation:
    """Dispatches the evaluation of a split, block by block, without waiting for it.

    Without a dataset there is one call, with the split's own random key.

    Args:
      run: the run; the values of every example are kept where its experiment needs them.
      state: the learner's state, which need not be the run's current one.
      split: "validation", "test" or a named set.
      max_blocks: number of blocks to evaluate; None for all.
      is_final: whether figures are drawn of it.
    """
    program, config, seed = run.program, run.arguments["config"], run.arguments["seed"]
    collect = collects_values(program, is_final)
    evaluate = functools.partial(run.compiled.evaluate, program, config, seed, state, collect=collect)
    if run.dataset is None:
        sums, values = evaluate(None, None, jnp.int32(("validation", "test").index(split)))
        return SplitEvaluation(sums, [values] if collect else [], [None] if collect else [])
    sums, blocks, masks = None, [], []
    policy = CurrentPolicy(program, config, seed, state, "evaluate")
    # Nothing waits here: the device evaluates one block while the host prepares the next.
    for index, block in enumerate(itertools.islice(run.dataset.splits[split].blocks(policy), max_blocks)):
        block_sums, values = evaluate(block.batches, block.mask, jnp.int32(index))
        sums = block_sums if sums is None else jax.tree.map(jnp.add, sums, block_sums)
        if collect:
            blocks.append(values)
            masks.append(block.mask)
    return SplitEvaluation(sums or {}, blocks, masks)


def final_metrics(run: Run, state: State) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Evaluates a state on all evaluation splits.

    Returns:
      `(metrics, values)` by split: metrics, with the newest value of each training metric as "train", and the values of
      every example `[N, ...]`, where they are collected.
    """
    metrics, values = last_training_metrics(run.history), {}
    for name in evaluation_splits(run.dataset):
        split = evaluate_split(run, state, name, is_final=True)
        metrics[name] = split_metrics(run.program, split)
        if split.blocks:
            values[name] = collect_values(split)
    return metrics, values


def last_training_metrics(history: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Selects the newest value of each training metric in a log, as {"train": metrics}; empty if there are none.

    >>> history = [{"step": 5, "split": "train", "loss": 0.5, "return": 7.0}]
    >>> last_training_metrics([*history, {"step": 9, "split": "train", "loss": 0.4}])
    {'train': {'loss': 0.4, 'return': 7.0}}
    """
    metrics: dict[str, float] = {}
    for line in history:
        # A metric that is absent at times, such as the return of finished episodes, may not be in the last line.
        metrics |= {k: v for k, v in line.items() if k not in LOG_FIELDS} if line["split"] == "train" else {}
    return {"train": metrics} if metrics else {}
