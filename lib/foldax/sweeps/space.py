"""Search spaces: lists or ranges of config fields, and the configs of a sweep's members."""

import ast
import contextlib
import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from foldax.configuration import field_kinds, field_types, to_json, without_driver_fields
from foldax.errors import ConfigError, did_you_mean
from foldax.field_values import coerce_value, is_config

Config: TypeAlias = Any  # an instance of a config class (see `foldax.config`), which is a pytree of its traced fields
Overrides: TypeAlias = dict[str, Any]  # values of config fields by name, dotted in nested configs
T = TypeVar("T")


class Range(NamedTuple):
    """A range of a float field for random search, uniform or log-uniform.

    Log-uniform sampling suits rates and regularisation strengths (Bergstra & Bengio, 2012).

    Attributes:
      low: lowest value.
      high: highest value.
      log: whether the logarithm of the value is uniform.

    >>> str(Range(1e-5, 0.1, log=True))
    'log:1e-05:0.1'
    """

    low: float
    high: float
    log: bool = False

    def sample(self, random: np.random.RandomState) -> float:
        """Samples one value.

        >>> 0.5 <= Range(0.5, 2.0).sample(np.random.RandomState(0)) <= 2.0
        True
        """
        if self.log:
            return float(np.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return float(random.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{'log' if self.log else 'uniform'}:{self.low!r}:{self.high!r}"


Space: TypeAlias = "dict[str, list[Any] | Range]"  # by name of the field, dotted in nested configs


def parse_space(config: Config, space: Mapping[str, Any]) -> Space:
    """Checks a search space and converts its values to the types of the config's fields.

    Args:
      config: the base config.
      space: for each swept field ("optimizer.learning_rate" in a nested config) a list or array of values, a single
        value, a `Range`, or its text, such as "log:1e-5:1e-1".

    Returns:
      For each field a list of different values, or a `Range`.

    Raises:
      ConfigError: an unknown field, an empty list, a value of a wrong type, or a range of a field that is not traced.

    >>> import foldax
    >>> parse_space(foldax.Training(), {"steps": [10, 20, 10]})
    {'steps': [10, 20]}
    """
    parsed: Space = {}
    for name, values in space.items():
        kind, hint = field_type(type(config), name)
        if name == "seed":
            raise ConfigError("seed: give the number of seeds instead (seeds=8, --seeds 8)")
        sampled = _parse_range(name, values)
        if sampled is not None and kind != "traced":
            raise ConfigError(
                f"{name}: a range needs a traced float, and this field is {kind}; list its values instead"
            )
        parsed[name] = _parse_list(name, values, hint, type(config).__name__) if sampled is None else sampled
    return parsed


def _parse_list(name: str, values: Any, hint: Any, owner: str) -> list[Any]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    listed = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    if not listed:
        raise ConfigError(f"{name}: the list of values is empty, so there is nothing to run")
    # NumPy and JAX scalars become Python numbers, which JSON and command lines can hold.
    plain = [value.item() if isinstance(value, (np.generic, jax.Array)) else value for value in listed]
    return list(dict.fromkeys(coerce_value(value, hint, f"{owner}.{name}") for value in plain))


def _parse_range(name: str, values: Any) -> Range | None:
    if isinstance(values, Range):
        parsed = values
    else:
        text = values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values
        if not (isinstance(text, str) and text.split(":")[0] in ("log", "uniform") and ":" in text):
            return None
        try:
            kind, low, high = text.split(":")
            parsed = Range(float(low), float(high), kind == "log")
        except ValueError:
            raise ConfigError(f"{name}: {text!r} is no range; write log:1e-5:1e-1 or uniform:0:0.5") from None
    if not (math.isfinite(parsed.low) and parsed.low < parsed.high < math.inf and (parsed.low > 0 or not parsed.log)):
        raise ConfigError(f"{name}: {parsed} is no range: its low end must be below its high end, and above 0 if log")
    return parsed


def field_type(cls: type, name: str) -> tuple[str, Any]:
    """Looks up a config field: whether it is traced, and its type.

    Args:
      cls: a config class.
      name: name of the field, dotted in nested configs.

    Returns:
      `("traced" | "structural" | "driver", type)`.

    Raises:
      ConfigError: the class has no such field.

    >>> import foldax
    >>> field_type(foldax.Training, "steps")
    ('structural', <class 'int'>)
    """
    head, dot, rest = name.partition(".")
    kinds = field_kinds(cls)
    if head not in kinds or (dot and not rest):
        hint, names = did_you_mean(head, kinds), ", ".join(kinds)
        raise ConfigError(f"{cls.__name__} has no field {name!r}{hint} (fields: {names})")
    hint = field_types(cls)[head]
    if not rest:
        return kinds[head], hint
    inner = [arm for arm in (hint, *typing.get_args(hint)) if is_config(arm)]
    if not inner:
        raise ConfigError(f"{cls.__name__}.{head} is no nested config, so there is no field {name!r}")
    return field_type(inner[0], rest)


def set_fields(config: T, overrides: Overrides) -> T:
    """Copies a config with some fields replaced, all at once, so that fields are only checked together.

    Raises:
      ConfigError: a value is not allowed, or the nested config of a field is None.

    >>> import foldax
    >>> set_fields(foldax.Training(), {"steps": 5, "seed": 1}).steps
    5
    """
    changes: dict[str, Any] = {name: value for name, value in overrides.items() if "." not in name}
    # Fields of one nested config are replaced together, since it may check them together.
    nested: dict[str, Overrides] = {}
    for name in overrides.keys() - changes.keys():
        head, _, rest = name.partition(".")
        nested.setdefault(head, {})[rest] = overrides[name]
    for head, inner in nested.items():
        owner = changes.get(head, getattr(config, head))
        if owner is None:
            raise ConfigError(f"{type(config).__name__}.{head} is None, so its field {min(inner)!r} cannot be set")
        changes[head] = set_fields(owner, inner)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def parse_values(cls: type, name: str, texts: Sequence[str]) -> list[Any]:
    """Parses the values of a field on the command line: Python literals, or the text itself where the field is a str.

    Raises:
      ConfigError: the class has no such field.

    >>> import foldax
    >>> parse_values(foldax.Training, "steps", ["1_000", "20"])
    [1000, 20]
    """
    _, hint = field_type(cls, name)
    return [_parse_value(text, hint) for text in texts]


def _parse_value(text: str, hint: Any) -> Any:
    # Literals first: 1 is an int for an int field, and text for a str field.
    candidates = [{"true": True, "false": False, "none": None}.get(text.lower(), text)]
    with contextlib.suppress(ValueError, SyntaxError):
        candidates.append(ast.literal_eval(text))
    for value in (*candidates, text):
        with contextlib.suppress(ConfigError):
            if not isinstance(value, str) or value == text:
                return coerce_value(value, hint, "")
    return candidates[-1]  # fits no type of the field: `parse_space` says so with the field's name


def enumerate_overrides(space: Space, samples: int | None = None, seed: int = 0) -> list[Overrides]:
    """Enumerates the grid of a search space, or samples it at random (Bergstra & Bengio, 2012).

    Args:
      space: from `parse_space`.
      samples: number of random configs; None enumerates the grid. More samples begin with those of fewer.
      seed: seed of the samples.

    Raises:
      ConfigError: a range in a grid, or fewer than one sample.

    >>> enumerate_overrides({"hidden": [8, 16], "bias": [True]})
    [{'hidden': 8, 'bias': True}, {'hidden': 16, 'bias': True}]
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if samples is None:
        if ranges:
            raise ConfigError(f"{ranges[0]}: a range needs the number of samples (samples=20, --samples 20)")
        return [dict(zip(space, values)) for values in itertools.product(*space.values())]
    if samples < 1:
        raise ConfigError(f"samples: {samples} is too small; it must be at least 1")
    # RandomState's stream is frozen: samples stay the same with any version of NumPy.
    random = np.random.RandomState(seed)

    def sample(values: list[Any] | Range) -> Any:
        return values.sample(random) if isinstance(values, Range) else values[random.randint(len(values))]

    return [{name: sample(values) for name, values in space.items()} for _ in range(samples)]


def member_configs(config: T, all_overrides: Iterable[Overrides], seeds: int) -> list[T]:
    """Makes the configs of all members: for each set of overrides, one per seed.

    Args:
      config: the base config.
      all_overrides: from `enumerate_overrides`.
      seeds: number of seeds, which count up from `config.seed`.

    Raises:
      ConfigError: fewer than one seed, or a value that is not allowed.

    >>> import foldax
    >>> [(c.steps, c.seed) for c in member_configs(foldax.Training(), [{"steps": 5}, {"steps": 6}], seeds=2)]
    [(5, 0), (5, 1), (6, 0), (6, 1)]
    """
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds} is too small; it must be at least 1")
    configs: list[Any] = [set_fields(config, overrides) for overrides in all_overrides]
    return [dataclasses.replace(one, seed=one.seed + i) for one in configs for i in range(seeds)]


def structure(config: Config) -> jax.tree_util.PyTreeDef:
    """Pytree structure of a config without its driver fields; configs of equal structure share one program.

    >>> import foldax
    >>> structure(foldax.Training(seed=1)) == structure(foldax.Training(seed=2))
    True
    """
    return jax.tree.structure(without_driver_fields(config))


def traced_names(config: Config) -> list[str]:
    """Dotted names of the traced fields, in the order of the config's leaves.

    >>> import foldax
    >>> @foldax.config
    ... class Config(foldax.Training):
    ...     learning_rate: float = 0.1
    >>> traced_names(Config())
    ['learning_rate']
    """
    leaves = jax.tree_util.tree_leaves_with_path(config)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def structural_values(config: Config) -> dict[str, Any]:
    """Structural fields by dotted name: those whose change makes another program.

    >>> import foldax
    >>> structural_values(foldax.Training(steps=5))
    {'steps': 5}
    """
    values, cls = flat_values(config), type(config)
    return {name: value for name, value in values.items() if field_type(cls, name)[0] == "structural"}


def flat_values(config: Config) -> dict[str, Any]:
    """All fields by dotted name, as table cells: numbers, text, None, and tuples as JSON.

    >>> import foldax
    >>> flat_values(foldax.Training(steps=5))["steps"]
    5
    """

    def cells(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from cells(f"{prefix}{name}.", value)
            else:
                yield prefix + name, json.dumps(value) if isinstance(value, list) else value

    return dict(cells("", to_json(config)))
