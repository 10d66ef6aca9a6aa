"""k-means: Lloyd's algorithm on a whole dataset, k-means++ initialisation, and the minibatch k-means learner.

All functions are pure and may be jitted and vmapped. Points are float `[N, D]`, centres `[K, D]`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_positive
from foldax.learner import Batch, Evaluation, Key, Learner, Metrics
from foldax.learners import tasks


class KMeansState(NamedTuple):
    """Training state of minibatch k-means.

    Attributes:
      centers: `[K, D]`.
      counts: float32 `[K]`, examples assigned to each centre so far.
    """

    centers: jax.Array
    counts: jax.Array


def squared_distances(points: jax.Array, centers: jax.Array) -> jax.Array:
    """Computes the squared Euclidean distances `[N, K]` between points `[N, D]` and centres `[K, D]`.

    >>> squared_distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[25.0, 1.0]]
    """
    chex.assert_rank([points, centers], 2)
    # Relative to the mean centre: far from the origin, the squared norms would cancel in float32.
    origin = centers.mean(axis=0, keepdims=True)
    points, centers = points - origin, centers - origin
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, which rounding can make slightly negative.
    squared_norms = jnp.square(points).sum(axis=1)[:, None] + jnp.square(centers).sum(axis=1)[None, :]
    return jnp.maximum(squared_norms - 2 * (points @ centers.T), 0.0)


def kmeans_plus_plus(key: Key, points: jax.Array, num_clusters: int) -> jax.Array:
    """Draws initial centres `[K, D]` from the points by k-means++ (Arthur & Vassilvitskii, 2007).

    Args:
      key: random key.
      points: `[N, D]`.
      num_clusters: K, from 1 to N.

    Raises:
      ConfigError: there are fewer points than clusters.

    >>> points = jnp.array([[0.0], [0.1], [9.0]])
    >>> sorted(kmeans_plus_plus(jax.random.key(0), points, 2)[:, 0].round().tolist())
    [0.0, 9.0]
    """
    if not 1 <= num_clusters <= len(points):
        raise ConfigError(f"num_clusters: {num_clusters} must be from 1 to the number of points, {len(points)}")
    points = jnp.asarray(points)
    first_key, key = jax.random.split(key)
    # 1. The first centre is a uniformly random point.
    first = points[jax.random.randint(first_key, (), 0, len(points))]
    nearest = squared_distances(points, first[None])[:, 0]
    centers = jnp.zeros((num_clusters, points.shape[1]), points.dtype).at[0].set(first)

    # 2. Each further centre is a random point, in proportion to D(x)^2, the squared distance to its nearest centre.
    def add_center(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centers, nearest = carry
        weights = jnp.where(nearest.sum() > 0, nearest, 1.0)  # uniform where all points coincide with centres
        center = points[jax.random.categorical(jax.random.fold_in(key, index), jnp.log(weights))]
        nearest = jnp.minimum(nearest, squared_distances(points, center[None])[:, 0])
        return centers.at[index].set(center), nearest

    return jax.lax.fori_loop(1, num_clusters, add_center, (centers, nearest))[0]


def lloyd(points: jax.Array, centers: jax.Array, max_iterations: int = 300) -> tuple[jax.Array, jax.Array]:
    """Lloyd's algorithm (1982): alternates assignments and means until no assignment changes.

    Args:
      points: `[N, D]`.
      centers: initial centres `[K, D]`. A centre that loses all of its points stays where it is.
      max_iterations: upper limit.

    Returns:
      `(centers, inertia)`: centres `[K, D]`, and the sum of squared distances of the points to their nearest centre.

    >>> centers, inertia = lloyd(jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[0.0], [8.0]]))
    >>> centers[:, 0].tolist(), inertia.item()
    ([1.0, 9.0], 2.0)
    """
    points, centers, num_clusters = jnp.asarray(points), jnp.asarray(centers), len(centers)
    # Relative to an initial centre, so that sums over many points far from the origin keep their precision.
    origin = centers[:1]
    points, centers = points - origin, centers - origin

    def changed(carry: chex.ArrayTree) -> jax.Array:
        _, assignments, previous, iteration = carry
        return (iteration < max_iterations) & (assignments != previous).any()

    def iterate(carry: chex.ArrayTree) -> chex.ArrayTree:
        centers, assignments, _, iteration = carry
        # Update step: each centre becomes the mean of its points.
        members = jax.nn.one_hot(assignments, num_clusters, dtype=points.dtype)
        counts = members.sum(axis=0)[:, None]
        centers = jnp.where(counts > 0, members.T @ points * jnp.reciprocal(jnp.maximum(counts, 1)), centers)
        # Assignment step: each point goes to its nearest centre.
        return centers, assign(points, centers), assignments, iteration + 1

    # No assignment equals -1, so there is at least one iteration.
    initial = (centers, assign(points, centers), jnp.full(len(points), -1), 0)
    centers, *_ = jax.lax.while_loop(changed, iterate, initial)
    return centers + origin, squared_distances(points, centers).min(axis=1).sum()


def assign(points: jax.Array, centers: jax.Array) -> jax.Array:
    """Finds the index int `[N]` of the nearest of the centres `[K, D]` for each point `[N, D]`.

    >>> assign(jnp.array([[0.0], [8.0]]), jnp.array([[1.0], [9.0]])).tolist()
    [0, 1]
    """
    return squared_distances(points, centers).argmin(axis=1)


def fit(
    key: Key, points: jax.Array, num_clusters: int, num_restarts: int = 10, max_iterations: int = 300
) -> tuple[jax.Array, jax.Array]:
    """Runs k-means from several k-means++ initialisations and keeps the result of the lowest inertia.

    Args:
      key: random key.
      points: `[N, D]`.
      num_clusters: K, from 1 to N.
      num_restarts: initialisations, at least 1.
      max_iterations: upper limit of Lloyd's iterations from each of them.

    Returns:
      `(centers, inertia)`, as `lloyd` returns them.

    Raises:
      ConfigError: there are fewer points than clusters, or no initialisation.

    >>> centers, _ = fit(jax.random.key(0), jnp.array([[0.0], [2.0], [9.0]]), 2, num_restarts=2)
    >>> sorted(centers[:, 0].tolist())
    [1.0, 9.0]
    """
    check_positive(num_restarts=num_restarts)
    points = jnp.asarray(points)

    def run(key: Key) -> tuple[jax.Array, jax.Array]:
        return lloyd(points, kmeans_plus_plus(key, points, num_clusters), max_iterations)

    centers, inertia = jax.lax.map(run, jax.random.split(key, num_restarts))
    best = inertia.argmin()
    return centers[best], inertia[best]


def minibatch_kmeans(
    num_clusters: int, *, preprocess: tasks.Preprocess | None = None, num_restarts: int = 10
) -> Learner:
    """Minibatch k-means (Sculley, 2010), initialised from the examples that `init` receives.

    The initial centres are the best of `num_restarts` starts of k-means++, by the inertia after ten iterations of
    Lloyd's algorithm: centres that minibatches move seldom leave the basin of a bad start.

    `update` and `evaluate` report "loss", the squared distance to the nearest centre. The outputs of `evaluate` are
    "assignments" int32 `[B]` and, if the batch has them, "targets" `[B]`. `predict` returns assignments.

    Args:
      num_clusters: K, at least 1.
      preprocess: elementwise function of the inputs `[B, ...]`, which are then flattened; None converts to float32.
      num_restarts: starts of k-means++, at least 1.

    Raises:
      ConfigError: `num_clusters` or `num_restarts` is below 1; while tracing, `init` receives fewer examples than
        clusters.

    >>> learner = minibatch_kmeans(2)
    >>> batch = {"inputs": jnp.array([[0.0], [2.0], [9.0]])}
    >>> state = learner.init(jax.random.key(0), batch)
    >>> learner.predict(state, batch["inputs"], jax.random.key(1)).shape
    (3,)
    """
    check_positive(num_clusters=num_clusters, num_restarts=num_restarts)

    def init(key: Key, examples: Batch) -> KMeansState:
        points = as_points(examples["inputs"], preprocess)
        centers, _ = fit(key, points, num_clusters, num_restarts, max_iterations=10)
        return KMeansState(centers, jnp.zeros(num_clusters))

    def update(state: KMeansState, batch: Batch, key: Key) -> tuple[KMeansState, Metrics]:
        # 1. Assign the batch to the nearest centres.
        points = as_points(batch["inputs"], preprocess)
        distances = squared_distances(points, state.centers)
        members = jax.nn.one_hot(distances.argmin(axis=1), num_clusters)
        # 2. Per-centre learning rate 1 / count: each centre stays the mean of all points ever assigned to it.
        counts = state.counts + members.sum(axis=0)
        origin = state.centers.mean(axis=0, keepdims=True)
        steps = members.T @ (points - origin) - members.sum(axis=0)[:, None] * (state.centers - origin)
        centers = state.centers + steps * jnp.reciprocal(jnp.maximum(counts, 1))[:, None]
        return KMeansState(centers, counts), {"loss": distances.min(axis=1).mean()}

    def evaluate(state: KMeansState, batch: Batch, key: Key) -> Evaluation:
        distances = squared_distances(as_points(batch["inputs"], preprocess), state.centers)
        outputs = {"assignments": distances.argmin(axis=1).astype(jnp.int32)}
        return Evaluation({"loss": distances.min(axis=1)}, outputs | tasks.target_outputs(batch))

    def predict(state: KMeansState, inputs: Batch, key: Key) -> jax.Array:
        return assign(as_points(inputs, preprocess), state.centers)

    return Learner(init, update, evaluate, predict)


def as_points(inputs: Batch, preprocess: tasks.Preprocess | None) -> jax.Array:
    """Preprocesses inputs `[B, ...]`, by default by conversion to float32, and flattens them to points `[B, D]`."""
    x = jnp.asarray(inputs, jnp.float32) if preprocess is None else preprocess(inputs)
    return x.reshape(x.shape[0], -1)


def clustering_scores(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Scores the agreement of clusters with classes; usable as `Experiment.summarize`.

    Args:
      values: "assignments" and "targets", int `[N]`.

    Returns:
      "adjusted_rand_index" (Hubert & Arabie, 1985: 1 for equal partitions, 0 expected by chance) and
      "normalized_mutual_information" (0 to 1, normalised by the mean entropy), as scikit-learn computes them.

    >>> scores = clustering_scores({"assignments": np.array([1, 1, 0]), "targets": np.array([0, 0, 1])})
    >>> scores["adjusted_rand_index"]
    1.0
    """
    from sklearn import metrics

    targets, assignments = values["targets"], values["assignments"]
    adjusted_rand_index = metrics.adjusted_rand_score(targets, assignments)
    information = metrics.normalized_mutual_info_score(targets, assignments)
    return {"adjusted_rand_index": float(adjusted_rand_index), "normalized_mutual_information": float(information)}
