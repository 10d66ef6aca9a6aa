"""Losses: pure functions of model outputs and targets that return one value per example, `[B]`."""

import math

import chex
import jax
import jax.numpy as jnp
import optax
from chex import Numeric
from jaxtyping import Array, Float, Num, Shaped

from foldax.errors import ExperimentError

Outputs = Num[Array, " B *outputs"]
Targets = Shaped[Array, "..."]
Losses = Float[Array, " B"]


def softmax_cross_entropy(logits: Outputs, targets: Targets, label_smoothing: Numeric | None = None) -> Losses:
    """Cross-entropy of a softmax over C classes, in nats.

    Args:
      logits: `[B, C]`, of two classes or more.
      targets: integer classes `[B]`, or class probabilities `[B, C]` that sum to 1.
      label_smoothing: probability mass of the target that is spread evenly over all classes (Szegedy et al., 2016), in
        [0, 1]; may be traced.

    Returns:
      The loss of each example, `[B]`.

    Raises:
      ExperimentError: fewer than two logits, targets that are neither integers `[B]` nor floats `[B, C]`, or label
        smoothing that is no probability.

    >>> softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))  # log 4
    Array([1.3862944], dtype=float32)
    """
    if targets.shape == logits.shape and jnp.issubdtype(targets.dtype, jnp.floating) and logits.shape[-1] > 1:
        loss = optax.softmax_cross_entropy(logits, targets)
    else:
        _check_labels("softmax_cross_entropy", logits, targets)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing is None:
        return loss
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing <= 1:
        raise ExperimentError(f"label_smoothing: {label_smoothing} must be a probability, from 0 to 1")
    # Smoothed targets are (1 - a) * target + a / C, and cross-entropy is linear in them.
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1.0 - label_smoothing) * loss + label_smoothing * uniform


def sigmoid_cross_entropy(logits: Outputs, targets: Targets, label_smoothing: Numeric | None = None) -> Losses:
    """Binary cross-entropy in nats, averaged over K labels.

    Args:
      logits: `[B]`, `[B, 1]` or `[B, K]`.
      targets: 0 or 1, `[B]`, or `[B, K]` for K labels.
      label_smoothing: a moves targets from 0 and 1 to a / 2 and 1 - a / 2; may be traced.

    Returns:
      The loss of each example, `[B]`.

    Raises:
      ExperimentError: the shapes of logits and targets do not match.

    >>> sigmoid_cross_entropy(jnp.array([0.0, 20.0]), jnp.array([1, 1])).round(3)
    Array([0.693, 0.   ], dtype=float32)
    """
    logits, targets = _match("sigmoid_cross_entropy", logits, targets)
    if label_smoothing is not None:
        targets = (1.0 - label_smoothing) * targets + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def hinge(logits: Outputs, targets: Targets) -> Losses:
    """Hinge loss of two classes, or of many: the margin to the best wrong class (Crammer & Singer, 2001).

    Args:
      logits: `[B]` or `[B, 1]` for two classes, else `[B, C]`.
      targets: `[B]`; of two classes the one above 0 is the positive one, of many they are integers.

    Returns:
      The loss of each example, `[B]`.

    Raises:
      ExperimentError: logits and targets do not match.

    >>> hinge(jnp.array([0.25, 3.0]), jnp.array([1, 1])).tolist()
    [0.75, 0.0]
    """
    # Two logits or more are classes, one logit is the margin of the positive class.
    if logits.ndim == 2 and logits.shape[1] > 1:
        _check_labels("hinge", logits, targets)
        return optax.losses.multiclass_hinge_loss(logits, targets)
    logits, targets = _match("hinge", logits, targets)
    return optax.hinge_loss(logits, jnp.where(targets > 0, 1.0, -1.0)).mean(axis=-1)


def squared_error(predictions: Outputs, targets: Targets) -> Losses:
    """Squared error `[B]`, averaged over outputs; predictions and targets are `[B]` or `[B, O]`.

    Raises:
      ExperimentError: the shapes of predictions and targets do not match.

    >>> squared_error(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [5.0]
    """
    predictions, targets = _match("squared_error", predictions, targets)
    return optax.squared_error(predictions, targets).mean(axis=-1)


def absolute_error(predictions: Outputs, targets: Targets) -> Losses:
    """Absolute error `[B]`, averaged over outputs; predictions and targets are `[B]` or `[B, O]`.

    Raises:
      ExperimentError: the shapes of predictions and targets do not match.

    >>> absolute_error(jnp.array([[1.0, -3.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [2.0]
    """
    predictions, targets = _match("absolute_error", predictions, targets)
    return jnp.abs(predictions - targets).mean(axis=-1)


def huber(predictions: Outputs, targets: Targets, delta: Numeric = 1.0) -> Losses:
    """Huber loss `[B]` (Huber, 1964), averaged over outputs: quadratic up to an error of `delta`, then linear.

    Args:
      predictions: `[B]` or `[B, O]`.
      targets: of the same shape.
      delta: error at which the loss becomes linear; may be traced.

    Raises:
      ExperimentError: the shapes of predictions and targets do not match.

    >>> huber(jnp.array([0.5, 3.0]), jnp.zeros(2), delta=2.0).tolist()
    [0.125, 4.0]
    """
    predictions, targets = _match("huber", predictions, targets)
    return optax.huber_loss(predictions, targets, delta=delta).mean(axis=-1)


def mean_and_log_std(outputs: Float[Array, "B ..."]) -> tuple[Float[Array, "B O"], Float[Array, "B O"]]:
    """Splits outputs `[B, 2 * O]` into means and log standard deviations `[B, O]`, the latter clipped to [-7, 7].

    Raises:
      ExperimentError: the number of outputs is odd.

    >>> mean, log_std = mean_and_log_std(jnp.array([[1.0, 2.0, 0.5, 99.0]]))
    >>> mean.tolist(), log_std.tolist()
    ([[1.0, 2.0]], [[0.5, 7.0]])
    """
    if outputs.ndim != 2 or outputs.shape[1] % 2:
        returned = f"the model returned {outputs.shape}"
        raise ExperimentError(f"a Gaussian needs two outputs for each target, [B, 2 * O]; {returned}")
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    # Without bounds an overconfident model would divide by 0.
    return mean, jnp.clip(log_std, -7.0, 7.0)


def gaussian_nll(outputs: Float[Array, "B ..."], targets: Targets) -> Losses:
    """Negative log-likelihood of a normal distribution in nats (Nix & Weigend, 1994), averaged over outputs.

    Args:
      outputs: `[B, 2 * O]`: O means, then O log standard deviations.
      targets: `[B, O]`, or `[B]` for one output.

    Returns:
      The loss of each example, `[B]`.

    Raises:
      ExperimentError: the shapes of outputs and targets do not match.

    >>> round(float(gaussian_nll(jnp.zeros((1, 2)), jnp.zeros(1))[0]), 3)  # 0.5 log(2 pi)
    0.919
    """
    mean, log_std = mean_and_log_std(outputs)
    mean, targets = _match("gaussian_nll", mean, targets)
    # -log N(y; mean, std) = ((y - mean) / std)^2 / 2 + log std + log(2 pi) / 2
    standardized = (targets - mean) * jnp.exp(-log_std)
    return (0.5 * jnp.square(standardized) + log_std + 0.5 * math.log(2 * math.pi)).mean(axis=-1)


def energy_score(draws: Array, real: Array) -> Array:
    """Computes the energy score E|X - y| - E|X - X'| / 2 of a sample (Gneiting & Raftery, 2007); lower is better.

    Distances are root mean squares over the elements of an observation, such as an image.

    Args:
      draws: S independent samples X for each example, `[B, S, ...]` with S of 2 or more.
      real: observations y, `[B, ...]`.

    Returns:
      Scores, `[B]`.

    >>> energy_score(jnp.array([[[1.0], [3.0]]]), jnp.array([[2.0]])).tolist()
    [0.0]
    """
    chex.assert_shape(real, (draws.shape[0], *draws.shape[2:]))
    batch, count = draws.shape[:2]
    flat, truth = draws.reshape(batch, count, -1), real.reshape(batch, 1, -1)
    to_truth = jnp.sqrt(jnp.square(flat - truth).mean(axis=-1)).mean(axis=1)
    # Over pairs of different samples; a sample's distance to itself adds 0.
    pairwise = jnp.sqrt(jnp.square(flat[:, :, None] - flat[:, None, :]).mean(axis=-1)).sum(axis=(1, 2))
    return to_truth - 0.5 * pairwise * (1.0 / (count * (count - 1)))


def check_loss(loss: object) -> None:
    """Checks that a loss is a function.

    Raises:
      ExperimentError: it is something else, such as a name.

    >>> check_loss("sigmoid")
    Traceback (most recent call last):
    foldax.errors.ExperimentError: loss: 'sigmoid' is no function; pass one, such as losses.sigmoid_cross_entropy
    """
    if not callable(loss):
        raise ExperimentError(f"loss: {loss!r} is no function; pass one, such as losses.sigmoid_cross_entropy")


def is_correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether the largest logit is that of the target, bool `[...]`; never where a logit is NaN.

    Args:
      logits: `[..., C]`.
      targets: classes `[...]`.

    >>> is_correct(jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan]]), jnp.array([1, 0])).tolist()
    [True, False]
    """
    # `argmax` would take the first NaN for the largest.
    return (jnp.argmax(logits, axis=-1) == targets) & ~jnp.isnan(logits).any(axis=-1)


def as_columns(values: Shaped[Array, " B *outputs"]) -> Shaped[Array, " B *columns"]:
    """Reshapes `[B]` to `[B, 1]`; leaves `[B, O]` alone.

    >>> as_columns(jnp.zeros(3)).shape, as_columns(jnp.zeros((3, 2))).shape
    ((3, 1), (3, 2))
    """
    return values[:, None] if values.ndim == 1 else values


def flatten(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B D"]:
    """Flattens every example: `[B, ...]` to `[B, D]`.

    >>> flatten(jnp.zeros((2, 3, 4))).shape
    (2, 12)
    """
    return x.reshape(x.shape[0], -1)


def l2_normalize(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Divides each row of `[B, D]` by its L2 norm; rows of zeros stay.

    >>> [round(float(value), 3) for value in l2_normalize(jnp.array([[3.0, 4.0]]))[0]]
    [0.6, 0.8]
    """
    chex.assert_type(x, float)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


def _match(name: str, outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Converts outputs and targets of equal shapes to `[B, O]` of the outputs' dtype."""
    outputs_BO, targets_BO = as_columns(outputs), as_columns(targets)
    if outputs_BO.ndim != 2 or outputs_BO.shape != targets_BO.shape:
        problem = f"the model's outputs {outputs.shape} and the targets {targets.shape} must match"
        allowed = "[B] or [B, 1] outputs for targets [B], [B, K] outputs for targets [B, K]"
        raise ExperimentError(f"{name}: {problem}: {allowed}")
    chex.assert_type(outputs_BO, float)
    return outputs_BO, targets_BO.astype(outputs_BO.dtype)


def _check_labels(name: str, logits: Array, targets: Array) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        expected = f"logits [B, classes] for two classes or more, got {logits.shape}"
        remedy = "one logit goes with losses.sigmoid_cross_entropy"
        raise ExperimentError(f"{name}: the model must return {expected}; {remedy}")
    if targets.shape != logits.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        expected = f"integer classes of shape {logits.shape[:1]}, got {targets.dtype}{list(targets.shape)}"
        raise ExperimentError(f"{name}: the targets must be {expected}")
    chex.assert_type(logits, float)
