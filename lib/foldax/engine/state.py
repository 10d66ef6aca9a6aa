"""A run as the host keeps it, and what its driver tells and asks the world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from foldax.engine import compiled
from foldax.engine.evaluation import Evaluation
from foldax.engine.fold import Best, Fold, Program, Report

NEVER = 2**31 - 1  # steps


class Hooks(NamedTuple):
    """What the driver tells the world, and asks it; the defaults do nothing.

    Attributes:
      log: `(step, split, metrics)`, in the order of the steps.
      progress: `(step)`, for a progress bar.
      interrupted: `()`, whether to save and stop at the next boundary.
      resumed: `(step) -> history`, the lines logged up to a checkpoint's step.
      ready: `(run)` once before the first chunk, for a summary.
      initial: `(state) -> state` on the host, which changes the first state, such as to parameters of another run.
      checkpoints: `Checkpoints`, or what works like them: where to save, and to resume from; None: nowhere.
      profile: folder for a profile; None: none.
    """

    log: Callable[[int, str, dict[str, float]], None] = lambda step, split, metrics: None
    progress: Callable[[int], None] = lambda step: None
    interrupted: Callable[[], bool] = lambda: False
    resumed: Callable[[int], list[dict[str, Any]]] = lambda step: []
    ready: Callable[[Run], None] = lambda run: None
    initial: Callable[[Any], Any] | None = None
    checkpoints: Any = None
    profile: Path | None = None


class Calls(NamedTuple):
    """The compiled functions of a run: `programs`' own, or the same mapped over members side by side."""

    advance: Callable[..., Any] = compiled.advance
    evaluate: Callable[..., Any] = compiled.evaluate
    observe: Callable[..., Any] = compiled.observe


@dataclasses.dataclass
class Run:
    """The host's bookkeeping of a run; `fold` and `best` are all that has to be saved.

    Attributes:
      program: what is static.
      config: as the user made it.
      arguments: what programs are given: traced config, seed, examples, and a block of data.
      dataset: the data, or None.
      fold: on the device, after all that was dispatched.
      best: likewise.
      step: where the host has dispatched to.
      blocks: the blocks of data to come.
      block: the present one.
      history: what was logged.
      rows: how many members the arrays have side by side; None in a lone run.
    """

    program: Program
    config: Any
    arguments: dict[str, Any]
    dataset: Any
    fold: Fold
    best: Best
    step: int
    blocks: Generator[Any, Any, None]
    block: Any
    history: list[dict[str, Any]]
    saved_at: float
    began: tuple[float, float]
    saved_step: int = -1
    chunks: int = 0
    loop_began: tuple[int, float, float] | None = None
    seconds_per_step: float = 0.0
    rows: int | None = None
    calls: Calls = dataclasses.field(default_factory=Calls)


class Boundary(NamedTuple):
    """What was dispatched up to a boundary, to be read while the next chunk runs."""

    start: int
    end: int
    report: Report
    evaluation: Evaluation | None
    stopped: jax.Array | None
    snapshot: tuple[Fold, Best] | None
    cursor: dict[str, Any] | None
