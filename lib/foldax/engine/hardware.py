"""What is known of the devices: their speeds and memory, for the utilisation of a run, and the memory in use."""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """What one device, as JAX counts them, can do at most.

    Attributes:
      name: as `--on` of a plan has it.
      flops: dense bfloat16 FLOP/s of its matrix units (float16 where there is no bfloat16).
      memory: bytes that a program can use.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s that it can send to other devices over all links together, in one direction.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float


# By a pattern of the whole device kind. FLOP/s and bandwidths of TPUs: cloud.google.com/tpu/docs, page of each version,
# of v2 and v3 also Jouppi et al. (2020), "A domain-specific supercomputer for training deep neural networks". A device
# is a core of v2, v3 and TPU7x, half a chip. Memory of TPUs: what their compiler lets a program have.
# GPUs: NVIDIA's data sheet of each, without sparsity; links are NVLink's, of T4, L4 and L40S PCI Express. Their memory
# and its bandwidth: what the driver reports, as in XLA's target_config/specs, else the data sheet.
CHIPS = {
    r"TPU v2": Chip("v2", 23e12, 7.48 * GIB, 350e9, 124e9),
    r"TPU v3": Chip("v3", 61.5e12, 15.48 * GIB, 450e9, 164e9),
    r"TPU v4": Chip("v4", 275e12, 30.75 * GIB, 1200e9, 300e9),
    r"TPU v5( lite|e)": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9),
    r"TPU v5p?": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9),
    r"TPU v6( lite|e)": Chip("v6e", 918e12, 31.25 * GIB, 1640e9, 400e9),
    r"TPU7x": Chip("tpu7x", 1153.5e12, 94.75 * GIB, 3690e9, 300e9),
    r"Tesla V100-SXM\d-16GB": Chip("v100-16gb", 125e12, 16_935_682_048, 898e9, 150e9),
    r"Tesla V100-SXM\d-32GB": Chip("v100-32gb", 125e12, 32e9, 898e9, 150e9),
    r"(NVIDIA |Tesla )?T4": Chip("t4", 65e12, 16e9, 320e9, 16e9),
    r"(NVIDIA )?A100-SXM\d?-?40GB": Chip("a100-40gb", 312e12, 42_331_013_120, 1555e9, 300e9),
    r"(NVIDIA )?A100-SXM\d?-?80GB": Chip("a100-80gb", 312e12, 85_100_068_864, 2039e9, 300e9),
    r"(NVIDIA )?A100-PCIE-40GB": Chip("a100-pcie-40gb", 312e12, 42_331_013_120, 1555e9, 300e9),
    r"(NVIDIA )?A100 80GB PCIe": Chip("a100-pcie-80gb", 312e12, 85_100_068_864, 1935e9, 300e9),
    r"NVIDIA L4": Chip("l4", 121e12, 24e9, 300e9, 32e9),
    r"NVIDIA L40S": Chip("l40s", 362e12, 48e9, 864e9, 32e9),
    r"NVIDIA H100 PCIe": Chip("h100-pcie", 756e12, 84_942_979_072, 2039e9, 300e9),
    r"NVIDIA H100 80GB HBM3": Chip("h100", 989e12, 84_942_979_072, 3352e9, 450e9),
    r"NVIDIA GH200 480GB": Chip("gh200", 989e12, 96e9, 4000e9, 450e9),
    r"NVIDIA H200( 141GB HBM3e)?": Chip("h200", 989e12, 151_397_597_184, 4800e9, 450e9),
    r"NVIDIA B200": Chip("b200", 2250e12, 191_514_411_008, 7672e9, 900e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """Looks up what a kind of device can do; None where that is not known.

    No CPU is in the table, nor is a part of a GPU (MIG).

    >>> chip_of("TPU v5 lite").name, chip_of("cpu")
    ('v5e', None)
    """
    return next((chip for kind, chip in CHIPS.items() if re.fullmatch(kind, device_kind)), None)


def memory_in_use(device: jax.Device) -> dict[str, float]:
    """Bytes in use now, at most so far, and allowed: on the device, or of this process where it does not count them.

    >>> sorted(memory_in_use(jax.devices("cpu")[0]))
    ['memory_bytes', 'peak_memory_bytes']
    """
    if stats := device.memory_stats():
        names = {"memory_bytes": "bytes_in_use", "peak_memory_bytes": "peak_bytes_in_use"}
        names["memory_limit_bytes"] = "bytes_limit"
        return {name: float(stats[key]) for name, key in names.items() if key in stats}
    try:
        import resource
    except ImportError:  # Windows has none
        return {}
    # Linux counts it in kibibytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    statm = Path("/proc/self/statm")
    if statm.exists():
        memory["memory_bytes"] = float(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return memory
