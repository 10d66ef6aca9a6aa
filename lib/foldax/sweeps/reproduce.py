"""`foldax reproduce SWEEP --member K`: trains a member of a sweep as a single run and compares all bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foldax import processes
from foldax.configuration import from_json
from foldax.engine.state import NEVER
from foldax.errors import ConfigError, RunError
from foldax.options import Config
from foldax.runs import folder
from foldax.runs.log import read_json_lines
from foldax.runs.reproduce import run_and_compare
from foldax.runs.terminal import echo
from foldax.runs.transfer import initial_parameters
from foldax.sweeps.populations import STOPPED
from foldax.sweeps.space import enumerate_overrides, flat_values, member_configs, parse_space


@processes.alone()
def reproduce_member(path: Path, number: int | None) -> bool:
    """Trains a member of a sweep as a single run and prints what differs.

    Args:
      path: the sweep folder.
      number: the member's number.

    Returns:
      Whether all bits are the same.

    Raises:
      ConfigError: there is no such member.
      RunError: `path` is no sweep folder, the member has not ended or is not finite, or it has copied another one.
    """
    experiment, config = folder.load(path, "sweep.json")
    metadata = folder.read_json(path / "sweep.json")
    planned = _planned_configs(config, metadata)
    if number is None or not 0 <= number < len(planned):
        problem = "give its number" if number is None else f"there is no member {number}"
        raise ConfigError(f"--member: {problem}; {path} has the members 0 to {len(planned) - 1}")
    results = {line["number"]: line for line in read_json_lines(path / "members.jsonl")}
    if number not in results:
        raise RunError(f"member {number} of {path} is not done; `foldax resume {path}` goes on with the sweep")
    before = results[number]
    if before["status"] == "not finite":
        raise RunError(f"member {number} of {path} became not finite at step {before['steps']}: nothing to compare")
    if any(group["execution"] == "fast" for group in metadata.get("groups", [])):
        echo("note: members of a fast sweep agree with single runs to rounding at first, then drift")
    member_config = planned[number]
    if before.get("config"):
        member_config = from_json(experiment.config, json.loads(before["config"]))
    if _has_copied(before["history"], planned[number] or member_config):
        problem = f"member {number} of {path} copied other members while it trained, so no single run repeats it"
        raise RunError(f"{problem}; curves.parquet has its settings over time (split config)")
    before["history"] = [line for line in before["history"] if line["split"] != "config"]
    before |= {"tested": "last" if before["best_step"] is None else "best", **before["metrics"]}
    until = before["steps"] if before["status"] == STOPPED else NEVER
    recorded_by_path = {entry["path"]: entry for entry in metadata.get("init_from", [])}
    recorded = recorded_by_path.get(str(Path(member_config.init_from or "").resolve()))
    source = initial_parameters.initial_source(member_config, recorded=recorded)
    return run_and_compare(path, before, metadata, experiment, member_config, True, source, until)


def _planned_configs(config: Config, metadata: dict[str, Any]) -> list[Config]:
    """The configs that members start with; None where Optuna suggests them."""
    if metadata["search"] == "optuna":
        return [None] * metadata["search_options"]["num_trials"] * metadata["seeds"]
    space = parse_space(config, metadata["space"])
    return member_configs(config, enumerate_overrides(space, metadata["samples"], config.seed), metadata["seeds"])


def _has_copied(history: list[dict[str, Any]], config: Config) -> bool:
    """Whether population-based training has replaced a member, which never keeps the settings that it began with."""
    first = flat_values(config)
    lines = [line for line in history if line["split"] == "config"]
    return any(np.float32(line[name]) != np.float32(first[name]) for line in lines for name in line if name in first)
