"""Datasets by name: prepared by TFDS once, then cached as decoded arrays where they fit into memory."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.data import cache
from foldax.data.bundled import BUNDLED_VERSION, bundled_names
from foldax.data.conversion import check_integers, jax_dtype
from foldax.data.info import ArrayExamples, Examples, example_bytes, read_blocks
from foldax.errors import DataError, did_you_mean

DEVICE_BYTES = 1 << 30  # source="auto" puts datasets up to this size on the device


class RawDataset(NamedTuple):
    """A dataset before it is split.

    Attributes:
      name: name of the dataset.
      examples: the dataset's own splits, concatenated.
      labels: class of each example `[N]`, or None.
      sizes: number of examples of each of the dataset's own splits, in the order of `examples`.
      digests: SHA-256 of the bytes of each key.
      names: fields of `Info` about classes and columns.
      folder: cache folder, if the dataset is cached.
    """

    name: str
    examples: Examples
    labels: np.ndarray | None
    sizes: dict[str, int]
    digests: dict[str, str]
    names: dict[str, Any]
    folder: Path | None = None


class TFDSExamples:
    """Examples in the ArrayRecord files of TFDS; can be pickled for worker processes."""

    def __init__(self, builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self.spec = {key: leaf for key, (_, leaf) in fields.items()}
        self._fields = fields
        self._source = builder.as_data_source("+".join(builder.info.splits))

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the examples at `indices` `[B]` in bulk, which is far faster than one by one."""
        records, arrays = self._source.__getitems__(indices.tolist()), {}
        for key, (feature, leaf) in self._fields.items():
            array = np.array([record[feature] for record in records])
            if leaf.dtype.kind in "iu":
                check_integers(array, leaf.dtype, f"feature {feature!r}")
            arrays[key] = array.astype(leaf.dtype, copy=False)
        return arrays


def choose_source(source: str, examples: Examples) -> str:
    """Resolves source="auto" by size: "device" up to `DEVICE_BYTES`, else "stream"."""
    if source != "auto":
        return source
    return "device" if len(examples) * example_bytes(examples) <= DEVICE_BYTES else "stream"


def open_dataset(name: str, source: str) -> RawDataset:
    """Opens a dataset by name; the first use prepares it.

    Raises:
      DataError: there is no such dataset, it cannot be downloaded, or its inputs cannot be batched.
    """
    arrays = cache.cache_folder() / "arrays"
    # Skips the import of TFDS, which takes seconds.
    if name in bundled_names() and source != "stream" and (raw := _open(name, arrays / name / BUNDLED_VERSION)):
        return raw
    # 1. The files of TFDS
    builder = _prepare(name, cache.cache_folder() / "datasets")
    folder = arrays / Path(builder.data_dir).relative_to(builder.data_dir_root)
    fields = _fields(name, builder)
    return prepare_arrays(name, folder, TFDSExamples(builder, fields), source, _facts(builder, fields))


def prepare_arrays(name: str, folder: Path, examples: Examples, source: str, facts: dict[str, Any]) -> RawDataset:
    """Opens a dataset through its cache folder, which the first use writes.

    Args:
      name: name of the dataset.
      folder: in the cache; another content needs another folder.
      examples: the examples, which are read once.
      source: as for `load`: whether they are then read from arrays in the cache, or still from `examples`.
      facts: "sizes" and "names", as in `RawDataset`.

    Raises:
      DataError: the cache cannot be written.
    """
    # Large datasets stay in their own files, and only their targets become an array.
    streamed = examples if choose_source(source, examples) == "stream" else None
    if raw := _open(name, folder, streamed):  # also from a cache that is read-only
        return raw
    # Of several processes that start together, one decodes and the others wait.
    with cache.file_lock(folder.with_name(f".{folder.name}.lock")):
        raw = _open(name, folder, streamed)
        if raw is None:
            with cache.write_errors(folder):
                _write(folder, examples, {"targets"} if streamed else set(examples.spec), facts)
            raw = _open(name, folder, streamed)
    assert raw is not None
    return raw


def _prepare(name: str, folder: Path) -> Any:
    """Prepares a dataset if necessary and returns its TFDS builder."""
    builder, own = _make(name, folder), name in bundled_names()
    place = Path(builder.data_dir)
    ready = place / "dataset_info.json"
    if ready.exists():
        return builder
    _fields(name, builder)  # fails before the download if the features cannot be used
    with cache.file_lock(folder / f".{name.replace('/', '.')}.lock"):
        for stale in place.parent.glob(f"{place.name}.incomplete*"):  # left by a killed process
            shutil.rmtree(stale)
        if not ready.exists():
            try:
                _check_connection(builder, folder)
                with contextlib.redirect_stdout(io.StringIO() if own else sys.stderr):
                    builder.download_and_prepare()
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                failure = f"{type(error).__name__}: {reason} (without a download: {', '.join(bundled_names())})"
                raise DataError(f"dataset {name!r} could not be prepared in {folder}: {failure}") from error
    return _make(name, folder)  # a new builder reads the prepared info


def _make(name: str, folder: Path) -> Any:
    """Creates the TFDS builder of a name."""
    import tensorflow_datasets as tfds

    options = {"file_format": "array_record", "data_dir": folder}
    if name in bundled_names():
        from foldax.data.builders import BUILDERS

        tfds.disable_progress_bar()
        return BUILDERS[name](**options)
    # Without community datasets, whose list is downloaded.
    names = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in names:
        hint = f"without a download: {', '.join(bundled_names())}; the others are those of TensorFlow Datasets"
        raise DataError(f"there is no dataset {name!r}{did_you_mean(name, [*names, *bundled_names()])} ({hint})")
    try:
        return tfds.builder(name, **options)
    except (ValueError, AssertionError) as error:  # no such config or version
        raise DataError(f"there is no dataset {name!r}: {' '.join(str(error).split())[:300]}") from error


def _check_connection(builder: Any, folder: Path) -> None:
    """Fails at once if a download is needed and no host answers; TFDS would retry for minutes."""
    # Behind a proxy, or with files already downloaded, a connection need not be tested.
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or {}]
    hosts = sorted({(url.hostname, 80 if url.scheme == "http" else 443) for url in urls if url.scheme[:4] == "http"})
    if not hosts or urllib.request.getproxies() or any((folder / "downloads" / builder.name).glob("*")):
        return
    for host in hosts[:3]:
        with contextlib.suppress(OSError):
            socket.create_connection(host, timeout=5).close()
            return
    raise ConnectionError("it must be downloaded, and there is no connection")


def _fields(name: str, builder: Any) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
    """Returns the TFDS feature and the spec of each key that can be batched.

    These are the top-level features that are numeric arrays of a fixed shape; strings, ragged sequences, nested
    features and images of varying size are left out.
    """
    # Supervised keys may be missing, equal, or nested structures.
    pair = (builder.info.supervised_keys or (None, None))[:2]
    inputs, targets = pair if all(isinstance(key, str) for key in pair) and pair[0] != pair[1] else (None, None)
    infos, fields = builder.info.features.get_tensor_info(), {}
    for feature, info in infos.items():
        if not hasattr(info, "np_dtype") or None in info.shape or np.dtype(info.np_dtype).kind not in "biuf":
            continue
        key = {inputs: "inputs", targets: "targets"}.get(feature, feature)
        number = key == "targets" and not info.shape and not hasattr(builder.info.features[feature], "num_classes")
        dtype = np.dtype(np.float32) if number else jax_dtype(info.np_dtype)
        fields[key] = (feature, jax.ShapeDtypeStruct(info.shape, dtype))
    if not fields or (inputs and "inputs" not in fields):
        what = f"its inputs ({inputs!r}: {infos[inputs]})" if inputs else f"its features ({', '.join(infos)})"
        remedy = "make them so and use data.from_arrays"
        raise DataError(f"dataset {name!r} cannot be batched: {what} are no numeric arrays of one shape; {remedy}")
    return fields


def _facts(builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> dict[str, Any]:
    """Extracts the facts of a builder's info that are cached."""
    feature, spec = fields.get("targets", (None, None))
    target = builder.info.features[feature] if spec is not None and not spec.shape else None
    return {
        "sizes": {split: info.num_examples for split, info in builder.info.splits.items()},
        "names": {
            "num_classes": getattr(target, "num_classes", None),
            "class_names": getattr(target, "names", None),
            "feature_names": (builder.info.metadata or {}).get("feature_names"),
        },
    }


def _file(folder: Path, key: str) -> Path:
    return folder / f"{urllib.parse.quote(key, safe='')}.npy"  # a key may contain slashes


def _write(folder: Path, examples: Examples, kept: set[str], facts: dict[str, Any]) -> None:
    """Reads the whole dataset once, writes some keys as arrays and the digest of each key.

    The folder is renamed when it is complete, so that a killed process leaves nothing that would be read.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    specs = {key: (leaf.dtype.str, (len(examples), *leaf.shape)) for key, leaf in examples.spec.items()}
    arrays = {key: _create_array(_file(partial, key), *specs[key]) for key in kept & specs.keys()}
    digests, start = {key: hashlib.sha256() for key in specs}, 0
    # Memory maps: the dataset need not fit into memory.
    for block in read_blocks(examples, np.arange(len(examples))):
        end = start + len(next(iter(block.values())))
        for key, values in block.items():
            digests[key].update(values.data)
            if key in arrays:
                arrays[key][start:end] = values
        start = end
    facts = {**facts, "specs": specs, "digests": {key: digest.hexdigest() for key, digest in digests.items()}}
    cache.write_json(partial / "dataset.json", facts)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _create_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Creates a memory-mapped .npy file; raises an OSError if the disk has no room for it."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    # Reserved now: a write through a memory map to a full disk would kill the process (SIGBUS).
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _open(name: str, folder: Path, streamed: Examples | None = None) -> RawDataset | None:
    """Opens a folder of `_write`, with its arrays as examples if none are `streamed`; None if it is incomplete."""
    facts = cache.read_json(folder / "dataset.json")
    if facts is None:
        return None
    specs = {key: spec for key, spec in facts["specs"].items() if streamed is None or key == "targets"}
    # A damaged file is as good as none: the caller writes it again.
    try:
        arrays = {key: np.load(_file(folder, key), mmap_mode="r") for key in specs}
    except (OSError, ValueError, EOFError):
        return None
    if {key: [array.dtype.str, list(array.shape)] for key, array in arrays.items()} != specs:
        return None
    labels = np.asarray(arrays["targets"]) if facts["names"]["num_classes"] else None
    examples = streamed or ArrayExamples(arrays)
    return RawDataset(name, examples, labels, facts["sizes"], facts["digests"], facts["names"], folder)
