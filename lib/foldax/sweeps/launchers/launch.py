"""Sweeps past one machine: members go to workers on a Ray cluster, or as jobs of Slurm; what comes of them is gathered.

The scheduler is theirs. Ours is to cut groups into slices, to send a slice again when its worker is lost, and to keep
what came back.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from foldax import errors
from foldax.configuration import to_json
from foldax.errors import ConfigError, FoldaxError, RunError
from foldax.experiment import Experiment, experiment_file
from foldax.sweeps.exact import Outcome
from foldax.sweeps.groups import Watch
from foldax.sweeps.launchers.worker import Event, fingerprint, work
from foldax.sweeps.plan import Plan

TRIES = 3  # of a slice whose workers are lost before a member of it is done
POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0  # that a Ray cluster may take to accept a connection
STOP_SECONDS = 10.0  # that workers have to save what they are at


class Ray(NamedTuple):
    """Workers on a Ray cluster (Moritz et al., 2018), or on one that is started here for the sweep.

    Attributes:
      workers: most slices at a time; by default as many as the cluster has room for.
      cpus: processors of a worker, each a device of its own where there is no GPU.
      gpus: of a worker.
      address: of the cluster, as "10.0.0.1:6379" or "ray://10.0.0.1:10001"; by default `RAY_ADDRESS`, else a local one.
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float = 0
    address: str | None = None


class Slurm(NamedTuple):
    """Workers as Slurm jobs, submitted by submitit; they answer through the sweep folder, which all must see.

    Attributes:
      workers: most jobs at a time.
      cpus: processors of a job, each a device of its own where there is no GPU.
      gpus: of a job.
      partition: where to submit to; the cluster's default if None.
      minutes: time limit of a job.
      cluster: "slurm", or "local" for processes on this machine, to try it out.
    """

    workers: int = 4
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None
    minutes: int = 60
    cluster: str = "slurm"


def check_launcher(launcher: Any, experiment: Experiment, search: Any, save: bool) -> None:
    """Checks that a sweep can be launched so.

    Raises:
      ConfigError: it cannot; says why.
    """
    if not isinstance(launcher, (Ray, Slurm)):
        raise ConfigError(f"launcher: {launcher!r} is neither foldax.Ray() nor foldax.Slurm()")
    for name, least in (("workers", 1), ("cpus", 1), ("minutes", 1), ("gpus", 0)):
        value = getattr(launcher, name, None)
        if value is not None and value < least:
            raise ConfigError(f"launcher: {name} is {value}; it must be at least {least}")
    if isinstance(launcher, Slurm) and launcher.cluster not in ("slurm", "local"):
        raise ConfigError(f"launcher: cluster {launcher.cluster!r} is neither 'slurm' nor 'local'")
    if isinstance(launcher, Slurm) and not save:
        raise ConfigError("launcher: Slurm's workers answer through the sweep folder, and save=False makes none")
    if search is not None and type(search).__name__ in ("Halving", "PBT"):
        raise ConfigError(
            f"launcher: {type(search).__name__} compares members on their way, so they must stay together"
        )
    if experiment_file(experiment) is None:
        raise ConfigError(
            "launcher: workers load the experiment from its file, and this one has none: save it as a .py"
        )


def launch(experiment: Experiment, made: Plan, launcher: Ray | Slurm, watch: Watch, path: Path | None) -> None:
    """Has workers fold all members that are not done yet.

    Raises:
      FoldaxError: the launcher's package is missing, or a worker failed at something that would fail again.
      RunError: the cluster does not answer, workers were lost again and again, or one has other data.
    """
    data = {m.number: fingerprint(m) for group in made.groups for m in group.members}
    with _ray(launcher) if isinstance(launcher, Ray) else _slurm(launcher, path) as workers:
        waiting = collections.deque(jobs(experiment, made, launcher.cpus, workers, watch, path))
        running: list[tuple[dict[str, Any], Any]] = []
        lost: collections.Counter[int] = collections.Counter()  # workers in turn, by slice
        try:
            while (waiting or running) and not watch.interrupted():
                while waiting and len(running) < workers.count:
                    running.append((waiting[0], workers.submit(waiting.popleft())))
                for job, handle in list(running):
                    events, reason = workers.take(handle)
                    for event in events:
                        take(event, job, data, watch)
                    if reason is not None:
                        running.remove((job, handle))
                        waiting.extendleft(_again(job, reason, lost, watch))
                time.sleep(POLL_SECONDS)
        finally:
            _stop(workers, running, watch)


def _again(job: dict[str, Any], reason: str, lost: collections.Counter[int], watch: Watch) -> list[dict[str, Any]]:
    """Returns what is left of a job that is over.

    Raises:
      RunError: it comes to nothing again and again.
    """
    left = [one for one in job["members"] if one[0] not in watch.records.outcomes]
    lost[job["slice"]] = 1 if len(left) < len(job["members"]) else lost[job["slice"]] + 1
    if left and lost[job["slice"]] == TRIES:
        numbers = ", ".join(str(number) for number, _ in left[:8]) + (", ..." if len(left) > 8 else "")
        raise RunError(f"{TRIES} workers in turn were lost with the members {numbers}; the last: {reason}")
    return [{**job, "members": left if job["way"] == "exact" else job["members"]}] if left else []


def _stop(workers: Any, running: list[tuple[dict[str, Any], Any]], watch: Watch) -> None:
    """Has the jobs that are still running save and stop, and takes what they have done."""
    for _, handle in running:
        workers.stop(handle)
    until, handles = time.monotonic() + STOP_SECONDS, [handle for _, handle in running]
    while handles and time.monotonic() < until:
        for handle in list(handles):
            events, reason = workers.take(handle)
            for kind, *values in events:
                if kind == "done":
                    watch.done(Outcome(**values[0]))
            if reason is not None:
                handles.remove(handle)
        time.sleep(POLL_SECONDS)
    for handle in handles:
        workers.cancel(handle)


def jobs(
    experiment: Experiment, made: Plan, cpus: int, workers: Any, watch: Watch, path: Path | None
) -> Iterator[dict[str, Any]]:
    """Yields what is left of a sweep in slices of at most one group each, as JSON objects that `worker.work` takes."""
    file = experiment_file(experiment)
    assert file is not None
    known = watch.records.outcomes
    total = sum(len(group.members) for group in made.groups)
    for group in made.groups:
        if group.way == "exact":
            members = [member for member in group.members if member.number not in known]
            size = math.ceil(total / (workers.slices * workers.count))
        else:  # what is beside a member counts for its last bits, so slices do not depend on what is done
            members, size = group.members, min(group.at_once, math.ceil(len(group.members) / workers.count))
        for first in range(0, len(members), size):
            some = members[first : first + size]
            if all(member.number in known for member in some):
                continue
            yield {
                "slice": some[0].number,
                "file": str(file),
                "source": file.read_text(),
                "members": [(member.number, _plain(member.config)) for member in some],
                "group": group.members[0].group,
                "way": group.way,
                "at_once": min(cpus, group.at_once) if group.way == "exact" else len(some),
                "devices": cpus,
                "folder": None if path is None else str(path.resolve()),
            }


def _plain(config: Any) -> dict[str, Any]:
    """Returns a config as JSON values, its one path such that a worker finds it from its own working directory."""
    values = to_json(config)
    return values | ({"init_from": str(Path(config.init_from).resolve())} if config.init_from else {})


def take(event: Event, job: dict[str, Any], data: dict[int, str | None], watch: Watch) -> None:
    """Takes what a worker tells.

    Raises:
      FoldaxError: what stopped the worker.
    """
    kind, *values = event
    if kind == "steps":
        for number, step in values[0]:
            watch.step(number, step)
    elif kind == "done":
        watch.done(Outcome(**values[0]))
    elif kind == "data" and values[0] != data[job["members"][0][0]]:
        raise RunError("a worker loaded other data than is here: their fingerprints differ; see its FOLDAX_CACHE")
    elif kind == "error":
        raise getattr(errors, values[0], FoldaxError)(values[1])


class _RayWorkers:
    """Slices as streaming tasks of Ray, which keeps worker processes, and with them compiled programs, alive."""

    slices = 4  # of each worker: fewer wait longer for the slowest, more begin more often

    def __init__(self, ray: Any, launcher: Ray) -> None:
        self._ray, there = ray, ray.cluster_resources()
        room = [there.get("CPU", 0) // launcher.cpus]
        room += [there.get("GPU", 0) // launcher.gpus] if launcher.gpus else []
        self.count = launcher.workers or int(min(room))
        if min(room) < 1:
            there = {name: there.get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(f"launcher: no worker of {launcher.cpus} cpus and {launcher.gpus} gpus fits into {there}")
        options = dict(num_cpus=launcher.cpus, num_gpus=launcher.gpus, max_retries=0, num_returns="streaming")
        self._work = ray.remote(**options)(work)

    def submit(self, job: dict[str, Any]) -> Any:
        """Hands a slice to Ray."""
        return self._work.remote(job)

    def stop(self, handle: Any) -> None:
        """Asks a task to save and stop."""
        self._ray.cancel(handle)

    def cancel(self, handle: Any) -> None:
        """Ends a task at once."""
        self._ray.cancel(handle, force=True)

    def take(self, handle: Any) -> tuple[list[Event], str | None]:
        """Returns the events that have come, and why there will be no more."""
        events: list[Event] = []
        try:
            while self._ray.wait([handle], timeout=0)[0]:
                events.append(self._ray.get(next(handle)))
        except StopIteration:
            return events, "it ended"
        except self._ray.exceptions.RayError as error:
            return events, (str(error).strip() or type(error).__name__).splitlines()[0]
        return events, None


@contextlib.contextmanager
def _ray(launcher: Ray) -> Iterator[_RayWorkers]:
    try:
        import ray
    except ImportError:
        raise FoldaxError("Ray is not installed: pip install 'foldax[ray]'") from None
    if ray.is_initialized():
        yield _RayWorkers(ray, launcher)
        return
    address = launcher.address or os.environ.get("RAY_ADDRESS")
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = dict(address=address)
    if address is None or address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = dict(address="local", include_dashboard=False)
        if launcher.workers:
            options |= dict(num_cpus=launcher.workers * launcher.cpus)
    elif address != "auto":
        _check_answers(address)
    try:
        with _forking():
            ray.init(log_to_driver=False, configure_logging=False, **options)
    except Exception as error:
        raise RunError(f"launcher: cannot use Ray at {address or 'this machine'}: {error}") from error
    try:
        for number, handler in before.items() if main else ():
            signal.signal(number, handler)  # Ray puts its own in their place
        yield _RayWorkers(ray, launcher)
    finally:
        ray.shutdown()  # tasks that are still running end with it


def _check_answers(address: str) -> None:
    """Connects to "host:port" or "ray://host:port".

    Raises:
      ConfigError: it is not of that form.
      RunError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"launcher: the Ray address {address!r} is not of the form host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"launcher: no Ray cluster answers at {address}: {error}; start one with `ray start`") from error


class _SlurmJob:
    """A submitted job, and how far its answers have been read."""

    def __init__(self, job: Any, file: Path) -> None:
        self.job, self.file, self.read = job, file, 0


class _SlurmWorkers:
    """Slices as Slurm jobs, each writing its events as lines of JSON into a file of its own."""

    slices = 1  # of each worker: every one is a new process

    def __init__(self, submitit: Any, launcher: Slurm, folder: Path) -> None:
        self.count, self._folder = launcher.workers, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._executor = submitit.AutoExecutor(folder=folder / "logs", cluster=launcher.cluster)
        options = dict(name="foldax", timeout_min=launcher.minutes, cpus_per_task=launcher.cpus)
        options |= dict(gpus_per_node=int(launcher.gpus)) if launcher.gpus else {}
        options |= dict(slurm_partition=launcher.partition) if launcher.partition else {}
        self._executor.update_parameters(**options)

    def submit(self, job: dict[str, Any]) -> _SlurmJob:
        """Submits a slice."""
        file = self._folder / f"{job['slice']}-{time.time_ns()}.jsonl"
        with _forking():
            return _SlurmJob(self._executor.submit(write_events, job, str(file)), file)

    def stop(self, handle: _SlurmJob) -> None:
        """Asks a job to save and stop."""
        handle.file.with_suffix(".stop").touch()

    def cancel(self, handle: _SlurmJob) -> None:
        """Ends a job at once."""
        handle.job.cancel(check=False)

    def take(self, handle: _SlurmJob) -> tuple[list[Event], str | None]:
        """Returns the events that have come, and why there will be no more."""
        over = handle.job.done()  # asked before the file is read: then nothing comes after
        lines = handle.file.read_bytes()[handle.read :].splitlines(keepends=True) if handle.file.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        handle.read += sum(map(len, whole))
        return [
            tuple(json.loads(line)) for line in whole
        ], f"job {handle.job.job_id} {handle.job.state}" if over else None


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Lets processes be started without JAX's warning: what is forked runs another program at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        yield


def write_events(job: dict[str, Any], file: str) -> None:
    """Does a job and writes its events into a file, line by line, until it is done or a stop file is beside it."""
    with Path(file).open("w") as lines, contextlib.closing(work(job)) as events:
        for event in events:
            lines.write(json.dumps(event) + "\n")
            lines.flush()
            if Path(file).with_suffix(".stop").exists():
                return


@contextlib.contextmanager
def _slurm(launcher: Slurm, path: Path | None) -> Iterator[_SlurmWorkers]:
    try:
        import submitit
    except ImportError:
        raise FoldaxError("submitit is not installed: pip install 'foldax[slurm]'") from None
    assert path is not None
    try:
        workers = _SlurmWorkers(submitit, launcher, path.resolve() / "jobs")
    except RuntimeError as error:  # what submitit raises where there is no `srun`
        raise RunError(f"launcher: cannot submit to Slurm from here: {error}") from error
    yield workers
