"""Configs: frozen dataclasses that are pytrees, with traced, driver and structural fields.

*Traced* fields (`float`, `float | None`, tuples of them, nested configs) are the leaves of the pytree: the engine turns
them into float32 arrays, so a new value never recompiles. *Driver* fields steer the training loop and are hidden from
the learner. All others are *structural*: a new value is a new program.
"""

import dataclasses
import hashlib
import json
import math
import re
import typing
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import numpy as np

from foldax.config_fields import driver, field_kinds, field_types, inherit_kinds, structural
from foldax.errors import ConfigError, did_you_mean
from foldax.field_values import check_type, coerce_value, is_config, to_plain
from foldax.learner import EnvironmentSteps
from foldax.mesh import ONE_DEVICE, parse_mesh

T = TypeVar("T")
LOG_LINES, EVALUATIONS = 50, 10  # fewest of a run whose config does not say how often


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, structural, driver)
)
def config(cls: type[T]) -> type[T]:
    """Class decorator for configs: frozen, keyword-only dataclasses that check their values and are pytrees.

    Raises:
      ConfigError: an instance is created with an unknown field, a value of the wrong type or, for `Training`, a value
        out of range.

    >>> @config
    ... class Config(Training):
    ...     learning_rate: float = 3e-3
    >>> Config(learning_rate=1).learning_rate
    1.0
    """
    # The class's own check, not an inherited one, which runs by itself.
    user_check = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):
            value = coerce_value(getattr(self, field.name), hints[field.name], f"{type(self).__name__}.{field.name}")
            object.__setattr__(self, field.name, value)
        # Checks of base classes run whether or not a subclass calls `super()`.
        if hasattr(super(cls, self), "__post_init__"):
            super(cls, self).__post_init__()
        if user_check is not None:
            user_check(self)

    # Before `dataclass` reads the annotations.
    inherit_kinds(cls)
    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    init = cls.__init__

    def __init__(self: Any, **values: Any) -> None:
        # A dataclass would raise a TypeError without a suggestion.
        names = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in names:
                problem = f"has no field {name!r}{did_you_mean(name, names)}"
                raise ConfigError(f"{type(self).__name__} {problem} (fields: {', '.join(names)})")
        init(self, **values)

    cls.__init__ = __init__  # type: ignore[method-assign]
    _register(cls)
    return cls


def traced_config(config: T) -> T:
    """Converts a config to the argument of a compiled program: driver fields reset, floats as float32 arrays.

    Configs that differ only in traced or driver fields give pytrees of the same structure, shapes and dtypes, so they
    share one program.

    >>> @config
    ... class Config(Training):
    ...     learning_rate: float = 0.5
    >>> traced_config(Config(seed=3)).learning_rate.dtype
    dtype('float32')
    """
    floats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), without_driver_fields(config))
    return jax.device_put(floats)  # one transfer for all


def without_driver_fields(config: T) -> T:
    """Resets the driver fields to their defaults; the rest determines the program and is all that the learner sees."""
    fields = field_kinds(type(config))
    # Two configs that differ in driver fields alone become equal here.
    defaults = {f.name: f.default for f in dataclasses.fields(config) if fields[f.name] == "driver"}  # type: ignore[arg-type]
    return dataclasses.replace(config, **defaults)  # type: ignore[type-var]


def to_json(config: Any) -> dict[str, Any]:
    """Converts a config to plain JSON values; `from_json` restores an equal config.

    >>> to_json(Training(steps=10))["steps"]
    10
    """
    return to_plain(config)


def from_json(cls: type[T], values: dict[str, Any]) -> T:
    """Restores a config from the result of `to_json`; missing fields take their defaults.

    Raises:
      ConfigError: there is an unknown field, or a value of the wrong type.

    >>> from_json(Training, {"steps": 10}) == Training(steps=10)
    True
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object of fields, got {values!r}")
    return cls(**values)


def drop_unknown_fields(cls: type, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Separates the values of fields that a config class has from those that another version of it had.

    Args:
      cls: the config class.
      values: result of `to_json`, perhaps for another version of the class.

    Returns:
      The values of known fields, and the names of the others.

    >>> drop_unknown_fields(Training, {"steps": 10, "epochs": 3})
    ({'steps': 10}, ['epochs'])
    """
    known, unknown = {}, []
    for name, value in values.items():
        hint = field_types(cls).get(name)
        if hint is None:
            unknown.append(name)
            continue
        nested = next((arm for arm in (hint, *typing.get_args(hint)) if is_config(arm)), None)
        if nested is not None and isinstance(value, dict):
            value, inner = drop_unknown_fields(nested, value)
            unknown += [f"{name}.{field}" for field in inner]
        known[name] = value
    return known, unknown


def config_hash(config: Any) -> str:
    """Hashes class name and field values (SHA-256), the same in every process and on every machine.

    >>> config_hash(Training(steps=10)) == config_hash(Training(steps=10))
    True
    """
    # Sorted keys: the order of fields must not matter.
    text = json.dumps([type(config).__name__, to_json(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_interval(every: int | str) -> tuple[int, float]:
    """Splits `checkpoint_every` into (steps, seconds); 0 steps and infinite seconds mean never.

    Raises:
      ConfigError: it is neither a number of steps nor a time such as "30s", "5m" or "1h".

    >>> parse_interval(500), parse_interval("5m")
    ((500, inf), (0, 300.0))
    """
    if isinstance(every, int):
        return every, math.inf
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        return (int(every), math.inf) if every.isdigit() else (0, float(every[:-1]) * units[every[-1:]])
    except (KeyError, ValueError):
        allowed = "a number of steps (500) nor a time ('30s', '5m', '1h')"
        raise ConfigError(f"checkpoint_every: {every!r} is neither {allowed}") from None


def _register(cls: type) -> None:
    fields = field_kinds(cls)
    for name, hint in field_types(cls).items():
        check_type(hint, f"{cls.__name__}.{name}")
    leaves = [name for name, kind in fields.items() if kind == "traced"]
    static = [name for name, kind in fields.items() if kind != "traced"]
    cls.__foldax_kinds__, cls.__foldax_types__ = fields, field_types(cls)  # type: ignore[attr-defined]

    # Traced fields are leaves; all others are in the treedef, whose equality decides on recompiling.
    def flatten(self: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(getattr(self, name) for name in static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        # Not `cls(...)`: leaves may be tracers, or JAX's sentinels, which no check of values would accept.
        self: Any = object.__new__(cls)
        for name, value in zip((*leaves, *static), (*children, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


@config
class LoopConfig:
    """Fields that the training loop reads, common to `Training` and `RLTraining`."""

    seed: int = driver(0)
    """Seed of all randomness: initialisation, data order, updates, evaluation."""
    log_every: int | None = driver(None)
    """Steps between two lines of training metrics (means over these steps); None: such that 50 to 125 lines follow."""
    evaluate_every: int | None = driver(None)
    """Steps between two evaluations on the validation split; 0: only at the end; None: such that 10 to 25 follow."""
    checkpoint_every: int | str = driver("30s")
    """Steps ("500") or time ("30s", "5m") between two checkpoints; 0: only at the end."""
    checkpoints: str = driver("")
    """Where checkpoints are written: an absolute path or "gs://bucket/folder"; "": in the run folder."""
    max_to_keep: int = driver(2)
    """How many checkpoints are kept, the newest ones."""
    keep_period: int | None = driver(None)
    """Make a checkpoint at each multiple of this step, and keep it for good; None: at none."""
    monitor: str = driver("loss")
    """Validation metric by which evaluations are compared; "NAME/METRIC" is that of an evaluation set."""
    mode: Literal["min", "max"] = driver("min")
    """Whether the best value of `monitor` is the smallest or the largest."""
    patience: int | None = driver(None)
    """Stop early after this many evaluations without improvement; None: never."""
    keep: Literal["best", "last"] = driver("best")
    """Which state is tested and returned: that of the best evaluation, or the last one."""
    init_from: str | None = driver(None)
    """Run folder or .safetensors file with initial parameters; "RUN:prefix": those below; "RUN@500": of that step."""
    mesh: str = driver(ONE_DEVICE)
    """Devices by axis, "data=2,fsdp=4,tensor=1": both first divide batches, "fsdp" also the state; -1: all others."""
    dispatch: Literal["loop", "step"] = driver("loop")
    """Run many steps in one compiled loop, or dispatch each step (for native convolutions on the CPU)."""
    profile: bool = driver(False)
    """Record a profile of a few steps, for TensorBoard, in the run folder."""

    def __post_init__(self) -> None:
        check_at_least(self, seed=0, log_every=1, evaluate_every=0, patience=1, max_to_keep=1, keep_period=1)
        parse_mesh(self.mesh)
        if self.seed >= 2**32:
            raise ConfigError(f"{type(self).__name__}.seed: {self.seed} is too large; it must be below 2**32")
        steps, seconds = parse_interval(self.checkpoint_every)
        if steps < 0 or not seconds > 0:
            raise ConfigError(f"{type(self).__name__}.checkpoint_every: {self.checkpoint_every!r} must not be negative")
        if self.checkpoints and not re.match(r"/|gs://[^/]+", self.checkpoints):
            allowed = "an absolute path, an address such as 'gs://bucket/folder', or '' for the run folder"
            raise ConfigError(f"{type(self).__name__}.checkpoints: {self.checkpoints!r} is not {allowed}")

    @property
    def log_period(self) -> int:
        """Number of updates between two log lines: `log_every`, or at most 1,000 from the number of updates."""
        return self.log_every or min(1_000, _round_period(self, LOG_LINES))

    @property
    def evaluation_period(self) -> int:
        """Number of updates between two evaluations: `evaluate_every`, or from the number of updates; 0 is never."""
        return _round_period(self, EVALUATIONS) if self.evaluate_every is None else self.evaluate_every


def _round_period(config: Any, count: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that divides a run into `count` periods or more."""
    longest = max(1, config.steps // count)
    power: int = 10 ** (len(str(longest)) - 1)
    return max(factor * power for factor in (1, 2, 5) if factor * power <= longest)


@config
class Training(LoopConfig):
    """Config of a run over batches of data; inherit from it and add the fields of your experiment.

    >>> config = Training(steps=2_000, evaluate_every=500)
    >>> config.log_period, config.evaluation_period
    (20, 500)
    """

    steps: int = 1_000
    """Number of updates; each consumes one batch."""

    def __post_init__(self) -> None:
        check_at_least(self, steps=1)
        _check_steps(self, self.steps)


@config
class RLTraining(LoopConfig):
    """Config of an agent's run, measured in environment steps; inherit from it and add the fields of your experiment.

    `steps`, the number of updates, follows from these fields and is no field itself.

    Raises:
      ConfigError: a field is out of range, or `environment_steps` is too small for one update.

    >>> RLTraining(environment_steps=10_240, num_envs=4, rollout_steps=128).steps
    20
    """

    environment_steps: int = 100_000
    """Environment steps of the run, summed over all parallel environments, with those before the first update."""
    learning_starts: int = 0
    """How many of these are random steps before the first update; 0 for host environments."""
    num_envs: int = 4
    """Number of parallel environments."""
    rollout_steps: int = 128
    """Steps of each environment per update."""
    evaluate_every: int | None = driver(0)
    """Updates between two evaluations; 0: only at the end; None: such that 10 to 25 follow."""
    monitor: str = driver("return")
    """Evaluation metric by which evaluations are compared."""
    mode: Literal["min", "max"] = driver("max")
    """Whether the best value of `monitor` is the smallest or the largest."""
    keep: Literal["best", "last"] = driver("last")
    """Which state is tested and returned: that of the best evaluation, or the last one."""

    def __post_init__(self) -> None:
        check_at_least(self, environment_steps=1, learning_starts=0, num_envs=1, rollout_steps=1)
        if self.steps < 1:
            update = f"{self.num_envs} x {self.rollout_steps}, after {self.learning_starts} at the start"
            problem = f"{self.environment_steps} is too small; an update takes {update}"
            raise ConfigError(f"{type(self).__name__}.environment_steps: {problem}")
        _check_steps(self, self.steps)

    @property
    def steps(self) -> int:
        """Number of updates."""
        return (self.environment_steps - self.learning_starts) // (self.num_envs * self.rollout_steps)

    def check_environment_steps(self, taken: EnvironmentSteps) -> None:
        """Checks that a learner takes as many environment steps as the config counts.

        Raises:
          ConfigError: it takes more or fewer.
        """
        counted = EnvironmentSteps(self.learning_starts, self.num_envs * self.rollout_steps)
        if taken != counted:
            hint = "; for host environments it is 0, and `learning_starts` of the learner is a field of its own"
            steps = f"{taken.per_update} environment steps per update and {taken.before_first_update} before the first"
            per_update = f"{counted.per_update} (num_envs {self.num_envs} x rollout_steps {self.rollout_steps})"
            before = f"{counted.before_first_update} (learning_starts{hint if counted.before_first_update else ''})"
            problem = f"the learner takes {steps}, but the config counts {per_update} and {before}"
            raise ConfigError(f"{type(self).__name__}: {problem}. Build the learner with the config's values")

    def environment_steps_after(self, steps: int) -> int:
        """Number of environment steps after a number of updates.

        >>> RLTraining(learning_starts=100, num_envs=4, rollout_steps=128).environment_steps_after(2)
        1124
        """
        return self.learning_starts + steps * self.num_envs * self.rollout_steps


def _check_steps(config: LoopConfig, steps: int) -> None:
    if steps >= 2**31:  # the loop counts them in int32
        raise ConfigError(f"{type(config).__name__}: {steps} updates are too many; there must be fewer than 2**31")


def with_steps(config: T, steps: int) -> T:
    """Copies a config with another number of updates.

    >>> with_steps(RLTraining(), 7).steps
    7
    """
    # The number of updates of an agent follows from its environment steps.
    if isinstance(config, RLTraining):
        return dataclasses.replace(config, environment_steps=config.environment_steps_after(steps))
    return dataclasses.replace(config, steps=steps)  # type: ignore[type-var]


def check_at_least(config: Any, **smallest: int) -> None:
    """Checks that fields are not smaller than allowed; None passes.

    Args:
      config: the config.
      **smallest: the smallest allowed value, by field.

    Raises:
      ConfigError: a field is smaller.

    >>> check_at_least(Training(), steps=10)
    """
    for name, number in smallest.items():
        value = getattr(config, name)
        if value is not None and value < number:
            raise ConfigError(f"{type(config).__name__}.{name}: {value} is too small; it must be at least {number}")
