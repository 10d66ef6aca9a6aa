"""Gaussian mixtures: clusters with shapes, and a density, by expectation maximisation and without any gradient.

Everything is pure and may be jitted and mapped. Points are float `[N, D]`. A covariance is "full" `[K, D, D]` or
"diagonal" `[K, D]`; `regularization` is added to every variance where a density is computed (in the points' units,
squared), and keeps what is constant, or belongs to one point, from having none. In float32 a full covariance whose
variances are a million times apart needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners.clustering import kmeans

Covariance = Literal["full", "diagonal"]
TINY = 1e-20  # share of the points below which a cluster has none


class Mixture(NamedTuple):
    """What is learned.

    Attributes:
      weights: `[K]`, shares of the points, which add up to 1.
      means: `[K, D]`.
      covariances: `[K, D, D]` or `[K, D]`, before `regularization`.
      steps: int32 `[]`, batches that were seen.
    """

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    steps: jax.Array


def log_joint(mixture: Mixture, points: jax.Array, regularization: Any = 1e-3) -> jax.Array:
    """Returns the log of the density of points and clusters together, `[N, K]`."""

    def density(mean: jax.Array, covariance: jax.Array) -> jax.Array:
        away = points - mean[None, :]
        if covariance.ndim == 1:
            variances = covariance + regularization
            lengths = (jnp.square(away) * jnp.reciprocal(variances)[None, :]).sum(axis=1)
            volume = jnp.log(variances).sum()
        else:
            inverse, volume = inverse_root(covariance + regularization * jnp.eye(len(mean)))
            lengths = jnp.square(away @ inverse.T).sum(axis=1)
        return -0.5 * (lengths + volume + len(mean) * math.log(2 * math.pi))

    densities = jax.vmap(density, out_axes=1)(mixture.means, mixture.covariances)
    return densities + jnp.log(jnp.maximum(mixture.weights, TINY))[None, :]


def inverse_root(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the inverse of the Cholesky root of a positive definite matrix `[D, D]`, and its log determinant.

    D rounds of plain arithmetic. On CPUs LAPACK's triangular solutions of several matrices took ten times as long for
    D = 64, and of two programs with them at once, on two devices, both waited for ever.
    """
    size = len(matrix)

    def eliminate(index: jax.Array, carry: Any) -> Any:
        rest, inverse, volume = carry
        scale = jax.lax.rsqrt(rest[index, index])
        column = jnp.where(jnp.arange(size) > index, rest[:, index] * scale, 0.0)
        row = inverse[index] * scale
        inverse = (inverse - column[:, None] * row[None, :]).at[index].set(row)
        return rest - column[:, None] * column[None, :], inverse, volume - 2 * jnp.log(scale)

    _, inverse, volume = jax.lax.fori_loop(0, size, eliminate, (matrix, jnp.eye(size, dtype=matrix.dtype), 0.0))
    return inverse, volume


def expectation(mixture: Mixture, points: jax.Array, regularization: Any = 1e-3) -> tuple[jax.Array, jax.Array]:
    """Returns the log likelihood of every point `[N]` and the probabilities of its clusters `[N, K]`."""
    joint = log_joint(mixture, points, regularization)
    likelihood = jax.scipy.special.logsumexp(joint, axis=1)
    return likelihood, jnp.exp(joint - likelihood[:, None])


def maximization(points: jax.Array, members: jax.Array, covariance: Covariance = "full") -> Mixture:
    """Returns the mixture that suits points best, if these are the probabilities `[N, K]` of their clusters."""
    counts = members.sum(axis=0)
    each = jnp.reciprocal(jnp.maximum(counts, TINY))
    means = members.T @ points * each[:, None]

    def spread(share: jax.Array, mean: jax.Array) -> jax.Array:
        away = points - mean[None, :]
        if covariance == "diagonal":
            return share @ jnp.square(away)
        return (share[:, None] * away).T @ away

    covariances = jax.vmap(spread)(members.T * each[:, None], means)
    return Mixture(counts * (1 / len(points)), means, covariances, jnp.int32(1))


def start(key: jax.Array, points: jax.Array, num_clusters: int, covariance: Covariance = "full") -> Mixture:
    """Returns k-means clusters (from k-means++) as a mixture; all have the covariance of points about their centres.

    Raises:
      ConfigError: there are fewer points than clusters, or no such covariance.
    """
    _check(covariance)
    points = jnp.asarray(points)
    centers, _ = kmeans.lloyd(points, kmeans.plus_plus(key, points, num_clusters))
    assigned = kmeans.assign(points, centers)
    weights = jax.nn.one_hot(assigned, num_clusters).mean(axis=0)
    away = points - centers[assigned]
    shared = jnp.square(away).mean(axis=0) if covariance == "diagonal" else away.T @ away * (1 / len(points))
    shared = jnp.broadcast_to(shared[None], (num_clusters, *shared.shape))
    return Mixture(weights, centers, shared, jnp.int32(0))


def em(
    points: jax.Array, mixture: Mixture, *, regularization: Any = 1e-3, iterations: int = 100, tolerance: Any = 1e-4
) -> tuple[Mixture, jax.Array]:
    """Returns the mixture where expectation maximisation (Dempster et al., 1977) ends, and its mean log likelihood.

    It ends when an iteration adds less than `tolerance` to the mean log likelihood, in nats, or after `iterations`.
    """
    points, covariance = jnp.asarray(points), _kind(mixture)

    def unfinished(carry: Any) -> jax.Array:
        _, _, _, before, after, step = carry
        return (step < iterations) & (after - before >= tolerance)

    def improve(carry: Any) -> Any:
        _, members, steps, _, before, step = carry
        mixture = maximization(points, members, covariance)._replace(steps=steps + 1)
        likelihood, members = expectation(mixture, points, regularization)
        return mixture, members, mixture.steps, before, likelihood.mean(), step + 1

    likelihood, members = expectation(mixture, points, regularization)
    begin = (mixture, members, mixture.steps, -jnp.inf, likelihood.mean(), 0)
    found, _, _, _, likelihood, _ = jax.lax.while_loop(unfinished, improve, begin)
    return found, likelihood


def fit(
    key: jax.Array,
    points: jax.Array,
    num_clusters: int,
    *,
    covariance: Covariance = "full",
    regularization: Any = 1e-3,
    restarts: int = 1,
    iterations: int = 100,
) -> tuple[Mixture, jax.Array]:
    """Returns the mixture of the highest mean log likelihood after several starts by k-means++, and that likelihood.

    Raises:
      ConfigError: there are fewer points than clusters, no start or no such covariance; without regularization, where
        both are known: a column of the points is constant, so that no density is finite.
    """
    if restarts < 1:
        raise ConfigError(f"restarts: {restarts} must be 1 or more")
    check_spread(points, regularization)
    points = jnp.asarray(points)

    def once(key: jax.Array) -> tuple[Mixture, jax.Array]:
        begin = start(key, points, num_clusters, covariance)
        return em(points, begin, regularization=regularization, iterations=iterations)

    found, likelihood = jax.lax.map(once, jax.random.split(key, restarts))
    best = jnp.where(jnp.isnan(likelihood), -jnp.inf, likelihood).argmax()
    return jax.tree.map(lambda leaf: leaf[best], found), likelihood[best]


def check_spread(points: Any, regularization: Any) -> None:
    """Checks that every column has a spread, or is given one; says nothing of points that are traced.

    Raises:
      ConfigError: a column is constant and there is no regularization.
    """
    if isinstance(points, jax.core.Tracer) or isinstance(regularization, jax.core.Tracer) or regularization > 0:
        return
    constant = np.flatnonzero(np.ptp(np.asarray(points), axis=0) == 0)
    if len(constant):
        raise ConfigError(
            f"column {constant[0]} of the points is constant ({len(constant)} such in all), so that a Gaussian has no "
            "density there; leave it out, or give a regularization above 0"
        )


def assign(mixture: Mixture, points: jax.Array, regularization: Any = 1e-3) -> jax.Array:
    """Returns the index int `[N]` of every point's most probable cluster."""
    return log_joint(mixture, points, regularization).argmax(axis=1)


def stepwise(
    num_clusters: int,
    *,
    covariance: Covariance = "full",
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    regularization: Any = 1e-3,
    decay: Any = 0.7,
) -> Learner:
    """Returns the learner of a mixture that sees a batch at a time: stepwise EM (Cappé & Moulines, 2009).

    Step t = 0, 1, ... mixes what the batch says with what was known, in shares `(t + 2) ** -decay` and the rest. With a
    `decay` of 0 it forgets all but the batch, which is EM itself where the batch is the whole split.

    `update` and `evaluate` report "loss", minus the log likelihood in nats; `evaluate` also "assignments" and, where
    there are some, "targets", both int `[B]`. `predict` assigns.

    Args:
      num_clusters: K.
      covariance: "full" or "diagonal".
      preprocess: pure function of the inputs, which are flattened after it; by default they become float32.
      regularization: added to all variances; may be traced.
      decay: above 0.5 and at most 1 where batches differ; may be traced.

    Raises:
      ConfigError: `num_clusters` is below 1, or there is no such covariance; while tracing, there are fewer examples to
        start from.
    """
    if num_clusters < 1:
        raise ConfigError(f"num_clusters: {num_clusters} must be 1 or more")
    _check(covariance)

    def rows(inputs: Any) -> jax.Array:
        x = jnp.asarray(inputs, jnp.float32) if preprocess is None else preprocess(inputs)
        return x.reshape(x.shape[0], -1)

    def init(key: jax.Array, examples: Any) -> Mixture:
        return start(key, rows(examples["inputs"]), num_clusters, covariance)

    def update(state: Mixture, batch: Any, key: jax.Array) -> tuple[Mixture, dict[str, jax.Array]]:
        points = rows(batch["inputs"])
        likelihood, members = expectation(state, points, regularization)
        share = jnp.power(state.steps + 2.0, -jnp.asarray(decay, jnp.float32))
        return blended(state, maximization(points, members, covariance), share), {"loss": -likelihood.mean()}

    def evaluate(state: Mixture, batch: Any, key: jax.Array) -> dict[str, Any]:
        joint = log_joint(state, rows(batch["inputs"]), regularization)
        values = {"loss": -jax.scipy.special.logsumexp(joint, axis=1)}
        values["assignments"] = joint.argmax(axis=1).astype(jnp.int32)
        return values | ({"targets": jnp.asarray(batch["targets"], jnp.int32)} if "targets" in batch else {})

    def predict(state: Mixture, inputs: Any, key: jax.Array) -> jax.Array:
        return assign(state, rows(inputs), regularization)

    return Learner(init, update, evaluate, predict)


def blended(old: Mixture, new: Mixture, share: jax.Array) -> Mixture:
    """Returns the mixture of both's moments, those of `new` in the given share; it has seen a step more than `old`."""
    weights = (1 - share) * old.weights + share * new.weights
    part = share * new.weights * jnp.reciprocal(jnp.maximum(weights, TINY))  # of the new, in each cluster
    apart = new.means - old.means
    means = old.means + part[:, None] * apart
    # About their own means, not as raw second moments, whose differences float32 loses.
    if old.covariances.ndim == 2:
        between, wide = jnp.square(apart), part[:, None]
    else:
        between, wide = apart[:, :, None] * apart[:, None, :], part[:, None, None]
    covariances = (1 - wide) * old.covariances + wide * new.covariances + wide * (1 - wide) * between
    return Mixture(weights, means, covariances, old.steps + 1)


def _kind(mixture: Mixture) -> Covariance:
    return "diagonal" if mixture.covariances.ndim == 2 else "full"


def _check(covariance: str) -> None:
    if covariance not in ("full", "diagonal"):
        raise ConfigError(f"covariance: {covariance!r} is neither 'full' nor 'diagonal'")
