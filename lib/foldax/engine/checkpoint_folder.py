"""The folder of checkpoints, also one without locks or renames, such as a mounted drive, or with a difficult path."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from foldax.errors import RunError

PATTERN_CHARACTERS, PATTERN_TEXT = frozenset("[]*?\\"), "brackets, asterisks, question marks or backslashes"


def lacks_locks(folder: Path) -> bool:
    """Whether a folder lacks locks or renames of folders, which TensorStore and Orbax write with.

    >>> lacks_locks(Path(tempfile.gettempdir()))
    False
    """
    try:
        import fcntl
    except ImportError:  # Windows locks otherwise
        return False
    probe = folder / f".probe-{os.getpid()}"
    renamed = folder / f".probed-{os.getpid()}"
    try:
        probe.mkdir()
        with (probe / "file").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        probe.rename(renamed)
        return not (renamed / "file").exists()
    except OSError:
        return True
    finally:
        for path in (probe, renamed):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def local_copy(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder with copies of the checkpoints in a folder; what cannot be copied is left out."""
    with tempfile.TemporaryDirectory(prefix="foldax-") as directory:
        local = Path(directory)
        for path in _checkpoints(folder):
            with contextlib.suppress(OSError):  # it appears late, or is damaged: the one before is used
                shutil.copytree(path, local / path.name, dirs_exist_ok=True)
        yield local


def publish(local: Path, folder: Path) -> None:
    """Copies the checkpoints that a folder lacks from a local one, and then removes those that are not there any more.

    A kill in between leaves part of a checkpoint, whose checksums do not fit, and the complete ones before it.
    """
    kept = {path.name for path in _checkpoints(local)}
    for name in sorted(kept - {path.name for path in _checkpoints(folder)}, key=int):
        shutil.copytree(local / name, folder / name, dirs_exist_ok=True)  # it may appear late
    for path in _checkpoints(folder):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint so that it counts no more, or removes it where that fails."""
    names = (path.with_name(f"damaged-{path.name}{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    try:
        if path.exists():
            path.rename(next(name for name in names if not name.exists()))
    except OSError:
        shutil.rmtree(path)


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path of a folder without characters that TensorStore takes for patterns: a link where it has some."""
    folder = folder.resolve()
    if not set(str(folder)) & PATTERN_CHARACTERS:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="foldax-") as directory:
        link = Path(directory) / "checkpoints"
        if set(directory) & PATTERN_CHARACTERS:
            remedy = "rename it, or set TMPDIR to a folder without them"
            problem = f"checkpoints in {folder} cannot be read because of the {PATTERN_TEXT} in its path"
            raise RunError(f"{problem}; {remedy}")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isdigit()]
