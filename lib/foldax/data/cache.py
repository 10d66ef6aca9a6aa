"""The cache folder of prepared datasets, shared between processes."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LAYOUT = 2  # version of the cache's files; files of another version are ignored


def cache_folder() -> Path:
    """Returns `$FOLDAX_CACHE`, else `$XDG_CACHE_HOME/foldax`, else ~/.cache/foldax."""
    if own := os.environ.get("FOLDAX_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "foldax"


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system releases it when the process ends, also after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        # Closing the file releases the lock.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_json(path: Path) -> Any:
    """Reads a file of `write_json`; None if it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_text())
        return content["value"] if content["layout"] == LAYOUT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    # The process id separates concurrent writers; renaming is atomic, so readers see the old or the new file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({"layout": LAYOUT, "value": value}, indent=1))
    partial.replace(path)


def disk_cached(name: str, compute: Callable[[], Any]) -> Any:
    """Returns `compute()`, cached on disk under a name.

    For expensive values such as another package's baseline.

    Args:
      name: cache key; must name everything the value depends on, such as `Info.fingerprint` and package versions.
      compute: returns a value that JSON can hold; called only if the cache has none of this name.
    """
    path = cache_folder() / "remembered" / f"{name}.json"
    with file_lock(path.with_suffix(".lock")):
        if read_json(path) is None:
            write_json(path, compute())
        return read_json(path)
