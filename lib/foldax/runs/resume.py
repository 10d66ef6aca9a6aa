"""Going on with a run: whether a folder holds one, whether it is finished, and which fields may change."""

import contextlib
import time
from pathlib import Path
from typing import Any, Literal

from foldax.configuration import config_hash, drop_unknown_fields, field_kinds, from_json, to_json
from foldax.errors import ConfigError, FoldaxError, RunError
from foldax.experiment import Experiment
from foldax.runs import folder

# What a run was begun with, whether its checkpoints hold a best state, and where they are.
FIXED_FIELDS = ("seed", "init_from", "keep", "checkpoints")
LENGTH_FIELDS = ("steps", "environment_steps")
PERIOD_FIELDS = ("log_every", "evaluate_every")  # None is the default, whatever a run was begun with
LATE_SECONDS = (0.1, 0.5, 2.0)  # waits for files that a mounted folder shows late

Status = Literal["new", "unfinished", "finished"]


def run_status(path: Path, experiment: Experiment, config: Any, allow_any: bool = False) -> Status:
    """Says what there is to do with a run folder for a config: to start a run, to go on with it, or nothing.

    Args:
      path: the folder, which may not exist.
      experiment: the experiment.
      config: the config with which to start or go on.
      allow_any: whether other fields than `steps` and driver fields may differ from those of the run.

    Returns:
      "finished" if the run has taken its last step, or has stopped early and nothing has changed.

    Raises:
      RunError: it is the folder of a sweep, or of a run of another experiment.
      ConfigError: a field differs that may not; names the fields.
    """
    _await_files(path)
    if not _holds_run(path):
        return "new"
    try:
        changed = _check_config(path, experiment, config, allow_any)
    except FoldaxError:
        # A start that failed, as with a wrong option, is no run yet.
        if allow_any or folder.has_progress(path):
            raise
        return "new"
    if not (path / "result.json").exists():
        return "unfinished"
    return "unfinished" if changed and folder.read_result(path)["steps"] < config.steps else "finished"


def latest_run_dir(experiment: Experiment, config: Any) -> Path:
    """Returns the newest folder under `runs/<experiment>/` with a run of this config, or else a new one."""
    new = folder.new_run_dir(experiment, config)
    for path in sorted((manifest.parent for manifest in new.parent.glob("*/manifest.json")), reverse=True):
        with contextlib.suppress(ConfigError, RunError):
            changed = _changed_fields(path, config)
            if not [name for name, (_, new) in changed.items() if name not in PERIOD_FIELDS or new is not None]:
                return path
    return new


def check_steps(path: Path, config: Any, step: int) -> None:
    """Checks that a run has not taken more steps than a config has.

    Args:
      path: the run folder.
      config: the config with which to go on.
      step: the step of the checkpoint at which the run goes on.

    Raises:
      ConfigError: it has.
    """
    if step > config.steps:
        raise ConfigError(f"steps: {path} is at step {step} already, and {config.steps} are asked for; give more")


def record_config(path: Path, config: Any, step: int) -> None:
    """Records that a run goes on with this config, before its first update; a result that it had goes to the manifest.

    Args:
      path: the run folder.
      config: the config from now on.
      step: the step of the checkpoint at which the run goes on.
    """
    manifest, saved = folder.read_json(path / "manifest.json"), folder.read_json(path / "config.json")
    session = manifest["sessions"][-1]
    session["step"] = step
    # 1. The configs of earlier steps; what was not saved before a kill has not happened.
    earlier = manifest.get("earlier_configs", [])
    before = next((one["config"] for one in earlier if one["until"] >= step), saved)
    earlier = [one for one in earlier if one["until"] < step]
    if step > 0 and changed_values(before, config):
        earlier.append({"until": step, "config": before})
    if earlier or "earlier_configs" in manifest:
        manifest["earlier_configs"] = earlier
    # 2. The result of fewer steps. A kill between two of these writes leaves a run that can go on with either config.
    result = path / "result.json"
    if result.exists():
        session["earlier_result"] = folder.read_json(result)
    changed = changed_values(saved, config)
    if changed:
        manifest["config_hash"] = config_hash(config)
        session["changes"] += [
            f"{name} was {old!r}, is {new!r} from step {step}" for name, (old, new) in changed.items()
        ]
    folder.write_json(path / "manifest.json", manifest)
    result.unlink(missing_ok=True)
    if changed:
        folder.write_json(path / "config.json", saved | {name: new for name, (_, new) in changed.items()})


def _await_files(path: Path) -> None:
    """Waits for a run's files in a folder that has some already."""
    for seconds in LATE_SECONDS:
        files = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if not files & {"checkpoints", "result.json", "metrics.jsonl"} or {"manifest.json", "config.json"} <= files:
            return
        time.sleep(seconds)


def _holds_run(path: Path) -> bool:
    if folder.is_sweep(path):
        raise RunError(f"{path} is the folder of a sweep; choose another --run-dir")
    with contextlib.suppress(RunError):
        folder.read_json(path / "manifest.json")
        folder.read_json(path / "config.json")
        return True
    return False


def _check_config(path: Path, experiment: Experiment, config: Any, allow_any: bool) -> bool:
    folder.check_experiment(path, experiment)
    changed, kinds = _changed_fields(path, config), field_kinds(type(config))
    refused = [name for name in changed if name in FIXED_FIELDS]
    if not allow_any:
        refused += [name for name in changed if kinds[name] != "driver" and name not in LENGTH_FIELDS]
    if refused:
        listed = ", ".join(f"{name} ({changed[name][0]!r} in the folder, now {changed[name][1]!r})" for name in refused)
        remedy = "choose another folder (--run-dir, run_dir=...)"
        if not set(refused) & set(FIXED_FIELDS):
            remedy += f", or change it from here on (`foldax resume {path} [--field VALUE]`, resume=True)"
        raise ConfigError(f"{path} was started with another config: {listed}; {remedy}")
    return bool(changed)


def _changed_fields(path: Path, config: Any) -> dict[str, tuple[Any, Any]]:
    return changed_values(folder.read_json(path / "config.json"), config)


def changed_values(saved: dict[str, Any], config: Any) -> dict[str, tuple[Any, Any]]:
    """Old and new values by field; one that the class did not have when a run started counts as its default.

    >>> from foldax import Training
    >>> changed_values({"steps": 10}, Training(steps=20))
    {'steps': (10, 20)}
    """
    known, _ = drop_unknown_fields(type(config), saved)
    old, new = to_json(from_json(type(config), known)), to_json(config)
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}
