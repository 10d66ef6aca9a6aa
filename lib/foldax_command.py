"""The command `foldax`, outside of the package, whose import takes seconds in which Ctrl-C must show no traceback."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Runs `foldax.cli.main`; a Ctrl-C while it is imported ends the process with status 130."""
    before = signal.getsignal(signal.SIGINT)
    # A background job of a shell ignores it.
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        from foldax import cli

        signal.signal(signal.SIGINT, before)
        return cli.main()
    except KeyboardInterrupt:
        print("foldax: stopped", file=sys.stderr)
        return 130


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process at once: an exception would reach the compiled modules that are imported, which abort at it."""
    os.write(2, b"foldax: stopped\n")
    os._exit(128 + number)
