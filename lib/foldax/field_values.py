"""Values of config fields: checked against the field's type, and converted to it or to JSON and back."""

import contextlib
import dataclasses
import enum
import math
import os
import types
import typing
from pathlib import PurePath
from typing import Any, Literal

import jax
import numpy as np

from foldax.errors import ConfigError, did_you_mean

NOT_FINITE = ("nan", "inf", "-inf")  # floats that JSON does not have
NUMBERS = (int, float, np.number)


def is_config(value: Any) -> bool:
    """Whether a value is a config class, or an instance of one.

    >>> import foldax
    >>> is_config(foldax.Training), is_config(3)
    (True, False)
    """
    return dataclasses.is_dataclass(value) and hasattr(value, "__foldax_kinds__")


def to_plain(value: Any) -> Any:
    """Converts a value, such as that of a field, to plain JSON values, from which `coerce_value` restores it.

    Members of an enumeration become their names, paths and dtypes texts, and floats that JSON lacks "nan" or "inf".

    >>> to_plain((1, (2.0, math.inf), PurePath("weights")))
    [1, [2.0, 'inf'], 'weights']
    """
    if is_config(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    is_text = isinstance(value, (PurePath, np.dtype)) or (isinstance(value, float) and not math.isfinite(value))
    return str(value) if is_text else value


def restore_floats(value: Any) -> Any:
    """Converts the texts that `to_plain` made of floats that JSON lacks back to floats, at any depth.

    >>> restore_floats({"step": 3, "loss": "nan", "split": "train"})
    {'step': 3, 'loss': nan, 'split': 'train'}
    """
    if isinstance(value, list):
        return [restore_floats(item) for item in value]
    if isinstance(value, dict):
        return {name: restore_floats(item) for name, item in value.items()}
    return float(value) if value in NOT_FINITE else value


def check_type(hint: Any, where: str) -> None:
    """Checks that values of a type can be restored from JSON.

    Args:
      hint: the type of a field.
      where: the field, as the error names it.

    Raises:
      ConfigError: they cannot.

    >>> check_type(tuple[int, ...] | None, "Config.hidden")
    """
    if is_union(hint) or (typing.get_origin(hint) is tuple and typing.get_args(hint)):
        for arm in typing.get_args(hint):
            check_type(arm, where)
    elif not (typing.get_origin(hint) is Literal or hint is Ellipsis or is_config(hint) or _is_simple(hint)):
        problem = f"values of type {type_name(hint)} cannot be restored from the JSON of a run folder"
        allowed = "bool, int, float, str, None, Literal, Enum, pathlib.Path, np.dtype, tuple[...] and unions of these"
        raise ConfigError(f"{where}: {problem}; allowed are {allowed}, and nested configs")


def _is_simple(hint: Any) -> bool:
    simple = (bool, int, float, str, type(None), np.dtype)
    return hint in simple or (isinstance(hint, type) and issubclass(hint, (enum.Enum, PurePath)))


def is_union(hint: Any) -> bool:
    """Whether a type is a union, such as `int | None`.

    >>> is_union(int | None)
    True
    """
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def coerce_value(value: Any, hint: Any, where: str) -> Any:
    """Converts a value to a field's type: an int to a float, a list to a tuple, a dict to a nested config.

    It is the inverse of `to_plain`, too.

    Args:
      value: the value.
      hint: the type.
      where: the field, as the error names it.

    Raises:
      ConfigError: the value does not fit the type.

    >>> coerce_value([1, 2], tuple[float, ...], "Config.rates")
    (1.0, 2.0)
    """
    arms = typing.get_args(hint)
    if is_union(hint):
        # The first type of the union that accepts the value.
        for arm in arms:
            with contextlib.suppress(ConfigError):
                return coerce_value(value, arm, where)
    elif is_config(hint) and isinstance(value, dict):
        return hint(**value)
    elif is_config(hint) and isinstance(value, hint):
        return value  # checked when it was created
    elif typing.get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        # `tuple[float, ...]` has one type for all values.
        arms = (arms[0],) * len(value) if arms[-1:] == (Ellipsis,) else arms
        if len(arms) != len(value):
            raise ConfigError(f"{where}: expected {len(arms)} values, got {len(value)} in {value!r}")
        return tuple(coerce_value(item, arm, f"{where}[{i}]") for i, (item, arm) in enumerate(zip(value, arms)))
    elif typing.get_origin(hint) is Literal and any(value is arm or value == arm for arm in arms):
        return value
    elif _is_simple(hint):
        with contextlib.suppress(TypeError, ValueError):
            return _coerce_simple(value, hint)
    # A misspelt choice deserves a suggestion.
    choices = arms if typing.get_origin(hint) is Literal else getattr(hint, "__members__", ())
    spellings = [choice for choice in choices if isinstance(choice, str)]
    suggestion = did_you_mean(value, spellings) if isinstance(value, str) else ""
    raise ConfigError(f"{where}: expected {type_name(hint)}, got {value!r} ({type(value).__name__}){suggestion}")


def _coerce_simple(value: Any, hint: Any) -> Any:
    """Converts a value to a type without parts; raises TypeError or ValueError if it does not fit."""
    if issubclass(hint, enum.Enum):
        return hint[value] if isinstance(value, str) and value in hint.__members__ else hint(value)
    # An IntEnum or StrEnum in a field of plain numbers or texts would come back as its name.
    value = value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, (bool, np.bool_)) and hint is not bool:
        raise TypeError
    if hint is float and isinstance(value, jax.Array):
        return value  # inside a traced program
    if hint is float and (value in NOT_FINITE if isinstance(value, str) else isinstance(value, NUMBERS)):
        return math.nan if math.isnan(float(value)) else float(value)  # one NaN, which equals itself in a treedef
    if hint is int and isinstance(value, (int, np.integer)):
        return int(value)
    if hint is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if hint is np.dtype and value is not None:  # `np.dtype(None)` is float64
        return np.dtype(value)
    if issubclass(hint, PurePath) and isinstance(value, (str, os.PathLike)):
        return hint(value)
    if hint in (bool, type(None)) and isinstance(value, hint):
        return value
    raise TypeError


def type_name(hint: Any) -> str:
    """Writes a type as a person would: `int | None`, `tuple[float, ...]`, `'min' or 'max'`.

    >>> type_name(float | None)
    'float | None'
    """
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(repr(name) for name in hint.__members__)
    if is_union(hint):
        return " | ".join(type_name(arm) for arm in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"tuple[{', '.join('...' if arm is Ellipsis else type_name(arm) for arm in typing.get_args(hint))}]"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
