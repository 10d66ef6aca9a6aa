"""Signals that stop a run: the first one asks it to save and stop, a second one ends the process."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from foldax.errors import Interrupted

SECONDS_TO_END = 3.0  # after a second signal


@contextlib.contextmanager
def stop_on_signals(unsaved: str | None = None) -> Iterator[Callable[[], bool]]:
    """Catches SIGINT, SIGTERM and SIGHUP in its block: the first asks to save and stop, a second one stops at once.

    Yields a function that returns whether a signal was received. Outside the main thread nothing is caught.

    Args:
      unsaved: what to say if a signal comes before that function is first called, when there is nothing to save: the
        block then ends at once. None: it goes on until it calls the function.

    Raises:
      Interrupted: a signal came before there was anything to save.
      KeyboardInterrupt: a second signal came. A process that is still there after three seconds is ended.

    >>> with stop_on_signals() as stop_requested:
    ...     stop_requested()
    False
    """
    received: list[int] = []
    is_asked = unsaved is None
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def stop_requested() -> bool:
        nonlocal is_asked
        is_asked = True
        return bool(received)

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        if not is_asked:
            raise Interrupted(unsaved)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # `nohup` ignores it, and so must what it starts.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with _end_at_second(numbers):
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield stop_requested
        finally:
            # Handlers of the caller, for example those of a notebook.
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _end_at_second(numbers: list[signal.Signals]) -> Iterator[None]:
    """Ends the process after a second signal also where no handler runs, as in XLA's compiler, and at once at a third.

    Neither mechanism can do without the other: handlers alone can raise in the main thread, but wait until it runs
    Python; the file descriptor gets each signal when it arrives, but its thread can only end the process.
    """
    timers: list[threading.Timer] = []
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        received = 0
        while number := os.read(read_end, 1)[0]:
            received += number in numbers
            if received == 2:
                timers.append(threading.Timer(SECONDS_TO_END, os._exit, [128 + number]))
                timers[0].daemon = True
                timers[0].start()
            elif received > 2:
                os._exit(128 + number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write_end, b"\0")
        thread.join()
        for timer in timers:
            timer.cancel()
        os.close(read_end)
        os.close(write_end)
