"""Datasets by name: prepared by TFDS once, and their arrays kept decoded where they fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax.data import cache
from foldax.data.info import ArrayExamples, Examples, example_bytes, in_blocks
from foldax.errors import DataError, nearest

DEVICE_BYTES = 1 << 30  # a dataset of at most this size lives on the device


@dataclasses.dataclass(frozen=True)
class Raw:
    """A dataset before it is split.

    Attributes:
      name: its name.
      examples: its examples, all own splits one after another.
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
    """Examples read from a dataset that TFDS prepared as ArrayRecord; can be pickled."""

    def __init__(self, builder: Any, fields: dict[str, tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self.spec = {key: leaf for key, (_, leaf) in fields.items()}
        self._features = {key: feature for key, (feature, _) in fields.items()}
        self._sources = [builder.as_data_source(split) for split in builder.info.splits]
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` `[B]`; reading in bulk is far faster than one by one."""
        indices = np.asarray(indices)
        rows = {key: np.empty((len(indices), *leaf.shape), leaf.dtype) for key, leaf in self.spec.items()}
        owners = np.searchsorted(self._ends, indices, side="right")
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            source = self._sources[owner]
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
    own = name in cache.own_names()
    arrays = cache.root() / "arrays"
    if own and source != "stream":  # TFDS takes a while to import, and is not needed any more
        folder = arrays / name / cache.OWN_VERSION
        if raw := _read_arrays(name, folder):
            return raw, "device"
    builder = _prepare(name, own)
    folder = arrays / Path(builder.data_dir).relative_to(builder.data_dir_root)
    examples = TFDSExamples(builder, _fields(name, builder))
    if source == "auto":
        source = "device" if len(examples) * example_bytes(examples.spec) <= DEVICE_BYTES else "stream"
    with cache.locked(folder.with_name(f".{folder.name}.lock")):
        raw = _read_arrays(name, folder, None if source == "device" else examples)
        if raw is None:
            kept = [
                key for key, leaf in examples.spec.items() if source == "device" or (key, leaf.shape) == ("targets", ())
            ]
            _write_arrays(folder, examples, kept, _facts(builder))
            raw = _read_arrays(name, folder, None if source == "device" else examples)
    assert raw is not None
    return raw, source


def _prepare(name: str, own: bool) -> Any:
    """Returns the TFDS builder of a dataset that is prepared."""
    import tensorflow_datasets as tfds

    folder = cache.root() / "datasets"
    if own:
        from foldax.data.builders import BUILDERS

        make = BUILDERS[name]
        tfds.disable_progress_bar()
    else:
        make = _known(name)
    builder = make(file_format="array_record", data_dir=folder)
    place = Path(builder.data_dir)
    if (place / "dataset_info.json").exists():
        return builder
    if not own:
        _fields(name, builder)  # no need to download what could not be used
    with cache.locked(folder / f".{name.replace('/', '.')}.lock"):
        for stale in place.parent.glob(f"{place.name}.incomplete*"):  # of a process that was killed
            shutil.rmtree(stale)
        if not (place / "dataset_info.json").exists():
            try:
                with contextlib.redirect_stdout(io.StringIO() if own else sys.stderr):
                    builder.download_and_prepare()
            except Exception as error:
                if own:
                    raise
                raise DataError(_why_not(name, error)) from error
        return make(file_format="array_record", data_dir=folder)


def _known(name: str) -> Any:
    """Returns what makes the TFDS builder of that name."""
    import tensorflow_datasets as tfds

    try:
        tfds.builder_cls(name.split("/")[0].split(":")[0])
        return functools.partial(tfds.builder, name)
    except tfds.core.registered.DatasetNotFoundError:
        names = (*cache.own_names(), *tfds.list_builders(with_community_datasets=False))
        raise DataError(
            f"there is no dataset {name!r}{nearest(name, names)} "
            f"(without a download: {', '.join(cache.own_names())}; all others are TensorFlow Datasets' names)"
        ) from None


def _why_not(name: str, error: BaseException) -> str:
    own, place = ", ".join(cache.own_names()), cache.root() / "datasets"
    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if any(isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) for cause in causes):
        return (
            f"dataset {name!r} must be downloaded first, and the download failed: is there a network connection? "
            f"(it would be kept in {place}; without a download: {own})"
        )
    lines = str(error).strip().splitlines() or [""]
    return f"dataset {name!r} could not be prepared: {type(error).__name__}: {lines[0]} (without a download: {own})"


def _fields(name: str, builder: Any) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
    """Returns, by our key, TFDS's feature and the spec of what can be batched.

    That is every top-level feature that is one numeric array of a fixed shape; strings, ragged
    sequences, nested features and images of varying size are left out.
    """
    features, supervised = builder.info.features, builder.info.supervised_keys
    inputs, targets = supervised[:2] if supervised and all(isinstance(key, str) for key in supervised) else (None, None)
    fields = {}
    for feature, info in features.get_tensor_info().items():
        if hasattr(info, "shape") and None not in info.shape and np.dtype(info.np_dtype).kind in "biuf":
            key = {inputs: "inputs", targets: "targets"}.get(feature, feature) if feature != inputs else "inputs"
            is_class = hasattr(features[feature], "num_classes")
            dtype = np.float32 if key == "targets" and not is_class and not info.shape else info.np_dtype
            fields[key] = (feature, jax.ShapeDtypeStruct(tuple(info.shape), canonical(np.dtype(dtype))))
    if inputs is not None and "inputs" not in fields:
        info = features.get_tensor_info()[inputs]
        raise DataError(
            f"dataset {name!r}: its inputs ({inputs!r}: {info}) are no numeric arrays of one shape, so they cannot be "
            "batched; make them so and use data.from_arrays"
        )
    if not fields:
        raise DataError(f"dataset {name!r} has no feature that is a numeric array of a fixed shape")
    return fields


def canonical(dtype: np.dtype) -> np.dtype:
    """Returns the dtype in which JAX keeps such values: 32 bits instead of 64."""
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
    return np.dtype(narrow.get(dtype.name, dtype))


def _facts(builder: Any) -> dict[str, Any]:
    """Returns what is kept of a builder's info, so that TFDS need not be asked again."""
    info = builder.info
    supervised = info.supervised_keys or ()
    target = info.features[supervised[1]] if len(supervised) > 1 and isinstance(supervised[1], str) else None
    classes = getattr(target, "num_classes", None) if getattr(target, "shape", None) == () else None
    return {
        "sizes": {split: len(builder.as_data_source(split)) for split in info.splits},
        "num_classes": classes,
        "class_names": list(target.names) if classes else None,  # type: ignore[union-attr]
        "feature_names": (info.metadata or {}).get("feature_names"),
    }


def _write_arrays(folder: Path, examples: Examples, kept: list[str], facts: dict[str, Any]) -> None:
    """Reads the whole dataset once: writes some keys as arrays, and a digest of each.

    `dataset.json` is written last: without it, or if it does not fit the arrays, nothing is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    size = len(examples)
    arrays = {
        key: np.lib.format.open_memmap(
            folder / f"{key_file(key)}", "w+", examples.spec[key].dtype, (size, *examples.spec[key].shape)
        )
        for key in kept
    }
    digests = {key: hashlib.sha256() for key in examples.spec}
    start = 0
    for block in in_blocks(examples, np.arange(size)):
        end = start + len(next(iter(block.values())))
        for key, values in block.items():
            digests[key].update(np.ascontiguousarray(values))
            if key in arrays:
                arrays[key][start:end] = values
        start = end
    for array in arrays.values():
        array.flush()
    keys = {
        key: {"dtype": np.dtype(leaf.dtype).str, "shape": list(leaf.shape), "sha256": digests[key].hexdigest()}
        for key, leaf in examples.spec.items()
    }
    cache.write_json(folder / "dataset.json", {**facts, "keys": keys})


def key_file(key: str) -> str:
    """Returns the file of a key's array; a key may hold characters that a file name may not."""
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16] if not key.isidentifier() else key}.npy"


def _read_arrays(name: str, folder: Path, examples: Examples | None = None) -> Raw | None:
    """Opens what `_write_arrays` wrote, or returns None; reads from `examples` if there are any."""
    meta = cache.read_json(folder / "dataset.json")
    if meta is None:
        return None
    size = sum(meta["sizes"].values())
    arrays = {}
    for key, leaf in meta["keys"].items():
        try:
            array = np.load(folder / key_file(key), mmap_mode="r")
        except (OSError, ValueError):
            continue
        if array.dtype == np.dtype(leaf["dtype"]) and array.shape == (size, *leaf["shape"]):
            arrays[key] = array
    classes = meta["num_classes"]
    if (examples is None and len(arrays) < len(meta["keys"])) or (classes and "targets" not in arrays):
        return None
    return Raw(
        name=name,
        examples=examples or ArrayExamples(arrays),
        sizes=meta["sizes"],
        digests={key: leaf["sha256"] for key, leaf in meta["keys"].items()},
        labels=np.asarray(arrays["targets"]) if classes else None,
        num_classes=classes,
        class_names=tuple(meta["class_names"]) if classes else None,
        feature_names=tuple(meta["feature_names"]) if meta["feature_names"] else None,
        folder=folder,
    )
