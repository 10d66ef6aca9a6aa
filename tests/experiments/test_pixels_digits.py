"""Pixels as tokens: the images and splits of the dataset, and augmented images marked by their first token."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from foldax import data
from tests.conftest import ROOT, shrunk

EXPERIMENT, CONFIG = shrunk(ROOT / "experiments" / "generative" / "pixels_digits.py")
MODULE = sys.modules[EXPERIMENT.learner.__module__]


def rows_of(split) -> np.ndarray:
    return np.concatenate([np.asarray(block.batches["inputs"])[np.asarray(block.mask)] for block in split.blocks()])


@pytest.mark.parametrize("conditional", [False, True])
def test_the_test_images_are_those_of_the_dataset(conditional: bool) -> None:
    tokens = MODULE.dataset(dataclasses.replace(CONFIG, conditional=conditional))
    images = data.load("digits", batch_size=CONFIG.batch_size)
    rows = rows_of(tokens.splits["test"])
    np.testing.assert_array_equal(MODULE.to_images(rows[:, 1:]), rows_of(images.splits["test"]))
    assert tokens.info.num_examples == images.info.num_examples
    assert len(np.unique(rows[:, 0])) == (10 if conditional else 1)
    assert rows[:, 0].max() + 1 < tokens.info.vocabulary_size  # room for the first token of augmented images


@pytest.mark.parametrize(("fraction", "strength"), [(0.0, 1.0), (1.0, 0.0), (1.0, 0.5), (0.5, 0.5)])
def test_exactly_the_augmented_images_are_marked_by_their_first_token(fraction: float, strength: float) -> None:
    rows = np.asarray(MODULE.dataset(CONFIG).train.examples()["inputs"])[:64]
    config = dataclasses.replace(CONFIG, augmented_fraction=fraction, augmentation_strength=strength)
    augmented = np.asarray(MODULE.augmentation(config)(jax.random.key(0), {"inputs": rows})["inputs"])
    marked = augmented[:, 0] == MODULE.NUM_LEVELS + 1
    np.testing.assert_array_equal(augmented[~marked], rows[~marked])
    assert marked.mean() == pytest.approx(fraction, abs=0.2)
    changed = (augmented[:, 1:] != rows[:, 1:]).any(axis=1)
    assert changed.mean() == pytest.approx(fraction if strength else 0, abs=0.2)
    assert augmented[:, 1:].min() >= 0
    assert augmented[:, 1:].max() < MODULE.NUM_LEVELS
