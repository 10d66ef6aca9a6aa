"""Commands that manage runs: `foldax runs`, `tag`, `rm` and `compare`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from foldax.errors import ConfigError
from foldax.runs.terminal import confirm, echo, print_table, warn

FIGURES = (".png", ".pdf", ".svg")


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

    compare = add("compare", _compare, "compare runs and sweeps: fields, metrics, learning curves, tests over seeds")
    help = "folders of runs, of sweeps, or of several runs; runs that differ only in the seed are one group"
    compare.add_argument("folders", metavar="RUN_DIR", nargs="+", type=Path, help=help)
    compare.add_argument("--out", type=Path, metavar="FILE", default=Path("compare.png"), help="default: compare.png")

    tag = add("tag", _tag, "add tags to a run or sweep, and print those that it has", "RUN_DIR")
    tag.add_argument("tags", metavar="TAG", nargs="*", help="a word without commas")
    tag.add_argument("--remove", action="store_true", help="remove these tags instead")

    rm = add("rm", _rm, "remove the folders of runs and sweeps, for good")
    rm.add_argument("folders", metavar="RUN_DIR", nargs="+", type=Path)
    rm.add_argument("--yes", action="store_true", help="do not ask")
    rm.epilog = "Folders that are none of a run or sweep, and those that a process trains in, are refused."


def _runs(command: argparse.Namespace) -> None:
    from foldax.sweeps import catalog

    everything = catalog.read_entries(command.folder)
    entries = catalog.select(everything, command.where, command.tag)
    sort = catalog.resolve_name(everything, command.sort) if command.sort else None
    entries = catalog.sort_entries(entries, sort) if sort else entries
    if command.json:
        echo(catalog.entries_json(entries))
        return
    if not everything:
        warn(f"no run under {command.folder}")
        return
    metrics = [sort] if sort and any(sort in entry.metrics for entry in entries) else []
    metrics += [catalog.resolve_name(everything, name) for name in command.metrics or ()]
    metrics = metrics if command.metrics else metrics + catalog.default_metrics(entries)
    if entries:
        print_table(catalog.entries_table(entries, list(dict.fromkeys(metrics))))
    echo(f"{len(entries):,} of {len(everything):,} under {command.folder}")


def _compare(command: argparse.Namespace) -> None:
    from foldax.plots.common import comparison_curves
    from foldax.runs.figures import environment_steps_after
    from foldax.runs.folder import write_errors
    from foldax.sweeps import compare

    if command.out.suffix not in FIGURES:
        raise ConfigError(f"--out: {command.out} must end in one of {', '.join(FIGURES)}")
    groups = compare.read_groups(command.folders)
    if len(groups) < 2:
        raise ConfigError(
            "these are one group, as they differ only in the seed; name runs or sweeps of several configs"
        )
    for label, name in compare.group_names(groups).items():
        echo(f"{label}  {name}")
    print_table(compare.fields_table(groups))
    print_table(compare.metrics_table(groups))
    if tests := compare.paired_tests(groups):
        print_table(compare.differences_table(tests, next(iter(groups))))
    else:
        echo("no paired test: no two groups have two seeds in common")
    histories = {label: [member.history for member in group] for label, group in groups.items()}
    after = {label: environment_steps_after(group[0].config) for label, group in groups.items()}
    environment_steps = after if all(after.values()) else None
    if any(map(any, histories.values())):
        with write_errors(command.out):
            comparison_curves(histories, environment_steps).savefig(command.out, dpi=120)
        echo(f"learning curves: {command.out}")


def _tag(command: argparse.Namespace) -> None:
    from foldax.runs.tags import change_tags

    tags = change_tags(command.run_dir, **{"remove" if command.remove else "add": command.tags})
    echo(f"{command.run_dir}: {', '.join(tags) or 'no tags'}")


def _rm(command: argparse.Namespace) -> None:
    from rich.filesize import decimal

    from foldax.runs.removal import check_removable, checkpoints_elsewhere, folder_size, remove_folders
    from foldax.runs.tables import join_first

    folders = list(dict.fromkeys(command.folders))
    for path in folders:
        check_removable(path)
    size, names = decimal(sum(map(folder_size, folders))), join_first([str(path) for path in folders])
    places = [str(place) for place in map(checkpoints_elsewhere, folders) if place is not None]
    names += f", with the checkpoints in {join_first(places)}" * bool(places)
    if not command.yes:
        confirm(f"this removes {len(folders):,} folder{'s' * (len(folders) > 1)} of {size}: {names}", "--yes")
    remove_folders(folders)
    echo(f"removed {names} ({size})")
