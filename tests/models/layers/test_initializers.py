"""Initialisers by name: variances, and propagation of a signal through a deep network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.errors import ConfigError
from foldax.models import INITIALIZERS, MLP, initializer

VARIANCES = {
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "normal": lambda fan_in, fan_out: 1e-4,
    "orthogonal": lambda fan_in, fan_out: 1 / max(fan_in, fan_out),
    "zeros": lambda fan_in, fan_out: 0.0,
}


def kernel(kind, *shape, seed=0):
    return np.asarray(initializer(kind)(jax.random.key(seed), shape, jnp.float32), np.float64)


def test_every_initializer_is_tested():
    assert VARIANCES.keys() == INITIALIZERS.keys()


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("shape", [(300, 200), (100, 400)])
def test_kernel_has_mean_zero_and_the_stated_variance(name, shape):
    values, variance = kernel(name, *shape), VARIANCES[name](*shape)
    assert abs(values.mean()) <= 5 * np.sqrt(variance / values.size)
    np.testing.assert_allclose(values.var(), variance, rtol=0.03)  # 6 standard errors of a normal's
    if name.endswith("uniform"):
        assert np.abs(values).max() <= np.sqrt(3 * variance) * (1 + 1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (5, 12), (12, 1)])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_orthogonal_preserves_norms(rows, columns, seed):
    values = kernel("orthogonal", rows, columns, seed=seed)
    gram = values @ values.T if rows <= columns else values.T @ values
    np.testing.assert_allclose(gram, np.eye(min(rows, columns)), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 4, 16])
@pytest.mark.parametrize(
    ("name", "activation", "gain"),  # the mean square is multiplied by `gain` in every layer; by `first` in the first
    [("he_normal", "relu", 1.0), ("lecun_normal", "identity", 1.0), ("lecun_normal", "relu", 0.5)],
)
def test_signal_variance_follows_theory(name, activation, gain, depth):
    x = jax.random.normal(jax.random.key(1), (32, 256))
    model = MLP((256,) * depth + (256,), activation, kernel_init=name, scan_layers=True)
    keys = jax.random.split(jax.random.key(0), 8)
    square = jax.jit(lambda key: jnp.square(model.init_with_output(key, x)[0]).mean())
    mean = np.mean([square(key) for key in keys])
    first = 2.0 if name == "he_normal" else 1.0  # inputs have not passed a ReLU
    np.testing.assert_allclose(mean, first * gain**depth, rtol=0.25)


def test_orthogonal_preserves_norms_through_64_layers():
    x = jax.random.normal(jax.random.key(1), (4, 32))
    out, _ = MLP((32,) * 65, "identity", kernel_init="orthogonal", scan_layers=True).init_with_output(
        jax.random.key(0), x
    )
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), np.linalg.norm(x, axis=1), rtol=1e-4)


def test_a_function_may_have_a_traced_scale():
    def max_weight(std):
        model = MLP((8, 3), kernel_init=jax.nn.initializers.normal(std))
        params = model.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
        return jnp.abs(params["Dense_0"]["kernel"]).max()

    np.testing.assert_allclose(jax.jit(max_weight)(3.0), 3 * jax.jit(max_weight)(1.0), rtol=1e-6)


@pytest.mark.parametrize(("wrong", "right"), [("he", "he_normal"), ("xavier_normal", "glorot_normal")])
def test_unknown_name_lists_the_known_ones(wrong, right):
    with pytest.raises(ConfigError, match=rf"initializer: there is no '{wrong}'.*{right}"):
        initializer(wrong)
