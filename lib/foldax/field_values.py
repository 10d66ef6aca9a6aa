"""Values of config fields: checked against the field's type, and converted to it or to JSON."""

import contextlib
import dataclasses
import os
import types
import typing
from typing import Any, Literal

import jax
import numpy as np

from foldax.errors import ConfigError, did_you_mean


def is_config(value: Any) -> bool:
    """Whether a value is a config class, or an instance of one.

    >>> import foldax
    >>> is_config(foldax.Training), is_config(3)
    (True, False)
    """
    return dataclasses.is_dataclass(value) and hasattr(value, "__foldax_kinds__")


def to_plain(value: Any) -> Any:
    """Converts the value of a field to plain JSON values.

    >>> to_plain((1, (2.0, None)))
    [1, [2.0, None]]
    """
    if is_config(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def is_union(hint: Any) -> bool:
    """Whether a type is a union, such as `int | None`.

    >>> is_union(int | None)
    True
    """
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def coerce_value(value: Any, hint: Any, where: str) -> Any:
    """Converts a value to a field's type: an int to a float, a list to a tuple, a dict to a nested config.

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
        return value  # checked when it was created; not hashed, because it may hold arrays
    elif typing.get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        # `tuple[float, ...]` has one type for all values.
        arms = (arms[0],) * len(value) if arms[-1:] == (Ellipsis,) else arms
        if len(arms) != len(value):
            raise ConfigError(f"{where}: expected {len(arms)} values, got {len(value)} in {value!r}")
        return tuple(coerce_value(item, arm, f"{where}[{i}]") for i, (item, arm) in enumerate(zip(value, arms)))
    elif hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif hint is float and isinstance(value, (int, float, np.number, jax.Array)) and not isinstance(value, bool):
        return value if isinstance(value, jax.Array) else float(value)  # an array inside a traced program
    elif _fits(value, hint):
        try:
            # Structural fields are part of the treedef, which JAX hashes.
            hash(value)
        except TypeError:
            raise ConfigError(f"{where}: {value!r} cannot be hashed; use a tuple instead") from None
        return value
    allowed = arms if typing.get_origin(hint) is Literal else ()
    # A misspelt choice deserves a suggestion.
    spellings = [arm for arm in allowed if isinstance(arm, str)]
    suggestion = did_you_mean(value, spellings) if isinstance(value, str) else ""
    raise ConfigError(f"{where}: expected {type_name(hint)}, got {value!r} ({type(value).__name__}){suggestion}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    is_bool_as_int = hint is int and isinstance(value, bool)
    return hint is Any or (isinstance(value, typing.get_origin(hint) or hint) and not is_bool_as_int)


def type_name(hint: Any) -> str:
    """Writes a type as a person would: `int | None`, `tuple[float, ...]`, `'min' or 'max'`.

    >>> type_name(float | None)
    'float | None'
    """
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    if is_union(hint):
        return " | ".join(type_name(arm) for arm in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
