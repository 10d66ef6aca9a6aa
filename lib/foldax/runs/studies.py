"""What the studies of `research/` have in common: where runs and results go, and how a study is started.

A study trains with sweeps that it can go on from, writes tables as CSV and figures as PNG beside its file, and with
`--quick` does all of it once, small, elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foldax.errors import FoldaxError


class Places(NamedTuple):
    """How a study was asked for.

    Attributes:
      quick: whether small.
      runs: folder of its runs.
      out: folder of its tables and figures.
    """

    quick: bool
    runs: Path
    out: Path

    def save(self, tables: dict[str, Any], figures: dict[str, Any]) -> None:
        """Writes pandas tables as `NAME.csv` and matplotlib figures as `NAME.png`."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(self.out / f"{name}.csv", index=False, float_format="%.6g")
        for name, figure in figures.items():
            figure.savefig(self.out / f"{name}.png", dpi=110)


def places(
    file: str, description: str | None, arguments: Sequence[str] | None = None, small: str = "few steps"
) -> Places:
    """Reads a study's command line: `--quick`, `--runs` and `--out`.

    Args:
      file: the study's; runs go to `runs/FOLDER` of the checkout, tables and figures beside the file.
      description: for `--help`.
      arguments: those of the process if None.
      small: what `--quick` makes small.
    """
    here = Path(file).resolve().parent
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{small}; writes into its runs folder")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="runs, kept to go on from (default runs/...)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables and figures (default beside this file)")
    asked = parser.parse_args(arguments)
    runs = asked.runs or here.parents[1] / "runs" / (here.name + ("-quick" if asked.quick else ""))
    return Places(asked.quick, runs, asked.out or (runs if asked.quick else here))


def run(main: Callable[[], None]) -> None:
    """Calls a study's `main`; what goes wrong is told in a line."""
    try:
        main()
    except FoldaxError as error:
        sys.exit(f"study: {error}\nthe same command goes on with what is done")
