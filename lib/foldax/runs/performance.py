"""Speed, memory and learning rate of a run, in a file of their own: its metrics are the same bits in every run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import RLTraining, traced_config
from foldax.engine import compiled, hardware
from foldax.engine.fold import make_learner
from foldax.engine.state import Run
from foldax.field_values import is_config


class Performance:
    """Measures a run between log lines.

    Steps are timed with the evaluations and checkpoints between them, but without compiling and hooks.

    Args:
      run: the run before its first chunk.
    """

    def __init__(self, run: Run) -> None:
        self._config, self._rates = run.config, learning_rates(run)
        self._units = units_per_step(run)
        self._device = next(iter(run.fold.step.devices()))
        # Model FLOPs utilisation, where the speed that it is relative to is known (Chowdhery et al., 2022).
        peak = hardware.peak_flops(self._device)
        if peak is not None:
            arguments = run.arguments
            flops = compiled.update_flops(run.program, arguments["config"], arguments["seed"], run.fold, run.block.data)
            self._units["mfu"] = flops / (peak * run.program.num_devices)
        self._counted: tuple[int, float] | None = None

    def exclude(self, seconds: float) -> None:
        """Leaves out a time that was no training, such as that of a hook."""
        if self._counted is not None:
            self._counted = self._counted[0], self._counted[1] + seconds

    def measure(self, step: int, log_step: int) -> dict[str, float]:
        """Returns the speeds since the last call, the memory in use, and the learning rate.

        Args:
          step: number of updates done.
          log_step: the update whose learning rate is asked for.
        """
        now = compiled.training_clock()
        line = {name: float(values[self._row(log_step)]) for name, values in self._rates.items()}
        # Not since the start: the first chunk is mostly compiling.
        if self._counted is not None and now > self._counted[1]:
            speed = (step - self._counted[0]) / (now - self._counted[1])
            line |= {name: units * speed for name, units in self._units.items()}
        self._counted = step, now
        return line | hardware.memory_in_use(self._device)

    def _row(self, step: int) -> int:
        # Log lines end at multiples of the log period, and at the last step.
        return -(-step // self._config.log_period) - 1


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
