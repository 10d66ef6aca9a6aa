"""Checkpoints on disk: written by Orbax in the background, atomically, and verified by checksums when they are read."""

import errno
import functools
import hashlib
import logging
import os
import sys
import textwrap
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax.errors import RunError


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Flattens a pytree to its leaves by path, such as `state.params.Dense_0.kernel`.

    >>> leaves_by_path({"params": {"kernel": 1, "bias": 2}})
    {'params.bias': 2, 'params.kernel': 1}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Copies the leaves of a pytree to NumPy arrays by path; random keys become their uint32 data.

    >>> host_arrays({"step": jax.numpy.int32(3)})
    {'step': array(3, dtype=int32)}
    """
    return {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for name, leaf in leaves_by_path(tree).items()
    }


def tree_from_arrays(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Rebuilds a pytree from arrays by path, the inverse of `host_arrays`.

    Args:
      arrays: NumPy arrays by path.
      like: a pytree of the structure to build; its leaves say which arrays are random keys.

    >>> state = {"key": jax.random.key(1), "step": jax.numpy.int32(3)}
    >>> int(tree_from_arrays(host_arrays(state), state)["step"])
    3
    """

    def device_leaf(name: str, like: Any) -> jax.Array:
        array = jax.numpy.asarray(arrays[name])
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array

    leaves = [device_leaf(name, leaf) for name, leaf in leaves_by_path(like).items()]
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


_ORBAX_LOCK = threading.RLock()  # Orbax's event loop serves one thread, but members of a sweep save from several


class Checkpoints:
    """The checkpoints of one run: the two newest steps that were saved.

    A checkpoint holds arrays by path and a JSON object with a checksum of every array; where one does not fit, the
    checkpoint before is used.

    Attributes:
      folder: where they are.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = warnings.warn) -> None:
        """Opens or creates a folder of checkpoints.

        Args:
          folder: where they are.
          warn: receives a sentence about every damaged checkpoint.
        """
        import orbax.checkpoint as ocp

        self.folder = folder
        self._ocp, self._warn = ocp, warn
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax prints the errors that it raises
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        handlers = {  # trained weights do not compress: trying would only cost processor time
            "arrays": ocp.PyTreeCheckpointHandler(use_compression=False),
            "meta": ocp.JsonCheckpointHandler(),
        }
        with _ORBAX_LOCK:
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)
        # Orbax works for tens of milliseconds before it goes to the background; in a thread of ours it delays no step.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="foldax-checkpoint")
        self._writing: Future[None] | None = None

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint, after waiting for the previous one.

        Args:
          step: number of the checkpoint; one that is there already is left as it is.
          tree: pytree of arrays, which must not be donated meanwhile.
          meta: JSON-able.

        Raises:
          RunError: the previous checkpoint could not be written, as when the disk is full.
        """
        self.wait()
        self._writing = self._writer.submit(self._save, step, tree, meta)

    def _save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        args, arrays = self._ocp.args, host_arrays(tree)
        meta = {**meta, "step": step, "checksums": {name: _checksum(array) for name, array in arrays.items()}}
        nonempty = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        items = args.Composite(arrays=args.PyTreeSave(nonempty), meta=args.JsonSave(meta))
        with _ORBAX_LOCK:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          RunError: a checkpoint could not be written, as when the disk is full.
        """
        try:
            if self._writing is not None:
                self._writing.result()
        except Exception as error:
            raise self._cannot_write(error) from error
        finally:
            self._writing = None

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest intact checkpoint; damaged ones are renamed and warned about.

        Args:
          like: a pytree of the same structure, shapes and dtypes, or a function that makes one from the meta.

        Returns:
          `(tree, meta)`, or None if there is no checkpoint at all.

        Raises:
          RunError: there are checkpoints, but none can be used.
        """
        _silence_late_reads()
        with _ORBAX_LOCK:
            steps = sorted(self._manager.all_steps(), reverse=True)
            for step in steps:
                try:
                    return self._restore(step, like)
                except Exception as error:
                    # Damaged: set aside, and go on with the one before.
                    reason = textwrap.shorten(str(error) or type(error).__name__, 200)
                    self._warn(f"checkpoint {self.folder / str(step)} is damaged and was set aside: {reason}")
                    (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
                    self._manager.reload()
        if steps:
            raise RunError(f"none of the checkpoints in {self.folder} can be read; start the run anew")
        return None

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        # 1. The JSON object: what should be there.
        args = self._ocp.args
        restored = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))
        meta = restored.meta
        like = like(meta) if callable(like) else like
        shapes = {name: _spec(leaf) for name, leaf in leaves_by_path(like).items()}
        if different := sorted(shapes.keys() ^ meta["checksums"].keys()):
            raise RunError(f"it holds other arrays than this experiment's state ({', '.join(different[:5])})")
        # 2. Arrays, as NumPy: `tree_from_arrays` puts them onto devices.
        nonempty = {name: shape for name, shape in shapes.items() if shape.size}
        as_numpy = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in nonempty}
        restored = self._manager.restore(
            step, args=args.Composite(arrays=args.PyTreeRestore(item=nonempty, restore_args=as_numpy))
        )
        # 3. Empty arrays, which Orbax did not save, and checks of all others.
        arrays = {name: np.zeros(shape.shape, shape.dtype) for name, shape in shapes.items() if not shape.size}
        arrays |= restored.arrays
        for name, array in arrays.items():
            if array.shape != shapes[name].shape or array.dtype != shapes[name].dtype:
                raise RunError(f"`{name}` is {array.dtype}{array.shape}, not {shapes[name].dtype}{shapes[name].shape}")
            _verify(name, array, meta)
        return tree_from_arrays(arrays, like), meta

    def close(self) -> None:
        """Waits for the last checkpoint and ends Orbax's threads.

        Raises:
          RunError: it could not be written, as when the disk is full.
        """
        try:
            self._writer.shutdown()
            with _ORBAX_LOCK:
                self._manager.close()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RunError:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # TensorStore passes on the system's message, not its number
        full = getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)
        reason = "the disk is full" if full else str(error).splitlines()[0][:200]
        kept = sorted(path.name for path in self.folder.glob("[0-9]*") if path.name.isdigit())
        state = f"checkpoints kept: {', '.join(kept)}" if kept else "no checkpoint could be written"
        return RunError(f"cannot write a checkpoint to {self.folder}: {reason}; {state}")


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
    import orbax.checkpoint as ocp

    if not folder.is_dir():
        return None
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    _silence_late_reads()
    args, options = ocp.args, ocp.CheckpointManagerOptions(read_only=True)
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    reasons: list[str] = []
    with _ORBAX_LOCK, ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                meta = manager.restore(step, args=args.Composite(meta=args.JsonRestore())).meta
                stored = manager.item_metadata(step).arrays
                as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored if select(name)}
                item = args.PyTreeRestore(item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy, partial_restore=True)
                arrays = manager.restore(step, args=args.Composite(arrays=item)).arrays
                for name, array in arrays.items():
                    _verify(name, array, meta)
                return arrays, meta
            except Exception as error:
                reasons.append(f"{step}: {textwrap.shorten(str(error) or type(error).__name__, 120)}")
    if reasons:
        raise RunError(f"none of the checkpoints in {folder} can be read ({'; '.join(reasons)})")
    return None


@functools.cache
def _silence_late_reads() -> None:
    """Hides tracebacks of reads that are still running when another array of a damaged checkpoint has failed."""
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _verify(name: str, array: np.ndarray, meta: dict[str, Any]) -> None:
    if _checksum(array) != meta["checksums"][name]:
        raise RunError(f"the checksum of `{name}` does not fit")


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
