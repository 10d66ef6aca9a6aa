"""Gaussian mixture models: expectation maximisation (EM) on a whole dataset, and the stepwise EM learner.

All functions are pure and may be jitted and vmapped. Points are float `[N, D]`. Covariances are "full" `[K, D, D]` or
"diagonal" `[K, D]`. `regularization`, in squared units of the points, is added to the variances wherever a density is
computed: it keeps the variance of constant columns, and of components with a single point, above zero. In float32,
full covariances whose variances differ by a factor of a million need it, too.
"""

import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_positive
from foldax.learner import Batch, Evaluation, Key, Learner, Metrics
from foldax.learners import tasks
from foldax.learners.clustering import kmeans

CovarianceType = Literal["full", "diagonal"]
MIN_WEIGHT = 1e-20  # components of a smaller weight count as empty


class GaussianMixture(NamedTuple):
    """Parameters of a Gaussian mixture with K components.

    Attributes:
      weights: `[K]`, mixing proportions, which sum to 1.
      means: `[K, D]`.
      covariances: `[K, D, D]` or `[K, D]`, without `regularization`.
      steps: int32, EM steps done.
    """

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    steps: jax.Array


def log_joint(mixture: GaussianMixture, points: jax.Array, regularization: chex.Numeric = 1e-3) -> jax.Array:
    """Computes the joint log density log p(x, k) = log pi_k + log N(x; mu_k, Sigma_k) of points and components.

    Args:
      mixture: parameters.
      points: `[N, D]`.
      regularization: added to all variances; may be traced.

    Returns:
      `[N, K]`, in nats.

    >>> mixture = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.int32(0))
    >>> round(log_joint(mixture, jnp.zeros((1, 2)), 0.0).item(), 4)  # -log(2 pi)
    -1.8379
    """
    chex.assert_rank([points, mixture.means], 2)

    def log_density(mean: jax.Array, covariance: jax.Array) -> jax.Array:
        centered = points - mean[None, :]
        if covariance.ndim == 1:
            variances = covariance + regularization
            mahalanobis = (jnp.square(centered) * jnp.reciprocal(variances)[None, :]).sum(axis=1)
            log_det = jnp.log(variances).sum()
        else:
            # (x - mu)^T Sigma^-1 (x - mu) = |L^-1 (x - mu)|^2
            inverse, log_det = inverse_cholesky(covariance + regularization * jnp.eye(len(mean)))
            mahalanobis = jnp.square(centered @ inverse.T).sum(axis=1)
        return -0.5 * (mahalanobis + log_det + len(mean) * math.log(2 * math.pi))

    log_densities = jax.vmap(log_density, out_axes=1)(mixture.means, mixture.covariances)
    return log_densities + jnp.log(jnp.maximum(mixture.weights, MIN_WEIGHT))[None, :]


def inverse_cholesky(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the inverse of the Cholesky factor L, and the log determinant, of a positive definite matrix L L^T.

    Args:
      matrix: `[D, D]`.

    Returns:
      `(inverse, log_det)`: lower triangular `[D, D]`, and a scalar.

    >>> inverse, log_det = inverse_cholesky(jnp.array([[4.0, 0.0], [0.0, 1.0]]))
    >>> inverse.tolist(), round(log_det.item(), 4)  # log 4
    ([[0.5, 0.0], [0.0, 1.0]], 1.3863)
    """
    # D rounds of Gaussian elimination, not LAPACK: on CPUs its batched triangular solves took ten times as long for
    # D = 64, and two programs that ran them at once on two devices deadlocked.
    chex.assert_rank(matrix, 2)
    size = len(matrix)

    def eliminate(index: jax.Array, carry: chex.ArrayTree) -> chex.ArrayTree:
        remainder, inverse, log_det = carry
        scale = jax.lax.rsqrt(remainder[index, index])
        column = jnp.where(jnp.arange(size) > index, remainder[:, index] * scale, 0.0)
        row = inverse[index] * scale
        inverse = (inverse - column[:, None] * row[None, :]).at[index].set(row)
        return remainder - column[:, None] * column[None, :], inverse, log_det - 2 * jnp.log(scale)

    _, inverse, log_det = jax.lax.fori_loop(0, size, eliminate, (matrix, jnp.eye(size, dtype=matrix.dtype), 0.0))
    return inverse, log_det


def e_step(
    mixture: GaussianMixture, points: jax.Array, regularization: chex.Numeric = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """E-step of EM (Dempster et al., 1977): the log likelihoods log p(x) and the responsibilities p(k | x).

    Args:
      mixture: parameters.
      points: `[N, D]`.
      regularization: added to all variances; may be traced.

    Returns:
      `(log_likelihood, responsibilities)`: `[N]` in nats, and `[N, K]`, whose rows sum to 1.

    >>> mixture = GaussianMixture(jnp.full(2, 0.5), jnp.array([[0.0], [9.0]]), jnp.ones((2, 1)), jnp.int32(0))
    >>> e_step(mixture, jnp.array([[0.0], [9.0]]))[1].round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    # p(k | x) = p(x, k) / sum_j p(x, j), in logs
    joint = log_joint(mixture, points, regularization)
    log_likelihood = jax.scipy.special.logsumexp(joint, axis=1)
    return log_likelihood, jnp.exp(joint - log_likelihood[:, None])


def m_step(points: jax.Array, responsibilities: jax.Array, covariance_type: CovarianceType = "full") -> GaussianMixture:
    """M-step of EM (Dempster et al., 1977): the maximum-likelihood mixture for given responsibilities.

    Args:
      points: `[N, D]`.
      responsibilities: `[N, K]`, whose rows sum to 1.
      covariance_type: "full" or "diagonal".

    >>> mixture = m_step(jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[1.0, 0], [1, 0], [0, 1]]), "diagonal")
    >>> mixture.means.tolist(), mixture.covariances.tolist()
    ([[1.0], [9.0]], [[1.0], [0.0]])
    """
    chex.assert_rank([points, responsibilities], 2)
    # N_k = sum_n r_nk, mu_k = sum_n r_nk x_n / N_k
    counts = responsibilities.sum(axis=0)
    inverse_counts = jnp.reciprocal(jnp.maximum(counts, MIN_WEIGHT))
    means = responsibilities.T @ points * inverse_counts[:, None]

    # Sigma_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)^T / N_k
    def covariance(weights: jax.Array, mean: jax.Array) -> jax.Array:
        centered = points - mean[None, :]
        if covariance_type == "diagonal":
            return weights @ jnp.square(centered)
        return (weights[:, None] * centered).T @ centered

    covariances = jax.vmap(covariance)(responsibilities.T * inverse_counts[:, None], means)
    return GaussianMixture(counts * (1 / len(points)), means, covariances, jnp.int32(1))


def init_from_kmeans(
    key: Key, points: jax.Array, num_clusters: int, covariance_type: CovarianceType = "full"
) -> GaussianMixture:
    """Initialises a mixture by k-means (from k-means++), with the pooled within-cluster covariance for all components.

    Args:
      key: random key.
      points: `[N, D]`.
      num_clusters: K, from 1 to N.
      covariance_type: "full" or "diagonal".

    Raises:
      ConfigError: there are fewer points than clusters, or the covariance type is unknown.

    >>> mixture = init_from_kmeans(jax.random.key(0), jnp.array([[0.0], [2.0], [7.0], [9.0]]), 2, "diagonal")
    >>> sorted(mixture.means[:, 0].tolist()), mixture.covariances.tolist()
    ([1.0, 8.0], [[1.0], [1.0]])
    """
    _check_covariance_type(covariance_type)
    points = jnp.asarray(points)
    centers, _ = kmeans.lloyd(points, kmeans.kmeans_plus_plus(key, points, num_clusters))
    assignments = kmeans.assign(points, centers)
    weights = jax.nn.one_hot(assignments, num_clusters).mean(axis=0)
    residuals = points - centers[assignments]
    if covariance_type == "diagonal":
        pooled = jnp.square(residuals).mean(axis=0)
    else:
        pooled = residuals.T @ residuals * (1 / len(points))
    covariances = jnp.broadcast_to(pooled[None], (num_clusters, *pooled.shape))
    return GaussianMixture(weights, centers, covariances, jnp.int32(0))


def em(
    points: jax.Array,
    mixture: GaussianMixture,
    *,
    regularization: chex.Numeric = 1e-3,
    max_iterations: int = 100,
    tolerance: chex.Numeric = 1e-4,
) -> tuple[GaussianMixture, jax.Array]:
    """Expectation maximisation (Dempster et al., 1977) from an initial mixture until convergence.

    Args:
      points: `[N, D]`.
      mixture: initial parameters; their covariances say whether they are full or diagonal.
      regularization: added to all variances; may be traced.
      max_iterations: upper limit.
      tolerance: stops after an iteration that raises the mean log likelihood by less than this, in nats.

    Returns:
      `(mixture, log_likelihood)`: the final parameters and their mean log likelihood, in nats.

    >>> points = jnp.array([[0.0], [2.0], [7.0], [9.0]])
    >>> initial = GaussianMixture(jnp.full(2, 0.5), jnp.array([[0.0], [9.0]]), jnp.ones((2, 1)), jnp.int32(0))
    >>> mixture, _ = jax.jit(em)(points, initial)
    >>> mixture.means.round(1).tolist()
    [[1.0], [8.0]]
    """
    points = jnp.asarray(points)
    covariance_type: CovarianceType = "diagonal" if mixture.covariances.ndim == 2 else "full"

    def improving(carry: chex.ArrayTree) -> jax.Array:
        _, _, _, before, after, iteration = carry
        return (iteration < max_iterations) & (after - before >= tolerance)

    def iterate(carry: chex.ArrayTree) -> chex.ArrayTree:
        _, responsibilities, steps, _, before, iteration = carry
        # M-step, then the E-step, which also gives the likelihood of the new parameters.
        mixture = m_step(points, responsibilities, covariance_type)._replace(steps=steps + 1)
        log_likelihood, responsibilities = e_step(mixture, points, regularization)
        return mixture, responsibilities, mixture.steps, before, log_likelihood.mean(), iteration + 1

    log_likelihood, responsibilities = e_step(mixture, points, regularization)
    initial = (mixture, responsibilities, mixture.steps, -jnp.inf, log_likelihood.mean(), 0)
    fitted, _, _, _, log_likelihood, _ = jax.lax.while_loop(improving, iterate, initial)
    return fitted, log_likelihood


def fit(
    key: Key,
    points: jax.Array,
    num_clusters: int,
    *,
    covariance_type: CovarianceType = "full",
    regularization: chex.Numeric = 1e-3,
    num_restarts: int = 1,
    max_iterations: int = 100,
) -> tuple[GaussianMixture, jax.Array]:
    """Runs EM from several k-means initialisations and keeps the mixture of the highest mean log likelihood.

    Args:
      key: random key.
      points: `[N, D]`.
      num_clusters: K, from 1 to N.
      covariance_type: "full" or "diagonal".
      regularization: added to all variances; may be traced.
      num_restarts: initialisations, at least 1.
      max_iterations: upper limit for each run of EM.

    Returns:
      `(mixture, log_likelihood)`, as `em` returns them.

    Raises:
      ConfigError: there are fewer points than clusters, no initialisation, or an unknown covariance type; without
        regularization (and unless traced), a column of the points is constant, so no density is finite.

    >>> mixture, _ = jax.eval_shape(lambda key: fit(key, jnp.ones((5, 2)), 3), jax.random.key(0))
    >>> mixture.covariances.shape
    (3, 2, 2)
    """
    check_positive(num_restarts=num_restarts)
    check_columns_vary(points, regularization)
    points = jnp.asarray(points)

    def run(key: Key) -> tuple[GaussianMixture, jax.Array]:
        initial = init_from_kmeans(key, points, num_clusters, covariance_type)
        return em(points, initial, regularization=regularization, max_iterations=max_iterations)

    fitted, log_likelihood = jax.lax.map(run, jax.random.split(key, num_restarts))
    # A restart that diverged is never the best.
    best = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood).argmax()
    return jax.tree.map(lambda leaf: leaf[best], fitted), log_likelihood[best]


def check_columns_vary(points: jax.Array | np.ndarray, regularization: chex.Numeric) -> None:
    """Checks that no column of the points is constant, unless regularization gives it a variance or they are traced.

    Args:
      points: float `[N, D]`.
      regularization: added to the variances.

    Raises:
      ConfigError: a column is constant and there is no regularization.

    >>> check_columns_vary(np.array([[0.0, 1.0], [2.0, 1.0]]), regularization=1e-3)
    """
    if isinstance(points, jax.core.Tracer) or isinstance(regularization, jax.core.Tracer) or regularization > 0:
        return
    constant = np.flatnonzero(np.ptp(np.asarray(points), axis=0) == 0)
    if len(constant):
        problem = f"column {constant[0]} of the points is constant (one of {len(constant)})"
        remedy = "remove such columns, or set regularization above 0"
        raise ConfigError(f"{problem}, so a Gaussian has no density there; {remedy}")


def assign(mixture: GaussianMixture, points: jax.Array, regularization: chex.Numeric = 1e-3) -> jax.Array:
    """Finds the index int `[N]` of the most probable component for each point `[N, D]`.

    Args:
      mixture: the fitted mixture of K components.
      points: float `[N, D]`.
      regularization: added to the variances; may be traced.

    >>> mixture = GaussianMixture(jnp.full(2, 0.5), jnp.array([[0.0], [9.0]]), jnp.ones((2, 1)), jnp.int32(0))
    >>> assign(mixture, jnp.array([[1.0], [8.0]])).tolist()
    [0, 1]
    """
    return log_joint(mixture, points, regularization).argmax(axis=1)


def stepwise_em(
    num_clusters: int,
    *,
    covariance_type: CovarianceType = "full",
    preprocess: tasks.Preprocess | None = None,
    regularization: chex.Numeric = 1e-3,
    step_exponent: chex.Numeric = 0.7,
) -> Learner:
    """Learner of a Gaussian mixture by stepwise (online) EM, one batch at a time (Cappé & Moulines, 2009).

    Step t = 0, 1, ... interpolates from the current mixture to the M-step on the batch, with step size
    `(t + 2) ** -step_exponent`. With an exponent of 0 and the whole dataset as the batch, this is EM.

    `update` and `evaluate` report "loss", the negative log likelihood in nats. The outputs of `evaluate` are
    "assignments" int32 `[B]` and, if the batch has them, "targets" `[B]`. `predict` returns assignments.

    Args:
      num_clusters: K, at least 1.
      covariance_type: "full" or "diagonal".
      preprocess: elementwise function of the inputs `[B, ...]`, which are then flattened; None converts to float32.
      regularization: added to all variances; may be traced.
      step_exponent: above 0.5 and at most 1 where batches differ; may be traced.

    Raises:
      ConfigError: `num_clusters` is below 1, or the covariance type is unknown; while tracing, `init` receives fewer
        examples than clusters.

    >>> learner = stepwise_em(2, covariance_type="diagonal")
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), {"inputs": jnp.zeros((5, 3))})
    >>> state.means.shape, state.covariances.shape
    ((2, 3), (2, 3))
    """
    check_positive(num_clusters=num_clusters)
    _check_covariance_type(covariance_type)

    def init(key: Key, examples: Batch) -> GaussianMixture:
        return init_from_kmeans(key, kmeans.as_points(examples["inputs"], preprocess), num_clusters, covariance_type)

    def update(state: GaussianMixture, batch: Batch, key: Key) -> tuple[GaussianMixture, Metrics]:
        points = kmeans.as_points(batch["inputs"], preprocess)
        # 1. E-step on the batch
        log_likelihood, responsibilities = e_step(state, points, regularization)
        # 2. M-step on the batch
        estimate = m_step(points, responsibilities, covariance_type)
        # 3. Stochastic approximation: s <- (1 - gamma_t) s + gamma_t s(batch), for the expected moments s
        step_size = jnp.power(state.steps.astype(jnp.float32) + 2.0, -jnp.asarray(step_exponent, jnp.float32))
        return interpolate_moments(state, estimate, step_size), {"loss": -log_likelihood.mean()}

    def evaluate(state: GaussianMixture, batch: Batch, key: Key) -> Evaluation:
        joint = log_joint(state, kmeans.as_points(batch["inputs"], preprocess), regularization)
        outputs = {"assignments": joint.argmax(axis=1).astype(jnp.int32)}
        return Evaluation({"loss": -jax.scipy.special.logsumexp(joint, axis=1)}, outputs | tasks.target_outputs(batch))

    def predict(state: GaussianMixture, inputs: Batch, key: Key) -> jax.Array:
        return assign(state, kmeans.as_points(inputs, preprocess), regularization)

    return Learner(init, update, evaluate, predict)


def interpolate_moments(old: GaussianMixture, new: GaussianMixture, step_size: jax.Array) -> GaussianMixture:
    """Finds the mixture whose weighted raw moments are `(1 - step_size)` times the old plus `step_size` times the new.

    Args:
      old: current parameters; the result has done one step more.
      new: the estimate from a batch, with covariances of the same type.
      step_size: gamma `[]`, in [0, 1].

    >>> old, new = (m_step(jnp.array([[x - 1], [x + 1]]), jnp.ones((2, 1)), "diagonal") for x in (0.0, 4.0))
    >>> mixed = interpolate_moments(old, new, jnp.float32(0.5))
    >>> mixed.means.tolist(), mixed.covariances.tolist()
    ([[2.0]], [[5.0]])
    """
    weights = (1 - step_size) * old.weights + step_size * new.weights
    fraction = step_size * new.weights * jnp.reciprocal(jnp.maximum(weights, MIN_WEIGHT))  # of the new, per component
    shift = new.means - old.means
    means = old.means + fraction[:, None] * shift
    # Central moments, not raw second moments, whose differences cancel in float32.
    if old.covariances.ndim == 2:
        between, fraction = jnp.square(shift), fraction[:, None]
    else:
        between, fraction = shift[:, :, None] * shift[:, None, :], fraction[:, None, None]
    covariances = (1 - fraction) * old.covariances + fraction * new.covariances + fraction * (1 - fraction) * between
    return GaussianMixture(weights, means, covariances, old.steps + 1)


def _check_covariance_type(covariance_type: str) -> None:
    if covariance_type not in ("full", "diagonal"):
        raise ConfigError(f"covariance_type: {covariance_type!r} is neither 'full' nor 'diagonal'")
