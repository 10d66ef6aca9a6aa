"""The interface of a launcher's workers."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

from foldax.sweeps.launchers.worker import Event, Job

Handle: TypeAlias = Any  # a submitted job, opaque to the launcher


class WorkerPool(Protocol):
    """Workers to which jobs are submitted and which answer with events.

    Attributes:
      count: jobs that run at a time.
      slices_per_worker: number of jobs per worker in an exact sweep.
    """

    count: int
    slices_per_worker: int

    def submit(self, job: Job) -> Handle:
        """Submits a job."""

    def stop(self, handle: Handle) -> None:
        """Asks a job to save and stop."""

    def cancel(self, handle: Handle) -> None:
        """Kills a job."""

    def poll(self, handle: Handle) -> tuple[list[Event], str | None]:
        """Returns a job's new events, and why it has ended, or None if it has not."""


@contextlib.contextmanager
def fork_allowed() -> Iterator[None]:
    """Silences JAX's warning about forks: the children of Ray and submitit execute another program at once.

    >>> with fork_allowed():
    ...     pass
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        yield
