"""Search spaces: lists or ranges of config fields, and the configs of a sweep's members."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from foldax.config_fields import field_types
from foldax.configuration import without_driver_fields
from foldax.errors import ConfigError
from foldax.field_values import coerce_value, is_config, to_plain
from foldax.options import Config, Overrides, field_type, plain_text, set_fields

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
        # Where a text is a value of the field, it is no range.
        is_text = str in (hint, *typing.get_args(hint)) and not isinstance(values, Range)
        sampled = None if is_text else _parse_range(name, values)
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


def enumerate_overrides(space: Space, samples: int | None = None, seed: int = 0) -> list[Overrides]:
    """Enumerates the grid of a search space, or samples it at random (Bergstra & Bengio, 2012).

    Args:
      space: from `parse_space`.
      samples: number of different random configs; None enumerates the grid. More samples begin with those of fewer.
      seed: seed of the samples.

    Raises:
      ConfigError: a range in a grid, fewer than one sample, or more samples than the space has configs.

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

    if ranges:
        return [{name: sample(values) for name, values in space.items()} for _ in range(samples)]
    # Without replacement: the same config and seed twice would count as two independent results.
    size = math.prod(len(values) for values in space.values() if not isinstance(values, Range))
    if samples > size:
        remedy = "leave `samples` out to train all of them, and repeat them with `seeds`"
        raise ConfigError(f"samples: {samples} is too many, because the space has {size} different configs; {remedy}")
    different: dict[tuple[Any, ...], None] = {}
    while len(different) < samples:
        different[tuple(sample(values) for values in space.values())] = None
    return [dict(zip(space, values)) for values in different]


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
    return {name: to_plain(value) for name, value in values.items() if field_type(cls, name)[0] == "structural"}


def flat_values(config: Config) -> dict[str, Any]:
    """All fields by dotted name, as table cells: numbers, bools and None, and any other value as options spell it.

    >>> import foldax
    >>> flat_values(foldax.Training(steps=5))["steps"]
    5
    """
    values: dict[str, Any] = {}
    for name in field_types(type(config)):
        value = getattr(config, name)
        if is_config(value):
            values |= {f"{name}.{rest}": cell for rest, cell in flat_values(value).items()}
        else:
            # In a table a NaN would be a missing value.
            is_cell = value is None or (isinstance(value, (bool, int, float)) and value == value)
            values[name] = value if is_cell else plain_text(to_plain(value))
    return values
