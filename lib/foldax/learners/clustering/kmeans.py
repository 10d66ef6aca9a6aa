"""k-means: clusters of rows, whole splits at once or batch by batch, without any gradient.

Everything is pure and may be jitted and mapped. Points are float `[N, D]`, centres `[K, D]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError
from foldax.learner import Learner


class Clusters(NamedTuple):
    """What k-means learns.

    Attributes:
      centers: `[K, D]`.
      counts: float32 `[K]`, how many examples each has seen.
    """

    centers: jax.Array
    counts: jax.Array


def squared_distances(points: jax.Array, centers: jax.Array) -> jax.Array:
    """Returns the squared distances `[N, K]` of points and centres."""
    products = points @ centers.T
    lengths = jnp.square(points).sum(axis=1)[:, None] + jnp.square(centers).sum(axis=1)[None, :]
    return jnp.maximum(lengths - 2 * products, 0.0)


def plus_plus(key: jax.Array, points: jax.Array, num_clusters: int) -> jax.Array:
    """Returns centres `[K, D]` drawn from the points by k-means++ (Arthur & Vassilvitskii, 2007).

    Raises:
      ConfigError: there are fewer points than clusters.
    """
    points = _checked(points, num_clusters)
    first, key = jax.random.split(key)
    start = points[jax.random.randint(first, (), 0, len(points))]
    nearest = squared_distances(points, start[None])[:, 0]
    centers = jnp.zeros((num_clusters, points.shape[1]), points.dtype).at[0].set(start)

    def draw(index: jax.Array, carry: Any) -> Any:
        centers, nearest = carry
        # Where all points are centres already, any is as good as another.
        weights = jnp.where(nearest.sum() > 0, nearest, 1.0)
        chosen = points[jax.random.categorical(jax.random.fold_in(key, index), jnp.log(weights))]
        nearest = jnp.minimum(nearest, squared_distances(points, chosen[None])[:, 0])
        return centers.at[index].set(chosen), nearest

    return jax.lax.fori_loop(1, num_clusters, draw, (centers, nearest))[0]


def lloyd(points: jax.Array, centers: jax.Array, iterations: int = 300) -> tuple[jax.Array, jax.Array]:
    """Returns the centres `[K, D]` where assigning and averaging (Lloyd, 1982) ends, and their inertia.

    The inertia is the sum of squared distances of the points to their nearest centres. A centre that loses all of its
    points stays where it is.
    """
    points, centers, num_clusters = jnp.asarray(points), jnp.asarray(centers), len(centers)

    def unfinished(carry: Any) -> jax.Array:
        _, assigned, before, step = carry
        return (step < iterations) & (assigned != before).any()

    def improve(carry: Any) -> Any:
        centers, assigned, _, step = carry
        members = jax.nn.one_hot(assigned, num_clusters, dtype=points.dtype)
        counts = members.sum(axis=0)[:, None]
        centers = jnp.where(counts > 0, members.T @ points * jnp.reciprocal(jnp.maximum(counts, 1)), centers)
        return centers, assign(points, centers), assigned, step + 1

    begin = (centers, assign(points, centers), jnp.full(len(points), -1), 0)
    centers, *_ = jax.lax.while_loop(unfinished, improve, begin)
    return centers, squared_distances(points, centers).min(axis=1).sum()


def assign(points: jax.Array, centers: jax.Array) -> jax.Array:
    """Returns the index int `[N]` of every point's nearest centre."""
    return squared_distances(points, centers).argmin(axis=1)


def fit(key: jax.Array, points: jax.Array, num_clusters: int, restarts: int = 10) -> tuple[jax.Array, jax.Array]:
    """Returns the centres `[K, D]` of the lowest inertia after several starts by k-means++, and that inertia.

    Raises:
      ConfigError: there are fewer points than clusters, or no start.
    """
    points = _checked(points, num_clusters)
    if restarts < 1:
        raise ConfigError(f"restarts: {restarts} must be 1 or more")

    def once(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lloyd(points, plus_plus(key, points, num_clusters))

    centers, inertia = jax.lax.map(once, jax.random.split(key, restarts))
    best = inertia.argmin()
    return centers[best], inertia[best]


def minibatch(num_clusters: int, *, preprocess: Callable[[jax.Array], jax.Array] | None = None) -> Learner:
    """Returns the learner of clusters that sees a batch at a time (Sculley, 2010).

    It starts from examples by k-means++. `update` and `evaluate` report "loss", the squared distance to the nearest
    centre; `evaluate` also "assignments" and, where there are some, "targets", both int `[B]`. `predict` assigns.

    Args:
      num_clusters: K.
      preprocess: pure function of the inputs, which are flattened after it; by default they become float32.

    Raises:
      ConfigError: `num_clusters` is below 1; while tracing, there are fewer examples to start from.
    """
    if num_clusters < 1:
        raise ConfigError(f"num_clusters: {num_clusters} must be 1 or more")

    def rows(inputs: Any) -> jax.Array:
        x = jnp.asarray(inputs, jnp.float32) if preprocess is None else preprocess(inputs)
        return x.reshape(x.shape[0], -1)

    def init(key: jax.Array, examples: Any) -> Clusters:
        return Clusters(plus_plus(key, rows(examples["inputs"]), num_clusters), jnp.zeros(num_clusters))

    def update(state: Clusters, batch: Any, key: jax.Array) -> tuple[Clusters, dict[str, jax.Array]]:
        points = rows(batch["inputs"])
        distances = squared_distances(points, state.centers)
        members = jax.nn.one_hot(distances.argmin(axis=1), num_clusters)
        counts = state.counts + members.sum(axis=0)
        # A mean over all that each centre has seen, as if it had moved by one over their number for each of them.
        moved = members.T @ points - members.sum(axis=0)[:, None] * state.centers
        centers = state.centers + moved * jnp.reciprocal(jnp.maximum(counts, 1))[:, None]
        return Clusters(centers, counts), {"loss": distances.min(axis=1).mean()}

    def evaluate(state: Clusters, batch: Any, key: jax.Array) -> dict[str, Any]:
        distances = squared_distances(rows(batch["inputs"]), state.centers)
        values = {"loss": distances.min(axis=1), "assignments": distances.argmin(axis=1).astype(jnp.int32)}
        return values | ({"targets": jnp.asarray(batch["targets"], jnp.int32)} if "targets" in batch else {})

    def predict(state: Clusters, inputs: Any, key: jax.Array) -> jax.Array:
        return assign(rows(inputs), state.centers)

    return Learner(init, update, evaluate, predict)


def agreement(values: dict[str, Any]) -> dict[str, float]:
    """Returns how assignments agree with classes: `Experiment.summarize` of `minibatch` as it is.

    Both are 1 where they are the same: "adjusted_rand" is 0 for chance (Hubert & Arabie, 1985), "mutual_information"
    is normalised by the mean entropy (scikit-learn).
    """
    from sklearn import metrics

    targets, assignments = values["targets"], values["assignments"]
    return {
        "adjusted_rand": float(metrics.adjusted_rand_score(targets, assignments)),
        "mutual_information": float(metrics.normalized_mutual_info_score(targets, assignments)),
    }


def _checked(points: Any, num_clusters: int) -> jax.Array:
    if not 1 <= num_clusters <= len(points):
        raise ConfigError(f"num_clusters: {num_clusters} must be from 1 to the number of points, {len(points)}")
    return jnp.asarray(points)
