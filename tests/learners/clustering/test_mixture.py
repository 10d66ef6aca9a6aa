"""Gaussian mixtures: every EM step against scikit-learn from the same initial one, and stepwise against full EM."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from foldax.errors import ConfigError
from foldax.learners.clustering import mixture

KEY = jax.random.key(0)
POINTS = load_iris().data.astype(np.float32)
COVARIANCE_TYPES = ["full", "diagonal"]
REGULARIZATION = 1e-3


@functools.cache
def initial_mixture(covariance_type, num_clusters=3):
    return jax.jit(mixture.init_from_kmeans, static_argnums=(2, 3))(KEY, POINTS, num_clusters, covariance_type)


def scikit_learn_em(initial, iterations):
    """scikit-learn's mixture after so many steps of EM from an initial mixture."""
    covariances = np.asarray(initial.covariances, np.float64)
    full = covariances.ndim == 3
    regular = covariances + REGULARIZATION * (np.eye(covariances.shape[-1]) if full else 1.0)
    model = GaussianMixture(
        len(initial.weights),
        covariance_type="full" if full else "diag",
        reg_covar=REGULARIZATION,
        max_iter=iterations,
        tol=0,
        weights_init=np.asarray(initial.weights, np.float64) / np.asarray(initial.weights, np.float64).sum(),
        means_init=np.asarray(initial.means, np.float64),
        precisions_init=np.linalg.inv(regular) if full else 1 / regular,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(POINTS.astype(np.float64))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_em_step_equals_that_of_scikit_learn(covariance_type):
    state = initial_mixture(covariance_type)

    @jax.jit
    def step(state):
        _, responsibilities = mixture.e_step(state, POINTS, REGULARIZATION)
        state = mixture.m_step(POINTS, responsibilities, covariance_type)
        return state, mixture.e_step(state, POINTS, REGULARIZATION)[0].mean()

    likelihoods = []
    for iterations in range(1, 9):
        state, likelihood = step(state)
        theirs = scikit_learn_em(initial_mixture(covariance_type), iterations)
        assert float(likelihood) == pytest.approx(theirs.score(POINTS.astype(np.float64)), abs=2e-4)
        likelihoods.append(float(likelihood))
    assert np.diff(likelihoods).min() > -1e-5
    np.testing.assert_allclose(state.means, theirs.means_, atol=2e-3)
    np.testing.assert_allclose(state.weights, theirs.weights_, atol=1e-3)
    regular = REGULARIZATION * (np.eye(4) if covariance_type == "full" else np.ones(4))
    np.testing.assert_allclose(state.covariances + regular[None], theirs.covariances_, atol=2e-3)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_densities_equal_those_of_scipy(covariance_type):
    state = initial_mixture(covariance_type)
    density = 0.0
    for weight, mean, covariance in zip(*map(np.asarray, state[:3])):
        covariance = np.diag(covariance) if covariance.ndim == 1 else covariance
        covariance = covariance.astype(np.float64) + REGULARIZATION * np.eye(4)
        density = density + weight * stats.multivariate_normal(mean, covariance).pdf(POINTS)
    log_likelihood, responsibilities = mixture.e_step(state, POINTS, REGULARIZATION)
    np.testing.assert_allclose(log_likelihood, np.log(density), atol=1e-3)
    np.testing.assert_allclose(responsibilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(mixture.assign(state, POINTS), responsibilities.argmax(axis=1))


def test_the_inverse_cholesky_factor_equals_that_of_lapack():
    rows = np.random.RandomState(0).randn(3, 12, 8).astype(np.float32)
    matrices = rows.transpose(0, 2, 1) @ rows + 0.01 * np.eye(8, dtype=np.float32)[None]
    inverse, log_det = jax.vmap(mixture.inverse_cholesky)(matrices)
    np.testing.assert_allclose(inverse, np.linalg.inv(np.linalg.cholesky(matrices)), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrices)[1], rtol=1e-4)


def test_em_converges_and_fit_keeps_the_best_restart():
    fitted, log_likelihood = jax.jit(lambda key: mixture.fit(key, jnp.asarray(POINTS), 3, num_restarts=4))(KEY)
    theirs = GaussianMixture(3, reg_covar=REGULARIZATION, n_init=10, random_state=0).fit(POINTS).score(POINTS)
    assert float(log_likelihood) > theirs - 5e-3
    _, after = mixture.em(jnp.asarray(POINTS), fitted, max_iterations=1)
    assert abs(float(after) - float(log_likelihood)) < 2e-4


def test_stepwise_em_on_the_whole_dataset_is_em():
    learner = mixture.stepwise_em(3, step_exponent=0.0, regularization=REGULARIZATION)
    state = learner.init(KEY, {"inputs": POINTS})
    update = jax.jit(learner.update)
    for _ in range(5):
        state, _ = update(state, {"inputs": POINTS}, KEY)
    result = learner.evaluate(state, {"inputs": POINTS, "targets": load_iris().target}, KEY)
    theirs = scikit_learn_em(learner.init(KEY, {"inputs": POINTS}), 5).score(POINTS.astype(np.float64))
    assert -float(result.metrics["loss"].mean()) == pytest.approx(theirs, abs=2e-4)
    np.testing.assert_array_equal(result.outputs["assignments"], learner.predict(state, POINTS, KEY))
    assert int(state.steps) == 5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), step_size=st.floats(0.0, 1.0), covariance_type=st.sampled_from(COVARIANCE_TYPES))
def test_interpolation_is_that_of_raw_moments(seed, step_size, covariance_type):
    rng = np.random.RandomState(seed)

    def random():
        weights = rng.dirichlet(np.ones(3))
        roots = rng.randn(3, 2, 2)
        covariances = roots @ roots.transpose(0, 2, 1)
        covariances = covariances if covariance_type == "full" else np.diagonal(covariances, axis1=1, axis2=2)
        return mixture.GaussianMixture(
            *(jnp.asarray(x, jnp.float32) for x in (weights, rng.randn(3, 2), covariances)), jnp.int32(1)
        )

    def moments(state):
        weights, means, covariances = (np.asarray(x, np.float64) for x in state[:3])
        outer = means**2 if covariance_type == "diagonal" else means[:, :, None] * means[:, None, :]
        factor = weights.reshape(3, *[1] * (outer.ndim - 1))
        return weights, weights[:, None] * means, factor * (covariances + outer)

    old, new = random(), random()
    mixed = moments(mixture.interpolate_moments(old, new, jnp.float32(step_size)))
    for ours, before, after in zip(mixed, moments(old), moments(new)):
        np.testing.assert_allclose(ours, (1 - step_size) * before + step_size * after, rtol=1e-4, atol=1e-4)


def test_stepwise_em_approaches_the_likelihood_of_full_em():
    learner = mixture.stepwise_em(3)
    state, update = learner.init(KEY, {"inputs": POINTS}), jax.jit(learner.update)
    for index in range(100):
        rows = np.random.RandomState(index).choice(len(POINTS), 50, replace=False)
        state, _ = update(state, {"inputs": POINTS[rows]}, KEY)
    likelihood = -float(learner.evaluate(state, {"inputs": POINTS}, KEY).metrics["loss"].mean())
    _, best = mixture.em(jnp.asarray(POINTS), initial_mixture("full"))
    assert likelihood > float(best) - 0.1


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_equal_points_give_a_finite_mixture(covariance_type):
    fitted, log_likelihood = mixture.fit(KEY, jnp.ones((7, 3)), 2, covariance_type=covariance_type)
    exact = -0.5 * 3 * np.log(2 * np.pi * REGULARIZATION)
    assert float(log_likelihood) == pytest.approx(exact, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in fitted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixture.stepwise_em(0), "1 or more"),
        (lambda: mixture.stepwise_em(2, covariance_type="round"), "'round' is neither"),
        (lambda: mixture.fit(KEY, jnp.ones((3, 2)), 4), "from 1 to the number of points, 3"),
        (lambda: mixture.fit(KEY, jnp.ones((3, 2)), 2, num_restarts=0), "num_restarts"),
        (lambda: mixture.fit(KEY, jnp.asarray([[0.0, 1], [1, 1]]), 2, regularization=0.0), "column 1 .* is constant"),
    ],
)
def test_numbers_out_of_range_are_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
