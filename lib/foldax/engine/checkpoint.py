"""Checkpoints on disk: written by Orbax in the background, atomically, and verified by checksums when they are read."""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import sys
import textwrap
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from foldax.engine.checkpoint_folder import lacks_locks, local_copy, plain_path, publish, set_aside
from foldax.errors import ExperimentError, FoldaxError, NonFiniteError, RunError, display_path, first_line


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Flattens a pytree to its leaves by path, such as `state.params.Dense_0.kernel`.

    Raises:
      ExperimentError: two leaves have the same path.

    >>> leaves_by_path({"params": {"kernel": 1, "bias": 2}})
    {'params.bias': 2, 'params.kernel': 1}
    """
    by_path: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if path in by_path:
            raise ExperimentError(f"two arrays of the state have the path `{path}`: rename a key that holds a dot")
        by_path[path] = leaf
    return by_path


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Copies the leaves of a pytree to NumPy arrays by path; random keys become their uint32 data.

    >>> host_arrays({"step": jax.numpy.int32(3)})
    {'step': array(3, dtype=int32)}
    """
    return {
        name: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for name, leaf in leaves_by_path(tree).items()
    }


def tree_from_arrays(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Rebuilds a pytree from arrays by path, the inverse of `host_arrays`.

    Args:
      arrays: NumPy arrays by path.
      like: a pytree of the structure to build; its leaves, or their shapes, say which arrays are random keys.

    >>> state = {"key": jax.random.key(1), "step": jax.numpy.int32(3)}
    >>> int(tree_from_arrays(host_arrays(state), state)["step"])
    3
    """

    leaves = [typed_array(jax.numpy.asarray(arrays[name]), leaf) for name, leaf in leaves_by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def state_digest(state: Any) -> str:
    """Hashes all bits of a state, with the paths, dtypes and shapes of its arrays (SHA-256, as hexadecimal digits).

    >>> state_digest({"step": jax.numpy.int32(3)})[:8] == state_digest({"step": jax.numpy.int32(4)})[:8]
    False
    """
    digest = hashlib.sha256()
    for name, array in sorted(host_arrays(state).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


R = TypeVar("R")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A good checkpoint cannot be read now.
REFUSALS = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.ESTALE)
_ORBAX_LOCK = threading.RLock()  # Orbax's event loop serves one thread, but members of a sweep save from several


class Checkpoints:
    """The checkpoints of one run: the two newest steps that were saved.

    A checkpoint holds arrays by path and a JSON object with a checksum of every array; where one does not fit, the
    checkpoint before is used.

    Args:
      folder: where they are; created if it is missing.
      warn: receives a sentence about every damaged checkpoint.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder, self._warn = folder, warn
        folder.mkdir(parents=True, exist_ok=True)
        self._resources = contextlib.ExitStack()
        # Where there are no locks, checkpoints are written to a local folder, and copied.
        self._local = self._resources.enter_context(local_copy(folder)) if lacks_locks(folder) else None
        path = self._resources.enter_context(plain_path(self._local or folder))
        with _ORBAX_LOCK:
            self._manager = _manager(path, max_to_keep=2, enable_async_checkpointing=True)
        # Orbax works for tens of milliseconds before it goes to the background; in a thread of ours it delays no step.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="foldax-checkpoint")
        self._writing: Future[None] | None = None
        self._is_read_back = False

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, tree: Any, meta: dict[str, Any], finite: str = "") -> None:
        """Starts writing a checkpoint, after waiting for the previous one.

        Args:
          step: number of the checkpoint; one that is there already is left as it is.
          tree: pytree of arrays, which must not be donated meanwhile.
          meta: JSON-able.
          finite: regular expression of the paths of arrays that must not hold NaN; "" checks none.

        Raises:
          RunError: the previous checkpoint could not be written, as when the disk is full, or not be read back.
          NonFiniteError: the previous checkpoint held NaN, and was not written.
        """
        self.wait()
        self._writing = self._writer.submit(self._save, step, tree, meta, finite)

    def _save(self, step: int, tree: Any, meta: dict[str, Any], finite: str) -> None:
        from orbax.checkpoint import args

        if step in self._manager.all_steps():
            return
        arrays = host_arrays(tree)
        for name, array in arrays.items():
            if finite and re.search(finite, name) and _has_nan(array):
                problem = f"`{name}` holds NaN at step {step}, although all training metrics were finite"
                raise NonFiniteError(step, f"{problem}; {self._kept_steps()}")
        meta = {**meta, "step": step, "checksums": {name: _checksum(array) for name, array in arrays.items()}}
        nonempty = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        items = args.Composite(arrays=args.PyTreeSave(nonempty), meta=args.JsonSave(meta))
        with _ORBAX_LOCK:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
            # The first one of this process is read back: a run must not end with checkpoints that nobody can read.
            if not self._is_read_back:
                self._read(step, {name: array_spec(array) for name, array in arrays.items()}, meta)
                self._is_read_back = True
        if self._local is not None:
            publish(self._local, self.folder)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          RunError: a checkpoint could not be written, as when the disk is full, or not be read back.
          NonFiniteError: a checkpoint held NaN, and was not written.
        """
        try:
            if self._writing is not None:
                self._writing.result()
        except FoldaxError:
            raise
        except Exception as error:
            raise self._cannot_write(error) from error
        finally:
            self._writing = None

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest intact checkpoint; damaged ones after it are renamed and warned about.

        Args:
          like: a pytree of the same structure, shapes and dtypes, or a function that makes one from the meta.

        Returns:
          `(tree, meta)`, or None if there is no checkpoint at all.

        Raises:
          RunError: there are checkpoints, but none is intact, the newest one holds other arrays than `like`, or the
            system refuses to read it. Nothing is renamed then.
        """
        with _ORBAX_LOCK:
            restored, damaged = _newest_intact(self._manager, self.folder, lambda step: self._restore(step, like))
            # Set aside only now: they are all there is, until an older one is known to be intact.
            for step, reason in damaged.items():
                self._warn(f"checkpoint {display_path(self.folder / str(step))} is damaged and was set aside: {reason}")
                for path in (self.folder, self._local or self.folder):
                    set_aside(path / str(step))
                self._manager.reload()
        return restored

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        path = self.folder / str(step)
        meta = _read_meta(self._manager, path)
        like = like(meta) if callable(like) else like
        specs = {name: array_spec(leaf) for name, leaf in leaves_by_path(like).items()}
        if different := sorted(specs.keys() ^ meta["checksums"].keys()):
            problem = f"holds other arrays than this experiment's state ({', '.join(different[:5])})"
            remedy = "undo the change of the experiment, or start a new run (`init_from` takes what fits)"
            raise RunError(f"checkpoint {display_path(path)} {problem}; {remedy}")
        return tree_from_arrays(self._read(step, specs, meta), like), meta

    def _read(self, step: int, specs: dict[str, jax.ShapeDtypeStruct], meta: dict[str, Any]) -> dict[str, np.ndarray]:
        """Reads the arrays of a checkpoint, as NumPy, and checks that they fit a state."""
        path = self.folder / str(step)
        stored = _read_arrays(self._manager, path, [name for name, spec in specs.items() if spec.size], meta)
        for name, array in stored.items():
            if array.shape != specs[name].shape or array.dtype != specs[name].dtype:
                problem = f"`{name}` is {array.dtype}{array.shape}, not {specs[name].dtype}{specs[name].shape}"
                raise RunError(f"checkpoint {display_path(path)} does not fit this experiment's state: {problem}")
        # Empty arrays, which Orbax did not save, are made anew.
        return {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items() if not spec.size} | stored

    def close(self) -> None:
        """Waits for the last checkpoint and ends Orbax's threads.

        Raises:
          RunError: it could not be written, as when the disk is full.
        """
        try:
            self._writer.shutdown()
            with _ORBAX_LOCK, self._resources:
                self._manager.close()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RunError:
        reason = "the disk is full" if _is_system_error(error, DISK_FULL) else first_line(error)[:200]
        return RunError(f"cannot write a checkpoint to {display_path(self.folder)}: {reason}; {self._kept_steps()}")

    def _kept_steps(self) -> str:
        kept = checkpoint_steps(self.folder)
        return f"checkpoints kept: {', '.join(map(str, kept))}" if kept else "no checkpoint could be written"


def checkpoint_steps(folder: Path) -> list[int]:
    """Lists the steps of the checkpoints in a folder; none if it does not exist."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


class _DamagedError(RunError):
    """The content of a checkpoint is not what was written."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells damaged checkpoints from those that the system refuses to read now.

    Raises:
      RunError: the system refuses, as when too many files are open.
      _DamagedError: anything else is wrong.
    """
    try:
        yield
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        if isinstance(error, MemoryError) or _is_system_error(error, REFUSALS):
            raise RunError(
                f"checkpoint {display_path(path)} cannot be read now, and is left as it is: {reason}"
            ) from error
        raise _DamagedError(reason) from error


def _is_system_error(error: Exception, codes: Sequence[int]) -> bool:
    # TensorStore passes on the system's message, not its number.
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def read_arrays(folder: Path, select: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads some arrays of the newest intact checkpoint of any run, and changes nothing in its folder.

    Args:
      folder: the checkpoints of the run.
      select: whether to read the array of a path, such as `0.state.params.Dense_0.kernel`; "0" is the fold, "1" the
        best state.

    Returns:
      `(arrays by path, meta)`, without empty arrays; None if there is no checkpoint at all.

    Raises:
      RunError: there are checkpoints, but none can be read.
    """
    if not folder.is_dir():
        return None
    with _ORBAX_LOCK, plain_path(folder) as path, _manager(path, read_only=True) as manager:

        def read(step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            meta = _read_meta(manager, folder / str(step))
            with _reading(folder / str(step)):
                names = list(filter(select, manager.item_metadata(step).arrays))
            return _read_arrays(manager, folder / str(step), names, meta), meta

        return _newest_intact(manager, folder, read)[0]


def _manager(path: Path, **options: Any) -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax prints the errors that it raises
    handlers = {  # trained weights do not compress: trying would only cost processor time
        "arrays": ocp.PyTreeCheckpointHandler(use_compression=False),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options), item_handlers=handlers)


def _newest_intact(manager: Any, folder: Path, read: Callable[[int], R]) -> tuple[R | None, dict[int, str]]:
    """Reads the newest intact checkpoint, or None if there is none at all; and why each later one is damaged."""
    _silence_late_reads()
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return read(step), damaged
        except _DamagedError as error:
            damaged[step] = str(error)
    if damaged:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise RunError(f"none of the checkpoints in {display_path(folder)} can be read ({reasons}); start the run anew")
    return None, {}


def _read_meta(manager: Any, path: Path) -> dict[str, Any]:
    from orbax.checkpoint import args

    with _reading(path):
        return manager.restore(int(path.name), args=args.Composite(meta=args.JsonRestore())).meta


def _read_arrays(manager: Any, path: Path, names: Sequence[str], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of these names, none of which is empty, and verifies their checksums."""
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    item = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=as_numpy, partial_restore=True)
    with _reading(path):
        restored = manager.restore(int(path.name), args=ocp.args.Composite(arrays=item)).arrays
        arrays = {name: restored[name] for name in names}
    for name, array in arrays.items():
        if _checksum(array) != meta["checksums"][name]:
            raise _DamagedError(f"the checksum of `{name}` does not fit")
    return arrays


@functools.cache
def _silence_late_reads() -> None:
    """Hides tracebacks of reads that are still running when another array of a damaged checkpoint has failed."""
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed random keys, which NumPy has no type for.

    >>> is_key(jax.random.key(0)), is_key(jax.numpy.zeros(2))
    (True, False)
    """
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def typed_array(array: jax.Array, like: Any) -> jax.Array:
    """Makes random keys of their uint32 data where `like` holds keys; returns other arrays as they are.

    >>> bool(typed_array(jax.random.key_data(jax.random.key(3)), jax.random.key(0)) == jax.random.key(3))
    True
    """
    if not is_key(like):
        return array
    # A spec has the type of its keys, and only an array tells its name.
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jax.numpy.empty(0, like.dtype)))


def array_spec(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a leaf as a checkpoint holds it: of random keys, those of their uint32 data.

    >>> array_spec(jax.random.key(0))
    ShapeDtypeStruct(shape=(2,), dtype=uint32)
    """
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _has_nan(array: np.ndarray) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, np.floating) and np.isnan(array).any())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
