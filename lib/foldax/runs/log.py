"""The log of a run: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foldax.errors import RunError

FLUSH_SECONDS = 10.0  # TensorBoard's events are written out at least this often


class Log:
    """Appends a line of metrics per log to `metrics.jsonl`, and the same to TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._path = folder / "metrics.jsonl"
        with _writing(self._path):
            self._file = self._path.open("a")
            # Not SummaryWriter: its thread could only print a traceback when the disk is full.
            self._events = EventsWriter(str(folder / "events"))
        self._flushed_at = time.monotonic()

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes one line.

        Raises:
          RunError: the disk is full, or the like.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import Summary

        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        with _writing(self._path):
            self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._file.flush()
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._events.flush()
                self._flushed_at = time.monotonic()

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets the lines after `step` (a resumed run writes them again) and returns the others.

        Raises:
          RunError: the disk is full, or the like.
        """
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        kept = [line for line in read_log(self._path.parent) if line["step"] <= step]
        with _writing(self._path):
            self._file.close()
            temporary = self._path.with_suffix(".rewound")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(self._path)
            self._file = self._path.open("a")
            # TensorBoard drops what it has from this step on
            self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        return kept

    def close(self) -> None:
        """Writes out what is left.

        Raises:
          RunError: the disk is full, or the like.
        """
        with _writing(self._path), contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            stack.callback(self._events._py_recordio_writer.close)
            self._events.flush()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log; a last line that was cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
