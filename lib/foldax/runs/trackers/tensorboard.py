"""TensorBoard: events in the run folder."""

import struct
import time
from pathlib import Path
from typing import Any

from foldax.runs.trackers.protocol import TrackedRun

FLUSH_SECONDS = 10.0  # longest time between two writes of events


class TensorBoard:
    """Writes metrics, figures and final metrics as events: `tensorboard --logdir RUN_FOLDER` shows them."""

    def start(self, run: TrackedRun) -> None:
        """Opens a new file of events."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # Not SummaryWriter: its thread could only print a traceback when the disk is full.
        self._events = EventsWriter(str(run.folder / "events"))
        self._flushed_at, self._step = time.monotonic(), run.step
        # Tells TensorBoard to drop the events it has from this step on.
        self._events.write_event(Event(step=run.step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes scalars with tags such as "train/loss"."""
        from tensorboardX.summary import Summary

        self._step = max(self._step, step)
        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        self._write(step, Summary(value=values))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flush()

    def figure(self, step: int, name: str, path: Path) -> None:
        """Writes an image or a text."""
        from tensorboardX.summary import Summary, text

        if path.suffix == ".txt":
            self._write(step, text(name, path.read_text(encoding="utf-8")))
            return
        png = path.read_bytes()
        width, height = struct.unpack(">II", png[16:24])  # in the header of every PNG
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def summary(self, metrics: dict[str, float]) -> None:
        """Writes scalars with tags such as "final/test/loss" at the last step."""
        self.log(self._step, "final", metrics)

    def finish(self, status: str) -> None:
        """Writes buffered events and closes the file."""
        try:
            self._flush()
        finally:
            # Closed even if the flush fails: EventsWriter.close would then leave its file open.
            self._events._py_recordio_writer.close()

    def _write(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _flush(self) -> None:
        self._events.flush()
        self._flushed_at = time.monotonic()
