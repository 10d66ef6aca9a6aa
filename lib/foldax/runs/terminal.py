"""Where runs print: texts and tables on stdout, warnings and progress on stderr.

No run ends because of what it prints: a stream that is closed, full or gone is ignored, letters that its encoding lacks
are escaped, and markup is never interpreted.
"""

import contextlib
import os
import sys
from typing import Any, TextIO

from foldax import processes
from foldax.errors import RunError

_lost: dict[str, str] = {}  # by name of a standard stream, why texts on it were lost


class Output:
    """A text file around a stream, or around None, whose writes never fail.

    >>> Output(sys.stdout).write("rate [/s]")
    rate [/s]
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> None:
        """Writes a text, and flushes it: what a full disk refuses must not surface when the process ends."""
        try:
            if self._stream is not None:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                self._stream.flush()
        except BrokenPipeError:
            pass  # the reader, such as `head`, has enough
        except (OSError, ValueError) as error:
            _lost[getattr(self._stream, "name", "")] = getattr(error, "strerror", None) or str(error)

    def flush(self) -> None:
        """Does nothing: `write` flushes."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False


def console(stream: TextIO | None) -> Any:
    """Makes a console of `rich` that writes to a stream, as wide as the terminal, and interprets no markup."""
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    width = 80 if columns.isdigit() and not int(columns) else None  # a window of 0 columns shows nothing
    return Console(file=Output(stream), width=width, markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def echo(*texts: object, sep: str = " ") -> None:
    """Prints texts on stdout, as `print` does.

    >>> echo("rate [/s]", 3)
    rate [/s] 3
    """
    Output(sys.stdout).write(sep.join(map(str, texts)) + "\n")


def stdout_width() -> int:
    """Returns the columns of the terminal that stdout writes to.

    >>> stdout_width() > 0
    True
    """
    return console(sys.stdout).width


def print_table(table: Any) -> None:
    """Prints a table of `rich` on stdout."""
    console(sys.stdout).print(table)


def warn(message: str) -> None:
    """Prints a warning on stderr; of several processes that train one run, the first one does."""
    if processes.is_first():
        Output(sys.stderr).write(f"foldax: {message}\n")


def report_error(message: str) -> None:
    """Prints an error on stderr, with the number of the process where there are several."""
    several = processes.number_of_processes() > 1
    number = f" (process {processes.this_process()})" if several else ""
    Output(sys.stderr).write(f"foldax{number}: {message}\n")


def ask(message: str) -> None:
    """Warns, and asks whether to go on where there is somebody to answer.

    Raises:
      RunError: the answer is not yes.
    """
    warn(message)
    if _is_interactive():
        _ask_to_go_on()


def confirm(message: str, option: str) -> None:
    """Warns, and asks whether to go on.

    Args:
      message: the warning.
      option: of the command, which answers beforehand.

    Raises:
      RunError: the answer is not yes, or there is nobody to answer.
    """
    warn(message)
    if not _is_interactive():
        raise RunError(f"nothing is done, as there is no terminal to ask in; {option} goes on without asking")
    _ask_to_go_on()


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and Output(sys.stderr).isatty()


def _ask_to_go_on() -> None:
    Output(sys.stderr).write("go on? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RunError("stopped, as the answer was not yes")


def finish_output() -> None:
    """Ends the output of a process: what could not be written would be an error of Python's own when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def lost_output() -> str | None:
    """Returns why texts on stdout were lost since the last call; None if none was, or if their reader had enough."""
    return _lost.pop("<stdout>", None)


def reserve_streams() -> None:
    """Opens standard streams that are closed, so that no file of a run gets their numbers, to which libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
