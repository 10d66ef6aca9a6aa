"""Batches and the training loop shared by the tests of supervised learners."""

from typing import Any

import jax
import jax.numpy as jnp

from foldax import Learner
from foldax.models import MLP

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (12, 5))
CLASSES = {"inputs": INPUTS, "targets": jnp.arange(12) % 3}
CONTINUOUS = {"inputs": INPUTS, "targets": 100 + 20 * INPUTS[:, 0]}
LINEAR = MLP((3,))


def fit(learner: Learner, batch: dict[str, jax.Array], steps: int) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the state after some updates on one batch, and the metrics of every step."""

    def run(batch: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        state = learner.init(KEY, batch)
        keys = jax.random.split(KEY, steps)
        return jax.lax.scan(lambda state, key: learner.update(state, batch, key), state, keys)

    return jax.jit(run)(batch)
