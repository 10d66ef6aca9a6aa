"""`foldax reproduce`: the same run again, compared bit by bit."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from foldax.engine.loop import Hooks, fit
from foldax.errors import RunError
from foldax.experiment import Experiment, experiment_file
from foldax.runs import folder
from foldax.runs.progress import Progress
from foldax.runs.train import as_json
from foldax.runs.transfer import initial_parameters


def reproduce(path: Path, experiment: Experiment, config: Any) -> bool:
    """Runs a finished run again, says what differs, and returns whether nothing does.

    Final validation and test metrics and the bits of the final state are compared; training metrics
    too, unless `log_every` differs (they are means over other steps then).

    Raises:
      RunError: the run is not finished.
    """
    if not (path / "result.json").exists():
        raise RunError(f"{path} is not finished; `foldax resume {path}` goes on with it")
    before, made = folder.read_json(path / "result.json"), folder.read_json(path / "manifest.json")
    same_log = config.log_every == folder.read_json(path / "config.json")["log_every"]
    source = initial_parameters.begins(config, facts=made.get("init_from"))
    return run_again(path.name, before, made, experiment, config, same_log, source)


def run_again(
    name: str,
    before: dict[str, Any],
    made: dict[str, Any],
    experiment: Experiment,
    config: Any,
    same_log: bool,
    source: Any,
) -> bool:
    """Runs a config again, prints which results differ from those `before`, and returns whether none does."""
    for note in _changes(made, folder.manifest(experiment, config), experiment):
        print(f"note: {note}")
    with contextlib.closing(Progress(f"{name}, again", config.steps)) as progress:
        hooks = Hooks(progress=progress.step, initial=initial_parameters.starting(source))
        after = as_json(fit(experiment, config, hooks))
    same = True
    for key in ["steps", "tested", "best_step", "validation", "test", "state_sha256", *(["train"] if same_log else [])]:
        old, new = _flat(key, before.get(key)), _flat(key, after.get(key))
        for name in old | new:
            equal = repr(old.get(name)) == repr(new.get(name))
            same &= equal
            print(f"{name:32} {'identical' if equal else f'DIFFERS: {old.get(name)!r} then, {new.get(name)!r} now'}")
    print("reproduced: all bits are the same" if same else "NOT reproduced")
    return same


def _flat(key: str, value: Any) -> dict[str, Any]:
    return {f"{key}/{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}


def _changes(made: dict[str, Any], now: dict[str, Any], experiment: Experiment) -> list[str]:
    changes = [
        f"{name} was {version}, is {now['versions'][name]}"
        for name, version in made["versions"].items()
        if version != now["versions"][name]
    ]
    if made["backend"] != now["backend"]:
        changes.append(f"the run was made on {made['backend']}, this is {now['backend']}")
    file = experiment_file(experiment)
    if file and made["file_sha256"] != hashlib.sha256(file.read_bytes()).hexdigest():
        changes.append(f"{file.name} has changed since")
    return changes
