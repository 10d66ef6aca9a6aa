"""CSV: a table of the log in the run folder, for spreadsheets and pandas."""

import csv
from pathlib import Path

from foldax.runs.trackers.protocol import TrackedRun

COLUMNS = ("step", "split", "metric", "value")


class CSV:
    """Writes `metrics.csv`, a row per value, and `summary.csv` with the final metrics, into the run folder."""

    def start(self, run: TrackedRun) -> None:
        """Opens the table; of one that exists it keeps the rows up to the step of the run."""
        self._folder, path = run.folder, run.folder / "metrics.csv"
        # Long format: metrics may appear later, and a column of each would change the whole table.
        kept = []
        if run.step and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= run.step]
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([COLUMNS, *kept])
        self._file.flush()

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes a row for each metric."""
        self._writer.writerows([step, split, name, repr(value)] for name, value in metrics.items())
        self._file.flush()

    def figure(self, step: int, name: str, path: Path) -> None:
        """Does nothing: figures are in the run folder already."""

    def summary(self, metrics: dict[str, float]) -> None:
        """Writes the final metrics."""
        with (self._folder / "summary.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("metric", "value"), *((name, repr(value)) for name, value in metrics.items())])

    def finish(self, status: str) -> None:
        """Closes the table."""
        self._file.close()
