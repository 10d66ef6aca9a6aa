"""What tests of networks share."""

import functools
from typing import Any

import jax
import numpy as np


def random_variables(model: Any, *args: Any, seed: int = 0, scale: float = 0.7, **kwargs: Any) -> Any:
    """Parameters of normal values, biases and slopes too, without compiling the initialisation."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)["params"]
    random = np.random.default_rng(seed)
    return {"params": jax.tree.map(lambda leaf: random.normal(0, scale, leaf.shape).astype(np.float32), shapes)}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """As NumPy's `assert_allclose`, for trees."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)


def parameter_count(model: Any, *args: Any, **kwargs: Any) -> int:
    """Number of parameters, of which none is made."""
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
