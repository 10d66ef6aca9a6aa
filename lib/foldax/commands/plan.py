"""`foldax plan FILE --on v5e:4x4`: what a run needs on chips that are not here."""

import argparse
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from foldax.commands.file_help import asks_for_help, print_file_help, usage
from foldax.commands.training import parse_config
from foldax.errors import ConfigError, ExperimentError, FoldaxError, RunError
from foldax.experiment import Experiment, experiment_file, load_experiment
from foldax.mesh import BATCH_AXES, mesh_sizes
from foldax.options import split_options
from foldax.runs.terminal import echo, print_table

GIB = 2**30
SECONDS_TO_COMPILE = 3600


def add_plan_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command to the command line.

    Args:
      add: `add(name, function, help, *positionals)` adds a command.
    """
    help = "compile an experiment for TPUs or GPUs that are not here: memory, FLOPs, a bound of the step's time"

    def run(command: argparse.Namespace) -> None:
        # Else a compiler's plugin would look for its chips here, and complain that there are none.
        jax.config.update("jax_platforms", "cpu")
        run_plan(load_experiment(command.file), command.options)

    plan = add("plan", run, help, "FILE", takes_options=True)
    _add_options(plan)
    plan.epilog = "Every field of the file's config is an option. `foldax sweep --plan` shows the programs of a sweep."


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", metavar="CHIPS", help="such as v5e, v5e:4x4, v5p:4x4x4, h100, h100:8")
    parser.add_argument("--largest-batch", action="store_true", help="find the largest batch size that fits")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")


def run_plan(experiment: Experiment, options: list[str]) -> None:
    """Plans a run, each compilation in a process of its own, and prints a table.

    Raises:
      ConfigError: an option is not allowed, or the compiler is not installed.
      ExperimentError: the experiment's own code failed.
      RunError: the compiler failed.
    """
    from foldax.engine.topology import check_compiler, num_devices, parse_target

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_options(parser)
    known, fields = split_options(parser, experiment.config, options)
    if asks_for_help(fields):
        print_file_help(experiment, "plan")
        return
    config = parse_config(experiment, fields)
    if known.on is None:
        raise ConfigError(f"--on: say on which chips, such as v5e:4x4 or h100:8\n{usage('plan')}")
    target = parse_target(known.on)
    check_compiler(target)
    sizes = mesh_sizes(config.mesh, num_devices(target), target.name)
    if os.environ.get("FOLDAX_PLANS"):  # the process that `_plan_in_process` has started
        from foldax.engine.plan import plan_run

        made = plan_run(experiment, config, target)
        collectives = {kind: one._asdict() for kind, one in made.collectives.items()}
        bounds = {"total": made.total, "step_seconds": made.step_seconds, "mfu": made.mfu}
        echo(json.dumps(made._asdict() | {"on": target.name, "collectives": collectives} | bounds))
        return
    file = experiment_file(experiment)
    if file is None:
        raise ConfigError("foldax plan needs an experiment in a file")
    plan_in_process = functools.partial(_plan_in_process, file, target.name, math.prod(sizes.values()))
    plan = plan_in_process(fields)
    if known.largest_batch:
        if not hasattr(config, "batch_size"):
            raise ConfigError("--largest-batch: this experiment's config has no field batch_size")
        shards = math.prod(sizes[axis] for axis in BATCH_AXES)
        plan = largest_batch(lambda size: plan_in_process([*fields, "--batch-size", str(size)]), plan, shards)
    if known.json:
        echo(json.dumps(plan))
    else:
        print_table(_table(plan, target.chip))
        if plan["devices"] < plan["available"]:
            echo(f"the mesh takes {plan['devices']} of {plan['available']} devices; --mesh data=-1 takes all")


def largest_batch(make_plan: Callable[[int], dict[str, Any]], plan: dict[str, Any], shards: int) -> dict[str, Any]:
    """Finds the largest batch size that fits, to an eighth of it, and returns its plan.

    Args:
      make_plan: plans a batch size.
      plan: of the config's own batch size.
      shards: number of parts into which every batch is divided.

    Raises:
      ConfigError: not even one example per part fits.

    >>> fits = lambda size: {"batch_size": size, "fits": size <= 100}
    >>> largest_batch(fits, fits(16), 4)["batch_size"]
    96
    """
    below, above = (plan, None) if plan["fits"] else (None, plan)
    # 1. Doubled, or halved, until one fits and one does not.
    while above is None and below is not None:
        try:
            tried = make_plan(2 * below["batch_size"])
        except FoldaxError:  # more examples than there are
            return below
        below, above = (tried, None) if tried["fits"] else (below, tried)
    while below is None and above is not None:
        size = above["batch_size"] // 2 // shards * shards
        if size < shards:
            raise ConfigError(f"--largest-batch: not even a batch size of {above['batch_size']} fits")
        tried = make_plan(size)
        below, above = (tried, above) if tried["fits"] else (None, tried)
    # 2. Bisected.
    assert below is not None
    assert above is not None
    while above["batch_size"] - below["batch_size"] > max(shards, below["batch_size"] // 8):
        tried = make_plan((below["batch_size"] + above["batch_size"]) // 2 // shards * shards)
        below, above = (tried, above) if tried["fits"] else (below, tried)
    return below


def _plan_in_process(file: Path, on: str, num_cpu_devices: int, fields: Sequence[str]) -> dict[str, Any]:
    """Plans in a process of its own, which the compiler may end."""
    from foldax.engine.topology import ENVIRONMENT

    command = [sys.executable, "-m", "foldax.cli", "plan", str(file), "--on", on, "--json", *fields]
    environment = os.environ | ENVIRONMENT | {"FOLDAX_PLANS": "1", "JAX_NUM_CPU_DEVICES": str(num_cpu_devices)}
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE, check=False
    )
    lines = process.stdout.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    errors = [line for line in process.stderr.strip().splitlines() if line.strip()]
    # Its own message begins so; plugins of JAX print others before it.
    own = itertools.dropwhile(lambda line: not line.startswith("foldax: "), errors)
    reason = "\n".join(own).removeprefix("foldax: ") or "\n".join(errors[-3:])
    reason = reason if process.returncode > 0 else f"the compiler ended it ({process.returncode})"
    error_type = {1: ExperimentError, 2: ConfigError}.get(process.returncode, RunError)
    raise error_type(f"{on} cannot be planned: {reason}")


def _table(plan: dict[str, Any], chip: Any) -> Any:
    from foldax.runs import tables
    from foldax.runs.performance import short_number

    def gib(size: float) -> str:
        return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"

    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    rows = [
        ("parameters", f"{plan['parameters']:,}"),
        ("batch size", "none" if plan["batch_size"] is None else f"{plan['batch_size']:,}"),
        ("state", gib(plan["state"])),
        ("training, peak", gib(plan["peak"])),
        ("best state", gib(plan["best"])),
        ("snapshot for a checkpoint", gib(plan["snapshot"])),
        ("memory of a chip", f"{gib(plan['total'])} of {gib(chip.memory)}: {verdict}"),
        ("FLOPs of a step", short_number(plan["flops"])),
        ("state read and written", gib(plan["moved"])),
    ]
    for kind, one in plan["collectives"].items():
        rows.append((kind, f"{one['number']:,} of {gib(one['bytes'])}"))
    parts = {name: plan[f"{name}_seconds"] * 1e3 for name in ("compute", "memory", "link")}
    texts = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    rows.append(("a step takes at least", f"{plan['step_seconds'] * 1e3:.3g} ms ({texts})"))
    rows.append(("MFU at most", f"{plan['mfu']:.0%}"))
    devices = plan["devices"]
    title = f"{plan['on']}: {devices:,} of {plan['available']:,} devices, bytes of one device"
    return tables.text_table(("", "needs"), rows, left=("", "needs"), title=title)
