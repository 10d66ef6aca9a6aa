"""Helpers shared by the tests of networks."""

import functools
from typing import Any

import chex
import jax
import numpy as np


def random_variables(model: Any, *args: Any, seed: int = 0, scale: float = 0.7, **kwargs: Any) -> Any:
    """Normally distributed parameters, including biases and slopes, without compiling the initialisation."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)["params"]
    random = np.random.default_rng(seed)
    return {"params": jax.tree.map(lambda leaf: random.normal(0, scale, leaf.shape).astype(np.float32), shapes)}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """`chex.assert_trees_all_close` with the tolerances of these tests."""
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


def parameter_count(model: Any, *args: Any, **kwargs: Any) -> int:
    """Number of parameters, computed without allocating them."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
