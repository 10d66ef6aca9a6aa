"""Augmentations: what they leave alone, their known answers, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from scipy.stats import beta

from foldax import augment
from foldax.errors import ExperimentError

KEY = jax.random.key(0)
IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 10, 3)).astype(np.uint8)
SERIES = np.random.RandomState(0).randn(6, 12, 2).astype(np.float32)
LABELS = np.arange(6) % 3
BATCH = {"inputs": jnp.asarray(IMAGES), "targets": jnp.asarray(LABELS), "extra": jnp.arange(6)}
SERIES_BATCH = {**BATCH, "inputs": jnp.asarray(SERIES)}
OF_IMAGES = {
    "random_crop": augment.random_crop(2),
    "random_flip": augment.random_flip(0.5),
    "random_affine": augment.random_affine(20.0, 0.1, 0.1, 5.0),
    "color": augment.color(0.1, 0.1, 0.1, 0.1),
    "cutout": augment.cutout(3),
    "noise": augment.noise(2.0),
    "sometimes": augment.sometimes(augment.cutout(3), 0.5),
    "mixup": augment.mixup(0.4, 3),
    "cutmix": augment.cutmix(1.0, 3),
}
OF_SERIES = {
    "time_mask": augment.time_mask(4),
    "channel_mask": augment.channel_mask(1),
    "random_shift": augment.random_shift(3),
    "random_scaling": augment.random_scaling(0.1),
    "noise": augment.noise(0.1),
}
CASES = [(step, BATCH) for step in OF_IMAGES.values()] + [(step, SERIES_BATCH) for step in OF_SERIES.values()]


@pytest.mark.parametrize(("step", "batch"), CASES, ids=[*OF_IMAGES, *(f"series_{name}" for name in OF_SERIES)])
def test_an_augmentation_is_pure_and_changes_inputs_and_at_most_shares(step, batch):
    run = jax.jit(step)
    first, again, other = run(KEY, batch), run(KEY, batch), run(jax.random.key(1), batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["inputs"], other["inputs"])
    assert not np.array_equal(first["inputs"], batch["inputs"])
    assert first["inputs"].shape == batch["inputs"].shape
    np.testing.assert_array_equal(first["extra"], batch["extra"])
    if first["targets"].ndim == 1:
        np.testing.assert_array_equal(first["targets"], batch["targets"])
    else:
        assert first["targets"].shape == (6, 3)
        np.testing.assert_allclose(first["targets"].sum(axis=1), 1.0, rtol=1e-6)
    moves = step in [OF_IMAGES[name] for name in ("random_crop", "random_flip", "random_affine", "cutout", "sometimes")]
    assert (
        first["inputs"].dtype == (batch["inputs"].dtype if moves else jnp.result_type(batch["inputs"].dtype, "f4"))
        or step is OF_IMAGES["cutmix"]
    )


@pytest.mark.parametrize(
    "step",
    [
        augment.random_crop(0),
        augment.random_flip(0.0),
        augment.random_affine(),
        augment.color(),
        augment.noise(0.0),
        augment.sometimes(augment.cutout(3), 0.0),
        augment.chain(),
    ],
)
def test_no_strength_is_the_identity(step):
    np.testing.assert_allclose(step(KEY, BATCH)["inputs"], IMAGES, atol=2e-4)


def test_flip_of_probability_one_mirrors_all():
    np.testing.assert_array_equal(augment.random_flip(1.0)(KEY, BATCH)["inputs"], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(augment.random_flip(1.0, "vertical")(KEY, BATCH)["inputs"], IMAGES[:, ::-1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_crop_is_the_padded_image_cut_out_somewhere_and_everywhere(mode):
    images = jnp.asarray(np.tile(IMAGES[:1], (400, 1, 1, 1)))
    found = np.asarray(augment.random_crop(2, mode)(KEY, {"inputs": images})["inputs"])
    padded = np.pad(IMAGES[0], [(2, 2), (2, 2), (0, 0)], mode=mode)
    places = {padded[r : r + 8, c : c + 10].tobytes(): (r, c) for r in range(5) for c in range(5)}
    assert {places[image.tobytes()] for image in found} == set(places.values())


@pytest.mark.parametrize("kind", ["rotation", "scale", "translation"])
def test_affine_is_that_of_scipy(kind):
    """One number alone is drawn; scipy finds the one that was, and gives the same image with it."""
    image = np.zeros((1, 15, 15, 1), np.float32)
    image[0, 4:11, 6:9, 0] = np.arange(1, 22).reshape(7, 3)
    size = {"rotation": 30.0, "scale": 0.3, "translation": 0.2}[kind]
    found = np.asarray(augment.random_affine(**{kind: size})(KEY, {"inputs": jnp.asarray(image)})["inputs"])[0, :, :, 0]
    draws = np.asarray(jax.random.uniform(jax.random.split(KEY, 1)[0], (5,), jnp.float32, -1.0, 1.0), np.float64)
    angle = np.deg2rad(draws[0] * 30) if kind == "rotation" else 0.0
    zoom = 1 / (1 + draws[2] * 0.3) if kind == "scale" else 1.0
    moved = draws[3:] * 0.2 * 15 if kind == "translation" else np.zeros(2)
    matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = 7 - matrix @ (7 + moved)
    expected = scipy.ndimage.affine_transform(image[0, :, :, 0], matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_cutout_removes_one_square():
    ones = jnp.ones((300, 9, 9, 1))
    found = np.asarray(augment.cutout(3)(KEY, {"inputs": ones})["inputs"])[..., 0] == 0
    for hole in found:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 3
        assert np.ptp(rows) == len(rows) - 1
    inner = found[:, 4, 4].mean()  # each of the 9 x 9 centres is as likely, 9 of them reach the middle
    assert inner == pytest.approx(9 / 81, abs=0.06)


def test_brightness_is_one_shift_for_each_image():
    images = jnp.full((5, 4, 4, 3), 100.0)
    found = np.asarray(augment.color(brightness=0.2)(KEY, {"inputs": images})["inputs"])
    assert (np.ptp(found.reshape(5, -1), axis=1) < 1e-3).all()
    assert len(np.unique(found[:, 0, 0, 0])) == 5
    assert np.abs(found - 100).max() <= 0.2 * 255 + 1e-3


def test_noise_has_its_deviation_for_a_traced_one():
    found = jax.jit(lambda std: augment.noise(std)(KEY, {"inputs": jnp.zeros((100, 20, 5))}))(0.3)["inputs"]
    assert float(found.std()) == pytest.approx(0.3, rel=0.03)


def test_mixup_mixes_inputs_and_targets_by_the_same_beta_weight():
    count = 4000
    targets = jnp.arange(count) % 2
    inputs = jnp.broadcast_to(targets[:, None, None].astype(jnp.float32), (count, 2, 1))
    mixed = jax.jit(lambda alpha: augment.mixup(alpha, 2)(KEY, {"inputs": inputs, "targets": targets}))(0.4)
    np.testing.assert_allclose(mixed["inputs"][:, 0, 0], mixed["targets"][:, 1], atol=1e-6)
    share = np.asarray(mixed["targets"][:, 1])
    between = share[(share > 0) & (share < 1)]
    assert len(between) > 0.4 * count
    inside = ((between > 0.25) & (between < 0.75)).mean()
    expected = beta(0.4, 0.4).cdf(0.75) - beta(0.4, 0.4).cdf(0.25)
    assert inside == pytest.approx(expected, abs=0.04)


def test_cutmix_shares_are_those_of_the_pixels():
    targets = jnp.arange(60) % 3
    inputs = jnp.broadcast_to(targets[:, None, None, None], (60, 12, 9, 1))
    mixed = augment.cutmix(1.0, 3)(KEY, {"inputs": inputs, "targets": targets})
    pixels = np.stack([(np.asarray(mixed["inputs"]) == c).mean(axis=(1, 2, 3)) for c in range(3)], axis=1)
    np.testing.assert_allclose(mixed["targets"], pixels, atol=1e-6)
    assert mixed["inputs"].dtype == inputs.dtype


def test_masks_hide_steps_in_a_row_of_every_length():
    ones = jnp.ones((500, 8, 3))
    hidden = np.asarray(augment.time_mask(3)(KEY, {"inputs": ones})["inputs"]) == 0
    assert (hidden.all(axis=2) == hidden.any(axis=2)).all()
    steps = hidden[:, :, 0]
    assert set(steps.sum(axis=1)) == {0, 1, 2, 3}
    assert all(np.ptp(np.flatnonzero(row)) == row.sum() - 1 for row in steps if row.any())
    channels = np.asarray(augment.channel_mask(2)(KEY, {"inputs": ones})["inputs"]) == 0
    assert (channels.all(axis=1) == channels.any(axis=1)).all()


def test_shift_moves_series_and_repeats_their_ends():
    found = np.asarray(
        augment.random_shift(2)(KEY, {"inputs": jnp.asarray(np.tile(SERIES[:1], (100, 1, 1)))})["inputs"]
    )
    padded = np.pad(SERIES[0], [(2, 2), (0, 0)], mode="edge")
    places = {padded[start : start + 12].tobytes(): start for start in range(5)}
    assert {places[series.tobytes()] for series in found} == set(range(5))


def test_sometimes_changes_its_share_of_examples():
    ones = {"inputs": jnp.ones((2000, 3, 3, 1))}
    step = jax.jit(lambda probability: augment.sometimes(augment.noise(1.0), probability)(KEY, ones))
    changed = (np.asarray(step(0.3)["inputs"]) != 1).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("make", "batch", "said"),
    [
        (lambda: augment.random_crop(-1), BATCH, "padding=-1"),
        (lambda: augment.random_crop(2), SERIES_BATCH, r"images \[B, H, W, C\]"),
        (lambda: augment.time_mask(3), BATCH, r"series \[B, T, C\]"),
        (lambda: augment.time_mask(13), SERIES_BATCH, "more than there are, 12"),
        (lambda: augment.cutout(9), BATCH, "larger than the image, 8 x 10"),
        (lambda: augment.cutout(0), BATCH, "size=0"),
        (lambda: augment.color(hue=0.1), {"inputs": BATCH["inputs"][..., :1]}, "three channels"),
        (lambda: augment.random_flip(0.5, "diagonal"), BATCH, "diagonal"),
        (lambda: augment.mixup(0.2, 4), {**BATCH, "targets": jnp.zeros((6, 3))}, r"shares \[B, 4\]"),
    ],
)
def test_mistakes_are_named(make, batch, said):
    with pytest.raises(ExperimentError, match=said):
        make()(KEY, batch)


def test_steps_of_a_chain_draw_for_themselves():
    step = augment.noise(1.0)
    twice = augment.chain(step, step)(KEY, {"inputs": jnp.zeros((4, 50, 2))})["inputs"]
    assert float(twice.std()) == pytest.approx(np.sqrt(2), rel=0.1)  # the same draw twice would give 2
    parts = [step(jax.random.fold_in(KEY, index), {"inputs": jnp.zeros((4, 50, 2))})["inputs"] for index in range(2)]
    np.testing.assert_allclose(twice, functools.reduce(jnp.add, parts), atol=1e-6)
