"""The plan of a sweep: its members, in groups that share one program and one dataset."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from foldax.configuration import kinds
from foldax.engine import compiled
from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import Experiment
from foldax.sweeps.exact import Member
from foldax.sweeps.space import Range, Space, member_configs, points, structure
from foldax.sweeps.vmapped import can_be_divided, members_in_memory

WAYS = ("exact", "fast")


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that share one program.

    Attributes:
      members: in the order of their numbers.
      way: "exact": one after another on every device, with the bits of lone runs; "fast": side by side.
      at_once: how many run at a time.
      member_bytes: an upper bound of what one needs on its device, the data aside.
    """

    members: list[Member]
    way: str
    at_once: int
    member_bytes: int


class Plan(NamedTuple):
    """What a sweep will do.

    Attributes:
      configs: of every member, in order.
      groups: one for each program.
      fields: names of the fields that differ between members, the seed aside.
    """

    configs: list[Any]
    groups: list[Group]
    fields: list[str]


def plan(
    experiment: Experiment,
    config: Any,
    space: Space,
    seeds: int = 1,
    samples: int | None = None,
    way: str | None = None,
    members_at_once: int | None = None,
) -> Plan:
    """Returns the members of a sweep in groups of one program each; loads the data, runs nothing.

    Raises:
      ConfigError: see `sweep`.
    """
    return Planner(experiment, config, seeds, way, members_at_once)(space, points(space, samples, config.seed))


class Planner:
    """Puts members into groups of one program each; a group that was there before keeps its number and its data."""

    def __init__(
        self, experiment: Experiment, config: Any, seeds: int, way: str | None, members_at_once: int | None
    ) -> None:
        self.experiment, self.config, self.seeds, self.members_at_once = experiment, config, seeds, members_at_once
        self.way = way or ("exact" if jax.default_backend() == "cpu" else "fast")
        if self.way not in WAYS:
            raise ConfigError(f"way: {way!r} is neither 'exact' nor 'fast'")
        if members_at_once is not None and members_at_once < 1:
            raise ConfigError(f"members_at_once: {members_at_once} is too small; it must be at least 1")
        self._datasets, self._groups = Datasets(experiment), dict[Any, int]()

    def __call__(self, space: Space, settings: list[dict[str, Any]]) -> Plan:
        """Returns the members of some settings, in groups."""
        configs, found = member_configs(self.config, settings, self.seeds), dict[int, list[Member]]()
        if any(one.devices > 1 for one in configs):
            raise ConfigError("devices: a sweep gives whole members to each device, so this must be 1")
        for number, one in enumerate(configs):
            dataset = self._datasets(one)
            key = (structure(one), id(dataset), None if self.way == "exact" else _driver_fields(one))
            group = self._groups.setdefault(key, len(self._groups))
            found.setdefault(group, []).append(Member(number, group, one, dataset))
        groups = [_group(self.experiment, members, self.way, self.members_at_once) for members in found.values()]
        fields = [name for name, values in space.items() if isinstance(values, Range) or len(values) > 1]
        return Plan(configs, groups, fields)


def _driver_fields(config: Any) -> str:
    """Returns the driver fields that members side by side must share, as text."""
    return str(
        {
            name: getattr(config, name)
            for name, kind in kinds(type(config)).items()
            if kind == "driver" and name != "seed"
        }
    )


def _group(experiment: Experiment, members: list[Member], way: str, members_at_once: int | None) -> Group:
    dataset, devices = members[0].dataset, jax.local_device_count()
    if dataset is not None and not hasattr(dataset.train.feed, "num_examples"):
        way = "exact"  # data that streams cannot be shared by members with orders of their own
    if members[0].config.dispatch == "step":
        way = "exact"
    if way == "fast" and devices > 1 and not can_be_divided(experiment, members[0]):
        way = "exact"
    size, fitting = members_in_memory(experiment, members[0])
    at_once = min(devices, fitting) if way == "exact" else fitting
    return Group(members, way, max(1, min(len(members), at_once, members_at_once or at_once)), size)


class Datasets:
    """The datasets of an experiment's configs: one for all that agree in the fields which `dataset` reads."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._known = experiment, list[tuple[dict[str, Any], Any]]()

    def __call__(self, config: Any) -> Any:
        """Returns a config's dataset, loading it if no config before had it."""
        if self._experiment.dataset is None:
            return None
        for fields, dataset in self._known:
            if all(getattr(config, name) == value for name, value in fields.items()):
                return dataset
        watched, read = _watched(config)
        with compiled.own_code(self._experiment):
            dataset = self._experiment.dataset(watched)
        if not hasattr(dataset, "splits"):
            raise ExperimentError(f"the experiment's `dataset` returned {type(dataset).__name__}, not a data.Dataset")
        self._known.append(({name: getattr(config, name) for name in read}, dataset))
        return dataset


def _watched(config: Any) -> tuple[Any, set[str]]:
    """Returns a copy of a config that passes for it, and the names of its fields that have been read."""
    cls, read = type(config), set[str]()

    class Watched(cls):  # type: ignore[misc,valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name == "__class__":  # what `==` of dataclasses compares
                return cls
            read.update(cls.__dataclass_fields__ if name == "__dict__" else {name} & cls.__dataclass_fields__.keys())
            return super().__getattribute__(name)

    Watched.__name__ = cls.__name__
    copy = object.__new__(Watched)
    for name in cls.__dataclass_fields__:
        object.__setattr__(copy, name, getattr(config, name))
    read.clear()
    return copy, read
