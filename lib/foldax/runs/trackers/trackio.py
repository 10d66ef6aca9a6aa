"""Trackio, on this machine unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says otherwise."""

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foldax.runs.trackers.protocol import TrackedRun


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Trackio's prints from standard output; only in the main thread, whose own prints it would keep, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Trackio:
    """Logs to Trackio's database (in TRACKIO_DIR, by default a cache of the user's): `trackio show` shows it."""

    def start(self, run: TrackedRun) -> str:
        """Starts a run of the project that has the experiment's name; goes on with a run by its name."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT") or re.sub(r"[^\w\-]", "_", run.experiment)
        # It prints how to show the project; standard output is for the run's own table.
        with _quiet():
            self._run: Any = trackio.init(
                project=project,
                name=run.id or run.name,
                group=run.group,
                config=run.config,
                resume="allow" if run.id else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # Else it would end the run once more when the process ends.
        with contextlib.suppress(AttributeError):
            trackio.context_vars.current_run.set(None)
        return self._run.name

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs metrics by names such as "train/loss"."""
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    def figure(self, step: int, name: str, path: Path) -> None:
        """Logs an image or a text."""
        import trackio

        is_text = path.suffix == ".txt"
        value: Any = trackio.Markdown(path.read_text()) if is_text else trackio.Image(str(path), caption=name)
        self._run.log({f"figures/{name}": value}, step=step)

    def summary(self, metrics: dict[str, float]) -> None:
        """Logs the final metrics by names such as "final/test/loss"."""
        self._run.log({f"final/{name}": value for name, value in metrics.items()})

    def finish(self, status: str) -> None:
        """Ends the run."""
        with _quiet():
            self._run.finish()
