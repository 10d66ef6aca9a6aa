"""Datasets by name: prepared by TFDS once, and kept decoded where they fit into memory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.data import cache
from foldax.data.info import ArrayExamples, Examples, Spec, dataset_bytes, in_blocks
from foldax.errors import DataError, nearest

DEVICE_BYTES = 1 << 30  # a dataset of at most this size lives on the device


class Raw(NamedTuple):
    """A dataset before it is split.

    Attributes:
      name: its name.
      examples: its examples, the splits that it has of its own one after another.
      sizes: examples by own split, in that order.
      digests: SHA-256 of each key's bytes.
      labels: class of each example `[N]`, None where there are no classes.
      num_classes: number of classes.
      class_names: names of the classes.
      feature_names: names of the inputs' columns.
      folder: where facts about it may be kept; None if nowhere.
    """

    name: str
    examples: Examples
    sizes: dict[str, int]
    digests: dict[str, str]
    labels: np.ndarray | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    folder: Path | None = None


class TFDSExamples:
    """Examples read from what TFDS prepared as ArrayRecord; can be pickled, for worker processes."""

    def __init__(self, builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self.spec = {key: leaf for key, (_, leaf) in fields.items()}
        self._features = {key: feature for key, (feature, _) in fields.items()}
        self._sources = [builder.as_data_source(split) for split in builder.info.splits]
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` `[B]`; reading in bulk is far faster than one by one."""
        rows = {key: np.empty((len(indices), *leaf.shape), leaf.dtype) for key, leaf in self.spec.items()}
        owners = np.searchsorted(self._ends, indices, side="right")
        for owner in np.unique(owners):
            places, source = np.flatnonzero(owners == owner), self._sources[owner]
            records = source.__getitems__((indices[places] - self._ends[owner] + len(source)).tolist())
            for place, record in zip(places, records, strict=True):
                for key, feature in self._features.items():
                    rows[key][place] = record[feature]
        return rows


def read_dataset(name: str, source: str) -> tuple[Raw, str]:
    """Opens a dataset by name, preparing it at its first use.

    Returns:
      The dataset, and "device" or "stream": the `source`, or for "auto" what its size calls for.

    Raises:
      DataError: if there is no such dataset, it cannot be had, or its inputs cannot be batched.
    """
    own, arrays = name in cache.own_names(), cache.root() / "arrays"
    if own and source != "stream":  # TFDS is not needed any more, and takes a while to import
        raw = _read(name, arrays / name / cache.OWN_VERSION)
        if raw is not None:
            return raw, "device"
    builder = _prepare(name, own)
    folder = arrays / Path(builder.data_dir).relative_to(builder.data_dir_root)
    examples = TFDSExamples(builder, _fields(name, builder))
    source = choose(source, examples)
    streamed = examples if source == "stream" else None
    with cache.locked(folder.with_name(f".{folder.name}.lock")):
        if _read(name, folder, streamed) is None:
            kept = examples.spec if source == "device" else {k: s for k, s in examples.spec.items() if k == "targets"}
            _write(folder, examples, kept, _facts(builder))
        raw = _read(name, folder, streamed)
    assert raw is not None
    return raw, source


def choose(source: str, examples: Examples) -> str:
    """Returns where examples shall live, "device" or "stream": for "auto" what their size calls for."""
    if source != "auto":
        return source
    return "device" if dataset_bytes(examples) <= DEVICE_BYTES else "stream"


def canonical(dtype: Any) -> np.dtype:
    """Returns the dtype in which JAX keeps such values: 32 bits instead of 64."""
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
    return np.dtype(narrow.get(np.dtype(dtype).name, dtype))


def _prepare(name: str, own: bool) -> Any:
    """Returns the TFDS builder of a dataset, which is prepared when this returns."""
    folder = cache.root() / "datasets"
    make = functools.partial(_maker(name, own), file_format="array_record", data_dir=folder)
    try:
        builder = make()
    except (ValueError, AssertionError) as error:  # no such config or version
        raise DataError(f"there is no dataset {name!r}: {' '.join(str(error).split())[:300]}") from error
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
                raise DataError(_why_not(name, error, folder)) from error
        return make()


def _maker(name: str, own: bool) -> Callable[..., Any]:
    """Returns what makes the TFDS builder of that name."""
    import tensorflow_datasets as tfds

    if own:
        from foldax.data.builders import BUILDERS

        tfds.disable_progress_bar()
        return BUILDERS[name]
    names = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in names:
        names += cache.own_names()
        raise DataError(
            f"there is no dataset {name!r}{nearest(name, names)} "
            f"(without a download: {', '.join(cache.own_names())}; the others are those of TensorFlow Datasets)"
        )
    return functools.partial(tfds.builder, name)


def _check_connection(builder: Any, folder: Path) -> None:
    """Fails at once where TFDS would try for minutes: no host is known, no proxy, nothing downloaded yet."""
    hosts = {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or {}} - {None}
    if not hosts or urllib.request.getproxies() or any((folder / "downloads" / builder.name).glob("*")):
        return
    failures = []
    for host in sorted(hosts)[:3]:
        try:
            socket.getaddrinfo(host, 443)
            return
        except OSError as error:
            failures.append(error)
    raise ConnectionError(f"none of the hosts can be found: {hosts}") from failures[0]


def _why_not(name: str, error: BaseException, folder: Path) -> str:
    own = f"without a download: {', '.join(cache.own_names())}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError) or "ConnectionError" in type(cause).__name__:
            return (
                f"dataset {name!r} must be downloaded, and there is no connection (it would be kept in {folder}; {own})"
            )
        cause = cause.__cause__ or cause.__context__
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"dataset {name!r} could not be prepared in {folder}: {type(error).__name__}: {reason} ({own})"


def _supervised(builder: Any) -> tuple[str | None, str | None]:
    """Returns TFDS's features of inputs and targets, if the dataset names two different ones."""
    keys = builder.info.supervised_keys
    named = keys is not None and all(isinstance(key, str) for key in keys[:2]) and keys[0] != keys[1]
    return (keys[0], keys[1]) if named else (None, None)


def _fields(name: str, builder: Any) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
    """Returns, by our key, TFDS's feature and the spec of all that can be batched.

    That is every top-level feature that is one numeric array of a fixed shape; strings, ragged
    sequences, nested features and images of varying size are left out.
    """
    inputs, targets = _supervised(builder)
    infos = builder.info.features.get_tensor_info()
    fields = {}
    for feature, info in infos.items():
        if not hasattr(info, "np_dtype") or None in info.shape or np.dtype(info.np_dtype).kind not in "biuf":
            continue
        key = {inputs: "inputs", targets: "targets"}.get(feature, feature)
        number = key == "targets" and not info.shape and not hasattr(builder.info.features[feature], "num_classes")
        fields[key] = (
            feature,
            jax.ShapeDtypeStruct(info.shape, np.dtype(np.float32) if number else canonical(info.np_dtype)),
        )
    if inputs is not None and "inputs" not in fields:
        raise DataError(
            f"dataset {name!r} cannot be batched: its inputs ({inputs!r}: {infos[inputs]}) are no numeric arrays "
            "of one shape; make them so and use data.from_arrays"
        )
    if not fields:
        raise DataError(f"dataset {name!r} cannot be batched: no feature of it is a numeric array of one shape")
    return fields


def _facts(builder: Any) -> dict[str, Any]:
    """Returns what is kept of a builder's info, so that TFDS need not be asked again."""
    target = _supervised(builder)[1]
    feature = builder.info.features[target] if target is not None else None
    classes = getattr(feature, "num_classes", None) if getattr(feature, "shape", None) == () else None
    return {
        "sizes": {split: info.num_examples for split, info in builder.info.splits.items()},
        "num_classes": classes,
        "class_names": feature.names if classes else None,  # type: ignore[union-attr]
        "feature_names": (builder.info.metadata or {}).get("feature_names"),
    }


def _file(folder: Path, key: str) -> Path:
    return folder / f"{urllib.parse.quote(key, safe='')}.npy"  # a key may hold slashes


def _write(folder: Path, examples: Examples, kept: Spec, facts: dict[str, Any]) -> None:
    """Reads the whole dataset once: keeps some keys as arrays, and a digest of each.

    The facts are written last: without them, or if they do not fit the arrays, nothing is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    arrays = {
        key: np.lib.format.open_memmap(
            _file(folder, key).with_suffix(".partial"), "w+", leaf.dtype, (len(examples), *leaf.shape)
        )
        for key, leaf in kept.items()
    }
    digests, start = {key: hashlib.sha256() for key in examples.spec}, 0
    for block in in_blocks(examples, np.arange(len(examples))):
        end = start + len(next(iter(block.values())))
        for key, values in block.items():
            digests[key].update(values.data)
            if key in arrays:
                arrays[key][start:end] = values
        start = end
    for key, array in arrays.items():
        array.flush()
        _file(folder, key).with_suffix(".partial").replace(_file(folder, key))
    keys = {key: [leaf.dtype.str, list(leaf.shape), digests[key].hexdigest()] for key, leaf in examples.spec.items()}
    cache.write_json(folder / "dataset.json", {**facts, "keys": keys})


def _read(name: str, folder: Path, streamed: Examples | None = None) -> Raw | None:
    """Opens what `_write` wrote, with its arrays as the examples if none are `streamed`; None if it is not whole."""
    facts = cache.read_json(folder / "dataset.json")
    if facts is None:
        return None
    size, classes, arrays = sum(facts["sizes"].values()), facts["num_classes"], {}
    for key, (dtype, shape, _) in facts["keys"].items():
        if streamed is None or (key == "targets" and classes):
            try:
                arrays[key] = np.load(_file(folder, key), mmap_mode="r")
            except (OSError, ValueError):
                return None
            if arrays[key].dtype != np.dtype(dtype) or arrays[key].shape != (size, *shape):
                return None
    return Raw(
        name=name,
        examples=streamed or ArrayExamples(arrays),
        sizes=facts["sizes"],
        digests={key: digest for key, (_, _, digest) in facts["keys"].items()},
        labels=np.asarray(arrays["targets"]) if classes else None,
        num_classes=classes,
        class_names=tuple(facts["class_names"]) if classes else None,
        feature_names=tuple(facts["feature_names"]) if facts["feature_names"] else None,
        folder=folder,
    )
