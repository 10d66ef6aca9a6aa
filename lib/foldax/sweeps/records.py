"""Files of a sweep: results of its members, a JSON line each, their checkpoints while they train, and the tables."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldax.engine.checkpoint import Checkpoints, checkpoint_steps
from foldax.engine.checkpoint_folder import Folder, remove_folder
from foldax.errors import RunError
from foldax.learner import State
from foldax.runs.folder import whole_file, write_errors
from foldax.runs.log import json_line, read_json_lines
from foldax.sweeps.exact import MemberResult

if TYPE_CHECKING:
    import pandas


class ResultStore:
    """Results of a sweep's members, appended to `members.jsonl` as members end; may be used from several threads.

    Attributes:
      results: results by member number.
      count: number of members of the sweep.

    >>> store = ResultStore(None, count=2)
    >>> store.add(MemberResult(0, "finished", 10, None, {"test": {"loss": 0.5}}, [], None, 1.0))
    >>> list(store.results)
    [0]
    """

    def __init__(self, path: Path | None, count: int) -> None:
        """Reads the results that are in a sweep folder already.

        Args:
          path: the sweep folder; None keeps results in memory only.
          count: number of members of the sweep.

        Raises:
          RunError: the file cannot be written.
        """
        self.results: dict[int, MemberResult] = {}
        self.count, self._lock, self._file = count, threading.Lock(), None
        if path is None:
            return
        self._path = path / "members.jsonl"
        for line in read_json_lines(self._path):
            self.results[line["number"]] = MemberResult(**line)
        # Written anew, for a kill may have left half a line at the end.
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(json_line(one._asdict()) for one in self.results.values()))
        with write_errors(self._path):
            self._file = self._path.open("a")

    def add(self, result: MemberResult) -> None:
        """Adds a member's result, unless there is one already.

        Raises:
          RunError: the file cannot be written.
        """
        with self._lock:
            # A slice that was submitted twice may deliver a result twice.
            if result.number in self.results:
                return
            self.results[result.number] = result
            if self._file is not None:
                with write_errors(self._path):
                    self._file.write(json_line(result._asdict()))
                    # Flushed per result: a kill loses at most the member that is being written.
                    self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class MemberCheckpoints:
    """Checkpoints of running members, each with the log lines so far; the folder is created by the first one."""

    def __init__(self, folder: Folder, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._lines: list[dict[str, Any]] = []
        self._checkpoints = Checkpoints(folder, warn) if checkpoint_steps(folder) else None

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds a line to the log; see `Callbacks.log`."""
        self._lines.append({"step": step, "split": split, **metrics})

    def load_history(self, step: int) -> list[dict[str, Any]]:
        """Log lines up to the restored checkpoint; see `Callbacks.load_history`."""
        return list(self._lines)

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._checkpoints is not None and self._checkpoints.is_saving()

    def save(self, step: int, tree: State, meta: dict[str, Any], finite: str = "") -> None:
        """Starts writing a checkpoint."""
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self._folder, self._warn)
        self._checkpoints.save(step, tree, {"lines": list(self._lines), **meta}, finite)

    def restore(self, like: State | Callable[[dict[str, Any]], State]) -> tuple[State, dict[str, Any]] | None:
        """Reads the newest checkpoint as `(tree, meta)`, or returns None; see `Checkpoints.restore`."""
        restored = None if self._checkpoints is None else self._checkpoints.restore(like)
        self._lines = [] if restored is None else restored[1]["lines"]
        return restored

    def wait(self) -> None:
        """Waits until all checkpoints are written."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def delete(self) -> None:
        """Deletes the checkpoints of members that have ended."""
        self.close()
        with contextlib.suppress(RunError):
            remove_folder(self._folder)

    def close(self) -> None:
        """Waits until all checkpoints are written, and releases the folder."""
        if self._checkpoints is not None:
            checkpoints, self._checkpoints = self._checkpoints, None
            checkpoints.wait()
            checkpoints.close()


def write_tables(path: Path, results: "pandas.DataFrame", curves: "pandas.DataFrame") -> None:
    """Writes `results.parquet` and `curves.parquet`, each whole or not at all.

    Raises:
      RunError: a file cannot be written.
    """
    for name, frame in (("results", results), ("curves", curves)):
        with whole_file(path / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
