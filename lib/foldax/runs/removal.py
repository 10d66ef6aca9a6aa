"""Removes the folders of runs and sweeps, and nothing else; their sizes."""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from foldax.engine.checkpoint_folder import Folder, remove_folder
from foldax.errors import RunError
from foldax.runs import folder

RUN_FILES, SWEEP_FILES = {"manifest.json", "config.json", "lock"}, {"sweep.json", "lock"}


def remove_folders(paths: Sequence[Path], with_sweeps: bool = True) -> None:
    """Removes the folders of runs and sweeps with all their content, once each of them may be removed.

    Args:
      paths: the folders.
      with_sweeps: False refuses folders of sweeps.

    Raises:
      RunError: a folder is none of a run or sweep, holds others, or belongs to a process that trains; none is removed.
      RunError: a folder cannot be removed.
    """
    for path in paths:
        check_removable(path, with_sweeps)
    with contextlib.ExitStack() as locks:
        for one in [one for path in paths for one in (path, *_process_folders(path))]:
            locks.enter_context(folder.lock(one, "it cannot be removed until that ends"))
        for path in paths:
            # First: the folder is what knows of them.
            if (place := checkpoints_elsewhere(path)) is not None:
                remove_folder(place)
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise RunError(f"{path} cannot be removed: {error.strerror or error}") from error


def check_removable(path: Path, with_sweeps: bool = True) -> None:
    """Checks that a folder is one of a run or sweep, and holds no other but those of a sweep's processes.

    Args:
      path: the folder.
      with_sweeps: False refuses folders of sweeps.

    Raises:
      RunError: it is not, or it is a link.

    >>> check_removable(Path("nowhere"))
    Traceback (most recent call last):
    foldax.errors.RunError: there is no folder 'nowhere'
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link, which is not followed; name the folder itself, {path.resolve()}")
    if not path.is_dir():
        raise RunError(f"there is no folder {str(path)!r}")
    kinds = [RUN_FILES, SWEEP_FILES] if with_sweeps else [RUN_FILES]
    if not any(files <= set(os.listdir(path)) for files in kinds):
        rule = " or ".join(", ".join(sorted(files)) for files in kinds)
        raise RunError(f"{path} is not the folder of a run{' or sweep' * with_sweeps}, which has {rule}; not removed")
    own = {path, *_process_folders(path)}
    for parent, _, files in os.walk(path):
        if Path(parent) not in own and any(kind <= set(files) for kind in (RUN_FILES, SWEEP_FILES)):
            raise RunError(f"{path} holds another run, {parent}; not removed")


def checkpoints_elsewhere(path: Path) -> Folder | None:
    """Where a run or sweep has its checkpoints, if that is not in its folder.

    Raises:
      RunError: they are in a bucket, and the package that reads buckets is not installed.

    >>> checkpoints_elsewhere(Path("nowhere"))
    """
    place = folder.checkpoint_folder(path)
    is_own = re.search(r"-[0-9a-f]{8}$", place.name)  # as `folder.record_checkpoints` names them
    return None if place.parent == path or not is_own else place


def _process_folders(path: Path) -> list[Path]:
    """Folders in which the other processes of a sweep on several hosts write the same tables."""
    is_sweep = set(os.listdir(path)) >= SWEEP_FILES
    return sorted(one for one in path.glob("process-*") if is_sweep and set(os.listdir(one)) >= SWEEP_FILES)


def remove_earlier_run(path: Path) -> None:
    """Removes the run in a folder, which another one shall take; nothing if the folder is empty or missing.

    Raises:
      RunError: it is a folder, but none of a run, or a process trains in it.

    >>> remove_earlier_run(Path("nowhere"))
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        remove_folders([path], with_sweeps=False)


def folder_size(path: Path) -> int:
    """Sums the bytes of all files in a folder.

    >>> folder_size(Path("nowhere"))
    0
    """
    size = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a checkpoint that is replaced now
                size += (Path(parent) / name).lstat().st_size
    return size
