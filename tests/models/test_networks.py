"""MLP and CNN: shapes, parameters, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.models import CNN, MLP

X = jax.random.normal(jax.random.key(0), (4, 12, 12, 1))


def test_mlp_is_dense_layers_and_activations():
    variables = MLP((7, 3)).init(jax.random.key(0), X)
    first, last = (variables["params"][name] for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(np.asarray(X).reshape(4, -1) @ first["kernel"] + first["bias"][None], 0)
    expected = hidden @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(MLP((7, 3)).apply(variables, X), expected, rtol=1e-4, atol=1e-5)


def test_cnn_of_the_benchmark_has_its_parameters():
    shapes = jax.eval_shape(lambda: CNN(10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == (9 * 32 + 32) + (9 * 32 * 64 + 64) + (7 * 7 * 64 * 256 + 256) + (256 * 10 + 10)


@pytest.mark.parametrize("normalization", [None, "batch", "layer", "group"])
@pytest.mark.parametrize("make", [lambda **k: MLP((6, 3), **k), lambda **k: CNN(3, (4, (2, 6)), dense=(5,), **k)])
def test_normalization_traced_dropout_and_bfloat16(make, normalization):
    def apply(rate, x):
        model = make(normalization=normalization, dropout=rate, dtype=jnp.bfloat16)
        variables = model.init(jax.random.key(0), x)
        rngs = {"dropout": jax.random.key(1)}
        return variables, model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    variables, (out, changed) = jax.eval_shape(apply, 0.5, X)
    assert out.shape == (4, 3)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert ("batch_stats" in changed) == (normalization == "batch")


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 4, 5, 4, 1)])
def test_cnn_takes_sequences_and_volumes(shape):
    model = CNN(2, (4,), pooling="mean", dense=())
    assert jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros(shape)).shape == (2, 2)


def test_cnn_without_pooling_keeps_the_image():
    variables = jax.eval_shape(lambda: CNN(2, (4,), pooling=None, dense=()).init(jax.random.key(0), X))
    assert variables["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (12 * 12 * 4, 2)


def test_cnn_of_flat_inputs_says_what_it_wants():
    with pytest.raises(ValueError, match="images"):
        CNN(2).init(jax.random.key(0), jnp.zeros((4, 64)))
