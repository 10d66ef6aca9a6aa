"""The log of a run: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foldax.errors import RunError


class Log:
    """Appends a line of metrics per log to `metrics.jsonl`, and the same to TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._path = folder / "metrics.jsonl"
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(folder), flush_secs=10)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes one line.

        Raises:
          RunError: the disk is full, or the like.
        """
        try:
            self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        for name, value in metrics.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forgets the lines after `step` (a resumed run writes them again) and returns the others."""
        kept = [line for line in read_log(self._path.parent) if line["step"] <= step]
        self._file.close()
        temporary = self._path.with_suffix(".rewound")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        return kept

    def close(self) -> None:
        """Writes out what is left."""
        self._file.close()
        self._events.close()


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
