"""Baseline densities of discrete images, in bits per pixel, which a learned density should undercut.

Images are integers 0 to `num_levels` - 1, `[N, ...]`, all of one shape.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from foldax.errors import ExperimentError


def histogram_bits(train: ArrayLike, test: ArrayLike, num_levels: int) -> float:
    """Bits per pixel of test images under independent histograms of each pixel.

    Every level is counted once more than it occurs in `train` (Laplace's rule of succession).

    Args:
      train: images, int `[N, ...]`.
      test: images, int `[M, ...]`.
      num_levels: number of levels of a pixel.

    Returns:
      Bits per pixel.

    Raises:
      ExperimentError: images are not integers from 0 to `num_levels` - 1, or their shapes differ.

    >>> histogram_bits(np.array([[0], [1]]), np.array([[0], [1]]), num_levels=2)
    1.0
    """
    train, test = _as_rows(train, num_levels, "train"), _as_rows(test, num_levels, "test")
    _check_same_width(train, test)
    # One row of counts per pixel: [pixels, num_levels]
    counts = np.stack([np.bincount(pixel, minlength=num_levels) for pixel in train.T]) + 1.0
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    # Row p of the fancy index is pixel p; images are broadcast along the first axis.
    return float(-np.log2(probabilities[np.arange(train.shape[1]), test]).mean())


def mixture_bits(
    train: ArrayLike,
    validation: ArrayLike,
    test: ArrayLike,
    num_levels: int,
    components: Sequence[int] = (5, 10, 20, 40),
    seed: int = 0,
) -> float:
    """Bits per pixel of test images under the best of several Gaussian mixtures.

    Levels are dequantised with uniform noise of width 1, which makes the result an upper bound (Theis et al., 2016).
    The mixtures are scikit-learn's, with full covariances; the number of components and the covariance regularisation
    are selected on `validation`.

    Args:
      train: images, int `[N, ...]`.
      validation: images that select the mixture.
      test: images that are scored.
      num_levels: number of levels of a pixel.
      components: numbers of components to try.
      seed: seed of the noise and of the fits.

    Returns:
      Bits per pixel.

    Raises:
      ExperimentError: images are not integers from 0 to `num_levels` - 1, or their shapes differ.

    >>> images = np.random.RandomState(0).randint(0, 4, (60, 2))
    >>> round(mixture_bits(images, images, images, num_levels=4, components=(1,)), 0)
    2.0
    """
    from sklearn.mixture import GaussianMixture

    rows = [_as_rows(images, num_levels, name) for images, name in ((train, "train"), (validation, "validation"))]
    rows.append(_as_rows(test, num_levels, "test"))
    _check_same_width(*rows)
    random = np.random.RandomState(seed)
    # A continuous density of width-1 noise around a level has the level's probability as its mass.
    dequantized = [images + random.uniform(size=images.shape) for images in rows]
    scores = []
    for count in components:
        # A low floor of the variances overfits, a high one blurs the levels; validation decides.
        for floor in (0.1, 0.3, 1.0):
            mixture = GaussianMixture(count, reg_covar=floor, random_state=seed, max_iter=200).fit(dequantized[0])
            # Nats per image to bits per pixel, for validation and test.
            scores.append([-mixture.score(images) / (rows[0].shape[1] * np.log(2)) for images in dequantized[1:]])
    return float(min(scores)[1])  # the test score of the best on validation


def _as_rows(images: ArrayLike, num_levels: int, name: str) -> np.ndarray:
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.integer) or images.ndim < 2:
        raise ExperimentError(f"{name}: must be integers [N, ...], got {images.dtype} {list(images.shape)}")
    if not images.size or images.min() < 0 or images.max() >= num_levels:
        extent = f"{images.min()} to {images.max()}" if images.size else "no images"
        raise ExperimentError(f"{name}: levels must be 0 to {num_levels - 1}, got {extent}")
    return images.reshape(len(images), -1).astype(np.int64)


def _check_same_width(*rows: np.ndarray) -> None:
    if len({images.shape[1] for images in rows}) > 1:
        raise ExperimentError(f"images must have the same number of pixels, got {[len(r[0]) for r in rows]}")
