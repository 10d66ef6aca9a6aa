"""Pixels as tokens: the same images and splits as everywhere, and changed ones that say so."""

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
    np.testing.assert_array_equal(MODULE.images_of(rows[:, 1:]), rows_of(images.splits["test"]))
    assert tokens.info.num_examples == images.info.num_examples
    assert len(np.unique(rows[:, 0])) == (10 if conditional else 1)
    assert rows[:, 0].max() + 1 < tokens.info.vocabulary_size  # room for the token of changed images


@pytest.mark.parametrize(("share", "amount"), [(0.0, 1.0), (1.0, 0.0), (1.0, 0.5), (0.5, 0.5)])
def test_changed_images_and_they_alone_have_the_other_first_token(share: float, amount: float) -> None:
    rows = np.asarray(MODULE.dataset(CONFIG).train.examples()["inputs"])[:64]
    config = dataclasses.replace(CONFIG, changed=share, amount=amount)
    changed = np.asarray(MODULE.changes(config)(jax.random.key(0), {"inputs": rows})["inputs"])
    said = changed[:, 0] == MODULE.LEVELS + 1
    np.testing.assert_array_equal(changed[~said], rows[~said])
    assert said.mean() == pytest.approx(share, abs=0.2)
    assert (changed[:, 1:] != rows[:, 1:]).any(axis=1).mean() == pytest.approx(share if amount else 0, abs=0.2)
    assert changed[:, 1:].min() >= 0
    assert changed[:, 1:].max() < MODULE.LEVELS
