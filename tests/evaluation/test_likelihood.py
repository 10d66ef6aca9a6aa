"""Baseline densities: by hand, and on data of a known entropy."""

import numpy as np
import pytest
from scipy import stats

from foldax.errors import ExperimentError
from foldax.evaluation import likelihood


def test_histogram_bits_match_a_count_by_hand():
    train, test = np.array([[0, 2], [0, 1], [1, 1]]), np.array([[0, 1], [2, 0]])
    # Pixel 0 was 0 twice and 1 once, pixel 1 was 1 twice and 2 once; each level counts once more.
    probabilities = [3 / 6, 3 / 6, 1 / 6, 1 / 6]
    assert likelihood.histogram_bits(train, test, 3) == pytest.approx(-np.log2(probabilities).mean())


def test_histogram_bits_of_the_training_images_approach_the_entropy():
    levels = np.random.RandomState(0).binomial(4, 0.3, (20_000, 3, 2))
    entropy = stats.binom(4, 0.3).entropy() / np.log(2)
    assert likelihood.histogram_bits(levels, levels, 5) == pytest.approx(entropy, abs=0.01)


def test_mixture_bits_approach_the_entropy_of_a_normal_density():
    rng = np.random.RandomState(0)
    mixing = rng.randn(3, 3) * 3
    train, validation, test = (np.rint(rng.randn(4000, 3) @ mixing.T).astype(int) for _ in range(3))
    shift = min(images.min() for images in (train, validation, test))
    levels = max(images.max() for images in (train, validation, test)) - shift + 1
    exact = stats.multivariate_normal(np.zeros(3), mixing @ mixing.T).entropy() / (3 * np.log(2))
    bits = likelihood.mixture_bits(train - shift, validation - shift, test - shift, levels, (1, 2))
    assert bits == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), "train: must be integers"),
        (np.zeros((2, 3), int), np.full((2, 3), 5), "test: levels must be 0 to 4, got 5 to 5"),
        (np.zeros((2, 3), int), np.zeros((2, 4), int), "the same number of pixels, got"),
        (np.zeros((0, 3), int), np.zeros((2, 3), int), "got no images"),
    ],
)
def test_invalid_images_raise_a_helpful_error(train, test, message):
    with pytest.raises(ExperimentError, match=message):
        likelihood.histogram_bits(train, test, 5)
