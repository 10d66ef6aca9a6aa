"""The vocabulary of learning: a `Learner` is a few pure functions, the same four for every kind of learning."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

State: TypeAlias = Any  # pytree of arrays: all that `update` changes
Params: TypeAlias = chex.ArrayTree  # pytree of arrays: Flax's "params" collection
Variables: TypeAlias = Any  # Flax's variables: {"params": ..., "batch_stats": ..., ...}
Batch: TypeAlias = Any  # pytree of arrays with a leading axis [B, ...]; None where there is no dataset
Key: TypeAlias = chex.PRNGKey


class Model(Protocol):
    """A network as a pair of pure functions; every Flax Linen module is one.

    `init(rngs, *inputs, **options)` returns the variables, `{"params": ..., ...}`; `apply(variables, *inputs,
    **options)` returns the outputs, and with `mutable=[...]` also the changed variables.
    """

    def init(self, rngs: Any, *args: Any, **options: Any) -> Variables:
        """Creates the initial variables."""

    def apply(self, variables: Variables, *args: Any, **options: Any) -> Any:
        """Computes the outputs, or `(outputs, changed variables)` with `mutable=[...]`."""


class Average(NamedTuple):
    """A mean that can be merged, for a metric that is absent at some steps (the return of finished episodes).

    Attributes:
      total: sum of the values, a scalar or `[...]`.
      count: number of values, of the same shape as `total`; 0 means absent, and never becomes a NaN.

    >>> episode_returns, is_finished = jnp.array([10.0, 0.0, 20.0]), jnp.array([1.0, 0.0, 1.0])
    >>> merged = Average((episode_returns * is_finished).sum(), is_finished.sum())
    >>> float(merged.total / merged.count)
    15.0
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides `tuple.count`, which is not needed here


class Evaluation(NamedTuple):
    """Results of `Learner.evaluate` for one batch.

    Attributes:
      metrics: values per example, float `[B]`, or `Average`s `[B]`, by name; reported as means over all examples of
        a split.
      outputs: arrays `[B, ...]` by name, kept per example for `Experiment.summarize` and `Experiment.figures`.

    >>> result = Evaluation({"loss": jnp.array([1.0, 3.0])}, {"logits": jnp.zeros((2, 5))})
    >>> sorted(result.values)
    ['logits', 'loss']
    >>> sorted(result.with_values(outputs={"features": jnp.zeros((2, 8))}).outputs)
    ['features', 'logits']
    """

    metrics: dict[str, jax.Array | Average]
    outputs: dict[str, Any] = {}  # noqa: RUF012  # a default that is never written to

    @property
    def values(self) -> dict[str, Any]:
        """Metrics and outputs in one dict, as `summarize` and `figures` receive them."""
        return {**self.metrics, **self.outputs}

    def with_values(
        self, *, metrics: Mapping[str, jax.Array | Average] | None = None, outputs: Mapping[str, Any] | None = None
    ) -> "Evaluation":
        """Copies the evaluation with further metrics and outputs, for a learner that wraps another."""
        return Evaluation({**self.metrics, **(metrics or {})}, {**self.outputs, **(outputs or {})})


Metrics: TypeAlias = dict[str, jax.Array | Average]  # of `update`: scalars or `Average`s by name


class EnvironmentSteps(NamedTuple):
    """Environment steps taken by an agent, summed over all parallel environments.

    Attributes:
      before_first_update: steps that fill the replay buffer before the first update.
      per_update: steps in each update.

    >>> EnvironmentSteps(before_first_update=1_000, per_update=4 * 128).per_update
    512
    """

    before_first_update: int
    per_update: int


class InputSpec(NamedTuple):
    """One array that `Learner.predict` takes.

    Attributes:
      shape: of one example, without the batch axis; a name such as "time" stands for any length.
      dtype: of the array.
      meaning: what the array holds, for readers of an export.
      num_classes: where it holds classes, their number; all are from 0 to `num_classes` - 1.

    >>> InputSpec(("time", 4), np.dtype("float32"), "observations of the episode so far").num_classes is None
    True
    """

    shape: tuple[int | str, ...]
    dtype: np.dtype
    meaning: str = ""
    num_classes: int | None = None


class Sampler(NamedTuple):
    """Samples from a generative model, for `foldax sample`.

    Attributes:
      draw: for images `(state, labels int [B], key, shape of one image) -> images [B, ...]`, where an unconditional
        model uses only the number of labels; for text `(state, prompt int [B, T], key, num_tokens) -> tokens int
        [B, num_tokens]`.
      takes: "labels" for images, "prompt" for text.
      num_classes: number of classes of a conditional model of images.
      tokenizer: of text, with `encode` and `decode` (see `foldax.data`).

    >>> noise = Sampler(lambda state, labels, key, shape: jax.random.normal(key, (len(labels), *shape)))
    >>> noise.draw(None, jnp.zeros(2, int), jax.random.key(0), (4, 4)).shape
    (2, 4, 4)
    """

    draw: Callable[..., jax.Array]
    takes: Literal["labels", "prompt"] = "labels"
    num_classes: int | None = None
    tokenizer: Any = None


ShardingRule: TypeAlias = tuple[str, tuple[Any, ...]]
"""`(pattern, axes)`: arrays of the state whose path has the pattern are divided over these axes of the mesh.

The pattern is a regular expression that is searched in a path such as "params/blocks/mlp_in/kernel". The axes, each
"data", "fsdp", "tensor", a tuple of these or None, belong to the last axes of the array; those before stay whole.
"""


class Learner(NamedTuple):
    """A learning algorithm as pure functions of arrays (compare optax's `GradientTransformation`).

    Attributes:
      init: `(key, examples) -> state`. `examples` is the whole training split where it lives on the device, else one
        batch, and None where there is no dataset. Most learners look only at its shapes.
      update: `(state, batch, key) -> (state, metrics)` consumes one batch; metrics are scalars or `Average`s by name.
        The key is `fold_in(update key, step)`: store no key in the state.
      evaluate: `(state, batch, key) -> Evaluation`, or a plain dict where there are only metrics. Metrics (float `[B]`
        or `Average`s `[B]`) become means over every example; outputs `[B, ...]` are kept per example for
        `Experiment.summarize` and `Experiment.figures`. Without a dataset, B is the number of episodes played.
      predict: `(state, inputs, key) -> outputs`: logits, an action, a reconstruction; None if there is nothing to
        predict.
      environment_steps: of an agent, how many environment steps it takes; must agree with the run's config.
      predict_inputs: the arrays that `predict` takes, by name: one "inputs" alone as it is, several as a dict. None in
        place of an array's `InputSpec`: it is the dataset's field of that name. None: the dataset's "inputs", and its
        "mask" if it has one.
      sampler: draws samples for `foldax sample`; None if there is nothing to sample.
      inference_state: `(state) -> state` selects what `evaluate`, `predict` and the sampler need, as T5X's
        `InferenceState` does: the copy of the best state holds no more. Both take its result in place of a state, whose
        other fields may be None. None: the whole state.
      sharding_rules: how arrays of the state are divided over several devices, `(pattern, axes)`; the first rule counts
        whose pattern is found in the array's path and whose axes divide its shape. The axes ("data", "fsdp", "tensor",
        or None) are those of the array's last dimensions. Without a rule, "fsdp" divides large arrays.

    >>> mean_of_data = Learner(
    ...     init=lambda key, examples: jnp.zeros(()),
    ...     update=lambda mean, batch, key: (0.9 * mean + 0.1 * batch["inputs"].mean(), {"mean": mean}),
    ...     evaluate=lambda mean, batch, key: {"loss": (batch["inputs"] - mean) ** 2},
    ... )
    >>> state, metrics = mean_of_data.update(jnp.zeros(()), {"inputs": jnp.array([1.0, 3.0])}, jax.random.key(0))
    >>> round(float(state), 2)
    0.2
    """

    # In the order in which the engine calls them.
    init: Callable[[Key, Batch], State]
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch, Key], Evaluation | dict[str, Any]]
    predict: Callable[[State, Any, Key], Any] | None = None
    environment_steps: EnvironmentSteps | None = None
    predict_inputs: Mapping[str, InputSpec | None] | None = None
    sampler: Sampler | None = None
    inference_state: Callable[[State], State] | None = None
    sharding_rules: tuple[ShardingRule, ...] = ()

    def with_inner(self, inner: Callable[[State], State], **functions: Any) -> "Learner":
        """Copies the learner with other functions, for a wrapper that predicts and samples as the wrapped learner does.

        Args:
          inner: gets the wrapped learner's state from the wrapper's.
          **functions: `init`, `update` and `evaluate` of the wrapper, and `inference_state` if it has one.

        >>> doubled = Learner(min, min, min, lambda state, inputs, key: state * inputs).with_inner(lambda s: s["w"])
        >>> doubled.predict({"w": 2}, 3, None)
        6
        """
        predict, sampler = self.predict, self.sampler
        if predict is not None:
            functions["predict"] = lambda state, inputs, key: predict(inner(state), inputs, key)
        if sampler is not None:
            functions["sampler"] = sampler._replace(draw=lambda state, *rest: sampler.draw(inner(state), *rest))
        # That of the wrapped learner takes another state.
        return self._replace(**{"inference_state": None, **functions})


def as_average(value: Any) -> Average:
    """Converts a metric to an `Average` of float32: an `Average` keeps its count, an array counts once per element.

    >>> average = as_average(jnp.array([1.0, 3.0]))
    >>> average.total.tolist(), average.count.tolist()
    ([1.0, 3.0], [1.0, 1.0])
    """
    # float32, so that sums over many steps have one type whatever the learner computes in.
    if isinstance(value, Average):
        return Average(jnp.asarray(value.total, jnp.float32), jnp.asarray(value.count, jnp.float32))
    value = jnp.asarray(value, jnp.float32)
    return Average(value, jnp.ones_like(value))


def as_evaluation(result: Evaluation | dict[str, Any]) -> Evaluation:
    """Converts the result of `Learner.evaluate`, which may be a plain dict of metrics, to an `Evaluation`.

    >>> as_evaluation({"loss": jnp.array([1.0, 3.0])}).metrics["loss"].shape
    (2,)
    """
    return result if isinstance(result, Evaluation) else Evaluation(dict(result))
