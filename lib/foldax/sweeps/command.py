"""`foldax sweep` and `foldax resume` of a sweep: parses the command line into a base config and a search space."""

import argparse
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foldax.config_fields import field_types
from foldax.errors import ConfigError, FoldaxError, display_path
from foldax.experiment import Experiment
from foldax.options import Config, options_help, parse_alternatives, set_fields, split_options
from foldax.runs import folder, tables
from foldax.runs.terminal import echo, print_table, warn
from foldax.runs.trackers.choose import NAMES as TRACKER_NAMES
from foldax.runs.trackers.choose import NONE, recorded_names
from foldax.sweeps.launchers.launch import LAUNCHERS
from foldax.sweeps.plan import Plan, make_plan
from foldax.sweeps.search import SEARCHES
from foldax.sweeps.space import Space, flat_values, parse_space, structural_values
from foldax.sweeps.sweep import sweep

EPILOG = """\
A field with one value is set to it; one with several is swept. Tuples are written "(64, 64)".
With --samples N, a float may be a range: log:1e-5:1e-1 or uniform:0:0.5.

"""


def run(experiment: Experiment, file: Path, arguments: Sequence[str]) -> int:
    """Runs or plans a sweep.

    Args:
      experiment: the experiment of the file.
      file: the experiment file, named in the help.
      arguments: those after the file's name.

    Returns:
      The exit code.

    Raises:
      ConfigError: an option or a value is not allowed.
    """
    parser = _parser(experiment, file)
    # A field that has the name of an option would be ambiguous.
    for name in field_types(experiment.config):
        option = f"--{name.replace('_', '-')}"
        if option in parser._option_string_actions and option in {text.split("=")[0] for text in arguments}:
            raise ConfigError(f"{option} is an option of sweeps; give the field {name!r} its values in a --space file")
    parsed, field_arguments = split_options(parser, experiment.config, arguments)
    _check_owners(parser, parsed)
    file_space = _read_space(parsed.space) if parsed.space else {}
    config, space = _split_space(experiment, file_space, field_arguments, parsed.seeds)
    options = dict(samples=parsed.samples, execution=parsed.execution, max_concurrent=parsed.max_concurrent)
    if parsed.plan:
        print_plan(make_plan(experiment, config, space, parsed.seeds, **options))
        return 0
    search = _from_options(SEARCHES, parsed.search, parsed)
    launcher = _from_options(LAUNCHERS, parsed.launcher, parsed)
    options |= dict(search=search, launcher=launcher, sweep_dir=parsed.sweep_dir)
    options |= dict(tracker=parsed.tracker or NONE, resume="auto" if parsed.or_resume else False)
    swept = sweep(experiment, space, seeds=parsed.seeds, config=config, verbose=not parsed.quiet, **options)
    if parsed.quiet and swept.path:
        echo(display_path(swept.path))
    return 0


def resume(path: Path, allow_other_data: bool = False, tracker: list[str] | None = None, quiet: bool = False) -> int:
    """Goes on with an interrupted sweep, with the options of its `sweep.json`; returns the exit code."""
    experiment, config = folder.load(path, "sweep.json")
    metadata = folder.read_json(path / "sweep.json")
    if metadata["status"] == "finished":
        echo(path if quiet else f"{path} is finished; `foldax show {path}` shows it")
        return 0
    options = {name: metadata.get(name) for name in ("seeds", "samples", "execution", "max_concurrent")}
    for role, kinds in (("search", SEARCHES), ("launcher", LAUNCHERS)):
        kind: Any = kinds.get(metadata.get(role, ""))
        if kind and (sampler := metadata[f"{role}_options"].pop("sampler", None)):
            warn(f"{path} was started with a {sampler}, which cannot be restored; Optuna's default sampler goes on")
        options[role] = kind and kind(**metadata[f"{role}_options"])
    options |= dict(sweep_dir=path, resume=True, allow_other_data=allow_other_data)
    options["tracker"] = tracker or recorded_names(metadata.get("trackers", []))
    sweep(experiment, metadata["space"], config=config, verbose=not quiet, **options)
    if quiet:
        echo(path)
    return 0


def _from_options(kinds: Mapping[str, Any], name: str | None, parsed: argparse.Namespace) -> Any:
    """Creates the search or launcher of that name from its options, `--NAME-FIELD` or `--FIELD`."""
    if name is None:
        return None
    options = {field: getattr(parsed, f"{name}_{field}", getattr(parsed, field, None)) for field in kinds[name]._fields}
    return kinds[name](**{field: value for field, value in options.items() if value is not None})


def _check_owners(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Raises a ConfigError for an option of a search or launcher that is not used."""
    for action in parser._actions:
        owners = [
            f"--{role} {name}"
            for role, kinds in (("search", SEARCHES), ("launcher", LAUNCHERS))
            for name, kind in kinds.items()
            if action.dest.removeprefix(f"{name}_") in kind._fields
        ]
        used = {f"--search {parsed.search}", f"--launcher {parsed.launcher}"}
        if owners and getattr(parsed, action.dest) is not None and not used & set(owners):
            raise ConfigError(f"{action.option_strings[0]} goes with {' or '.join(owners)}")


def _parser(experiment: Experiment, file: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"foldax sweep {file.name}",
        description="Trains with every combination of the values given for the config's fields, and several seeds.",
        epilog=EPILOG + options_help(experiment.config, experiment.config(), with_kinds=True),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="members per config; seeds count up from --seed")
    add("--samples", type=int, help="sample this many configs at random instead of the whole grid")
    add("--search", choices=SEARCHES, help="successive halving, population-based training, or Optuna's sampler")
    add("--halving-reduction-factor", metavar="N", type=int, help="halving: one config in N is promoted (3)")
    add("--halving-min-steps", metavar="STEPS", type=int, help="halving: lowest step of a decision")
    add("--pbt-perturbation-interval", metavar="STEPS", type=int, help="pbt: steps between decisions (a tenth of all)")
    add("--optuna-num-trials", metavar="N", type=int, help="optuna: number of configs (64)")
    add("--optuna-batch-size", metavar="N", type=int, help="optuna: configs suggested at a time (16)")
    add("--launcher", choices=LAUNCHERS, help="train members on workers of a Ray cluster, or in Slurm jobs")
    add("--workers", type=int, metavar="N", help="maximum at a time (ray: as many as fit; slurm: 4)")
    add("--worker-cpus", dest="cpus", metavar="N", type=int, help="CPU cores per worker (1)")
    add("--worker-gpus", dest="gpus", metavar="N", type=float, help="GPUs per worker (0)")
    add("--ray-address", metavar="HOST:PORT", help="a Ray cluster; default: RAY_ADDRESS, else a local one")
    add("--slurm-partition", metavar="NAME", help="Slurm partition; default: the cluster's")
    add("--slurm-minutes", metavar="N", type=int, help="time limit of a job (60)")
    add("--slurm-cluster", choices=("slurm", "local"), help="local: processes on this machine")
    add("--space", type=Path, help="JSON or Python file (`space = {...}`) with values by field")
    add("--plan", action="store_true", help="only show the programs and members of the sweep")
    execution = parser.add_mutually_exclusive_group()
    for name, text in (("exact", "bit for bit as single runs (CPU default)"), ("fast", "vmapped in one program")):
        execution.add_argument(f"--{name}", dest="execution", action="store_const", const=name, help=text)
    add("--max-concurrent", metavar="N", type=int, help="maximum of members at a time; default: what fits into memory")
    add(
        "--tracker",
        action="append",
        metavar="NAME",
        help=f"gets each member that has ended: {', '.join(TRACKER_NAMES)}",
    )
    add("--quiet", action="store_true", help="print the sweep folder and warnings only")
    add("--sweep-dir", type=Path, help="the sweep folder; default: a new one under runs/")
    add("--or-resume", action="store_true", help="go on with the sweep in --sweep-dir, or show it if it is finished")
    return parser


def _split_space(
    experiment: Experiment, file_space: Mapping[str, Any], field_arguments: Sequence[str], seeds: int
) -> tuple[Config, Space]:
    """Splits the values of a space file and of the command line into a base config and a space.

    Args:
      experiment: the experiment.
      file_space: values by field; those of the command line replace them.
      field_arguments: `--field value ...`, as they stand on the command line.
      seeds: number of seeds.

    Returns:
      The config with the fields that have a single value, and the space of the others.
    """
    config = experiment.config()
    values_by_field = dict(file_space) | parse_alternatives(type(config), field_arguments)
    seed = values_by_field.pop("seed", None)
    if seed is not None:
        seed = seed if isinstance(seed, list) else [seed]
        # The first seed of the sweep; --seeds says how many follow.
        if len(seed) != 1:
            raise ConfigError(f"--seed: give one, the first; --seeds {len(seed)} runs that many from it on")
        config = set_fields(config, {"seed": seed[0]})
    space = parse_space(config, values_by_field)
    # Fields with a single value belong to the base config: only the others are swept.
    single = {k: v[0] for k, v in space.items() if isinstance(v, list) and len(v) == 1}
    return set_fields(config, single), {k: v for k, v in space.items() if k not in single}


def _read_space(path: Path) -> dict[str, Any]:
    """Reads a space file: a JSON object, or the `space` of a Python file.

    Raises:
      ConfigError: there is no such file, or it holds no space.
    """
    if not path.is_file():
        raise ConfigError(f"--space: there is no file {str(path)!r}")
    if path.suffix == ".py":
        try:
            space = runpy.run_path(str(path), run_name="foldax_space").get("space")
        except Exception as error:
            raise ConfigError(f"--space: {path} failed: {type(error).__name__}: {error}") from error
    else:
        try:
            space = folder.read_json(path)
        except FoldaxError as error:
            raise ConfigError(f"--space: {error}") from error
    if not isinstance(space, dict) or not all(isinstance(name, str) for name in space):
        raise ConfigError(f"--space: {path} must hold an object of values by field, not {str(space)[:80]}")
    return space


def print_plan(plan: Plan) -> None:
    """Prints the groups of a plan: members, programs, memory, and the fields that make programs differ."""
    structures = [structural_values(group.members[0].config) for group in plan.groups]
    differing = [name for name in structures[0] if len({str(values[name]) for values in structures}) > 1]
    is_divided = any(group.devices_per_member > 1 for group in plan.groups)
    concurrent = ("concurrent", "devices per member") if is_divided else ("concurrent",)
    columns, rows = ("program", "members", "execution", *concurrent, "MiB per member, at most", *differing), []
    for index, (group, values) in enumerate(zip(plan.groups, structures)):
        size = f"{group.member_bytes / 2**20:,.2f}"
        cells = [str(values[name]) for name in differing]
        counts = (str(group.max_concurrent), str(group.devices_per_member))[: len(concurrent)]
        rows.append((str(index), str(len(group.members)), group.execution, *counts, size, *cells))
    title = f"{len(plan.configs)} members, {len(plan.groups)} programs"
    print_table(tables.fit_table(columns, rows, {"execution", *differing}, title))
    steps = sum(config.steps for config in plan.configs)
    echo(f"{steps:,} member-steps; each program is traced once and compiled once for each device it runs on")
    if differing:
        echo(f"a new program for each combination of: {', '.join(differing)} (structural fields)")
    elif len(plan.groups) > 1:
        echo("the programs differ in their data or driver fields")
    swept = {name: len({str(flat_values(config).get(name)) for config in plan.configs}) for name in plan.fields}
    echo("swept: " + (", ".join(f"{name} ({count} values)" for name, count in swept.items()) or "the seed alone"))
