"""The log of a run: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foldax.engine.history import History
from foldax.field_values import restore_floats, to_plain
from foldax.runs.folder import write_errors

FLUSH_SECONDS = 10.0  # longest time between two writes of TensorBoard's events


class Log:
    """Appends metrics to `metrics.jsonl`, one line per call of `write`, and to TensorBoard events.

    Args:
      folder: the run folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     log = Log(Path(directory))
    ...     log.write(10, "train", {"loss": 0.5})
    ...     log.close()
    ...     read_log(Path(directory))
    [{'step': 10, 'split': 'train', 'loss': 0.5}]
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._path = folder / "metrics.jsonl"
        with write_errors(self._path):
            self._file = self._path.open("a")
            # Not SummaryWriter: its thread could only print a traceback when the disk is full.
            self._events = EventsWriter(str(folder / "events"))
        self._flushed_at = time.monotonic()

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step.

        Raises:
          RunError: the files cannot be written, for example because the disk is full.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import Summary

        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        with write_errors(self._path):
            self._file.write(json_line({"step": step, "split": split, **metrics}))
            self._file.flush()
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._events.flush()
                self._flushed_at = time.monotonic()

    def rewind(self, step: int) -> History:
        """Removes the lines after `step`, which a resumed run writes again, and returns the others.

        Raises:
          RunError: the files cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        kept = History(line for line in read_json_lines(self._path) if line["step"] <= step)
        with write_errors(self._path):
            # In place: steps only grow, and a rename may be no single step on a mounted drive.
            text = "".join(map(json_line, kept)).encode()
            if not self._path.read_bytes().startswith(text):  # a line is damaged
                self._path.write_bytes(text)
            self._file.truncate(len(text))
            # Tells TensorBoard to drop the events it has from this step on.
            self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        return kept

    def close(self) -> None:
        """Writes buffered events and closes the files.

        Raises:
          RunError: the files cannot be written.
        """
        with write_errors(self._path), contextlib.ExitStack() as stack:
            # Closed even if the flush fails: EventsWriter.close would then leave its file open.
            stack.callback(self._file.close)
            stack.callback(self._events._py_recordio_writer.close)
            self._events.flush()


def read_log(folder: Path) -> History:
    """Reads the lines of a run's log; a last line that was only partly written is left out.

    >>> read_log(Path("nowhere"))
    []
    """
    return History(read_json_lines(folder / "metrics.jsonl"))


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
