"""Parameters by name, wherever they are kept: in a learner's state, a run folder, or a safetensors file.

Names are those of Flax's variables, joined by "/": "params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax import parameter_paths
from foldax.engine import checkpoint
from foldax.errors import ConfigError, RunError
from foldax.runs import folder, tables

FIELDS = ("params", "ema_params", "model_state", "batch_stats")  # of a state: what is learned, and what goes with it
OTHERS = ("optimizer_state", "opt_state")  # what is below these is no parameter, whatever its name
SHOWN = 10  # paths that a message or a table names of each kind

Arrays = dict[str, np.ndarray]
Rename = Mapping[str, str] | Iterable[tuple[str, str]]


class Source(NamedTuple):
    """Parameters to start from.

    Attributes:
      arrays: by name.
      facts: where they are from, as a manifest records it: path, experiment, state ("best" or "last"), step, sha256.
    """

    arrays: Arrays
    facts: dict[str, Any]

    def __str__(self) -> str:
        path, state, step = (self.facts.get(name) for name in ("path", "state", "step"))
        where = "Python" if path is None else tables.shown(Path(path))
        return where if state is None else f"{where} ({state} state, step {step})"


def names(all_paths: Iterable[str]) -> dict[str, str]:
    """Returns the names of those paths of a state's leaves that are parameters or statistics, by path.

    These are below fields called `params`, `model_state`, `batch_stats`, and `ema_params`: an average of the parameters
    has their names, because it is what they are evaluated with. A state without such fields is taken whole. What is
    before the fields, as of a learner that wraps another one, counts only if it tells some from others.
    """
    split = [path.split("/") for path in all_paths]
    if not any(part in FIELDS[:3] for parts in split for part in parts):
        return {"/".join(parts): _below("", parts, parts[0] == "batch_stats") for parts in split}
    found: dict[str, tuple[str, list[str]]] = {}
    for parts in split:
        index = next((i for i, part in enumerate(parts) if part in (*FIELDS, *OTHERS)), None)
        if index is not None and parts[index] in FIELDS:
            found["/".join(parts)] = "/".join(parts[:index]), parts[index:]
    one = len({prefix for prefix, _ in found.values()}) == 1
    made = {}
    averages_last = sorted(found.items(), key=lambda item: item[1][1][0] == "ema_params")  # so that they win
    for path, (prefix, (field, *rest)) in averages_last:
        statistics = field in ("model_state", "batch_stats")
        rest = ["batch_stats", *rest] if field == "batch_stats" else rest
        made[path] = _below("" if one else f"{prefix}/", rest, statistics)
    return made


def _below(prefix: str, parts: list[str], statistics: bool) -> str:
    return prefix + "/".join(parts if statistics else ["params", *parts])


def module_path(name: str) -> tuple[str, str]:
    """Splits "params/Dense_0/kernel" into the collection and the path in it, which patterns are of."""
    parts = name.split("/")
    end = 1 + next((i for i, part in enumerate(parts) if part in ("params", "batch_stats")), 0)
    return "/".join(parts[:end]), "/".join(parts[end:])


def label(name: str) -> str:
    """Returns a name as it is shown to people: parameters without "params/"."""
    return name.removeprefix("params/") or "the state"


def of(tree: Any) -> dict[str, Any]:
    """Returns the parameters and statistics of a state, of Flax's variables, or of arrays by path, by name."""
    leaves = parameter_paths.leaves_by_path(tree)
    return {name: leaves[path] for path, name in names(leaves).items()}


def given(value: Any) -> Source:
    """Returns parameters that were given in Python: a run's result, a state, a tree or arrays by path, or a path.

    Raises:
      RunError: see `read`; or there is no array in it.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, str | Path):
        return read(value)
    arrays = {name: np.asarray(leaf) for name, leaf in of(getattr(value, "state", value)).items()}
    if not arrays:
        raise RunError(f"there are no parameters in the {type(value).__name__} that was given")
    return Source(arrays, {"path": None, "sha256": checkpoint.state_digest(arrays)})


def read(path: str | Path) -> Source:
    """Reads the parameters of a run folder (of the state that was tested), an exported one, or a safetensors file.

    The run's experiment file is not needed. Of a run that is not finished it is the best state so far, or the last.

    Raises:
      RunError: there is no such folder or file, it has no checkpoint, or is damaged.
    """
    path, known = Path(path), dict[str, Any]()
    if path.is_dir() and not (path / "manifest.json").exists() and (path / "params.safetensors").is_file():
        path = path / "params.safetensors"
    if path.is_file():
        arrays, facts = load_safetensors(path)
        by_name = {name: arrays[key] for key, name in names(arrays).items()}
        known = {"experiment": facts.get("experiment")}
    else:
        found = read_run(path, lambda name: not any(f".{other}." in name for other in OTHERS))
        states = of_state(found.arrays, found.state)
        by_name = {name: states[key] for key, name in names(states).items()}
        known = {"experiment": found.manifest["experiment"], "state": found.state, "step": found.step}
    if not by_name:
        raise RunError(f"there are no parameters in {path}")
    digest = checkpoint.state_digest(by_name)
    return Source(by_name, {"path": str(path.resolve()), **known, "sha256": digest})


class Saved(NamedTuple):
    """What a run folder holds.

    Attributes:
      arrays: of its newest checkpoint, by path: "0.state..." of the last state, "1.state..." of the best one.
      state: "best" or "last": which of them was, or would be, tested.
      step: its step.
      meta: of the checkpoint.
      manifest: how the run was made.
      result: `result.json`, or None of a run that is not finished.
    """

    arrays: Arrays
    state: str
    step: int
    meta: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None


def read_run(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Saved:
    """Reads what is wanted of a run's newest checkpoint; names are as `0.state.params.Dense_0.kernel`.

    Raises:
      RunError: it is no run folder, has no checkpoint, or is damaged.
    """
    check_run_folder(path)
    manifest = folder.read_json(path / "manifest.json")
    found = checkpoint.read(path / "checkpoints", lambda name: name in ("0.step", "1.step") or wanted(name))
    if found is None:
        status = f"its status is {manifest['status']!r}"
        raise RunError(f"{path} has no checkpoint ({status}); `foldax resume {path}` goes on with the run")
    arrays, meta = found
    result = folder.read_json(path / "result.json") if (path / "result.json").exists() else None
    if result is not None and meta["step"] != result["steps"]:
        raise RunError(
            f"{path / 'checkpoints'}: the checkpoint of the last step, {result['steps']}, is missing or damaged "
            f"(the newest that can be read is of step {meta['step']}); train the run again in another folder"
        )
    best_step = int(arrays["1.step"])
    has_best = best_step >= 0 and any(name.startswith("1.state") for name in meta["checksums"])
    best = has_best if result is None else result["tested"] == "best"
    step = best_step if best else int(meta["step"])
    return Saved(arrays, "best" if best else "last", step, meta, manifest, result)


def of_state(arrays: Arrays, state: str) -> Arrays:
    """Returns the arrays of the "best" or the "last" state in a checkpoint by their paths in it, joined by "/"."""
    prefix = "1.state" if state == "best" else "0.state"
    return {
        name[len(prefix) :].lstrip(".").replace(".", "/"): array
        for name, array in arrays.items()
        if name == prefix or name.startswith(f"{prefix}.")
    }


def check_run_folder(path: Path) -> None:
    """Checks that a folder is one of a lone run.

    Raises:
      RunError: it is not; says what it is.
    """
    if not path.is_dir():
        raise RunError(f"there is no run folder or .safetensors file {str(path)!r}")
    if folder.is_sweep(path):
        raise RunError(f"{path} is the folder of a sweep, which keeps no parameters of its members; {_alone(path)}")
    if not (path / "manifest.json").exists():
        runs = sorted((one for one in path.glob("*/manifest.json")), key=lambda one: one.stat().st_mtime)
        hint = f"; the newest run in it is {runs[-1].parent}" if runs else ""
        raise RunError(f"{path} is not a run folder: it has no manifest.json{hint}")


def _alone(path: Path) -> str:
    """Returns how to train the best member of a sweep alone."""
    facts = folder.read_json(path / "sweep.json")
    best = facts.get("best_member")
    if best is None or facts["file"] is None:
        return "train one of them alone, with `foldax run` or `foldax.train`"
    command = f"foldax run {tables.shown(Path(facts['file']))} {best['options']}"
    return f"train its best member by {best['metric']} alone: {command}"


def load_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Returns the arrays of a safetensors file by the names that they have there, and its metadata.

    Raises:
      RunError: there is no such file, or it is damaged.
    """
    import safetensors
    from safetensors.numpy import load_file

    if not path.is_file():
        raise RunError(f"there is no file {str(path)!r}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is no safetensors file that can be read: {str(error).splitlines()[0]}") from error


def write_safetensors(path: Path, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Writes arrays by name, and texts or JSON values about them, whole or not at all.

    Raises:
      RunError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, texts))
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def renamed(source: Any, rename: Rename) -> Source:
    """Returns a source (see `given`) with other names.

    Args:
      source: a run folder, a safetensors file, a `Result`, or a tree.
      rename: regular expressions and what replaces them (`\\1` is the first group), the first that matches. One is of
        a path such as "MLP_0/Dense_0/kernel", or of a part of it that ends before a "/", as "MLP_0".

    Raises:
      ConfigError: a pattern matches no path or is no regular expression, or two arrays would have one name.
      RunError: the source cannot be read.
    """
    origin = given(source)
    pairs = list(rename.items() if isinstance(rename, Mapping) else rename)
    parts = {name: module_path(name) for name in origin.arrays}
    parameter_paths.check_patterns([pattern for pattern, _ in pairs], [path for _, path in parts.values()], "rename")
    arrays: Arrays = {}
    came_from: dict[str, str] = {}
    for name, (collection, path) in parts.items():
        for pattern, replacement in pairs:
            if match := re.match(rf"(?:{pattern})(?=/|$)", path):
                path = (match.expand(replacement) + path[match.end() :]).strip("/")
                break
        new = f"{collection}/{path}"
        if new in arrays:
            raise ConfigError(f"rename: {label(came_from[new])} and {label(name)} would both be named {label(new)}")
        arrays[new], came_from[new] = origin.arrays[name], name
    return Source(arrays, origin.facts | ({"rename": [list(pair) for pair in pairs]} if pairs else {}))
