"""Gaussian mixtures: every step of EM against scikit-learn from the same start, and batches against the whole."""

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
from foldax.learners.clustering.mixture import Mixture

KEY = jax.random.key(0)
POINTS = load_iris().data.astype(np.float32)
KINDS = ["full", "diagonal"]
REGULARIZATION = 1e-3


@functools.cache
def started(covariance, clusters=3):
    return jax.jit(mixture.start, static_argnums=(2, 3))(KEY, POINTS, clusters, covariance)


def scikit(begin, iterations):
    """scikit-learn's mixture after so many steps of EM from this start."""
    covariances = np.asarray(begin.covariances, np.float64)
    full = covariances.ndim == 3
    regular = covariances + REGULARIZATION * (np.eye(covariances.shape[-1]) if full else 1.0)
    model = GaussianMixture(
        len(begin.weights),
        covariance_type="full" if full else "diag",
        reg_covar=REGULARIZATION,
        max_iter=iterations,
        tol=0,
        weights_init=np.asarray(begin.weights, np.float64) / np.asarray(begin.weights, np.float64).sum(),
        means_init=np.asarray(begin.means, np.float64),
        precisions_init=np.linalg.inv(regular) if full else 1 / regular,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(POINTS.astype(np.float64))


@pytest.mark.parametrize("covariance", KINDS)
def test_every_step_is_that_of_scikit_learn_from_the_same_start(covariance):
    state = started(covariance)

    @jax.jit
    def step(state):
        _, members = mixture.expectation(state, POINTS, REGULARIZATION)
        state = mixture.maximization(POINTS, members, covariance)
        return state, mixture.expectation(state, POINTS, REGULARIZATION)[0].mean()

    likelihoods = []
    for iterations in range(1, 9):
        state, likelihood = step(state)
        theirs = scikit(started(covariance), iterations)
        assert float(likelihood) == pytest.approx(theirs.score(POINTS.astype(np.float64)), abs=2e-4)
        likelihoods.append(float(likelihood))
    assert np.diff(likelihoods).min() > -1e-5
    np.testing.assert_allclose(state.means, theirs.means_, atol=2e-3)
    np.testing.assert_allclose(state.weights, theirs.weights_, atol=1e-3)
    regular = REGULARIZATION * (np.eye(4) if covariance == "full" else np.ones(4))
    np.testing.assert_allclose(state.covariances + regular[None], theirs.covariances_, atol=2e-3)


@pytest.mark.parametrize("covariance", KINDS)
def test_densities_are_those_of_normal_distributions(covariance):
    state = started(covariance)
    density = 0.0
    for weight, mean, spread in zip(*map(np.asarray, state[:3])):
        spread = np.diag(spread) if spread.ndim == 1 else spread
        spread = spread.astype(np.float64) + REGULARIZATION * np.eye(4)
        density = density + weight * stats.multivariate_normal(mean, spread).pdf(POINTS)
    likelihood, members = mixture.expectation(state, POINTS, REGULARIZATION)
    np.testing.assert_allclose(likelihood, np.log(density), atol=1e-3)
    np.testing.assert_allclose(members.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(mixture.assign(state, POINTS), members.argmax(axis=1))


def test_inverse_roots_are_those_of_cholesky():
    rows = np.random.RandomState(0).randn(3, 12, 8).astype(np.float32)
    matrices = rows.transpose(0, 2, 1) @ rows + 0.01 * np.eye(8, dtype=np.float32)[None]
    inverse, volume = jax.vmap(mixture.inverse_root)(matrices)
    np.testing.assert_allclose(inverse, np.linalg.inv(np.linalg.cholesky(matrices)), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(volume, np.linalg.slogdet(matrices)[1], rtol=1e-4)


def test_em_ends_where_it_gains_nothing_and_fit_keeps_the_best_start():
    found, likelihood = jax.jit(lambda key: mixture.fit(key, jnp.asarray(POINTS), 3, restarts=4))(KEY)
    theirs = GaussianMixture(3, reg_covar=REGULARIZATION, n_init=10, random_state=0).fit(POINTS).score(POINTS)
    assert float(likelihood) > theirs - 5e-3
    _, after = mixture.em(jnp.asarray(POINTS), found, iterations=1)
    assert abs(float(after) - float(likelihood)) < 2e-4


def test_a_batch_that_is_the_whole_split_is_em_itself():
    learner = mixture.stepwise(3, decay=0.0, regularization=REGULARIZATION)
    state = learner.init(KEY, {"inputs": POINTS})
    update = jax.jit(learner.update)
    for _ in range(5):
        state, _ = update(state, {"inputs": POINTS}, KEY)
    values = learner.evaluate(state, {"inputs": POINTS, "targets": load_iris().target}, KEY)
    theirs = scikit(learner.init(KEY, {"inputs": POINTS}), 5).score(POINTS.astype(np.float64))
    assert -float(values["loss"].mean()) == pytest.approx(theirs, abs=2e-4)
    np.testing.assert_array_equal(values["assignments"], learner.predict(state, POINTS, KEY))
    assert int(state.steps) == 5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0), covariance=st.sampled_from(KINDS))
def test_blending_is_blending_of_raw_moments(seed, share, covariance):
    rng = np.random.RandomState(seed)

    def random():
        weights = rng.dirichlet(np.ones(3))
        roots = rng.randn(3, 2, 2)
        spreads = roots @ roots.transpose(0, 2, 1)
        spreads = spreads if covariance == "full" else np.diagonal(spreads, axis1=1, axis2=2)
        return Mixture(*(jnp.asarray(x, jnp.float32) for x in (weights, rng.randn(3, 2), spreads)), jnp.int32(1))

    def moments(state):
        weights, means, spreads = (np.asarray(x, np.float64) for x in state[:3])
        outer = means**2 if covariance == "diagonal" else means[:, :, None] * means[:, None, :]
        wide = weights.reshape(3, *[1] * (outer.ndim - 1))
        return weights, weights[:, None] * means, wide * (spreads + outer)

    old, new = random(), random()
    mixed = moments(mixture.blended(old, new, jnp.float32(share)))
    for ours, before, after in zip(mixed, moments(old), moments(new)):
        np.testing.assert_allclose(ours, (1 - share) * before + share * after, rtol=1e-4, atol=1e-4)


def test_batches_come_near_the_likelihood_of_all_at_once():
    learner = mixture.stepwise(3)
    state, update = learner.init(KEY, {"inputs": POINTS}), jax.jit(learner.update)
    for index in range(100):
        rows = np.random.RandomState(index).choice(len(POINTS), 50, replace=False)
        state, _ = update(state, {"inputs": POINTS[rows]}, KEY)
    likelihood = -float(learner.evaluate(state, {"inputs": POINTS}, KEY)["loss"].mean())
    _, best = mixture.em(jnp.asarray(POINTS), started("full"))
    assert likelihood > float(best) - 0.1


@pytest.mark.parametrize("covariance", KINDS)
def test_points_that_are_all_equal_make_a_finite_mixture(covariance):
    found, likelihood = mixture.fit(KEY, jnp.ones((7, 3)), 2, covariance=covariance)
    exact = -0.5 * 3 * np.log(2 * np.pi * REGULARIZATION)
    assert float(likelihood) == pytest.approx(exact, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in found)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mixture.stepwise(0), "1 or more"),
        (lambda: mixture.stepwise(2, covariance="round"), "'round' is neither"),
        (lambda: mixture.fit(KEY, jnp.ones((3, 2)), 4), "from 1 to the number of points, 3"),
        (lambda: mixture.fit(KEY, jnp.ones((3, 2)), 2, restarts=0), "restarts"),
        (lambda: mixture.fit(KEY, jnp.asarray([[0.0, 1], [1, 1]]), 2, regularization=0.0), "column 1 .* is constant"),
    ],
)
def test_wrong_numbers_say_so(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
