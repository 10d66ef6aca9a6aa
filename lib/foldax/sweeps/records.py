"""What is on disk of the members of a sweep: outcomes, a line each, and checkpoints of those on their way."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foldax.engine import loop
from foldax.engine.checkpoint import Checkpoints
from foldax.engine.state import Hooks, Run
from foldax.errors import RunError
from foldax.sweeps.exact import Outcome


class Records:
    """The outcomes of a sweep's members, kept in `members.jsonl` as they come; a line cut off by a kill is dropped.

    Attributes:
      outcomes: by member number.
      count: how many members there are.
    """

    def __init__(self, path: Path | None, count: int) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.count, self._lock, self._file = count, threading.Lock(), None
        if path is None:
            return
        self._path = path / "members.jsonl"
        for line in read_lines(self._path):
            self.outcomes[line["number"]] = Outcome(**line)
        try:
            whole = "".join(json.dumps(one._asdict()) + "\n" for one in self.outcomes.values())
            partial = self._path.with_suffix(".partial")
            partial.write_text(whole)
            partial.replace(self._path)
            self._file = self._path.open("a")
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def add(self, outcome: Outcome) -> None:
        """Adds what came of a member, if it was not known before.

        Raises:
          RunError: the disk is full, or the like.
        """
        with self._lock:
            if outcome.number in self.outcomes:
                return
            self.outcomes[outcome.number] = outcome
            if self._file is not None:
                try:
                    self._file.write(json.dumps(outcome._asdict()) + "\n")
                    self._file.flush()
                except OSError as error:
                    raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file of JSON lines."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class MemberCheckpoints:
    """Checkpoints of members on their way, with what they have logged; nothing is made until the first is due."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._lines: list[dict[str, Any]] = []
        self._made = Checkpoints(folder, warn) if folder.exists() else None

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Takes a line of the log."""
        self._lines.append({"step": step, "split": split, **metrics})

    def resumed(self, step: int) -> list[dict[str, Any]]:
        """Returns the lines up to the checkpoint that was restored."""
        return list(self._lines)

    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._made is not None and self._made.busy()

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint."""
        if self._made is None:
            self._made = Checkpoints(self._folder, self._warn)
        self._made.save(step, tree, {"lines": list(self._lines), **meta})

    def restore(self, like: Any) -> Any:
        """Returns the newest checkpoint, if there is one."""
        found = None if self._made is None else self._made.restore(like)
        self._lines = [] if found is None else found[1]["lines"]
        return found

    def keep(self, run: Run) -> None:
        """Saves a run that is interrupted."""
        loop.save(run, Hooks(checkpoints=self), (run.fold, run.best), run.block.cursor)

    def discard(self) -> None:
        """Removes the checkpoints of members that are done."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Waits until all is written."""
        if self._made is not None:
            made, self._made = self._made, None
            made.wait()
            made.close()
