"""Searches beyond the grid, as sweeps: successive halving, population-based training, and Optuna."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.errors import ConfigError, FoldaxError
from foldax.experiment import Experiment
from foldax.runs.train import warn
from foldax.sweeps.exact import Lanes, Member, Outcome, own_devices
from foldax.sweeps.populations import PBT, Halving, Population, halve, population_based
from foldax.sweeps.records import MemberCheckpoints
from foldax.sweeps.space import Range, Space, field_type


class Optuna(NamedTuple):
    """Optuna's sampler (Akiba et al., 2019), asked for a batch of configs at a time and told what came of them.

    Attributes:
      trials: configs in all.
      batch: configs between two answers; they run as one program.
      sampler: an Optuna sampler, which must be seeded; by default its tree-structured Parzen estimator.
    """

    trials: int = 64
    batch: int = 16
    sampler: Any = None


def check_search(search: Any, config: Any, space: Space, samples: int | None) -> None:
    """Checks that a search fits the space.

    Raises:
      ConfigError: it does not; says why.
    """
    if not isinstance(search, (Halving, PBT, Optuna)):
        raise ConfigError(f"search: {search!r} is none of foldax.Halving(), foldax.PBT() and foldax.Optuna()")
    kinds = {name: field_type(type(config), name)[0] for name in space}
    if isinstance(search, PBT):
        for name, kind in kinds.items():
            if kind != "traced":
                raise ConfigError(f"{name}: population-based training changes traced floats; this field is {kind}")
        if not kinds:
            raise ConfigError("space: population-based training needs a traced float to change")
        if not (0 < search.share <= 0.5 and search.factor > 1 and (search.every or 1) >= 1):
            raise ConfigError(f"{search}: share must be above 0 and at most 0.5, factor above 1, every at least 1")
    if isinstance(search, Optuna) and (search.trials < 1 or search.batch < 1):
        raise ConfigError(f"{search}: trials and batch must be at least 1")
    if isinstance(search, Optuna) and samples is not None:
        raise ConfigError("samples: Optuna draws the configs itself; say how many with Optuna(trials=...)")


def fold_population(
    experiment: Experiment,
    members: Sequence[Member],
    seeds: int,
    fields: Sequence[str],
    search: Halving | PBT,
    watch: Any,
    path: Path | None,
) -> None:
    """Runs successive halving or population-based training with all members of a sweep.

    Raises:
      ConfigError: no validation split to decide by, or data that streams.
    """
    datasets: dict[tuple[int, Any], Any] = {}

    def on_device(member: Member, device: Any) -> Member:
        if member.dataset is None:
            return member
        key = (id(member.dataset), device)
        if key not in datasets:
            datasets[key] = member.dataset.to(device)
        return member._replace(dataset=datasets[key])

    for member in members:
        if member.dataset is not None and "validation" not in member.dataset.splits:
            raise ConfigError("search: it decides on the validation split, and this dataset has none")
        if member.dataset is not None and not hasattr(member.dataset.train.feed, "num_examples"):
            raise ConfigError('search: members must pause, so the data must be on the device (source="device")')
    lanes = Lanes(experiment, own_devices(), watch.interrupted)
    with contextlib.ExitStack() as stack:
        kept = None if path is None else MemberCheckpoints(path / "members" / "population", warn)
        if kept is not None:
            stack.enter_context(contextlib.closing(kept))
        population = Population(members, lanes, on_device, watch.step, kept, watch.initial)
        population.restore()
        numbers = [member.number for member in members]
        if isinstance(search, Halving):
            configs = [numbers[first : first + seeds] for first in range(0, len(numbers), seeds)]
            over = halve(population, configs, search, watch.done)
        else:
            leaves = jax.tree_util.tree_leaves_with_path(members[0].config)
            moving = [jax.tree_util.keystr(where, simple=True, separator=".") in fields for where, _ in leaves]
            over = population_based(population, search, moving, members[0].config.seed, watch.done)
        if over and kept is not None:
            kept.discard()


def fold_optuna(
    config: Any, space: Space, search: Optuna, run: Callable[[list[dict[str, Any]]], list[list[Outcome]] | None]
) -> None:
    """Asks Optuna for batches of configs and tells it the mean of the monitored metric over each one's seeds.

    Args:
      config: the base config, whose `monitor`, `mode` and `seed` count.
      space: what Optuna chooses from.
      search: how many.
      run: runs configs and returns what came of each one's members, or None if it was interrupted.

    Raises:
      FoldaxError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise FoldaxError("Optuna is not installed: pip install 'foldax[optuna]'") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "minimize" if config.mode == "min" else "maximize"
    sampler = search.sampler or optuna.samplers.TPESampler(seed=config.seed, constant_liar=True)
    study = optuna.create_study(direction=direction, sampler=sampler)

    def suggest(trial: Any, name: str, values: Any) -> Any:
        if isinstance(values, Range):
            return trial.suggest_float(name, values.low, values.high, log=values.log)
        return values[trial.suggest_categorical(name, list(range(len(values))))]

    for first in range(0, search.trials, search.batch):
        trials = [study.ask() for _ in range(min(search.batch, search.trials - first))]
        outcomes = run([{name: suggest(trial, name, values) for name, values in space.items()} for trial in trials])
        if outcomes is None:
            return
        for trial, found in zip(trials, outcomes):
            values = [one.metrics.get("validation", {}).get(config.monitor, np.nan) for one in found]
            failed = not np.isfinite(values).all()
            study.tell(
                trial,
                None if failed else float(np.mean(values)),
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            )
