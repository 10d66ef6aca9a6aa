"""The cache folder of prepared datasets, shared between processes."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foldax.errors import DataError
from foldax.locks import lock_file

LAYOUT = 2  # version of the cache's files; files of another version are ignored


def cache_folder() -> Path:
    """Returns `$FOLDAX_CACHE`, else `$XDG_CACHE_HOME/foldax`, else ~/.cache/foldax.

    Raises:
      DataError: the user has no home directory.
    """
    try:
        return _cache_folder()
    except RuntimeError as error:
        raise DataError("there is no home directory for the cache; set FOLDAX_CACHE to a folder") from error


def _cache_folder() -> Path:
    if own := os.environ.get("FOLDAX_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "foldax"


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an operating system error into a DataError that says which folder cannot be written."""
    try:
        yield
    except OSError as error:
        problem = f"the cache {path} cannot be written: {error.strerror or error}"
        raise DataError(f"{problem}; make room there, or set FOLDAX_CACHE to another folder") from error


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system releases it when the process ends, also after a kill.

    Raises:
      DataError: the folder cannot be written.
    """
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    # Closing the file releases the lock.
    with file:
        # Some network file systems have no locks; there, the worst is that two processes do the same work.
        with contextlib.suppress(OSError):
            lock_file(file, wait=True)
        yield


def read_json(path: Path) -> Any:
    """Reads a file of `write_json`; None if it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_text())
        return content["value"] if content["layout"] == LAYOUT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically; raises a DataError if it cannot be written."""
    # The process id separates concurrent writers; renaming is atomic, so readers see the old or the new file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with write_errors(path.parent):
            partial.write_text(json.dumps({"layout": LAYOUT, "value": value}, indent=1))
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def disk_cached(name: str, compute: Callable[[], Any]) -> Any:
    """Returns `compute()`, cached on disk under a name.

    For expensive values such as another package's baseline.

    Args:
      name: cache key; must name everything the value depends on, such as `Info.fingerprint` and package versions.
      compute: returns a value that JSON can hold; called only if the cache has none of this name.

    Raises:
      DataError: the cache has none, and cannot be written.
    """
    path = cache_folder() / "remembered" / f"{name}.json"
    if (value := read_json(path)) is not None:  # also where the cache is read-only
        return value
    with file_lock(path.with_suffix(".lock")):
        if read_json(path) is None:
            write_json(path, compute())
        return read_json(path)
