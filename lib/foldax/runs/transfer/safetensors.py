"""Weights of other libraries: safetensors files, read by a map of names into the layout of Flax."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foldax import parameter_paths
from foldax.errors import ConfigError, nearest
from foldax.runs.transfer import parameters
from foldax.runs.transfer.matching import listed, load_params
from foldax.runs.transfer.parameters import Arrays, label

Names = Mapping[str, str | tuple[str, ...]]
Rules = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def save(path: str | Path, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes the parameters and statistics of a `Result`, a state or a tree, as `--init-from` reads them.

    Raises:
      RunError: there are none, or the file cannot be written.
    """
    parameters.write_safetensors(Path(path), parameters.given(tree).arrays, metadata or {})


def from_safetensors(
    path: str | Path,
    names: Names | None = None,
    *,
    like: Any = None,
    layout: Literal["torch"] | None = "torch",
    rules: Rules | None = None,
) -> Any:
    """Reads weights of another library, named and laid out as Flax does.

    Args:
      path: the file.
      names: regular expressions of whole names there, and our paths: `{r"fc(\\d)\\.weight": r"Dense_\\1/kernel"}`; what
        no one matches is left out. A tuple of paths splits an array into equal parts along its first axis (stacked
        gates, a joint projection of queries, keys and values). Biases of one path are added (PyTorch's recurrent layers
        have two). Statistics go to "batch_stats/...". None: the names are ours.
      like: Flax's variables, parameters or a state: returns such a tree, in which every array must have come from the
        file; an axis is divided as it is there (attention's heads).
      layout: "torch": kernels `[out, in]` become `[in, out]`, and `[out, in, ...]` of convolutions `[..., in, out]`.
        None: all stays.
      rules: functions of an array by regular expressions of our paths, in place of the layout.

    Returns:
      Arrays by our paths, which `foldax.train(..., initial=...)`, `load_params` and `save` take; with `like` a tree.

    Raises:
      ConfigError: `names` does not fit the file, or gives two arrays one path.
      RunError: there is no such file, or with `like` weights do not fit: names the first ten, with both shapes.
    """
    if layout not in ("torch", None):
        raise ConfigError(f"layout: {layout!r} is neither 'torch' nor None")
    theirs, _ = parameters.load_safetensors(Path(path))
    parts = theirs if names is None else _named(theirs, names, str(path))
    made = {ours: _laid_out(ours, array, layout, rules or {}) for ours, array in parts.items()}
    made = {name: made[key] for key, name in parameters.names(made).items()}
    if like is None:
        return made
    wanted = {name: np.shape(leaf) for name, leaf in parameters.of(like).items()}
    return load_params(like, {name: _divided(array, wanted.get(name, ())) for name, array in made.items()})


def _named(theirs: Arrays, names: Names, file: str) -> Arrays:
    """Returns the arrays by our paths."""
    made: Arrays = {}
    came_from: dict[str, str] = {}
    unused = set(names)
    for name, array in theirs.items():
        pattern, match = next(((p, m) for p in names if (m := re.fullmatch(p, name))), ("", None))
        if match is None:
            continue
        unused.discard(pattern)
        templates = names[pattern]
        templates = (templates,) if isinstance(templates, str) else templates
        if array.ndim == 0 or array.shape[0] % len(templates):
            raise ConfigError(f"names: {name} {array.shape} cannot be split into {len(templates)} equal parts")
        for template, part in zip(templates, np.split(array, len(templates)) if len(templates) > 1 else [array]):
            ours = match.expand(template)
            if ours in made and (not ours.endswith("bias") or made[ours].shape != part.shape):
                raise ConfigError(f"names: {came_from[ours]} and {name} would both be {label(ours)}")
            made[ours] = made[ours] + part if ours in made else part
            came_from[ours] = name
    if unused:
        pattern = min(unused)
        near = nearest(pattern.replace("\\", ""), theirs)
        raise ConfigError(f"names: {pattern!r} matches nothing in {file}{near} (there are {listed(list(theirs))})")
    return made


def _laid_out(ours: str, array: np.ndarray, layout: str | None, rules: Rules) -> np.ndarray:
    path = parameters.module_path(ours)[1] if ours.startswith(("params/", "batch_stats/")) else ours
    for pattern, rule in rules.items():
        if parameter_paths.matches([pattern], path):
            return np.asarray(rule(array))
    if layout is None or not ours.endswith("kernel") or array.ndim < 2:
        return array
    return np.moveaxis(array, (0, 1), (-1, -2))


def _divided(array: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Returns the array with axes divided as in `wanted`, where that is all that differs."""
    ends, wanted_ends = (set(np.cumprod(shape).tolist()) for shape in (array.shape, wanted))
    return array.reshape(wanted) if array.size == np.prod(wanted) and ends <= wanted_ends else array
