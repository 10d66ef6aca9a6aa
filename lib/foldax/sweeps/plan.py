"""The plan of a sweep: its members, in groups that share one program and one dataset."""

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from foldax.config_fields import field_kinds
from foldax.data.protocol import Dataset
from foldax.engine import setup
from foldax.engine.current_program import inputs_of
from foldax.errors import ConfigError
from foldax.experiment import Experiment
from foldax.field_values import is_config
from foldax.sweeps import space as spaces
from foldax.sweeps.exact import Member, devices_per_member, worker_devices
from foldax.sweeps.space import Config, Overrides, Range, Space
from foldax.sweeps.vmapped import can_be_sharded, data_specs, memory_estimate

EXECUTIONS = ("exact", "fast")


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that share one program.

    Attributes:
      members: in the order of their numbers.
      execution: "exact" (one after another on each device, bit for bit as single runs) or "fast" (vmapped).
      max_concurrent: how many members run at a time.
      member_bytes: upper bound of the memory of one member, without the dataset; a mesh divides it.
      devices_per_member: size of the members' mesh.
    """

    members: list[Member]
    execution: str
    max_concurrent: int
    member_bytes: int
    devices_per_member: int = 1

    def metadata(self) -> dict[str, Any]:
        """Entry of the group in `sweep.json`."""
        structural = spaces.structural_values(self.members[0].config)
        return {"structural": structural, "members": len(self.members), "execution": self.execution}


class Plan(NamedTuple):
    """All members of a sweep, grouped by program.

    Attributes:
      configs: config of each member, by number.
      groups: one per program.
      fields: names of the swept fields, without the seed.
    """

    configs: list[Config]
    groups: list[Group]
    fields: list[str]


def make_plan(
    experiment: Experiment,
    config: Config,
    space: Space,
    seeds: int = 1,
    samples: int | None = None,
    execution: str | None = None,
    max_concurrent: int | None = None,
) -> Plan:
    """Plans a grid or random search: loads the data to the host, but compiles and trains nothing.

    Args:
      experiment: the experiment that all members run.
      config: the base config.
      space: from `parse_space`.
      seeds: members per config.
      samples: number of random configs; None plans the whole grid.
      execution: see `Group`; by default "exact" on CPUs and where members have a mesh, and "fast" elsewhere.
      max_concurrent: upper limit of `Group.max_concurrent`.

    Raises:
      ConfigError: an option is not allowed.

    >>> import foldax
    >>> learner = lambda config, info: foldax.Learner(
    ...     lambda key, examples: 0.0, lambda state, batch, key: (state, {}), lambda state, batch, key: {})
    >>> plan = make_plan(foldax.Experiment(foldax.Training, learner), foldax.Training(), {"steps": [5, 6]}, seeds=3)
    >>> [len(group.members) for group in plan.groups]
    [3, 3]
    """
    planner = Planner(experiment, config, space, seeds, execution, max_concurrent)
    return planner.plan(spaces.enumerate_overrides(space, samples, config.seed))


@dataclasses.dataclass
class Planner:
    """Groups members by program; remembers groups and datasets, so that a search can plan again with more configs.

    Attributes:
      experiment: the experiment that all members run.
      config: the base config.
      space: from `parse_space`.
      seeds: members per config.
      execution: see `Group`; a group that cannot run "fast" is "exact" nevertheless.
      max_concurrent: upper limit of members that run at a time, or None.
    """

    experiment: Experiment
    config: Config
    space: Space
    seeds: int = 1
    execution: str | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        if self.execution not in (None, *EXECUTIONS):
            raise ConfigError(f"execution: {self.execution!r} is neither 'exact' nor 'fast'")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(f"max_concurrent: {self.max_concurrent} is too small; it must be at least 1")
        divided = divided_mesh(self.config, self.space)
        if divided is not None and self.execution == "fast":
            problem = f"{divided!r} divides each member, but a vmapped program (fast) gives whole ones to each device"
            raise ConfigError(f"mesh: {problem}; --exact trains members one after another on the mesh")
        is_exact = divided is not None or jax.default_backend() == "cpu"
        self.execution = self.execution or ("exact" if is_exact else "fast")
        self._datasets, self._groups = DatasetCache(self.experiment), dict[Any, int]()
        self._specs = dict[int, Any]()

    def plan(self, all_overrides: Sequence[Overrides]) -> Plan:
        """Makes the members of some configs, grouped by program."""
        configs = spaces.member_configs(self.config, all_overrides, self.seeds)
        by_group: dict[int, list[Member]] = {}
        for number, config in enumerate(configs):
            with inputs_of(self.experiment, config):
                dataset = self._datasets(config)
            # Vmapped members advance together, so they must also agree in log_every, patience and the like.
            driver = config.mesh if self.execution == "exact" else _driver_values(config)
            key = (spaces.structure(config), id(dataset), driver)
            # A search plans again with more configs: groups keep their numbers.
            group = self._groups.setdefault(key, len(self._groups))
            by_group.setdefault(group, []).append(Member(number, group, config, dataset))
        groups = []
        for members in by_group.values():
            with inputs_of(self.experiment, members[0].config):
                groups.append(self._group(members))
        return Plan(configs, groups, self._swept_fields())

    def _swept_fields(self) -> list[str]:
        fields: dict[str, None] = {}
        for name, values in self.space.items():
            if isinstance(values, Range) or len(values) > 1:
                # A swept nested config is a column for each of its fields.
                nested = [*values] if isinstance(values, list) else []
                inner = [f"{name}.{rest}" for value in nested if is_config(value) for rest in spaces.flat_values(value)]
                fields |= dict.fromkeys(inner or [name])
        return list(fields)

    def _group(self, members: list[Member]) -> Group:
        dataset, devices = members[0].dataset, worker_devices(members[0].config.mesh)
        specs = self._specs.get(id(dataset)) or data_specs(dataset)
        self._specs[id(dataset)] = specs  # groups may share a dataset
        # A stream has one order, but vmapped members would need one each; step dispatch has no loop to vmap.
        streams = dataset is not None and not hasattr(dataset.train.feed, "num_examples")
        exact = self.execution == "exact" or streams or members[0].config.dispatch == "step"
        exact = exact or (len(devices) > 1 and not can_be_sharded(self.experiment, members[0], specs))
        # Exact members need one device or mesh each; vmapped ones share devices as far as memory allows.
        member_bytes, in_memory = memory_estimate(self.experiment, members[0], specs)
        concurrent = min(len(devices), in_memory) if exact else in_memory
        concurrent = max(1, min(len(members), concurrent, self.max_concurrent or concurrent))
        per_member = devices_per_member(members[0].config.mesh)
        return Group(members, "exact" if exact else "fast", concurrent, member_bytes, per_member)


def divided_mesh(config: Config, space: Space) -> str | None:
    """Finds a mesh of the planned members that divides them over several devices, or returns None.

    Args:
      config: the base config.
      space: from `parse_space`.

    Raises:
      ConfigError: a mesh does not fit this process's devices.

    >>> import foldax
    >>> divided_mesh(foldax.Training(), {}) is None
    True
    """
    values = space.get("mesh", [config.mesh])
    meshes = values if isinstance(values, list) else []
    return next((mesh for mesh in meshes if devices_per_member(mesh) > 1), None)


def _driver_values(config: Config) -> str:
    driver = [name for name, kind in field_kinds(type(config)).items() if kind == "driver" and name != "seed"]
    return str({name: getattr(config, name) for name in driver})


class DatasetCache:
    """Loads the datasets of configs, once for all configs that agree in the fields that the dataset depends on.

    These are the fields that `Experiment.dataset` reads, or all fields if the dataset keeps the config, since then it
    may read others later.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._cache: list[tuple[dict[str, Any], Dataset | None]] = []

    def __call__(self, config: Config) -> Dataset | None:
        """Loads a config's dataset, or returns the one already loaded; None where the experiment has none.

        Raises:
          ExperimentError: `Experiment.dataset` failed, or returned no dataset.
        """
        for fields, dataset in self._cache:
            if all(getattr(config, name) == value for name, value in fields.items()):
                return dataset
        # Which fields the dataset depends on is observed, not declared.
        tracked, read = _track_reads(config)
        dataset = setup.load_dataset(self._experiment, tracked)
        object.__setattr__(tracked, "__class__", type(config))  # whoever keeps it has an ordinary config
        keeper = weakref.ref(tracked)
        del tracked
        if keeper() is not None:
            gc.collect()  # reference cycles may keep it for no one
        names = read if keeper() is None else config.__dataclass_fields__
        self._cache.append(({name: getattr(config, name) for name in names}, dataset))
        return dataset


def _track_reads(config: Config) -> tuple[Config, set[str]]:
    """Copies a config; the set grows by the name of each field that is read from the copy."""
    cls, read = type(config), set[str]()

    class Tracked(cls):  # type: ignore[misc,valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name == "__class__":  # dataclasses compare it in `==`
                return cls
            read.update(cls.__dataclass_fields__ if name == "__dict__" else {name} & cls.__dataclass_fields__.keys())
            return super().__getattribute__(name)

    Tracked.__name__ = cls.__name__
    copy = object.__new__(Tracked)
    for name in cls.__dataclass_fields__:
        object.__setattr__(copy, name, getattr(config, name))
    read.clear()
    return copy, read
