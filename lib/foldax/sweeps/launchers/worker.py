"""What a worker does with its share of a sweep: loads the experiment, folds the members, tells what comes of them."""

from __future__ import annotations

import functools
import queue
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax

from foldax.configuration import from_json
from foldax.engine import compiled
from foldax.errors import FoldaxError
from foldax.experiment import Experiment, load_experiment
from foldax.sweeps import groups
from foldax.sweeps.exact import Member, Outcome
from foldax.sweeps.plan import Datasets, Group
from foldax.sweeps.records import Records

PERIOD = 0.5  # seconds between two reports of steps

Event = tuple[Any, ...]
"""("data", fingerprint), ("steps", [(number, step), ...]), ("done", fields of an Outcome),
("error", class name, text) and, at the end, ("over",): plain values, so that they pass as JSON."""


class Watch(groups.Watch):
    """A `Watch` on a worker: what members tell is told on."""

    def __init__(
        self, path: Path | None, count: int, tell: Callable[[Event], None], interrupted: Callable[[], bool]
    ) -> None:
        super().__init__(path, Records(None, count), None, interrupted)
        self._tell, self._newest, self._lock = tell, dict[int, int](), threading.Lock()

    def steps(self, numbers: list[int], step: int) -> None:
        """Takes how far members are."""
        with self._lock:
            self._newest.update(dict.fromkeys(numbers, step))

    def newest(self) -> list[tuple[int, int]]:
        """Returns how far members are that have moved since the last call."""
        with self._lock:
            moved, self._newest = self._newest, {}
        return list(moved.items())

    def done(self, found: Outcome) -> None:
        """Tells what came of a member."""
        self._tell(("done", found._asdict()))


def work(job: dict[str, Any]) -> Generator[Event, None, None]:
    """Folds the members of a job, as `launch.jobs` makes them, and yields events; an error is the last of them.

    What is put into `members/` of the sweep folder, where the worker can see it, is what a lost job goes on from.
    """
    _make_devices(job["devices"])
    events, stop = queue.SimpleQueue[Event](), threading.Event()
    path = Path(job["folder"]) if job["folder"] and Path(job["folder"], "sweep.json").exists() else None
    watch = Watch(path, len(job["members"]), events.put, stop.is_set)
    thread = threading.Thread(target=_fold, args=(job, watch, events.put), name="foldax-job", daemon=True)
    thread.start()
    try:
        event: Event = ()
        while not event or event[0] not in ("over", "error"):
            try:
                event = events.get(timeout=PERIOD)
                yield event
            except queue.Empty:
                yield "steps", watch.newest()
    finally:  # also when nobody listens any more: stop at the next boundary and save
        stop.set()
        thread.join()


def _make_devices(count: int) -> None:
    """Makes that many CPU devices, unless JAX has started."""
    if getattr(jax.config, "jax_num_cpu_devices", None) != count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:
            return


def _fold(job: dict[str, Any], watch: Watch, tell: Callable[[Event], None]) -> None:
    try:
        compiled.make_room()
        experiment, datasets = _loaded(job["file"], job["source"])
        members = []
        for number, values in job["members"]:
            config = from_json(experiment.config, values)
            members.append(Member(number, job["group"], config, datasets(config)))
        tell(("data", fingerprint(members[0])))
        group = Group(members, job["way"], job["at_once"], 0)
        fold = groups.fold_exact if job["way"] == "exact" else groups.fold_fast
        fold(experiment, group, watch)
        tell(("over",))
    except FoldaxError as error:
        tell(("error", type(error).__name__, str(error)))
    except BaseException:
        tell(("error", "FoldaxError", "a worker failed:\n" + traceback.format_exc().rstrip()))


def fingerprint(member: Member) -> str | None:
    """Returns the fingerprint of a member's data, or None without any."""
    return getattr(getattr(member.dataset, "info", None), "fingerprint", None)


@functools.lru_cache(maxsize=4)
def _loaded(file: str, source: str) -> tuple[Experiment, Datasets]:
    """Returns the experiment in a file, once per process, so that its programs are traced once; or in its copy."""
    path = Path(file)
    if not path.is_file() or path.read_text() != source:  # a worker without our file system
        path = Path(tempfile.mkdtemp(prefix="foldax-")) / path.name
        path.write_text(source)
    experiment = load_experiment(path)
    return experiment, Datasets(experiment)
