"""`foldax reproduce`: trains a finished run again and compares all bits."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from foldax.engine.loop import Hooks, fit
from foldax.errors import RunError
from foldax.experiment import Experiment, experiment_file
from foldax.runs import folder
from foldax.runs.progress import Progress
from foldax.runs.train import result_json
from foldax.runs.transfer import initial_parameters
from foldax.runs.transfer.initial_parameters import ReadSource

Json = dict[str, Any]


def reproduce(path: Path, experiment: Experiment, config: Any) -> bool:
    """Trains a finished run again and prints which results differ.

    It compares final validation and test metrics and the bits of the final state; training metrics too, unless
    `log_every` differs: they are then means over other steps.

    Args:
      path: the run folder.
      experiment: the run's experiment.
      config: the run's config; `log_every` and `checkpoint_every` may differ.

    Returns:
      Whether all results are the same.

    Raises:
      RunError: the run is not finished.
    """
    if not (path / "result.json").exists():
        raise RunError(f"{path} is not finished; `foldax resume {path}` goes on with it")
    manifest = folder.read_json(path / "manifest.json")
    # Training metrics are means between log lines, so other lines have other means.
    same_log_steps = config.log_every == folder.read_json(path / "config.json")["log_every"]
    source = initial_parameters.initial_source(config, recorded=manifest.get("init_from"))
    before = folder.read_json(path / "result.json")
    return run_and_compare(path.name, before, manifest, experiment, config, same_log_steps, source)


def run_and_compare(
    name: str,
    before: Json,
    manifest: Json,
    experiment: Experiment,
    config: Any,
    compare_train: bool,
    source: ReadSource | None,
) -> bool:
    """Trains with a config and prints which results differ from those of an earlier run.

    Args:
      name: name of the run, for the progress bar.
      before: the earlier results, as in `result.json`.
      manifest: the earlier manifest, to note what has changed since.
      experiment: the experiment.
      config: its config.
      compare_train: whether to compare training metrics.
      source: reads the initial parameters; None: the run initialises its own.

    Returns:
      Whether all results are the same.
    """
    # 1. Changes that may explain a difference
    for note in _changes(manifest, folder.manifest(experiment, config), experiment):
        print(f"note: {note}")
    # 2. The same run, without a folder
    with contextlib.closing(Progress(f"{name}, again", config.steps)) as progress:
        hooks = Hooks(progress=progress.step, replace_initial_state=initial_parameters.initial_state_hook(source))
        after = result_json(fit(experiment, config, hooks))
    # 3. Comparison
    all_same = True
    train = ["train"] if compare_train else []
    # The hash of the final state compares every parameter; metrics locate a difference.
    for key in ["steps", "tested", "best_step", "validation", "test", "state_sha256", *train]:
        old, new = _flatten(key, before.get(key)), _flatten(key, after.get(key))
        for metric in old | new:
            # As texts: equal bits of a float have equal `repr`, also NaN.
            is_same = repr(old.get(metric)) == repr(new.get(metric))
            all_same &= is_same
            difference = f"DIFFERS: {old.get(metric)!r} then, {new.get(metric)!r} now"
            print(f"{metric:32} {'identical' if is_same else difference}")
    print("reproduced: all bits are the same" if all_same else "NOT reproduced")
    return all_same


def _flatten(key: str, value: Any) -> Json:
    return {f"{key}/{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}


def _changes(before: Json, now: Json, experiment: Experiment) -> list[str]:
    old, new = before["versions"], now["versions"]
    changes = [f"{name} was {old[name]}, is {new[name]}" for name in old if old[name] != new[name]]
    if before["backend"] != now["backend"]:
        changes.append(f"the run was made on {before['backend']}, this is {now['backend']}")
    file = experiment_file(experiment)
    if file and before["file_sha256"] != hashlib.sha256(file.read_bytes()).hexdigest():
        changes.append(f"{file.name} has changed since")
    return changes
