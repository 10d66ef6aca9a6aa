"""Masked autoencoders: which patches are masked, predicted and part of the loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners
from foldax.errors import ConfigError
from foldax.models import MaskedAutoencoder, ViT, patchify, unpatchify

KEY = jax.random.key(0)
IMAGES = np.random.RandomState(0).rand(5, 6, 4, 2).astype(np.float32)
SMALL = dict(patch_size=2, visible_patches=2, width=8, depth=1, num_heads=2, decoder_width=4, decoder_heads=2)
MODEL = MaskedAutoencoder((6, 4, 2), **SMALL)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)({"params": KEY, "dropout": KEY}, IMAGES)


def test_patches_are_squares_row_by_row_and_unpatchify_is_the_inverse():
    patches = np.asarray(patchify(jnp.asarray(IMAGES), 2))
    chex.assert_shape(patches, (5, 6, 8))
    for row in range(3):
        for column in range(2):
            square = IMAGES[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, 2 * row + column], square.reshape(5, -1))
    np.testing.assert_array_equal(unpatchify(jnp.asarray(patches), (6, 4, 2)), IMAGES)


def test_masked_patches_do_not_change_the_output_and_visible_ones_do(variables):
    apply = jax.jit(lambda x: MODEL.apply(variables, x, rngs={"dropout": KEY}))
    patches, mask = apply(IMAGES)
    chex.assert_shape(mask, (5, 6))
    np.testing.assert_array_equal(mask.sum(axis=1), 4)  # all but 2
    masked = np.asarray(unpatchify(jnp.broadcast_to(mask[..., None], (5, 6, 8)), (6, 4, 2)))
    noise = np.random.RandomState(1).randn(*IMAGES.shape).astype(np.float32)
    np.testing.assert_array_equal(apply(IMAGES + 100 * noise * masked).patches, patches)
    for patch in range(6):
        one = np.zeros((5, 6, 8), np.float32)
        one[:, patch] = 1
        changed = apply(IMAGES + noise * np.asarray(unpatchify(jnp.asarray(one), (6, 4, 2)))).patches
        differs = np.abs(np.asarray(changed - patches)).max(axis=(1, 2)) > 0
        np.testing.assert_array_equal(differs, np.asarray(mask[:, patch]) == 0)


def test_every_patch_is_masked_equally_often(variables):
    keys = jax.random.split(KEY, 200)
    masks = jax.jit(jax.vmap(lambda key: MODEL.apply(variables, IMAGES, rngs={"dropout": key}).mask))(keys)
    np.testing.assert_allclose(masks.mean(axis=(0, 1)), 4 / 6, atol=0.06)  # 1,000 draws of each: 4 deviations
    assert len({np.asarray(mask[0]).tobytes() for mask in masks}) == 15  # all pairs of 6


def test_the_encoder_is_a_vision_transformer_without_its_head(variables):
    vit = ViT(3, 2, 8, 1, 2, pooling="mean")
    theirs = vit.init(KEY, IMAGES)["params"]
    ours = {**variables["params"]["encoder"], "output": theirs["output"]}
    chex.assert_trees_all_equal_shapes(ours, theirs)
    features = MODEL.apply(variables, IMAGES, method=MaskedAutoencoder.encode)
    logits = features @ ours["output"]["kernel"] + ours["output"]["bias"][None]
    np.testing.assert_allclose(vit.apply({"params": ours}, IMAGES), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize_patches", [False, True])
def test_the_loss_is_that_of_masked_patches_only(normalize_patches, variables):
    learner = learners.masked_autoencoder(MODEL, optax.sgd(0.1), normalize_patches=normalize_patches)
    state = jax.jit(learner.init)(KEY, {"inputs": IMAGES})
    result = jax.jit(learner.evaluate)(state, {"inputs": IMAGES}, KEY)
    patches, mask = jax.jit(MODEL.apply)({"params": state.params}, IMAGES, rngs={"dropout": KEY})
    pixels = np.asarray(patchify(jnp.asarray(IMAGES), 2), np.float64)
    mean, std = pixels.mean(-1, keepdims=True), pixels.std(-1, ddof=1, keepdims=True)
    targets = (pixels - mean) / std if normalize_patches else pixels
    errors = np.square(np.asarray(patches) - targets).mean(-1)
    expected = [error[m > 0].mean() for error, m in zip(errors, mask)]
    np.testing.assert_allclose(result.metrics["loss"], expected, rtol=1e-3)
    denormalized = np.asarray(patches) * std + mean if normalize_patches else np.asarray(patches)
    images = unpatchify(jnp.asarray(denormalized, jnp.float32), (6, 4, 2))
    np.testing.assert_allclose(result.outputs["reconstructions"], images, rtol=1e-3, atol=1e-4)
    masked = unpatchify(jnp.broadcast_to(mask[..., None], patches.shape), (6, 4, 2))
    np.testing.assert_array_equal(result.outputs["masks"], masked)
    np.testing.assert_array_equal(result.outputs["features"], jax.jit(learner.predict)(state, IMAGES, KEY))


def test_it_learns_to_reconstruct_masked_patches():
    """Images of a single grey level: one patch determines all others."""
    greys = np.random.RandomState(0).rand(64, 1, 1, 1).astype(np.float32)
    batch = {"inputs": jnp.broadcast_to(greys, (64, 4, 4, 1))}
    model = MaskedAutoencoder((4, 4, 1), **{**SMALL, "visible_patches": 1})
    learner = learners.masked_autoencoder(model, optax.adam(1e-2))

    @jax.jit
    def train(key):
        def step(index, state):
            return learner.update(state, batch, jax.random.fold_in(key, index))[0]

        state = jax.lax.fori_loop(0, 300, step, learner.init(key, batch))
        return learner.evaluate(state, batch, key).metrics["loss"].mean()

    loss = float(train(KEY))
    assert loss < 0.05 * float(greys.var())


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        (dict(visible_patches=6), IMAGES, "visible_patches: 6 must be 1 to 5 of the image's 6 patches"),
        (dict(visible_patches=0), IMAGES, "visible_patches: 0"),
        (dict(), IMAGES[:, :4], "inputs must be"),
        (dict(patch_size=4), IMAGES, "must divide images"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(changes, images, message):
    with pytest.raises(ConfigError, match=message):
        MaskedAutoencoder((6, 4, 2), **{**SMALL, **changes}).init({"params": KEY, "dropout": KEY}, images)
