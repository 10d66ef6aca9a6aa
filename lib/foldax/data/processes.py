"""The start of processes that read data or step environments for the main process."""

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

START_SECONDS = 10.0  # at most


@contextlib.contextmanager
def starting_processes(count: int = 0) -> Iterator[None]:
    """Hides the main module, Ctrl-C and a closing terminal from the processes that are started in its block.

    A process would run a script without `if __name__ == "__main__"` again, and with it the training. It needs nothing
    from there: what it works with is pickled with its classes. Signals of a terminal go to all its processes, but are
    for the main process, which ends the others.

    Args:
      count: processes that threads start, for which the end of the block waits.
    """
    before = set(multiprocessing.active_children())
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    resource_tracker.ensure_running()  # before, for its start unblocks the signal
    # Threads inherit the blocked signals from the thread that starts them, and processes from threads.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    try:
        yield
        _await_processes(before, count)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        main.update(hidden)


def _await_processes(before: set[BaseProcess], count: int) -> None:
    """Waits until so many processes have started, though some may have ended."""
    started: set[BaseProcess] = set()
    end = time.monotonic() + START_SECONDS
    while len(started) < count and time.monotonic() < end:
        time.sleep(0.01)
        started |= set(multiprocessing.active_children()) - before
