"""`foldax sweep` and its resume: what the command line says, as a space of configs."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldax.configuration import field_types, is_config, kinds, type_name
from foldax.errors import ConfigError, FoldaxError
from foldax.experiment import Experiment
from foldax.runs import folder
from foldax.sweeps.launchers.launch import Ray, Slurm
from foldax.sweeps.plan import Plan, plan
from foldax.sweeps.populations import PBT, Halving
from foldax.sweeps.search import Optuna
from foldax.sweeps.space import check_space, flat_values, parse_values, set_fields, structural_values
from foldax.sweeps.sweep import sweep

SEARCHES: dict[str, Any] = {"halving": Halving, "pbt": PBT, "optuna": Optuna}
LAUNCHERS: dict[str, Any] = {"ray": Ray, "slurm": Slurm}
EPILOG = """\
A field with one value is set to it; one with several is swept. Tuples are written "(64, 64)".
With --samples N, a float may be a range: log:1e-5:1e-1 or uniform:0:0.5.

fields of the config:
"""


def run(experiment: Experiment, file: Path, arguments: Sequence[str]) -> int:
    """Runs or plans the sweep that the arguments after the file's name describe."""
    options = _options(experiment, file)
    for name in field_types(experiment.config):
        option = f"--{name.replace('_', '-')}"
        if option in options._option_string_actions and option in {text.split("=")[0] for text in arguments}:
            raise ConfigError(f"{option} is an option of sweeps; give the field {name!r} its values in a --space file")
    try:
        known, rest = options.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    _check_used(options, known)
    fixed, space = _space(experiment, _from_file(known.space) if known.space else {}, rest, known.seeds)
    search, launcher = _chosen(SEARCHES, known.search, known), _chosen(LAUNCHERS, known.launcher, known)
    asked = dict(samples=known.samples, way=known.way, members_at_once=known.members_at_once)
    if known.plan:
        print_plan(plan(experiment, fixed, check_space(fixed, space), known.seeds, **asked))
        return 0
    asked |= dict(search=search, launcher=launcher, sweep_dir=known.sweep_dir)
    sweep(experiment, space, seeds=known.seeds, config=fixed, **asked)
    return 0


def resume(path: Path) -> int:
    """Goes on with a sweep where it was stopped or killed."""
    experiment, config = folder.load(path, "sweep.json")
    facts = folder.read_json(path / "sweep.json")
    if facts["status"] == "finished":
        print(f"{path} is finished; `foldax show {path}` shows it")
        return 0
    asked = {name: facts.get(name) for name in ("seeds", "samples", "way", "members_at_once")}
    chosen = {
        name: kinds[facts[name]](
            **{k: v for k, v in facts[f"{name}_options"].items() if k in kinds[facts[name]]._fields}
        )
        for name, kinds in (("search", SEARCHES), ("launcher", LAUNCHERS))
        if facts.get(name) in kinds
    }
    sweep(experiment, facts["space"], config=config, sweep_dir=path, resume=True, **chosen, **asked)
    return 0


def _chosen(kinds: dict[str, Any], name: str | None, known: argparse.Namespace) -> Any:
    """Returns the search or launcher of that name, with the options that were given for it."""
    if name is None:
        return None
    given = {field: getattr(known, f"{name}_{field}", getattr(known, field, None)) for field in kinds[name]._fields}
    return kinds[name](**{field: value for field, value in given.items() if value is not None})


def _check_used(options: argparse.ArgumentParser, known: argparse.Namespace) -> None:
    """Raises a ConfigError for an option of a search or launcher that was not asked for."""
    for action in options._actions:
        owners = [
            f"--{role} {name}"
            for role, choices in (("search", SEARCHES), ("launcher", LAUNCHERS))
            for name, kind in choices.items()
            if action.dest.removeprefix(f"{name}_") in kind._fields
        ]
        used = {f"--search {known.search}", f"--launcher {known.launcher}"}
        if owners and getattr(known, action.dest) is not None and not used & set(owners):
            raise ConfigError(f"{action.option_strings[0]} goes with {' or '.join(owners)}")


def _options(experiment: Experiment, file: Path) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog=f"foldax sweep {file.name}",
        description="Trains with every combination of the values given for the config's fields, and several seeds.",
        epilog=EPILOG + "\n".join(_help(experiment.config)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    options.add_argument("--seeds", type=int, default=1, help="members of each config; seeds count up from --seed")
    options.add_argument("--samples", type=int, help="draw this many configs at random instead of the whole grid")
    options.add_argument("--search", choices=SEARCHES, help="decide on the way which configs are worth more steps")
    options.add_argument(
        "--halving-rate", dest="rate", metavar="RATE", type=int, help="halving: one config in RATE goes on (3)"
    )
    options.add_argument(
        "--halving-least", dest="least", metavar="STEPS", type=int, help="halving: steps before the first decision"
    )
    options.add_argument(
        "--pbt-every", dest="every", metavar="STEPS", type=int, help="pbt: steps between two decisions (a tenth of all)"
    )
    options.add_argument("--optuna-trials", dest="trials", metavar="N", type=int, help="optuna: configs in all (64)")
    options.add_argument(
        "--optuna-batch", dest="batch", metavar="N", type=int, help="optuna: configs between two answers (16)"
    )
    options.add_argument("--launcher", choices=LAUNCHERS, help="have workers fold the members: a Ray cluster, or Slurm")
    options.add_argument("--workers", type=int, metavar="N", help="most at a time (ray: what has room; slurm: 4)")
    options.add_argument("--worker-cpus", dest="cpus", metavar="N", type=int, help="processors of a worker (1)")
    options.add_argument("--worker-gpus", dest="gpus", metavar="N", type=float, help="GPUs of a worker (0)")
    options.add_argument(
        "--ray-address", metavar="HOST:PORT", help="a Ray cluster; default: RAY_ADDRESS, else a local one"
    )
    options.add_argument("--slurm-partition", metavar="NAME", help="where to submit to")
    options.add_argument("--slurm-minutes", metavar="N", type=int, help="time limit of a job (60)")
    options.add_argument("--slurm-cluster", choices=("slurm", "local"), help="local: processes on this machine")
    options.add_argument("--space", type=Path, help="JSON or Python file (`space = {...}`): values by field")
    options.add_argument("--plan", action="store_true", help="only show the programs and members that it would take")
    way = options.add_mutually_exclusive_group()
    way.add_argument("--exact", dest="way", action="store_const", const="exact", help="bits of lone runs (CPU default)")
    way.add_argument("--fast", dest="way", action="store_const", const="fast", help="side by side in one program")
    options.add_argument("--members-at-once", type=int, help="most members at a time; default: what memory holds")
    options.add_argument("--sweep-dir", type=Path, help="the sweep folder; default: a new one under runs/")
    return options


def _help(cls: type, prefix: str = "") -> list[str]:
    lines = []
    for name, hint in field_types(cls).items():
        option = f"{prefix}{name}"
        if is_config(hint):
            lines += _help(hint, f"{option}.")
        elif option != "seed":
            lines.append(f"  --{option.replace('_', '-'):24} {type_name(hint)} ({kinds(cls)[name]})")
    return lines


def _space(
    experiment: Experiment, space: dict[str, Any], rest: Sequence[str], seeds: int
) -> tuple[Any, dict[str, Any]]:
    """Returns the base config, with what has a single value, and the space of the others."""
    config, given = experiment.config(), dict(space)
    name: str | None = None
    texts: dict[str, list[str]] = {}
    for argument in rest:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            texts[name] = [value] if value else []
        elif name is None:
            raise ConfigError(f"{argument!r} belongs to no option: write --field before its values")
        else:
            texts[name].append(argument)
    for name, values in texts.items():
        given[name] = parse_values(type(config), name, values)
        if not values:
            raise ConfigError(f"--{name.replace('_', '-')}: no value is given")
    seed = given.pop("seed", None)
    if seed is not None:
        seed = seed if isinstance(seed, list) else [seed]
        if len(seed) != 1:
            raise ConfigError(f"--seed: give one, the first; --seeds {len(seed)} runs that many from it on")
        config = set_fields(config, {"seed": seed[0]})
    checked = check_space(config, given)
    single = {k: v[0] for k, v in checked.items() if isinstance(v, list) and len(v) == 1}
    return set_fields(config, single), {k: v for k, v in checked.items() if k not in single}


def _from_file(path: Path) -> dict[str, Any]:
    """Reads a space: a JSON object, or a Python file's `space`.

    Raises:
      ConfigError: there is no such file, or no space in it.
    """
    if not path.is_file():
        raise ConfigError(f"--space: there is no file {str(path)!r}")
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location("foldax_space", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ConfigError(f"--space: {path} failed: {type(error).__name__}: {error}") from error
        found = getattr(module, "space", None)
    else:
        try:
            found = folder.read_json(path)
        except FoldaxError as error:
            raise ConfigError(f"--space: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"--space: {path} must hold an object of values by field, not {str(found)[:80]}")
    return found


def print_plan(made: Plan) -> None:
    """Prints the groups: members, programs, memory, and the fields that make each program another one."""
    from rich.console import Console
    from rich.table import Table

    structures = [structural_values(group.members[0].config) for group in made.groups]
    differ = [name for name in structures[0] if len({str(one[name]) for one in structures}) > 1]
    table = Table(title=f"{len(made.configs)} members, {len(made.groups)} programs")
    for column in ("program", "members", "way", "at once", "MiB each, at most", *differ):
        table.add_column(column, justify="right" if column not in ("way", *differ) else "left")
    for index, (group, structure) in enumerate(zip(made.groups, structures)):
        size = f"{group.member_bytes / 2**20:,.2f}"
        cells = [str(structure[name]) for name in differ]
        table.add_row(str(index), str(len(group.members)), group.way, str(group.at_once), size, *cells)
    Console().print(table)
    steps = sum(config.steps for config in made.configs)
    print(f"{steps:,} member-steps; each program is traced once and compiled once for each device it runs on")
    if differ:
        print(f"a new program for each combination of: {', '.join(differ)} (structural fields)")
    elif len(made.groups) > 1:
        print("the programs differ in their data or driver fields")
    swept = {name: len({str(flat_values(c)[name]) for c in made.configs}) for name in made.fields}
    print("swept: " + (", ".join(f"{name} ({count} values)" for name, count in swept.items()) or "the seed alone"))
