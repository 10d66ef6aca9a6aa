"""Sweeps past one machine: workers on a Ray cluster or in Slurm jobs train slices of a sweep's members.

Scheduling is Ray's or Slurm's. This module cuts groups into slices, submits a slice again when its worker is lost, and
collects the results.
"""

import collections
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from foldax import errors
from foldax.configuration import to_json
from foldax.engine.checkpoint import checkpoint_steps
from foldax.engine.current_program import inputs_of
from foldax.errors import ConfigError, FoldaxError, RunError
from foldax.experiment import Experiment, experiment_file
from foldax.runs import folder
from foldax.runs.transfer import pretrained
from foldax.sweeps.exact import MemberResult
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.launchers.pool import Handle, WorkerPool
from foldax.sweeps.launchers.ray import Ray, ray_pool
from foldax.sweeps.launchers.slurm import Slurm, slurm_pool
from foldax.sweeps.launchers.worker import Event, Job
from foldax.sweeps.plan import Plan
from foldax.sweeps.populations import PBT, SuccessiveHalving
from foldax.sweeps.search import Search
from foldax.sweeps.space import Config

Launcher: TypeAlias = Ray | Slurm
LAUNCHERS: dict[str, type[Launcher]] = {"ray": Ray, "slurm": Slurm}
MAX_ATTEMPTS = 3  # of a slice whose workers are lost before one of its members ends or saves a new checkpoint
POLL_SECONDS = 0.1
STOP_SECONDS = 10.0  # time that workers have to save and stop before they are killed


class Attempts(NamedTuple):
    """Progress of a slice when its last worker was lost, and the number of workers in turn that made none."""

    num_remaining: int
    step: int
    failed: int


def check_launcher(launcher: Launcher, experiment: Experiment, search: Search | None, save: bool) -> None:
    """Checks that a sweep can be launched.

    Raises:
      ConfigError: an option is not allowed, or the sweep cannot run on workers.

    >>> import foldax
    >>> check_launcher(Slurm(workers=0), foldax.Experiment(foldax.Training, None), None, True)
    Traceback (most recent call last):
    foldax.errors.ConfigError: launcher: workers is 0; it must be at least 1
    """
    if not isinstance(launcher, (Ray, Slurm)):
        raise ConfigError(f"launcher: {launcher!r} is neither foldax.Ray() nor foldax.Slurm()")
    for name, minimum in (("workers", 1), ("cpus", 1), ("minutes", 1), ("gpus", 0)):
        value = getattr(launcher, name, None)
        if value is not None and value < minimum:
            raise ConfigError(f"launcher: {name} is {value}; it must be at least {minimum}")
    if isinstance(launcher, Slurm) and launcher.cluster not in ("slurm", "local"):
        raise ConfigError(f"launcher: cluster {launcher.cluster!r} is neither 'slurm' nor 'local'")
    if isinstance(launcher, Slurm) and not save:
        raise ConfigError("launcher: Slurm's workers answer through the sweep folder, and save=False makes none")
    if isinstance(search, SuccessiveHalving | PBT):
        name = type(search).__name__
        raise ConfigError(f"launcher: {name} compares members while they train, so they must stay in one process")
    if experiment_file(experiment) is None:
        raise ConfigError(
            "launcher: workers load the experiment from its file, and this one has none: save it as a .py"
        )


def launch(
    experiment: Experiment, plan: Plan, launcher: Launcher, callbacks: SweepCallbacks, path: Path | None
) -> None:
    """Trains all members of a plan that have no result yet on the launcher's workers.

    Args:
      experiment: the experiment that all members run; it must have a file.
      plan: the members.
      launcher: which workers.
      callbacks: take steps and results.
      path: the sweep folder, or None.

    Raises:
      FoldaxError: the launcher's package is missing, or a worker raised an error that would be raised again.
      RunError: the cluster does not answer, workers are lost again and again, or one has other data.
    """
    members = {member.number: member for group in plan.groups for member in group.members}
    fingerprints = {number: member.data_fingerprint for number, member in members.items()}
    with ray_pool(launcher) if isinstance(launcher, Ray) else slurm_pool(launcher, path) as pool:
        # 1. Cut what is left of the plan into jobs.
        waiting = collections.deque(make_jobs(experiment, plan, launcher.cpus, pool, callbacks, path))
        running: list[tuple[Job, Handle]] = []
        attempts: dict[int, Attempts] = {}  # by slice
        try:
            while (waiting or running) and not callbacks.stop_requested():
                # 2. Keep every worker busy.
                while waiting and len(running) < pool.count:
                    running.append((waiting[0], pool.submit(waiting.popleft())))
                # 3. Collect results; what a lost worker leaves behind is submitted again, first.
                for job, handle in list(running):
                    events, end_reason = pool.poll(handle)
                    with inputs_of(experiment, members[job["slice"]].config):
                        for event in events:
                            handle_event(event, job, fingerprints, callbacks)
                    if end_reason is not None:
                        running.remove((job, handle))
                        waiting.extendleft(_remaining_jobs(job, end_reason, attempts, callbacks))
                time.sleep(POLL_SECONDS)
        finally:
            _stop(pool, [handle for _, handle in running], callbacks)


def _remaining_jobs(job: Job, end_reason: str, attempts: dict[int, Attempts], callbacks: SweepCallbacks) -> list[Job]:
    """Makes a job of the members that have no result although their job has ended; none if all have one.

    Raises:
      RunError: the slice made no progress in `MAX_ATTEMPTS` attempts.
    """
    # A vmapped slice is submitted whole, since the bits of its members depend on its size.
    remaining = [(number, config) for number, config in job["members"] if number not in callbacks.store.results]
    if not remaining:
        return []
    # A time limit that is shorter than a member's training is no failure while its checkpoints advance.
    before = attempts.get(job["slice"], Attempts(len(job["members"]), 0, 0))
    num_remaining, step = len(remaining), _checkpoint_step(job)
    progressed = num_remaining < before.num_remaining or step > before.step
    attempt = Attempts(num_remaining, step, 1 if progressed else before.failed + 1)
    attempts[job["slice"]] = attempt
    if attempt.failed == MAX_ATTEMPTS:
        numbers = ", ".join(str(number) for number, _ in remaining[:8]) + (", ..." if len(remaining) > 8 else "")
        raise RunError(f"{MAX_ATTEMPTS} workers in turn were lost with the members {numbers}; the last: {end_reason}")
    return [{**job, "members": remaining if job["execution"] == "exact" else job["members"]}]


def _checkpoint_step(job: Job) -> int:
    """Sum of the steps of the newest checkpoints of a job's members; 0 without a sweep folder."""
    if not job["folder"]:
        return 0
    folders = [folder.checkpoint_folder(Path(job["folder"])) / str(number) for number, _ in job["members"]]
    return sum(max(checkpoint_steps(one), default=0) for one in folders)


def _stop(pool: WorkerPool, handles: list[Handle], callbacks: SweepCallbacks) -> None:
    """Asks running jobs to save and stop, takes their last results, and kills those that do not stop in time."""
    for handle in handles:
        pool.stop(handle)
    deadline = time.monotonic() + STOP_SECONDS
    while handles and time.monotonic() < deadline:
        for handle in list(handles):
            events, end_reason = pool.poll(handle)
            # Errors and steps no longer matter: the sweep is ending anyway.
            for kind, *values in events:
                if kind == "result":
                    callbacks.on_result(MemberResult(**values[0]))
            if end_reason is not None:
                handles.remove(handle)
        time.sleep(POLL_SECONDS)
    for handle in handles:
        pool.cancel(handle)


def make_jobs(
    experiment: Experiment, plan: Plan, cpus: int, pool: WorkerPool, callbacks: SweepCallbacks, path: Path | None
) -> Iterator[Job]:
    """Yields jobs for the members that have no result yet, each a slice of one group.

    Args:
      experiment: the experiment that all members run; it must have a file.
      plan: the members.
      cpus: CPU devices of a worker.
      pool: the workers, whose number determines the size of slices.
      callbacks: hold the results so far.
      path: the sweep folder, or None.
    """
    file = experiment_file(experiment)
    assert file is not None
    sources = sources_beside(file)
    results = callbacks.store.results
    total = sum(len(group.members) for group in plan.groups)
    for group in plan.groups:
        if group.execution == "exact":
            members = [member for member in group.members if member.number not in results]
            # Several slices per worker balance the load, at the price of starting each.
            size = math.ceil(total / (pool.slices_per_worker * pool.count))
        else:
            # The bits of a vmapped member depend on its batch, so slices must not depend on the results so far.
            members, size = group.members, min(group.max_concurrent, math.ceil(len(group.members) / pool.count))
        for first in range(0, len(members), size):
            part = members[first : first + size]
            if all(member.number in results for member in part):
                continue
            yield {
                "slice": part[0].number,
                "file": str(file),
                "sources": sources,
                "members": [(member.number, _config_as_json(member.config)) for member in part],
                "group": group.members[0].group,
                "execution": group.execution,
                "max_concurrent": min(cpus, group.max_concurrent) if group.execution == "exact" else len(part),
                "devices": cpus,
                "folder": None if path is None else str(path.resolve()),
            }


def sources_beside(file: Path) -> list[tuple[str, str]]:
    """Paths and texts of an experiment file and of the modules in its folder that have been imported, for workers.

    Paths are relative to the folder. By the time of a plan the experiment has imported what it needs.
    """
    sources = {file.name: file.read_text()}
    for name, module in sorted(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "")
        relative = name.replace(".", "/")
        if path in (file.parent / f"{relative}.py", file.parent / relative / "__init__.py") and path.is_file():
            sources[str(path.relative_to(file.parent))] = path.read_text()
    return list(sources.items())


def _config_as_json(config: Config) -> dict[str, object]:
    """Converts a config to JSON values, with an absolute `init_from`, for workers have other working directories."""
    values = to_json(config)
    return values | ({"init_from": str(Path(config.init_from).resolve())} if config.init_from else {})


def handle_event(event: Event, job: Job, fingerprints: dict[int, str | None], callbacks: SweepCallbacks) -> None:
    """Passes an event of a worker to the sweep's callbacks.

    Args:
      event: see `worker.Event`.
      job: the job of the worker.
      fingerprints: fingerprint of the dataset by member number.
      callbacks: take steps and results.

    Raises:
      FoldaxError: the error that the worker raised.
      RunError: the worker has other data.
    """
    kind, *values = event
    if kind == "steps":
        for number, step in values[0]:
            callbacks.on_steps([number], step)
    elif kind == "result":
        callbacks.on_result(MemberResult(**values[0]))
    elif kind == "data" and values[0] != fingerprints[job["members"][0][0]]:
        raise RunError("a worker loaded other data than is here: their fingerprints differ; see its FOLDAX_CACHE")
    elif kind == "inputs":
        pretrained.add_inputs(values[0])
    elif kind == "error":
        # The worker's own class of error, so that the exit code and message are those of a local sweep.
        raise getattr(errors, values[0], FoldaxError)(values[1])
