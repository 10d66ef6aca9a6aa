"""Evaluation on the host's side: every example of a split once, sums merged, means taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.engine import compiled
from foldax.engine.fold import Program
from foldax.engine.policy import Newest
from foldax.errors import ConfigError, nearest
from foldax.learner import Average


class Evaluation(NamedTuple):
    """An evaluation that was dispatched: device arrays that nobody has waited for yet.

    Attributes:
      sums: by name, over all examples.
      blocks: what `evaluate` returned, a tree `[K, B, ...]` per block; empty if not collected.
      masks: which of these are examples, `[K, B]` per block.
    """

    sums: dict[str, Average]
    blocks: list[dict[str, Any]]
    masks: list[Any]


def dispatch(
    program: Program,
    config: Any,
    seed: jax.Array,
    state: Any,
    dataset: Any,
    split: str,
    collect: bool,
    evaluate: Callable[..., Any] = compiled.evaluate,
) -> Evaluation:
    """Dispatches the evaluation of a split (without a dataset: one call, with a key of the split's own)."""
    if dataset is None:
        index = jnp.int32(("validation", "test").index(split))
        sums, values = evaluate(program, config, seed, state, None, None, index, collect=collect)
        return Evaluation(sums, [values] if collect else [], [None] if collect else [])
    sums, blocks, masks = None, [], []
    newest = Newest(program, config, seed, state, "evaluate")
    for index, block in enumerate(dataset.splits[split].blocks(newest)):
        added, values = evaluate(
            program, config, seed, state, block.batches, block.mask, jnp.int32(index), collect=collect
        )
        sums = added if sums is None else jax.tree.map(jnp.add, sums, added)
        if collect:
            blocks.append(values)
            masks.append(block.mask)
    return Evaluation(sums or {}, blocks, masks)


def collected(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Returns the collected values of all examples in order, `[N, ...]`; an `Average` as its means."""

    def rows(values: Any, mask: Any) -> Any:
        if isinstance(values, Average):
            values = np.asarray(values.total) / np.maximum(np.asarray(values.count), 1e-38)
        return np.asarray(values) if mask is None else np.asarray(values)[np.asarray(mask)]

    parts = [
        {name: rows(value, mask) for name, value in block.items()}
        for block, mask in zip(evaluation.blocks, evaluation.masks, strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def means(sums: dict[str, Average]) -> dict[str, float]:
    """Returns the means by name as Python floats; what was absent (count 0) is left out."""
    return {
        name: float(np.float64(average.total) / np.float64(average.count))
        for name, average in sums.items()
        if average.count > 0
    }


def taken(tree: Any, row: Any) -> Any:
    """Returns a row, or rows, of arrays on the host (a sharded array, indexed, does not keep the sign of a zero)."""
    return jax.tree.map(lambda x: x[row], tree)


def of_member(evaluation: Evaluation, row: int) -> Evaluation:
    """Returns one member's part of an evaluation of members side by side, which must be on the host."""
    return Evaluation(taken(evaluation.sums, row), taken(evaluation.blocks, row), evaluation.masks)


def metrics(program: Program, evaluation: Evaluation) -> dict[str, float]:
    """Returns an evaluation's means and, where the experiment has `summarize`, what that adds."""
    found = means(jax.device_get(evaluation.sums))
    if program.experiment.summarize is not None:
        with compiled.own_code(program.experiment):
            found |= {k: float(v) for k, v in program.experiment.summarize(collected(evaluation)).items()}
    return found


def monitored(program: Program, evaluation: Evaluation, monitor: str, rows: int | None = None) -> jax.Array:
    """Returns the monitored metric, [] or [rows] on the device; only one that `summarize` makes has to be waited for.

    Raises:
      ConfigError: there is no such metric.
    """
    if monitor in evaluation.sums:
        average = evaluation.sums[monitor]
        return average.total / average.count
    if rows is not None:
        on_host = jax.device_get(evaluation)
        return jnp.stack([monitored(program, of_member(on_host, row), monitor) for row in range(rows)])
    found = metrics(program, evaluation)
    if monitor not in found:
        raise ConfigError(
            f"monitor: there is no validation metric {monitor!r}{nearest(monitor, found)} "
            f"(there are: {', '.join(found) or 'none'})"
        )
    return jnp.float32(found[monitor])
