"""Datasets by name: prepared by TFDS once, and kept decoded where they fit into memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
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
from foldax.data.bundled import OWN_VERSION, own_names
from foldax.data.info import ArrayExamples, Examples, example_bytes, in_blocks
from foldax.errors import DataError, nearest

DEVICE_BYTES = 1 << 30  # a dataset of at most this size lives on the device


class Raw(NamedTuple):
    """A dataset before it is split."""

    name: str
    examples: Examples  # the splits that it has of its own one after another
    labels: np.ndarray | None  # class of each example [N]
    sizes: dict[str, int]  # examples by own split, in the order of the examples
    digests: dict[str, str]  # SHA-256 of each key's bytes
    names: dict[str, Any]  # what `Info` tells of classes and columns
    folder: Path | None = None  # where it is kept, if it is; facts about it stand beside it


class TFDSExamples:
    """Examples read from what TFDS prepared as ArrayRecord; can be pickled, for worker processes."""

    def __init__(self, builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self.spec = {key: leaf for key, (_, leaf) in fields.items()}
        self._fields = fields
        self._source = builder.as_data_source("+".join(builder.info.splits))

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` `[B]`; reading in bulk is far faster than one by one."""
        records = self._source.__getitems__(indices.tolist())
        return {
            key: np.array([record[feature] for record in records], leaf.dtype)
            for key, (feature, leaf) in self._fields.items()
        }


def choose(source: str, examples: Examples) -> str:
    """Returns where examples shall live, "device" or "stream": for "auto" what their size calls for."""
    if source != "auto":
        return source
    return "device" if len(examples) * example_bytes(examples) <= DEVICE_BYTES else "stream"


def canonical(dtype: Any) -> np.dtype:
    """Returns the dtype in which JAX keeps such values: 32 bits instead of 64."""
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
    return np.dtype(narrow.get(np.dtype(dtype).name, dtype))


def read_dataset(name: str, source: str) -> Raw:
    """Opens a dataset by name, preparing it at its first use.

    Raises:
      DataError: if there is no such dataset, it cannot be had, or its inputs cannot be batched.
    """
    arrays = cache.root() / "arrays"
    if name in own_names() and source != "stream":  # TFDS is not needed any more, and takes a while to import
        raw = _open(name, arrays / name / OWN_VERSION)
        if raw is not None:
            return raw
    builder = _prepare(name, cache.root() / "datasets")
    folder = arrays / Path(builder.data_dir).relative_to(builder.data_dir_root)
    fields = _fields(name, builder)
    examples = TFDSExamples(builder, fields)
    streamed = examples if choose(source, examples) == "stream" else None
    with cache.locked(folder.with_name(f".{folder.name}.lock")):
        raw = _open(name, folder, streamed)
        if raw is None:
            _write(folder, examples, {"targets"} if streamed else set(fields), _facts(builder, fields))
            raw = _open(name, folder, streamed)
    assert raw is not None
    return raw


def _prepare(name: str, folder: Path) -> Any:
    """Returns the TFDS builder of a dataset, which is prepared when this returns."""
    builder, own = _make(name, folder), name in own_names()
    place = Path(builder.data_dir)
    ready = place / "dataset_info.json"
    if ready.exists():
        return builder
    _fields(name, builder)  # no need to download what could not be used
    with cache.locked(folder / f".{name.replace('/', '.')}.lock"):
        for stale in place.parent.glob(f"{place.name}.incomplete*"):  # of a process that was killed
            shutil.rmtree(stale)
        if not ready.exists():
            try:
                _check_connection(builder, folder)
                with contextlib.redirect_stdout(io.StringIO() if own else sys.stderr):
                    builder.download_and_prepare()
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise DataError(
                    f"dataset {name!r} could not be prepared in {folder}: {type(error).__name__}: {reason} "
                    f"(without a download: {', '.join(own_names())})"
                ) from error
    return _make(name, folder)  # one that knows what is prepared


def _make(name: str, folder: Path) -> Any:
    """Returns a new TFDS builder of that name."""
    import tensorflow_datasets as tfds

    options = {"file_format": "array_record", "data_dir": folder}
    if name in own_names():
        from foldax.data.builders import BUILDERS

        tfds.disable_progress_bar()
        return BUILDERS[name](**options)
    names = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in names:
        raise DataError(
            f"there is no dataset {name!r}{nearest(name, [*names, *own_names()])} "
            f"(without a download: {', '.join(own_names())}; the others are those of TensorFlow Datasets)"
        )
    try:
        return tfds.builder(name, **options)
    except (ValueError, AssertionError) as error:  # no such config or version
        raise DataError(f"there is no dataset {name!r}: {' '.join(str(error).split())[:300]}") from error


def _check_connection(builder: Any, folder: Path) -> None:
    """Fails at once where TFDS would try for minutes: no host answers, no proxy, nothing downloaded yet."""
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
    """Returns, by our key, TFDS's feature and the spec of all that can be batched.

    That is every top-level feature that is one numeric array of a fixed shape; strings, ragged
    sequences, nested features and images of varying size are left out.
    """
    pair = (builder.info.supervised_keys or (None, None))[:2]
    inputs, targets = pair if all(isinstance(key, str) for key in pair) and pair[0] != pair[1] else (None, None)
    infos, fields = builder.info.features.get_tensor_info(), {}
    for feature, info in infos.items():
        if not hasattr(info, "np_dtype") or None in info.shape or np.dtype(info.np_dtype).kind not in "biuf":
            continue
        key = {inputs: "inputs", targets: "targets"}.get(feature, feature)
        number = key == "targets" and not info.shape and not hasattr(builder.info.features[feature], "num_classes")
        dtype = np.dtype(np.float32) if number else canonical(info.np_dtype)
        fields[key] = (feature, jax.ShapeDtypeStruct(info.shape, dtype))
    if not fields or (inputs and "inputs" not in fields):
        what = f"its inputs ({inputs!r}: {infos[inputs]})" if inputs else f"its features ({', '.join(infos)})"
        raise DataError(
            f"dataset {name!r} cannot be batched: {what} are no numeric arrays of one shape; make them so "
            "and use data.from_arrays"
        )
    return fields


def _facts(builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> dict[str, Any]:
    """Returns what is kept of a builder's info, so that TFDS need not be asked again."""
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
    return folder / f"{urllib.parse.quote(key, safe='')}.npy"  # a key may hold slashes


def _write(folder: Path, examples: Examples, kept: set[str], facts: dict[str, Any]) -> None:
    """Reads the whole dataset once: keeps some keys as arrays, and a digest of each.

    The folder appears when it is whole, so that a process that is killed leaves nothing that is read.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    specs = {key: (leaf.dtype.str, (len(examples), *leaf.shape)) for key, leaf in examples.spec.items()}
    arrays = {key: np.lib.format.open_memmap(_file(partial, key), "w+", *specs[key]) for key in kept & specs.keys()}
    digests, start = {key: hashlib.sha256() for key in specs}, 0
    for block in in_blocks(examples, np.arange(len(examples))):
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


def _open(name: str, folder: Path, streamed: Examples | None = None) -> Raw | None:
    """Opens what `_write` wrote, with its arrays as the examples if none are `streamed`; None if it is not whole."""
    facts = cache.read_json(folder / "dataset.json")
    if facts is None:
        return None
    arrays = {}
    for key, (dtype, shape) in facts["specs"].items():
        if streamed is None or key == "targets":
            try:
                arrays[key] = np.load(_file(folder, key), mmap_mode="r")
            except (OSError, ValueError, EOFError):
                return None
            if [arrays[key].dtype.str, list(arrays[key].shape)] != [dtype, shape]:
                return None
    labels = np.asarray(arrays["targets"]) if facts["names"]["num_classes"] else None
    examples = streamed or ArrayExamples(arrays)
    return Raw(name, examples, labels, facts["sizes"], facts["digests"], facts["names"], folder)
