"""Runs the groups of a sweep on the devices of this process."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from foldax.engine import compiled, loop
from foldax.engine.current_program import inputs_of
from foldax.engine.state import Callbacks
from foldax.experiment import Experiment
from foldax.learner import State
from foldax.runs import folder
from foldax.runs.progress import Progress
from foldax.runs.terminal import warn
from foldax.runs.transfer import initial_parameters, matching, parameters
from foldax.sweeps.exact import Device, DeviceWorkers, Member, MemberResult, member_result, worker_devices
from foldax.sweeps.plan import Group
from foldax.sweeps.records import MemberCheckpoints, ResultStore
from foldax.sweeps.space import Config
from foldax.sweeps.vmapped import fold_vmapped


def fold_groups(experiment: Experiment, groups: Sequence[Group], callbacks: "SweepCallbacks") -> None:
    """Trains all members that have no result yet, group after group."""
    for group in groups:
        waiting = any(member.number not in callbacks.store.results for member in group.members)
        if waiting and not callbacks.stop_requested():
            # Programs of earlier groups, or of a worker's earlier jobs, stay compiled until memory mappings run out.
            compiled.drop_programs_near_map_limit()
            fold = fold_exact if group.execution == "exact" else fold_fast
            fold(experiment, group, callbacks)


class SweepCallbacks:
    """Callbacks of a sweep's members: stores results, shows progress, and gives members checkpoints and parameters.

    Attributes:
      store: results of members that have ended.
      stop_requested: `()`, whether to save and stop at the next chunk boundary.
    """

    def __init__(
        self,
        path: Path | None,
        store: ResultStore,
        progress: Progress,
        stop_requested: Callable[[], bool],
        show_match: Callable[[matching.Match], None] = lambda match: None,
        track: Callable[[MemberResult], None] = lambda result: None,
    ) -> None:
        """Creates the callbacks of one sweep.

        Args:
          path: the sweep folder, or None.
          store: takes the results.
          progress: a progress bar over all members' steps.
          stop_requested: see the class.
          show_match: prints which initial parameters come from another run (`init_from`).
          track: sends a result to trackers.
        """
        self.store, self.stop_requested, self._track = store, stop_requested, track
        self._path, self._progress, self._show_match, self._shown = path, progress, show_match, set[Any]()
        # The parameters of another run are read once for all members.
        self._source = functools.cache(self._read_source)
        self._steps = {number: result.steps for number, result in store.results.items()}

    def on_steps(self, numbers: Sequence[int], step: int) -> None:
        """Takes the step that members have reached."""
        self._steps.update(dict.fromkeys(numbers, step))
        # A list first: other threads may add members while it is summed.
        self._progress.step(sum(list(self._steps.values())))

    def on_result(self, result: MemberResult) -> None:
        """Takes the result of a member that has ended."""
        # A slice that was submitted twice may deliver a result twice.
        if result.number not in self.store.results:
            self._track(result)
        self.store.add(result)
        self._progress.note(f"{len(self.store.results)}/{self.store.count} members")
        self.on_steps([result.number], result.steps)

    def replace_initial_state(self, config: Config) -> Callable[[State], State] | None:
        """Makes `Callbacks.replace_initial_state` of a member; equal matches of parameters are shown once per sweep."""
        if config.init_from is None:
            return None

        def show_once(match: matching.Match) -> None:
            key = match.source.provenance["path"], match.rows
            if key not in self._shown:
                self._shown.add(key)
                self._show_match(match)

        return initial_parameters.initial_state_hook(functools.partial(self._source, config.init_from), show_once)

    def _read_source(self, path: str) -> parameters.Source:
        source = parameters.read(path)
        recorded = [] if self._path is None else folder.read_json(self._path / "sweep.json").get("init_from", [])
        # A resumed sweep must start its members from the same parameters.
        for facts in recorded:
            if facts["path"] == source.provenance["path"]:
                initial_parameters.check_source(source, facts)
        return source

    @contextlib.contextmanager
    def for_run(self, members: Sequence[Member]) -> Iterator[tuple[Callbacks, MemberCheckpoints | None]]:
        """Yields the callbacks and checkpoints of one run, which trains one member, or several that are vmapped."""
        numbers = [member.number for member in members]
        replace = self.replace_initial_state(members[0].config)
        progress = functools.partial(self.on_steps, numbers)
        run_callbacks = Callbacks(progress=progress, stop_requested=self.stop_requested, replace_initial_state=replace)
        if self._path is None:
            yield run_callbacks, None
            return
        place = folder.checkpoint_folder(self._path) / str(numbers[0])
        with contextlib.closing(MemberCheckpoints(place, warn)) as checkpoints:
            log, load_history = checkpoints.log, checkpoints.load_history
            yield run_callbacks._replace(checkpoints=checkpoints, log=log, load_history=load_history), checkpoints


def fold_exact(experiment: Experiment, group: Group, callbacks: SweepCallbacks) -> None:
    """Trains the members of a group that have no result yet, one after another on each device or mesh."""
    devices = worker_devices(group.members[0].config.mesh)[: group.max_concurrent]
    workers = DeviceWorkers(experiment, devices, callbacks.stop_requested)

    def work(member: Member, device: Device) -> None:
        member = workers.on_device(member, device)
        with callbacks.for_run([member]) as (run_callbacks, checkpoints):
            run_callbacks = run_callbacks._replace(stop_requested=workers.stop_requested)
            run = workers.start_run(member, device, run_callbacks)
            with contextlib.closing(run.blocks):
                # An interrupted member is saved; one that has ended needs its checkpoints no longer.
                status = workers.fold(member, run, device, run_callbacks)
                if status == "interrupted":
                    loop.save_checkpoint(run, run_callbacks, (run.fold, run.best))
                    return
                callbacks.on_result(member_result(member, run, status))
            if checkpoints is not None:
                checkpoints.delete()

    waiting = [member for member in group.members if member.number not in callbacks.store.results]
    workers.run_all(waiting, work)


def fold_fast(experiment: Experiment, group: Group, callbacks: SweepCallbacks) -> None:
    """Trains the members of a group in vmapped batches of `max_concurrent`."""
    for first in range(0, len(group.members), group.max_concurrent):
        members = group.members[first : first + group.max_concurrent]
        # A batch is resumed whole: XLA's rounding depends on its size, so those that have ended go along.
        if all(member.number in callbacks.store.results for member in members):
            continue
        with inputs_of(experiment, members[0].config), callbacks.for_run(members) as (run_callbacks, checkpoints):
            if not fold_vmapped(experiment, members, jax.local_devices(), run_callbacks, callbacks.on_result):
                return
            if checkpoints is not None:
                checkpoints.delete()
