"""Training speed of two CPU devices, which share batches, against one device on one core and on all of them.

    python research/throughput/devices.py [--rounds N] [--json FILE]

Each figure is that of a process of its own, as the number of CPU devices is fixed once JAX has started; contenders take
turns for several rounds. README.md beside this file has the results.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import foldax
from foldax import data, learners, models

EXAMPLES, IMAGE = 64_000, (28, 28, 1)  # 200 MB in float32
BATCH_SIZE, STEPS = 128, 150
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
# A program of one device divides its operations among all cores; a device of two has a core for itself.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@foldax.config
class Config(foldax.Training):
    evaluate_every = 0  # only at the end
    batch_size: int = BATCH_SIZE
    learning_rate: float = 1e-3


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.CNN(info.num_classes, (32, 64), dense=(256,))
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


def steps_per_second(devices: int, batch_size: int) -> float:
    """Trains the CNN of the throughput study on random images and returns its speed without compilation."""
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.normal(size=(EXAMPLES, *IMAGE)).astype(np.float32),
        "targets": rng.integers(0, 10, EXAMPLES).astype(np.int32),
    }
    config = Config(steps=STEPS, batch_size=batch_size, mesh=f"data={devices}")
    dataset = data.from_arrays(arrays, batch_size=batch_size)
    result = foldax.train(foldax.Experiment(Config, learner), config, dataset=dataset, save=False, verbose=False)
    return result.steps_per_second


def start(devices: int, batch_size: int, cores: list[int]) -> subprocess.Popen[str]:
    """Starts a process that measures on these cores and prints its speed."""
    flags = f"--xla_force_host_platform_device_count={devices} " + ONE_THREAD * (len(cores) == 1 or devices > 1)
    command = [sys.executable, __file__, "--measure", str(devices), str(batch_size), *map(str, cores)]
    return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True)


def speed(*runs: tuple[int, int, list[int]]) -> float:
    """Runs processes at the same time; returns how many whole batches of all they train on in a second."""
    processes = [start(*run) for run in runs]
    speeds = [float(process.communicate()[0]) for process in processes]
    return sum(speed * batch_size for speed, (_, batch_size, _) in zip(speeds, runs, strict=True)) / BATCH_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of all contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    parser.add_argument("--measure", nargs="+", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        devices, batch_size, *cores = arguments.measure
        with contextlib.suppress(AttributeError):  # not every system binds processes to cores
            os.sched_setaffinity(0, cores)
        print(steps_per_second(devices, batch_size))
        return
    if len(CORES) < 2:
        parser.error("this compares two devices on two cores, and this process has one core")
    first, second = CORES[:2]
    contenders = {
        "two devices, a core each": [(2, BATCH_SIZE, [first, second])],
        "one device on one core": [(1, BATCH_SIZE, [first])],
        "one device on both cores": [(1, BATCH_SIZE, [first, second])],
        "two runs of half the batch, a core each": [(1, BATCH_SIZE // 2, [core]) for core in (first, second)],
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, runs in contenders.items():
            speeds[name].append(speed(*runs))
    table = Table("", title=f"200 MB of images: CNN 32-64, dense 256, batch {BATCH_SIZE}", title_justify="left")
    for heading in ("steps/s (median)", "lowest to highest", "first row / this"):
        table.add_column(heading, justify="right")
    rows = next(iter(speeds.values()))
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(rows, values, strict=True))
        spread = f"{min(values):.1f} to {max(values):.1f}"
        table.add_row(name, f"{statistics.median(values):.1f}", spread, f"{ratio:.3f}")
    Console(width=110).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(speeds, indent=1) + "\n")


if __name__ == "__main__":
    main()
