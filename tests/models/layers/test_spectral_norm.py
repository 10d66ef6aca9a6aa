"""Spectral normalisation against NumPy's singular values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from foldax import models
from foldax.errors import ConfigError
from foldax.models.layers import spectral_norm

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 6, 6, 1))
NETWORKS = {
    "MLP": models.MLP((12, 7, 3)),
    "CNN": models.CNN(3, (4, 5), dense=(6,)),
    "ResNet": models.ResNet(3, (1,), width=4),
}


def largest_singular_values(params):
    flat = traverse_util.flatten_dict(params)
    matrices = {
        path: np.asarray(leaf).reshape(-1, leaf.shape[-1]) for path, leaf in flat.items() if path[-1] == "kernel"
    }
    return {path: np.linalg.svd(matrix, compute_uv=False)[0] for path, matrix in matrices.items()}


@pytest.mark.parametrize("name", ["MLP", "CNN"])
def test_kernels_have_a_largest_singular_value_of_one(name):
    model = models.SpectralNorm(NETWORKS[name])
    variables = model.init(KEY, X)

    @jax.jit
    def call(variables):
        outputs, changed = model.apply(variables, X, train=True, mutable=["spectral"])
        return outputs, {**variables, **changed}

    for _ in range(60):
        outputs, variables = call(variables)
    before = largest_singular_values(variables["params"])
    params, _ = spectral_norm.normalize_kernels(variables["params"], variables["spectral"])
    after = largest_singular_values(params)
    assert before.keys() == after.keys()
    assert len(after) == {"MLP": 3, "CNN": 4}[name]
    np.testing.assert_allclose(list(after.values()), 1.0, atol=1e-3)
    assert not np.allclose(list(before.values()), 1.0, atol=0.05)
    np.testing.assert_allclose(outputs, NETWORKS[name].apply({"params": params}, X), rtol=1e-4, atol=1e-5)


def test_lipschitz_constant_is_at_most_one():
    model = models.SpectralNorm(models.MLP((32, 32, 1)), power_iterations=50)
    variables = model.init(KEY, X)
    other = X + 0.3 * jax.random.normal(jax.random.key(1), X.shape)
    distances = np.abs(model.apply(variables, X) - model.apply(variables, other))[:, 0]
    assert (distances <= 1.001 * np.linalg.norm((X - other).reshape(5, -1), axis=1)).all()


def test_gradient_of_the_estimate_equals_that_of_the_singular_value():
    kernel = jax.random.normal(KEY, (6, 4))
    sigma = lambda kernel: spectral_norm.power_iteration(kernel, jnp.ones(4), 200)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(sigma)(kernel)
    left, values, right = np.linalg.svd(np.asarray(kernel))
    assert float(value) == pytest.approx(values[0], rel=1e-5)
    np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=1e-4)


def test_vectors_and_batch_statistics_change_in_training_only():
    model = models.SpectralNorm(NETWORKS["ResNet"])
    variables = model.init(KEY, X)
    assert variables.keys() == {"params", "batch_stats", "spectral"}
    outputs = model.apply(variables, X)
    evaluated, changed = model.apply(variables, X, mutable=["batch_stats", "spectral"])
    np.testing.assert_array_equal(outputs, evaluated)
    chex.assert_trees_all_equal(changed["spectral"], variables["spectral"])
    flipped = jax.tree.map(lambda kernel: kernel[::-1], variables["params"])
    _, changed = model.apply({**variables, "params": flipped}, X, train=True, mutable=["batch_stats", "spectral"])
    assert changed.keys() == {"batch_stats", "spectral"}
    old, new = (jax.tree.leaves(tree["spectral"]) for tree in (variables, changed))
    assert any(not np.allclose(one, other, atol=1e-3) for one, other in zip(old, new, strict=True))


def test_zero_kernels_stay_zero():
    model = models.SpectralNorm(models.MLP((3, 2), kernel_init=nn.initializers.zeros))
    outputs = model.apply(model.init(KEY, X), X)
    np.testing.assert_array_equal(outputs, np.zeros((5, 2)))


def test_invalid_arguments_raise_helpful_errors():
    with pytest.raises(ConfigError, match="power_iterations: 0"):
        models.SpectralNorm(models.MLP((2,)), power_iterations=0)
    with pytest.raises(ConfigError, match="no kernel"):
        models.SpectralNorm(nn.LayerNorm()).init(KEY, X)
