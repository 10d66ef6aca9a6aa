"""What a sweep tries: values or ranges of config fields, and the members that they make."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.configuration import checked, field_types, for_learner, is_config, kinds, to_json
from foldax.errors import ConfigError, nearest

T = Any
Space = dict[str, "Sequence[Any] | Range"]


class Range(NamedTuple):
    """Where `samples` draws a float from: `low` to `high`, uniformly, or so in the logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, random: np.random.RandomState) -> float:
        """Returns a number of the range."""
        if self.log:
            return float(np.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return float(random.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{'log' if self.log else 'uniform'}:{self.low!r}:{self.high!r}"


def check_space(config: Any, space: dict[str, Any]) -> Space:
    """Returns the space with its values as the fields want them; text such as "log:1e-5:1e-1" becomes a `Range`.

    Args:
      config: the config that the values are put into.
      space: for each field ("optimizer.learning_rate" in a nested config) a list of values, or a range of a float.

    Raises:
      ConfigError: an unknown field, no value, a value of a wrong type, or a range for what is no traced float.
    """
    made: dict[str, Any] = {}
    for name, values in space.items():
        kind, hint = field_type(type(config), name)
        where = f"{type(config).__name__}.{name}"
        if name == "seed":
            raise ConfigError("seed: give the number of seeds instead (seeds=8, --seeds 8)")
        found: Any = _range(name, values)
        if found is not None and kind != "traced":
            raise ConfigError(
                f"{name}: a range needs a traced float, and this field is {kind}; list its values instead"
            )
        if found is None:
            listed = values.tolist() if hasattr(values, "tolist") else values
            listed = list(listed) if isinstance(listed, (list, tuple)) else [listed]
            if not listed:
                raise ConfigError(f"{name}: the list of values is empty, so there is nothing to run")
            plain = [value.item() if isinstance(value, (np.generic, jax.Array)) else value for value in listed]
            found = list(dict.fromkeys(checked(value, hint, where) for value in plain))
        made[name] = found
    return made


def _range(name: str, values: Any) -> Range | None:
    if isinstance(values, Range):
        text = values
    else:
        text = values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values
        if not (isinstance(text, str) and text.split(":")[0] in ("log", "uniform") and ":" in text):
            return None
        try:
            kind, low, high = text.split(":")
            text = Range(float(low), float(high), kind == "log")
        except ValueError:
            raise ConfigError(f"{name}: {text!r} is no range; write log:1e-5:1e-1 or uniform:0:0.5") from None
    if not (math.isfinite(text.low) and text.low < text.high < math.inf and (text.low > 0 or not text.log)):
        raise ConfigError(f"{name}: {text} is no range: it must go from a lower to a higher number, above 0 if log")
    return text


def field_type(cls: type, name: str) -> tuple[str, Any]:
    """Returns "traced", "structural" or "driver" for a field, dotted in nested configs, and its type.

    Raises:
      ConfigError: there is no such field.
    """
    head, dot, rest = name.partition(".")
    if head not in kinds(cls) or (dot and not rest):
        names = ", ".join(kinds(cls))
        raise ConfigError(f"{cls.__name__} has no field {name!r}{nearest(head, kinds(cls))} (fields: {names})")
    hint = field_types(cls)[head]
    if not rest:
        return kinds(cls)[head], hint
    inner = [arm for arm in (hint, *typing.get_args(hint)) if is_config(arm)]
    if not inner:
        raise ConfigError(f"{cls.__name__}.{head} is no nested config, so there is no field {name!r}")
    return field_type(inner[0], rest)


def set_fields(config: T, values: dict[str, Any]) -> T:
    """Returns the config with some fields changed at once, dotted in nested configs."""
    changes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    inner: dict[str, dict[str, Any]] = {}
    for name in values.keys() - changes.keys():
        head, _, rest = name.partition(".")
        inner.setdefault(head, {})[rest] = values[name]
    for head, nested in inner.items():
        owner = changes.get(head, getattr(config, head))
        if owner is None:
            raise ConfigError(f"{type(config).__name__}.{head} is None, so its field {min(nested)!r} cannot be set")
        changes[head] = set_fields(owner, nested)
    return dataclasses.replace(config, **changes)


def parse_values(cls: type, name: str, texts: Sequence[str]) -> list[Any]:
    """Returns the values that a command line gives for a field: Python literals, or the text itself if it fits."""
    _, hint = field_type(cls, name)
    return [_parsed(text, hint) for text in texts]


def _parsed(text: str, hint: Any) -> Any:
    found = [{"true": True, "false": False, "none": None}.get(text.lower(), text)]
    with contextlib.suppress(ValueError, SyntaxError):
        found.append(ast.literal_eval(text))
    for value in (*found, text):
        with contextlib.suppress(ConfigError):
            if not isinstance(value, str) or value == text:
                return checked(value, hint, "")
    return found[-1]


def points(space: Space, samples: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the settings of the swept fields: the whole grid, or `samples` draws at random.

    Raises:
      ConfigError: a range in a grid, or no sample.
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if samples is None:
        if ranges:
            raise ConfigError(f"{ranges[0]}: a range needs the number of draws (samples=20, --samples 20)")
        return [dict(zip(space, values)) for values in itertools.product(*space.values())]
    if samples < 1:
        raise ConfigError(f"samples: {samples} is too small; it must be at least 1")
    random = np.random.RandomState(seed)

    def draw(values: Any) -> Any:
        return values.draw(random) if isinstance(values, Range) else values[random.randint(len(values))]

    return [{name: draw(values) for name, values in space.items()} for _ in range(samples)]


def member_configs(config: Any, settings: Iterable[dict[str, Any]], seeds: int) -> list[Any]:
    """Returns a config for each setting and seed; seeds count up from the config's own.

    Raises:
      ConfigError: no seed, or a value that a config refuses.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds} is too small; it must be at least 1")
    made = [set_fields(config, setting) for setting in settings]
    return [dataclasses.replace(one, seed=one.seed + i) for one in made for i in range(seeds)]


def structure(config: Any) -> Any:
    """Returns what makes the program of a config: two configs with equal structures share one."""
    return jax.tree.structure(for_learner(config))


def structural_values(config: Any) -> dict[str, Any]:
    """Returns the structural fields by dotted name."""
    values, cls = flat_values(config), type(config)
    return {name: value for name, value in values.items() if field_type(cls, name)[0] == "structural"}


def flat_values(config: Any) -> dict[str, Any]:
    """Returns all fields by dotted name as table cells: numbers, text and None; tuples as JSON."""

    def flatten(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                cells |= flatten(f"{prefix}{name}.", value)
            else:
                cells[prefix + name] = json.dumps(value) if isinstance(value, list) else value
        return cells

    return flatten("", to_json(config))
