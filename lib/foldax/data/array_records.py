"""Examples in shards of ArrayRecord, read in a global order by grain: for data larger than one disk or memory.

Any record of an ArrayRecord file can be read at once, so batch `step` of a run is a function of its seed and `step`
alone: a resumed run opens the shards at its step, and reads no batch twice.
"""

import glob
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldax.data.dataset import Dataset
from foldax.data.iterables import from_grain
from foldax.errors import DataError, check_positive

Files = str | Path | Sequence[str | Path]  # paths or patterns such as "text/*.array_record"
Decode = Callable[[bytes], dict[str, np.ndarray]]


def write_array_records(
    folder: str | Path, examples: Iterable[Mapping[str, Any]], *, name: str = "train", num_shards: int = 1
) -> list[Path]:
    """Writes examples to `NAME-00000-of-00004.array_record` and so on, as `from_array_records` reads them.

    Examples go to the shards in turn, one at a time, so they may be more than fit into memory.

    Args:
      folder: of the shards; made where it is missing.
      examples: arrays by key, one example after the other.
      name: start of the files' names.
      num_shards: number of files.

    Returns:
      The paths of the shards.

    Raises:
      DataError: there are no examples, or an array is no array of numbers.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = write_array_records(folder, [{"inputs": np.arange(3)}, {"inputs": np.arange(3)}], num_shards=2)
    >>> [path.name for path in paths]
    ['train-00000-of-00002.array_record', 'train-00001-of-00002.array_record']
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    check_positive(num_shards=num_shards)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f"{name}-{shard:05d}-of-{num_shards:05d}.array_record") for shard in range(num_shards)]
    # One example is a group of its own: any can be read without the others.
    writers, count = [ArrayRecordWriter(str(path), "group_size:1") for path in paths], 0
    try:
        for count, example in enumerate(examples, start=1):
            writers[(count - 1) % num_shards].write(_encode(example, f"{name}, example {count - 1}"))
    finally:
        for writer in writers:
            writer.close()
    if count < num_shards:
        raise DataError(f"{name}: {count} examples do not fill {num_shards} shards; write at least one to each")
    return paths


def from_array_records(
    files: Files | Mapping[str, Files],
    *,
    batch_size: int,
    weights: Mapping[str, float] | None = None,
    decode: Decode | None = None,
    evaluation: Mapping[str, Any] | None = None,
    name: str = "array_records",
    **options: Any,
) -> Dataset:
    """Makes a dataset of examples in files of ArrayRecord, in an order over all files that is new in every epoch.

    It resumes exactly, at once and from any step. With several corpora, each example of a batch comes from one of them
    by its weight, and each corpus starts anew at its own end.

    Args:
      files: paths or patterns, such as "text/train-*.array_record"; or those of each corpus by its name.
      batch_size: examples per update.
      weights: weight of each corpus by its name, above 0; None: the same for each.
      decode: `record -> arrays by key`; None: for records that `write_array_records` wrote.
      evaluation: sets by name, also "validation" and "test": files, which are read whole, or as in `from_iterable`.
      name: name of the dataset.
      **options: options of `from_iterable`: num_classes, class_names, feature_names, vocabulary_size, mean,
        std, evaluate_batch_size.

    Raises:
      DataError: no file fits a pattern, a file cannot be read, there are fewer examples than a batch has, names of
        weights are not those of the corpora, or as `from_grain`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = write_array_records(folder, ({"inputs": np.full(4, number)} for number in range(100)), num_shards=3)
    >>> dataset = from_array_records(f"{folder}/*.array_record", batch_size=8, vocabulary_size=100)
    >>> dataset.info.shapes, dataset.nonresumable_reason
    ({'inputs': (4,)}, None)
    """
    import grain

    check_positive(batch_size=batch_size)
    corpora = files if isinstance(files, Mapping) else {name: files}
    shares = dict.fromkeys(corpora, 1.0) if weights is None else dict(weights)
    if not corpora or corpora.keys() != shares.keys() or not all(share > 0 for share in shares.values()):
        found = f"the corpora are {sorted(corpora)}, the weights {shares}"
        raise DataError(f"{name}: {found}; give each corpus a weight above 0")
    sources = {key: _open_source(patterns, key) for key, patterns in corpora.items()}
    decode_record = _decode if decode is None else decode

    def batches(seed: int) -> Any:
        # Each corpus has an order of its own; `repeat` makes another one in each of its epochs.
        orders = np.random.SeedSequence(seed).generate_state(len(sources))
        parts = [
            grain.MapDataset.source(source).shuffle(seed=int(order)).map(decode_record)
            for source, order in zip(sources.values(), orders, strict=True)
        ]
        if len(parts) == 1:
            return parts[0].batch(batch_size, drop_remainder=True)
        total = sum(shares.values())
        proportions = [shares[key] / total for key in sources]
        return grain.MapDataset.mix([part.repeat() for part in parts], proportions).batch(
            batch_size, drop_remainder=True
        )

    count = sum(map(len, sources.values()))
    if len(sources) == 1 and count < batch_size:
        raise DataError(
            f"{name}: a batch of {batch_size} is more than the {count} examples; choose a smaller batch_size"
        )
    sets = {key: _read_files(value, key, decode_record) for key, value in (evaluation or {}).items()}
    return from_grain(batches, name=name, evaluation=sets, **options)


def _open_source(files: Files, name: str) -> Any:
    import grain

    patterns = [files] if isinstance(files, str | Path) else list(files)
    # Sorted, so that the order does not depend on that of the folder.
    paths = [path for pattern in patterns for path in sorted(glob.glob(str(pattern))) or [str(pattern)]]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing or not paths:
        raise DataError(
            f"{name}: no file fits {missing[0] if missing else patterns!r}; give paths or patterns of files"
        )
    try:
        return grain.sources.ArrayRecordDataSource(paths)
    except Exception as error:  # of several kinds, from C++
        raise DataError(f"{name}: {paths[0]} and others cannot be read as ArrayRecord: {error}") from error


def _read_files(value: Any, name: str, decode: Decode) -> Any:
    """Reads an evaluation set that is given by its files."""
    are_files = isinstance(value, list | tuple) and all(isinstance(file, str | Path) for file in value)
    if not isinstance(value, str | Path) and not are_files:
        return value
    source = _open_source(value, name)
    examples = [decode(source[index]) for index in range(len(source))]
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _encode(example: Mapping[str, Any], name: str) -> bytes:
    buffer = io.BytesIO()
    arrays = {key: np.asarray(value) for key, value in example.items()}
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name}: {key!r} must be numbers, not {array.dtype}")
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _decode(record: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(record)) as arrays:
        return {key: arrays[key] for key in arrays.files}
