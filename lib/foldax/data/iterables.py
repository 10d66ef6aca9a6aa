"""Batches from anywhere: functions and iterables of batches, such as PyTorch's DataLoader, and grain's datasets."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from foldax.data.arrays import ArrayMetadata, read_arrays, read_evaluation, validated_array
from foldax.data.dataset import Dataset, evaluation_split, with_options
from foldax.data.info import BLOCK_BYTES, ArrayExamples, Info, Spec, fingerprint
from foldax.data.protocol import DataBlock, Policy
from foldax.data.sources import Split, StreamFeed, close_at_exit
from foldax.errors import DataError, check_positive
from foldax.mesh import put_batch

MAX_BATCHES = 16  # in a block: all of them are read before the first step
OpenBatches = Callable[[int, int], Iterator[Any]]  # (seed, step) -> batches from that step on, without end


class BatchSource:
    """Batches that come one by one, in blocks `[K, B, ...]`.

    Args:
      name: name of the dataset.
      open_batches: returns the batches of a seed from a step on, without end.
      first: the first batch, which the others must be like.
    """

    def __init__(self, name: str, open_batches: OpenBatches, first: dict[str, np.ndarray]) -> None:
        self.device: Any = None
        self.feed = StreamFeed(_batches_per_block(first))
        self._name, self._open_batches, self._example_batch = name, open_batches, first
        self._spec = ArrayExamples(first).spec

    def examples(self) -> dict[str, jax.Array]:
        """The first batch, `[B, ...]`."""
        return put_batch(self._example_batch, self.device)

    def blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        """Yields the block that contains `step`, then the blocks after it, without end."""
        return close_at_exit(self._blocks(seed, step))

    def _blocks(self, seed: int, step: int) -> Generator[DataBlock, Policy | None, None]:
        size = self.feed.batches
        start = step // size * size
        batches: Any = self._open_batches(seed, start)
        with contextlib.closing(batches) if hasattr(batches, "close") else contextlib.nullcontext():
            while True:
                block = [as_batch(batch, self._name, self._spec) for batch in itertools.islice(batches, size)]
                data = {key: np.stack([batch[key] for batch in block]) for key in self._spec}
                yield DataBlock(put_batch(data, self.device, axis=1), start, start + size)
                start += size


def from_iterable(
    batches: Callable[[int, int], Iterable[Any]] | Iterable[Any],
    *,
    evaluation: Mapping[str, Any] | None = None,
    name: str = "iterable",
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    feature_names: Iterable[str] | None = None,
    vocabulary_size: int | None = None,
    mean: Any = None,
    std: Any = None,
    evaluate_batch_size: int | None = None,
) -> Dataset:
    """Makes a dataset of batches that Python code yields.

    A batch has arrays `[B, ...]` by key, or is a pair `(inputs, targets)`; tensors of PyTorch are arrays. B is that of
    the first batch, and smaller ones, at the end of an epoch, are left out.

    A function of the seed and the epoch, and a list of batches, resume exactly: the batches before the step are read
    again and passed over. Any other iterable, such as a shuffling DataLoader, starts anew in a resumed run, which is
    named at the start and in the run's manifest.

    Not all batches are read, so `info.fingerprint`, by which a resumed run recognises its data, covers the first batch
    of seed 0 (of an iterable of its own order only the shapes and dtypes), the evaluation sets, mean and std.

    Args:
      batches: a function `(seed, epoch) -> iterable of batches`, or an iterable that can be read again and again.
      evaluation: sets by name, also "validation" and "test": arrays by key, a split of a dataset, or finite batches.
      name: name of the dataset.
      num_classes: number of classes, for integer targets `[B]`, as one batch does not show all of them.
      class_names: names of the classes.
      feature_names: names of the columns of "inputs".
      vocabulary_size: number of tokens, where "inputs" are tokens.
      mean: mean of "inputs" `[C]`, for `info.standardize`.
      std: standard deviation of "inputs" `[C]`.
      evaluate_batch_size: examples per evaluation batch; by default at most those of a training batch.

    Raises:
      DataError: there are no batches, they can be read once only, or differ in shapes; or as for `from_arrays`.

    >>> def batches(seed, epoch):
    ...     random = np.random.default_rng((seed, epoch))
    ...     for _ in range(10):
    ...         inputs = random.normal(size=(4, 3))
    ...         yield inputs, inputs.sum(axis=1)
    >>> dataset = from_iterable(batches, mean=np.zeros(3), std=np.ones(3))
    >>> dataset.info.shapes, dataset.nonresumable_reason
    ({'inputs': (3,), 'targets': ()}, None)
    """
    reason = _check_repeatable(batches, name)

    def make(seed: int, epoch: int) -> Iterable[Any]:
        return batches(seed, epoch) if callable(batches) else batches

    batch = _first_batch(make(0, 0), name)

    def open_batches(seed: int, step: int) -> Iterator[Any]:
        # A pass over an iterable of its own order has no step to go on from.
        return _epochs(name, make, seed, 0 if reason else step, len(next(iter(batch.values()))))

    names = ArrayMetadata.check(num_classes, class_names, feature_names, vocabulary_size)
    info, splits = _facts(name, batch, names, {"mean": mean, "std": std}, evaluation, evaluate_batch_size, reason)
    return Dataset(info, BatchSource(name, open_batches, batch), splits, reason)


def from_grain(dataset: Any, *, name: str = "grain", num_threads: int = 2, **options: Any) -> Dataset:
    """Makes a dataset of a grain dataset whose elements are batches.

    It resumes exactly: a `grain.MapDataset` from any step at once, a `grain.IterDataset` by passing over the batches
    before. A dataset that ends is repeated; a MapDataset shuffles anew in every epoch. `info.fingerprint` covers the
    first batch, the evaluation sets, mean and std.

    Args:
      dataset: a MapDataset or IterDataset, or a function of the run's seed that makes one.
      name: name of the dataset.
      num_threads: threads that make the batches of a MapDataset, a batch each.
      **options: options of `from_iterable`: evaluation, num_classes, class_names, feature_names, vocabulary_size, mean,
        std, evaluate_batch_size.

    Raises:
      DataError: it is no grain dataset, its elements are no batches, the last one is smaller, or as `from_iterable`.

    >>> import grain
    >>> numbers = grain.MapDataset.source(np.arange(20, dtype=np.float32)).shuffle(seed=0)
    >>> batches = numbers.batch(4, drop_remainder=True).map(lambda inputs: {"inputs": inputs})
    >>> from_grain(batches).info.shapes
    {'inputs': ()}
    """
    import grain

    kinds = (grain.MapDataset, grain.IterDataset)
    check_positive(num_threads=num_threads)
    made = dataset(0) if callable(dataset) and not isinstance(dataset, kinds) else dataset
    if not isinstance(made, kinds):
        expected = "a grain.MapDataset or grain.IterDataset, or a function of the seed that makes one"
        raise DataError(f"{name}: expected {expected}, not {type(made).__name__}")
    batch = _first_batch(made, name)
    size, is_map = len(next(iter(batch.values()))), isinstance(made, grain.MapDataset)
    if is_map and len(made) < sys.maxsize:  # the length of one without end
        last = len(next(iter(as_batch(made[len(made) - 1], name).values())))
        if last != size:
            problem = f"the last of its {len(made)} batches has {last} examples, the first {size}"
            raise DataError(f"{name}: {problem}; make them with .batch({size}, drop_remainder=True)")

    def open_batches(seed: int, step: int) -> Iterator[Any]:
        opened = made if made is dataset else dataset(seed)
        if not is_map:
            return _epochs(name, lambda seed, epoch: opened, seed, step, size)
        endless = opened if len(opened) == sys.maxsize else opened.repeat()
        buffered = max(num_threads, _batches_per_block(batch))
        read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffered)
        return iter(endless[step:].to_iter_dataset(read))

    like = from_iterable([batch], name=name, **options)  # facts of the first batch, and evaluation sets
    return like._replace(train=BatchSource(name, open_batches, batch))


def as_batch(value: Any, name: str, spec: Spec | None = None) -> dict[str, np.ndarray]:
    """Converts a batch to arrays `[B, ...]` by key.

    Args:
      value: arrays by key, or a pair `(inputs, targets)`; arrays of any library.
      name: name of the dataset.
      spec: shape and dtype of one example by key, if they are known.

    Raises:
      DataError: it is no batch, or is not as `spec`.

    >>> as_batch(([[1.0], [2.0]], [0, 1]), "toy")["targets"]
    array([0, 1], dtype=int32)
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        value = {"inputs": value[0], "targets": value[1]}
    if not isinstance(value, Mapping) or not value:
        expected = "a dict of arrays [B, ...], or a pair (inputs, targets)"
        raise DataError(f"{name}: expected {expected}, got {type(value).__name__}")
    arrays = {key: validated_array(key, _on_host(array), " of a batch") for key, array in value.items()}
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{key!r} has {length}" for key, length in lengths.items())
        raise DataError(f"{name}: all arrays of a batch must have the same number of examples, but {counts}")
    if spec is not None:
        own = {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}
        first = {key: (tuple(leaf.shape), leaf.dtype) for key, leaf in spec.items()}
        if own != first:
            found, expected = (
                ", ".join(f"{key!r} {dtype}{list(shape)}" for key, (shape, dtype) in facts.items())
                for facts in (own, first)
            )
            raise DataError(f"{name}: examples of a batch are {found}, but those of the first are {expected}")
    return arrays


def _batches_per_block(first: dict[str, np.ndarray]) -> int:
    size = sum(array.nbytes for array in first.values())
    return max(1, min(MAX_BATCHES, BLOCK_BYTES // max(1, size)))


def _on_host(array: Any) -> Any:
    """Copies a tensor of PyTorch to the host, whatever its device and whether it needs gradients."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else array


def _epochs(
    name: str, make: Callable[[int, int], Iterable[Any]], seed: int, step: int, batch_size: int
) -> Iterator[Any]:
    """Yields the full batches of epoch after epoch, without the first `step`."""
    number = 0
    for epoch in itertools.count():
        before = number
        for batch in make(seed, epoch):
            values = list(batch.values()) if isinstance(batch, Mapping) else batch
            if len(values[0]) < batch_size:
                continue  # the last batch of an epoch
            if len(values[0]) > batch_size:
                problem = f"a batch of epoch {epoch} has {len(values[0])} examples, the first one {batch_size}"
                raise DataError(f"{name}: {problem}; all must have the same number")
            if number >= step:
                yield batch
            number += 1
        if number == before:
            raise DataError(f"{name}: epoch {epoch} has no batches of {batch_size} examples")


def _check_repeatable(batches: Any, name: str) -> str | None:
    """Checks that batches can be read again, and returns why a resumed run reads others; None if it does not."""
    kind = type(batches).__name__
    if isinstance(batches, Iterator):
        problem = f"{kind} objects can be read once, but every epoch, and a resumed run, reads them again"
        raise DataError(f"{name}: {problem}; give a function of (seed, epoch) that makes one")
    if callable(batches) or isinstance(batches, Sequence):
        return None
    if not isinstance(batches, Iterable):
        raise DataError(f"{name}: expected an iterable of batches, or a function of (seed, epoch), not {batches!r}")
    lost = f"the order of {kind} is its own: a resumed run starts a new pass, and has other bits"
    return f"{name}: {lost}; a function of (seed, epoch) in its place resumes exactly"


def _first_batch(batches: Iterable[Any], name: str) -> dict[str, np.ndarray]:
    first = next(iter(batches), None)
    if first is None:
        raise DataError(f"{name}: there are no batches")
    return as_batch(first, name)


def _facts(
    name: str,
    batch: dict[str, np.ndarray],
    metadata: ArrayMetadata,
    statistics: dict[str, Any],
    evaluation: Mapping[str, Any] | None,
    evaluate_batch_size: int | None,
    reason: str | None,
) -> tuple[Info, dict[str, Split]]:
    """Makes the facts, from the first batch and what the user gives, and the evaluation splits."""
    targets, size = batch.get("targets"), len(next(iter(batch.values())))
    are_classes = targets is not None and targets.ndim == 1 and targets.dtype.kind == "i"
    if are_classes and metadata.num_classes is None and metadata.class_names is None:
        remedy = "give num_classes or class_names, or float targets for regression"
        raise DataError(f"{name}: a batch does not show all classes of its integer targets; {remedy}")
    raw = read_arrays({"train": batch}, name, metadata)
    # 1. Evaluation sets
    sets = {key: _as_arrays(value, name, key, raw.examples.spec) for key, value in (evaluation or {}).items()}
    examples = read_evaluation(sets, name, raw.examples.spec, raw.names, reserved=("train",))
    splits = {key: evaluation_split(value, evaluate_batch_size, size) for key, value in examples.items()}
    # 2. Facts
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in raw.names.items()
    }
    given = {key: value for key, value in statistics.items() if value is not None}
    for key, value in given.items():
        columns = raw.examples.spec["inputs"].shape[-1:] if "inputs" in raw.examples.spec else ()
        if np.shape(value) != columns:
            raise DataError(
                f"{name}: {key} must be numbers {list(columns)}, one for each column of 'inputs', got {value!r}"
            )
        given[key] = np.asarray(value, np.float32)
    # 3. Fingerprint: statistics are constants of a compiled program, so those of other values need another.
    digests = raw.digests if reason is None else dict.fromkeys(raw.digests, "unknown")
    sha = with_options(fingerprint(raw.examples.spec, digests, {"train": np.arange(size)}), examples, given)
    info = Info(
        name=name,
        fingerprint=sha,
        shapes={key: tuple(leaf.shape) for key, leaf in raw.examples.spec.items()},
        dtypes={key: np.dtype(leaf.dtype) for key, leaf in raw.examples.spec.items()},
        num_examples={key: len(value) for key, value in examples.items()},
        batch_size=size,
        **(facts | given),
    )
    return info, splits


def _as_arrays(value: Any, name: str, split: str, spec: Spec) -> Any:
    """Converts an evaluation set to arrays `[N, ...]` by key."""
    if isinstance(value, Split):
        return value.examples()
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        return value
    batches = [as_batch(batch, f"{name}, {split!r}", spec) for batch in value]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in (batches or [{}])[0]}
