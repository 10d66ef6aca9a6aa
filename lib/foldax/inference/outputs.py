"""Outputs of the uses of a run: where they are written, and in which form."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foldax.engine.result import Result
from foldax.errors import ConfigError


def output_path(result: Result, out: str | Path | None, default: str, kind: str = "folder to write to") -> Path:
    """Chooses where to write: `out`, or `default` in the run folder.

    Args:
      result: the run.
      out: the path that the user gave, or None.
      default: a path relative to the run folder.
      kind: the kind of path, for the error.

    Raises:
      ConfigError: no path is given, and the run has no folder.
    """
    if out is not None:
        return Path(out)
    if result.run_dir is None:
        raise ConfigError(f"out: the run has no folder, so name the {kind}")
    return Path(result.run_dir) / default


def write_csv(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes columns of equal length `[N]`, by name, as a CSV file with a header.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_csv(Path(directory) / "x.csv", {"row": [0, 1], "mean": np.array([0.5, 1.0])})
    ...     (Path(directory) / "x.csv").read_text().split()
    ['row,mean', '0,0.5', '1,1.0']
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values())))
