"""Sampling with replacement: the examples of a batch are chosen by weight, as a function of the seed and the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import DataError
from foldax.mesh import replicate

MAX_DRAW = 2**32 - 2  # of the random integers that choose an example
ROW_STREAM, TRANSFORM_STREAM = 0, 1  # of the random numbers of a batch on the host


def sampling_bounds(weights: np.ndarray) -> np.ndarray:
    """Divides the integers up to `MAX_DRAW` among examples, in proportion to their weights.

    Args:
      weights: `[N]`, at least 0, not all of them 0.

    Returns:
      uint32 `[N]`: example i has the integers from the bound of the one before it (0 for the first) up to, but not
      including, its own. Integers, so that every device draws the same examples.

    >>> sampling_bounds(np.array([1.0, 0.0, 3.0])).tolist()
    [1073741824, 1073741824, 4294967295]
    """
    ends = np.cumsum(np.asarray(weights, np.float64))
    return np.round(ends / ends[-1] * (MAX_DRAW + 1)).astype(np.uint32)


def probabilities(bounds: np.ndarray | None, num_examples: int) -> np.ndarray:
    """Returns the probability of each example `[N]` from bounds uint32 `[N]`; None where all are equally likely.

    >>> probabilities(None, 2).tolist()
    [0.5, 0.5]
    """
    if bounds is None:
        return np.full(num_examples, 1 / num_examples)
    return np.diff(bounds.astype(np.float64), prepend=0.0) / (MAX_DRAW + 1)


class WeightedFeed(NamedTuple):
    """Draws the batch of a step from `(examples, bounds)` on the device, with replacement; static under jit."""

    num_examples: int
    batch_size: int

    def batch(self, data: Any, key: jax.Array, step: jax.Array, start: jax.Array) -> dict[str, jax.Array]:
        """Draws the batch `[B, ...]` of a step; it depends only on the key and the step."""
        examples, bounds = data
        draws = jax.random.bits(jax.random.fold_in(key, step), (self.batch_size,), jnp.uint32)
        rows = replicate(jnp.searchsorted(bounds, jnp.minimum(draws, jnp.uint32(MAX_DRAW)), side="right"))
        return {name: array.at[rows].get(mode="promise_in_bounds") for name, array in examples.items()}


def draw_rows(bounds: np.ndarray, seed: int, batch_size: int, number: int) -> np.ndarray:
    """Draws the examples of a batch on the host, int `[B]`; it depends only on the seed and the batch's number."""
    draws = batch_generator(seed, number, ROW_STREAM).integers(0, MAX_DRAW + 1, batch_size, np.uint32)
    return np.searchsorted(bounds, draws, side="right")


def batch_generator(seed: int, number: int, stream: int) -> np.random.Generator:
    """Makes a random generator of a batch on the host, from the seed and the batch's number.

    Args:
      seed: seed of the order, below 2**64.
      number: number of the batch.
      stream: what the random numbers are for: `ROW_STREAM` chooses examples, `TRANSFORM_STREAM` transforms them.

    >>> bool(batch_generator(0, 1, 0).random() == batch_generator(0, 1, 0).random())
    True
    >>> bool(batch_generator(0, 1, 0).random() == batch_generator(0, 1, 1).random())
    False
    """
    # A counter-based generator (Salmon, Moraes, Dror & Shaw, 2011): every key has an independent stream. The streams of
    # one key have 2**192 blocks of its counter each.
    return np.random.Generator(np.random.Philox(counter=stream << 192, key=(seed << 64) + int(number)))


def example_weights(weights: Any, name: str, labels: np.ndarray | None, train: np.ndarray, own: range) -> np.ndarray:
    """Returns the weight of each training example, float64 `[N]`.

    Args:
      weights: "balanced", or a weight for each of the examples that the training split is chosen from.
      name: name of the dataset.
      labels: class of each example of the dataset, or None.
      train: indices of the training split, `[N]`.
      own: indices of the examples that it is chosen from.

    Raises:
      DataError: there are no classes to balance, or the weights do not fit.

    >>> example_weights("balanced", "toy", np.array([0, 0, 1]), np.arange(3), range(3)).tolist()
    [0.5, 0.5, 1.0]
    """
    if isinstance(weights, str):
        if weights != "balanced":
            raise DataError(f"{name}: weights={weights!r} is neither 'balanced' nor an array of one weight per example")
        if labels is None:
            raise DataError(f"{name}: weights='balanced' needs classes, which are integer 'targets' [N]")
        return 1.0 / np.bincount(labels[train])[labels[train]]
    array = np.asarray(weights)
    if array.shape != (len(own),) or array.dtype.kind not in "biuf":
        found = f"{array.dtype}{list(array.shape)}"
        raise DataError(f"{name}: weights must be numbers [{len(own)}], one for each example, not {found}")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        where = f"got {array[bad][0]} for example {np.flatnonzero(bad)[0]}"
        raise DataError(f"{name}: weights must be finite and at least 0, {where}")
    chosen = array.astype(np.float64)[train - own.start]
    if not chosen.sum():
        raise DataError(f"{name}: all weights of the training split are 0")
    return chosen
