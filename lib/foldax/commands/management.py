"""Commands that manage runs: `foldax runs`, `tag`, `rm` and `compare`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from foldax.runs.terminal import echo, print_table, warn


def add_management_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands to the command line; `add(name, function, help, *positionals)` adds one."""
    runs = add("runs", _runs, "show all runs and sweeps in a table: status, metrics, fields that differ, tags, sizes")
    runs.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("runs"), help="default: runs")
    help = "only those with this value of a field, metric or column; also !=, <, <=, >, >= (in quotes)"
    runs.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help=help)
    runs.add_argument("--tag", action="append", default=[], metavar="TAG", help="only those with this tag")
    help = "a metric, from best to worst, a config field, or step, size, started (default: oldest first)"
    runs.add_argument("--sort", metavar="METRIC", help=help)
    runs.add_argument("--metrics", nargs="+", metavar="METRIC", help="columns of metrics (default: at most four)")
    runs.add_argument("--json", action="store_true", help="print a list of objects with all fields and metrics")


def _runs(command: argparse.Namespace) -> None:
    from foldax.sweeps import catalog

    everything = catalog.read_entries(command.folder)
    entries = catalog.select(everything, command.where, command.tag)
    sort = catalog.resolve_name(everything, command.sort) if command.sort else None
    entries = catalog.sort_entries(entries, sort) if sort else entries
    if command.json:
        echo(catalog.entries_json(entries))
        return
    if not entries:
        which = f"none of the {len(everything):,} runs" if everything else "no run"
        warn(f"{which} under {command.folder}{' is selected' if everything else ''}")
        return
    metrics = [sort] if sort and any(sort in entry.metrics for entry in entries) else []
    metrics += [catalog.resolve_name(everything, name) for name in command.metrics or ()]
    metrics = metrics if command.metrics else metrics + catalog.default_metrics(entries)
    print_table(catalog.entries_table(entries, list(dict.fromkeys(metrics))))
    echo(f"{len(entries):,} of {len(everything):,} under {command.folder}")
