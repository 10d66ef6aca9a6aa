"""A network that descends a loss: what all supervised learners have in common.

A model is any object with Flax's `init(rngs, inputs, train=...)` and
`apply(variables, inputs, train=..., rngs=..., mutable=...)`; one of sequences also takes `mask=`, which is what a
batch has as "mask". Every float setting may be a traced array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ExperimentError
from foldax.learner import Learner
from foldax.learners import gradients
from foldax.learners.gradients import TrainState
from foldax.optim import decayed

Batch = dict[str, jax.Array]
Values = dict[str, Any]


def mask_of(batch: Batch) -> dict[str, Any]:
    """Returns the mask of sequences as a keyword argument, if the batch has one."""
    return {"mask": batch["mask"]} if "mask" in batch else {}


class Task(NamedTuple):
    """What a network learns to do, in terms of batches and the model's outputs.

    Attributes:
      fields: what a batch must have.
      inputs: `batch -> inputs` of the model.
      training: `(outputs, batch) -> {"loss": [B], ...}`; the mean loss is descended, all means are reported.
      evaluation: `(outputs, batch) -> values`, as `Learner.evaluate` returns.
      finish: `(outputs, batch) -> what predict returns`; the batch has no targets.
      prepare: `batch -> batch` with targets, before all else, such as what must see it before it is cut into parts.
      extras: `batch -> keyword arguments` of the model beside its inputs.
    """

    fields: tuple[str, ...]
    inputs: Callable[[Batch], jax.Array]
    training: Callable[[Any, Batch], Values]
    evaluation: Callable[[Any, Batch], Values]
    finish: Callable[[Any, Batch], Any] = lambda outputs, batch: outputs
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    extras: Callable[[Batch], dict[str, Any]] = mask_of


class Options(TypedDict, total=False):
    """How any network may be trained: keyword arguments of every supervised learner.

    Attributes:
      augment: `(key, batch) -> batch`, changes training batches before all else (see `foldax.augment`).
      frozen: regular expressions of parameters' paths: "Dense_0" means "Dense_0/kernel" and "Dense_0/bias". They stay
        as they are, and so do statistics of these names; their gradients are not computed.
      l1: adds `l1 * sum |w|` over kernels and embeddings (no biases, no norms: see `optim.decayed`).
      l2: adds `l2 / 2 * sum w^2` over the same.
      ema_decay: evaluate with an exponential moving average of the parameters that weighs the past by this.
      accumulate: number of microbatches that a batch is worked through in.
    """

    augment: Callable[[jax.Array, Batch], Batch] | None
    frozen: tuple[str, ...]
    l1: Any
    l2: Any
    ema_decay: Any
    accumulate: int


def learner(model: Any, optimizer: optax.GradientTransformation, task: Task, **options: Unpack[Options]) -> Learner:
    """Returns the learner of a task.

    `update` reports the means of what the task's `training` gives, "gradient_norm" and, with `l1` or `l2`, "penalty".
    `evaluate` and `predict` use running statistics, no dropout, and the averaged parameters where there are any;
    `predict` takes the inputs, or a mapping {"inputs", "mask"}.

    Raises:
      ConfigError: a pattern in `frozen` matches no parameter.
      ExperimentError: an option is unknown; while tracing, a batch lacks a field.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise ExperimentError(f"there is no option {min(unknown)!r} (there are {', '.join(Options.__annotations__)})")
    augment, frozen = options.get("augment"), tuple(options.get("frozen", ()))
    l1, l2, ema_decay = options.get("l1"), options.get("l2"), options.get("ema_decay")

    def init(key: jax.Array, examples: Any) -> TrainState:
        first = task.prepare({name: leaf[:1] for name, leaf in checked(examples, task.fields).items()})
        streams = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        model_state = dict(model.init(streams, task.inputs(first), train=False, **task.extras(first)))
        params = model_state.pop("params")
        return gradients.create(params, optimizer, model_state, ema_decay=ema_decay, frozen=frozen)

    def loss(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Values]]:
        outputs, changed = model.apply(
            {"params": params, **model_state},
            task.inputs(batch),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
            **task.extras(batch),
        )
        metrics = {name: value.mean() for name, value in task.training(outputs, batch).items()}
        total = metrics["loss"]
        if l1 is not None or l2 is not None:
            metrics["penalty"] = penalty(params, l1, l2)
            total = total + metrics["penalty"]
        return total, ({**model_state, **changed}, metrics)

    def update(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Values]:
        batch = checked(batch, task.fields)
        if augment is not None:
            key, changes = jax.random.split(key)
            batch = augment(changes, batch)
        accumulate = options.get("accumulate", 1)
        settings: dict[str, Any] = dict(accumulate=accumulate, ema_decay=ema_decay, frozen=frozen)
        return gradients.step(state, loss, optimizer, task.prepare(batch), key, **settings)

    def outputs_of(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        variables = {"params": state.averaged, **state.model_state}
        return model.apply(variables, task.inputs(batch), train=False, rngs={"dropout": key}, **task.extras(batch))

    def evaluate(state: TrainState, batch: Any, key: jax.Array) -> Values:
        batch = task.prepare(checked(batch, task.fields))
        return task.evaluation(outputs_of(state, batch, key), batch)

    def predict(state: TrainState, inputs: Any, key: jax.Array) -> Any:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": jnp.asarray(inputs)}
        return task.finish(outputs_of(state, batch, key), batch)

    return Learner(init, update, evaluate, predict)


def penalty(params: Any, l1: Any = None, l2: Any = None) -> jax.Array:
    """Returns `l1 * sum |w| + l2 / 2 * sum w^2` over kernels: the leaves that `optim.decayed` names."""
    chosen = zip(jax.tree.leaves(params), jax.tree.leaves(decayed(params)), strict=True)
    kernels = [leaf for leaf, is_kernel in chosen if is_kernel]
    total = jnp.zeros(())
    if l1 is not None:
        total += l1 * sum(jnp.abs(kernel).sum() for kernel in kernels)
    if l2 is not None:
        total += l2 * 0.5 * sum(jnp.square(kernel).sum() for kernel in kernels)
    return total


def inputs_of(model: Any, preprocess: Callable[[jax.Array], jax.Array] | None) -> Callable[[Batch], jax.Array]:
    """Returns `batch -> inputs`: preprocessed, else integers for a model with a vocabulary, else float32."""
    dtype = jnp.float32 if getattr(model, "vocabulary_size", None) is None else jnp.int32

    def inputs(batch: Batch) -> jax.Array:
        return jnp.asarray(batch["inputs"], dtype) if preprocess is None else preprocess(batch["inputs"])

    return inputs


def checked(batch: Any, fields: tuple[str, ...]) -> Batch:
    """Returns a batch as arrays.

    Raises:
      ExperimentError: it lacks one of the fields.
    """
    for name in fields:
        if not isinstance(batch, Mapping) or name not in batch:
            got = f"the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            wanted = ", ".join(f'"{field}"' for field in fields)
            raise ExperimentError(f"this learner takes batches {{{wanted}}}; {name!r} is missing: got {got}")
    return {name: jnp.asarray(leaf) for name, leaf in batch.items()}
