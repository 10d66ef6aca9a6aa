"""Where prepared datasets are kept, and how processes share them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LAYOUT = 2  # of all that is kept; what has another one counts as not there


def root() -> Path:
    """Returns the cache folder: $FOLDAX_CACHE, else $XDG_CACHE_HOME/foldax, else ~/.cache/foldax."""
    if own := os.environ.get("FOLDAX_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "foldax"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; the system lets it go when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote, or None where there is nothing, or nothing of this layout."""
    try:
        content = json.loads(path.read_text())
        return content["value"] if content["layout"] == LAYOUT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file at once: no reader sees half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({"layout": LAYOUT, "value": value}, indent=1))
    partial.replace(path)


def remembered(name: str, compute: Callable[[], Any]) -> Any:
    """Returns what `compute` returned when it was first asked for this name: what JSON holds, kept in the cache folder.

    For what costs more than to read it again, such as another package's result to compare with. Say in the name all
    that it depends on: an `Info.fingerprint`, the package's version.
    """
    path = root() / "remembered" / f"{name}.json"
    with locked(path.with_suffix(".lock")):
        if read_json(path) is None:
            write_json(path, compute())
        return read_json(path)
