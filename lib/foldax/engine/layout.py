"""The layout of a run over several devices: which axis of which array is divided over which axis of the mesh.

Every device computes its share of each batch, and holds its share of the state. XLA adds the communication: it gathers
parameters where they are used, and adds up gradients (GSPMD: Xu et al., 2021).
"""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from foldax.errors import ConfigError, ExperimentError, did_you_mean
from foldax.learner import ShardingRule
from foldax.mesh import AXES, BATCH_AXES, axis_names, mesh_sizes
from foldax.parameter_paths import path_name

T = TypeVar("T")

MIN_DIVIDED_SIZE = 2**18  # elements of the smallest array that is divided without a rule; below, latency costs more
# The parallel environments of an agent: each device steps its own.
ENVIRONMENT_RULES: tuple[ShardingRule, ...] = ((r"(^|/)environment_state/", (BATCH_AXES, ...)),)


class Layout(NamedTuple):
    """How the arrays of a run are divided over devices; hashable, because it is static in the compiled program.

    Attributes:
      mesh: the devices, with the axes "data", "fsdp" and "tensor".
      rules: of the learner, see `foldax.Learner`.
      threshold: number of elements from which on an array is divided without a rule.
    """

    mesh: Mesh
    rules: tuple[ShardingRule, ...] = ()
    threshold: int = MIN_DIVIDED_SIZE

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Decides how an array of the state is divided.

        1. The first rule whose pattern is found in the path and whose axes divide the shape.
        2. If that leaves "fsdp" unused, and the array is large: its largest free axis that "fsdp" divides.

        Args:
          path: such as "state/params/blocks/mlp_in/kernel".
          shape: of the array.
        """
        axes: list[Any] = [None] * len(shape)
        for pattern, names in (*self.rules, *ENVIRONMENT_RULES):
            if re.search(pattern, path) and (aligned := self._align(names, shape)) is not None:
                axes = aligned
                break
        size = self.mesh.shape["fsdp"]
        used = {name for entry in axes for name in axis_names(entry)}
        if size > 1 and "fsdp" not in used and math.prod(shape) >= self.threshold:
            free = [i for i, length in enumerate(shape) if axes[i] is None and length % size == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = "fsdp"
        return PartitionSpec(*axes)

    def _align(self, names: tuple[Any, ...], shape: tuple[int, ...]) -> list[Any] | None:
        """Aligns a rule to the last axes of a shape, to the first ones if it ends in "..."; None if it does not fit."""
        leading = names[-1:] == (...,)
        entries = list(names[:-1] if leading else names)
        free = [None] * (len(shape) - len(entries))
        if len(entries) > len(shape):
            return None
        axes = entries + free if leading else free + entries
        fits = (
            length % math.prod(self.mesh.shape[n] for n in axis_names(entry)) == 0 for entry, length in zip(axes, shape)
        )
        return axes if all(fits) else None

    def shardings(self, tree: Any) -> Any:
        """Returns the sharding of each array of a pytree, such as a fold; also of `jax.ShapeDtypeStruct`s."""

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self.spec(path_name(path), leaf.shape))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def constrain(self, tree: T) -> T:
        """Lays out the arrays of a pytree, inside of a traced function."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def with_rules(self, rules: Iterable[ShardingRule]) -> "Layout":
        """Returns the layout with the rules of a learner.

        Raises:
          ExperimentError: a rule names an axis that there is not, or its pattern is no regular expression.
        """
        for pattern, names in rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ExperimentError(f"sharding_rules: {pattern!r} is no regular expression: {error}") from None
            for name in (name for entry in names if entry is not ... for name in axis_names(entry)):
                if name not in AXES:
                    hint = did_you_mean(name, AXES)
                    raise ExperimentError(f"sharding_rules: {pattern!r} names the axis {name!r}{hint} (axes: {AXES})")
        return self._replace(rules=tuple(rules))

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch `[B, ...]`."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def num_shards(self) -> int:
        """Number of parts into which a batch is divided."""
        return math.prod(self.mesh.shape[name] for name in BATCH_AXES)

    def activate(self) -> AbstractContextManager:
        """Lets `foldax.mesh.shard_batch` and `replicate` find the mesh while a function is traced."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Makes the mesh of a config; None for a single device.

    Args:
      text: see `foldax.mesh.parse_mesh`.
      devices: those of this machine by default; also of a topology that is not here.

    Raises:
      ConfigError: the sizes do not fit the devices.

    >>> make_mesh("data=1") is None
    True
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(text, len(devices))
    count = math.prod(sizes.values())
    if count == 1:
        return None
    # Auto axes: XLA lays out everything between the constraints.
    axis_types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types, devices=devices[:count])
    except AssertionError:  # of TPUs, whose links make a grid
        problem = f"the first {count} of the {len(devices)} devices are no complete grid"
        raise ConfigError(f"mesh: {text!r} cannot be laid out: {problem}; use all of them, or a half") from None
