"""The folder of checkpoints: of a bucket, or a local one, also without locks or renames or with a difficult path."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from foldax.errors import RunError, display_path, first_line
from foldax.extras import import_extra

if TYPE_CHECKING:
    from etils import epath

Folder: TypeAlias = Union[Path, "epath.Path"]  # the second one of a bucket, with the same methods

# What the libraries that read buckets say of a network, a server or credentials, and what that means.
BUCKET_REFUSALS = (
    (
        "UNAUTHENTICATED|DefaultCredentialsError|RefreshError|Anonymous caller|Invalid Credentials",
        "these credentials are not accepted: `gcloud auth application-default login`, or set "
        "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    ),
    ("PERMISSION_DENIED|Forbidden|403", "these credentials do not allow it"),
    (
        "UNAVAILABLE|DEADLINE_EXCEEDED|CURL|Connect|Disconnect|Timeout|ClientOSError|Temporary failure",
        "the network or the server does not answer",
    ),
    ("RESOURCE_EXHAUSTED|ABORTED|HttpError", "the server refuses"),
    ("bucket does not exist", "there is no such bucket"),
)

PATTERN_CHARACTERS, PATTERN_TEXT = frozenset("[]*?\\"), "brackets, asterisks, question marks or backslashes"


def checkpoint_location(text: str) -> Folder:
    """Converts a path, or an address such as "gs://bucket/folder", to a folder.

    Raises:
      RunError: it is in a bucket, and the package that reads buckets is not installed.

    >>> checkpoint_location("/disk/checkpoints")
    PosixPath('/disk/checkpoints')
    """
    if not is_in_bucket(text):
        return Path(text)
    import_extra("gcsfs", "gcs", RunError, f", which {text} needs")
    from etils import epath

    for name in ("gcsfs", "google.auth"):  # they print the errors that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return epath.Path(text)


def is_in_bucket(folder: Folder | str) -> bool:
    """Whether a folder is one of a bucket.

    >>> is_in_bucket(Path("runs")), is_in_bucket("gs://models/runs")
    (False, True)
    """
    return str(folder).startswith("gs://")


@contextlib.contextmanager
def folder_errors(folder: Folder, action: str) -> Iterator[None]:
    """Raises a `RunError` for whatever the libraries of files, HTTP and credentials raise in the block.

    Args:
      folder: named in its message.
      action: what was tried, such as "write to".

    >>> with folder_errors(Path("nowhere"), "read"):
    ...     os.listdir("nowhere")
    Traceback (most recent call last):
    foldax.errors.RunError: checkpoints: cannot read nowhere: No such file or directory
    """
    try:
        yield
    except Exception as error:
        problem = f"checkpoints: cannot {action} {display_path(folder)}"
        raise RunError(f"{problem}: {refusal_reason(folder, error)}") from error


def refusal_reason(folder: Folder, error: Exception) -> str:
    """Says in words for people why a folder cannot be read or written, and what to do.

    >>> refusal_reason(Path("runs"), OSError(28, "No space left on device"))
    'No space left on device'
    """
    reason = getattr(error, "strerror", None) or textwrap.shorten(first_line(error), 200)
    if not is_in_bucket(folder):
        return reason
    text = f"{type(error).__name__}: {error}"
    for pattern, meaning in BUCKET_REFUSALS:
        if re.search(pattern, text):
            return f"{meaning} ({reason})"
    bucket = str(folder).removeprefix("gs://").split("/")[0]
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket!r}, or these credentials may not see it"
    return reason


def is_refused_by_bucket(folder: Folder, error: Exception) -> bool:
    """Whether an error is that of a network, a server or credentials, rather than of a file.

    >>> is_refused_by_bucket(Path("runs"), ConnectionError())
    False
    """
    text = f"{type(error).__name__}: {error}"
    return is_in_bucket(folder) and any(re.search(pattern, text) for pattern, _ in BUCKET_REFUSALS)


def check_writable(folder: Folder) -> None:
    """Checks that checkpoints can be written to a folder, by a file that is removed again; makes a local one.

    Raises:
      RunError: they cannot, as in a bucket that does not exist, or cannot be reached.

    >>> check_writable(Path(tempfile.gettempdir()))
    """
    probe = folder / f".probe-{os.getpid()}-{secrets.token_hex(4)}"
    with folder_errors(folder, "write to"):
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"foldax")
        probe.unlink()


def remove_folder(folder: Folder) -> None:
    """Removes a folder with all its content; nothing if it does not exist.

    Raises:
      RunError: it cannot be removed.

    >>> remove_folder(Path("nowhere"))
    """
    with folder_errors(folder, "remove"):
        if isinstance(folder, Path):
            if folder.exists():
                shutil.rmtree(folder)
        else:
            with contextlib.suppress(FileNotFoundError):
                folder.rmtree()


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


def set_aside(path: Folder) -> None:
    """Renames a damaged checkpoint so that it counts no more, or removes it where that fails."""
    names = (path.with_name(f"damaged-{path.name}{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    try:
        if path.exists():
            path.rename(next(name for name in names if not name.exists()))
    except OSError:
        remove_folder(path)


@contextlib.contextmanager
def plain_path(folder: Folder) -> Iterator[Folder]:
    """Yields a path of a folder without characters that TensorStore takes for patterns: a link where it has some."""
    folder = folder if is_in_bucket(folder) else folder.resolve()
    if is_in_bucket(folder) or not set(str(folder)) & PATTERN_CHARACTERS:
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
