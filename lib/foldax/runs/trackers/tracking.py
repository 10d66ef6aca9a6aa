"""Calls trackers in threads of their own: no run waits for one, and none ends a run."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from foldax.errors import FoldaxError, RunError, first_line
from foldax.runs.tables import flat_metrics
from foldax.runs.trackers.protocol import TrackedRun, Tracker

FINISH_SECONDS = 60.0  # that the end of a run waits for a call of a tracker
MAX_CALLS_WAITED = 10  # as long as so many such calls, the end of a run waits for one tracker in all
Call = Callable[[], object]


class TrackerThread:
    """A thread that makes the calls of one tracker in order; what one raises is a warning, once.

    Args:
      name: of the tracker, for warnings.
      warn: takes a warning.
    """

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self._name, self._warn, self._has_failed, self._num_done = name, warn, False, 0
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        # A daemon: a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"foldax-tracker-{name}", daemon=True)
        self._thread.start()

    def call(self, function: Call) -> None:
        """Adds a call."""
        self._calls.put(function)

    def close(self, seconds: float = FINISH_SECONDS) -> None:
        """Waits until all calls are made, but for none of them longer than some seconds."""
        self._calls.put(None)
        num_done, deadline = self._num_done, time.monotonic() + seconds
        last_deadline = time.monotonic() + MAX_CALLS_WAITED * seconds
        while self._thread.is_alive() and time.monotonic() < min(deadline, last_deadline):
            self._thread.join(0.1)
            # A queue may be long: a single call that takes too long is given up sooner than the queue.
            if self._num_done > num_done:
                num_done, deadline = self._num_done, time.monotonic() + seconds
        if self._thread.is_alive():
            self._warn(f"tracker {self._name!r} did not answer in time, and is left behind: it lacks some of the run")

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                function()
            except BaseException as error:  # the thread goes on also after SystemExit
                if not self._has_failed:
                    problem = f"tracker {self._name!r} failed, and may lack some of the run: {first_line(error)}"
                    self._warn(f"{problem}. The run goes on, and its own log is complete")
                self._has_failed = True
            self._num_done += 1


class Tracking:
    """The trackers of one run.

    Args:
      trackers: by name.
      warn: takes warnings.
    """

    def __init__(self, trackers: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._trackers, self._warn = trackers, warn
        self._started: list[tuple[Tracker, TrackerThread]] = []

    def start(self, run: TrackedRun, ids: Mapping[str, str | None]) -> dict[str, str | None]:
        """Starts the run in every tracker.

        Args:
          run: the run.
          ids: ids of an earlier session, by name of the tracker.

        Returns:
          The ids for the next session.

        Raises:
          RunError: a tracker cannot start.
        """
        new_ids = {}
        for name, tracker in self._trackers.items():
            new_ids[name] = start_tracker(name, tracker, run._replace(id=ids.get(name)))
            self._started.append((tracker, TrackerThread(name, self._warn)))
        return new_ids

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Sends a log line; see `Tracker.log`."""
        for tracker, thread in self._started:
            thread.call(partial(tracker.log, step, split, dict(metrics)))

    def figure(self, step: int, name: str, path: Path) -> None:
        """Sends a figure; see `Tracker.figure`."""
        for tracker, thread in self._started:
            thread.call(partial(tracker.figure, step, name, path))

    def summary(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Sends the final metrics, by split and name."""
        for tracker, thread in self._started:
            thread.call(partial(tracker.summary, flat_metrics(metrics)))

    def finish(self, status: str, seconds: float = FINISH_SECONDS) -> None:
        """Ends the run in every tracker that has started, and waits for them, but for no call longer than `seconds`."""
        started, self._started = self._started, []
        # All at once, so that one waits for the slowest and not for their sum.
        for tracker, thread in started:
            thread.call(partial(tracker.finish, status))
        for _, thread in started:
            thread.close(seconds)


def start_tracker(name: str, tracker: Tracker, run: TrackedRun) -> str | None:
    """Starts a run in a tracker.

    Raises:
      RunError: the tracker raised an error.
    """
    try:
        return tracker.start(run)
    except FoldaxError:
        raise
    except Exception as error:
        remedy = "--tracker none goes on without it"
        raise RunError(f"tracker {name!r} cannot start: {first_line(error)}; {remedy}") from error
