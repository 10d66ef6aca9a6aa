"""Workers on a Ray cluster (Moritz et al., 2018)."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from foldax.errors import ConfigError, RunError, first_line
from foldax.extras import import_extra
from foldax.sweeps.launchers.pool import Handle, fork_allowed
from foldax.sweeps.launchers.worker import Event, Job, run_job

CONNECT_SECONDS = 5.0  # time that a Ray cluster has to accept a connection


class Ray(NamedTuple):
    """Runs members of a sweep on a Ray cluster (Moritz et al., 2018), or on a local one that is started for the sweep.

    Attributes:
      workers: maximum number of workers at a time; by default as many as fit into the cluster.
      cpus: CPU cores per worker, each a JAX device where there is no GPU.
      gpus: GPUs per worker.
      address: address of the cluster, such as "10.0.0.1:6379" or "ray://10.0.0.1:10001"; by default the environment
        variable `RAY_ADDRESS`, else a local cluster.

    >>> Ray(workers=2).cpus
    1
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float = 0
    address: str | None = None


class RayPool:
    """A `WorkerPool` of Ray's streaming tasks; Ray keeps worker processes, and so their compiled programs, alive."""

    slices_per_worker = 4  # with fewer, workers wait longer for the slowest; with more, they start more often

    def __init__(self, ray: ModuleType, launcher: Ray) -> None:
        """Takes what the cluster has room for.

        Raises:
          ConfigError: not even one worker fits.
        """
        self._ray, resources = ray, ray.cluster_resources()
        room = [resources.get("CPU", 0) // launcher.cpus]
        room += [resources.get("GPU", 0) // launcher.gpus] if launcher.gpus else []
        self.count = launcher.workers or int(min(room))
        if min(room) < 1:
            there = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(f"launcher: no worker of {launcher.cpus} cpus and {launcher.gpus} gpus fits into {there}")
        # Ray must not retry by itself: the launcher submits only the members that have no result.
        options = dict(num_cpus=launcher.cpus, num_gpus=launcher.gpus, max_retries=0, num_returns="streaming")
        self._task = ray.remote(**options)(run_job)

    def submit(self, job: Job) -> Handle:
        """Submits a job."""
        return self._task.remote(job)

    def stop(self, handle: Handle) -> None:
        """Asks a job to save and stop."""
        self._ray.cancel(handle)

    def cancel(self, handle: Handle) -> None:
        """Kills a job."""
        self._ray.cancel(handle, force=True)

    def poll(self, handle: Handle) -> tuple[list[Event], str | None]:
        """Returns a job's new events, and why it has ended, or None if it has not."""
        events: list[Event] = []
        try:
            # A streaming task yields one object per event; those that are ready are taken without waiting.
            while self._ray.wait([handle], timeout=0)[0]:
                events.append(self._ray.get(next(handle)))
        except StopIteration:
            return events, "it ended"
        except self._ray.exceptions.RayError as error:
            return events, first_line(error)
        return events, None


@contextlib.contextmanager
def ray_pool(launcher: Ray) -> Iterator[RayPool]:
    """Connects to Ray, or starts a local cluster and stops it at the end.

    Raises:
      FoldaxError: Ray is not installed.
      ConfigError: no worker fits into the cluster, or the address is malformed.
      RunError: the cluster cannot be used.
    """
    ray = import_extra("ray", "ray")
    # A connection that the caller has opened is used, and left open.
    if ray.is_initialized():
        yield RayPool(ray, launcher)
        return
    address = launcher.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = dict(address=address)
    if address is None or address == "local":
        # A local cluster: without telemetry and dashboard.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        num_cpus = launcher.workers and launcher.workers * launcher.cpus
        options = dict(address="local", include_dashboard=False, num_cpus=num_cpus)
    elif address != "auto":
        _check_answers(address)
    is_main_thread = threading.current_thread() is threading.main_thread()
    # Remembered before Ray starts.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with fork_allowed():
            ray.init(log_to_driver=False, configure_logging=False, **options)
    except Exception as error:
        raise RunError(f"launcher: cannot use Ray at {address or 'this machine'}: {error}") from error
    try:
        # `ray.init` replaces the handlers that save an interrupted sweep.
        for number, handler in handlers.items() if is_main_thread else ():
            signal.signal(number, handler)
        yield RayPool(ray, launcher)
    finally:
        ray.shutdown()  # kills tasks that are still running


def _check_answers(address: str) -> None:
    """Connects to "host:port" or "ray://host:port", since `ray.init` would wait for minutes.

    Raises:
      ConfigError: the address is malformed.
      RunError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"launcher: the Ray address {address!r} is not of the form host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"launcher: no Ray cluster answers at {address}: {error}; start one with `ray start`") from error
