"""Reading Orbax's checkpoints: their arrays, onto any sharding, verified by checksums; and what is wrong with them."""

import contextlib
import errno
import functools
import json
import logging
import os
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from foldax import processes
from foldax.engine.checkpoint_folder import Folder, is_refused_by_bucket
from foldax.engine.checksums import checksums
from foldax.errors import DamagedError, RunError, display_path

R = TypeVar("R")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A good checkpoint cannot be read now.
REFUSALS = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.ESTALE)
CHECKSUM = "sum of mixed words"  # of `engine.checksums`; the CRC-32 of NumPy arrays before
ORBAX_LOCK = threading.RLock()  # Orbax's event loop serves one thread, but members of a sweep save from several


@contextlib.contextmanager
def reading(path: Folder) -> Iterator[None]:
    """Tells damaged checkpoints from those that the system refuses to read now.

    Raises:
      RunError: the system refuses, as when too many files are open.
      DamagedError: anything else is wrong.
    """
    try:
        yield
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        is_refused = isinstance(error, MemoryError) or is_system_error(error, REFUSALS)
        if is_refused or is_refused_by_bucket(path, error):
            raise RunError(
                f"checkpoint {display_path(path)} cannot be read now, and is left as it is: {reason}"
            ) from error
        raise DamagedError(reason) from error


def is_system_error(error: Exception, codes: Sequence[int]) -> bool:
    """Whether the system's answer was one of these codes."""
    # TensorStore passes on the system's message, not its number.
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def open_manager(path: Folder, **options: Any) -> Any:
    """Opens a folder of checkpoints with Orbax's options; all processes write together, and read each by itself."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax prints the errors that it raises
    several = ocp.options.MultiprocessingOptions()
    if (number := processes.number_of_processes()) > 1:
        # Naming the processes makes them wait for each other by messages between hosts: not on devices, as by default.
        own = processes.this_process()
        several = ocp.options.MultiprocessingOptions(primary_host=0, active_processes=set(range(number)))
        if options.get("read_only"):
            several = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        options = {"create": False, **options}
    handlers = {  # trained weights do not compress: trying would only cost processor time
        "arrays": ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=several),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=several),
    }
    all_options = ocp.CheckpointManagerOptions(multiprocessing_options=several, **options)
    return ocp.CheckpointManager(path, options=all_options, item_handlers=handlers)


def newest_intact(steps: Sequence[int], folder: Folder, read: Callable[[int], R]) -> tuple[R | None, dict[int, str]]:
    """Reads the newest intact checkpoint of some, or None if there is none; and why each later one is damaged."""
    _silence_late_reads()
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            return read(step), damaged
        except DamagedError as error:
            damaged[step] = str(error)
    if damaged:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise RunError(f"none of the checkpoints in {display_path(folder)} can be read ({reasons}); start the run anew")
    return None, {}


def read_meta(manager: Any, path: Folder) -> dict[str, Any]:
    """Reads the JSON object of a checkpoint, and verifies its checksum.

    Raises:
      DamagedError: it cannot be read, or is not what was written.
    """
    from orbax.checkpoint import args

    with reading(path):
        meta = manager.restore(int(path.name), args=args.Composite(meta=args.JsonRestore())).meta
    checksum = meta.pop("meta_checksum", None)
    if (checksum is None and "checksum_function" in meta) or checksum not in (None, _json_checksum(meta)):
        raise DamagedError("the checksum of its JSON object does not fit")
    return meta


def read_checked(
    manager: Any, path: Folder, specs: Mapping[str, jax.ShapeDtypeStruct | None], meta: dict[str, Any]
) -> dict[str, Any]:
    """Reads arrays, none of which is empty, and verifies their checksums; see `read_parts`.

    Raises:
      RunError: the arrays have other shapes or dtypes, or the system refuses to read them.
      DamagedError: the content is not what was written.
    """
    arrays = read_parts(manager, path, specs, meta)
    verify(arrays, meta)
    return {name: place(array, specs[name]) for name, array in arrays.items()}


def read_parts(
    manager: Any, path: Folder, specs: Mapping[str, jax.ShapeDtypeStruct | None], meta: dict[str, Any]
) -> dict[str, Any]:
    """Reads arrays, none of which is empty, each process its parts of those that are divided.

    Args:
      manager: from `open_manager`.
      path: the checkpoint.
      specs: by name, what the array must be: None for any shape and dtype; one with a sharding over several devices is
        read onto these, each of them its part, and all others to NumPy.
      meta: from `read_meta`.

    Raises:
      RunError: the arrays have other shapes or dtypes, or the system refuses to read them.
      DamagedError: they cannot be read.
    """
    from orbax.checkpoint import ArrayRestoreArgs, RestoreArgs, args

    is_of_numpy = meta.get("checksum_function") != CHECKSUM  # of an earlier version, without shapes
    _check_shapes(path, specs, meta.get("shapes", {}))
    divided = {name for name, spec in specs.items() if not is_of_numpy and spec is not None and _is_divided(spec)}
    restore_args = {
        name: ArrayRestoreArgs(sharding=specs[name].sharding)  # type: ignore[union-attr]
        if name in divided
        else RestoreArgs(restore_type=np.ndarray)
        for name in specs
    }
    item = args.PyTreeRestore(item=dict.fromkeys(specs, 0), restore_args=restore_args, partial_restore=True)
    with reading(path):
        restored = manager.restore(int(path.name), args=args.Composite(arrays=item)).arrays
        arrays = {name: restored[name] for name in specs}
    if is_of_numpy:
        _check_shapes(path, specs, {name: shape_text(array) for name, array in arrays.items()})
    return arrays


def shape_text(array: Any) -> str:
    """Writes dtype and shape of an array, or of a spec, as one text.

    >>> shape_text(np.zeros((2, 3)))
    'float64(2, 3)'
    """
    return f"{array.dtype}{array.shape}"


def _check_shapes(path: Folder, specs: Mapping[str, jax.ShapeDtypeStruct | None], shapes: Mapping[str, str]) -> None:
    for name, spec in specs.items():
        if spec is not None and shapes.get(name, shape_text(spec)) != shape_text(spec):
            problem = f"`{name}` is {shapes[name]}, not {shape_text(spec)}"
            raise RunError(f"checkpoint {display_path(path)} does not fit this experiment's state: {problem}")


def verify(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Compares the checksums of arrays with those that were saved.

    Raises:
      DamagedError: one does not fit.
    """
    if meta.get("checksum_function") == CHECKSUM:
        sums = checksums(arrays)
    else:
        sums = {
            name: zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            for name, array in arrays.items()
        }
    for name, value in sums.items():
        if value != meta["checksums"][name]:
            raise DamagedError(f"the checksum of `{name}` does not fit")


def place(array: Any, spec: jax.ShapeDtypeStruct | None) -> Any:
    """Puts a NumPy array onto the several devices of a spec; returns others as they are."""
    if spec is None or spec.sharding is None or isinstance(array, jax.Array):
        return array
    return jax.make_array_from_callback(array.shape, spec.sharding, lambda index: array[index])


def _is_divided(spec: jax.ShapeDtypeStruct) -> bool:
    # What all devices hold is read once and copied.
    return spec.sharding is not None and not spec.sharding.is_fully_replicated


def with_checksum(meta: dict[str, Any]) -> dict[str, Any]:
    """Adds the checksum of a JSON object to it."""
    return {**meta, "meta_checksum": _json_checksum(meta)}


def _json_checksum(meta: dict[str, Any]) -> int:
    # As it is read: keys become text, tuples lists.
    return zlib.crc32(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode())


@functools.cache
def _silence_late_reads() -> None:
    """Hides tracebacks of reads that are still running when another array of a damaged checkpoint has failed."""
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_of_orbax = code is not None and "orbax" in code.co_filename
        if not is_of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook
