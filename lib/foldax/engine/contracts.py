"""The promises of a `Learner` to the engine, checked once while its functions are traced."""

from typing import Any

import jax
import jax.numpy as jnp

from foldax.errors import ExperimentError
from foldax.learner import Average, Evaluation, Metrics, State, as_evaluation


def check_update(state: State, result: Any) -> Metrics:
    """Checks the result of `Learner.update`, which must keep the state's structure, and returns its metrics.

    Args:
      state: pytree of arrays, the state before the update.
      result: the result of `update`, as arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ExperimentError: the result is not `(state, metrics)`, the state changed its structure, shapes or dtypes, or a
        metric is neither a scalar nor an `Average` of scalars.

    >>> check_update(jnp.zeros(3), (jnp.ones(3), {"loss": jnp.float32(2.0)}))["loss"].item()
    2.0
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        found = type(result).__name__
        raise ExperimentError(f"`update` must return (state, metrics), where metrics is a dict; it returned {found}")

    def specs(tree: Any) -> dict[str, str]:
        # Leaves by path, so that the error can name the one that changed.
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    before, after = specs(jax.eval_shape(lambda: state)), specs(result[0])
    for path in before | after:
        if before.get(path) != after.get(path):
            was, now = before.get(path, "nothing"), after.get(path, "nothing")
            raise ExperimentError(f"`update` must keep the state's structure; state{path} was {was}, and became {now}")
    for name, value in result[1].items():
        if any(leaf.shape for leaf in jax.tree.leaves(value)):
            raise ExperimentError(f"`update` must return scalars or Averages as metrics; {name!r} is {value}")
    return result[1]


def check_evaluation(result: Any, batch_size: int | None) -> Evaluation:
    """Checks the result of `Learner.evaluate`: one value per example, floats where a mean is to be reported.

    Args:
      result: an `Evaluation`, or a dict of metrics.
      batch_size: B, number of examples in the batch; None without a dataset, where B is the number of episodes: any
        length that all metrics and outputs share.

    Returns:
      The evaluation: metrics float `[B]` or `Average`s `[B]`, outputs `[B, ...]`, by name.

    Raises:
      ExperimentError: the result is of another type, a value has another leading axis, a metric is not `[B]` or has a
        dtype that is not floating, or a name stands for a metric and for an output.

    >>> check_evaluation({"loss": jnp.float32(0.5)}, batch_size=16)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    foldax.errors.ExperimentError: `evaluate`: metric 'loss' is float32[], expected float[16] or an Average of it: ...
    """
    if not isinstance(result, (Evaluation, dict)):
        kind = type(result).__name__
        raise ExperimentError(f"`evaluate` must return a foldax.Evaluation or a dict of metrics; it returned {kind}")
    evaluation = as_evaluation(result)
    # 1. Names: `summarize` receives metrics and outputs in one dict.
    if twice := sorted(set(evaluation.metrics) & set(evaluation.outputs)):
        raise ExperimentError(f"`evaluate` returns {twice[0]!r} both as a metric and as an output; rename one of them")
    # 2. B: of the batch or, without a dataset, of the first value that has an axis.
    size = batch_size
    if size is None:
        lengths = [jnp.shape(leaf)[0] for leaf in jax.tree.leaves(list(evaluation.values.values())) if jnp.ndim(leaf)]
        size = lengths[0] if lengths else None
    expected = "B" if size is None else str(size)
    # 3. Metrics: float `[B]` or `Average`s `[B]`.
    for name, value in evaluation.metrics.items():
        arrays = value if isinstance(value, Average) else (value,)
        shapes_differ = any(jnp.shape(array) != (size,) for array in arrays)
        if shapes_differ or not (isinstance(value, Average) or jnp.issubdtype(jnp.result_type(value), jnp.floating)):
            found = next((array for array in arrays if jnp.shape(array) != (size,)), arrays[0])
            raise ExperimentError(
                f"`evaluate`: metric {name!r} is {_spec(found)}, expected float[{expected}] or an Average of it: one "
                "value per example, reported as a mean. Return values of other shapes or dtypes as `outputs` of a "
                "foldax.Evaluation"
            )
    # 4. Outputs: `[B, ...]`, of any dtype.
    for name, value in evaluation.outputs.items():
        if jnp.shape(value)[:1] != (size,):
            raise ExperimentError(
                f"`evaluate`: output {name!r} is {_spec(value)}, expected [{expected}, ...]: one value per example"
            )
    return evaluation


def _spec(array: Any) -> str:
    return f"{jnp.result_type(array)}[{', '.join(map(str, jnp.shape(array)))}]"
