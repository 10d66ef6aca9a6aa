"""`foldax reproduce SWEEP --member K`: trains a member of a sweep as a single run and compares all bits."""

from pathlib import Path

from foldax.errors import ConfigError, RunError
from foldax.runs import folder
from foldax.runs.log import read_json_lines
from foldax.runs.reproduce import run_and_compare
from foldax.runs.transfer import initial_parameters
from foldax.sweeps.space import enumerate_overrides, member_configs, parse_space


def reproduce_member(path: Path, number: int | None) -> bool:
    """Trains a member of a sweep as a single run and prints what differs.

    Args:
      path: the sweep folder.
      number: the member's number.

    Returns:
      Whether all bits are the same.

    Raises:
      ConfigError: there is no such member.
      RunError: `path` is no sweep folder, or the member has not ended or is not finite.
    """
    experiment, config = folder.load(path, "sweep.json")
    metadata = folder.read_json(path / "sweep.json")
    space = parse_space(config, metadata["space"])
    all_overrides = enumerate_overrides(space, metadata["samples"], config.seed)
    configs = member_configs(config, all_overrides, metadata["seeds"])
    if number is None or not 0 <= number < len(configs):
        raise ConfigError(f"--member: {number} is no member of {path}; it has the members 0 to {len(configs) - 1}")
    results = {line["number"]: line for line in read_json_lines(path / "members.jsonl")}
    if number not in results:
        raise RunError(f"member {number} of {path} is not done; `foldax resume {path}` goes on with the sweep")
    before = results[number]
    if before["status"] == "not finite":
        raise RunError(f"member {number} of {path} became not finite at step {before['steps']}: nothing to compare")
    if any(group["execution"] == "fast" for group in metadata.get("groups", [])):
        print("note: members of a fast sweep agree with single runs to rounding at first, then drift")
    before |= {"tested": "last" if before["best_step"] is None else "best", **before["metrics"]}
    member_config = configs[number]
    recorded_by_path = {entry["path"]: entry for entry in metadata.get("init_from", [])}
    recorded = recorded_by_path.get(str(Path(member_config.init_from or "").resolve()))
    source = initial_parameters.initial_source(member_config, recorded=recorded)
    name = f"{path.name}, member {number}"
    return run_and_compare(name, before, metadata, experiment, member_config, compare_train=True, source=source)
