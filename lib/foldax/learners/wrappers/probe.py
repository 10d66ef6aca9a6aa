"""Online evaluation of a learner's features: a linear probe and a k-nearest-neighbour classifier, trained on the way.

Labels train only these two: no gradient reaches the features.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from foldax.errors import ConfigError, ExperimentError
from foldax.learner import Batch, Evaluation, Key, Learner, Metrics, Params, State, as_evaluation
from foldax.learners import losses


class MemoryBank(NamedTuple):
    """Ring buffer of the last M examples.

    Attributes:
      features: `[M, D]`, as computed when the example was added.
      targets: int32 `[M]`.
      count: int32, number of examples added; below 2 M, see `add_to_bank`.
    """

    features: Array
    targets: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which is not used


class ProbeState(NamedTuple):
    """State of a learner with a probe.

    Attributes:
      learner: state of the wrapped learner.
      linear: kernel `[D, C]` and bias `[C]` of the linear probe.
      optimizer_state: state of the probe's optimizer.
      memory_bank: labelled features for the neighbours and for the probe's standardization.
    """

    learner: State
    linear: dict[str, Array]
    optimizer_state: optax.OptState
    memory_bank: MemoryBank


def with_probe(
    learner: Learner,
    num_classes: int | None,
    optimizer: optax.GradientTransformation,
    *,
    features: str = "features",
    memory_size: int = 1024,
    neighbors: int = 20,
    temperature: chex.Numeric = 0.07,
) -> Learner:
    """Adds a linear probe (Alain & Bengio, 2017) and a weighted kNN classifier (Wu et al., 2018) to a learner.

    After each update of the learner, the features of the batch (without augmentation, as in evaluation) replace the
    oldest ones in a memory bank, and the probe takes one optimizer step on them, standardized by the bank's mean and
    deviation. `update` also reports "probe_loss" (nats), and `evaluate` "probe_loss", "probe_accuracy" and
    "knn_accuracy" `[B]`.

    Args:
      learner: its `evaluate` returns features `[B, D]`; batches need integer "targets" `[B]`.
      num_classes: C, at least 2.
      optimizer: of the probe; its learning rate may be traced.
      features: name of the output of `evaluate` to probe, such as "projections" or "latents".
      memory_size: M, examples in the memory bank; at least a batch, at best the training split.
      neighbors: k, the number of neighbours that vote, 1 to M.
      temperature: of the votes (see `knn_votes`), above 0; may be traced.

    Raises:
      ConfigError: an option is out of range; while tracing, a batch is larger than the memory bank.
      ExperimentError: while tracing, the batch has no classes, or `evaluate` returns no such features.

    >>> from foldax import learners, models
    >>> model = models.Autoencoder(models.MLP((2,)), models.MLP((6,)), shape=(6,))
    >>> learner = with_probe(learners.autoencoder(model, optax.sgd(0.1)), 3, optax.adam(1e-2), features="latents")
    >>> batch = {"inputs": jnp.zeros((4, 6)), "targets": jnp.zeros(4, int)}
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    >>> sorted(jax.eval_shape(learner.evaluate, state, batch, jax.random.key(1)).metrics)
    ['knn_accuracy', 'loss', 'probe_accuracy', 'probe_loss', 'squared_error']
    """
    if num_classes is None or num_classes < 2:
        raise ConfigError(f"with_probe: num_classes={num_classes} must be 2 or more")
    if not 1 <= neighbors <= memory_size:
        raise ConfigError(f"neighbors: {neighbors} must be 1 to memory_size, {memory_size}")

    def features_of(state: State, batch: Batch, key: Key) -> Array:
        return jax.lax.stop_gradient(_feature_rows(as_evaluation(learner.evaluate(state, batch, key)), features))

    def init(key: Key, examples: Batch) -> ProbeState:
        state = learner.init(key, examples)
        first = {name: leaf[:1] for name, leaf in _with_class_targets(examples).items()}
        width = jax.eval_shape(features_of, state, first, key).shape[1]
        linear = {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}
        bank = MemoryBank(jnp.zeros((memory_size, width)), jnp.zeros(memory_size, jnp.int32), jnp.zeros((), jnp.int32))
        return ProbeState(state, linear, optimizer.init(linear), bank)

    def update(state: ProbeState, batch: Batch, key: Key) -> tuple[ProbeState, Metrics]:
        update_key, features_key = jax.random.split(key)
        targets = _with_class_targets(batch)["targets"].astype(jnp.int32)
        # 1. The learner itself, which never sees the probe.
        inner, metrics = learner.update(state.learner, batch, update_key)
        # 2. Memory bank
        rows = features_of(inner, batch, features_key)
        bank = add_to_bank(state.memory_bank, rows, targets)

        # 3. One step of the linear probe
        def probe_loss(linear: Params) -> Array:
            return losses.softmax_cross_entropy(_probe_logits(linear, bank, rows), targets).mean()

        value, gradients = jax.value_and_grad(probe_loss)(state.linear)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.linear)
        linear = optax.apply_updates(state.linear, updates)
        return ProbeState(inner, linear, optimizer_state, bank), {**metrics, "probe_loss": value}

    def evaluate(state: ProbeState, batch: Batch, key: Key) -> Evaluation:
        result = as_evaluation(learner.evaluate(state.learner, batch, key))
        rows, targets = _feature_rows(result, features), _with_class_targets(batch)["targets"].astype(jnp.int32)
        logits = _probe_logits(state.linear, state.memory_bank, rows)
        votes = knn_votes(state.memory_bank, rows, num_classes, neighbors, temperature)
        metrics = {"probe_loss": losses.softmax_cross_entropy(logits, targets)}
        metrics["probe_accuracy"] = losses.is_correct(logits, targets).astype(jnp.float32)
        metrics["knn_accuracy"] = losses.is_correct(votes, targets).astype(jnp.float32)
        return result.with_values(metrics=metrics)

    return learner.with_inner(lambda state: state.learner, init=init, update=update, evaluate=evaluate)


def add_to_bank(bank: MemoryBank, features: Array, targets: Array) -> MemoryBank:
    """Replaces the oldest examples of a memory bank by features `[B, D]` and classes int `[B]`.

    Raises:
      ConfigError: the bank holds fewer than B examples.

    >>> bank = MemoryBank(jnp.zeros((3, 1)), jnp.zeros(3, jnp.int32), jnp.int32(2))
    >>> add_to_bank(bank, jnp.ones((2, 1)), jnp.array([7, 8])).targets.tolist()
    [8, 0, 7]
    """
    chex.assert_rank([features, targets], [2, 1])
    size = len(bank.targets)
    if len(features) > size:
        raise ConfigError(f"memory_size: {size} is smaller than a batch of {len(features)} examples")
    positions = (bank.count + jnp.arange(len(features), dtype=jnp.int32)) % size
    # Wrapped below 2 M, so that it never overflows; a count of M or more means that the bank is full.
    count = bank.count + len(features)
    count = jnp.where(count >= 2 * size, count - size, count)
    return MemoryBank(bank.features.at[positions].set(features), bank.targets.at[positions].set(targets), count)


def knn_votes(bank: MemoryBank, features: Array, num_classes: int, neighbors: int, temperature: chex.Numeric) -> Array:
    """Votes of the nearest neighbours by cosine similarity, weighted by exp(cosine / temperature) (Wu et al., 2018).

    Args:
      bank: labelled features, M of them.
      features: `[B, D]`, to classify.
      num_classes: C.
      neighbors: k, 1 to M.
      temperature: above 0; may be traced.

    Returns:
      `[B, C]`, votes up to a common factor; all 0 if the bank is empty.

    >>> bank = MemoryBank(jnp.eye(2), jnp.array([0, 1]), jnp.int32(2))
    >>> knn_votes(bank, jnp.array([[2.0, 0.1]]), num_classes=2, neighbors=1, temperature=0.1).argmax(axis=1).tolist()
    [0]
    """
    chex.assert_rank(features, 2)
    # Slots that were never filled have a similarity of -inf.
    filled = jnp.arange(len(bank.targets)) < bank.count
    cosines = losses.l2_normalize(features) @ losses.l2_normalize(bank.features).T
    nearest, positions = jax.lax.top_k(jnp.where(filled[None, :], cosines, -jnp.inf), neighbors)
    # Relative to a cosine of 1, so that no temperature overflows; an empty slot has the weight exp(-inf) = 0.
    weights = jnp.exp((nearest - 1.0) * jnp.reciprocal(jnp.asarray(temperature, jnp.float32)))
    return (weights[..., None] * jax.nn.one_hot(bank.targets[positions], num_classes)).sum(axis=1)


def standardize(bank: MemoryBank, features: Array) -> Array:
    """Standardizes features `[B, D]` by the mean and standard deviation of the features in the memory bank.

    >>> bank = MemoryBank(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]), jnp.int32(2))
    >>> standardize(bank, jnp.array([[2.0], [6.0]])).round(3).tolist()
    [[0.0], [2.0]]
    """
    chex.assert_rank(features, 2)
    # Mean and variance over the filled slots.
    filled = (jnp.arange(len(bank.targets)) < bank.count).astype(jnp.float32)[:, None]
    weights = filled * jnp.reciprocal(jnp.maximum(filled.sum(), 1.0))
    mean = (bank.features * weights).sum(axis=0, keepdims=True)
    variance = (jnp.square(bank.features - mean) * weights).sum(axis=0, keepdims=True)
    return (features - mean) * jax.lax.rsqrt(variance + 1e-5)


def _probe_logits(linear: dict[str, Array], bank: MemoryBank, features: Array) -> Array:
    return standardize(bank, features) @ linear["kernel"] + linear["bias"][None, :]


def _feature_rows(result: Evaluation, name: str) -> Array:
    rows = result.values.get(name)
    if rows is None or rows.ndim != 2:
        shapes = ", ".join(f"{key} {list(leaf.shape)}" for key, leaf in result.values.items() if hasattr(leaf, "shape"))
        raise ExperimentError(f"with_probe: the learner's evaluate returns no {name!r} [B, D] (it returns {shapes})")
    return rows


def _with_class_targets(batch: Batch) -> dict[str, Array]:
    integer = isinstance(batch, Mapping) and "targets" in batch and jnp.issubdtype(batch["targets"].dtype, jnp.integer)
    if not integer:
        raise ExperimentError('with_probe: batches need integer "targets" [B], the classes that the probe predicts')
    return {name: jnp.asarray(leaf) for name, leaf in batch.items()}
