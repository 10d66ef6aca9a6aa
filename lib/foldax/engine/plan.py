"""What a run needs on chips that are not here: its own program, compiled for them.

The bound of a step's time is none that a run could beat: the largest of the times that its operations, its state's way
through memory and its communication take at the chips' full speeds. A real step takes longer.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from foldax.configuration import parse_interval
from foldax.engine import compiled, setup
from foldax.engine import fold as folds
from foldax.engine.collectives import Collective, find_collectives
from foldax.engine.fold import Fold, Program
from foldax.engine.layout import make_mesh
from foldax.engine.topology import Target, make_devices, num_devices
from foldax.errors import ConfigError
from foldax.experiment import Experiment
from foldax.mesh import mesh_sizes
from foldax.platforms import tracing_for
from foldax.rl.host_environment import HostEnvironment

# Both texts of the TPU's compiler: of what it needs, and of what there is.
OUT_OF_MEMORY = (
    r"Used ([\d.]+[KMGT]?) of [\d.]+[KMGT]? hbm",
    r"total memory required for .*? \(([\d.]+[KMGT]?)\) exceeds available HBM",
)


class RunPlan(NamedTuple):
    """What a run needs on some chips; bytes are those of one device.

    Attributes:
      devices: number of those that the run's mesh takes.
      available: number of devices of the target.
      batch_size: examples of a batch, over all devices; None without a dataset.
      parameters: number of parameters.
      state: bytes of the learner's state, or of a device's part of it.
      peak: bytes of the training program at most, with state and data; what it would need if it does not fit.
      best: bytes of the best state, where it is kept.
      snapshot: bytes of the copy that is made for a checkpoint.
      fits: whether all that is less than the memory of a chip.
      flops: operations of a step, of its mathematics, on all devices.
      moved: bytes that a step reads and writes at least: the state, once each.
      collectives: communication of a step, by kind.
      compute_seconds: bound of a step's time by its operations.
      memory_seconds: by its state's way through memory.
      link_seconds: by its communication.
    """

    devices: int
    available: int
    batch_size: int | None
    parameters: int
    state: float
    peak: float
    best: float
    snapshot: float
    fits: bool
    flops: float
    moved: float
    collectives: dict[str, Collective]
    compute_seconds: float
    memory_seconds: float
    link_seconds: float

    @property
    def total(self) -> float:
        """Bytes of memory that a device needs."""
        return self.peak + self.best + self.snapshot

    @property
    def step_seconds(self) -> float:
        """Bound of a step's time: no step is faster."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def mfu(self) -> float:
        """Bound of the model FLOPs utilisation: none is higher."""
        return self.compute_seconds / self.step_seconds if self.step_seconds else 0.0


def plan_run(experiment: Experiment, config: Any, target: Target) -> RunPlan:
    """Compiles a run's training program for chips, and says what it needs.

    One process should plan one run: a compiler may end it, and JAX keeps what was traced for another platform. It needs
    as many devices of the CPU as the mesh takes, for the layout of its data.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`.
      target: the chips.

    Raises:
      ConfigError: the run is none of one program, or its mesh does not fit the target or its batches.
      ExperimentError: the experiment's own code failed.
    """
    dataset = setup.load_dataset(experiment, config)
    if isinstance(dataset, HostEnvironment):
        raise ConfigError("the environments of this experiment are on the host, which decides how fast it is: no plan")
    if config.dispatch != "loop":
        raise ConfigError(f"dispatch: {config.dispatch!r} dispatches every step from the host; a plan is of 'loop'")
    sizes = mesh_sizes(config.mesh, num_devices(target), target.name)
    config = dataclasses.replace(config, mesh=",".join(f"{axis}={size}" for axis, size in sizes.items()))
    devices = make_devices(target)
    with tracing_for("tpu" if target.platform == "tpu" else "gpu"):
        # 1. The run on as many devices of the CPU, for the layout of its data; then on those of the target.
        program, arguments = setup.initial_fold_arguments(experiment, config, dataset)
        if program.layout is not None and (mesh := make_mesh(config.mesh, devices)) is not None:
            program = program._replace(layout=program.layout._replace(mesh=mesh))
        data_specs = jax.tree.map(lambda x: getattr(x.sharding, "spec", PartitionSpec()), arguments[3])
        traced_config, seed, examples, data = jax.tree.map(_shape, arguments)
        with compiled.user_errors(program, *arguments):
            fold = jax.eval_shape(functools.partial(folds.initial_fold, program), traced_config, seed, examples, data)
            best = jax.eval_shape(functools.partial(folds.inference_state, program), traced_config, fold.state)
            flops = compiled.update_flops(program, traced_config, seed, fold, data)
            lowered = _lower(program, devices[0], data_specs, (traced_config, seed, fold, data))
    # 2. Memory.
    peak, collectives, was_compiled = _compile(lowered)
    state, chip = _bytes_on_device(program, {"state": fold.state}), target.chip
    keeps_best = config.keep == "best" and setup.has_monitored_split(config, dataset)
    best_bytes = _bytes_on_device(program, {"state": best}) * keeps_best
    snapshot = _bytes_on_device(program, fold) * (parse_interval(config.checkpoint_every) != (0, math.inf))
    # 3. Bounds.
    moved = 2 * state
    return RunPlan(
        devices=program.num_devices,
        available=len(devices),
        batch_size=getattr(program.info, "batch_size", None),
        parameters=_num_parameters(fold),
        state=state,
        peak=peak,
        best=best_bytes,
        snapshot=snapshot,
        fits=was_compiled and peak + best_bytes + snapshot <= chip.memory,
        flops=flops,
        moved=moved,
        collectives=collectives,
        compute_seconds=flops / (chip.flops * program.num_devices),
        memory_seconds=moved / chip.memory_bandwidth,
        link_seconds=sum(one.sent for one in collectives.values()) / chip.link_bandwidth,
    )


def _shape(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x), sharding=sharding)


def _lower(program: Program, device: Any, data_specs: Any, arguments: tuple[Any, ...]) -> Any:
    """Lowers `advance` for the devices, with shapes in the place of all arrays."""
    layout = program.layout
    if layout is None:
        shardings: Any = jax.tree.map(lambda _: SingleDeviceSharding(device), arguments)
        whole: Any = SingleDeviceSharding(device)
    else:
        whole = NamedSharding(layout.mesh, PartitionSpec())
        placed = jax.tree.map(lambda _, spec: NamedSharding(layout.mesh, spec), arguments[3], data_specs)
        shardings = (*layout.shardings(arguments[:3]), placed)
    config, seed, fold, data = jax.tree.map(_shape, arguments, shardings)
    stopped, number = _shape(np.array(False), whole), _shape(np.int32(0), whole)
    advance = jax.jit(folds.advance, static_argnames="program", donate_argnames="fold")
    return advance.lower(program, config, seed, fold, stopped, data, number, number, number)


def _bytes_on_device(program: Program, tree: Any) -> float:
    """Bytes that one device has of a fold or a part of it."""
    if program.layout is None:
        return float(compiled.state_bytes(tree))
    shardings = program.layout.shardings(tree)
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return float(sum(jax.tree.leaves(sizes)))


def _compile(lowered: Any) -> tuple[float, dict[str, Collective], bool]:
    """Compiles; returns the bytes at most, the communication, and whether it fits what the compiler lets it have."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := bytes_needed(str(error))) is None:
            raise
        return needed, {}, False
    memory = program.memory_analysis()
    return float(memory.peak_memory_in_bytes), find_collectives(program.as_text()), True


def bytes_needed(message: str) -> float | None:
    """Reads from an error of the TPU's compiler how much memory a program needs; None if it is another error.

    >>> bytes_needed("Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.") / 2**30
    20.5
    """
    for pattern in OUT_OF_MEMORY:
        if match := re.search(pattern, message):
            number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", match[1]).groups()  # type: ignore[union-attr]
            return float(number) * 1024 ** " KMGT".index(unit or " ")
    return None


def _num_parameters(fold: Fold) -> int:
    from foldax.engine.state_leaves import leaves_by_path

    leaves = leaves_by_path(fold.state)
    parameters = {name: leaf for name, leaf in leaves.items() if "params" in name.split(".")} or leaves
    return sum(leaf.size for leaf in parameters.values())
