"""`foldax.pretrained`: parameters of another run as an input of an experiment, recorded by the runs that use it."""

import functools
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from foldax.engine.current_program import current_program, program_key
from foldax.errors import RunError
from foldax.experiment import Experiment
from foldax.runs import folder
from foldax.runs.terminal import warn
from foldax.runs.transfer import parameters
from foldax.runs.transfer.addresses import parse_address

Inputs = dict[str, dict[str, Any]]  # provenance by path

# What experiments have read in this process. By program, because one that is compiled already reads nothing again; by
# None outside of a run, such as in a file's body or a notebook's cell.
_inputs: defaultdict[Hashable, Inputs] = defaultdict(dict)


def pretrained(run: str | Path) -> dict[str, Any]:
    """Reads the parameters and statistics of a run as Flax's variables, such as those of a frozen teacher.

    The manifest of every run or sweep that uses them names the run and the hash of its parameters. `foldax resume` and
    `foldax reproduce` refuse to go on if they have changed. A file's body, `dataset` and `learner` may call it.

    Args:
      run: a run folder, an export folder or a .safetensors file; "RUN:encoder" takes what is below `encoder` alone.

    Returns:
      `{"params": ..., "batch_stats": ...}`, nested dicts of arrays for `model.apply(variables, inputs)`: those of the
      state that was tested.

    Raises:
      RunError: there is no such run or prefix, or it cannot be read.

    >>> import tempfile, foldax, numpy
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     foldax.transfer.save(f"{directory}/x.safetensors", {"encoder": {"w": numpy.ones(2, numpy.float32)}})
    ...     pretrained(f"{directory}/x.safetensors:encoder")
    {'params': {'w': Array([1., 1.], dtype=float32)}}
    """
    source, variables = _read(str(run), _newest_change(run))
    _inputs[current_program()][source.provenance["path"]] = source.provenance
    return variables


def add_inputs(inputs: Iterable[dict[str, Any]]) -> None:
    """Ascribes what another process has read, such as a worker of a sweep, to the current program.

    Args:
      inputs: as `read_inputs` returned them there.
    """
    _inputs[current_program()].update({one["path"]: one for one in inputs})


def read_inputs(experiment: Experiment, configs: Iterable[Any]) -> list[dict[str, Any]]:
    """Lists the provenance of what was read in this process outside of runs, and by the programs of some configs.

    Returns:
      The provenance, sorted by path.
    """
    inputs = dict(_inputs[None])
    for key in {program_key(experiment, config) for config in configs}:
        inputs |= _inputs.get(key, {})
    return [inputs[path] for path in sorted(inputs)]


def record_inputs(path: Path, experiment: Experiment, configs: Iterable[Any], name: str = "manifest.json") -> None:
    """Names in its folder what a run or sweep has read; what it began with stays recorded.

    Args:
      path: its folder.
      experiment: its experiment.
      configs: one of each of its programs.
      name: "manifest.json", or "sweep.json" for a sweep.

    Raises:
      RunError: the file cannot be written.
    """
    manifest = folder.read_json(path / name)
    recorded = {one["path"]: one for one in _newest_inputs(manifest)}
    # What is read late, such as by an update alone, is an input all the time.
    inputs = recorded | {one["path"]: one for one in read_inputs(experiment, configs)}
    if inputs == recorded:
        return
    session = manifest["sessions"][-1] if manifest["sessions"] and "inputs" in manifest else manifest
    session["inputs"] = [inputs[path] for path in sorted(inputs)]
    folder.write_json(path / name, manifest)


def check_inputs(manifest: dict[str, Any], allow_other: bool = False) -> None:
    """Checks that the inputs of a run or sweep hold the same arrays as in its newest session.

    Args:
      manifest: content of its `manifest.json` or `sweep.json`.
      allow_other: whether other ones are only warned about.

    Raises:
      RunError: one has changed, or is missing.
    """
    for one in _newest_inputs(manifest):
        source = parameters.read(one["path"])
        if source.provenance["sha256"] != one["sha256"]:
            problem = f"the parameters from {source}, an input of the run, have changed since it read them"
            if not allow_other:
                raise RunError(f"{problem}; put the old ones back, or allow others (--allow-other-data)")
            warn(problem)


def _newest_inputs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs of the last session that has recorded some, or of the first."""
    sessions = [manifest, *manifest.get("sessions", [])]
    return next((one["inputs"] for one in reversed(sessions) if "inputs" in one), [])


@functools.lru_cache(maxsize=8)
def _read(run: str, change: int) -> tuple[parameters.Source, dict[str, Any]]:
    """Reads a source, and nests its arrays; learners are built while programs are traced, several times."""
    source = parameters.without_prefix(parameters.read(run))
    variables: dict[str, Any] = {}
    with jax.ensure_compile_time_eval():
        for name, array in source.arrays.items():
            *outer, last = name.split("/")
            functools.reduce(lambda tree, part: tree.setdefault(part, {}), outer, variables)[last] = jnp.asarray(array)
    return source, variables


def _newest_change(run: str | Path) -> int:
    path = parse_address(run).path
    files = [path, path / "manifest.json", path / "params.safetensors"]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
