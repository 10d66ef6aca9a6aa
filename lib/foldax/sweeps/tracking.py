"""Sends the members of a sweep to trackers: each as a run of its own, when it has ended."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from foldax.runs.tables import flat_metrics
from foldax.runs.terminal import warn
from foldax.runs.trackers.protocol import TrackedRun, Tracker
from foldax.runs.trackers.tracking import TrackerThread, start_tracker
from foldax.sweeps.exact import MemberResult

MEMBER_SECONDS = 600.0  # that the end of a sweep waits for a tracker that takes the log of a member


class MemberTracking:
    """Trackers of a sweep, each with a thread of its own; a resumed sweep sends the members that end from then on.

    Args:
      trackers: by name.
      experiment: name of the experiment.
      path: the sweep folder; files of trackers go to `trackers/MEMBER` in it.
    """

    def __init__(self, trackers: Mapping[str, Tracker], experiment: str, path: Path) -> None:
        self._experiment, self._path = experiment, path
        self._threads = [(name, tracker, TrackerThread(name, warn)) for name, tracker in trackers.items()]

    def track(self, result: MemberResult) -> None:
        """Sends a member that has ended."""
        values = json.loads(result.config or "{}")
        group = self._path.resolve().name
        folder = self._path / "trackers" / str(result.number)
        run = TrackedRun(self._experiment, f"{group}-{result.number}", folder, values, group=group)
        # In the tracker's own thread, one member after another: members end in several threads at once.
        for name, tracker, thread in self._threads:
            thread.call(partial(track_member, name, tracker, run, result))

    def close(self) -> None:
        """Waits until all members are sent, but for no member longer than `MEMBER_SECONDS`."""
        for _, _, thread in self._threads:
            thread.close(MEMBER_SECONDS)


def track_member(name: str, tracker: Tracker, run: TrackedRun, result: MemberResult) -> None:
    """Sends the log and the final metrics of a member to a tracker.

    Raises:
      RunError: the tracker cannot start.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    start_tracker(name, tracker, run)
    try:
        for line in result.history:
            metrics = {key: value for key, value in line.items() if key not in ("step", "split")}
            tracker.log(line["step"], line["split"], metrics)
        tracker.summary(flat_metrics(result.metrics))
    finally:
        tracker.finish(result.status)
