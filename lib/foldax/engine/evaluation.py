"""Evaluation of a split, on the host's side: sums over examples become means, blocks the values of every example."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.engine import compiled
from foldax.engine.fold import Program
from foldax.errors import ConfigError, did_you_mean
from foldax.learner import Average


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
        for block, mask in zip(evaluation.blocks, evaluation.masks, strict=True)
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
        with compiled.user_code_errors(program.experiment):
            summary = program.experiment.summarize(collect_values(evaluation))
            metrics |= {name: float(value) for name, value in summary.items()}
    return metrics


def monitored_metric(
    program: Program, evaluation: SplitEvaluation, monitor: str, num_members: int | None = None
) -> jax.Array:
    """Looks up the monitored metric, on the device; waits for the evaluation only if `summarize` computes it.

    Args:
      program: the static part of the run.
      evaluation: of the validation split.
      monitor: name of the metric.
      num_members: number of vmapped members; None for a lone run.

    Returns:
      float [], or `[num_members]`.

    Raises:
      ConfigError: there is no metric of this name.
    """
    if monitor in evaluation.metric_sums:
        # On the device: early stopping needs no round trip to the host.
        average = evaluation.metric_sums[monitor]
        return average.total / average.count
    if num_members is not None:
        # `summarize` runs on the host, member by member.
        on_host = jax.device_get(evaluation)
        members = [member_evaluation(on_host, row) for row in range(num_members)]
        return jnp.stack([monitored_metric(program, member, monitor) for member in members])
    metrics = split_metrics(program, evaluation)
    if monitor not in metrics:
        hint, names = did_you_mean(monitor, metrics), ", ".join(metrics) or "none"
        raise ConfigError(f"monitor: there is no validation metric {monitor!r}{hint} (there are: {names})")
    return jnp.float32(metrics[monitor])
