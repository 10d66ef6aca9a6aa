"""Workers as Slurm jobs, submitted by submitit."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from foldax.errors import RunError
from foldax.extras import import_extra
from foldax.sweeps.launchers.pool import fork_allowed
from foldax.sweeps.launchers.worker import Event, Job, run_job


class Slurm(NamedTuple):
    """Runs members of a sweep in Slurm jobs, which answer through the sweep folder on a shared file system.

    Attributes:
      workers: maximum number of jobs at a time.
      cpus: CPU cores per job, each a JAX device where there is no GPU.
      gpus: GPUs per job.
      partition: Slurm partition; by default the cluster's default.
      minutes: time limit of a job.
      cluster: "slurm", or "local" for processes on this machine, to try it out.

    >>> Slurm(cluster="local").workers
    4
    """

    workers: int = 4
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None
    minutes: int = 60
    cluster: str = "slurm"


class SubmittedJob:
    """A job of Slurm, its file of events, and the number of bytes read from it."""

    def __init__(self, job: Any, file: Path) -> None:
        self.job, self.file, self.bytes_read = job, file, 0


class SlurmPool:
    """A `WorkerPool` of Slurm jobs, each of which writes its events as JSON lines into a file of its own."""

    slices_per_worker = 1  # each slice starts a process

    def __init__(self, submitit: ModuleType, launcher: Slurm, folder: Path) -> None:
        """Prepares jobs that answer through files in `folder`."""
        self.count, self._folder = launcher.workers, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._executor = submitit.AutoExecutor(folder=folder / "logs", cluster=launcher.cluster)
        options = dict(name="foldax", timeout_min=launcher.minutes, cpus_per_task=launcher.cpus)
        options |= dict(gpus_per_node=int(launcher.gpus)) if launcher.gpus else {}
        options |= dict(slurm_partition=launcher.partition) if launcher.partition else {}
        self._executor.update_parameters(**options)

    def submit(self, job: Job) -> SubmittedJob:
        """Submits a job."""
        # A new file per attempt: a lost job may still write into its old one.
        file = self._folder / f"{job['slice']}-{time.time_ns()}.jsonl"
        with fork_allowed():
            return SubmittedJob(self._executor.submit(write_events, job, str(file)), file)

    def stop(self, handle: SubmittedJob) -> None:
        """Asks a job to save and stop."""
        handle.file.with_suffix(".stop").touch()

    def cancel(self, handle: SubmittedJob) -> None:
        """Kills a job."""
        handle.job.cancel(check=False)

    def poll(self, handle: SubmittedJob) -> tuple[list[Event], str | None]:
        """Returns a job's new events, and why it has ended, or None if it has not."""
        # Asked before the file is read: after that, no event of an ended job can be missed.
        ended = handle.job.done()
        new = handle.file.read_bytes()[handle.bytes_read :] if handle.file.exists() else b""
        # The job may be in the middle of a line.
        lines = [line for line in new.splitlines(keepends=True) if line.endswith(b"\n")]
        handle.bytes_read += sum(map(len, lines))
        events: list[Event] = [tuple(json.loads(line)) for line in lines]
        return events, f"job {handle.job.job_id} {handle.job.state}" if ended else None


def write_events(job: Job, file: str) -> None:
    """Runs a job and writes its events as JSON lines, until it ends or a file with the suffix ".stop" appears."""
    with Path(file).open("w") as lines, contextlib.closing(run_job(job)) as events:
        for event in events:
            lines.write(json.dumps(event) + "\n")
            lines.flush()
            if Path(file).with_suffix(".stop").exists():
                return


@contextlib.contextmanager
def slurm_pool(launcher: Slurm, path: Path | None) -> Iterator[SlurmPool]:
    """Prepares Slurm jobs that answer through the sweep folder `path`.

    Raises:
      FoldaxError: submitit is not installed.
      RunError: there is no Slurm.
    """
    submitit = import_extra("submitit", "slurm")
    assert path is not None
    try:
        pool = SlurmPool(submitit, launcher, path.resolve() / "jobs")
    except RuntimeError as error:  # raised by submitit where there is no `srun`
        raise RunError(f"launcher: cannot submit to Slurm from here: {error}") from error
    yield pool
