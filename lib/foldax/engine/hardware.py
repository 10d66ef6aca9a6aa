"""What is known of the devices: peak speed, for the utilisation of a run, and memory in use."""

import os
import re
import sys
from pathlib import Path

import jax

# Dense bfloat16 FLOP/s of one device (float16 where there is no bfloat16), by a pattern of its whole kind.
# TPUs: cloud.google.com/tpu/docs, page of each version. GPUs: NVIDIA's data sheet of each, without sparsity.
PEAK_FLOPS = {
    r"TPU v4": 275e12,
    r"TPU v5( lite|e)": 197e12,
    r"TPU v5p?": 459e12,
    r"TPU v6( lite|e)": 918e12,
    r"Tesla V100-SXM\d-\d+GB": 125e12,
    r"Tesla T4": 65e12,
    r"(NVIDIA )?A100.*GB( PCIe)?": 312e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA (H100 80GB HBM3|H200|GH200 480GB)": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak floating-point operations a second of a device in its matrix units; None where that is not known.

    No CPU is in the table, nor is a part of a GPU (MIG).

    >>> peak_flops(jax.devices("cpu")[0]) is None
    True
    """
    return next((flops for kind, flops in PEAK_FLOPS.items() if re.fullmatch(kind, device.device_kind)), None)


def memory_in_use(device: jax.Device) -> dict[str, float]:
    """Bytes in use now and at most so far: on the device, or of this process where the device does not count them.

    >>> sorted(memory_in_use(jax.devices("cpu")[0]))
    ['memory_bytes', 'peak_memory_bytes']
    """
    if stats := device.memory_stats():
        names = {"memory_bytes": "bytes_in_use", "peak_memory_bytes": "peak_bytes_in_use"}
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
