"""Vision Transformer and MLP-Mixer: published sizes, a plain loop, scanned blocks, invalid input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.models import MLPMixer, Transformer, ViT
from tests.models.shared import assert_close, parameter_count, random_variables

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
IMAGENET = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def test_networks_have_the_published_numbers_of_parameters():
    assert parameter_count(ViT(1000, 16, 768, 12, 12), IMAGENET) == 86_567_656  # ViT-B/16
    assert parameter_count(ViT(1000, 16, 1024, 24, 16, scan_layers=True), IMAGENET) == 304_326_632  # ViT-L/16
    assert parameter_count(MLPMixer(1000, 16, 768, 12), IMAGENET) == 59_880_472  # Mixer-B/16


def embedded_patches(params, x, size=2):
    """Patches row by row, each multiplied by the kernel."""
    rows = [
        [
            image[i : i + size, j : j + size].ravel()
            for i in range(0, x.shape[1], size)
            for j in range(0, x.shape[2], size)
        ]
        for image in x
    ]
    return np.array(rows) @ params["kernel"].reshape(-1, params["kernel"].shape[-1]) + params["bias"]


def normalized(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_vit_equals_a_transformer_encoder_of_patches(pooling):
    model = ViT(3, 2, 8, 2, 2, pooling=pooling)
    params = random_variables(model, IMAGES, scale=0.3)["params"]
    outputs = jax.jit(model.apply)({"params": params}, IMAGES)
    x = embedded_patches(params["Conv_0"], IMAGES)
    if pooling == "class":
        x = np.concatenate([np.broadcast_to(params["class_token"], (3, 1, 8)), x], axis=1)
    x = x + params["positions"]
    same = {name: params[name] for name in params if name.startswith("blocks") or name == "LayerNorm_0"}
    same["input"] = {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    encoder = Transformer(None, width=8, depth=2, num_heads=2, positions=None)
    encoded = np.asarray(jax.jit(encoder.apply)({"params": same}, x.astype(np.float32)))
    pooled = encoded[:, 0] if pooling == "class" else encoded.mean(1)
    assert_close(np.asarray(outputs), dense(params["output"], pooled), 1e-4, 1e-5)


def test_mixer_equals_a_plain_loop_unrolled_or_scanned():
    model = MLPMixer(3, 2, 8, 2, activation="relu")
    row = random_variables(model, IMAGES, scale=0.3)["params"]
    outputs = jax.jit(model.apply)({"params": row}, IMAGES)
    x = embedded_patches(row["Conv_0"], IMAGES)
    for index in range(2):
        params = row[f"blocks_{index}"]
        tokens = normalized(params["LayerNorm_0"], x).swapaxes(1, 2)
        x = x + dense(params["Dense_1"], np.maximum(dense(params["Dense_0"], tokens), 0)).swapaxes(1, 2)
        x = x + dense(params["Dense_3"], np.maximum(dense(params["Dense_2"], normalized(params["LayerNorm_1"], x)), 0))
    expected = dense(row["output"], normalized(row["LayerNorm_0"], x).mean(1))
    assert_close(np.asarray(outputs), expected.astype(np.float32), 1e-4, 1e-5)
    stacked = {name: leaves for name, leaves in row.items() if not name.startswith("blocks")}
    stacked["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), row["blocks_0"], row["blocks_1"])
    scanned = jax.jit(model.clone(scan_layers=True, remat=True).apply)({"params": stacked}, IMAGES)
    assert_close(scanned, outputs, 1e-4, 1e-5)


@pytest.mark.parametrize("make", [ViT, MLPMixer])
def test_bfloat16_and_traced_dropout_are_accepted(make):
    def apply(rate, x):
        model = make(3, 2, 8, 2, dropout=rate, dtype=jnp.bfloat16, scan_layers=True, remat=True)
        variables = model.init(jax.random.key(0), x)
        return variables, model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})

    variables, outputs = jax.eval_shape(apply, 0.5, IMAGES)
    assert outputs.shape == (3, 3)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (ViT(3, 4), (1, 8, 6, 1), r"patch_size: 4 must divide images \[B, H, W, C\], got \(1, 8, 6, 1\)"),
        (MLPMixer(3, 4), (1, 8, 1), "patch_size: 4 must divide images"),
        (ViT(3, 4, pooling="max"), (1, 8, 8, 1), "'max' is unknown; choose 'class' or 'mean'"),
        (ViT(3, 4, num_heads=3), (1, 8, 8, 1), "num_heads: 3 must divide the width, 128"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(model, shape, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
