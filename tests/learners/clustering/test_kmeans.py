"""k-means against scikit-learn on the same starts, and batch by batch against the mean of all that was seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from foldax import learners
from foldax.errors import ConfigError
from foldax.learners.clustering import kmeans

KEY = jax.random.key(0)
POINTS = load_digits().data.astype(np.float32)[:600]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lloyd_ends_where_scikit_learn_does_from_the_same_start(seed):
    start = kmeans.plus_plus(jax.random.key(seed), jnp.asarray(POINTS), 10)
    centers, inertia = jax.jit(kmeans.lloyd)(POINTS, start)
    theirs = KMeans(10, init=np.asarray(start), n_init=1, algorithm="lloyd", tol=0).fit(POINTS)
    assert float(inertia) == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(centers, theirs.cluster_centers_, rtol=1e-3, atol=1e-3)


def test_restarts_find_what_scikit_learn_finds():
    _, inertia = jax.jit(lambda key: kmeans.fit(key, jnp.asarray(POINTS), 10, restarts=10))(KEY)
    theirs = KMeans(10, n_init=10, random_state=0).fit(POINTS).inertia_
    assert float(inertia) == pytest.approx(theirs, rel=0.005)


def test_plus_plus_draws_points_that_are_far_from_each_other():
    """Of three far groups of equal size, each start holds one point of each."""
    groups = np.repeat(np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], np.float32), 20, axis=0)
    groups = groups + np.random.RandomState(0).randn(60, 2).astype(np.float32) * 0.01
    starts = jax.vmap(lambda key: kmeans.plus_plus(key, groups, 3))(jax.random.split(KEY, 20))
    for start in np.asarray(starts):
        assert len(np.unique(np.round(start / 100), axis=0)) == 3


def test_points_that_are_all_equal_make_finite_clusters():
    centers, inertia = kmeans.fit(KEY, jnp.ones((7, 3)), 3, restarts=2)
    assert float(inertia) == 0.0
    np.testing.assert_array_equal(centers, np.ones((3, 3)))


def test_a_center_is_the_mean_of_all_that_it_has_seen():
    learner = learners.kmeans.minibatch(1)
    state = learner.init(KEY, {"inputs": POINTS})
    for index in range(4):
        state, _ = learner.update(state, {"inputs": POINTS[index * 150 : (index + 1) * 150]}, KEY)
    np.testing.assert_allclose(state.centers[0], POINTS.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_batches_come_near_the_inertia_of_all_at_once():
    learner = kmeans.minibatch(10)
    state, update = learner.init(KEY, {"inputs": POINTS}), jax.jit(learner.update)
    for index in range(60):
        rows = np.random.RandomState(index).choice(len(POINTS), 100, replace=False)
        state, _ = update(state, {"inputs": POINTS[rows]}, KEY)
    values = learner.evaluate(state, {"inputs": POINTS, "targets": load_digits().target[:600]}, KEY)
    best = KMeans(10, n_init=10, random_state=0).fit(POINTS).inertia_
    assert best * 0.999 < float(values["loss"].sum()) < 1.1 * best
    np.testing.assert_array_equal(values["assignments"], learner.predict(state, POINTS, KEY))
    assert kmeans.agreement({k: np.asarray(v) for k, v in values.items()})["adjusted_rand"] > 0.4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: kmeans.minibatch(0), "1 or more"),
        (lambda: kmeans.plus_plus(KEY, jnp.ones((3, 2)), 4), "from 1 to the number of points, 3"),
        (lambda: kmeans.fit(KEY, jnp.ones((3, 2)), 2, restarts=0), "restarts"),
    ],
)
def test_wrong_numbers_say_so(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
