"""`foldax.load_run`: reads a run folder back as the `Result` of `foldax.train`."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax.data.protocol import Dataset
from foldax.engine import compile_cache, compiled, setup
from foldax.engine.current_program import inputs_of
from foldax.engine.forks import check_process
from foldax.engine.result import Result
from foldax.engine.state_leaves import array_spec, leaves_by_path, tree_from_arrays
from foldax.errors import RunError
from foldax.experiment import Experiment
from foldax.learner import State
from foldax.mesh import ONE_DEVICE
from foldax.runs import folder, provenance
from foldax.runs.log import read_log
from foldax.runs.tables import join_first
from foldax.runs.transfer import parameters


def load_run(
    path: str | Path,
    experiment: Experiment | None = None,
    allow_other_data: bool = False,
    dataset: Dataset | None = None,
    step: int | None = None,
) -> Result:
    """Loads a run as the `Result` that `foldax.train` returned, with its dataset but without `values`.

    Of an unfinished run it loads the best state so far, or the last one, of the newest checkpoint.

    Args:
      path: the run folder.
      experiment: the run's experiment; by default it is loaded from the experiment file.
      allow_other_data: loads a run although its data have changed, and with them, perhaps, how inputs are standardised.
      dataset: the dataset, if it is loaded already.
      step: loads the state of the checkpoint of this step, with the log up to it and without metrics.

    Returns:
      The result.

    Raises:
      RunError: it is no run folder, has no checkpoint or none of this step, is damaged, or was made in a notebook and
        `experiment` is None.
      ExperimentError: the experiment file is missing or broken.
      DataError: the dataset is not available, or not the one that the run was made with.
    """
    check_process()
    compile_cache.enable()
    path = Path(path)
    parameters.check_run_folder(path)
    # 1. Experiment, config and arrays from the folder.
    if experiment is None:
        call = f"foldax.load_run({str(path)!r}, experiment), which foldax.export takes"
        experiment, config = folder.load(path, call=call)
    else:
        config = folder.read_config(path, experiment.config, folder.read_json(path / "config.json"))
    saved = parameters.read_run(path, step=step)
    # 2. The structure of the state, from the program that the experiment file makes now.
    with inputs_of(experiment, config):
        dataset = setup.load_dataset(experiment, config) if dataset is None else dataset
        program, arguments = setup.initial_fold_arguments(
            experiment, dataclasses.replace(config, mesh=ONE_DEVICE), dataset
        )
        with compiled.user_errors(program, *arguments):
            last = jax.eval_shape(functools.partial(compiled.initial_fold, program), *arguments).state
            best = jax.eval_shape(functools.partial(compiled.inference_state, program), arguments[0], last)
    info = program.info
    provenance.warn_of_changes(path, saved.manifest, experiment)
    provenance.check_data(path, saved.manifest, getattr(info, "fingerprint", None), allow_other_data)
    # 3. The states, checked against that structure.
    like = {"last": last, "best": best}
    states = {name: _restore_state(saved.arrays, name, like[name], path) for name in {"last", saved.state}}
    result = saved.result or {}
    return Result(
        experiment=experiment,
        config=config,
        info=info,
        dataset=dataset,
        state=states[saved.state],
        final_state=states["last"],
        step=int(saved.meta["step"]),
        best_step=saved.step if saved.state == "best" else None,
        status=result.get("status", saved.manifest["status"]),
        metrics=folder.result_metrics(result) if step is None else {},
        values={},
        history=[line for line in read_log(path) if step is None or line["step"] <= step],
        seconds=result.get("seconds", 0.0),
        compile_seconds=result.get("compile_seconds", 0.0),
        steps_per_second=result.get("steps_per_second", 0.0),
        performance=result.get("performance", {}),
        run_dir=path.absolute(),
        figures={name: path.absolute() / "figures" / file for name, file in result.get("figures", {}).items()},
    )


def _restore_state(arrays: parameters.Arrays, which: str, like: Any, path: Path) -> State:
    """Returns the "best" or the "last" state with the structure of `like`."""
    specs = {name: array_spec(leaf) for name, leaf in leaves_by_path(like).items()}
    names = {name.replace("/", "."): name for name in specs}  # keys of a state may contain "/"
    dotted = {name.replace("/", "."): array for name, array in parameters.state_arrays(arrays, which).items()}
    saved = {names.get(name, name): array for name, array in dotted.items()}
    # Empty arrays are not saved.
    saved |= {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in specs.items() if not leaf.size}
    odd = [
        name
        for name in dict.fromkeys([*specs, *saved])
        if name not in saved or name not in specs or saved[name].shape != specs[name].shape
    ]
    if odd:
        problem = "does not fit its experiment file, which has changed"
        raise RunError(f"{path} {problem}; these arrays differ: {join_first(odd)}")
    return tree_from_arrays(saved, like)
