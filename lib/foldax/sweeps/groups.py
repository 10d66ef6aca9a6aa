"""Folds the groups of a sweep on this machine's devices, and keeps what their members tell on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from foldax.engine import compiled
from foldax.engine.state import Hooks
from foldax.experiment import Experiment
from foldax.runs import folder
from foldax.runs.train import warn
from foldax.runs.transfer import initial_parameters, matching, parameters
from foldax.sweeps.exact import Lanes, Member, Outcome, outcome, own_devices
from foldax.sweeps.plan import Group, Plan
from foldax.sweeps.records import MemberCheckpoints, Records
from foldax.sweeps.vmapped import fold_together


def fold_groups(experiment: Experiment, made: Plan, watch: Watch) -> None:
    """Folds all members that are not done yet, group after group."""
    for group in made.groups:
        waiting = [member for member in group.members if member.number not in watch.records.outcomes]
        if waiting and not watch.interrupted():
            compiled.make_room()
            if group.way == "exact":
                fold_exact(experiment, dataclasses.replace(group, members=waiting), watch)
            else:
                fold_fast(experiment, group, watch)


class Watch:
    """What members tell while they run: outcomes are recorded, steps are shown, checkpoints are kept."""

    def __init__(
        self,
        path: Path | None,
        records: Records,
        progress: Any,
        interrupted: Callable[[], bool],
        show: Callable[[matching.Match], None] = lambda found: None,
    ) -> None:
        self.records, self.interrupted = records, interrupted
        self._path, self._progress, self._show, self._shown = path, progress, show, set[Any]()
        self._source = functools.cache(self._read)
        self._steps = {number: found.steps for number, found in records.outcomes.items()}

    def step(self, number: int, step: int) -> None:
        """Shows how far a member is."""
        self.steps([number], step)

    def steps(self, numbers: list[int], step: int) -> None:
        """Shows how far members side by side are."""
        self._steps.update(dict.fromkeys(numbers, step))
        self._progress.step(sum(list(self._steps.values())))

    def initial(self, config: Any) -> Callable[[Any], Any] | None:
        """Returns `Hooks.initial` of a member; what fitted is told once for all members that are alike in it."""
        if config.init_from is None:
            return None

        def tell(found: matching.Match) -> None:
            key = found.source.facts["path"], found.rows
            if key not in self._shown:
                self._shown.add(key)
                self._show(found)

        return initial_parameters.starting(functools.partial(self._source, config.init_from), tell)

    def _read(self, path: str) -> parameters.Source:
        found = parameters.read(path)
        known = [] if self._path is None else folder.read_json(self._path / "sweep.json").get("init_from", [])
        for facts in known:
            if facts["path"] == found.facts["path"]:
                initial_parameters.check_same(found, facts)
        return found

    @contextlib.contextmanager
    def hooks(self, members: Sequence[Member]) -> Iterator[Hooks]:
        """Gives the driver's hooks for a member, or for several side by side."""
        numbers = [member.number for member in members]
        steps, initial = functools.partial(self.steps, numbers), self.initial(members[0].config)
        hooks = Hooks(progress=steps, interrupted=self.interrupted, initial=initial)
        if self._path is None:
            yield hooks
            return
        with contextlib.closing(MemberCheckpoints(self._path / "members" / str(numbers[0]), warn)) as checkpoints:
            yield hooks._replace(checkpoints=checkpoints, log=checkpoints.log, resumed=checkpoints.resumed)

    def done(self, found: Outcome) -> None:
        """Records what came of a member."""
        self.records.add(found)
        self._progress.note(f"{len(self.records.outcomes)}/{self.records.count} members")
        self.step(found.number, found.steps)


def fold_exact(experiment: Experiment, group: Group, watch: Watch) -> None:
    """Folds the members of a group one after another, each device on its own."""
    devices = own_devices()[: group.at_once]
    dataset = group.members[0].dataset
    placed = {device: None if dataset is None else dataset.to(device) for device in devices}
    lanes = Lanes(experiment, devices, watch.interrupted)

    def work(member: Member, device: Any) -> None:
        member = member._replace(dataset=placed[device])
        with watch.hooks([member]) as hooks:
            hooks = hooks._replace(interrupted=lanes.interrupted)
            run = lanes.begin(member, device, hooks)
            with contextlib.closing(run.blocks):
                status = lanes.fold(member, run, device, hooks)
                if status != "interrupted":
                    watch.done(outcome(member, run, status))
                elif hooks.checkpoints is not None:
                    hooks.checkpoints.keep(run)
                    return
            if hooks.checkpoints is not None:
                hooks.checkpoints.discard()

    lanes.each(group.members, work)


def fold_fast(experiment: Experiment, group: Group, watch: Watch) -> None:
    """Folds the members of a group side by side, as many at once as fit."""
    for first in range(0, len(group.members), group.at_once):
        members = group.members[first : first + group.at_once]
        if all(member.number in watch.records.outcomes for member in members):
            continue  # else all go on together, for their bits depend on how many they are
        with watch.hooks(members) as hooks:
            if not fold_together(experiment, members, jax.local_devices(), hooks, watch.done):
                return
            if hooks.checkpoints is not None:
                hooks.checkpoints.discard()
