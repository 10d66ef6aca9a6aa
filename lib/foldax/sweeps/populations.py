"""Searches that pause all members together: successive halving and population-based training.

Between two decisions, members train as in an exact sweep, by the program of a single run. A decision drops members, or
copies states and changes traced fields, so that nothing is compiled for it.
"""

import functools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import parse_interval
from foldax.engine import compiled, evaluation, setup
from foldax.engine.best_state import BestState
from foldax.engine.current_program import inputs_of
from foldax.engine.fold import Fold
from foldax.engine.history import History
from foldax.engine.state import Callbacks, Run
from foldax.errors import ConfigError
from foldax.sweeps.exact import Device, DeviceWorkers, Member, member_result
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.records import MemberCheckpoints
from foldax.sweeps.space import Config, traced_names

STOPPED = "stopped by the search"


class SuccessiveHalving(NamedTuple):
    """Successive halving (Jamieson & Talwalkar, 2016): ever fewer configs train for ever more steps.

    Attributes:
      reduction_factor: at each rung, the best `1 / reduction_factor` of the configs are promoted; at least 2.
      min_steps: lowest step of a rung; by default rungs go down until about one config is left at the end.

    >>> SuccessiveHalving(reduction_factor=4)
    SuccessiveHalving(reduction_factor=4, min_steps=None)
    """

    reduction_factor: int = 3
    min_steps: int | None = None


class PBT(NamedTuple):
    """Population-based training (Jaderberg et al., 2017): the worst members copy the best and perturb their settings.

    Attributes:
      perturbation_interval: steps between two decisions; by default a tenth of all steps.
      quantile_fraction: fraction of members, in (0, 0.5], that are replaced by copies of as many of the best.
      perturbation_factor: a copied setting is multiplied or divided by this, at random; above 1.

    >>> PBT(quantile_fraction=0.2).perturbation_factor
    1.25
    """

    perturbation_interval: int | None = None
    quantile_fraction: float = 0.25
    perturbation_factor: float = 1.25


class Population:
    """Members of a search, each a run of its own, that are paused at the same steps.

    Attributes:
      members: members by number.
      runs: runs of the members that have started and were not dropped, by number.
      ended: statuses of the runs that have ended, by number.
      round: number of decisions taken.
    """

    def __init__(
        self,
        members: Sequence[Member],
        workers: DeviceWorkers,
        callbacks: SweepCallbacks,
        checkpoints: MemberCheckpoints | None,
    ) -> None:
        """Creates a population whose members have not started.

        Args:
          members: all members of the search.
          workers: threads that train members, one per device.
          callbacks: take steps and results, and give initial parameters.
          checkpoints: where to save and restore, or None.
        """
        self.members = {member.number: member for member in members}
        self.runs: dict[int, Run] = {}
        self.ended: dict[int, str] = {}
        self.round = 0
        self._workers, self._callbacks, self._checkpoints = workers, callbacks, checkpoints
        self._interval = parse_interval(members[0].config.checkpoint_every)
        self._last_save_time, self._saves = time.perf_counter(), 0
        self._saved_steps: dict[int, int] = {}  # of each run, in the last checkpoint

    def _run_callbacks(self, number: int) -> Callbacks:
        progress = functools.partial(self._callbacks.on_steps, [number])
        return Callbacks(progress=progress, stop_requested=self._workers.stop_requested)

    def fold(self, numbers: Iterable[int], until: int) -> bool:
        """Trains members up to step `until` or their end; returns False if they were interrupted."""

        def work(number: int, device: Device) -> None:
            member, run_callbacks = self._workers.on_device(self.members[number], device), self._run_callbacks(number)
            # A paused run goes on where a device is free, which may be another one than before.
            if number in self.runs:
                setup.move_run(self.runs[number], member.dataset, device)
            else:
                first = run_callbacks._replace(
                    replace_initial_state=self._callbacks.replace_initial_state(member.config)
                )
                self.runs[number] = self._workers.start_run(member, device, first)
            status = self._workers.fold(member, self.runs[number], device, run_callbacks, until)
            if status not in ("paused", "interrupted"):
                self.ended[number] = status

        waiting = [number for number in numbers if number not in self.ended]
        while waiting:
            # All members pause where a checkpoint is due, because one holds the states of all.
            self._workers.run_all(waiting, work)
            if self._callbacks.stop_requested():
                return False
            is_paused = {number for number, run in self.runs.items() if run.step >= until} | self.ended.keys()
            waiting = [number for number in waiting if number not in is_paused]
            self.save()
        return True

    def objective(self, number: int) -> float:
        """Monitored metric of a member, negated if more is better; NaN if not finite."""
        run = self.runs[number]
        if self.ended.get(number) == "not finite":
            return math.nan
        monitored = setup.monitored_split_and_metric(run.config, setup.evaluation_splits(run.dataset))
        with inputs_of(run.program.experiment, run.config):
            evaluated = evaluation.evaluate_split(run, run.fold.state, monitored[0])
        value = evaluation.monitored_metric(run.program, evaluated, monitored)
        return float(value) * (-1 if run.config.mode == "max" else 1)

    def finish(self, numbers: Iterable[int], status: str = "finished") -> None:
        """Removes members, and passes on their results; `status` is that of members whose runs have not ended."""
        for number in numbers:
            how, run = self.ended.get(number) or status, self.runs.pop(number)
            member = self.members[number]._replace(config=final_config(run))
            self._callbacks.on_result(member_result(member, run, how))

    def is_save_due(self) -> bool:
        """Whether a checkpoint is due: `checkpoint_every` has passed, whose steps are those of a run on average."""
        steps, seconds = self._interval
        # A list first: other threads may add runs meanwhile.
        runs = list(self.runs.items())
        advanced = sum(max(0, run.step - self._saved_steps.get(number, 0)) for number, run in runs)
        is_late = time.perf_counter() - self._last_save_time >= seconds or 0 < steps * len(runs) <= advanced
        return self._checkpoints is not None and advanced > 0 and is_late

    def save(self, now: bool = False) -> None:
        """Starts writing a checkpoint of all runs, if it is due or `now`."""
        if self._checkpoints is None or not self.runs or not (now or self.is_save_due()):
            return
        self._last_save_time, self._saves = time.perf_counter(), self._saves + 1
        self._saved_steps = {number: run.step for number, run in self.runs.items()}
        numbers = sorted(self.runs)
        meta = {
            "numbers": numbers,
            "round": self.round,
            "saves": self._saves,
            "ended": [[number, status] for number, status in self.ended.items()],
            "histories": [list(self.runs[number].history) for number in numbers],  # copies: they grow meanwhile
            "hyperparameters": [hyperparameters(self.runs[number]).tolist() for number in numbers],
        }
        # Copied, because training goes on while the checkpoint is written.
        tree = compiled.copy_to_host([(self.runs[number].fold, self.runs[number].best) for number in numbers])
        self._checkpoints.save(self._saves, tree, meta)

    def restore(self) -> None:
        """Restores all runs from the newest checkpoint, if there is one."""

        def like(meta: dict[str, Any]) -> list[tuple[Fold, BestState]]:
            # All runs are restored onto the first device; `fold` moves them.
            first = self._workers.devices[0]
            for number in meta["numbers"]:
                member = self._workers.on_device(self.members[number], first)
                self.runs[number] = self._workers.start_run(member, first, self._run_callbacks(number))
            return [(self.runs[number].fold, self.runs[number].best) for number in meta["numbers"]]

        restored = None if self._checkpoints is None else self._checkpoints.restore(like)
        if restored is None:
            return
        tree, meta = restored
        self.round, self._saves, self.ended = meta["round"], meta["saves"], dict(meta["ended"])
        columns = (meta["numbers"], tree, meta["histories"], meta["hyperparameters"])
        for number, (fold, best), history, values in zip(*columns, strict=True):
            run = self.runs[number]
            run.fold, run.best, run.step, run.history = fold, best, int(fold.step), History(history)
            set_hyperparameters(run, values)
        self._saved_steps = {number: run.step for number, run in self.runs.items()}


def hyperparameters(run: Run) -> np.ndarray:
    """Values of a run's traced fields, float32 `[F]`, in the order of the config's leaves."""
    return np.array(jax.device_get(jax.tree.leaves(run.arguments["config"])), np.float32)


def final_config(run: Run) -> Config:
    """A run's config with the values that its traced fields have now."""
    leaves, tree = jax.tree.flatten(run.config)
    # Those that nothing has changed keep the digits that float32 has not.
    values = [old if np.float32(old) == new else float(new) for old, new in zip(leaves, hyperparameters(run))]
    return jax.tree.unflatten(tree, values)


def set_hyperparameters(run: Run, values: Sequence[float]) -> None:
    """Replaces the values of a run's traced fields `[F]`, in the order of the config's leaves."""
    old = run.arguments["config"]
    leaves = [np.float32(x) for x in values]
    run.arguments = {**run.arguments, "config": jax.tree.unflatten(jax.tree.structure(old), leaves)}


def rungs(steps: int, num_configs: int, search: SuccessiveHalving) -> list[int]:
    """Steps of the rungs of successive halving; the last one is `steps`, where nothing is decided.

    Args:
      steps: steps of a config that is promoted at every rung.
      num_configs: configs at the start.
      search: the settings.

    Raises:
      ConfigError: a setting is too small.

    >>> rungs(900, 27, SuccessiveHalving(reduction_factor=3))
    [33, 100, 300, 900]
    """
    factor, min_steps = search
    if factor < 2:
        raise ConfigError(f"reduction_factor: {factor} is too small; it must be at least 2")
    if min_steps is not None and min_steps < 1:
        raise ConfigError(f"min_steps: {min_steps} is too small; it must be at least 1")
    num_rungs = max(0, math.floor(math.log(num_configs, factor) + 1e-9))  # 1e-9: log(243, 3) is below 5 in floats
    decisions = [steps // factor**rung for rung in range(num_rungs, 0, -1)]
    return [step for step in decisions if step >= (min_steps or 1)] + [steps]


def successive_halving(population: Population, configs: Sequence[Sequence[int]], search: SuccessiveHalving) -> bool:
    """Runs successive halving (Jamieson & Talwalkar, 2016), or goes on with it.

    Args:
      population: all members.
      configs: for each config the numbers of its members, one per seed; configs are ranked by the mean over seeds.
      search: the settings.

    Returns:
      False if the search was interrupted before its end.
    """
    steps = max(member.config.steps for member in population.members.values())
    levels = rungs(steps, len(configs), search)
    # After a resume, the survivors are the configs whose members were restored.
    resumed = population.round > 0
    survivors = [list(numbers) for numbers in configs if not resumed or all(n in population.runs for n in numbers)]
    for index in range(population.round, len(levels)):
        # 1. Train every surviving config up to the next rung.
        if not population.fold([n for numbers in survivors for n in numbers], levels[index]):
            population.save(now=True)
            return False
        if index < len(levels) - 1:
            # 2. Rank them by validation; those that are not finite come last.
            objectives = [float(np.mean([population.objective(n) for n in numbers])) for numbers in survivors]
            order = np.argsort(np.where(np.isfinite(objectives), objectives, np.inf), kind="stable")
            # 3. Promote the best 1 / reduction_factor, and stop the others.
            num_promoted = max(1, len(survivors) // search.reduction_factor)
            for stopped in order[num_promoted:]:
                population.finish(survivors[stopped], STOPPED)
            survivors = [survivors[i] for i in sorted(order[:num_promoted])]
            population.round += 1
            population.save()
    # 4. The survivors have trained to the end.
    population.finish(sorted(population.runs))
    return True


@functools.partial(jax.jit, static_argnames="num_replaced")
def exploit_and_explore(
    key: jax.Array,
    objectives: jax.Array,
    values: jax.Array,
    searched: jax.Array,
    perturbation_factor: chex.Numeric,
    num_replaced: int,
) -> tuple[jax.Array, jax.Array]:
    """Decides which members copy which, and perturbs the copied hyperparameters (Jaderberg et al., 2017).

    Args:
      key: randomness.
      objectives: float32 `[K]`, less is better; NaN and infinity are worst.
      values: float32 `[K, F]`, hyperparameters of each member.
      searched: bool `[F]`, which hyperparameters may be perturbed.
      perturbation_factor: a hyperparameter is multiplied or divided by this.
      num_replaced: number of members, at most `K // 2`, that copy one of as many of the best.

    Returns:
      `(parents, values)`: int `[K]`, where a member that goes on is its own parent, and float32 `[K, F]`.

    >>> objectives, values = np.array([0.1, 0.9], np.float32), np.ones((2, 1), np.float32)
    >>> parents, _ = exploit_and_explore(jax.random.key(0), objectives, values, np.array([True]), 1.25, 1)
    >>> parents.tolist()
    [0, 0]
    """
    chex.assert_rank([objectives, searched], 1)
    chex.assert_shape(values, (*objectives.shape, *searched.shape))
    num_members = objectives.shape[0]
    parent_key, direction_key = jax.random.split(key)

    # Exploit: truncation selection; each of the worst members copies one of the best, at random.
    order = jnp.argsort(jnp.where(jnp.isfinite(objectives), objectives, jnp.inf))
    best = order[jax.random.randint(parent_key, (num_replaced,), 0, num_replaced)]
    parents = jnp.arange(num_members).at[order[num_members - num_replaced :]].set(best)

    # Explore: perturb the searched hyperparameters of the copies up or down.
    up = jax.random.bernoulli(direction_key, 0.5, values.shape)
    scaled = values[parents] * jnp.where(up, perturbation_factor, 1.0 / perturbation_factor)
    is_perturbed = (parents != jnp.arange(num_members))[:, None] & searched[None, :]
    return parents, jnp.where(is_perturbed, scaled, values[parents])


def population_based_training(population: Population, search: PBT, searched: Sequence[bool], seed: int) -> bool:
    """Runs population-based training (Jaderberg et al., 2017, algorithm 1), or goes on with it.

    All members reach a decision before it is taken, so that a resumed search takes the same decisions.

    Args:
      population: members of one program, which differ in traced and driver fields only.
      search: the settings.
      searched: for each traced field `[F]`, in the order of the config's leaves, whether it may be perturbed.
      seed: seed of the decisions.

    Returns:
      False if the search was interrupted before its end.
    """
    numbers = sorted(population.members)
    steps, num_members = population.members[numbers[0]].config.steps, len(numbers)
    interval = search.perturbation_interval or max(1, steps // 10)
    num_replaced = max(1, min(num_members // 2, round(search.quantile_fraction * num_members)))
    ends = [*range(interval, steps, interval), steps]
    for index in range(population.round, len(ends)):
        # 1. Step: train every member up to the next decision.
        if not population.fold(numbers, ends[index]):
            population.save(now=True)
            return False
        if index < len(ends) - 1:
            # 2. Evaluate.
            objectives = np.array([population.objective(n) for n in numbers], np.float32)
            values = np.stack([hyperparameters(population.runs[n]) for n in numbers])
            # 3. Exploit and explore.
            key = jax.random.fold_in(jax.random.key(seed), index)
            factor = np.float32(search.perturbation_factor)
            decision = exploit_and_explore(key, objectives, values, np.array(searched, bool), factor, num_replaced)
            parents, values = jax.device_get(decision)
            copy_from_parents(population, numbers, parents, values, searched)
            population.round += 1
            population.save()
    population.finish(numbers)
    return True


def copy_from_parents(
    population: Population, numbers: Sequence[int], parents: np.ndarray, values: np.ndarray, searched: Sequence[bool]
) -> None:
    """Gives each member its parent's state and its new hyperparameters, and logs them.

    Args:
      population: the members.
      numbers: numbers of the members `[K]`.
      parents: int `[K]`, row of each member's parent.
      values: float32 `[K, F]`, new hyperparameters.
      searched: `[F]`, which hyperparameters are logged.
    """
    steps = {number: population.runs[number].step for number in numbers}
    states = {number: (population.runs[number].fold, population.runs[number].best) for number in numbers}
    names = traced_names(population.runs[numbers[0]].config)
    for row, number in enumerate(numbers):
        run = population.runs[number]
        if parents[row] != row:
            parent = numbers[int(parents[row])]
            # A copy: training donates a run's buffers, which two members must not share.
            run.fold, run.best = compiled.copy(states[parent])
            population.ended.pop(number, None)
            run.step = steps[parent]
        set_hyperparameters(run, values[row].tolist())
        settings = {name: float(x) for name, x, is_searched in zip(names, values[row], searched) if is_searched}
        run.history.extend([{"step": run.step, "split": "config", **settings}])
