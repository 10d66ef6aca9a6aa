"""Helpers of the studies in `research/`: their command line, their tables and figures, and their errors.

A study runs sweeps, which it resumes when it is started again, and writes tables as CSV and figures as PNG beside its
file. With `--quick` it does all of it once, small, in a folder of its own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import pandas

from foldax.errors import FoldaxError


class StudyOptions(NamedTuple):
    """Options of a study's command line.

    Attributes:
      quick: whether to run a small version of the study.
      runs_dir: folder of its runs and sweeps.
      output_dir: folder of its tables and figures.
    """

    quick: bool
    runs_dir: Path
    output_dir: Path

    def save(self, tables: dict[str, pandas.DataFrame], figures: dict[str, matplotlib.figure.Figure]) -> None:
        """Writes tables as `NAME.csv` and figures as `NAME.png` into `output_dir`."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(self.output_dir / f"{name}.csv", index=False, float_format="%.6g")
        for name, figure in figures.items():
            figure.savefig(self.output_dir / f"{name}.png", dpi=110)


def parse_options(
    file: str, description: str | None, arguments: Sequence[str] | None = None, quick_help: str = "few steps"
) -> StudyOptions:
    """Parses the command line of a study: `--quick`, `--runs` and `--out`.

    Args:
      file: the study's file; by default runs go to `runs/FOLDER` of the checkout, tables and figures beside the file.
      description: text of `--help`.
      arguments: arguments to parse; those of the process if None.
      quick_help: what `--quick` makes small.

    >>> parse_options("research/searches/study.py", None, ["--quick", "--runs", "elsewhere"])
    StudyOptions(quick=True, runs_dir=PosixPath('elsewhere'), output_dir=PosixPath('elsewhere'))
    """
    here = Path(file).resolve().parent
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick_help}; writes into its runs folder")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="runs, kept to go on from (default runs/...)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables and figures (default beside this file)")
    parsed = parser.parse_args(arguments)
    runs_dir = parsed.runs or here.parents[1] / "runs" / (here.name + ("-quick" if parsed.quick else ""))
    return StudyOptions(parsed.quick, runs_dir, parsed.out or (runs_dir if parsed.quick else here))


def run(main: Callable[[], None]) -> None:
    """Calls the `main` of a study, and turns an error of foldax into one line and exit code 1.

    >>> run(lambda: print("done"))
    done
    """
    try:
        main()
    except FoldaxError as error:
        sys.exit(f"study: {error}\nthe same command goes on with what is done")
