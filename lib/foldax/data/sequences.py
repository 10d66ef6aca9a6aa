"""Sequences as arrays: windows of one long sequence, and padding and packing of many short ones.

A "mask" `[N, T]` is 0 where there is padding and counts the sequences of a row from 1 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foldax.data.prepared import canonical
from foldax.errors import DataError


def windows(tokens: Any, length: int, stride: int | None = None) -> dict[str, np.ndarray]:
    """Cuts one long sequence into rows for a language model, in which every token but the first is predicted once.

    A row is `length` inputs and the token after them, so rows share one token where `stride` is `length`. Where it is
    less, they overlap, and what was predicted in the row before is only context: every prediction, but those of
    the first row, then has at least `length - stride + 1` tokens before it.

    Args:
      tokens: `[T]`, at least 2.
      length: tokens that a row predicts at most.
      stride: tokens from the start of one row to that of the next, 1 to `length`; `length` by default.

    Returns:
      "inputs" `[N, length + 1]` and "weights" float32 `[N, length + 1]`: 1 where the token is to be predicted from
      those before it in its row, 0 where it is context or padding. Padding (token 0) stands at the end of the last row,
      where no causal model sees it in time, so there is no mask.

    Raises:
      DataError: if there is nothing to predict, or `length` or `stride` is out of range.
    """
    tokens = _array(tokens, "tokens")
    stride = length if stride is None else stride
    if tokens.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers, not {tokens.dtype}")
    if tokens.ndim != 1 or len(tokens) < 2:
        raise DataError(
            f"tokens must be an array [T] of at least 2, one to predict the other, not {list(tokens.shape)}"
        )
    if length < 1:
        raise DataError(f"length={length} is too small; it must be at least 1")
    if not 1 <= stride <= length:
        raise DataError(f"stride={stride} must be 1 to length={length}: no token is to be left out")
    starts = stride * np.arange(1 + -(-max(0, len(tokens) - 1 - length) // stride))
    positions = starts[:, None] + np.arange(length + 1)
    predicted = np.concatenate([[0], starts[:-1] + length])  # the last position that earlier rows hold
    weights = (positions > predicted[:, None]) & (positions < len(tokens))
    inputs = np.where(positions < len(tokens), tokens[np.minimum(positions, len(tokens) - 1)], tokens.dtype.type(0))
    return {"inputs": inputs, "weights": weights.astype(np.float32)}


def pad(sequences: Sequence[Any], length: int | None = None, *, too_long: str = "error") -> dict[str, np.ndarray]:
    """Makes one array of sequences of different lengths, with zeros after those that are shorter.

    Args:
      sequences: arrays `[T]` or `[T, C]` of numbers, none of them empty.
      length: T of all; by default the longest one's.
      too_long: what becomes of a longer one: "error", or "truncate" to keep its start.

    Returns:
      "inputs" `[N, T]` or `[N, T, C]`, and "mask" int32 `[N, T]`: 1 for the sequence, 0 for padding.

    Raises:
      DataError: if a sequence is empty, does not fit the others, or is too long; names the first.
    """
    arrays = _fitted(_checked(sequences), length, too_long, ("error", "truncate"))
    length = max(map(len, arrays)) if length is None else length
    inputs = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    mask = np.zeros((len(arrays), length), np.int32)
    for row, array in enumerate(arrays):
        inputs[row, : len(array)], mask[row, : len(array)] = array, 1
    return {"inputs": inputs, "mask": mask}


class Packed(NamedTuple):
    """Sequences packed into rows.

    Attributes:
      arrays: "inputs" `[N, T]` or `[N, T, C]`, and "mask" int32 `[N, T]`: 1, 2, ... for the sequences of a row from
        left to right, 0 for padding, all of which stands at its end.
      rows: int64 `[S]`, the row of each sequence (of each piece, where some were split).
      starts: int64 `[S]`, where in its row it begins.
      fill: share of the array that is no padding.
      padded_fill: what that share would be with a row for each sequence.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    starts: np.ndarray
    fill: float
    padded_fill: float


def pack(sequences: Sequence[Any], length: int, *, too_long: str = "error") -> Packed:
    """Packs sequences into as few rows as first-fit finds: each goes into the first row with room for it.

    Order inside a sequence is kept, and no sequence is cut in two, unless it is longer than a row and this is asked
    for. Models and learners that take a mask keep the sequences of a row apart.

    Args:
      sequences: arrays `[T]` or `[T, C]` of numbers, none of them empty.
      length: T of a row.
      too_long: what becomes of a longer sequence: "error", "truncate" to keep its start, or "split" into pieces of
        `length` and a shorter last one.

    Raises:
      DataError: if a sequence is empty, does not fit the others, or is too long; names the first.
    """
    arrays = _fitted(_checked(sequences), length, too_long, ("error", "truncate", "split"))
    sizes = [len(array) for array in arrays]
    rows, starts = np.empty(len(arrays), np.int64), np.empty(len(arrays), np.int64)
    free, used = np.full(len(arrays), length), 0
    for i, size in enumerate(sizes):
        rows[i] = row = np.argmax(free[: used + 1] >= size)  # a row that is not used yet has room
        starts[i] = length - free[row]
        free[row] -= size
        used = max(used, int(row) + 1)
    inputs = np.zeros((used, length, *arrays[0].shape[1:]), arrays[0].dtype)
    mask = np.zeros((used, length), np.int32)
    for array, row, start in zip(arrays, rows, starts, strict=True):
        place = slice(start, start + len(array))
        inputs[row, place], mask[row, place] = array, mask[row].max() + 1
    total = sum(sizes)
    fill, padded_fill = total / mask.size, total / (len(arrays) * length)
    return Packed({"inputs": inputs, "mask": mask}, rows, starts, fill, padded_fill)


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged lists
        raise DataError(f"{what} must be an array of numbers: {error}") from error
    if array.size and array.dtype.kind not in "biuf":
        raise DataError(f"{what} must be an array of numbers, not {array.dtype}")
    return array.astype(canonical(array.dtype), copy=False)


def _checked(sequences: Sequence[Any]) -> list[np.ndarray]:
    """Returns the sequences as arrays `[T]` or `[T, C]` of one dtype and, but for T, one shape."""
    arrays = [_array(sequence, f"sequence {i}") for i, sequence in enumerate(sequences)]
    if not arrays:
        raise DataError("there are no sequences")
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"sequence {i} has the shape {list(array.shape)}, but sequence 0 has {list(arrays[0].shape)}; "
                "all must be [T], or [T, C] of the same C"
            )
        if not len(array):
            raise DataError(f"sequence {i} is empty; leave it out")
    dtype = canonical(np.result_type(*{array.dtype for array in arrays}))
    return [array.astype(dtype, copy=False) for array in arrays]


def _fitted(arrays: list[np.ndarray], length: int | None, too_long: str, allowed: tuple[str, ...]) -> list[np.ndarray]:
    """Returns sequences of at most `length`."""
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
        raise DataError(
            f"sequence {long[0]} has {len(arrays[long[0]])} steps, but length={length} ({len(long)} of {len(arrays)} "
            f"are too long); make length larger, or choose too_long from {allowed[1:]}"
        )
    return [array[:length] for array in arrays]
