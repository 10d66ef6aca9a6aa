"""Augmentations: invariants, known answers, limits, and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from foldax import augment, learners, models
from foldax.errors import ConfigError, DataError, ExperimentError

KEY = jax.random.key(0)
IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 10, 3)).astype(np.uint8)
SERIES = np.random.RandomState(0).randn(6, 12, 2).astype(np.float32)
LABELS = np.arange(6) % 3
BATCH = {"inputs": jnp.asarray(IMAGES), "targets": jnp.asarray(LABELS), "extra": jnp.arange(6)}
FLOATS = {**BATCH, "inputs": BATCH["inputs"] / 255.0}
SERIES_BATCH = {**BATCH, "inputs": jnp.asarray(SERIES)}
ANY_INPUTS = {
    "gaussian_noise": augment.gaussian_noise(0.3),
    "mixup": augment.mixup(0.4, 3),
    "cutmix": augment.cutmix(1.0, 3),
    "random_apply": augment.random_apply(augment.gaussian_noise(2.0), 0.5),
}
IMAGE_INPUTS = ANY_INPUTS | {
    "random_crop": augment.random_crop(2),
    "random_flip": augment.random_flip(0.5),
    "random_rotation": augment.random_rotation(30.0),
    "random_affine": augment.random_affine(20.0, 0.1, 0.1, 5.0),
    "color_jitter": augment.color_jitter(0.1, 0.1, 0.1, 0.1),
    "cutout": augment.cutout(3),
}
SERIES_INPUTS = ANY_INPUTS | {
    "time_mask": augment.time_mask(4, count=2),
    "channel_mask": augment.channel_mask(1),
    "random_shift": augment.random_shift(3),
    "random_scaling": augment.random_scaling(0.1),
}
CASES = [
    *(pytest.param(step, BATCH, id=f"bytes_{name}") for name, step in IMAGE_INPUTS.items() if name != "gaussian_noise"),
    *(
        pytest.param(IMAGE_INPUTS[name], FLOATS, id=f"floats_{name}")
        for name in ("gaussian_noise", "random_affine", "color_jitter")
    ),
    *(pytest.param(step, SERIES_BATCH, id=f"series_{name}") for name, step in SERIES_INPUTS.items()),
]


def inputs_after(step, inputs, key=KEY, **fields):
    return np.asarray(step(key, {"inputs": jnp.asarray(inputs), **fields})["inputs"])


@pytest.mark.parametrize(("step", "batch"), CASES)
def test_an_augmentation_is_pure_and_changes_inputs_and_at_most_soft_labels(step, batch):
    run = jax.jit(step)
    first, again, other = run(KEY, batch), run(KEY, batch), run(jax.random.key(1), batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["inputs"], other["inputs"])
    assert not np.array_equal(first["inputs"], batch["inputs"])
    assert first["inputs"].shape == batch["inputs"].shape
    assert first["inputs"].dtype == batch["inputs"].dtype
    np.testing.assert_array_equal(first["extra"], batch["extra"])
    if first["targets"].ndim == 1:
        np.testing.assert_array_equal(first["targets"], batch["targets"])
    else:
        assert first["targets"].shape == (6, 3)
        np.testing.assert_allclose(first["targets"].sum(axis=1), 1.0, rtol=1e-6)


SMALL = [
    augment.random_crop(1, mode="edge"),
    augment.random_flip(),
    augment.random_affine(10.0, 0.2, 0.1, 3.0),
    augment.color_jitter(0.1, 0.1, max_value=200.0),
    augment.cutout(1),
    augment.cutmix(1.0, 5),
]


@settings(max_examples=8, deadline=None)
@given(
    step=st.sampled_from(SMALL),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    channels=st.integers(1, 4),
    kind=st.sampled_from([np.uint8, np.float32]),
)
def test_any_shape_and_dtype_is_kept(step, shape, channels, kind):
    x = (200 * np.random.RandomState(0).rand(*shape, channels)).astype(kind)
    augmented = jax.jit(step)(KEY, {"inputs": jnp.asarray(x), "targets": jnp.zeros(len(x), int)})
    assert augmented["inputs"].shape == x.shape
    assert augmented["inputs"].dtype == kind
    assert augmented["inputs"].min() >= 0
    assert augmented["inputs"].max() <= 200


@pytest.mark.parametrize(
    "step",
    [
        augment.random_crop(0),
        augment.random_flip(0.0),
        augment.random_affine(),
        augment.random_rotation(jnp.float32(0.0)),
        augment.color_jitter(),
        augment.color_jitter(0.0, 0.0, 0.0, 0.0),
        augment.gaussian_noise(0.0),
        augment.cutout(0),
        augment.mixup(0.0, 3),
        augment.cutmix(0.0, 3),
        augment.random_apply(augment.cutout(3), 0.0),
        augment.chain(),
    ],
)
def test_zero_strength_is_the_identity(step):
    np.testing.assert_array_equal(jax.jit(step)(KEY, BATCH)["inputs"], IMAGES)


@pytest.mark.parametrize("step", [augment.random_scaling(0.0), augment.random_shift(0), augment.time_mask(0)])
def test_zero_strength_is_the_identity_on_series(step):
    np.testing.assert_array_equal(step(KEY, SERIES_BATCH)["inputs"], SERIES)


def test_traced_arguments_compile_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(strength):
        step = augment.chain(
            augment.random_apply(augment.random_affine(30 * strength, strength, strength, strength), strength),
            augment.random_flip(strength),
            augment.color_jitter(strength, strength, strength, strength),
            augment.gaussian_noise(strength),
            augment.mixup(strength, 3),
            augment.cutmix(strength, 3),
        )
        return step(KEY, FLOATS)

    for strength in (0.0, 0.1, 0.5):
        augmented = run(jnp.float32(strength))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(augmented))
        np.testing.assert_allclose(augmented["targets"].sum(axis=1), 1.0, rtol=1e-6)


def test_flip_of_probability_one_mirrors_all():
    np.testing.assert_array_equal(augment.random_flip(1.0)(KEY, BATCH)["inputs"], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(augment.random_flip(1.0, "vertical")(KEY, BATCH)["inputs"], IMAGES[:, ::-1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_crop_is_the_padded_image_cut_out_somewhere_and_everywhere(mode):
    augmented = inputs_after(augment.random_crop(2, mode=mode, fill=9), np.tile(IMAGES[:1], (400, 1, 1, 1)))
    options = {"constant_values": 9} if mode == "constant" else {}
    padded = np.pad(IMAGES[0], [(2, 2), (2, 2), (0, 0)], mode=mode, **options)
    places = {padded[r : r + 8, c : c + 10].tobytes(): (r, c) for r in range(5) for c in range(5)}
    assert {places[image.tobytes()] for image in augmented} == set(places.values())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), fill=st.floats(-2.0, 2.0))
def test_resampling_is_that_of_scipy(seed, fill):
    random = np.random.RandomState(seed)
    x = random.randn(2, 5, 7, 2).astype(np.float32)
    rows, columns = random.uniform(-3, 8, (2, 5, 7)), random.uniform(-3, 10, (2, 5, 7))
    rows[0, 0, :4], columns[0, 0, :4] = [0, 4, -1, 5], [0, 6, -1, 7]  # corners, and where the fill begins
    augmented = augment.resample(jnp.asarray(x), jnp.float32(rows), jnp.float32(columns), fill)
    for image in range(2):
        for channel in range(2):
            places = [rows[image].astype(np.float32), columns[image].astype(np.float32)]
            expected = scipy.ndimage.map_coordinates(
                x[image, ..., channel].astype(float), places, order=1, mode="grid-constant", cval=fill
            )
            np.testing.assert_allclose(augmented[image, ..., channel], expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["rotation", "translation", "scale", "shear"])
def test_affine_is_that_of_scipy(kind):
    """One parameter alone is random; scipy transforms the image by its sampled value."""
    size = {"rotation": 30.0, "translation": 0.2, "scale": 0.3, "shear": 20.0}[kind]
    image = np.random.RandomState(0).rand(1, 13, 15, 1).astype(np.float32)
    augmented = inputs_after(augment.random_affine(**{kind: size}), image)[0, :, :, 0]
    samples = np.asarray(jax.random.uniform(KEY, (5, 1, 1, 1), minval=-1.0, maxval=1.0), np.float64).ravel()
    angle = np.deg2rad(samples[0] * 30) if kind == "rotation" else 0.0
    slope = np.tan(np.deg2rad(samples[1] * 20)) if kind == "shear" else 0.0
    zoom = 1 + samples[2] * 0.3 if kind == "scale" else 1.0
    moved = samples[3:] * 0.2 * np.array([13, 15]) if kind == "translation" else np.zeros(2)
    # Forward: shear, scale, rotation, translation; scipy takes the inverse.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ (zoom * np.array([[1, 0], [slope, 1]])))
    center = np.array([6.0, 7.0])
    expected = scipy.ndimage.affine_transform(
        image[0, :, :, 0].astype(float), inverse, center - inverse @ (center + moved), order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(augmented, expected, atol=1e-4)
    assert not np.allclose(augmented, image[0, :, :, 0], atol=0.1)


def test_rotation_is_that_of_scipy():
    image = np.pad(np.random.RandomState(0).rand(7, 7), 4)
    augmented = inputs_after(augment.random_rotation(45.0), image[None, :, :, None].astype(np.float32))[0, :, :, 0]
    angle = 45.0 * float(jax.random.uniform(KEY, (5, 1, 1, 1), minval=-1.0, maxval=1.0)[0, 0, 0, 0])
    expected = scipy.ndimage.rotate(image, angle, reshape=False, order=1)
    np.testing.assert_allclose(augmented, expected, atol=1e-4)


def test_cutout_covers_one_square():
    augmented = inputs_after(augment.cutout(3, fill=7), np.ones((300, 9, 9, 1), np.float32))[..., 0] == 7
    for hole in augmented:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 3
        assert np.ptp(rows) == len(rows) - 1
    inner = augmented[:, 4, 4].mean()  # each of the 9 x 9 centres is as likely, and 9 of them reach the middle
    assert inner == pytest.approx(9 / 81, abs=0.06)


def test_brightness_and_contrast_change_within_their_range():
    grey = np.full((50, 4, 4, 3), 100, np.uint8)
    augmented = inputs_after(augment.color_jitter(brightness=0.2), grey).astype(int)
    assert (np.ptp(augmented.reshape(50, -1), axis=1) == 0).all()
    assert len(np.unique(augmented[:, 0, 0, 0])) > 20
    assert np.abs(augmented - 100).max() in range(40, 52)
    contrast = inputs_after(augment.color_jitter(contrast=0.5), np.tile(IMAGES[:1] // 4 + 90, (50, 1, 1, 1))).astype(
        float
    )
    spread = contrast.std(axis=(1, 2))[:, 0] / (IMAGES[0] // 4).std(axis=(0, 1))[0]
    assert 0.5 - 0.02 <= spread.min() < 0.6
    assert 1.4 < spread.max() <= 1.5 + 0.02
    np.testing.assert_allclose(
        contrast.mean(axis=(1, 2)), np.tile((IMAGES[0] // 4 + 90.0).mean((0, 1)), (50, 1)), atol=0.5
    )


def test_saturation_and_hue_keep_the_value_and_grey():
    vivid = np.random.RandomState(0).rand(20, 4, 4, 3).astype(np.float32)
    for step in (augment.color_jitter(saturation=0.5), augment.color_jitter(hue=0.3)):
        augmented = inputs_after(step, vivid)
        np.testing.assert_allclose(augmented.max(axis=3), vivid.max(axis=3), atol=1e-5)  # the V of HSV
        assert np.abs(augmented - vivid).max() > 0.1
        grey = np.repeat(vivid[..., :1], 3, axis=3)
        np.testing.assert_allclose(inputs_after(step, grey), grey, atol=1e-5)


def test_noise_has_its_standard_deviation():
    augmented = jax.jit(lambda std: augment.gaussian_noise(std)(KEY, {"inputs": jnp.zeros((100, 20, 5))}))(0.3)[
        "inputs"
    ]
    assert float(augmented.std()) == pytest.approx(0.3, rel=0.03)
    assert float(augmented.mean()) == pytest.approx(0.0, abs=0.01)
    bytes_ = inputs_after(augment.gaussian_noise(3.0), np.full((100, 20, 5, 1), 128, np.uint8)).astype(float)
    assert bytes_.std() == pytest.approx(3.0, rel=0.03)
    assert set(np.unique(inputs_after(augment.gaussian_noise(900.0), IMAGES))) >= {0, 255}  # clipped, not wrapped


def test_mixup_mixes_inputs_and_targets_by_the_same_beta_weight():
    count = 4000
    targets = jnp.arange(count) % 2
    inputs = jnp.broadcast_to(targets[:, None, None].astype(jnp.float32), (count, 2, 1))
    mixed = jax.jit(lambda alpha: augment.mixup(alpha, 2)(KEY, {"inputs": inputs, "targets": targets}))(0.4)
    np.testing.assert_allclose(mixed["inputs"][:, 0, 0], mixed["targets"][:, 1], atol=1e-6)
    own = np.take_along_axis(np.asarray(mixed["targets"]), np.asarray(targets)[:, None], axis=1)[:, 0]
    law = beta(0.4, 0.4)
    assert own.mean() == pytest.approx(law.mean(), abs=0.03)
    assert own.var() == pytest.approx(law.var(), rel=0.05)
    assert (own < 0.25).mean() == pytest.approx(law.cdf(0.25), abs=0.03)


@pytest.mark.parametrize("shape", [(12, 9, 1), (20, 1)])
def test_cutmix_probabilities_are_the_fractions_of_pixels(shape):
    targets = jnp.arange(120) % 3
    inputs = jnp.broadcast_to(targets.reshape(-1, *[1] * len(shape)), (120, *shape))
    mixed = augment.cutmix(1.0, 3)(KEY, {"inputs": inputs, "targets": targets})
    pixels = (np.asarray(mixed["inputs"]).reshape(120, -1, 1) == np.arange(3)).mean(axis=1)
    np.testing.assert_allclose(mixed["targets"], pixels, atol=1e-6)
    boxes = np.asarray(mixed["inputs"] != inputs)[..., 0]
    if len(shape) == 3:  # the pasted part is a box
        assert (boxes == boxes.any(2, keepdims=True) & boxes.any(1, keepdims=True)).all()
    assert 0.1 < boxes.mean() < 0.5


def test_soft_labels_can_be_mixed_again():
    twice = augment.chain(augment.mixup(1.0, 3), augment.cutmix(1.0, 3))(KEY, FLOATS)
    np.testing.assert_allclose(twice["targets"].sum(axis=1), 1.0, rtol=1e-6)
    soft = augment.chain(augment.soft_targets(3), augment.random_apply(augment.mixup(1.0, 3), 0.5))(KEY, FLOATS)
    kept = (soft["inputs"] == FLOATS["inputs"]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(soft["targets"][kept], np.eye(3)[LABELS][kept])
    assert 0 < kept.sum() < 6


def test_masks_cover_consecutive_steps_of_every_length():
    ones = np.ones((500, 8, 3), np.float32)
    hidden = inputs_after(augment.time_mask(3), ones) == 0
    assert (hidden.all(axis=2) == hidden.any(axis=2)).all()
    steps = hidden[:, :, 0]
    counts = np.bincount(steps.sum(axis=1)) / 500
    np.testing.assert_allclose(counts, 0.25, atol=0.07)
    assert all(np.ptp(np.flatnonzero(row)) == row.sum() - 1 for row in steps if row.any())
    channels = inputs_after(augment.channel_mask(2, fill=5), ones) == 5
    assert (channels.all(axis=1) == channels.any(axis=1)).all()
    assert set(channels[:, 0].sum(axis=1)) == {0, 1, 2}
    assert (inputs_after(augment.time_mask(3, count=2), ones) == 0)[:, :, 0].sum(axis=1).max() > 3


@pytest.mark.parametrize("mode", ["edge", "constant", "wrap"])
def test_a_shift_moves_series_and_their_mask(mode):
    mask = jnp.broadcast_to(jnp.arange(12) < 7, (100, 12))
    batch = {"inputs": jnp.asarray(np.tile(SERIES[:1], (100, 1, 1))), "mask": mask}
    augmented = augment.random_shift(2, mode=mode)(KEY, batch)
    padded = np.pad(SERIES[0], [(2, 2), (0, 0)], mode=mode)
    places = {padded[start : start + 12].tobytes(): start for start in range(5)}
    starts = [places[np.asarray(series).tobytes()] for series in augmented["inputs"]]
    assert set(starts) == set(range(5))
    masks = np.pad(np.arange(12) < 7, 2, mode="wrap" if mode == "wrap" else "constant")
    for start, moved in zip(starts, augmented["mask"]):
        np.testing.assert_array_equal(moved, masks[start : start + 12])


def test_scaling_multiplies_whole_channels():
    augmented = inputs_after(augment.random_scaling(0.2), np.ones((2000, 4, 3), np.float32))
    assert (np.ptp(augmented, axis=1) == 0).all()
    assert augmented[:, 0].std() == pytest.approx(0.2, rel=0.05)
    assert augmented[:, 0].mean() == pytest.approx(1.0, abs=0.02)


def test_random_apply_changes_its_fraction_of_examples():
    ones = {"inputs": jnp.ones((2000, 3, 3, 1))}
    step = jax.jit(lambda probability: augment.random_apply(augment.gaussian_noise(1.0), probability)(KEY, ones))
    changed = (np.asarray(step(0.3)["inputs"]) != 1).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.04)
    assert (step(1.0)["inputs"] != 1).any(axis=(1, 2, 3)).all()


def test_augmentations_of_a_chain_have_their_own_keys():
    step = augment.gaussian_noise(1.0)
    twice = augment.chain(step, step)(KEY, {"inputs": jnp.zeros((4, 50, 2))})["inputs"]
    assert float(twice.std()) == pytest.approx(np.sqrt(2), rel=0.1)  # the same noise twice would give 2
    parts = [step(jax.random.fold_in(KEY, index), {"inputs": jnp.zeros((4, 50, 2))})["inputs"] for index in range(2)]
    np.testing.assert_allclose(twice, functools.reduce(jnp.add, parts), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "batch", "error", "message"),
    [
        (lambda: augment.random_crop(-1), BATCH, ConfigError, "padding -1 does not fit images 8 x 10"),
        (lambda: augment.random_crop(9), BATCH, ConfigError, "padding 9 does not fit images 8 x 10"),
        (
            lambda: augment.random_crop(2),
            SERIES_BATCH,
            ExperimentError,
            r"must be \[B, H, W, C\], and are \[6, 12, 2\]",
        ),
        (lambda: augment.random_flip(1.5), BATCH, ConfigError, "probability 1.5 is out of range"),
        (lambda: augment.random_flip(0.5, "diagonal"), BATCH, ConfigError, "diagonal"),
        (lambda: augment.random_affine(scale=2.0), BATCH, ConfigError, "scale 2.0 is out of range"),
        (lambda: augment.cutout(9), BATCH, ConfigError, "size 9 does not fit images 8 x 10"),
        (lambda: augment.cutout(2.5), BATCH, ConfigError, "size 2.5"),
        (
            lambda: augment.color_jitter(hue=0.1),
            {"inputs": BATCH["inputs"][..., :1]},
            ExperimentError,
            "3 channels.*have 1",
        ),
        (lambda: augment.color_jitter(contrast=-0.1), BATCH, ConfigError, "contrast -0.1"),
        (lambda: augment.time_mask(3), BATCH, ExperimentError, r"must be \[B, T, C\]"),
        (lambda: augment.time_mask(13), SERIES_BATCH, ConfigError, r"max_length 13 does not fit inputs \[6, 12, 2\]"),
        (lambda: augment.channel_mask(3), SERIES_BATCH, ConfigError, "max_length 3"),
        (lambda: augment.random_shift(13), SERIES_BATCH, ConfigError, "max_steps 13 does not fit series of 12 steps"),
        (lambda: augment.gaussian_noise(1.0), {"inputs": jnp.ones((2, 5), int)}, ExperimentError, "tokens"),
        (
            lambda: augment.mixup(0.2, 4),
            {**BATCH, "targets": jnp.zeros((6, 3))},
            ExperimentError,
            r"probabilities \[B, 4\]",
        ),
        (lambda: augment.mixup(0.2, 3), {**BATCH, "targets": jnp.zeros(6)}, ExperimentError, r"float32\[6\]"),
        (lambda: augment.mixup(0.2, 2), BATCH, DataError, "from 0 to 1 .* has class 2"),
        (lambda: augment.mixup(0.2, 3), {**BATCH, "targets": jnp.arange(6) - 1}, DataError, "has class -1"),
        (lambda: augment.mixup(0.2, None), BATCH, ConfigError, "num_classes None is no number.*info.num_classes"),
        (lambda: augment.mixup(0.2, 3), {**SERIES_BATCH, "mask": jnp.ones((6, 12))}, ExperimentError, "with a mask"),
        (lambda: augment.cutmix(0.2, 3), {**BATCH, "inputs": jnp.ones((6, 4))}, ExperimentError, r"or \[B, T, C\]"),
        (lambda: augment.random_apply(augment.mixup(0.2, 3)), BATCH, ExperimentError, "soft_targets"),
    ],
)
def test_mistakes_are_errors_that_name_them(make, batch, error, message):
    with pytest.raises(error, match=message):
        make()(KEY, batch)


def test_an_unknown_class_makes_targets_nan_in_a_compiled_program():
    augmented = jax.jit(augment.mixup(0.2, 2))(KEY, BATCH)["targets"]
    assert bool(jnp.isnan(augmented).any())


def test_a_classifier_trains_on_mixed_images():
    import optax

    steps = augment.chain(augment.random_crop(1), augment.mixup(0.2, 3))
    learner = learners.classifier(models.MLP((8, 3)), optax.adam(1e-2), augment=steps)
    state = learner.init(KEY, FLOATS)
    for step in range(2):
        state, metrics = jax.jit(learner.update)(state, FLOATS, jax.random.key(step))
    assert np.isfinite(metrics["loss"])
