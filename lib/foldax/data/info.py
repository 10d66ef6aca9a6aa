"""Static facts of a dataset: shapes, classes, counts, mean and standard deviation."""

import dataclasses
import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from foldax.data.conversion import memory_owner
from foldax.errors import DataError

BLOCK_BYTES = 32 << 20  # size of a block read at once
PICKLED_BYTES = 1 << 20  # larger arrays are memory-mapped for worker processes
Spec = dict[str, jax.ShapeDtypeStruct]


class Examples(Protocol):
    """Random access to examples, in bulk."""

    spec: Spec
    """Shape and dtype of one example by key."""

    def __len__(self) -> int:
        """Number of examples."""

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` `[B]` as arrays `[B, ...]`."""


class ArrayExamples:
    """Examples held as arrays in memory, or memory-mapped."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.folder: str | None = None  # of temporary files that arrays are mapped from
        self.spec = {key: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for key, array in arrays.items()}

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {key: np.asarray(array[indices]) for key, array in self.arrays.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles arrays of a mapped file as its name, so that the processes that read a stream share one copy."""
        return _unpickled, ({key: _without_mapped_data(array) for key, array in self.arrays.items()},)


class JoinedExamples:
    """Examples of several datasets, one after another."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.spec = parts[0].spec
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def starts(self) -> np.ndarray:
        """Index of the first example of each dataset."""
        return np.concatenate([[0], self._ends[:-1]])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the examples at `indices` `[B]`, in their order."""
        owners = np.searchsorted(self._ends, indices, side="right")
        arrays = {key: np.empty((len(indices), *leaf.shape), leaf.dtype) for key, leaf in self.spec.items()}
        for owner in np.unique(owners):
            rows = owners == owner
            for key, values in self.parts[owner].read(indices[rows] - self.starts[owner]).items():
                arrays[key][rows] = values
        return arrays


def memory_mapped(examples: Examples) -> Examples:
    """Writes large arrays in memory to temporary files and maps them, so that worker processes share them.

    >>> memory_mapped(ArrayExamples({"x": np.zeros(1 << 20)})).arrays["x"].mode
    'r'
    """
    if isinstance(examples, JoinedExamples):
        return JoinedExamples([memory_mapped(part) for part in examples.parts])
    if not isinstance(examples, ArrayExamples):
        return examples
    arrays = examples.arrays
    large = {k for k, array in arrays.items() if array.nbytes > PICKLED_BYTES and _without_mapped_data(array) is array}
    if not large:
        return examples
    result = ArrayExamples(dict(arrays))
    result.folder = tempfile.mkdtemp(prefix="foldax-")
    weakref.finalize(result, shutil.rmtree, result.folder, ignore_errors=True)  # also at exit
    for number, key in enumerate(sorted(large)):
        path = f"{result.folder}/{number}.npy"
        try:
            np.save(path, arrays[key])
        except OSError as error:
            problem = f"arrays of {arrays[key].nbytes >> 20} MiB for the workers cannot be written to {result.folder}"
            remedy = "set TMPDIR to a folder with more room, or take workers=0"
            raise DataError(f"{problem}: {error.strerror or error}; {remedy}") from error
        result.arrays[key] = np.load(path, mmap_mode="r")
    return result


def temporary_folders(examples: Examples) -> list[str]:
    """Lists the folders of temporary files that `memory_mapped` wrote.

    >>> temporary_folders(ArrayExamples({"x": np.zeros(3)}))
    []
    """
    if isinstance(examples, JoinedExamples):
        return [folder for part in examples.parts for folder in temporary_folders(part)]
    return [examples.folder] if isinstance(examples, ArrayExamples) and examples.folder is not None else []


def _unpickled(arrays: dict[str, Any]) -> ArrayExamples:
    return ArrayExamples({key: array() if callable(array) else array for key, array in arrays.items()})


def _without_mapped_data(array: np.ndarray) -> Any:
    """Returns a function that maps the file of a memory-mapped array again; other arrays as they are."""
    root = memory_owner(array)
    # Changes of a map of mode "c" are not in its file.
    if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c" or not array.flags.c_contiguous:
        return array
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return partial(np.memmap, root.filename, array.dtype, "r", offset, array.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Info:
    """Static facts of a dataset; statistics are those of its training split.

    Infos of the same data, splits and batch size are equal and have the same hash, so an Info may be a static argument
    of a jitted function.

    Attributes:
      name: name of the dataset.
      fingerprint: SHA-256 (hexadecimal) of all examples and of their assignment to splits; where batches are read one
        by one, of the parts that `from_iterable` names.
      shapes: shape of one example by key.
      dtypes: dtype by key.
      num_examples: examples by split name.
      batch_size: examples per training batch.
      num_classes: number of classes; None for targets that are not class labels.
      class_names: names of the classes, if known.
      class_counts: training examples of each class.
      feature_names: names of the columns of tabular inputs, if known.
      vocabulary_size: number of tokens, where "inputs" are tokens.
      mean: float32 `[C]`, mean of "inputs" over all axes but the last, ignoring steps whose "mask" `[N, T]` is 0; None
        without "inputs" and for tokens.
      std: float32 `[C]`, standard deviation of "inputs"; 1 for constant features, which are standardised to 0.
      constant_features: indices of the constant features among the C.
      target_mean: float32 `[]` or `[K]`, mean of regression targets over examples.
      target_std: float32 `[]` or `[K]`, standard deviation of regression targets; 1 where they are constant.

    >>> from foldax import data
    >>> info = data.from_arrays({"inputs": np.arange(20.0).reshape(10, 2)}, batch_size=4).info
    >>> info.standardize(jnp.asarray(info.mean)[None]).tolist()
    [[0.0, 0.0]]
    """

    name: str
    fingerprint: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    num_examples: dict[str, int]
    batch_size: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    vocabulary_size: int | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    constant_features: tuple[int, ...] = ()
    target_mean: np.ndarray | None = None
    target_std: np.ndarray | None = None

    def standardize(self, inputs: jax.Array) -> jax.Array:
        """Computes `(inputs - mean) / std` in float32 for inputs `[..., C]`.

        Raises:
          DataError: they are not known.
        """
        if self.mean is None or self.std is None:
            problem = f"{self.name}: mean and standard deviation of 'inputs' are not known"
            raise DataError(f"{problem}; where batches are read one by one, give them as mean=... and std=...")
        shape = (1,) * (inputs.ndim - self.mean.ndim) + self.mean.shape
        # Multiplied by a reciprocal, not divided: XLA rewrites divisions differently in different programs.
        centred = jnp.asarray(inputs, jnp.float32) - self.mean.reshape(shape)
        return centred * (np.float32(1) / self.std).astype(np.float32).reshape(shape)

    def _identity(self) -> tuple[Any, ...]:
        # The fingerprint covers all examples and splits, or the mean and std that were given, so arrays need not be
        # compared.
        names = self.class_names, self.feature_names
        return (self.name, self.fingerprint, self.batch_size, self.num_classes, *names, self.vocabulary_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Info) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


def example_bytes(examples: Examples) -> int:
    """Returns the size of one example in bytes.

    >>> example_bytes(ArrayExamples({"inputs": np.zeros((5, 3), np.float32)}))
    12
    """
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in examples.spec.values())


def read_blocks(examples: Examples, indices: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Reads examples block by block, so that a dataset need not fit into memory."""
    size = max(1, BLOCK_BYTES // max(1, example_bytes(examples)))
    for start in range(0, len(indices), size):
        yield examples.read(indices[start : start + size])


def array_digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the SHA-256 of the bytes of each array."""
    return {key: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for key, array in arrays.items()}


def fingerprint(spec: Spec, digests: dict[str, str], splits: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of a dataset's content (from the digest of each key's bytes) and of its splits."""
    total = hashlib.sha256()
    # Sorted, so that the order in which keys were given does not matter.
    for key in sorted(spec):
        total.update(f"{key} {spec[key].dtype.str} {tuple(spec[key].shape)} {digests[key]}\n".encode())
    for split in sorted(splits):
        total.update(f"{split} {len(splits[split])}\n".encode())
        total.update(splits[split].astype("<i8").tobytes())
    return total.hexdigest()


def moments(examples: Examples, indices: np.ndarray, names: dict[str, str]) -> dict[str, Any]:
    """Computes mean and standard deviation over all axes but the last, in one pass over the data.

    Args:
      examples: the dataset.
      indices: examples to use, `[N]`.
      names: prefix of the field names of `Info` by key, as `{"targets": "target_"}`.

    Returns:
      "mean" and "std" by field name, as lists. The standard deviation of a constant is 1. Steps whose "mask" is 0 are
      ignored.
    """
    spec = examples.spec
    # Padding must not count in the statistics of sequences.
    sequences = spec.keys() >= {"inputs", "mask"} and len(spec["mask"].shape) == 1
    masked = {"inputs"} if sequences and spec["inputs"].shape[:-1] == spec["mask"].shape else set()
    totals: dict[str, tuple[int, Any, Any, Any]] = {}
    # One pass, sums in float64.
    for block in read_blocks(examples, indices):
        for key in names.keys() & block.keys():
            values = block[key][block["mask"] != 0] if key in masked else block[key]
            values = values.reshape(-1, *spec[key].shape[-1:]).astype(np.float64)
            if not len(values):
                continue
            # Shifted by the mean of the first block, so that the squares keep their precision.
            count, shift, total, squares = totals.get(key) or (0, values.mean(0), 0.0, 0.0)
            values -= shift
            squares = squares + np.einsum("n...,n...->...", values, values)
            # The shift stays that of the first block.
            totals[key] = (count + len(values), shift, total + values.sum(0), squares)
    facts: dict[str, Any] = {}
    for key, (count, shift, total, squares) in totals.items():
        mean = np.asarray(shift + total / count)
        std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
        varies = std > 1e-7 * np.abs(mean)  # rounding errors of a constant are not a deviation
        facts |= {f"{names[key]}mean": mean.tolist(), f"{names[key]}std": np.where(varies, std, 1.0).tolist()}
        if key == "inputs":
            facts["constant_features"] = np.flatnonzero(~varies).tolist()
    return facts
