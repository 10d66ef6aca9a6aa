"""Parameters by name, wherever they are stored: in a learner's state, a run folder or a safetensors file.

Names are those of Flax's variables, joined by "/": "params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean".
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np

from foldax import parameter_paths
from foldax.engine import checkpoint, state_leaves
from foldax.errors import ConfigError, RunError, did_you_mean, display_path, first_line
from foldax.runs import folder
from foldax.runs.transfer.addresses import parse_address

FIELDS = ("params", "ema_params", "model_state", "batch_stats")  # fields of a state that hold parameters or statistics
OPTIMIZER_FIELDS = ("optimizer_state", "opt_state")  # moments have the paths of parameters, but are none

Arrays = dict[str, np.ndarray]
Rename = Mapping[str, str] | Iterable[tuple[str, str]]


class Source(NamedTuple):
    """Parameters that another model starts from.

    Attributes:
      arrays: the arrays by name.
      provenance: where they come from, as a manifest records it: path, experiment, state ("best" or "last"), step,
        sha256.

    >>> str(Source({}, {"path": "runs/first", "state": "best", "step": 300}))
    'runs/first (best state, step 300)'
    """

    arrays: Arrays
    provenance: dict[str, Any]

    def __str__(self) -> str:
        path, state, step = (self.provenance.get(name) for name in ("path", "state", "step"))
        origin = "Python" if path is None else display_path(Path(path))
        return origin if state is None else f"{origin} ({state} state, step {step})"


def parameter_names(paths: Iterable[str]) -> dict[str, str]:
    """Names the parameters and statistics among the leaves of a state.

    They are the leaves below fields called `params`, `model_state`, `batch_stats` and `ema_params`. A moving average of
    the parameters gets their names, because the model is evaluated with it. A state without such fields is taken as
    parameters as a whole. Outer fields, such as those of a wrapped learner, enter names only if there are several.

    Args:
      paths: paths of all leaves of a state, joined by "/".

    Returns:
      Names by path. Where two paths have one name, the average comes last.

    >>> parameter_names(["state/params/Dense_0/bias", "state/opt_state/mu/params/Dense_0/bias", "step"])
    {'state/params/Dense_0/bias': 'params/Dense_0/bias'}
    """
    # A state without the known fields is taken as parameters as a whole.
    split_paths = [path.split("/") for path in paths]
    if not any(part in FIELDS[:3] for parts in split_paths for part in parts):
        return {
            "/".join(parts): "/".join(parts if parts[0] == "batch_stats" else ["params", *parts])
            for parts in split_paths
        }
    located: dict[str, tuple[str, list[str]]] = {}
    # The first known field of a path decides: a `params` below `opt_state` holds moments, no parameters.
    for parts in split_paths:
        index = next((i for i, part in enumerate(parts) if part in (*FIELDS, *OPTIMIZER_FIELDS)), None)
        if index is not None and parts[index] in FIELDS:
            located["/".join(parts)] = "/".join(parts[:index]), parts[index:]
    is_single = len({prefix for prefix, _ in located.values()}) == 1
    names = {}
    # Averages last: in a dict by name they replace the parameters.
    for path, (prefix, (field, *rest)) in sorted(located.items(), key=lambda item: item[1][1][0] == "ema_params"):
        collection = {"model_state": [], "batch_stats": ["batch_stats"]}.get(field, ["params"])
        names[path] = "/".join([*([] if is_single else [prefix]), *collection, *rest])
    return names


def module_path(name: str) -> tuple[str, str]:
    """Splits a name into the collection and the path in it, which patterns of `rename` match.

    >>> module_path("params/Dense_0/kernel")
    ('params', 'Dense_0/kernel')
    """
    parts = name.split("/")
    end = 1 + next((i for i, part in enumerate(parts) if part in ("params", "batch_stats")), 0)
    return "/".join(parts[:end]), "/".join(parts[end:])


def display_name(name: str) -> str:
    """Shortens a name for tables and messages: parameters lose "params/".

    >>> display_name("params/Dense_0/kernel")
    'Dense_0/kernel'
    """
    return name.removeprefix("params/") or "the state"


def parameters_of(tree: chex.ArrayTree) -> dict[str, Any]:
    """Returns the parameters and statistics of a state, of Flax's variables or of arrays by path, by name.

    >>> parameters_of({"params": {"w": 1.0}, "opt_state": {"w": 0.5}, "step": 3})
    {'params/w': 1.0}
    """
    leaves = parameter_paths.leaves_by_path(tree)
    return {name: leaves[path] for path, name in parameter_names(leaves).items()}


def as_source(value: Any) -> Source:
    """Converts a `Result`, a state, a tree, arrays by path, a path or a `Source` to a `Source`.

    Raises:
      RunError: the path cannot be read, or there is no array in the value.

    >>> as_source({"w": np.zeros(2)}).arrays
    {'params/w': array([0., 0.])}
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, str | Path):
        return read(value)
    named = parameters_of(getattr(value, "state", value)).items()
    # Random keys in a state are no parameters.
    arrays = {
        name: np.asarray(leaf) for name, leaf in named if not (hasattr(leaf, "dtype") and state_leaves.is_key(leaf))
    }
    if not arrays:
        raise RunError(f"there are no parameters in the {type(value).__name__} to start from")
    return Source(arrays, {"path": None, "sha256": state_leaves.state_digest(arrays)})


def read(path: str | Path) -> Source:
    """Reads the parameters of a run folder, an export folder or a safetensors file, without the experiment file.

    A run folder gives the state that was tested; an unfinished run gives its best state so far, or the last one;
    "RUN@500" the state of the checkpoint of step 500. Of "RUN:prefix" only the parameters below this path are read,
    such as "runs/first:encoder".

    Raises:
      RunError: there is no such folder, file or prefix, it has no checkpoint, or it is damaged.
    """
    path, step, prefix = parse_address(path)
    # A folder of `foldax export` holds one file of parameters.
    if path.is_dir() and not (path / "manifest.json").exists() and (path / "params.safetensors").is_file():
        path = path / "params.safetensors"
    if path.is_file():
        arrays, metadata = load_safetensors(path)
        origin: dict[str, Any] = {"experiment": metadata.get("experiment")}
    else:
        # Optimizer states are often twice as large as the parameters and are not needed.
        saved = read_run(path, lambda name: not any(f".{field}." in name for field in OPTIMIZER_FIELDS), step)
        arrays = state_arrays(saved.arrays, saved.state)
        origin = {"experiment": saved.manifest["experiment"], "state": saved.state, "step": saved.step}
    by_name = {name: arrays[key] for key, name in parameter_names(arrays).items()}
    if not by_name:
        raise RunError(f"there are no parameters in {path}")
    location = {"path": str(path.resolve()) + (f"@{step}" if step is not None else "")}
    if prefix:
        by_name = _below(by_name, prefix, path)
        location = {"path": f"{location['path']}:{prefix}", "prefix": prefix}
    return Source(by_name, {**location, **origin, "sha256": state_leaves.state_digest(by_name)})


def without_prefix(source: Source, target: Iterable[str] = ()) -> Source:
    """Takes the prefix that a source was read with off the names, unless the target has parameters below it itself.

    Args:
      source: the source.
      target: names of the parameters that it is for.

    >>> list(without_prefix(Source({"params/encoder/w": np.ones(1)}, {"prefix": "encoder"})).arrays)
    ['params/w']
    """
    prefix = source.provenance.get("prefix")
    if prefix is None or "rename" in source.provenance or any(_is_below(name, prefix) for name in target):
        return source
    shorter = {
        name: "/".join(filter(None, (module_path(name)[0], module_path(name)[1][len(prefix) + 1 :])))
        for name in source.arrays
    }
    return source._replace(arrays={shorter[name]: array for name, array in source.arrays.items()})


def _is_below(name: str, prefix: str) -> bool:
    return f"{module_path(name)[1]}/".startswith(f"{prefix}/")


def _below(arrays: Arrays, prefix: str, path: Path) -> Arrays:
    below = {name: array for name, array in arrays.items() if _is_below(name, prefix)}
    if not below:
        modules = dict.fromkeys(module_path(name)[1].split("/")[0] for name in arrays)
        hint = did_you_mean(prefix, modules)
        raise RunError(f"there are no parameters below {prefix!r} in {path}{hint} (there are {', '.join(modules)})")
    return below


class SavedRun(NamedTuple):
    """Content of a run folder.

    Attributes:
      arrays: arrays of the newest checkpoint by path: "0.state..." of the last state, "1.state..." of the best one.
      state: "best" or "last": the state that was tested, or would be.
      step: the step of that state.
      meta: metadata of the checkpoint.
      manifest: `manifest.json`.
      result: `result.json`, or None if the run is not finished.
    """

    arrays: Arrays
    state: str
    step: int
    meta: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None


def read_run(path: Path, is_needed: Callable[[str], bool] = lambda name: True, step: int | None = None) -> SavedRun:
    """Reads the newest checkpoint of a run, and the JSON files beside it.

    Args:
      path: the run folder.
      is_needed: whether to read the array of a name such as "0.state.params.Dense_0.kernel".
      step: reads the checkpoint of this step instead, and its last state.

    Raises:
      RunError: it is no run folder, it has no checkpoint, or none of this step, or it is damaged.
    """
    check_run_folder(path)
    manifest = folder.read_json(path / "manifest.json")
    place = folder.checkpoint_folder(path)
    content = checkpoint.read_arrays(place, lambda name: name in ("0.step", "1.step") or is_needed(name), step)
    if content is None:
        status = f"its status is {manifest['status']!r}"
        raise RunError(f"{path} has no checkpoint ({status}); `foldax resume {path}` goes on with the run")
    arrays, meta = content
    result = folder.read_result(path) if (path / "result.json").exists() else None
    if step is not None:
        return SavedRun(arrays, "last", step, meta, manifest, result)
    if result is not None and meta["step"] != result["steps"]:
        problem = f"the checkpoint of the last step, {result['steps']}, is missing or damaged"
        newest = f"the newest that can be read is of step {meta['step']}"
        raise RunError(f"{place}: {problem} ({newest}); train the run again in another folder")
    # Index 0 of a checkpoint is the last state, index 1 the best one; its step is negative if there is none.
    best_step = int(arrays["1.step"])
    has_best = best_step >= 0 and any(name.startswith("1.state") for name in meta["checksums"])
    # A finished run says which state it tested.
    is_best = has_best if result is None else result["tested"] == "best"
    step = best_step if is_best else int(meta["step"])
    return SavedRun(arrays, "best" if is_best else "last", step, meta, manifest, result)


def state_arrays(arrays: Arrays, state: str) -> Arrays:
    """Selects the "best" or the "last" state of a checkpoint; its paths are joined by "/".

    >>> state_arrays({"0.state.params.w": np.ones(1), "0.step": np.array(3)}, "last")
    {'params/w': array([1.])}
    """
    prefix = "1.state" if state == "best" else "0.state"
    return {
        name[len(prefix) :].lstrip(".").replace(".", "/"): array
        for name, array in arrays.items()
        if name == prefix or name.startswith(f"{prefix}.")
    }


def check_run_folder(path: Path) -> None:
    """Checks that a folder is the run folder of a single run.

    Raises:
      RunError: it is missing, the folder of a sweep, or no run folder.
    """
    if not path.is_dir():
        raise RunError(f"there is no run folder or .safetensors file {str(path)!r}")
    if folder.is_sweep(path):
        advice = _best_member_command(path)
        raise RunError(f"{path} is the folder of a sweep, which keeps no parameters of its members; {advice}")
    if not (path / "manifest.json").exists():
        runs = sorted(path.glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
        hint = f"; the newest run in it is {runs[-1].parent}" if runs else ""
        raise RunError(f"{path} is not a run folder: it has no manifest.json{hint}")


def _best_member_command(path: Path) -> str:
    """Advises how to train the best member of a sweep as a single run."""
    metadata = folder.read_json(path / "sweep.json")
    best = metadata.get("best_member")
    if best is None or metadata["file"] is None:
        return "train one of them alone, with `foldax run` or `foldax.train`"
    command = f"foldax run {display_path(Path(metadata['file']))} {best['options']}"
    return f"train its best member by {best['metric']} alone: {command}"


def load_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Reads a safetensors file: its arrays, by the names they have there, and its metadata.

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
        raise RunError(f"{path} is no safetensors file that can be read: {first_line(error)}") from error


def write_safetensors(path: Path, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Writes a safetensors file, completely or not at all.

    Args:
      path: the file.
      arrays: the arrays by name.
      metadata: strings or JSON values.

    Raises:
      RunError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    # Metadata of safetensors are strings; other values become JSON.
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    # Renamed when complete, so that no reader sees half a file.
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, texts))
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {first_line(error)}") from error


def rename(source: Any, patterns: Rename) -> Source:
    """Renames parameters, so that they match those of another model.

    Args:
      source: a run folder, a safetensors file, a `Result`, a state or a tree.
      patterns: regular expressions and their replacements (`\\1` is the first group); the first that matches counts.
        An expression matches a path such as "MLP_0/Dense_0/kernel", or its beginning up to a "/", such as "MLP_0".

    Returns:
      The same arrays under their new names.

    Raises:
      ConfigError: a pattern matches no path or is no regular expression, or two arrays would have one name.
      RunError: the source cannot be read.

    >>> list(rename({"MLP_0": {"kernel": np.ones(2)}}, {"MLP_0": "encoder"}).arrays)
    ['params/encoder/kernel']
    """
    original = as_source(source)
    pairs = list(patterns.items() if isinstance(patterns, Mapping) else patterns)
    split_names = {name: module_path(name) for name in original.arrays}
    paths = [path for _, path in split_names.values()]
    parameter_paths.check_patterns([pattern for pattern, _ in pairs], paths, "rename")
    arrays: Arrays = {}
    old_names: dict[str, str] = {}
    for name, (collection, path) in split_names.items():
        # The first pattern that matches counts; it may replace only the beginning of a path.
        for pattern, replacement in pairs:
            if match := re.match(rf"(?:{pattern})(?=/|$)", path):
                path = (match.expand(replacement) + path[match.end() :]).strip("/")
                break
        new = f"{collection}/{path}"
        if new in arrays:
            both = f"{display_name(old_names[new])} and {display_name(name)}"
            raise ConfigError(f"rename: {both} would both be named {display_name(new)}")
        arrays[new], old_names[new] = original.arrays[name], name
    return Source(arrays, original.provenance | ({"rename": [list(pair) for pair in pairs]} if pairs else {}))
