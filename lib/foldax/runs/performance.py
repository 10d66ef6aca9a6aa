"""Speed, memory and learning rate of a run, in a file of their own: its metrics are the same bits in every run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import RLTraining, traced_config
from foldax.engine import compiled, hardware
from foldax.engine.fold import make_learner
from foldax.engine.state import Run
from foldax.field_values import is_config

UNITS = {f"{unit}_per_second": unit.replace("_", " ") for unit in ("examples", "tokens", "environment_steps")}


class Rates(NamedTuple):
    """Steps and the seconds that they took: those of chunks without an evaluation, and of all chunks."""

    clean_steps: int = 0
    clean_seconds: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    def add(self, steps: int, seconds: float, is_clean: bool) -> "Rates":
        """Adds a chunk.

        >>> Rates().add(10, 2.0, is_clean=True).add(10, 6.0, is_clean=False).steps_per_second
        5.0
        """
        clean = self.clean_steps + steps * is_clean, self.clean_seconds + seconds * is_clean
        return Rates(*clean, self.steps + steps, self.seconds + seconds)

    @property
    def steps_per_second(self) -> float | None:
        """Of chunks without an evaluation; of all where each has one; None where no time is known."""
        steps, seconds = self[:2] if self.clean_seconds > 0 else self[2:]
        return steps / seconds if seconds > 0 else None


class Performance:
    """Measures a run: speeds over chunks of steps without evaluations, compiling and hooks, memory, learning rate."""

    def __init__(self) -> None:
        self._units: dict[str, float] = {}
        self._rates: Mapping[str, np.ndarray] = {}
        self._num_devices, self._log_period = 1, 1
        self._device: Any = None
        self._counted: tuple[int, float] | None = None
        self._evaluated = False
        self._since_line = self._total = Rates()

    def start(self, run: Run, with_learning_rates: bool = False) -> None:
        """Begins to measure a run before its first chunk."""
        self._rates = learning_rates(run) if with_learning_rates else {}
        self._units, self._log_period = units_per_step(run), run.config.log_period
        self._device, self._num_devices = run.fold.step.addressable_shards[0].device, run.program.num_devices
        # Model FLOPs utilisation, where the speed that it is relative to is known (Chowdhery et al., 2022).
        chip = hardware.chip_of(self._device.device_kind)
        if chip is not None:
            arguments = run.arguments
            flops = compiled.update_flops(run.program, arguments["config"], arguments["seed"], run.fold, run.block.data)
            self._units["mfu"] = flops / (chip.flops * self._num_devices)

    def exclude(self, seconds: float) -> None:
        """Leaves out a time that was no training, such as that of a hook."""
        if self._counted is not None:
            self._counted = self._counted[0], self._counted[1] + seconds

    def note_split(self, split: str) -> None:
        """Takes note of metrics of the chunk that is read: of any split but "train" they are those of an evaluation."""
        self._evaluated |= split != "train"

    def add_chunk(self, step: int) -> None:
        """Adds the chunk that ended at `step`, after its metrics and those of its evaluations are read."""
        now = compiled.training_clock()
        # Not since the start: the first chunk is mostly compiling.
        if self._counted is not None and now > self._counted[1]:
            chunk = step - self._counted[0], now - self._counted[1], not self._evaluated
            self._since_line, self._total = self._since_line.add(*chunk), self._total.add(*chunk)
        self._counted, self._evaluated = (step, now), False

    def measure(self, log_step: int) -> dict[str, float]:
        """Returns the speeds since the last call, the memory in use, and the learning rate.

        Args:
          log_step: the update whose learning rate is asked for.
        """
        line = {name: float(values[self._row(log_step)]) for name, values in self._rates.items()}
        line |= self._speeds(self._since_line)
        self._since_line = Rates()
        return line | hardware.memory_in_use(self._device)

    def summary(self) -> dict[str, float]:
        """Returns the speeds of the whole run, the memory in use, and the number of devices; empty before `start`."""
        if self._device is None:
            return {}
        memory = hardware.memory_in_use(self._device)
        return self._speeds(self._total) | memory | {"devices": self._num_devices}

    def text(self) -> str:
        """Formats the speeds of the whole run, as "12.3 steps/s  196k tokens/s/chip  MFU 41%  14.9 of 15.8 GiB"."""
        return performance_text(self.summary())

    def _speeds(self, rates: Rates) -> dict[str, float]:
        speed = rates.steps_per_second
        return {} if speed is None else {name: units * speed for name, units in self._units.items()}

    def _row(self, step: int) -> int:
        # Log lines end at multiples of the log period, and at the last step.
        return -(-step // self._log_period) - 1


def performance_text(performance: Mapping[str, float]) -> str:
    """Formats speeds and memory for a line; empty if no speed is known.

    Args:
      performance: values by name, as `Performance.summary` returns them.

    >>> rates = {"steps_per_second": 12.34, "tokens_per_second": 392_000.0, "mfu": 0.412, "devices": 2}
    >>> performance_text(rates | {"peak_memory_bytes": 14.9 * 2**30, "memory_limit_bytes": 15.75 * 2**30})
    '12.3 steps/s  196k tokens/s/chip  MFU 41%  14.9 of 15.8 GiB'
    """
    if "steps_per_second" not in performance:
        return ""
    speed, num_devices = performance["steps_per_second"], performance.get("devices", 1)
    texts = [f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s"]
    per_chip = "/chip" if num_devices > 1 else ""
    for name, unit in UNITS.items():
        if name in performance:
            texts.append(f"{short_number(performance[name] / num_devices)} {unit}/s{per_chip}")
    if "mfu" in performance:
        texts.append(f"MFU {performance['mfu']:.0%}")
    if "memory_limit_bytes" in performance:
        used, limit = (performance[name] / 2**30 for name in ("peak_memory_bytes", "memory_limit_bytes"))
        texts.append(f"{used:.1f} of {limit:.1f} GiB")
    return "  ".join(texts)


def short_number(value: float) -> str:
    """Formats a number with three digits and a suffix for thousands.

    >>> short_number(196_000), short_number(1_234_567), short_number(12.34)
    ('196k', '1.23M', '12.3')
    """
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def units_per_step(run: Run) -> dict[str, float]:
    """Counts what one update consumes, by the name of its rate: a step, and environment steps, tokens or examples."""
    config, info = run.config, run.program.info
    units = {"steps_per_second": 1.0}
    if isinstance(config, RLTraining):
        return units | {"environment_steps_per_second": float(config.num_envs * config.rollout_steps)}
    if info is None:
        return units
    if getattr(info, "vocabulary_size", None) is not None:
        return units | {"tokens_per_second": float(info.batch_size * math.prod(info.shapes["inputs"]))}
    return units | {"examples_per_second": float(info.batch_size)}


def learning_rates(run: Run) -> Mapping[str, np.ndarray]:
    """Computes the learning rates of the log lines `[L]`, by name; empty if the learner builds no `optim.Optimizer`.

    Each is the rate of the last update before the line. All are computed before the run: a program that computes one
    would wait for the chunk that the device runs.
    """
    from foldax.optim.optimizer import record_builds

    # Built in a trace, as for training, because some learners cannot be built elsewhere.
    @jax.jit
    def rates(config: Any) -> dict[str, jax.Array]:
        with record_builds() as builds:
            make_learner(run.program, config)
        unique = {(id(optimizer), calls): optimizer for optimizer, calls in builds}
        names = _names(list(unique.values()), config)
        lines = [_rates_of_lines(optimizer, calls, run.config) for (_, calls), optimizer in unique.items()]
        return dict(zip(names, lines, strict=True))

    return jax.device_get(rates(traced_config(run.config)))


def _rates_of_lines(optimizer: Any, calls: int, config: Any) -> jax.Array:
    from foldax.optim.optimizer import build_schedule

    every = config.log_period
    ends = np.arange(every, config.steps + every, every)
    schedule = build_schedule(optimizer, max(calls // optimizer.accumulate_steps, 1))
    if not callable(schedule):
        return jnp.full(len(ends), schedule, jnp.float32)
    # The optimizer is called equally often in every update of the run, and counts its own updates from 0.
    calls_per_step = calls / config.steps / optimizer.accumulate_steps
    done = np.floor(np.minimum(ends, config.steps) * calls_per_step + 1e-6)
    return jax.vmap(schedule)(np.maximum(done - 1, 0).astype(np.int32))


def _names(optimizers: list[Any], config: Any) -> list[str]:
    """Names the learning rate of each optimizer: by its field if there are several, else by a number."""
    if len(optimizers) == 1:
        return ["learning_rate"]
    fields = {id(value): path for path, value in _nested(config)}
    return [f"{fields.get(id(one), f'optimizer_{index}')}.learning_rate" for index, one in enumerate(optimizers)]


def _nested(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if is_config(type(value)):
            found += [(prefix + field.name, value), *_nested(value, f"{prefix}{field.name}.")]
    return found
