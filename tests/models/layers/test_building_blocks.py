"""Dropout with traced rates, pooling, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from foldax.models import FCN, Dropout, normalization, pool


def drop(rate, x, train=True):
    return Dropout(rate).apply({}, x, train=train, rngs={"dropout": jax.random.key(0)})


def test_dropout_keeps_the_mean_for_a_traced_rate():
    ones = jnp.ones((200, 500))
    out = jax.jit(drop)(0.3, ones)
    assert abs(float(out.mean()) - 1.0) < 0.01
    assert abs(float((out == 0).mean()) - 0.3) < 0.01
    np.testing.assert_allclose(np.unique(out), [0.0, 1 / 0.7], rtol=1e-6)


@pytest.mark.parametrize("rate", [None, 0, 0.0])
def test_dropout_without_a_rate_needs_no_key(rate):
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, train=True), x)


def test_dropout_is_off_outside_training():
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(Dropout(jnp.float32(0.9)).apply({}, x, train=False), x)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_rates_of_0_and_1_have_finite_gradients(rate):
    x = jnp.ones((4, 3))
    value, gradient = jax.value_and_grad(lambda x: drop(jnp.float32(rate), x).sum())(x)
    assert float(value) == 12 * (1 - rate)
    np.testing.assert_array_equal(gradient, np.full((4, 3), 1.0 - rate))


def test_dropout_keeps_bfloat16():
    assert drop(jnp.float32(0.5), jnp.ones((4, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize(("shape", "size"), [((2, 6, 4, 3), (2, 2)), ((2, 7, 5, 3), (2, 2)), ((2, 9, 3), (3,))])
def test_pooling_equals_flax_pooling(kind, shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    flax = {"max": nn.max_pool, "mean": nn.avg_pool}[kind]

    def gradient(pooled):
        return jax.grad(lambda x: jnp.sin(pooled(x)).sum())(x)

    np.testing.assert_allclose(pool(x, kind, size), flax(x, size, size), rtol=1e-6)
    by_flax = gradient(lambda x: flax(x, size, size))
    np.testing.assert_allclose(gradient(lambda x: pool(x, kind, size)), by_flax, rtol=1e-5, atol=1e-6)


def test_one_of_equal_maxima_receives_the_gradient():
    gradient = jax.grad(lambda x: pool(x, "max", (2, 2)).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])


def test_max_pooling_propagates_nan():
    for place in range(4):
        x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert np.isnan(pool(x, "max", (2, 2))).all()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(FCN(2, (8, 8, 8), pool_size=2), (16, 150, 1)), (FCN(2, (8, 8), (8, 5), pooling="max"), (16, 150, 1))],
    ids=["windows", "sequences"],
)
def test_maxima_of_normalised_values_keep_their_gradient(model, shape):
    # XLA may recompute the normalisation for the gradient and round it differently: then nothing equals the maximum.
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x))(x)
    params = variables.pop("params")

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jax.nn.log_softmax(logits)[:8, 0].sum() + jax.nn.log_softmax(logits)[8:, 1].sum()

    with jax.disable_jit():  # operations run one by one, so nothing is recomputed
        expected = jax.tree.leaves(jax.grad(loss)(params))
    scale = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for ours, leaf in zip(jax.tree.leaves(jax.jit(jax.grad(loss))(params)), expected, strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(("kind", "size", "message"), [("sum", (2, 2), "'max'"), ("max", (5, 2), "larger")])
def test_invalid_pooling_raises_a_helpful_error(kind, size, message):
    with pytest.raises(ValueError, match=message):
        pool(jnp.ones((1, 4, 4, 1)), kind, size)


def test_unknown_normalization_raises_a_helpful_error():
    with pytest.raises(ValueError, match="'batch', 'layer', 'group' or 'rms'"):
        normalization("instance", 4, train=True)
