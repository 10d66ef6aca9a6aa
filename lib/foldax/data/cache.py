"""Where prepared datasets are kept, and how processes share them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN_VERSION = "1.0.0"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def own_names() -> tuple[str, ...]:
    """Returns the names of the datasets that need no download."""
    fashion = ("fashion_mnist",) if (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists() else ()
    return ("digits", "breast_cancer", "wine", "iris", "diabetes", *fashion)


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
    """Returns the content of a JSON file, or None if there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file at once: no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)
