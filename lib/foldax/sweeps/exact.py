"""Exact execution: each member runs the program of a single training run, so its results are identical bit for bit.

One host thread drives each device and runs members one after another; where a config's `mesh` divides each member, a
thread drives the devices of one mesh. Members of a group share one traced program, which is compiled once per device
or mesh. A loop over members inside one program would not be exact: XLA chooses layouts, and with them fused
multiply-adds, by the code that surrounds the training loop.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
from jax.sharding import Mesh

from foldax.configuration import to_json
from foldax.data.protocol import Dataset
from foldax.engine import compiled, loop, setup
from foldax.engine.current_program import inputs_of
from foldax.engine.layout import Layout, make_mesh
from foldax.engine.state import NEVER, Callbacks, Run
from foldax.engine.state_leaves import state_digest
from foldax.errors import NonFiniteError
from foldax.experiment import Experiment
from foldax.mesh import ONE_DEVICE, mesh_sizes
from foldax.sweeps.space import Config

Item = TypeVar("Item")
# None is JAX's default device, whose programs single runs share; a mesh has the devices of one divided member.
Device: TypeAlias = jax.Device | Mesh | None
OnResult: TypeAlias = "Callable[[MemberResult], None]"  # takes the result of a member that has ended


class Member(NamedTuple):
    """One training run of a sweep: a config with one seed.

    Attributes:
      number: position in the sweep, from 0.
      group: number of the group; members of a group share one program.
      config: the member's config, with its seed.
      dataset: its dataset, or None where the learner needs none.
    """

    number: int
    group: int
    config: Config
    dataset: Dataset | None

    @property
    def data_fingerprint(self) -> str | None:
        """Fingerprint of the dataset, or None without one."""
        return getattr(getattr(self.dataset, "info", None), "fingerprint", None)


class MemberResult(NamedTuple):
    """Final metrics and log of one member.

    Attributes:
      number: the member's number.
      status: "finished", "stopped early", "not finite" or "stopped by the search".
      steps: number of updates; for a member that is not finite, the updates before the first bad one.
      best_step: step of the best evaluation, whose state was tested, or None if the last state was tested.
      metrics: `{split: {name: value}}`, empty for a member that is not finite.
      history: lines of the member's log, `{"step": ..., "split": ..., name: value}`.
      state_sha256: hash of all bits of the last state, or None for a member that is not finite.
      seconds: device time.
      config: the config that it ended with, as JSON; a search may have changed it. Empty in older sweeps.
    """

    number: int
    status: str
    steps: int
    best_step: int | None
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    state_sha256: str | None
    seconds: float
    config: str = ""


class DeviceWorkers:
    """A pool of threads, one per device or mesh, that runs members one after another.

    Attributes:
      experiment: the experiment that all members run.
      devices: one device per thread, see `worker_devices`.
    """

    def __init__(
        self, experiment: Experiment, devices: Sequence[Device], stop_requested: Callable[[], bool] = lambda: False
    ) -> None:
        """Creates the pool; threads exist only during `run_all`.

        Args:
          experiment: the experiment that all members run.
          devices: one device per thread.
          stop_requested: whether to save and stop at the next chunk boundary.
        """
        self.experiment, self.devices = experiment, list(devices)
        self._placed: dict[tuple[int, Device], Dataset] = {}
        self._stop_requested, self._failed = stop_requested, threading.Event()
        self._compile_lock, self._compiled = threading.Lock(), set[tuple[int, Device]]()
        self._seconds_per_step: dict[int, float] = {}

    def stop_requested(self) -> bool:
        """Whether all threads have to stop: the caller asks for it, or one of them failed."""
        return self._failed.is_set() or self._stop_requested()

    def run_all(self, items: Iterable[Item], work: Callable[[Item, Device], None]) -> None:
        """Calls `work(item, device)` for all items in order, each on the first free device."""
        waiting, lock = iter(items), threading.Lock()

        def drive(device: Device) -> None:
            while not self.stop_requested():
                # Iterators are not safe to share between threads.
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    work(item, device)
                # The other threads stop at their next chunk boundary, and their members are saved.
                except BaseException:
                    self._failed.set()
                    raise

        with ThreadPoolExecutor(len(self.devices), thread_name_prefix="foldax-device") as pool:
            futures = [pool.submit(drive, device) for device in self.devices]
            # Waits with a timeout, so that the main thread runs the handlers of signals in between.
            while wait(futures, timeout=0.1).not_done:
                pass
        for future in futures:
            future.result()

    def on_device(self, member: Member, device: Device) -> Member:
        """Gives a member the copy of its dataset on a device, which all members there share."""
        if member.dataset is None:
            return member
        key = (id(member.dataset), device)
        if key not in self._placed:
            place: Any = Layout(device).batch_sharding if isinstance(device, Mesh) else device
            self._placed[key] = member.dataset.to(place)
        return member._replace(dataset=self._placed[key])

    def start_run(self, member: Member, device: Device, callbacks: Callbacks) -> Run:
        """Starts or resumes a member's run on a device that already holds its dataset."""
        with inputs_of(self.experiment, member.config), self._compile_once(member.group, device):
            run = setup.start_run(self.experiment, member.config, callbacks, member.dataset, device)
            # The speed of earlier members sizes the chunks of this one from its first step.
            run.seconds_per_step = self._seconds_per_step.get(member.group, 0.0)
            return run

    def fold(self, member: Member, run: Run, device: Device, callbacks: Callbacks, until: int = NEVER) -> str:
        """Trains a member up to step `until` or its end; returns the status of `loop.train_loop`, or "not finite"."""
        try:
            with inputs_of(self.experiment, member.config), compiled.user_errors(run.program, **run.arguments):
                # The first step compiles, alone; the others then run in parallel with all threads.
                with self._compile_once(member.group, device) as first:
                    status = loop.train_loop(run, callbacks, min(until, run.step + 1)) if first else "paused"
                    self._compiled.add((member.group, device))
                if status == "paused" and run.step < until:
                    status = loop.train_loop(run, callbacks, until)
            fastest = self._seconds_per_step.get(member.group, math.inf)
            self._seconds_per_step[member.group] = min(run.seconds_per_step, fastest)
            return status
        except NonFiniteError as error:
            # A member that is not finite has ended; the sweep goes on.
            run.step = error.step
            return "not finite"
        except Exception as error:
            loop.save_after_error(run, callbacks, error)
            raise

    @contextlib.contextmanager
    def _compile_once(self, group: int, device: Device) -> Iterator[bool]:
        """Serialises compilation, so that each program is traced once; yields whether this program is new."""
        if (group, device) in self._compiled:
            yield False
            return
        with self._compile_lock:
            yield True


def worker_devices(mesh: str = ONE_DEVICE) -> list[Device]:
    """Devices of this process for `DeviceWorkers`: one entry for each member that they train at a time.

    The first entry has the devices of a single run, which shares its programs: None, the default device, or a mesh.

    Args:
      mesh: of a member's config; the devices are given out in groups of its size.

    Raises:
      ConfigError: the mesh does not fit the devices.

    >>> len(worker_devices()) == jax.local_device_count()
    True
    """
    devices, size = jax.local_devices(), devices_per_member(mesh)
    if size == 1:
        return [None, *devices[1:]]
    return [make_mesh(mesh, devices[start : start + size]) for start in range(0, len(devices) - size + 1, size)]


def devices_per_member(mesh: str) -> int:
    """Number of this process's devices on which a member trains.

    Args:
      mesh: of the member's config.

    Raises:
      ConfigError: the mesh does not fit the devices.

    >>> devices_per_member("data=1")
    1
    """
    return math.prod(mesh_sizes(mesh, jax.local_device_count()).values())


def member_result(member: Member, run: Run, status: str) -> MemberResult:
    """Evaluates a member whose run has ended.

    Args:
      member: the member.
      run: its run.
      status: see `MemberResult`.
    """
    finite = status != "not finite"
    with inputs_of(run.program.experiment, member.config), compiled.user_errors(run.program, **run.arguments):
        # An interrupted run is not evaluated.
        result = loop.finish_run(run, status if finite else "interrupted")
    best_step, digest = (result.best_step, state_digest(result.final_state)) if finite else (None, None)
    rest = (result.metrics, list(run.history), digest, result.seconds, json.dumps(to_json(member.config)))
    return MemberResult(member.number, status, run.step, best_step, *rest)
