"""k-means against scikit-learn from the same initial centres, and minibatch k-means against running means."""

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
def test_lloyd_converges_to_the_centres_of_scikit_learn_from_the_same_initial_ones(seed):
    initial = kmeans.kmeans_plus_plus(jax.random.key(seed), jnp.asarray(POINTS), 10)
    centers, inertia = jax.jit(kmeans.lloyd)(POINTS, initial)
    theirs = KMeans(10, init=np.asarray(initial), n_init=1, algorithm="lloyd", tol=0).fit(POINTS)
    assert float(inertia) == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(centers, theirs.cluster_centers_, rtol=1e-3, atol=1e-3)


def test_restarts_reach_the_inertia_of_scikit_learn():
    _, inertia = jax.jit(lambda key: kmeans.fit(key, jnp.asarray(POINTS), 10, num_restarts=10))(KEY)
    theirs = KMeans(10, n_init=10, random_state=0).fit(POINTS).inertia_
    assert float(inertia) == pytest.approx(theirs, rel=0.005)


def test_kmeans_plus_plus_draws_distant_points():
    """With three distant groups of equal size, the initial centres hold one point of each."""
    groups = np.repeat(np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], np.float32), 20, axis=0)
    groups = groups + np.random.RandomState(0).randn(60, 2).astype(np.float32) * 0.01
    initial = jax.vmap(lambda key: kmeans.kmeans_plus_plus(key, groups, 3))(jax.random.split(KEY, 20))
    for centers in np.asarray(initial):
        assert len(np.unique(np.round(centers / 100), axis=0)) == 3


def test_clusters_far_from_the_origin_are_found():
    """Two clusters of width 0.1, one apart; at 10,000 float32 has steps of 0.001."""
    offset = 10_000
    truth = np.repeat([0, 1], 200)
    points = np.random.RandomState(0).randn(400, 2) * 0.1 + truth[:, None]
    centers, inertia = jax.jit(lambda points: kmeans.fit(KEY, points, 2, num_restarts=2))(np.float32(points + offset))
    assignments = np.asarray(kmeans.assign(np.float32(points + offset), centers))
    assert abs((assignments == truth).mean() - 0.5) == 0.5  # all right, but for the order of the clusters
    means = [points[truth == label].mean(axis=0) for label in (0, 1)]
    assert float(inertia) == pytest.approx(sum(((points[truth == k] - means[k]) ** 2).sum() for k in (0, 1)), rel=1e-2)
    learner = kmeans.minibatch_kmeans(2)
    state = learner.init(KEY, {"inputs": np.float32(points + offset)})
    for rows in np.random.RandomState(0).randint(400, size=(20, 100)):
        state, _ = learner.update(state, {"inputs": np.float32(points + offset)[rows]}, KEY)
    np.testing.assert_allclose(
        np.sort(np.asarray(state.centers)[:, 0]) - offset, np.sort(np.array(means)[:, 0]), atol=0.05
    )


def test_equal_points_give_finite_centres():
    centers, inertia = kmeans.fit(KEY, jnp.ones((7, 3)), 3, num_restarts=2)
    assert float(inertia) == 0.0
    np.testing.assert_array_equal(centers, np.ones((3, 3)))


def test_a_minibatch_centre_is_the_mean_of_all_points_assigned_to_it():
    learner = learners.kmeans.minibatch_kmeans(1)
    state = learner.init(KEY, {"inputs": POINTS})
    for index in range(4):
        state, _ = learner.update(state, {"inputs": POINTS[index * 150 : (index + 1) * 150]}, KEY)
    np.testing.assert_allclose(state.centers[0], POINTS.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_minibatches_approach_the_inertia_of_the_whole_dataset():
    learner = kmeans.minibatch_kmeans(10)
    state, update = learner.init(KEY, {"inputs": POINTS}), jax.jit(learner.update)
    best = KMeans(10, n_init=10, random_state=0).fit(POINTS).inertia_
    # The start is the best of ten; a single one of k-means++ has 1.5 times the inertia.
    assert float(kmeans.squared_distances(POINTS, state.centers).min(axis=1).sum()) < 1.02 * best
    for index in range(60):
        rows = np.random.RandomState(index).choice(len(POINTS), 100, replace=False)
        state, _ = update(state, {"inputs": POINTS[rows]}, KEY)
    result = learner.evaluate(state, {"inputs": POINTS, "targets": load_digits().target[:600]}, KEY)
    assert best * 0.999 < float(result.metrics["loss"].sum()) < 1.02 * best
    np.testing.assert_array_equal(result.outputs["assignments"], learner.predict(state, POINTS, KEY))
    assert kmeans.clustering_scores({k: np.asarray(v) for k, v in result.outputs.items()})["adjusted_rand_index"] > 0.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans.minibatch_kmeans(0), "1 or more"),
        (lambda: kmeans.kmeans_plus_plus(KEY, jnp.ones((3, 2)), 4), "from 1 to the number of points, 3"),
        (lambda: kmeans.fit(KEY, jnp.ones((3, 2)), 2, num_restarts=0), "num_restarts"),
    ],
)
def test_numbers_out_of_range_are_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
