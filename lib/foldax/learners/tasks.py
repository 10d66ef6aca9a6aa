"""Supervised learners: gradient descent on the loss of a `Task`.

To write a learner of your own, describe it as a `Task`: the fields of a batch, the inputs of the model, and the loss
and metrics of the model's outputs per example. `network_learner` turns a task, a model and an Optax optimizer into a
`foldax.Learner` with every option of `NetworkOptions` (augmentation, frozen parameters, L1 and L2, EMA, microbatches);
its docstring defines and trains a quantile regression. A learner of several networks (a GAN, an agent) calls
`foldax.learners.gradient_step` itself.

A model has Flax's `init(rngs, inputs, train=...)` and `apply(variables, inputs, train=..., rngs=..., mutable=...)`; a
model of sequences also takes `mask=`, which is the field "mask" of a batch. Every float option may be traced.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax.errors import ExperimentError
from foldax.learner import Evaluation, InputSpec, Key, Learner, Metrics, Model, Params
from foldax.learners.gradients import TrainState, gradient_step, init_network
from foldax.models.adapters.checks import check_model
from foldax.optim import decay_mask

Batch: TypeAlias = dict[str, jax.Array]  # fields `[B, ...]` by name
Outputs: TypeAlias = chex.ArrayTree  # of a model: an array or a tree of arrays `[B, ...]`
Preprocess: TypeAlias = Callable[[jax.Array], jax.Array]  # pure function of the inputs `[B, ...]`

INPUTS_AND_TARGETS = ("inputs", "targets")
"""The fields of most supervised tasks."""


def mask_argument(batch: Batch) -> dict[str, jax.Array]:
    """Returns the mask `[B, T]` of a batch as a keyword argument of the model, or no argument if there is no mask."""
    return {"mask": batch["mask"]} if "mask" in batch else {}


class Task(NamedTuple):
    """Definition of a supervised learner, in terms of batches and of the model's outputs.

    Attributes:
      fields: names that a batch must have.
      inputs: `batch -> inputs` of the model; see `input_function`.
      train_metrics: `(outputs, batch) -> {"loss": [B], ...}`; the mean loss is minimised, and all means are reported.
      evaluate: `(outputs, batch) -> foldax.Evaluation`, or a dict of metrics; None: `train_metrics`.
      postprocess: `(outputs, batch) -> predictions` of `Learner.predict`, whose batch has no targets.
      prepare: `batch -> batch`, applied to whole batches with targets: after augmentation, before microbatches.
      model_kwargs: `batch -> keyword arguments` of the model besides its inputs.

    >>> task = Task(INPUTS_AND_TARGETS, input_function(), lambda outputs, batch: {"loss": outputs - batch["targets"]})
    >>> batch = {"inputs": jnp.arange(2), "targets": jnp.ones(2), "mask": jnp.ones((2, 3))}
    >>> task.inputs(batch).dtype.name, sorted(task.model_kwargs(batch))
    ('float32', ['mask'])
    """

    fields: tuple[str, ...]
    inputs: Callable[[Batch], jax.Array]
    train_metrics: Callable[[Any, Batch], Mapping[str, Any]]
    evaluate: Callable[[Any, Batch], Evaluation | Metrics] | None = None
    postprocess: Callable[[Any, Batch], Outputs] = lambda outputs, batch: outputs
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    model_kwargs: Callable[[Batch], dict[str, Any]] = mask_argument


class NetworkOptions(TypedDict, total=False):
    """Training options of every network: keyword arguments of all supervised learners.

    Attributes:
      augment: `(key, batch) -> batch` on training batches, before anything else (see `foldax.augment`).
      frozen: regular expressions of parameter paths: "Dense_0" means "Dense_0/kernel" and "Dense_0/bias". Frozen
        parameters keep their values, as do model statistics at these paths; their gradients are not computed. Modules
        with frozen parameters alone run as in evaluation: with running statistics, and without dropout inside them.
      l1: adds `l1 * sum |w|` over kernels and embeddings, not over biases and norms (see `optim.decay_mask`).
      l2: adds `l2 / 2 * sum w^2` over the same parameters.
      ema_decay: decay of an exponential moving average of the parameters, which then serves evaluation and prediction;
        lower at first (see `gradient_step`).
      microbatches: number of parts into which a batch is split, to save memory; their gradients are averaged. Not
        together with `Optimizer.accumulate_steps`, which joins several batches.
    """

    augment: Callable[[jax.Array, Batch], Batch] | None
    frozen: tuple[str, ...]
    l1: chex.Numeric | None
    l2: chex.Numeric | None
    ema_decay: chex.Numeric | None
    microbatches: int


def network_learner(
    model: Model, optimizer: optax.GradientTransformation, task: Task, **options: Unpack[NetworkOptions]
) -> Learner:
    """Builds the learner of a task.

    `update` reports the means of the task's `train_metrics`, "gradient_norm" and, with `l1` or `l2`, "penalty".
    `evaluate` and `predict` use running statistics, no dropout, and the moving average of the parameters if there is
    one; `predict` takes the inputs, or a mapping {"inputs", "mask"}.

    Args:
      model: a Flax module, or any other `foldax.learner.Model`.
      optimizer: Optax optimizer; its learning rate may be traced.
      task: fields, inputs, loss, metrics and predictions.
      **options: those of `NetworkOptions`.

    Raises:
      ConfigError: a pattern in `frozen` matches no parameter.
      ExperimentError: an option does not exist, or the model is a module that needs an adapter (`models.from_nnx`,
        `models.from_equinox`); while tracing, a batch lacks a field.

    Quantile regression (Koenker & Bassett, 1978), here of the 90% quantile:

    >>> from foldax.models import MLP
    >>> def pinball(outputs, batch):
    ...     error = batch["targets"] - outputs[:, 0]
    ...     return {"loss": jnp.maximum(0.9 * error, -0.1 * error), "coverage": (error < 0).astype(jnp.float32)}
    >>> task = Task(INPUTS_AND_TARGETS, input_function(), pinball, postprocess=lambda outputs, batch: outputs[:, 0])
    >>> learner = network_learner(MLP((1,)), optax.sgd(0.5), task, l2=1e-4)
    >>> batch = {"inputs": jnp.ones((100, 1)), "targets": jnp.arange(100.0)}
    >>> state = learner.init(jax.random.key(0), batch)
    >>> update = jax.jit(learner.update)
    >>> for step in range(400):
    ...     state, metrics = update(state, batch, jax.random.key(step))
    >>> round(float(metrics["coverage"]), 1)  # fraction of targets below the predicted quantile
    0.9
    """
    check_model(model)
    unknown = set(options) - set(NetworkOptions.__annotations__)
    if unknown:
        known = ", ".join(NetworkOptions.__annotations__)
        raise ExperimentError(f"there is no option {min(unknown)!r} (there are {known})")
    augment, frozen = options.get("augment"), tuple(options.get("frozen", ()))
    # A model with rules keeps to the batch of each device by itself.
    rules = getattr(model, "sharding_rules", ())
    l1, l2, ema_decay = options.get("l1"), options.get("l2"), options.get("ema_decay")

    def init(key: Key, examples: chex.ArrayTree) -> TrainState:
        # One example suffices to learn shapes.
        first = task.prepare({name: leaf[:1] for name, leaf in require_fields(examples, task.fields).items()})
        inputs, kwargs = task.inputs(first), task.model_kwargs(first)
        return init_network(key, model, optimizer, inputs, kwargs, ema_decay=ema_decay, frozen=frozen)

    def loss(params: Params, model_state: dict[str, Any], batch: Batch, key: Key) -> tuple[jax.Array, tuple]:
        variables, kwargs = {"params": params, **model_state}, task.model_kwargs(batch)
        kwargs = dict(train=True, rngs={"dropout": key}, mutable=list(model_state), **kwargs)
        outputs, changed = model.apply(variables, task.inputs(batch), **kwargs)
        metrics = {name: value.mean() for name, value in task.train_metrics(outputs, batch).items()}
        total = metrics["loss"]
        # The penalty is minimised with the loss and reported beside it.
        if l1 is not None or l2 is not None:
            metrics["penalty"] = weight_penalty(params, l1, l2)
            total = total + metrics["penalty"]
        return total, ({**model_state, **changed}, metrics)

    def update(state: TrainState, batch: chex.ArrayTree, key: Key) -> tuple[TrainState, Metrics]:
        batch = require_fields(batch, task.fields)
        # Split only for augmentation, so that learners without it keep their random numbers.
        if augment is not None:
            key, augment_key = jax.random.split(key)
            batch = augment(augment_key, batch)
        settings: dict[str, Any] = dict(microbatches=options.get("microbatches", 1), ema_decay=ema_decay, frozen=frozen)
        settings["gathers"] = not rules
        state, metrics = gradient_step(state, loss, optimizer, task.prepare(batch), key, **settings)
        return state, {**metrics}

    def outputs_of(state: TrainState, batch: Batch, key: Key) -> Outputs:
        kwargs = dict(train=False, rngs={"dropout": key}, **task.model_kwargs(batch))
        return model.apply(state.evaluation_variables, task.inputs(batch), **kwargs)

    def evaluate(state: TrainState, batch: chex.ArrayTree, key: Key) -> Evaluation | Metrics:
        batch = task.prepare(require_fields(batch, task.fields))
        outputs = outputs_of(state, batch, key)
        return dict(task.train_metrics(outputs, batch)) if task.evaluate is None else task.evaluate(outputs, batch)

    def predict(state: TrainState, inputs: Any, key: Key) -> Outputs:
        batch = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": jnp.asarray(inputs)}
        return task.postprocess(outputs_of(state, batch, key), batch)

    return Learner(init, update, evaluate, predict, sharding_rules=rules)


def weight_penalty(params: Params, l1: chex.Numeric | None = None, l2: chex.Numeric | None = None) -> jax.Array:
    """Computes `l1 * sum |w| + l2 / 2 * sum w^2` over kernels and embeddings (see `optim.decay_mask`).

    Args:
      params: parameters of a network.
      l1: weight of the sum of absolute values; None: 0. May be traced.
      l2: weight of half the sum of squares; None: 0. May be traced.

    >>> float(weight_penalty({"kernel": jnp.array([[3.0, -1.0]]), "bias": jnp.ones(2)}, l1=0.5, l2=0.1))
    2.5
    """
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(decay_mask(params)), strict=True)
    kernels = [leaf for leaf, is_kernel in leaves if is_kernel]
    total = jnp.zeros(())
    if l1 is not None:
        total += l1 * sum(jnp.abs(kernel).sum() for kernel in kernels)
    if l2 is not None:
        total += l2 * 0.5 * sum(jnp.square(kernel).sum() for kernel in kernels)
    return total


def input_function(model: Model | None = None, preprocess: Preprocess | None = None) -> Callable[[Batch], jax.Array]:
    """Builds `batch -> inputs` of a model.

    Args:
      model: with a `vocabulary_size`, inputs that are not preprocessed become int32, else float32.
      preprocess: pure function of the inputs `[B, ...]`, such as `info.standardize`.

    >>> input_function(preprocess=lambda x: x / 256)({"inputs": jnp.array([128.0, 64.0])}).tolist()
    [0.5, 0.25]
    """
    # Tokens stay integers, which embeddings look up.
    dtype = jnp.float32 if getattr(model, "vocabulary_size", None) is None else jnp.int32

    def inputs(batch: Batch) -> jax.Array:
        return jnp.asarray(batch["inputs"], dtype) if preprocess is None else preprocess(batch["inputs"])

    return inputs


def target_outputs(batch: Batch) -> dict[str, jax.Array]:
    """Returns the targets of a batch as the output "targets" int32 of an evaluation, or no output if it has none."""
    return {"targets": jnp.asarray(batch["targets"], jnp.int32)} if "targets" in batch else {}


def require_fields(batch: chex.ArrayTree, fields: tuple[str, ...]) -> Batch:
    """Converts a batch to JAX arrays by name.

    Raises:
      ExperimentError: the batch lacks one of the fields.
    """
    for name in fields:
        if not isinstance(batch, Mapping) or name not in batch:
            got = f"the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            required = ", ".join(f'"{field}"' for field in fields)
            raise ExperimentError(f"this learner takes batches {{{required}}}; {name!r} is missing: got {got}")
    return {name: jnp.asarray(leaf) for name, leaf in batch.items()}


def label_inputs(num_classes: int | None) -> dict[str, InputSpec]:
    """States the inputs of a `predict` that samples: a label for each sample, unused by a model without classes.

    >>> label_inputs(10)["inputs"].meaning
    'class of each sample'
    """
    meaning = "any number for each sample" if num_classes is None else "class of each sample"
    return {"inputs": InputSpec((), np.dtype(np.int32), meaning, num_classes)}
