"""Configs: frozen dataclasses that are pytrees, with traced, driver and structural fields.

*Traced* fields (`float`, `float | None`, tuples of them, nested configs) are the pytree's leaves: the
driver turns them into float32 arrays, so a new value never recompiles. *Driver* fields steer the loop
and are hidden from the learner. All others are *structural*: a new value is a new program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import numpy as np

from foldax.errors import ConfigError, nearest
from foldax.learner import Acts

T = TypeVar("T")


def structural(default: Any) -> Any:
    """Declares a float field as structural: it stays a Python number, and a new value recompiles."""
    return dataclasses.field(default=default, metadata={"kind": "structural"})


def driver(default: Any) -> Any:
    """Declares a field that only the driver reads: the learner sees its default, nothing recompiles."""
    return dataclasses.field(default=default, metadata={"kind": "driver"})


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, structural, driver)
)
def config(cls: type[T]) -> type[T]:
    """Makes a class a config: a frozen, keyword-only dataclass, checked when made, and a pytree.

    Raises:
      ConfigError: when made with an unknown field, a value of the wrong type, or (for `Training`) a
        value out of range.
    """
    user_check = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):
            value = checked(getattr(self, field.name), hints[field.name], f"{type(self).__name__}.{field.name}")
            object.__setattr__(self, field.name, value)
        if hasattr(super(cls, self), "__post_init__"):
            super(cls, self).__post_init__()
        if user_check is not None:
            user_check(self)

    _inherit_kinds(cls)
    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made = cls.__init__

    def __init__(self: Any, **values: Any) -> None:
        _check_names(type(self), values)
        made(self, **values)

    cls.__init__ = __init__  # type: ignore[method-assign]
    _register(cls)
    return cls


def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved annotations of a config class by field name."""
    return cls.__dict__.get("__foldax_types__") or typing.get_type_hints(cls)


def kinds(cls: type) -> dict[str, str]:
    """Returns "traced", "structural" or "driver" for every field of a config class."""
    if "__foldax_kinds__" in cls.__dict__:
        return cls.__dict__["__foldax_kinds__"]
    hints = field_types(cls)
    return {
        field.name: field.metadata.get("kind") or ("traced" if _is_traced(hints[field.name]) else "structural")
        for field in dataclasses.fields(cls)
    }


def is_config(value: Any) -> bool:
    """Whether `value` is a config class or one of its instances."""
    return dataclasses.is_dataclass(value) and hasattr(value, "__foldax_kinds__")


def traced(config: T) -> T:
    """Returns the config with its driver fields reset and its floats as float32 arrays.

    This is what a compiled program is given: configs that differ only in traced or driver fields give
    trees of the same structure, shapes and dtypes, so they share one program.
    """
    floats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), for_learner(config))
    return jax.device_put(floats)  # one transfer for all


def for_learner(config: T) -> T:
    """Returns the config with its driver fields reset: all that makes a program, and all that a learner sees."""
    fields = kinds(type(config))
    defaults = {f.name: f.default for f in dataclasses.fields(config) if fields[f.name] == "driver"}  # type: ignore[arg-type]
    return dataclasses.replace(config, **defaults)  # type: ignore[type-var]


def to_json(config: Any) -> dict[str, Any]:
    """Returns the config as plain JSON values; `from_json` gives an equal config back."""
    return as_plain(config)


def as_plain(value: Any) -> Any:
    """Returns a field's value as plain JSON values."""
    if is_config(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [as_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_json(cls: type[T], values: dict[str, Any]) -> T:
    """Makes a config of class `cls` from what `to_json` returned; missing fields take their defaults.

    Raises:
      ConfigError: for an unknown field or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object of fields, got {values!r}")
    return cls(**values)


def config_hash(config: Any) -> str:
    """Returns a hash of class name and field values that is stable across processes and machines."""
    text = json.dumps([type(config).__name__, to_json(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_every(every: int | str) -> tuple[int, float]:
    """Splits `checkpoint_every` into (steps, seconds): 500 -> (500, inf), "30s" -> (0, 30.0); 0 is never.

    Raises:
      ConfigError: if it is neither a count of steps nor a time such as "30s", "5m" or "1h".
    """
    if isinstance(every, int):
        return every, math.inf
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        return (int(every), math.inf) if every.isdigit() else (0, float(every[:-1]) * units[every[-1:]])
    except (KeyError, ValueError):
        raise ConfigError(
            f"checkpoint_every: {every!r} is neither a number of steps (500) nor a time ('30s', '5m', '1h')"
        ) from None


def _inherit_kinds(cls: type) -> None:
    """Lets `log_every = 50` (or `log_every: int = 50`) in a class body change an inherited field's default only."""
    inherited = [base for base in cls.__mro__[1:] if is_config(base)]
    for field in dataclasses.fields(inherited[0]) if inherited else ():
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


def _register(cls: type) -> None:
    fields = kinds(cls)
    leaves = [name for name, kind in fields.items() if kind == "traced"]
    static = [name for name, kind in fields.items() if kind != "traced"]
    cls.__foldax_kinds__, cls.__foldax_types__ = fields, field_types(cls)  # type: ignore[attr-defined]

    def flatten(self: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(getattr(self, name) for name in static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        self: Any = object.__new__(cls)  # leaves may be tracers or sentinels: nothing to check
        for name, value in zip((*leaves, *static), (*children, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_traced(hint: Any) -> bool:
    if _is_union(hint):
        return all(_is_traced(arm) for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple:
        return all(_is_traced(arm) for arm in typing.get_args(hint) if arm is not Ellipsis)
    return hint is float or is_config(hint)


def _check_names(cls: type, values: dict[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise ConfigError(
                f"{cls.__name__} has no field {name!r}{nearest(name, names)} (fields: {', '.join(names)})"
            )


def checked(value: Any, hint: Any, where: str) -> Any:
    """Returns the value as the hint wants it: an int as a float, a list as a tuple, a dict as a config.

    Raises:
      ConfigError: it does not fit; `where` names the field.
    """
    arms = typing.get_args(hint)
    if _is_union(hint):
        for arm in arms:
            with contextlib.suppress(ConfigError):
                return checked(value, arm, where)
    elif is_config(hint) and isinstance(value, dict):
        return from_json(hint, value)
    elif is_config(hint) and isinstance(value, hint):
        return value  # checked when it was made; it may hold arrays, which cannot be hashed
    elif typing.get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        arms = (arms[0],) * len(value) if arms[-1:] == (Ellipsis,) else arms
        if len(arms) != len(value):
            raise ConfigError(f"{where}: expected {len(arms)} values, got {len(value)} in {value!r}")
        return tuple(checked(item, arm, f"{where}[{i}]") for i, (item, arm) in enumerate(zip(value, arms)))
    elif hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif hint is float and isinstance(value, (int, float, np.number, jax.Array)) and not isinstance(value, bool):
        return value if isinstance(value, jax.Array) else float(value)  # an array inside a traced program
    elif _fits(value, hint):
        try:
            hash(value)
        except TypeError:
            raise ConfigError(f"{where}: {value!r} cannot be hashed; use a tuple instead") from None
        return value
    allowed = arms if typing.get_origin(hint) is Literal else ()
    near = nearest(value, filter(lambda arm: isinstance(arm, str), allowed)) if isinstance(value, str) else ""
    raise ConfigError(f"{where}: expected {type_name(hint)}, got {value!r} ({type(value).__name__}){near}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    return hint is Any or (
        isinstance(value, typing.get_origin(hint) or hint) and (hint is not int or not isinstance(value, bool))
    )


def type_name(hint: Any) -> str:
    """Returns a type as a person writes it: `int | None`, `tuple[float, ...]`, `'min' or 'max'`."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    if _is_union(hint):
        return " | ".join(type_name(arm) for arm in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


@config
class Loop:
    """What the driver needs to know, but for `steps`, the number of updates: see `Training` and `Interaction`."""

    seed: int = driver(0)
    """Source of all randomness: initialisation, data order, updates, evaluation."""
    log_every: int = driver(100)
    """Steps between two lines of training metrics (each a mean over these steps)."""
    evaluate_every: int = driver(500)
    """Steps between two evaluations on the validation split; 0: only at the end."""
    checkpoint_every: int | str = driver("30s")
    """Steps ("500") or time ("30s", "5m") between two checkpoints; 0: only at the end."""
    monitor: str = driver("loss")
    """Validation metric that says which evaluation was the best."""
    mode: Literal["min", "max"] = driver("min")
    """Whether the best value of `monitor` is the smallest or the largest."""
    patience: int | None = driver(None)
    """Stop after this many evaluations without a new best; None: never."""
    keep: Literal["best", "last"] = driver("best")
    """Which state is tested and returned: that of the best evaluation, or the last one."""
    init_from: str | None = driver(None)
    """Run folder, or .safetensors file, whose parameters the run starts from, matched by path and shape."""
    devices: int = driver(1)
    """Number of devices that share each batch (data parallelism)."""
    dispatch: Literal["loop", "step"] = driver("loop")
    """Run many steps in one compiled loop, or dispatch each step (for native convolutions on the CPU)."""
    profile: bool = driver(False)
    """Record a profile of a few steps, for TensorBoard, in the run folder."""

    def __post_init__(self) -> None:
        at_least(self, seed=0, log_every=1, evaluate_every=0, patience=1, devices=1)
        if self.seed >= 2**32:
            raise ConfigError(f"{type(self).__name__}.seed: {self.seed} is too large; it must be below 2**32")
        steps, seconds = parse_every(self.checkpoint_every)
        if steps < 0 or not seconds > 0:
            raise ConfigError(f"{type(self).__name__}.checkpoint_every: {self.checkpoint_every!r} must not be negative")


@config
class Training(Loop):
    """A run over batches of data; inherit from it and add the fields of your experiment."""

    steps: int = 1_000
    """Number of updates; one consumes one batch."""

    def __post_init__(self) -> None:
        at_least(self, steps=1)


@config
class Interaction(Loop):
    """A run of an agent, measured in steps of its environments; inherit from it and add the fields of your experiment.

    `steps`, the number of updates, follows from the fields, and is no field itself.
    """

    environment_steps: int = 100_000
    """Steps of all copies of the environment together, those before the first update included."""
    start_steps: int = 0
    """Of these, how many are acted at random before the first update; on a host none are."""
    num_envs: int = 4
    """Copies of the environment that are acted in at once."""
    rollout_steps: int = 128
    """Steps of each copy in an update."""
    evaluate_every: int = driver(0)
    """Updates between two evaluations; 0: only at the end."""
    monitor: str = driver("return")
    """Evaluation metric that says which evaluation was the best."""
    mode: Literal["min", "max"] = driver("max")
    """Whether the best value of `monitor` is the smallest or the largest."""
    keep: Literal["best", "last"] = driver("last")
    """Which state is tested and returned: that of the best evaluation, or the last one."""

    def __post_init__(self) -> None:
        at_least(self, environment_steps=1, start_steps=0, num_envs=1, rollout_steps=1)
        if self.steps < 1:
            raise ConfigError(
                f"{type(self).__name__}.environment_steps: {self.environment_steps} is too small; an update takes "
                f"{self.num_envs} x {self.rollout_steps}, after {self.start_steps} at the start"
            )

    @property
    def steps(self) -> int:
        """Number of updates."""
        return (self.environment_steps - self.start_steps) // (self.num_envs * self.rollout_steps)

    def check_acts(self, acts: Acts) -> None:
        """Checks that a learner acts as much as the config counts.

        Raises:
          ConfigError: it does not.
        """
        counted = Acts(self.start_steps, self.num_envs * self.rollout_steps)
        if acts != counted:
            raise ConfigError(
                f"{type(self).__name__}: the learner acts {acts.update} steps in an update and {acts.first} before the "
                f"first, but the config counts {counted.update} (num_envs {self.num_envs} x rollout_steps "
                f"{self.rollout_steps}) and {counted.first} (start_steps); give the learner the config's numbers"
                + (
                    " (on a host, start_steps is 0, and the learner's start a field of its own)"
                    if counted.first
                    else ""
                )
            )

    def acted(self, steps: int) -> int:
        """Returns the steps of the environments after as many updates."""
        return self.start_steps + steps * self.num_envs * self.rollout_steps


def with_steps(config: T, steps: int) -> T:
    """Returns the config with this number of updates."""
    if isinstance(config, Interaction):
        return dataclasses.replace(config, environment_steps=config.acted(steps))
    return dataclasses.replace(config, steps=steps)  # type: ignore[type-var]


def at_least(config: Any, **least: int) -> None:
    """Checks that fields by name are no smaller than these numbers; None passes.

    Raises:
      ConfigError: one is.
    """
    for name, number in least.items():
        value = getattr(config, name)
        if value is not None and value < number:
            raise ConfigError(f"{type(config).__name__}.{name}: {value} is too small; it must be at least {number}")
