"""Sequences as arrays: windows of one long sequence, and padding and packing of many short ones.

A "mask" `[N, T]` is 0 at padding and otherwise holds segment ids: 1, 2, ... for the sequences of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foldax.data.conversion import as_array, check_resolution, jax_dtype
from foldax.errors import DataError


def token_windows(tokens: ArrayLike, length: int, stride: int | None = None) -> dict[str, np.ndarray]:
    """Cuts one long sequence into rows for a language model, so that every token but the first is predicted once.

    A row holds `length` inputs and the token after them, so that rows share one token if `stride` is `length`. With a
    smaller stride, rows overlap, and tokens predicted in the row before are context only: outside the first row, every
    prediction then has at least `length - stride + 1` tokens before it ("sliding-window evaluation").

    Args:
      tokens: int `[T]`, T at least 2.
      length: most tokens predicted by a row.
      stride: tokens from the start of one row to that of the next, 1 to `length`; `length` by default.

    Returns:
      "inputs" `[N, length + 1]`, and "weights" float32 `[N, length + 1]`: 1 where the token is predicted from those
      before it in its row, 0 where it is context or padding. Padding (token 0) is at the end of the last row only,
      after every prediction, so no mask is needed.

    Raises:
      DataError: there is nothing to predict, or `length` or `stride` is out of range.

    >>> rows = token_windows([5, 6, 7, 8, 9], length=3)
    >>> rows["inputs"].tolist(), rows["weights"].tolist()
    ([[5, 6, 7, 8], [8, 9, 0, 0]], [[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    """
    tokens = as_array(tokens, "tokens", unit="step")
    stride = length if stride is None else stride
    if tokens.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers, not {tokens.dtype}")
    if tokens.ndim != 1 or len(tokens) < 2:
        needed = "an array [T] of at least 2, one to predict the other"
        raise DataError(f"tokens must be {needed}, not {list(tokens.shape)}")
    if length < 1:
        raise DataError(f"length={length} is too small; it must be at least 1")
    if not 1 <= stride <= length:
        raise DataError(f"stride={stride} must be 1 to length={length}, so that no token is left out")
    # One row, and as many more as are needed to predict the last token.
    starts = stride * np.arange(1 + -(-max(0, len(tokens) - 1 - length) // stride))
    positions = starts[:, None] + np.arange(length + 1)
    # A row predicts the positions after the last one of earlier rows.
    last_predicted = np.concatenate([[0], starts[:-1] + length])
    weights = (positions > last_predicted[:, None]) & (positions < len(tokens))
    inputs = np.where(positions < len(tokens), tokens[np.minimum(positions, len(tokens) - 1)], tokens.dtype.type(0))
    return {"inputs": inputs, "weights": weights.astype(np.float32)}


def pad_sequences(
    sequences: Sequence[ArrayLike], length: int | None = None, *, too_long: str = "error"
) -> dict[str, np.ndarray]:
    """Stacks sequences of different lengths into one array, with zeros at the end of the shorter ones.

    Args:
      sequences: arrays `[T]` or `[T, C]` of numbers, none of them empty.
      length: length of every row; by default that of the longest sequence.
      too_long: treatment of longer sequences: "error", or "truncate" to keep their start.

    Returns:
      "inputs" `[N, T]` or `[N, T, C]`, and "mask" int32 `[N, T]`: 1 for the sequence, 0 for padding.

    Raises:
      DataError: a sequence is empty, has another shape than the others, or is too long; the message names the first.

    >>> arrays = pad_sequences([[1, 2, 3], [4]])
    >>> arrays["inputs"].tolist(), arrays["mask"].tolist()
    ([[1, 2, 3], [4, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    arrays = _limit_length(_as_arrays(sequences), length, too_long, ("error", "truncate"))
    length = max(map(len, arrays)) if length is None else length
    inputs = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    mask = np.zeros((len(arrays), length), np.int32)
    for row, array in enumerate(arrays):
        # Everything after the sequence stays 0.
        inputs[row, : len(array)], mask[row, : len(array)] = array, 1
    return {"inputs": inputs, "mask": mask}


class PackedSequences(NamedTuple):
    """Sequences packed into rows.

    Attributes:
      arrays: "inputs" `[N, T]` or `[N, T, C]`, and "mask" int32 `[N, T]`: segment ids 1, 2, ... from left to right, and
        0 for padding, which is at the end of a row.
      rows: int64 `[S]`, the row of each sequence, or of each piece where some were split.
      starts: int64 `[S]`, its first step in that row.
      packing_efficiency: fraction of the array that is not padding, in (0, 1].
      padding_efficiency: the same fraction if each sequence had a row of its own.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    starts: np.ndarray
    packing_efficiency: float
    padding_efficiency: float


def pack_sequences(sequences: Sequence[ArrayLike], length: int, *, too_long: str = "error") -> PackedSequences:
    """Packs sequences into few rows by first-fit: each goes into the first row with room for it.

    Steps keep their order, and sequences stay whole unless `too_long="split"`. Models and learners that take a mask
    separate the sequences of a row (Krell et al., 2021, "Efficient sequence packing without cross-contamination").

    Args:
      sequences: arrays `[T]` or `[T, C]` of numbers, none of them empty.
      length: length of every row.
      too_long: treatment of longer sequences: "error", "truncate" to keep their start, or "split" into pieces of
        `length` and a shorter last one.

    Returns:
      The packed arrays, and the place of each sequence in them.

    Raises:
      DataError: a sequence is empty, has another shape than the others, or is too long; the message names the first.

    >>> packed = pack_sequences([[1, 2, 3], [4, 5, 6], [7, 8]], length=5)
    >>> packed.arrays["inputs"].tolist(), packed.arrays["mask"].tolist()
    ([[1, 2, 3, 7, 8], [4, 5, 6, 0, 0]], [[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]])
    >>> packed.packing_efficiency
    0.8
    """
    arrays = _limit_length(_as_arrays(sequences), length, too_long, ("error", "truncate", "split"))
    lengths = [len(array) for array in arrays]
    rows, starts = np.empty(len(arrays), np.int64), np.empty(len(arrays), np.int64)
    room, num_rows = np.full(len(arrays), length), 0
    for i, size in enumerate(lengths):
        # `argmax` finds the first row with room; the last one considered is empty, so there is one.
        rows[i] = row = np.argmax(room[: num_rows + 1] >= size)
        starts[i] = length - room[row]
        room[row] -= size
        num_rows = max(num_rows, int(row) + 1)
    # Segment ids count up within a row, from left to right.
    inputs = np.zeros((num_rows, length, *arrays[0].shape[1:]), arrays[0].dtype)
    mask = np.zeros((num_rows, length), np.int32)
    for array, row, start in zip(arrays, rows, starts, strict=True):
        # Sequences of a row are placed from left to right, so the largest id is that of the one before.
        place = slice(start, start + len(array))
        inputs[row, place], mask[row, place] = array, mask[row].max() + 1
    efficiencies = sum(lengths) / mask.size, sum(lengths) / (len(arrays) * length)
    return PackedSequences({"inputs": inputs, "mask": mask}, rows, starts, *efficiencies)


def _as_arrays(sequences: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Converts sequences to arrays `[T]` or `[T, C]` of one dtype and, but for T, one shape."""
    arrays = [as_array(sequence, f"sequence {i}", unit="step") for i, sequence in enumerate(sequences)]
    if not arrays:
        raise DataError("there are no sequences")
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[1:] != arrays[0].shape[1:]:
            shapes = f"the shape {list(array.shape)}" + f", but sequence 0 has {list(arrays[0].shape)}" * (i > 0)
            raise DataError(f"sequence {i} has {shapes}; all must be [T], or [T, C] of the same C")
        if not len(array):
            raise DataError(f"sequence {i} is empty; leave it out")
    # One dtype for all sequences, by NumPy's promotion.
    dtype = jax_dtype(np.result_type(*{array.dtype for array in arrays}))
    if dtype.kind == "f":
        check_resolution(np.concatenate([np.asarray(sequence) for sequence in sequences]), "sequences")
    return [array.astype(dtype, copy=False) for array in arrays]


def _limit_length(
    arrays: list[np.ndarray], length: int | None, too_long: str, allowed: tuple[str, ...]
) -> list[np.ndarray]:
    """Truncates or splits sequences longer than `length`, or raises a DataError, as `too_long` says."""
    if too_long not in allowed:
        raise DataError(f"too_long={too_long!r} is none of {allowed}")
    if length is None:
        return arrays
    if length < 1:
        raise DataError(f"length={length} is too small; it must be at least 1")
    if too_long == "split":
        return [array[start : start + length] for array in arrays for start in range(0, len(array), length)]
    long = [i for i, array in enumerate(arrays) if len(array) > length]
    if long and too_long == "error":
        lengths = f"{len(arrays[long[0]])} steps, but length={length} ({len(long)} of {len(arrays)} are too long)"
        remedy = f"increase length, or choose too_long from {allowed[1:]}"
        raise DataError(f"sequence {long[0]} has {lengths}; {remedy}")
    return [array[:length] for array in arrays]
