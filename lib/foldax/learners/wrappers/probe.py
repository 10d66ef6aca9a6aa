"""How much a learner's features know of classes, measured while it learns: a linear probe and nearest neighbours.

Labels teach these two alone: no gradient reaches what made the features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ConfigError, ExperimentError
from foldax.learner import Learner
from foldax.learners import losses
from foldax.learners.losses import normalized


class Memory(NamedTuple):
    """The last M examples that were seen.

    Attributes:
      features: `[M, D]`, as they were made then.
      targets: int32 `[M]`.
      count: int32, examples seen since the start.
    """

    features: jax.Array
    targets: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class ProbedState(NamedTuple):
    """A learner's state, and what its features are measured with.

    Attributes:
      learner: the learner's own state.
      linear: kernel `[D, C]` and bias `[C]` of the probe.
      optimizer_state: of the probe's optimizer.
      memory: what neighbours are looked for in.
    """

    learner: Any
    linear: dict[str, jax.Array]
    optimizer_state: Any
    memory: Memory


def probed(
    learner: Learner,
    num_classes: int | None,
    optimizer: optax.GradientTransformation,
    *,
    features: str = "features",
    memory: int = 1024,
    neighbors: int = 20,
    temperature: Any = 0.07,
) -> Learner:
    """Returns the same learner, whose features are also measured by a linear classifier and by nearest neighbours.

    After each of its updates the features of the batch as it is in the data, made as in evaluation, take the place of
    the oldest ones in a memory, and the classifier (Alain & Bengio, 2017) takes a step on them, standardised by the
    memory's mean and deviation. `update` also reports "probe_loss" (nats), and `evaluate` "probe_loss",
    "probe_accuracy" and "knn_accuracy" `[B]`. The vote of the `neighbors` likest in the memory
    (by cosine) weighs them by exp(cosine / temperature) (Wu et al., 2018).

    Args:
      learner: its `evaluate` gives features `[B, D]`; batches also have integer "targets" `[B]`.
      num_classes: C.
      optimizer: of the probe; its rates may be traced.
      features: the name under which `evaluate` gives them, such as "projections" or an autoencoder's "codes".
      memory: M, at least a batch; about as many as the training split has, or as can be compared in time.
      neighbors: that vote; at most M.
      temperature: of the vote, above 0; may be traced.

    Raises:
      ConfigError: a number is out of range; while tracing, a batch is larger than the memory.
      ExperimentError: while tracing, there are no classes in the batch, or no such features.
    """
    if num_classes is None or num_classes < 2:
        raise ConfigError(f"probed: it takes two classes or more to measure features by, got num_classes={num_classes}")
    if not 1 <= neighbors <= memory:
        raise ConfigError(f"neighbors: {neighbors} must be 1 to the memory's number of examples, {memory}")

    def features_of(state: Any, batch: Any, key: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(_checked(learner.evaluate(state, batch, key), features))

    def init(key: jax.Array, examples: Any) -> ProbedState:
        state = learner.init(key, examples)
        first = {name: leaf[:1] for name, leaf in _with_classes(examples).items()}
        width = jax.eval_shape(features_of, state, first, key).shape[1]
        linear = {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}
        empty = Memory(jnp.zeros((memory, width)), jnp.zeros(memory, jnp.int32), jnp.zeros((), jnp.int32))
        return ProbedState(state, linear, optimizer.init(linear), empty)

    def update(state: ProbedState, batch: Any, key: jax.Array) -> tuple[ProbedState, dict[str, Any]]:
        own, draws = jax.random.split(key)
        targets = _with_classes(batch)["targets"].astype(jnp.int32)
        inner, metrics = learner.update(state.learner, batch, own)
        made = features_of(inner, batch, draws)
        kept = remember(state.memory, made, targets)

        def loss(linear: Any) -> jax.Array:
            return losses.softmax_cross_entropy(_logits(linear, kept, made), targets).mean()

        value, gradients = jax.value_and_grad(loss)(state.linear)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.linear)
        linear = optax.apply_updates(state.linear, updates)
        return ProbedState(inner, linear, optimizer_state, kept), {**metrics, "probe_loss": value}

    def evaluate(state: ProbedState, batch: Any, key: jax.Array) -> dict[str, Any]:
        values = learner.evaluate(state.learner, batch, key)
        made, targets = _checked(values, features), _with_classes(batch)["targets"].astype(jnp.int32)
        logits = _logits(state.linear, state.memory, made)
        votes = vote(state.memory, made, num_classes, neighbors, temperature)
        return {
            **values,
            "probe_loss": losses.softmax_cross_entropy(logits, targets),
            "probe_accuracy": (logits.argmax(axis=1) == targets).astype(jnp.float32),
            "knn_accuracy": (votes.argmax(axis=1) == targets).astype(jnp.float32),
        }

    def predict(state: ProbedState, inputs: Any, key: jax.Array) -> Any:
        assert learner.predict is not None
        return learner.predict(state.learner, inputs, key)

    return Learner(init, update, evaluate, None if learner.predict is None else predict)


def remember(memory: Memory, features: jax.Array, targets: jax.Array) -> Memory:
    """Returns the memory with features `[B, D]` and classes `[B]` in the places of its oldest.

    Raises:
      ConfigError: they are more than it holds.
    """
    size = len(memory.targets)
    if len(features) > size:
        raise ConfigError(f"memory: {size} examples are fewer than a batch of {len(features)}")
    places = (memory.count + jnp.arange(len(features), dtype=jnp.int32)) % size
    # Kept below 2 sizes, so that it never overflows; beyond one size it says only that the memory is full.
    count = memory.count + len(features)
    count = jnp.where(count >= 2 * size, count - size, count)
    return Memory(memory.features.at[places].set(features), memory.targets.at[places].set(targets), count)


def vote(memory: Memory, features: jax.Array, num_classes: int, neighbors: int, temperature: Any) -> jax.Array:
    """Returns the weight `[B, C]` that each class has among the memory's likest examples; 0 for all if it is empty."""
    filled = jnp.arange(len(memory.targets)) < memory.count
    cosines = normalized(features) @ normalized(memory.features).T
    nearest, places = jax.lax.top_k(jnp.where(filled[None, :], cosines, -jnp.inf), neighbors)
    # Relative to the largest possible, so that no temperature makes them overflow. What is not there has exp(-inf).
    weights = jnp.exp((nearest - 1.0) * jnp.reciprocal(jnp.asarray(temperature, jnp.float32)))
    return (weights[..., None] * jax.nn.one_hot(memory.targets[places], num_classes)).sum(axis=1)


def standardized(memory: Memory, features: jax.Array) -> jax.Array:
    """Returns features `[B, D]` in deviations of the memory's from their mean."""
    filled = (jnp.arange(len(memory.targets)) < memory.count).astype(jnp.float32)[:, None]
    share = filled * jnp.reciprocal(jnp.maximum(filled.sum(), 1.0))
    mean = (memory.features * share).sum(axis=0, keepdims=True)
    variance = (jnp.square(memory.features - mean) * share).sum(axis=0, keepdims=True)
    return (features - mean) * jax.lax.rsqrt(variance + 1e-5)


def _logits(linear: dict[str, jax.Array], memory: Memory, features: jax.Array) -> jax.Array:
    return standardized(memory, features) @ linear["kernel"] + linear["bias"][None, :]


def _checked(values: dict[str, Any], features: str) -> jax.Array:
    found = values.get(features)
    if found is None or found.ndim != 2:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items() if hasattr(value, "shape"))
        raise ExperimentError(f"probed: the learner's evaluate gives no {features!r} [B, D] (it gives {shapes})")
    return found


def _with_classes(batch: Any) -> dict[str, jax.Array]:
    if not isinstance(batch, dict) or "targets" not in batch or not jnp.issubdtype(batch["targets"].dtype, jnp.integer):
        raise ExperimentError('probed: batches must have integer "targets" [B], the classes to measure features by')
    return {name: jnp.asarray(leaf) for name, leaf in batch.items()}
