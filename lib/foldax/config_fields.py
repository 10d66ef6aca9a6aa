"""Fields of configs: their types, and which are traced, structural or driver fields (see `foldax.configuration`)."""

import dataclasses
import typing
from typing import Any

from foldax.errors import ConfigError
from foldax.field_values import is_config, is_union


def structural(default: Any) -> Any:
    """Declares a float field as structural: it stays a Python number, and a new value recompiles.

    >>> import foldax
    >>> @foldax.config
    ... class WithEpsilon(foldax.Training):
    ...     epsilon: float = structural(1e-8)
    >>> field_kinds(WithEpsilon)["epsilon"]
    'structural'
    """
    return dataclasses.field(default=default, metadata={"kind": "structural"})


def driver(default: Any) -> Any:
    """Declares a field that only the training loop reads: the learner sees its default, and nothing recompiles.

    >>> import foldax
    >>> @foldax.config
    ... class WithNote(foldax.Training):
    ...     note: str = driver("")
    >>> field_kinds(WithNote)["note"]
    'driver'
    """
    return dataclasses.field(default=default, metadata={"kind": "driver"})


def field_types(cls: type) -> dict[str, Any]:
    """Resolves the annotations of a config class, by field name.

    >>> import foldax
    >>> field_types(foldax.Training)["steps"]
    <class 'int'>
    """
    return cls.__dict__.get("__foldax_types__") or typing.get_type_hints(cls)


def field_kinds(cls: type) -> dict[str, str]:
    """Classifies every field of a config class as "traced", "structural" or "driver".

    >>> import foldax
    >>> [field_kinds(foldax.Training)[name] for name in ("steps", "seed")]
    ['structural', 'driver']
    """
    if "__foldax_kinds__" in cls.__dict__:
        return cls.__dict__["__foldax_kinds__"]
    hints = field_types(cls)
    return {
        field.name: field.metadata.get("kind") or ("traced" if _is_traced(hints[field.name]) else "structural")
        for field in dataclasses.fields(cls)
    }


def _is_traced(hint: Any) -> bool:
    # `float | None` is traced: None has no leaves, so the structure distinguishes the two.
    if is_union(hint) or typing.get_origin(hint) is tuple:
        return all(_is_traced(arm) for arm in typing.get_args(hint) if arm not in (type(None), Ellipsis))
    return hint is float or is_config(hint)


def inherit_kinds(cls: type) -> None:
    """Keeps type and kind of an inherited field where a class body only changes its default (`log_every = 50`)."""
    inherited = [base for base in cls.__mro__[1:] if is_config(base)]
    for field in dataclasses.fields(inherited[0]) if inherited else ():
        # Not mentioned in the class body: nothing to keep.
        if field.name not in cls.__dict__:
            continue
        value = cls.__dict__[field.name]
        if not isinstance(value, dataclasses.Field):
            setattr(cls, field.name, dataclasses.field(default=value, metadata=field.metadata))
        cls.__annotations__.setdefault(field.name, field_types(inherited[0])[field.name])
    for name, value in cls.__dict__.items():
        plain = isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("_")
        if plain and name not in cls.__annotations__:
            raise ConfigError(f"{cls.__name__}.{name} has no type; write `{name}: {type(value).__name__} = {value!r}`")
