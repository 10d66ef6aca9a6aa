"""Searches that pause all members together: successive halving and population-based training.

Between two decisions a member is folded as in any exact sweep, by its lone run's own program; a decision drops members,
or copies states and changes traced fields, so nothing is compiled for it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import parse_every
from foldax.engine import compiled, evaluation, loop
from foldax.engine.state import Hooks, Run
from foldax.errors import ConfigError
from foldax.sweeps.exact import Lanes, Member, Outcome, outcome

STOPPED = "stopped by the search"


class Halving(NamedTuple):
    """Successive halving (Jamieson & Talwalkar, 2016): ever fewer configs get ever more steps.

    Attributes:
      rate: one in `rate` configs, at least 2, goes on from each rung.
      least: steps before the first decision; by default such that about one config is left at the end.
    """

    rate: int = 3
    least: int | None = None


class PBT(NamedTuple):
    """Population-based training (Jaderberg et al., 2017): the worst copy the best and change their settings a little.

    Attributes:
      every: steps between two decisions; by default a tenth of all.
      share: which share of the members, at most a half, copies from as many of the best.
      factor: a copied setting is multiplied or divided by this.
    """

    every: int | None = None
    share: float = 0.25
    factor: float = 1.25


class Population:
    """Members on their way together, each a run of its own.

    Attributes:
      members: by number.
      runs: of the members that have begun and were not dropped, by number.
      ended: the status of those whose run has come to its end, by number.
      round: number of decisions taken.
    """

    def __init__(
        self,
        members: Sequence[Member],
        lanes: Lanes,
        on_device: Callable[[Member, Any], Member],
        progress: Callable[[int, int], None],
        checkpoints: Any,
        initial: Callable[[Any], Any] = lambda config: None,
    ) -> None:
        self.members = {member.number: member for member in members}
        self.runs: dict[int, Run] = {}
        self.ended: dict[int, str] = {}
        self.round = 0
        self._lanes, self._on_device, self._progress, self._checkpoints = lanes, on_device, progress, checkpoints
        self._initial, self._saved_at, self._saves = initial, time.perf_counter(), 0

    def _hooks(self, number: int) -> Hooks:
        step = functools.partial(self._progress, number)
        return Hooks(progress=step, interrupted=self._lanes.interrupted)

    def fold(self, numbers: Iterable[int], until: int) -> bool:
        """Folds members to a step, or their end; says whether it was not interrupted."""

        def work(number: int, device: Any) -> None:
            member, hooks = self._on_device(self.members[number], device), self._hooks(number)
            if number in self.runs:
                loop.move(self.runs[number], member.dataset, device)
            else:
                first = hooks._replace(initial=self._initial(member.config))
                self.runs[number] = self._lanes.begin(member, device, first)
            status = self._lanes.fold(member, self.runs[number], device, hooks, until)
            if status not in ("paused", "interrupted"):
                self.ended[number] = status

        self._lanes.each([number for number in numbers if number not in self.ended], work)
        return not self._lanes.interrupted()

    def value(self, number: int) -> float:
        """Returns a member's monitored metric on the validation split, so that less is better; NaN if not finite."""
        run = self.runs[number]
        if self.ended.get(number) == "not finite":
            return math.nan
        found = loop.evaluated(run, run.fold.state, "validation")
        value = evaluation.monitored(run.program, found, run.config.monitor)
        return float(value) * (-1 if run.config.mode == "max" else 1)

    def outcomes(self, numbers: Iterable[int], status: str | None = None) -> list[Outcome]:
        """Returns what came of members, and drops them."""
        found = []
        for number in numbers:
            run = self.runs.pop(number)
            found.append(outcome(self.members[number], run, self.ended.get(number) or status or "finished"))
        return found

    def save(self, now: bool = False) -> None:
        """Starts writing a checkpoint of all runs, if it is due."""
        if self._checkpoints is None or not self.runs:
            return
        _, seconds = parse_every(next(iter(self.members.values())).config.checkpoint_every)
        if not now and time.perf_counter() - self._saved_at < (0 if math.isinf(seconds) else seconds):
            return
        self._saved_at, self._saves = time.perf_counter(), self._saves + 1
        numbers = sorted(self.runs)
        meta = {
            "numbers": numbers,
            "round": self.round,
            "saves": self._saves,
            "ended": [[number, status] for number, status in self.ended.items()],
            "histories": [self.runs[number].history for number in numbers],
            "floats": [
                [float(x) for x in jax.tree.leaves(self.runs[number].arguments["config"])] for number in numbers
            ],
        }
        tree = compiled.copy([(self.runs[number].fold, self.runs[number].best) for number in numbers])
        self._checkpoints.save(self._saves, tree, meta)

    def restore(self) -> None:
        """Takes all runs from the newest checkpoint, if there is one."""

        def like(meta: dict[str, Any]) -> Any:
            first = self._lanes.devices[0]
            for number in meta["numbers"]:
                member = self._on_device(self.members[number], first)
                self.runs[number] = self._lanes.begin(member, first, self._hooks(number))
            return [(self.runs[number].fold, self.runs[number].best) for number in meta["numbers"]]

        found = None if self._checkpoints is None else self._checkpoints.restore(like)
        if found is None:
            return
        tree, meta = found
        self.round, self._saves, self.ended = (
            meta["round"],
            meta["saves"],
            {number: status for number, status in meta["ended"]},
        )
        for number, (fold, best), history, floats in zip(meta["numbers"], tree, meta["histories"], meta["floats"]):
            run = self.runs[number]
            run.fold, run.best, run.step, run.history = fold, best, int(fold.step), history
            set_floats(run, floats)


def set_floats(run: Run, floats: Sequence[float]) -> None:
    """Gives a run other values of its traced fields."""
    old = run.arguments["config"]
    leaves = [np.float32(x) for x in floats]
    run.arguments = {**run.arguments, "config": jax.tree.unflatten(jax.tree.structure(old), leaves)}


def rungs(steps: int, count: int, search: Halving) -> list[int]:
    """Returns the steps at which successive halving decides; the last one is `steps`.

    Raises:
      ConfigError: the rate is too small.
    """
    if search.rate < 2:
        raise ConfigError(f"rate: {search.rate} is too small; it must be at least 2")
    if search.least is not None and search.least < 1:
        raise ConfigError(f"least: {search.least} is too small; it must be at least 1")
    levels = max(0, math.floor(math.log(count, search.rate) + 1e-9))
    found = [steps // search.rate**level for level in range(levels, 0, -1)]
    return [step for step in found if step >= (search.least or 1)] + [steps]


def halve(
    population: Population, configs: Sequence[Sequence[int]], search: Halving, done: Callable[[Outcome], None]
) -> bool:
    """Runs successive halving over configs, each the numbers of its seeds; says whether it came to its end."""
    steps = max(member.config.steps for member in population.members.values())
    levels = rungs(steps, len(configs), search)
    left = [list(numbers) for numbers in configs if all(n in population.runs for n in numbers) or not population.round]
    for index in range(population.round, len(levels)):
        if not population.fold([n for numbers in left for n in numbers], levels[index]):
            population.save(now=True)
            return False
        if index < len(levels) - 1:
            values = [float(np.mean([population.value(n) for n in numbers])) for numbers in left]
            order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
            kept = max(1, len(left) // search.rate)
            for out in order[kept:]:
                for found in population.outcomes(left[out], STOPPED):
                    done(found)
            left = [left[i] for i in sorted(order[:kept])]
            population.round += 1
            population.save()
    for found in population.outcomes(sorted(population.runs)):
        done(found)
    return True


@functools.partial(jax.jit, static_argnames="copied")
def exploit(
    key: jax.Array, values: jax.Array, floats: jax.Array, moving: jax.Array, factor: jax.Array, copied: int
) -> tuple[jax.Array, jax.Array]:
    """Decides who copies whom, and with which settings.

    Args:
      key: randomness.
      values: `[K]`, less is better; what is not finite is worst.
      floats: `[K, F]`, traced fields of each member.
      moving: bool `[F]`, which of them are searched.
      factor: by which a copied setting is multiplied or divided.
      copied: how many of the worst copy.

    Returns:
      `(parents [K], floats [K, F])`; a member that goes on is its own parent.
    """
    count = values.shape[0]
    order = jnp.argsort(jnp.where(jnp.isfinite(values), values, jnp.inf))
    from_key, sign_key = jax.random.split(key)
    best = order[jax.random.randint(from_key, (copied,), 0, copied)]
    parents = jnp.arange(count).at[order[count - copied :]].set(best)
    grow = jax.random.bernoulli(sign_key, 0.5, floats.shape)
    changed = floats[parents] * jnp.where(grow, factor, 1.0 / factor)
    takes = (parents != jnp.arange(count))[:, None] & moving[None, :]
    return parents, jnp.where(takes, changed, floats[parents])


def population_based(
    population: Population, search: PBT, moving: Sequence[bool], seed: int, done: Callable[[Outcome], None]
) -> bool:
    """Runs population-based training of members of one program; says whether it came to its end.

    Args:
      population: its members differ in traced and driver fields only.
      search: how.
      moving: for each traced field, in the order of the config's leaves, whether it is searched.
      seed: of the decisions.
      done: takes what came of a member.
    """
    numbers = sorted(population.members)
    steps, count = population.members[numbers[0]].config.steps, len(numbers)
    every = search.every or max(1, steps // 10)
    copied = max(1, min(count // 2, round(search.share * count)))
    ends = [*range(every, steps, every), steps]
    for index in range(population.round, len(ends)):
        if not population.fold(numbers, ends[index]):
            population.save(now=True)
            return False
        if index < len(ends) - 1:
            values = np.array([population.value(n) for n in numbers], np.float32)
            old = np.array([jax.tree.leaves(population.runs[n].arguments["config"]) for n in numbers], np.float32)
            key = jax.random.fold_in(jax.random.key(seed), index)
            decided = exploit(key, values, old, np.array(moving, bool), np.float32(search.factor), copied)
            parents, floats = jax.device_get(decided)
            replace(population, numbers, parents, floats, moving)
            population.round += 1
            population.save()
    for found in population.outcomes(numbers):
        done(found)
    return True


def replace(
    population: Population, numbers: Sequence[int], parents: np.ndarray, floats: np.ndarray, moving: Sequence[bool]
) -> None:
    """Gives each member its parent's state and its new settings, which go into its log."""
    before = {number: population.runs[number] for number in numbers}
    states = {number: (run.fold, run.best) for number, run in before.items()}
    for row, number in enumerate(numbers):
        run = population.runs[number]
        if parents[row] != row:
            parent = numbers[int(parents[row])]
            run.fold, run.best = compiled.copy(states[parent])
            population.ended.pop(number, None)
            run.step = before[parent].step
        set_floats(run, floats[row].tolist())
        names = [
            jax.tree_util.keystr(path, simple=True, separator=".")
            for path, _ in jax.tree_util.tree_leaves_with_path(run.config)
        ]
        settings = {name: float(x) for name, x, moves in zip(names, floats[row], moving) if moves}
        run.history.append({"step": run.step, "split": "config", **settings})
