"""Weights of other libraries: reads safetensors files by a map of names, in the layout of Flax."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import chex
import numpy as np

from foldax import parameter_paths
from foldax.errors import ConfigError, did_you_mean
from foldax.runs.tables import join_first
from foldax.runs.transfer import parameters
from foldax.runs.transfer.matching import load_params
from foldax.runs.transfer.parameters import Arrays, display_name

Names = Mapping[str, str | tuple[str, ...]]
Rules = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def save(path: str | Path, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes the parameters and statistics of a `Result`, a state or a tree to a file for `--init-from`.

    Args:
      path: the .safetensors file.
      tree: a `Result`, a learner's state, Flax's variables, or arrays by path.
      metadata: strings or JSON values to keep in the file.

    Raises:
      RunError: the tree has no parameters, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(f"{directory}/x.safetensors", {"w": np.ones(2, np.float32)})
    ...     from_safetensors(f"{directory}/x.safetensors")
    {'params/w': array([1., 1.], dtype=float32)}
    """
    parameters.write_safetensors(Path(path), parameters.as_source(tree).arrays, metadata or {})


def from_safetensors(
    path: str | Path,
    names: Names | None = None,
    *,
    like: chex.ArrayTree | None = None,
    layout: Literal["torch"] | None = "torch",
    rules: Rules | None = None,
) -> Any:
    """Reads weights of another library, with the names and layout of Flax.

    Args:
      path: the .safetensors file.
      names: regular expressions for whole names in the file, and Flax paths:
        `{r"fc(\\d)\\.weight": r"Dense_\\1/kernel"}`.
        Names that match none are left out. A tuple of paths splits an array into equal parts along its first axis
        (stacked gates, a joint projection of queries, keys and values). Biases with the same path are added (PyTorch's
        recurrent layers have two). Statistics go to "batch_stats/...". None: the file has Flax paths.
      like: Flax's variables, parameters or a state. The result is then such a tree: every array must come from the
        file, and an axis is split as it is there (the heads of attention).
      layout: "torch": kernels `[out, in]` become `[in, out]`, those of convolutions `[out, in, ...]` become
        `[..., in, out]`. None: no array is transposed.
      rules: functions of an array by regular expressions for Flax paths, applied instead of the layout.

    Returns:
      Arrays by Flax path, for `foldax.train(..., initial=...)`, `load_params` and `save`; with `like` a tree.

    Raises:
      ConfigError: `names` does not fit the file, or gives two arrays one path.
      RunError: there is no such file, or weights do not fit `like`: names the first ten, with both shapes.
    """
    if layout not in ("torch", None):
        raise ConfigError(f"layout: {layout!r} is neither 'torch' nor None")
    # 1. Names, 2. layout, 3. collections ("params/...", "batch_stats/...")
    arrays, _ = parameters.load_safetensors(Path(path))
    if names is not None:
        arrays = _with_flax_names(arrays, names, str(path))
    arrays = {name: _with_flax_layout(name, array, layout, rules or {}) for name, array in arrays.items()}
    arrays = {name: arrays[key] for key, name in parameters.parameter_names(arrays).items()}
    if like is None:
        return arrays
    # 4. Axes as in `like`
    shapes = {name: np.shape(leaf) for name, leaf in parameters.parameters_of(like).items()}
    return load_params(like, {name: _split_axes(array, shapes.get(name, ())) for name, array in arrays.items()})


def _with_flax_names(file_arrays: Arrays, names: Names, file: str) -> Arrays:
    arrays: Arrays = {}
    file_names: dict[str, str] = {}
    unused = set(names)
    for name, array in file_arrays.items():
        pattern, match = next(((p, m) for p in names if (m := re.fullmatch(p, name))), ("", None))
        if match is None:
            continue
        unused.discard(pattern)
        templates = names[pattern]
        templates = (templates,) if isinstance(templates, str) else templates
        if array.ndim == 0 or array.shape[0] % len(templates):
            raise ConfigError(f"names: {name} {array.shape} cannot be split into {len(templates)} equal parts")
        # PyTorch fuses the weights of several layers, such as query, key and value, into one array.
        for template, part in zip(templates, np.split(array, len(templates)) if len(templates) > 1 else [array]):
            path = match.expand(template)
            # Only biases of one shape may share a path: PyTorch's recurrent layers add two.
            if path in arrays and (not path.endswith("bias") or arrays[path].shape != part.shape):
                raise ConfigError(f"names: {file_names[path]} and {name} would both be {display_name(path)}")
            # Two biases of one sum, as in recurrent cells, are added.
            arrays[path] = arrays[path] + part if path in arrays else part
            file_names[path] = name
    if unused:
        pattern = min(unused)
        hint = did_you_mean(pattern.replace("\\", ""), file_arrays)
        listed = join_first(list(file_arrays))
        raise ConfigError(f"names: {pattern!r} matches nothing in {file}{hint} (there are {listed})")
    return arrays


def _with_flax_layout(name: str, array: np.ndarray, layout: str | None, rules: Rules) -> np.ndarray:
    path = parameters.module_path(name)[1] if name.startswith(("params/", "batch_stats/")) else name
    for pattern, rule in rules.items():
        if parameter_paths.matches([pattern], path):
            return np.asarray(rule(array))
    if layout is None or not name.endswith("kernel") or array.ndim < 2:
        return array
    # PyTorch stores [out, in, ...], Flax [..., in, out].
    return np.moveaxis(array, (0, 1), (-1, -2))


def _split_axes(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reshapes an array if the shape only splits its axes, as heads of attention do."""
    # Cumulative products of a shape are its axis boundaries in memory: splitting axes only adds some.
    ends, target_ends = (set(np.cumprod(sizes).tolist()) for sizes in (array.shape, shape))
    return array.reshape(shape) if array.size == np.prod(shape) and ends <= target_ends else array
