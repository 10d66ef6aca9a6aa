"""Activations by name: closed forms, gradients, and unknown names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special

from foldax.errors import ConfigError
from foldax.models import ACTIVATIONS, activation

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def softplus(x):
    return np.logaddexp(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


CLOSED_FORMS = {
    "celu": elu,  # alpha is 1
    "elu": elu,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x / 2 * special.erfc(-x / np.sqrt(2)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "log_sigmoid": lambda x: -softplus(-x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * elu(x)),
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "sine": np.sin,
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "swish": lambda x: x * special.expit(x),
    "tanh": np.tanh,
}


class Layer(nn.Module):
    """An activation in a module, because PReLU has a parameter."""

    kind: str

    @nn.compact
    def __call__(self, x):
        return activation(self.kind)(x)


def apply(name, x):
    return Layer(name).init_with_output(jax.random.key(0), x)[0]


def test_every_activation_is_tested():
    assert CLOSED_FORMS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", CLOSED_FORMS)
@settings(max_examples=20, deadline=None)
@given(x=arrays.arrays(np.float32, 16, elements=st.floats(-30, 30, width=32)))
def test_activation_equals_its_closed_form(name, x):
    np.testing.assert_allclose(apply(name, x), CLOSED_FORMS[name](x.astype(np.float64)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gradient_is_finite_everywhere_and_correct_between_the_kinks(name):
    def slope(x):
        return jax.vmap(jax.grad(lambda value: apply(name, value)))(x)

    assert np.isfinite(slope(jnp.array([-1e4, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e4]))).all()
    points, step = np.array([-4.3, -2.1, -0.6, -0.2, 0.3, 0.7, 1.4, 3.3, 6.5]), 1e-5
    differences = (CLOSED_FORMS[name](points + step) - CLOSED_FORMS[name](points - step)) / (2 * step)
    np.testing.assert_allclose(slope(jnp.asarray(points, jnp.float32)), differences, rtol=1e-4, atol=1e-4)


def test_a_function_is_returned_unchanged():
    assert activation(jnp.tanh) is jnp.tanh


@settings(max_examples=20, deadline=None)
@given(x=arrays.arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=32, allow_subnormal=False)))
def test_prelu_learns_its_slope(x):
    variables = {"params": {"PReLU_0": {"negative_slope": jnp.float32(0.25)}}}
    gradient = jax.grad(lambda variables: Layer("prelu").apply(variables, x).sum())(variables)
    np.testing.assert_allclose(
        gradient["params"]["PReLU_0"]["negative_slope"], np.minimum(x, 0).sum(), rtol=1e-5, atol=1e-30
    )


def test_prelu_has_one_slope_initialised_to_a_quarter():
    params = Layer("prelu").init(jax.random.key(0), jnp.zeros((2, 3)))["params"]
    assert jax.tree.map(float, params) == {"PReLU_0": {"negative_slope": 0.25}}


@pytest.mark.parametrize(("wrong", "right"), [("rellu", "relu"), ("Tanh", "tanh"), ("leakyrelu", "leaky_relu")])
def test_unknown_name_suggests_the_nearest(wrong, right):
    with pytest.raises(ConfigError, match=f"activation: there is no '{wrong}'; did you mean '{right}'"):
        activation(wrong)


def test_none_is_not_an_activation():
    with pytest.raises(ConfigError, match="activation: there is no None"):
        activation(None)
