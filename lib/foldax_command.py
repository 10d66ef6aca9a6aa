"""The command `foldax`, outside of the package, whose import takes seconds in which Ctrl-C must show no traceback."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Runs `foldax.cli.main`; a Ctrl-C before or after it ends the process with status 130."""
    before = signal.getsignal(signal.SIGINT)
    # A background job of a shell ignores it.
    is_noticed = before == signal.default_int_handler
    if is_noticed:
        signal.signal(signal.SIGINT, _stop_import)
    try:
        from foldax import cli

        signal.signal(signal.SIGINT, before)
        return cli.main()
    except KeyboardInterrupt:
        print("foldax: stopped", file=sys.stderr)
        return 130
    finally:
        # Threads and exit functions take a while to end: Python would print a traceback.
        if is_noticed:
            signal.signal(signal.SIGINT, _end)


def _stop_import(number: int, frame: FrameType | None) -> None:
    """Ends the process at once: an exception would reach the compiled modules that are imported, which abort at it."""
    os.write(2, b"foldax: stopped\n")
    _end(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
