"""`foldax.load_run`: a run folder read back as what `foldax.train` returned."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax.configuration import from_json
from foldax.engine import compiled, loop
from foldax.engine.checkpoint import flat, from_host
from foldax.engine.result import Result
from foldax.errors import RunError
from foldax.experiment import Experiment
from foldax.runs import folder
from foldax.runs.log import read_log
from foldax.runs.train import warn
from foldax.runs.transfer import parameters
from foldax.runs.transfer.matching import listed


def load_run(path: str | Path, experiment: Experiment | None = None) -> Result:
    """Returns what a run folder holds, as `foldax.train` returned it, but `values`; loads the run's data too.

    Of a run that is not finished, the state is the best so far, or the last, of its newest checkpoint.

    Args:
      path: the run folder.
      experiment: what was run; by default it is loaded from the file that the run was made from.

    Raises:
      RunError: it is no run folder, has no checkpoint, is damaged, or was made in a notebook and `experiment` is None.
      ExperimentError: the experiment file is gone or broken.
      DataError: the data cannot be had.
    """
    path = Path(path)
    parameters.check_run_folder(path)
    if experiment is None and folder.read_json(path / "manifest.json")["file"] is None:
        raise RunError(
            f"{path} was made in a notebook or prompt, so there is no file to load; "
            f"there: foldax.load_run({str(path)!r}, experiment), which foldax.export takes"
        )
    if experiment is None:
        experiment, config = folder.load(path)
    else:
        config = from_json(experiment.config, folder.read_json(path / "config.json"))
    found = parameters.read_run(path)
    dataset = None
    if experiment.dataset is not None:
        with compiled.own_code(experiment):
            dataset = experiment.dataset(config)
    program, arguments = loop.start_arguments(experiment, dataclasses.replace(config, devices=1), dataset)
    with compiled.explained(program, *arguments):
        like = jax.eval_shape(functools.partial(compiled.start, program), *arguments).state
    info = program.info
    if info is not None and found.manifest["data_fingerprint"] not in (None, info.fingerprint):
        warn(f"the data of {path} is not what it was trained on: its fingerprint differs")
    states = {name: _state(found.arrays, name, like, path) for name in {"last", found.state}}
    result = found.result or {}
    return Result(
        experiment=experiment,
        config=config,
        info=info,
        dataset=dataset,
        state=states[found.state],
        final=states["last"],
        step=int(found.meta["step"]),
        best_step=found.step if found.state == "best" else None,
        status=result.get("status", found.manifest["status"]),
        metrics={split: result[split] for split in ("train", "validation", "test") if split in result},
        values={},
        history=read_log(path),
        seconds=result.get("seconds", 0.0),
        compile_seconds=result.get("compile_seconds", 0.0),
        steps_per_second=result.get("steps_per_second", 0.0),
        run_dir=path,
        figures={name: path / "figures" / file for name, file in result.get("figures", {}).items()},
    )


def _state(arrays: parameters.Arrays, which: str, like: Any, path: Path) -> Any:
    """Returns the best or the last state in the structure of `like`."""
    found, wanted = parameters.of_state(arrays, which), flat(like)
    names = {name.replace("/", "."): name for name in wanted}  # a key may have a "/" of its own
    shown = ((name.replace("/", "."), array) for name, array in found.items())
    some = {names.get(name, name): array for name, array in shown}
    some |= {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items() if not leaf.size}
    odd = [
        name
        for name in dict.fromkeys([*wanted, *some])
        if name not in some or name not in wanted or some[name].shape != wanted[name].shape
    ]
    if odd:
        raise RunError(f"{path} holds another state than its experiment file makes now; these differ: {listed(odd)}")
    return from_host(some, like)
