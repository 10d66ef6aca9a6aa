"""The log of a run, as JSON lines."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foldax.engine.history import History
from foldax.field_values import restore_floats, to_plain
from foldax.runs.folder import write_errors

METRICS_LOG = "metrics.jsonl"


class Log:
    """Appends metrics to a JSON-lines file, one line per call of `write`.

    Args:
      folder: the run folder.
      name: of the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = Log(Path(directory))
    ...     log.write(10, "train", {"loss": 0.5})
    ...     log.close()
    ...     read_log(Path(directory))
    [{'step': 10, 'split': 'train', 'loss': 0.5}]
    """

    def __init__(self, folder: Path, name: str = METRICS_LOG) -> None:
        self._path = folder / name
        with write_errors(self._path):
            self._file = self._path.open("a")

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step.

        Raises:
          RunError: the file cannot be written, for example because the disk is full.
        """
        with write_errors(self._path):
            self._file.write(json_line({"step": step, "split": split, **metrics}))
            self._file.flush()

    def rewind(self, step: int) -> History:
        """Removes the lines after `step`, which a resumed run writes again, and returns the others.

        Raises:
          RunError: the file cannot be written.
        """
        kept = History(line for line in read_json_lines(self._path) if line["step"] <= step)
        with write_errors(self._path):
            # In place: steps only grow, and a rename may be no single step on a mounted drive.
            text = "".join(map(json_line, kept)).encode()
            if not self._path.read_bytes().startswith(text):  # a line is damaged
                self._path.write_bytes(text)
            self._file.truncate(len(text))
        return kept

    def close(self) -> None:
        """Closes the file.

        Raises:
          RunError: the file cannot be written.
        """
        with write_errors(self._path):
            self._file.close()


def read_log(folder: Path, name: str = METRICS_LOG) -> History:
    """Reads the lines of a run's log; a last line that was only partly written is left out.

    >>> read_log(Path("nowhere"))
    []
    """
    return History(read_json_lines(folder / name))


def json_line(value: Any) -> str:
    """Formats a line of a JSON-lines file, in which floats that JSON lacks are texts.

    >>> json_line({"loss": float("nan")})
    '{"loss": "nan"}\\n'
    """
    return json.dumps(to_plain(value), allow_nan=False) + "\n"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file without its damaged lines; none if there is no file.

    >>> list(read_json_lines(Path("no-such-file.jsonl")))
    []
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            with contextlib.suppress(ValueError):
                if isinstance(line := json.loads(text), dict):
                    yield restore_floats(line)
                    continue
            # A kill may leave half a line at the end.
            if text.strip() and text.endswith(b"\n"):
                warnings.warn(f"{path}, line {number} is damaged and left out", stacklevel=2)
