"""Two views of each image, and how alike a network finds them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from foldax.augment import Augmentation
from foldax.learner import Learner
from foldax.learners.losses import normalized
from foldax.learners.tasks import Batch, Values


def pairs(views: Augmentation) -> Augmentation:
    """Returns the augmentation that makes of every image two views, one after the other: `[2 * B, ...]`."""

    def step(key: jax.Array, batch: Batch) -> Batch:
        first, second = (views(one, batch) for one in jax.random.split(key))

        def both(a: Any, b: Any) -> jax.Array:
            return jnp.stack([jnp.asarray(a), jnp.asarray(b)], axis=1).reshape(-1, *jnp.shape(a)[1:])

        return jax.tree.map(both, first, second)

    return step


def apart(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what is of each image's first view, and of its second, `[B, ...]`."""
    return values[0::2], values[1::2]


def alignment(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the squared distances `[B]` of normalised `[B, P]`, which are 2 - 2 cos."""
    return jnp.square(normalized(first) - normalized(second)).sum(axis=-1)


def passed_on(outputs: Any, batch: Batch) -> Values:
    """Returns what `evaluate` gives to figures: features, projections, targets."""
    values = {"features": outputs.features, "projections": outputs.projections}
    return values | ({"targets": batch["targets"].astype(jnp.int32)} if "targets" in batch else {})


def aligned(learner: Learner, views: Augmentation) -> Learner:
    """Returns a learner whose `evaluate` also reports the "alignment" of two views, drawn with its key."""

    def evaluate(state: Any, batch: Any, key: jax.Array) -> Values:
        draws, own = jax.random.split(key)
        assert learner.predict is not None
        outputs = learner.predict(state, pairs(views)(draws, batch), own)
        return learner.evaluate(state, batch, own) | {"alignment": alignment(*apart(outputs.projections))}

    return learner._replace(evaluate=evaluate)
