"""Checkpoints on disk: written by Orbax in the background, each whole or not there, and verified when read."""

from __future__ import annotations

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


def flat(tree: Any) -> dict[str, Any]:
    """Returns a pytree's leaves by path, as `state.params.Dense_0.kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def to_host(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves by path as NumPy arrays; random keys as their data."""

    def host(leaf: Any) -> np.ndarray:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {name: host(leaf) for name, leaf in flat(tree).items()}


def from_host(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Returns a pytree of the structure of `like` from arrays by path."""

    def leaf(array: np.ndarray, like: Any) -> Any:
        if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(like))
        return jax.numpy.asarray(array)

    likes = flat(like)
    return jax.tree.unflatten(jax.tree.structure(like), [leaf(arrays[name], likes[name]) for name in likes])


def state_digest(state: Any) -> str:
    """Returns a hash of all bits of a state."""
    digest = hashlib.sha256()
    for name, array in sorted(to_host(state).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


_ONE_AT_A_TIME = threading.RLock()  # Orbax's event loop serves one thread; members of a sweep save from several


class Checkpoints:
    """The checkpoints of one run: the last two steps saved, each with the best state so far.

    A checkpoint is a flat tree of arrays by path and a JSON object; the JSON holds a checksum of every
    array, so damage is noticed and the checkpoint before is used.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = warnings.warn) -> None:
        import orbax.checkpoint as ocp

        self.folder = folder
        self._ocp, self._warn = ocp, warn
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax raises its errors; it need not print them too
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        handlers = {  # arrays of noise do not compress: it would only cost processor time
            "arrays": ocp.PyTreeCheckpointHandler(use_compression=False),
            "meta": ocp.JsonCheckpointHandler(),
        }
        with _ONE_AT_A_TIME:
            self._manager = ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)
        # What Orbax does before it goes to the background takes tens of milliseconds: the loop need not wait for it.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="foldax-checkpoint")
        self._writing: Future[None] | None = None

    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint of arrays that nobody donates; it waits only for the one before.

        Raises:
          RunError: if the one before could not be written (a full disk).
        """
        self.wait()
        self._writing = self._writer.submit(self._save, step, tree, meta)

    def _save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        args, arrays = self._ocp.args, to_host(tree)
        meta = {**meta, "step": step, "checksums": {name: _checksum(array) for name, array in arrays.items()}}
        some = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        items = args.Composite(arrays=args.PyTreeSave(some), meta=args.JsonSave(meta))
        with _ONE_AT_A_TIME:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
          RunError: if it cannot be (a full disk).
        """
        try:
            if self._writing is not None:
                self._writing.result()
        except Exception as error:
            raise self._cannot_write(error) from error
        finally:
            self._writing = None

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns (tree, meta) of the newest checkpoint that is whole, or None if there is none at all.

        Args:
          like: a tree of the same structure, or a function that makes one from the checkpoint's meta.

        Raises:
          RunError: if checkpoints are there but none can be used.
        """
        with _ONE_AT_A_TIME:
            return self._newest(like)

    def _newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        _silence_late_reads()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, like)
            except Exception as error:
                reason = textwrap.shorten(str(error) or type(error).__name__, 200)
                self._warn(f"checkpoint {self.folder / str(step)} is damaged and was left aside: {reason}")
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
                self._manager.reload()
        if steps:
            raise RunError(f"none of the checkpoints in {self.folder} can be read; start the run anew")
        return None

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        args = self._ocp.args
        restored = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))
        meta = restored.meta
        like = like(meta) if callable(like) else like
        shapes = {name: _abstract(leaf) for name, leaf in flat(like).items()}
        if set(shapes) != set(meta["checksums"]):
            odd = sorted(set(shapes) ^ set(meta["checksums"]))
            raise RunError(f"it holds other arrays than this experiment's state ({', '.join(odd[:5])})")
        some = {name: shape for name, shape in shapes.items() if shape.size}
        as_numpy = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in some}
        restored = self._manager.restore(
            step, args=args.Composite(arrays=args.PyTreeRestore(item=some, restore_args=as_numpy))
        )
        arrays = {name: np.zeros(shape.shape, shape.dtype) for name, shape in shapes.items() if not shape.size}
        arrays |= restored.arrays
        for name, array in arrays.items():
            if array.shape != shapes[name].shape or array.dtype != shapes[name].dtype:
                raise RunError(f"`{name}` is {array.dtype}{array.shape}, not {shapes[name].dtype}{shapes[name].shape}")
            if _checksum(array) != meta["checksums"][name]:
                raise RunError(f"the checksum of `{name}` does not fit")
        return from_host(arrays, like), meta

    def close(self) -> None:
        """Ends Orbax's threads.

        Raises:
          RunError: if what was still being written cannot be (a full disk).
        """
        try:
            self._writer.shutdown()
            with _ONE_AT_A_TIME:
                self._manager.close()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RunError:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # TensorStore has the system's words, not its numbers
        full = getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)
        reason = "the disk is full" if full else str(error).splitlines()[0][:200]
        kept = sorted(path.name for path in self.folder.glob("[0-9]*") if path.name.isdigit())
        state = f"checkpoints kept: {', '.join(kept)}" if kept else "no checkpoint could be written"
        return RunError(f"cannot write a checkpoint to {self.folder}: {reason}; {state}")


def read(folder: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads some arrays of somebody's newest whole checkpoint, and changes nothing there; None if there is none at all.

    Args:
      folder: the checkpoints of a run.
      wanted: of a path, as `0.state.params.Dense_0.kernel`: "0" is the fold, "1" the best state so far.

    Returns:
      `(arrays by path, meta)`; arrays without elements are left out.

    Raises:
      RunError: checkpoints are there but none can be read.
    """
    import orbax.checkpoint as ocp

    if not folder.is_dir():
        return None
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    _silence_late_reads()
    args, options = ocp.args, ocp.CheckpointManagerOptions(read_only=True)
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    reasons: list[str] = []
    with _ONE_AT_A_TIME, ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                meta = manager.restore(step, args=args.Composite(meta=args.JsonRestore())).meta
                sizes = manager.item_metadata(step).arrays
                some = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in sizes if wanted(name)}
                item = args.PyTreeRestore(item=dict.fromkeys(some, 0), restore_args=some, partial_restore=True)
                arrays = manager.restore(step, args=args.Composite(arrays=item)).arrays
                for name, array in arrays.items():
                    if _checksum(array) != meta["checksums"][name]:
                        raise RunError(f"the checksum of `{name}` does not fit")
                return arrays, meta
            except Exception as error:
                reasons.append(f"{step}: {textwrap.shorten(str(error) or type(error).__name__, 120)}")
    if reasons:
        raise RunError(f"none of the checkpoints in {folder} can be read ({'; '.join(reasons)})")
    return None


@functools.cache
def _silence_late_reads() -> None:
    """Once a read of a damaged checkpoint has failed, those still under way have nobody to report to: no traceback."""
    report = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
