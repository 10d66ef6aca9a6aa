"""Chips that are not here, for which XLA compiles all the same: `v5e:4x4`, `h100:8`."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from foldax.engine.hardware import CHIPS, Chip
from foldax.errors import ConfigError, did_you_mean

# Axes of a topology, by the name of a TPU.
TPU_AXES = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
GPUS_PER_HOST = 8
# Set before a TPU's compiler is loaded: it must look for no TPU, and several processes may have it at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class GPU(NamedTuple):
    """What XLA asks of a GPU beside its memory: NVIDIA's tuning guides, and XLA's target_config/specs.

    Attributes:
      kind: as JAX names the device.
      capability: of CUDA, major and minor.
      cores: streaming multiprocessors.
      units_per_core: float32 units of one.
      threads_per_core: at most.
      shared_memory: bytes of a core, and at most of a block.
      cache: bytes of the second level.
      clock: GHz.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    units_per_core: int
    threads_per_core: int
    shared_memory: tuple[int, int]
    cache: int
    clock: float


_HOPPER = ((9, 0), 132, 128, 2048, (233_472, 232_448), 52_428_800, 1.98)
_AMPERE = ((8, 0), 108, 64, 2048, (167_936, 166_912), 41_943_040, 1.41)
GPUS = {
    "t4": GPU("Tesla T4", (7, 5), 40, 64, 1024, (65_536, 65_536), 4_194_304, 1.59),
    "v100-16gb": GPU("Tesla V100-SXM2-16GB", (7, 0), 80, 64, 2048, (98_304, 98_304), 6_291_456, 1.53),
    "a100-40gb": GPU("NVIDIA A100-SXM4-40GB", *_AMPERE),
    "a100-80gb": GPU("NVIDIA A100-SXM4-80GB", *_AMPERE),
    "h100": GPU("NVIDIA H100 80GB HBM3", *_HOPPER),
    "h200": GPU("NVIDIA H200", *_HOPPER),
    "b200": GPU("NVIDIA B200", (10, 0), 148, 128, 2048, (233_472, 232_448), 132_644_864, 1.965),
}


class Target(NamedTuple):
    """Chips to compile for.

    Attributes:
      chip: what one of them can do.
      sizes: of the topology: `(4, 4)` TPUs, `(8,)` GPUs.
    """

    chip: Chip
    sizes: tuple[int, ...]

    @property
    def platform(self) -> str:
        """ "tpu" or "cuda"."""
        return "tpu" if self.chip.name in TPU_AXES else "cuda"

    @property
    def name(self) -> str:
        """As in `--on`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.sizes))}"


def parse_target(text: str) -> Target:
    """Parses the chips of `--on`; a name alone is one chip.

    Raises:
      ConfigError: there is no such chip, or it has no such topology.

    >>> parse_target("v5e:4x4").sizes, parse_target("h100").name
    ((4, 4), 'h100:1')
    """
    name, colon, layout = text.lower().partition(":")
    names = [*TPU_AXES, *GPUS]
    if name not in names:
        hint = did_you_mean(name, names)
        raise ConfigError(f"--on: there is no chip {name!r}{hint} (chips: {', '.join(names)})")
    axes = TPU_AXES.get(name, 1)
    sizes = tuple(int(size) for size in re.findall(r"\d+", layout)) if colon else (1,) * axes
    if (colon and not re.fullmatch(r"\d+(x\d+)*", layout)) or len(sizes) != axes or 0 in sizes:
        example = f"{name}:{'x'.join(['4'] * axes) if name in TPU_AXES else GPUS_PER_HOST}"
        raise ConfigError(f"--on: {text!r} is no topology of {name}, which has {axes} sizes, such as {example!r}")
    if name in GPUS and sizes[0] > GPUS_PER_HOST and sizes[0] % GPUS_PER_HOST:
        raise ConfigError(
            f"--on: {text!r}: more than {GPUS_PER_HOST} GPUs must be a multiple of {GPUS_PER_HOST}, whole hosts"
        )
    return Target(next(chip for chip in CHIPS.values() if chip.name == name), sizes)


def check_compiler(target: Target) -> None:
    """Checks that the compiler for the chips is installed.

    Raises:
      ConfigError: it is not; says which extra has it.
    """
    modules = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")}[target.platform]
    try:
        found = any(importlib.util.find_spec(module) for module in modules)
    except ModuleNotFoundError:  # the package around a plugin
        found = False
    if not found:
        extra = {"tpu": "plan-tpu", "cuda": "plan-gpu"}[target.platform]
        what = {"tpu": "of TPUs (libtpu)", "cuda": "of GPUs (JAX's CUDA plugin)"}[target.platform]
        raise ConfigError(f"--on: the compiler {what} is not installed: pip install 'foldax[{extra}]'")


def make_devices(target: Target) -> list[Any]:
    """Makes devices that programs can be compiled for, but not run on; `ENVIRONMENT` has to be set before.

    Raises:
      ConfigError: the compiler refuses the topology.
    """
    from jax.experimental import topologies

    missing = {name: value for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    assert not missing, missing
    if target.platform == "tpu":
        # Hosts of 2 x 2 chips where they fit: only there are other sizes of a topology allowed.
        hosts = [2 if size % 2 == 0 else 1 for size in target.sizes[:2]]
        options: dict[str, Any] = {"chips_per_host_bounds": (*hosts, 1)}
        # Both cores of a chip as one device, as a TPU v4 has them.
        options |= {"chip_config_name": "megacore"} if target.chip.name == "v4" else {}
        arguments: tuple[str, ...] = (target.name, "tpu")
    else:
        count = target.sizes[0]
        per_host = min(count, GPUS_PER_HOST)
        options = {"topology": f"1x{count // per_host}x{per_host}", "target_config": _target_config(target.chip)}
        arguments = ("", "cuda")
    try:
        return list(topologies.get_topology_desc(*arguments, **options).devices)
    except Exception as error:
        raise ConfigError(f"--on: {target.name!r} is no topology of the compiler: {error}") from error


def num_devices(target: Target) -> int:
    """Number of devices, as JAX counts them.

    >>> num_devices(parse_target("v3:2x2")), num_devices(parse_target("v5e:2x2"))
    (8, 4)
    """
    return math.prod(target.sizes) * (2 if target.chip.name in ("v2", "v3", "tpu7x") else 1)


def _target_config(chip: Chip) -> str:
    """Describes a GPU to XLA, as the text of its `GpuTargetConfigProto`."""
    gpu = GPUS[chip.name]
    (major, minor), (shared, block) = gpu.capability, gpu.shared_memory
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: {gpu.threads_per_core}
  shared_memory_per_block: 49152  shared_memory_per_core: {shared}  shared_memory_per_block_optin: {block}
  core_count: {gpu.cores}  fpus_per_core: {gpu.units_per_core}  clock_rate_ghz: {gpu.clock}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {chip.memory_bandwidth:.0f}  device_memory_size: {chip.memory:.0f}  l2_cache_size: {gpu.cache}
  cuda_compute_capability {{ major: {major}  minor: {minor} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9  minor: 10 }}
runtime_version {{ major: 12  minor: 8 }}
device_description_str: "{gpu.kind}"
"""
