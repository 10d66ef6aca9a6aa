"""Masked autoencoders: exactly the right patches are hidden, told and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from foldax import learners
from foldax.errors import ConfigError
from foldax.models import MaskedAutoencoder, ViT, patched, unpatched

KEY = jax.random.key(0)
IMAGES = np.random.RandomState(0).rand(5, 6, 4, 2).astype(np.float32)
SMALL = dict(patch_size=2, visible=2, width=8, depth=1, num_heads=2, decoder_width=4, decoder_heads=2)
MODEL = MaskedAutoencoder((6, 4, 2), **SMALL)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)({"params": KEY, "dropout": KEY}, IMAGES)


def test_patches_are_squares_by_rows_and_go_back():
    made = np.asarray(patched(jnp.asarray(IMAGES), 2))
    assert made.shape == (5, 6, 8)
    for row in range(3):
        for column in range(2):
            square = IMAGES[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(made[:, 2 * row + column], square.reshape(5, -1))
    np.testing.assert_array_equal(unpatched(jnp.asarray(made), (6, 4, 2)), IMAGES)


def test_hidden_patches_change_nothing_and_visible_ones_do(variables):
    apply = jax.jit(lambda x: MODEL.apply(variables, x, rngs={"dropout": KEY}))
    outputs, mask = apply(IMAGES)
    assert mask.shape == (5, 6)
    np.testing.assert_array_equal(mask.sum(axis=1), 4)  # all but 2
    hidden = np.asarray(unpatched(jnp.broadcast_to(mask[..., None], (5, 6, 8)), (6, 4, 2)))
    noise = np.random.RandomState(1).randn(*IMAGES.shape).astype(np.float32)
    np.testing.assert_array_equal(apply(IMAGES + 100 * noise * hidden).outputs, outputs)
    for patch in range(6):
        one = np.zeros((5, 6, 8), np.float32)
        one[:, patch] = 1
        changed = apply(IMAGES + noise * np.asarray(unpatched(jnp.asarray(one), (6, 4, 2)))).outputs
        moved = np.abs(np.asarray(changed - outputs)).max(axis=(1, 2)) > 0
        np.testing.assert_array_equal(moved, np.asarray(mask[:, patch]) == 0)


def test_every_patch_is_hidden_as_often(variables):
    keys = jax.random.split(KEY, 200)
    masks = jax.jit(jax.vmap(lambda key: MODEL.apply(variables, IMAGES, rngs={"dropout": key}).mask))(keys)
    np.testing.assert_allclose(masks.mean(axis=(0, 1)), 4 / 6, atol=0.06)  # 1,000 draws of each: 4 deviations
    assert len({np.asarray(mask[0]).tobytes() for mask in masks}) == 15  # all pairs of 6


def test_the_encoder_is_a_vision_transformer_without_its_head(variables):
    vit = ViT(3, 2, 8, 1, 2, pooling="mean")
    theirs = vit.init(KEY, IMAGES)["params"]
    ours = {**variables["params"]["encoder"], "output": theirs["output"]}
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    features = nn.apply(MaskedAutoencoder.encode, MODEL)(variables, IMAGES)
    logits = features @ ours["output"]["kernel"] + ours["output"]["bias"][None]
    np.testing.assert_allclose(vit.apply({"params": ours}, IMAGES), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_loss_is_of_hidden_patches_only(normalized, variables):
    learner = learners.masked_autoencoder(MODEL, optax.sgd(0.1), normalized=normalized)
    state = jax.jit(learner.init)(KEY, {"inputs": IMAGES})
    values = jax.jit(learner.evaluate)(state, {"inputs": IMAGES}, KEY)
    outputs, mask = jax.jit(MODEL.apply)({"params": state.params}, IMAGES, rngs={"dropout": KEY})
    goals = np.asarray(patched(jnp.asarray(IMAGES), 2), np.float64)
    mean, std = goals.mean(-1, keepdims=True), goals.std(-1, keepdims=True)
    told = (goals - mean) / std if normalized else goals
    errors = np.square(np.asarray(outputs) - told).mean(-1)
    np.testing.assert_allclose(values["loss"], [error[m > 0].mean() for error, m in zip(errors, mask)], rtol=1e-3)
    back = np.asarray(outputs) * std + mean if normalized else np.asarray(outputs)
    again = unpatched(jnp.asarray(back, jnp.float32), (6, 4, 2))
    np.testing.assert_allclose(values["reconstructions"], again, rtol=1e-3, atol=1e-4)
    hidden = unpatched(jnp.broadcast_to(mask[..., None], outputs.shape), (6, 4, 2))
    np.testing.assert_array_equal(values["masks"], hidden)
    np.testing.assert_array_equal(values["features"], jax.jit(learner.predict)(state, IMAGES, KEY))


def test_it_learns_to_tell_what_is_hidden():
    """Images of one grey each: one patch tells all others."""
    greys = np.random.RandomState(0).rand(64, 1, 1, 1).astype(np.float32)
    batch = {"inputs": jnp.broadcast_to(greys, (64, 4, 4, 1))}
    model = MaskedAutoencoder((4, 4, 1), **{**SMALL, "visible": 1})
    learner = learners.masked_autoencoder(model, optax.adam(1e-2))

    @jax.jit
    def trained(key):
        def one(step, state):
            return learner.update(state, batch, jax.random.fold_in(key, step))[0]

        state = jax.lax.fori_loop(0, 300, one, learner.init(key, batch))
        return learner.evaluate(state, batch, key)["loss"].mean()

    loss = float(trained(KEY))
    assert loss < 0.05 * float(greys.var())


@pytest.mark.parametrize(
    ("changes", "images", "said"),
    [
        (dict(visible=6), IMAGES, "visible: 6 must be 1 to 5 of the image's 6 patches"),
        (dict(visible=0), IMAGES, "visible: 0"),
        (dict(), IMAGES[:, :4], "inputs must be"),
        (dict(patch_size=4), IMAGES, "must divide images"),
    ],
)
def test_what_does_not_fit_says_so(changes, images, said):
    with pytest.raises(ConfigError, match=said):
        MaskedAutoencoder((6, 4, 2), **{**SMALL, **changes}).init({"params": KEY, "dropout": KEY}, images)
