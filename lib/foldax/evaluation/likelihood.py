"""What simple densities say of images in grey levels, in bits for each pixel: what a learned one has to be below.

Images are integers 0 to `levels` - 1, `[N, ...]`, of one shape after N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foldax.errors import ExperimentError


def histogram_bits(train: Any, test: Any, levels: int) -> float:
    """Returns the bits per pixel of test images whose pixels are independent, each with its histogram in `train`.

    Every level counts as seen once more than it was (Laplace's rule).

    Raises:
      ExperimentError: images are not integers 0 to `levels` - 1, or shapes differ.
    """
    train, test = _rows(train, levels, "train"), _rows(test, levels, "test")
    _same_width(train, test)
    counts = np.stack([np.bincount(column, minlength=levels) for column in train.T]) + 1.0
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log2(shares[np.arange(train.shape[1]), test]).mean())


def mixture_bits(
    train: Any, validation: Any, test: Any, levels: int, components: Sequence[int] = (5, 10, 20, 40), seed: int = 0
) -> float:
    """Returns the bits per pixel of test images in the best of several mixtures of normal densities.

    Each level is spread evenly over its width of 1, so that a density has bits (a bound: Theis et al., 2016). The
    mixtures are scikit-learn's, with full covariances; the number of components and the least variance are those with
    the fewest bits on `validation`.

    Raises:
      ExperimentError: images are not integers 0 to `levels` - 1, or shapes differ.
    """
    from sklearn.mixture import GaussianMixture

    rows = [_rows(images, levels, name) for images, name in ((train, "train"), (validation, "validation"))]
    rows.append(_rows(test, levels, "test"))
    _same_width(*rows)
    noise = np.random.RandomState(seed)
    spread = [images + noise.uniform(size=images.shape) for images in rows]
    scores = []
    for count in components:
        for least in (0.1, 0.3, 1.0):
            mixture = GaussianMixture(count, reg_covar=least, random_state=seed, max_iter=200).fit(spread[0])
            scores.append([-mixture.score(images) / (rows[0].shape[1] * np.log(2)) for images in spread[1:]])
    return float(min(scores)[1])


def _rows(images: Any, levels: int, name: str) -> np.ndarray:
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.integer) or images.ndim < 2:
        raise ExperimentError(f"{name}: must be integers [N, ...], got {images.dtype} {list(images.shape)}")
    if not images.size or images.min() < 0 or images.max() >= levels:
        span = f"{images.min()} to {images.max()}" if images.size else "none at all"
        raise ExperimentError(f"{name}: levels must be 0 to {levels - 1}, got {span}")
    return images.reshape(len(images), -1).astype(np.int64)


def _same_width(*rows: np.ndarray) -> None:
    if len({images.shape[1] for images in rows}) > 1:
        raise ExperimentError(f"images must have equally many pixels, got {[images.shape[1] for images in rows]}")
