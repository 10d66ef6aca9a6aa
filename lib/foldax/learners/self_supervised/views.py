"""Two augmented views of each image, and the agreement of their projections; shared by SimCLR and BYOL."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from foldax.augment import Augmentation
from foldax.errors import ConfigError
from foldax.learner import Evaluation, Key, Learner, State, as_evaluation
from foldax.learners.losses import l2_normalize
from foldax.learners.tasks import Batch
from foldax.models import SSLOutput


def make_view_pairs(views: Augmentation, microbatches: int = 1) -> Augmentation:
    """Makes the augmentation that replaces each image by two random views of it, in adjacent rows.

    Args:
      views: `(key, batch) -> batch`, which draws one view of each image; called with two different keys.
      microbatches: number of microbatches into which the pairs will be split.

    Returns:
      An augmentation from batches `[B, ...]` to `[2 * B, ...]`; "targets" and all other fields are repeated likewise.

    Raises:
      ConfigError: while tracing, `microbatches` does not divide the number of images B, which would split a pair.

    >>> shift = lambda key, batch: {"inputs": batch["inputs"] + jax.random.uniform(key)}
    >>> pairs = make_view_pairs(shift)(jax.random.key(0), {"inputs": jnp.zeros((3, 5))})
    >>> pairs["inputs"].shape
    (6, 5)
    """

    def view_pairs(key: Key, batch: Batch) -> Batch:
        num_images = len(batch["inputs"])
        if microbatches > 1 and num_images % microbatches:
            raise ConfigError(f"microbatches must divide the number of images: {microbatches} and {num_images}")
        first, second = (views(view_key, batch) for view_key in jax.random.split(key))

        # Adjacent rows keep both views of an image in the same microbatch.
        def interleave(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.stack([jnp.asarray(a), jnp.asarray(b)], axis=1).reshape(-1, *jnp.shape(a)[1:])

        return jax.tree.map(interleave, first, second)

    return view_pairs


def split_views(values: Shaped[Array, " N *D"]) -> tuple[Shaped[Array, " N//2 *D"], Shaped[Array, " N//2 *D"]]:
    """Splits rows `[2 * B, ...]` of view pairs into those of the first and of the second views, `[B, ...]` each.

    >>> first, second = split_views(jnp.array([0, 10, 1, 11]))
    >>> first.tolist(), second.tolist()
    ([0, 1], [10, 11])
    """
    return values[0::2], values[1::2]


def alignment(first: Float[Array, "B P"], second: Float[Array, "B P"]) -> Float[Array, " B"]:
    """Squared distance between the L2-normalised projections of two views (Wang & Isola, 2020).

    Args:
      first: projections `[B, P]` of the first views.
      second: projections `[B, P]` of the second views.

    Returns:
      `[B]`, 2 - 2 cos(first, second): 0 for parallel projections, 4 for opposite ones.

    >>> alignment(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [0.0, 2.0]
    """
    chex.assert_rank([first, second], 2)
    chex.assert_equal_shape([first, second])
    return jnp.square(l2_normalize(first) - l2_normalize(second)).sum(axis=-1)


def ssl_outputs(output: SSLOutput, batch: Batch) -> Evaluation:
    """Collects features `[B, D]`, projections `[B, P]` and, where the batch has them, int32 targets `[B]`."""
    outputs = {"features": output.features, "projections": output.projections}
    return Evaluation({}, outputs | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {}))


def with_alignment_metric(learner: Learner, views: Augmentation) -> Learner:
    """Adds the metric "alignment" `[B]`, between two new random views of each image, to `learner.evaluate`.

    Args:
      learner: a learner whose `predict` returns an `SSLOutput`.
      views: draws a view of each image of a batch.
    """

    def evaluate(state: State, batch: Batch, key: Key) -> Evaluation:
        views_key, model_key = jax.random.split(key)
        assert learner.predict is not None
        output = learner.predict(state, make_view_pairs(views)(views_key, batch), model_key)
        metrics = {"alignment": alignment(*split_views(output.projections))}
        return as_evaluation(learner.evaluate(state, batch, model_key)).with_values(metrics=metrics)

    return learner._replace(evaluate=evaluate)
