"""Cross-entropy of every step of a sequence; over a large vocabulary, a chunk of steps at a time.

The logits `[B, T, V]` are the largest array of a language model with a large vocabulary: those of one sequence of 1,024
tokens out of 50,304 take 0.2 GiB in float32, as do their gradients. The loss is a sum over steps, so logits, loss and
gradients of a chunk of steps are computed together and only their sums are kept: all logits never exist at once. Unlike
with rematerialisation, no logits are computed twice.

Shapes: B batch, T steps, N chunks, C steps of a chunk, D width of the hidden states, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from foldax.errors import ExperimentError, check_positive
from foldax.learner import Metrics, Model
from foldax.learners import losses, tasks
from foldax.learners.tasks import Batch
from foldax.models import HiddenStates

MIN_CHUNKED_LOGITS, DEFAULT_CHUNKS = 2**26, 16  # 256 MiB of float32

Array = jax.Array
SumLoss = Callable[..., tuple[Array, Array]]  # see `chunked_loss`


class Steps(NamedTuple):
    """Arrays `[B, T]`, one value per step: the targets, and weights of their losses."""

    targets: Array
    weights: Array


class StepLoss(NamedTuple):
    """The loss of a model's logits `[B, T, V]`, or of its hidden states where their logits are computed in chunks.

    Batches have "targets" int `[B, T]`, and for training "step_weights" float `[B, T]`.

    Attributes:
      model: the network; one that returns `models.HiddenStates` on demand has a method `logits` of them.
      label_smoothing: probability mass that is spread evenly over all tokens in training; None: 0. May be traced.
      num_chunks: number of chunks of the logits of a sequence; None: 16 where there are 2^26 logits or more, else 1.
    """

    model: Model
    label_smoothing: chex.Numeric | None = None
    num_chunks: int | None = 1

    def check(self) -> None:
        """Checks the number of chunks.

        Raises:
          ConfigError: it is 0 or negative.
          ExperimentError: it is above 1, and the model returns no hidden states.
        """
        chunks = 1 if self.num_chunks is None else self.num_chunks
        check_positive(num_output_chunks=chunks)
        if chunks > 1 and not hasattr(self.model, "logits"):
            problem = f"{type(self.model).__name__} returns no hidden states, as models.Transformer does"
            raise ExperimentError(f"num_output_chunks={chunks}: {problem}; leave it None")

    def chunks_of(self, batch: Batch) -> int:
        """Returns the number of chunks for a batch; 1 without targets, as `predict` returns all logits.

        >>> from foldax.models import Transformer
        >>> loss = StepLoss(Transformer(50_304, 50_304), num_chunks=None)
        >>> [loss.chunks_of({"targets": jax.ShapeDtypeStruct((size, 1_024), int)}) for size in (1, 8)]
        [1, 16]
        """
        vocabulary_size = getattr(self.model, "vocabulary_size", None)
        if "targets" not in batch or vocabulary_size is None or not hasattr(self.model, "logits"):
            return 1
        chunks, targets = self.num_chunks, batch["targets"]
        if chunks is None:
            chunks = DEFAULT_CHUNKS if targets.size * vocabulary_size >= MIN_CHUNKED_LOGITS else 1
        return min(chunks, targets.shape[1])

    def model_kwargs(self, batch: Batch) -> dict[str, Any]:
        """Returns keyword arguments of the model besides its inputs."""
        return tasks.mask_argument(batch) | ({"return_hidden": True} if self.chunks_of(batch) > 1 else {})

    def train_metrics(self, outputs: Array | HiddenStates, batch: Batch) -> Metrics:
        """Returns "loss" and "accuracy": weighted sums over time, of each row `[B]` or their mean over rows `[]`."""
        steps = Steps(batch["targets"], batch["step_weights"])
        if not isinstance(outputs, HiddenStates):
            nats, correct = self._nats_and_correct(outputs, steps.targets, self.label_smoothing)
            return {"loss": (nats * steps.weights).sum(axis=1), "accuracy": (correct * steps.weights).sum(axis=1)}

        def loss(params: chex.ArrayTree, states: Array, steps: Steps, smoothing: Any) -> tuple[Array, Array]:
            nats, correct = self._nats_and_correct(self._logits(params, states), steps.targets, smoothing)
            return (nats * steps.weights).sum(), (correct * steps.weights).sum()

        total, correct = chunked_loss(loss, self.chunks_of(batch), outputs, steps, self.label_smoothing)
        mean = 1 / outputs.states.shape[0]
        return {"loss": total * mean, "accuracy": correct * mean}

    def scores(self, outputs: Array | HiddenStates, batch: Batch) -> tuple[Array, Array]:
        """Returns the cross-entropy `[B, T]` of each step in nats, and whether its prediction is right, 0 or 1."""
        if not isinstance(outputs, HiddenStates):
            return self._nats_and_correct(outputs, batch["targets"])

        def scores(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
            return self._nats_and_correct(self._logits(outputs.output_params, chunk[0]), chunk[1])

        results = jax.lax.map(scores, _split((outputs.states, batch["targets"]), self.chunks_of(batch)))
        return jax.tree.map(lambda leaf: _join(leaf, batch["targets"].shape[1]), results)

    def _logits(self, output_params: chex.ArrayTree, states: Array) -> Array:
        return self.model.apply({"params": output_params}, states, method="logits")

    def _nats_and_correct(
        self, logits: Array, targets: Array, label_smoothing: chex.Numeric | None = None
    ) -> tuple[Array, Array]:
        if logits.ndim != 3 or logits.shape[:2] != targets.shape:
            steps = f"every step of targets {targets.shape}"
            raise ExperimentError(f"the model must return logits [B, T, V] for {steps}, got {logits.shape}")
        # The loss takes one axis of examples: [B * T, V].
        flat = logits.reshape(-1, logits.shape[-1])
        nats = losses.softmax_cross_entropy(flat, targets.reshape(-1), label_smoothing).reshape(targets.shape)
        return nats, losses.is_correct(logits, targets).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunked_loss(
    loss: SumLoss, num_chunks: int, hidden: HiddenStates, steps: Steps, label_smoothing: chex.Numeric | None
) -> tuple[Array, Array]:
    """Sums a loss of logits over chunks of steps; differentiable in `hidden`, by reverse mode.

    Args:
      loss: `(output_params, states [B, C, D], steps [B, C], label_smoothing) -> (loss [], metric [])`, sums over steps;
        steps of weight 0 must count nowhere.
      num_chunks: number of chunks, N.
      hidden: states `[B, T, D]`, and the parameters that `loss` needs.
      steps: targets and weights `[B, T]`.
      label_smoothing: passed on to `loss`.

    Returns:
      Sums of the loss and of the metric, scalars.

    >>> def loss(params, states, steps, label_smoothing):
    ...     return ((params * states).sum(axis=-1) * steps.weights).sum(), steps.weights.sum()
    >>> steps = Steps(jnp.zeros((1, 3), int), jnp.array([[1.0, 1.0, 0.0]]))
    >>> hidden = HiddenStates(jnp.ones((1, 3, 2)), jnp.array(2.0))
    >>> gradients = jax.grad(lambda hidden: chunked_loss(loss, 2, hidden, steps, None)[0])(hidden)
    >>> gradients.states[..., 0].tolist(), float(gradients.output_params)
    ([[2.0, 2.0, 0.0]], 4.0)
    """

    def body(total: tuple[Array, Array], chunk: tuple[Array, Steps]) -> tuple[tuple[Array, Array], None]:
        terms = loss(hidden.output_params, *chunk, label_smoothing)
        return jax.tree.map(jnp.add, total, terms), None

    return jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), _split((hidden.states, steps), num_chunks))[0]


def _forward(
    loss: SumLoss, num_chunks: int, hidden: HiddenStates, steps: Steps, smoothing: chex.Numeric
) -> tuple[tuple[Array, Array], HiddenStates]:
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def body(carry: tuple, chunk: tuple[Array, Steps]) -> tuple[tuple, Array]:
        terms, (params_gradient, states_gradient) = differentiate(hidden.output_params, *chunk, smoothing)
        return jax.tree.map(jnp.add, carry, (terms, params_gradient)), states_gradient

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, hidden.output_params)
    chunks = _split((hidden.states, steps), num_chunks)
    (total, params_gradient), states_gradients = jax.lax.scan(body, zeros, chunks)
    # Kept for the backward pass in the place of the logits: the gradients of the sum, which are linear in it.
    return total, HiddenStates(_join(states_gradients, hidden.states.shape[1]), params_gradient)


def _backward(
    loss: SumLoss, num_chunks: int, gradients: HiddenStates, cotangents: tuple[Array, Array]
) -> tuple[HiddenStates, None, None]:
    scale = cotangents[0]
    return jax.tree.map(lambda gradient: gradient * scale.astype(gradient.dtype), gradients), None, None


chunked_loss.defvjp(_forward, _backward)


def _split(tree: chex.ArrayTree, num_chunks: int) -> chex.ArrayTree:
    """Cuts `[B, T, ...]` into `[N, B, C, ...]`, where padding of zeros fills the last chunk."""

    def split(leaf: Array) -> Array:
        size = -(-leaf.shape[1] // num_chunks)
        padding = [(0, 0)] * leaf.ndim
        padding[1] = (0, num_chunks * size - leaf.shape[1])
        # Along the time: the batch may be divided over devices.
        padded = jnp.pad(leaf, padding).reshape(leaf.shape[0], num_chunks, size, *leaf.shape[2:])
        return jnp.moveaxis(padded, 1, 0)

    return jax.tree.map(split, tree)


def _join(chunks: Array, num_steps: int) -> Array:
    """Joins `[N, B, C, ...]` to `[B, T, ...]`, without padding."""
    joined = jnp.moveaxis(chunks, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :num_steps]
