"""The start of processes that read data or step environments for the main process."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Hides the main module, Ctrl-C and a closing terminal from the processes that are started in its block.

    A process would run a script without `if __name__ == "__main__"` again, and with it the training. It needs nothing
    from there: what it works with is pickled with its classes. Signals of a terminal go to all its processes, but are
    for the main process, which ends the others.
    """
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    resource_tracker.ensure_running()  # before, for its start unblocks the signal
    # Threads inherit the blocked signals from the thread that starts them, and processes from threads.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        main.update(hidden)
