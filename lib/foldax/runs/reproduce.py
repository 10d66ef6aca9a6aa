"""`foldax reproduce`: the same run again, compared bit by bit."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from foldax.errors import ConfigError, RunError
from foldax.experiment import Experiment, experiment_file
from foldax.runs import folder, starts
from foldax.runs.members import read_lines
from foldax.runs.progress import Progress
from foldax.runs.train import as_json
from foldax.train.driver import Hooks, fit
from foldax.train.space import check_space, member_configs, points


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
    source = starts.begins(config, facts=made.get("init_from"))
    return _again(path.name, before, made, experiment, config, same_log, source)


def reproduce_member(path: Path, number: int | None) -> bool:
    """Runs a member of a sweep alone, says what differs from the sweep, and returns whether nothing does.

    Raises:
      ConfigError: there is no such member.
      RunError: it is no sweep, or the member is not done.
    """
    experiment, config = folder.load(path, "sweep.json")
    facts = folder.read_json(path / "sweep.json")
    space = check_space(config, facts["space"])
    configs = member_configs(config, points(space, facts["samples"], config.seed), facts["seeds"])
    if number is None or not 0 <= number < len(configs):
        raise ConfigError(f"--member: {number} is no member of {path}; it has the members 0 to {len(configs) - 1}")
    done = {line["number"]: line for line in read_lines(path / "members.jsonl")}
    if number not in done:
        raise RunError(f"member {number} of {path} is not done; `foldax resume {path}` goes on with the sweep")
    before = done[number]
    if before["status"] == "not finite":
        raise RunError(f"member {number} of {path} became not finite at step {before['steps']}: nothing to compare")
    if any(group["way"] == "fast" for group in facts.get("groups", [])):
        print("note: members of a fast sweep agree with lone runs to rounding at first, then drift")
    before |= {"tested": "last" if before["best_step"] is None else "best", **before["metrics"]}
    known = {one["path"]: one for one in facts.get("init_from", [])}
    source = starts.begins(configs[number], facts=known.get(str(Path(configs[number].init_from or "").resolve())))
    name = f"{path.name}, member {number}"
    return _again(name, before, facts, experiment, configs[number], same_log=True, source=source)


def _again(
    name: str,
    before: dict[str, Any],
    made: dict[str, Any],
    experiment: Experiment,
    config: Any,
    same_log: bool,
    source: Any,
) -> bool:
    for note in _changes(made, folder.manifest(experiment, config), experiment):
        print(f"note: {note}")
    with contextlib.closing(Progress(f"{name}, again", config.steps)) as progress:
        hooks = Hooks(progress=progress.step, initial=starts.starting(source))
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
