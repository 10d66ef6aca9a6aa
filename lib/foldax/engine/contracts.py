"""The promises of a `Learner` to the engine, checked once while its functions are traced."""

from collections.abc import Collection, Iterable, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, ExperimentError, did_you_mean
from foldax.learner import Average, Evaluation, Metrics, State, as_evaluation

LOG_FIELDS = ("step", "split")  # of a line of the log, beside its metrics


def check_update(state: State, result: Any) -> Metrics:
    """Checks the result of `Learner.update`, which must keep the state's structure, and returns its metrics.

    Args:
      state: pytree of arrays, the state before the update.
      result: the result of `update`, as arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ExperimentError: the result is not `(state, metrics)`, the state changed its structure, shapes or dtypes, or a
        metric is neither a scalar nor an `Average` of scalars, or has a reserved name.

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
    check_metric_names("update", result[1])
    for name, value in result[1].items():
        if arrays := [leaf for leaf in jax.tree.leaves(value) if leaf.shape]:
            problem = f"{name!r} is {_spec(arrays[0])}"
            raise ExperimentError(f"`update` must return scalars or Averages as metrics; {problem}")
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
        dtype that is not floating, a name stands for a metric and for an output, or a metric has a reserved name.

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
    check_metric_names("evaluate", evaluation.metrics)
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


def check_summary(result: Any, names: Set[str]) -> dict[str, float]:
    """Checks the result of `Experiment.summarize`, and returns it with Python floats as values.

    Args:
      result: the result.
      names: of the means of the same evaluation.

    Raises:
      ExperimentError: the result is no dict of single numbers, or a name is reserved or that of a mean.

    >>> check_summary({"auroc": np.float32(0.5)}, {"loss"})
    {'auroc': 0.5}
    """
    if not isinstance(result, dict):
        found = type(result).__name__
        raise ExperimentError(f"`summarize` must return a dict of metrics, floats by name; it returned {found}")
    check_metric_names("summarize", result)
    if twice := sorted(result.keys() & names):
        raise ExperimentError(f"`summarize` returns {twice[0]!r}, which `evaluate` reports already; rename one of them")
    for name, value in result.items():
        if not (isinstance(value, (bool, int, float)) or (hasattr(value, "dtype") and np.size(value) == 1)):
            found = f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
            raise ExperimentError(f"`summarize`: metric {name!r} is {found}, expected one float")
    return {name: float(np.asarray(value).reshape(())) for name, value in result.items()}


def check_metric_names(function: str, names: Iterable[Any]) -> None:
    """Checks that names of metrics are texts, and not those of other fields of a line of the log.

    Args:
      function: which function returned the metrics, for the error.
      names: the names.

    Raises:
      ExperimentError: one is not allowed.

    >>> check_metric_names("update", ["loss", 1])
    Traceback (most recent call last):
    foldax.errors.ExperimentError: `update`: names of metrics must be texts, but 1 is int
    """
    for name in names:
        if not isinstance(name, str):
            problem = f"{name!r} is {type(name).__name__}"
            raise ExperimentError(f"`{function}`: names of metrics must be texts, but {problem}")
        if name in LOG_FIELDS:
            reason = "lines of the log have 'step' and 'split' beside their metrics"
            raise ExperimentError(f"`{function}`: a metric cannot be named {name!r}, as {reason}; rename it")


def check_monitor(split: str, metric: str, names: Collection[str]) -> None:
    """Checks that a split has the metric to be monitored, given the names of its metrics.

    Raises:
      ConfigError: it does not; names those that do.
    """
    if metric not in names:
        hint, allowed = did_you_mean(metric, names), ", ".join(names) or "none"
        problem = f"monitor: there is no {split} metric {metric!r}{hint} (there are: {allowed})"
        raise ConfigError(f"{problem}; choose one (--monitor), or keep the last state (--keep last) without patience")


def check_logits(evaluation: Evaluation, info: Any) -> None:
    """Checks that "logits" `[B, C]` of an evaluation have the number of classes of the data.

    Two classes may also have one logit. Without a check, a softmax gives classes beyond C the loss NaN, and superfluous
    logits are trained in silence.

    Args:
      evaluation: the result of `Learner.evaluate`.
      info: facts of the data, a `data.Info`; anything else passes, as do targets that are not one class per example.

    Raises:
      ExperimentError: the numbers differ.
    """
    num_classes, logits = getattr(info, "num_classes", None), evaluation.outputs.get("logits")
    if num_classes is None or logits is None or info.shapes.get("targets") != () or jnp.ndim(logits) != 2:
        return
    allowed = (1, 2) if num_classes <= 2 else (num_classes,)
    if jnp.shape(logits)[1] not in allowed:
        problem = f"the network returns {jnp.shape(logits)[1]} logits, the targets have {num_classes} classes"
        remedy = "give the network `info.num_classes` outputs, or the dataset the `num_classes` of the network"
        raise ExperimentError(f"`evaluate`: {problem}; {remedy}")


def _spec(array: Any) -> str:
    return f"{jnp.result_type(array)}[{', '.join(map(str, jnp.shape(array)))}]"
