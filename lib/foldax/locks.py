"""Locks on files that the system releases when a process ends, also after a kill."""

import errno
from pathlib import Path
from typing import IO, Any


def lock_file(file: IO[Any], *, wait: bool) -> None:
    """Locks an open file exclusively, until it is closed.

    Args:
      file: open for writing.
      wait: wait for another process that holds the lock.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is False.
      OSError: the file system or the platform has no locks.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     lock_file(file, wait=False)
    """
    try:
        import fcntl  # not at the top: Windows has none
    except ImportError:
        raise OSError(errno.ENOLCK, "this platform has no locks of files") from None
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on a file; None if that cannot be known.

    >>> is_locked(Path("no-such-file"))
    False
    """
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return False
    except OSError:
        return None
    with file:
        try:
            lock_file(file, wait=False)
        except OSError as error:
            return True if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return False
