"""The worker of a launched sweep: loads the experiment, trains its members, and yields events for the launcher."""

import contextlib
import functools
import queue
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

from foldax.configuration import from_json
from foldax.engine import compile_cache
from foldax.errors import FoldaxError
from foldax.experiment import Experiment, load_experiment
from foldax.runs.progress import Progress
from foldax.runs.transfer import pretrained
from foldax.sweeps.exact import Member, MemberResult
from foldax.sweeps.groups import SweepCallbacks, fold_groups
from foldax.sweeps.plan import DatasetCache, Group
from foldax.sweeps.records import ResultStore

STEPS_INTERVAL = 0.5  # seconds between two events of steps

Event: TypeAlias = tuple[Any, ...]
"""`("data", fingerprint)`, `("steps", [(number, step), ...])`, `("result", fields of a MemberResult)`, `("inputs",
[provenance, ...])`, and at the end `("error", class name, message)` or `("end",)`: plain values, so that they pass as
JSON."""

Job: TypeAlias = dict[str, Any]
"""A slice of a group as JSON values: slice (its first member), file of the experiment, sources `[(path, text), ...]` of
the file and of modules beside it, members `[(number, config), ...]`, group, execution, max_concurrent, devices, and
folder of the sweep or None."""


class ForwardingCallbacks(SweepCallbacks):
    """Callbacks of a worker: forwards member events to the launcher."""

    def __init__(
        self, path: Path | None, count: int, send: Callable[[Event], None], stop_requested: Callable[[], bool]
    ) -> None:
        """Creates the callbacks of one job.

        Args:
          path: the sweep folder, or None where the worker cannot see it.
          count: number of members of the job.
          send: takes the events.
          stop_requested: whether to save and stop.
        """
        super().__init__(path, ResultStore(None, count), Progress("", 0, shown=False), stop_requested)
        self._send, self._new_steps, self._lock = send, dict[int, int](), threading.Lock()

    def on_steps(self, numbers: Sequence[int], step: int) -> None:
        """Takes the step that members have reached, for the next `pop_steps`."""
        with self._lock:
            self._new_steps.update(dict.fromkeys(numbers, step))

    def pop_steps(self) -> list[tuple[int, int]]:
        """Returns `(number, step)` of the members that have advanced since the last call."""
        with self._lock:
            steps, self._new_steps = self._new_steps, {}
        return list(steps.items())

    def on_result(self, result: MemberResult) -> None:
        """Sends a member's result."""
        self._send(("result", result._asdict()))


def run_job(job: Job) -> Generator[Event, None, None]:
    """Trains the members of a job and yields events; an error is the last of them.

    Checkpoints go to `members/` of the sweep folder, where the worker can see it; a lost job is resumed from them.
    """
    with contextlib.suppress(RuntimeError):  # JAX has already started, in an earlier job of this worker
        jax.config.update("jax_num_cpu_devices", job["devices"])
    events, stop = queue.SimpleQueue[Event](), threading.Event()
    # Without a folder that the worker can see, it keeps no checkpoints.
    path = Path(job["folder"]) if job["folder"] and Path(job["folder"], "sweep.json").exists() else None
    callbacks = ForwardingCallbacks(path, len(job["members"]), events.put, stop.is_set)
    # A thread trains, and this generator yields: Ray and submitit see events while members train.
    thread = threading.Thread(target=_train, args=(job, callbacks, events.put), name="foldax-job", daemon=True)
    thread.start()
    try:
        event: Event = ()
        while not event or event[0] not in ("end", "error"):
            try:
                event = events.get(timeout=STEPS_INTERVAL)
                yield event
            except queue.Empty:
                yield "steps", callbacks.pop_steps()
    finally:  # also when the generator is closed early: save and stop at the next chunk boundary
        stop.set()
        thread.join()


def _train(job: Job, callbacks: ForwardingCallbacks, send: Callable[[Event], None]) -> None:
    compile_cache.enable()
    try:
        experiment, datasets = _load_experiment(job["file"], tuple(map(tuple, job["sources"])))
        configs = [(number, from_json(experiment.config, values)) for number, values in job["members"]]
        members = [Member(number, job["group"], config, datasets(config)) for number, config in configs]
        send(("data", members[0].data_fingerprint))
        fold_groups(experiment, [Group(members, job["execution"], job["max_concurrent"], 0)], callbacks)
        send(("inputs", pretrained.read_inputs(experiment, [member.config for member in members])))
        send(("end",))
    except FoldaxError as error:
        send(("error", type(error).__name__, str(error)))
    except BaseException:
        send(("error", "FoldaxError", "a worker failed:\n" + traceback.format_exc().rstrip()))


@functools.lru_cache(maxsize=4)
def _load_experiment(file: str, sources: tuple[tuple[str, str], ...]) -> tuple[Experiment, DatasetCache]:
    """Loads an experiment from its file, or from copies of its sources where the worker cannot see them.

    Once per process, so that all jobs of a worker share its compiled programs.
    """
    path = Path(file)
    # Files may also have changed since the sweep was started; the sources at that time count.
    if not all((one := path.parent / name).is_file() and one.read_text() == text for name, text in sources):
        path = Path(tempfile.mkdtemp(prefix="foldax-")) / path.name
        for name, text in sources:
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / name).write_text(text)
    experiment = load_experiment(path)
    return experiment, DatasetCache(experiment)
