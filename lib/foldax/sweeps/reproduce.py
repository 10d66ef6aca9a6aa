"""`foldax reproduce SWEEP --member K`: a member of a sweep run alone, compared bit by bit."""

from __future__ import annotations

from pathlib import Path

from foldax.errors import ConfigError, RunError
from foldax.runs import folder
from foldax.runs.reproduce import run_again
from foldax.runs.transfer import initial_parameters
from foldax.sweeps.records import read_lines
from foldax.sweeps.space import check_space, member_configs, points


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
    source = initial_parameters.begins(
        configs[number], facts=known.get(str(Path(configs[number].init_from or "").resolve()))
    )
    name = f"{path.name}, member {number}"
    return run_again(name, before, facts, experiment, configs[number], same_log=True, source=source)
