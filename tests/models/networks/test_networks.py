"""MLP and CNN: shapes, parameters, options."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models import CNN, MLP, Dropout, normalization

X = jax.random.normal(jax.random.key(0), (4, 12, 12, 1))


def test_mlp_equals_dense_layers_and_activations():
    variables = MLP((7, 3)).init(jax.random.key(0), X)
    first, last = (variables["params"][name] for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(np.asarray(X).reshape(4, -1) @ first["kernel"] + first["bias"][None], 0)
    expected = hidden @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(MLP((7, 3)).apply(variables, X), expected, rtol=1e-4, atol=1e-5)


class Reference(nn.Module):
    """A plain MLP in Flax, without options."""

    features: tuple[int, ...]
    dropout: float
    normalization: str | None

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(x.shape[0], -1)
        for width in self.features[:-1]:
            x = normalization(self.normalization, width, train)(nn.Dense(width)(x))
            x = Dropout(self.dropout)(nn.relu(x), train=train)
        return nn.Dense(self.features[-1])(x)


@pytest.mark.parametrize("kind", [None, "batch"])
def test_mlp_without_options_has_the_bits_of_plain_layers(kind):
    @functools.partial(jax.jit, static_argnums=0)
    def variables_and_outputs(model):
        keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
        variables = model.init(keys, X, train=False)
        out, _ = model.apply(variables, X, train=True, rngs={"dropout": keys["dropout"]}, mutable=["batch_stats"])
        return variables, out

    mine, plain = (
        variables_and_outputs(MLP((8, 8, 4, 3), dropout=0.3, normalization=kind)),
        variables_and_outputs(Reference((8, 8, 4, 3), 0.3, kind)),
    )
    chex.assert_trees_all_equal(mine, plain)


@pytest.mark.parametrize("options", [{}, {"normalization": "layer"}, {"activation": "prelu"}])
def test_residual_layers_of_zero_kernels_are_the_identity(options):
    deep, shallow = MLP((6, 6, 6, 6, 3), residual=True, **options), MLP((6, 3), **options)
    variables = deep.init(jax.random.key(0), X)
    params = dict(variables["params"])
    for name in ("Dense_1", "Dense_2", "Dense_3"):
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    first = {name.replace("_3", "_0"): leaf for name, leaf in params.items() if name in ("LayerNorm_3", "PReLU_3")}
    ends = {"Dense_0": params["Dense_0"], "Dense_1": params["Dense_4"], **first}
    np.testing.assert_array_equal(deep.apply({"params": params}, X), shallow.apply({"params": ends}, X))


def test_residual_layer_adds_its_input_and_no_parameters():
    plain, residual = MLP((5, 5, 4, 2)), MLP((5, 5, 4, 2), residual=True)
    variables = plain.init(jax.random.key(0), X)
    chex.assert_trees_all_equal(variables, residual.init(jax.random.key(0), X))
    weights = [variables["params"][f"Dense_{index}"]["kernel"] for index in range(4)]  # biases are 0
    first = X.reshape(4, -1) @ weights[0]
    second = first + nn.relu(first) @ weights[1]
    third = nn.relu(second) @ weights[2]  # another width: no skip connection
    np.testing.assert_allclose(residual.apply(variables, X), nn.relu(third) @ weights[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "batch", "layer"])
@pytest.mark.parametrize("residual", [False, True])
def test_scanned_layers_equal_unrolled_layers(kind, residual):
    options = {"activation": "prelu", "normalization": kind, "residual": residual}
    scanned, unrolled = MLP((6,) * 4 + (3,), scan_layers=True, **options), MLP((6,) * 4 + (3,), **options)
    stacked, names = scanned.init(jax.random.key(0), X), {"Dense": 1, "PReLU": 0, "BatchNorm": 0, "LayerNorm": 0}

    def unstack(tree):
        flat = {}
        for name, leaves in tree.items():
            for inner, leaf in leaves.items() if name == "layers" else ():
                start = names[inner.split("_")[0]]  # a scanned layer starts with the activation of the layer before
                flat |= {f"{inner[:-1]}{start + i}": jax.tree.map(lambda x, i=i: x[i], leaf) for i in range(3)}
        last = {"Dense_1": "Dense_4", "PReLU_0": "PReLU_3", "BatchNorm_0": "BatchNorm_3", "LayerNorm_0": "LayerNorm_3"}
        return flat | {last.get(name, name): leaves for name, leaves in tree.items() if name != "layers"}

    variables = {collection: unstack(tree) for collection, tree in stacked.items()}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, unrolled.init(jax.random.key(0), X))
    mine, changed = scanned.apply(stacked, X, train=True, mutable=["batch_stats"])
    other, expected = unrolled.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    for collection, tree in expected.items():
        chex.assert_trees_all_close(unstack(changed[collection]), dict(tree), rtol=1e-4, atol=1e-5)


def test_scanned_layers_differ_in_parameters_and_dropout():
    model = MLP((16,) * 4 + (16,), "identity", 0.5, scan_layers=True)
    kernels = np.asarray(model.init(jax.random.key(0), X)["params"]["layers"]["Dense_0"]["kernel"])
    assert kernels.shape == (3, 16, 16)
    assert len(np.unique(kernels)) == kernels.size
    eye = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), eye)
    variables = {"params": {"Dense_0": eye, "Dense_1": eye, "layers": {"Dense_0": stacked}}}
    out = model.apply(variables, jnp.ones((64, 16)), train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(out) != 0  # four independent masks keep (1/2)^4, a shared one would keep 1/2
    assert 0.03 < kept.mean() < 0.1


def test_program_size_of_scanned_layers_does_not_depend_on_depth():
    def equations(depth):
        model = MLP((8,) * depth + (3,), scan_layers=True)
        text = str(jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x)[0])(X))
        return text.count(" = ")

    assert equations(64) == equations(4)


def test_scanned_layers_must_be_equally_wide():
    with pytest.raises(ConfigError, match=r"equally wide, got \(8, 8, 4\)"):
        MLP((8, 8, 4, 3), scan_layers=True).init(jax.random.key(0), X)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'sigmoid'"):
        MLP((4, 3), "sigmiod").init(jax.random.key(0), X)
    with pytest.raises(ConfigError, match="did you mean 'orthogonal'"):
        MLP((4, 3), kernel_init="ortogonal").init(jax.random.key(0), X)


def test_cnn_has_the_expected_number_of_parameters():
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
def test_cnn_accepts_sequences_and_volumes(shape):
    model = CNN(2, (4,), pooling="mean", dense=())
    assert jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros(shape)).shape == (2, 2)


def test_cnn_without_pooling_keeps_the_image_size():
    variables = jax.eval_shape(lambda: CNN(2, (4,), pooling=None, dense=()).init(jax.random.key(0), X))
    assert variables["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (12 * 12 * 4, 2)


def test_flat_inputs_of_a_cnn_raise_a_helpful_error():
    with pytest.raises(ValueError, match="images"):
        CNN(2).init(jax.random.key(0), jnp.zeros((4, 64)))


@pytest.mark.parametrize("network", [MLP, CNN])
def test_activate_final_activates_the_last_layer(network):
    """With the same parameters, negative outputs become 0."""
    options = dict(features=(8, 5)) if network is MLP else dict(features=5, channels=(4,), dense=(8,))
    x = jax.random.normal(jax.random.key(1), (3, 6, 6, 2))
    params = network(**options).init(jax.random.key(0), x)
    plain, activated = (network(**options, activate_final=final).apply(params, x) for final in (False, True))
    assert (plain < 0).any()
    np.testing.assert_array_equal(activated, np.maximum(plain, 0))
