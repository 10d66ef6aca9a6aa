"""Members of a sweep with the bits of their lone runs: the lone run's own program, on every device in turn.

A host thread drives each device, and takes one member after another. Members of a group share one traced program,
which is compiled once for each device. (A loop over members inside one program would be no exact sweep: XLA chooses
layouts, and with them fused multiply-adds, by what is around the loop.)
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax

from foldax.engine import compiled, loop
from foldax.engine.checkpoint import state_digest
from foldax.engine.state import NEVER, Hooks, Run
from foldax.errors import NonFiniteError
from foldax.experiment import Experiment


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
      number: its number in the sweep.
      group: number of the program that it shares with others.
      config: its config, seed included.
      dataset: its data, or None.
    """

    number: int
    group: int
    config: Any
    dataset: Any


class Outcome(NamedTuple):
    """What came of a member.

    Attributes:
      number: its number in the sweep.
      status: "finished", "stopped early", "not finite" or "stopped by the search".
      steps: updates done; of a member that is not finite, before the first bad one.
      best_step: step of the evaluation whose state was tested, or None for the last.
      metrics: final metrics by split, as a run's; none where it is not finite.
      history: the lines of its log.
      state_sha256: hash of all bits of its last state; None where it is not finite.
      seconds: that it took, of one device.
    """

    number: int
    status: str
    steps: int
    best_step: int | None
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    state_sha256: str | None
    seconds: float


class Lanes:
    """Devices, each driven by a thread of its own that folds members one after another.

    Attributes:
      experiment: what the members run.
      devices: to fold on; None is the default one.
      interrupted: `()`, whether to save and stop at the next boundary.
    """

    def __init__(
        self, experiment: Experiment, devices: Sequence[Any], interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self.experiment, self.devices = experiment, list(devices)
        self._interrupted, self._failed = interrupted, threading.Event()
        self._compiling, self._compiled = threading.Lock(), set[tuple[int, Any]]()
        self._speeds: dict[int, float] = {}

    def interrupted(self) -> bool:
        """Whether every lane is to stop: asked to from outside, or because another one failed."""
        return self._failed.is_set() or self._interrupted()

    def each(self, items: Iterable[Any], work: Callable[[Any, Any], None]) -> None:
        """Calls `work(item, device)` for all items in order, each on the first device that is free."""
        waiting, lock = iter(items), threading.Lock()

        def drive(device: Any) -> None:
            while not self.interrupted():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    work(item, device)
                except BaseException:
                    self._failed.set()
                    raise

        with ThreadPoolExecutor(len(self.devices), thread_name_prefix="foldax-device") as pool:
            lanes = [pool.submit(drive, device) for device in self.devices]
            while wait(lanes, timeout=0.1).not_done:  # a signal that reached another thread is handled in between
                pass
        for lane in lanes:
            lane.result()

    def begin(self, member: Member, device: Any, hooks: Hooks) -> Run:
        """Begins or resumes a member's run on a device, whose data must be there."""
        with self._first(member.group, device):
            run = loop.begin(self.experiment, member.config, hooks, member.dataset, device)
            run.seconds_per_step = self._speeds.get(member.group, 0.0)
            return run

    def fold(self, member: Member, run: Run, device: Any, hooks: Hooks, until: int = NEVER) -> str:
        """Folds a member to a step, or its end; returns the driver's status, or "not finite"."""
        try:
            with compiled.explained(run.program, **run.arguments):
                with self._first(member.group, device) as first:
                    status = loop.fold_all(run, hooks, min(until, run.step + 1)) if first else "paused"
                    self._compiled.add((member.group, device))
                if status == "paused" and run.step < until:
                    status = loop.fold_all(run, hooks, until)
            self._speeds[member.group] = min(run.seconds_per_step, self._speeds.get(member.group, math.inf))
            return status
        except NonFiniteError as error:
            run.step = error.step
            return "not finite"

    @contextlib.contextmanager
    def _first(self, group: int, device: Any) -> Any:
        """Lets one thread at a time trace and compile, so that a program is traced once; gives whether it may."""
        if (group, device) in self._compiled:
            yield False
            return
        with self._compiling:
            yield True


def own_devices() -> list[Any]:
    """Returns this process's devices for `Lanes`; None is the default one, whose programs lone runs have compiled."""
    return [None, *jax.local_devices()[1:]]


def outcome(member: Member, run: Run, status: str) -> Outcome:
    """Returns what came of a member whose run has come to its end."""
    if status == "not finite":
        result = loop.finish(run, "interrupted")
        return Outcome(member.number, status, run.step, None, {}, run.history, None, result.seconds)
    with compiled.explained(run.program, **run.arguments):
        result = loop.finish(run, status)
    digest = state_digest(result.final)
    return Outcome(
        member.number, status, run.step, result.best_step, result.metrics, run.history, digest, result.seconds
    )
