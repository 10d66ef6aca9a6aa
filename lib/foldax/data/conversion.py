"""The one way in for arrays and names that a user gives: checked, and in the types that JAX stores."""

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

from foldax.errors import DataError

FLOAT32_LEVELS = 100  # values that float32 must tell apart between the smallest and the largest of a column


def jax_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype in which JAX stores values: 32 bits instead of 64.

    >>> jax_dtype(np.float64)
    dtype('float32')
    """
    # JAX runs without 64-bit types by default, and knows one order of bytes.
    dtype = np.dtype(dtype)
    return np.dtype(f"{dtype.kind}4") if dtype.itemsize > 4 else dtype.newbyteorder("=")


def as_array(value: Any, name: str, dtype: Any = None, unit: str = "example") -> np.ndarray:
    """Converts a value to an array of finite numbers that owns its memory; a memory-mapped one is not copied.

    Args:
      value: an array of any library, a table or nested lists; `[N, ...]`.
      name: how messages name it.
      dtype: dtype of the result; by default the value's own, with 32 bits instead of 64.
      unit: what the first axis counts, for messages.

    Raises:
      DataError: it is no array of numbers, or values are masked, not finite, or do not fit the dtype.

    >>> as_array([[1, 2], [3, 4]], "inputs").dtype
    dtype('int32')
    """
    array = _unmasked(value, name)
    if array.dtype.kind not in "biuf":
        is_text = array.dtype.kind in "OSU" and array.ndim == 1 and unit == "example"
        remedy = "; number labels by np.unique(labels, return_inverse=True)" if is_text else ""
        raise DataError(f"{name} must be an array of numbers, not {array.dtype}{remedy}")
    dtype = jax_dtype(array.dtype if dtype is None else dtype)
    if dtype.kind in "iu":
        check_integers(array, dtype, name, unit)
    with np.errstate(over="ignore"):  # overflow becomes infinite and is reported below
        array = array.astype(dtype, copy=not isinstance(memory_owner(array).base, mmap.mmap))
    if dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        # The first bad example is the most useful thing to report.
        where = f", first in {unit} {_first(~finite)}" if array.ndim else ""
        raise DataError(f"{name} has values that are not finite{where}; leave it out or fill it in")
    return array


def memory_owner(array: np.ndarray) -> np.ndarray:
    """Returns the array that this one is a view of; its `base` is a map where it is memory-mapped.

    >>> whole = np.zeros(4)
    >>> memory_owner(whole[1:][1:]) is whole
    True
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def check_integers(array: np.ndarray, dtype: Any, name: str, unit: str = "example") -> None:
    """Raises a DataError if a value is no integer of the dtype; a conversion would wrap or truncate it in silence.

    >>> check_integers(np.array([2**31]), np.int32, "tokens")
    Traceback (most recent call last):
    foldax.errors.DataError: tokens: expected int32 (-2147483648 to 2147483647), got 2147483648 in example 0
    """
    if np.can_cast(array.dtype, dtype) or not array.size:
        return
    limits = np.iinfo(dtype)
    # Written so that NaN is refused, too; integers need no array beside theirs.
    fits = limits.min <= array.min() and array.max() <= limits.max
    if fits and (array.dtype.kind != "f" or (array == np.floor(array)).all()):
        return
    bad = ~((array >= limits.min) & (array <= limits.max) & (array == np.floor(array)))
    where = f" in {unit} {_first(bad)}" if array.ndim else ""
    raise DataError(f"{name}: expected {np.dtype(dtype)} ({limits.min} to {limits.max}), got {array[bad][0]}{where}")


def check_resolution(array: np.ndarray, name: str) -> None:
    """Raises a DataError if float32 cannot tell the values of a column `[..., C]` apart, as with time stamps.

    >>> check_resolution(np.array([1.7e9, 1.7e9 + 60]), "times")
    Traceback (most recent call last):
    foldax.errors.DataError: times: 1700000000 to 1700000060 are too close for float32 (7 digits); subtract the mean
    """
    if not array.size:
        return
    columns = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    least, most = (np.asarray(end, np.float64) for end in (columns.min(axis=0), columns.max(axis=0)))
    size, spread = np.maximum(np.abs(least), np.abs(most)), most - least
    # A spread within float64's own rounding errors is that of a constant.
    close = (spread < FLOAT32_LEVELS * np.finfo(np.float32).eps * size) & (spread > 1e-12 * size)
    for column in np.flatnonzero(close):
        if (columns[:, column] != columns[:, column].astype(np.float32)).any():
            place = f"{name}, column {column}" if columns.shape[1] > 1 else name
            problem = f"{least[column]:.12g} to {most[column]:.12g} are too close for float32 (7 digits)"
            raise DataError(f"{place}: {problem}; subtract the mean")


def as_names(values: Iterable[Any] | None, name: str) -> tuple[str, ...] | None:
    """Converts names, as a tuple, an array or an index of any library holds them, to a tuple of `str`.

    Args:
      values: names, or integers; None stays None.
      name: how messages name them.

    Raises:
      DataError: they are one text, or a name is blank, double, or neither text nor an integer.

    >>> as_names(np.array(["cat", "dog"]), "class_names")
    ('cat', 'dog')
    """
    if values is None:
        return None
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise DataError(f"{name}: expected several names, as a list or tuple, got {values!r}")
    names: dict[str, None] = {}
    for value in values:
        if not isinstance(value, str | int | np.integer | np.bool_) or not str(value).strip():
            raise DataError(f"{name}: expected a text or an integer, got {value!r} ({type(value).__name__})")
        if str(value) in names:
            raise DataError(f"{name}: there are two of the name {str(value)!r}; every name must differ")
        names[str(value)] = None
    return tuple(names)


def _unmasked(value: Any, name: str) -> np.ndarray:
    """Converts a value to an array; a masked one would lose its mask, and with it which values are missing."""
    try:
        parts = value if isinstance(value, list | tuple) else [value]
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        remedy = "data.pad_sequences makes sequences of different lengths one array"
        raise DataError(f"{name} must be an array of numbers, of one shape ({error}); {remedy}") from error
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise DataError(f"{name} has masked values; leave their examples out or fill them in (numpy.ma.filled)")
    return array


def _first(bad: np.ndarray) -> int:
    """Index on the first axis of the first True value."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
