"""Checkpoints on disk: written by Orbax in the background, atomically, and verified by checksums when they are read."""

import contextlib
import re
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax import processes
from foldax.engine import checkpoint_files as files
from foldax.engine.checkpoint_folder import (
    Folder,
    check_writable,
    folder_errors,
    lacks_locks,
    local_copy,
    plain_path,
    publish,
    refusal_reason,
    set_aside,
)
from foldax.engine.checksums import checksums, device_checksums, host_pieces, is_in_host_memory
from foldax.engine.state_leaves import array_spec, leaves_by_path, saved_array, tree_from_arrays
from foldax.errors import FoldaxError, NonFiniteError, RunError, display_path


class Checkpoints:
    """The checkpoints of one run: the newest steps that were saved, and milestones.

    A checkpoint holds arrays by path and a JSON object with a checksum of every array; where one does not fit, the
    checkpoint before is used.

    Args:
      folder: where they are; created if it is missing and in no bucket, which has none.
      warn: receives a sentence about every damaged checkpoint.
      max_to_keep: how many of the newest ones are kept; older ones are removed once a new one is there.
      keep_period: milestones, the multiples of this step, are kept beside them; None: none.
    """

    def __init__(
        self,
        folder: Folder,
        warn: Callable[[str], None] = warnings.warn,
        max_to_keep: int = 2,
        keep_period: int | None = None,
    ) -> None:
        self.folder, self._warn = folder, warn
        # Several processes keep two at least: the last one is read back only when the next one is saved.
        self._max_to_keep = max(2, max_to_keep) if self._has_others else max_to_keep
        self._keep_period = keep_period
        self._resources = contextlib.ExitStack()
        self._local: Path | None = None
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            # Where there are no locks, checkpoints are written to a local folder, and copied.
            is_copied = processes.agree("locks", lambda: lacks_locks(folder))
            if is_copied and self._has_others:
                problem = f"several processes cannot write checkpoints to {display_path(folder)}, which has no locks"
                raise RunError(f"{problem}; write them to a file system of all hosts that has them (--checkpoints)")
            self._local = self._resources.enter_context(local_copy(folder)) if is_copied else None
        else:
            check_writable(folder)  # what Orbax and TensorStore cannot reach, they try again for many minutes
        path = self._resources.enter_context(plain_path(self._local or folder))
        with files.ORBAX_LOCK:
            self._manager = self._reader = files.open_manager(
                path, max_to_keep=max(2, max_to_keep), keep_period=keep_period, enable_async_checkpointing=True
            )
            if self._has_others:
                self._reader = files.open_manager(path, read_only=True)
        # Orbax works for tens of milliseconds before it goes to the background; in a thread of ours it delays no step.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="foldax-checkpoint")
        self._writing: Future[None] | None = None
        self._is_read_back = self._is_abandoned = False
        self._unread: tuple[int, dict[str, jax.ShapeDtypeStruct], dict[str, Any]] | None = None

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    @property
    def _has_others(self) -> bool:
        """Whether other processes write and read the same checkpoints."""
        return processes.number_of_processes() > 1

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
        # Programs of several processes start in one order in all of them, and so only in the main thread; that of a
        # random key, whose data are saved, is one.
        arrays = {name: saved_array(leaf) for name, leaf in leaves_by_path(tree).items()}
        checks = dispatch_checks(arrays, finite) if self._has_others else None
        self._writing = self._writer.submit(self._save, step, arrays, meta, finite, checks)

    def _save(
        self, step: int, arrays: dict[str, Any], meta: dict[str, Any], finite: str, checks: "Checks | None"
    ) -> None:
        from orbax.checkpoint import args

        if step in self._manager.all_steps():
            return
        for name, array in arrays.items():
            is_checked = finite and re.search(finite, name)
            if is_checked and (_has_nan(array) if checks is None else bool(checks.has_nan.get(name, False))):
                problem = f"`{name}` holds NaN at step {step}, although all training metrics were finite"
                raise NonFiniteError(step, f"{problem}; {self._kept_steps()}")
        shapes = {name: files.shape_text(array) for name, array in arrays.items()}
        sums = checksums(arrays) if checks is None else {name: int(value) for name, value in checks.checksums.items()}
        meta = {**meta, "step": step, "shapes": shapes, "checksum_function": files.CHECKSUM, "checksums": sums}
        nonempty = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        # Each process writes its parts of the arrays, the first one also the rest.
        saved_meta = args.JsonSave(files.with_checksum(meta))
        items = args.Composite(arrays=args.PyTreeSave(nonempty), meta=saved_meta)
        with files.ORBAX_LOCK:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
            # The first one of this process is read back: a run must not end with checkpoints that nobody can read.
            # Each one is where no other is kept: only what is known to be intact may replace it.
            if not self._is_read_back or self._max_to_keep == 1:
                self._unread = step, {name: _read_back_spec(array) for name, array in arrays.items()}, meta
            if not self._has_others:
                self._read_back()
            for old in self._manager.all_steps() if self._max_to_keep == 1 else []:
                if old != step and (self._keep_period is None or old % self._keep_period):
                    self._manager.delete(old)
        if self._local is not None and isinstance(self.folder, Path):
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
                self._read_back()
        except FoldaxError:
            raise
        except Exception as error:
            raise self._cannot_write(error) from error
        finally:
            self._writing = None

    def _read_back(self) -> None:
        """Reads the first checkpoint of this process back, if it is written and was not read."""
        if self._unread is not None:
            if self._has_others:
                self._reader.reload()
            self._read(*self._unread)
            self._unread, self._is_read_back = None, True

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
        with files.ORBAX_LOCK:
            steps = processes.agree("steps", lambda: list(self._manager.all_steps()))
            restored, damaged = files.newest_intact(steps, self.folder, lambda step: self._restore(step, like))
            # Set aside only now: they are all there is, until an older one is known to be intact.
            for step, reason in damaged.items():
                self._warn(f"checkpoint {display_path(self.folder / str(step))} is damaged and was set aside: {reason}")
                for path in (self.folder, self._local or self.folder) if processes.is_first() else ():
                    set_aside(path / str(step))
                processes.agree("set aside", lambda: None)
                self._manager.reload()
        return restored

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        path = self.folder / str(step)
        meta = processes.together("meta", lambda: files.read_meta(self._reader, path))
        like = like(meta) if callable(like) else like
        specs = {name: array_spec(leaf) for name, leaf in leaves_by_path(like).items()}
        if different := sorted(specs.keys() ^ meta["checksums"].keys()):
            problem = f"holds other arrays than this experiment's state ({', '.join(different[:5])})"
            remedy = "undo the change of the experiment, or start a new run (`init_from` takes what fits)"
            raise RunError(f"checkpoint {display_path(path)} {problem}; {remedy}")
        return tree_from_arrays(self._read(step, specs, meta), like), meta

    def _read(self, step: int, specs: dict[str, jax.ShapeDtypeStruct], meta: dict[str, Any]) -> dict[str, Any]:
        """Reads the arrays of a checkpoint onto the devices of their specs, else as NumPy."""
        nonempty = {name: spec for name, spec in specs.items() if spec.size}
        path = self.folder / str(step)
        stored = processes.together("read", lambda: files.read_parts(self._reader, path, nonempty, meta))
        processes.together("verify", lambda: files.verify(stored, meta))
        stored = {name: files.place(array, specs[name]) for name, array in stored.items()}
        # Empty arrays, which Orbax did not save, are made anew.
        empty = {name: spec for name, spec in specs.items() if not spec.size}
        return {name: files.place(np.zeros(spec.shape, spec.dtype), spec) for name, spec in empty.items()} | stored

    def abandon(self) -> None:
        """Lets `close` do nothing: of several processes one has failed, and the others would wait for it."""
        self._is_abandoned = self._has_others

    def close(self) -> None:
        """Waits for the last checkpoint and ends Orbax's threads.

        Raises:
          RunError: it could not be written, as when the disk is full.
        """
        if self._is_abandoned:
            return
        try:
            self._writer.shutdown()
            with files.ORBAX_LOCK, self._resources:
                self._manager.close()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> RunError:
        is_full = files.is_system_error(error, files.DISK_FULL)
        reason = "the disk is full" if is_full else refusal_reason(self.folder, error)
        return RunError(f"cannot write a checkpoint to {display_path(self.folder)}: {reason}; {self._kept_steps()}")

    def _kept_steps(self) -> str:
        try:
            kept = checkpoint_steps(self.folder)
        except RunError:  # the reason of the error that this ends
            return "what was saved there before is kept, and `foldax resume` goes on from it"
        return f"checkpoints kept: {', '.join(map(str, kept))}" if kept else "no checkpoint could be written"


def checkpoint_steps(folder: Folder) -> list[int]:
    """Lists the steps of the checkpoints in a folder; none if it does not exist.

    Raises:
      RunError: it is in a bucket that cannot be read.
    """
    if isinstance(folder, Path):
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    with folder_errors(folder, "read"):
        # A bucket renames nothing at once, so Orbax writes a file when a checkpoint is complete.
        complete = [path.parent.name for path in folder.glob("*/commit_success.txt")]
    return sorted(int(name) for name in complete if name.isdigit())


def read_arrays(
    folder: Folder, select: Callable[[str], bool], step: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads some arrays of the newest intact checkpoint of any run, and changes nothing in its folder.

    Args:
      folder: the checkpoints of the run.
      select: whether to read the array of a path, such as `0.state.params.Dense_0.kernel`; "0" is the fold, "1" the
        best state.
      step: the step of the checkpoint to read instead of the newest one.

    Returns:
      `(arrays by path, meta)`, without empty arrays; None if there is no checkpoint at all.

    Raises:
      RunError: there are checkpoints, but none can be read, or none of this step.
    """
    if not (steps := checkpoint_steps(folder)):
        return None
    if step is not None and step not in steps:
        raise RunError(
            f"{display_path(folder)} has no checkpoint of step {step}; kept are {', '.join(map(str, steps))}"
        )
    with files.ORBAX_LOCK, plain_path(folder) as path, files.open_manager(path, read_only=True) as manager:

        def read(step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            meta = files.read_meta(manager, folder / str(step))
            with files.reading(folder / str(step)):
                names = list(filter(select, manager.item_metadata(step).arrays))
            return files.read_checked(manager, folder / str(step), dict.fromkeys(names), meta), meta

        if step is None:
            return files.newest_intact(manager.all_steps(), folder, read)[0]
        try:
            return read(step)
        except files.DamagedError as error:
            raise RunError(f"checkpoint {display_path(folder / str(step))} is damaged: {error}") from error


class Checks(NamedTuple):
    """What is checked of a state before it is saved, on the devices that hold it.

    Attributes:
      checksums: uint32 [] by path.
      has_nan: bool [] by path, of numbers that may be NaN.
    """

    checksums: dict[str, jax.Array]
    has_nan: dict[str, jax.Array]


def dispatch_checks(arrays: dict[str, Any], finite: str) -> Checks:
    """Dispatches the checks of a state that is divided over processes, without waiting for them.

    Args:
      arrays: of the state by path.
      finite: regular expression of the paths of arrays that must not hold NaN; "" checks none.
    """
    finite_arrays = {
        name: array
        for name, array in arrays.items()
        if finite and re.search(finite, name) and jnp.issubdtype(array.dtype, np.floating)
    }
    return Checks(device_checksums(arrays), _find_nan(finite_arrays))


@jax.jit
def _find_nan(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isnan(array).any() for name, array in arrays.items()}


def _read_back_spec(array: Any) -> jax.ShapeDtypeStruct:
    spec = array_spec(array)
    # To the host, where the device may have no room for a second state; of many processes, each reads its parts.
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype) if is_here else spec


def _has_nan(array: Any) -> bool:
    if not jnp.issubdtype(array.dtype, np.floating):
        return False
    if is_in_host_memory(array):
        return any(np.isnan(part).any() for _, part in host_pieces(array))
    return bool(jnp.isnan(array).any())
