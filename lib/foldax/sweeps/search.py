"""Adaptive searches as sweeps: successive halving, population-based training, and Optuna's samplers."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from foldax.engine.setup import has_monitored_split, monitored_split_and_metric
from foldax.errors import ConfigError
from foldax.extras import import_extra
from foldax.field_values import coerce_value, to_plain
from foldax.options import Config, Overrides, field_type
from foldax.runs import folder
from foldax.runs.terminal import warn
from foldax.sweeps.exact import DeviceWorkers, worker_devices
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.plan import Plan, Planner, divided_mesh
from foldax.sweeps.populations import PBT, Population, SuccessiveHalving, population_based_training, successive_halving
from foldax.sweeps.records import MemberCheckpoints
from foldax.sweeps.space import Range, Space, traced_names

if TYPE_CHECKING:
    import optuna


class Optuna(NamedTuple):
    """Search by an Optuna sampler (Akiba et al., 2019), which suggests configs in batches and learns from results.

    Attributes:
      num_trials: number of configs.
      batch_size: configs suggested at a time; they run as one program.
      sampler: an Optuna sampler with a seed; by default its tree-structured Parzen estimator (Bergstra et al., 2011).

    >>> Optuna(num_trials=8, batch_size=4).num_trials
    8
    """

    num_trials: int = 64
    batch_size: int = 16
    sampler: "optuna.samplers.BaseSampler | None" = None


Search: TypeAlias = SuccessiveHalving | PBT | Optuna
SEARCHES: dict[str, type[Search]] = {"halving": SuccessiveHalving, "pbt": PBT, "optuna": Optuna}


def check_search(search: Search, config: Config, space: Space, samples: int | None) -> None:
    """Checks that a search fits the space.

    Args:
      search: the search.
      config: the base config.
      space: from `parse_space`.
      samples: number of random configs, or None.

    Raises:
      ConfigError: the search cannot be used, or not with this space.

    >>> import foldax
    >>> check_search(SuccessiveHalving(), foldax.Training(), {}, None)
    """
    if not isinstance(search, (SuccessiveHalving, PBT, Optuna)):
        raise ConfigError(f"search: {search!r} is none of foldax.SuccessiveHalving(), foldax.PBT() and foldax.Optuna()")
    if not isinstance(search, Optuna) and (divided := divided_mesh(config, space)) is not None:
        problem = f"members of {type(search).__name__} move between devices, and {divided!r} divides each over several"
        raise ConfigError(f"mesh: {problem}; use a grid, --samples or Optuna, or leave the mesh out")
    kinds = {name: field_type(type(config), name)[0] for name in space}
    if isinstance(search, PBT):
        for name, kind in kinds.items():
            if kind != "traced":
                raise ConfigError(f"{name}: population-based training changes traced floats; this field is {kind}")
        if not kinds:
            raise ConfigError("space: population-based training needs a traced float to change")
        interval, fraction, factor = search
        if not (0 < fraction <= 0.5 and factor > 1 and (interval or 1) >= 1):
            allowed = "perturbation_interval at least 1, quantile_fraction in (0, 0.5], perturbation_factor above 1"
            raise ConfigError(f"search: {search} is not allowed: {allowed}")
    if isinstance(search, Optuna) and (search.num_trials < 1 or search.batch_size < 1):
        raise ConfigError(f"{search}: num_trials and batch_size must be at least 1")
    if isinstance(search, Optuna) and samples is not None:
        raise ConfigError("samples: Optuna suggests the configs itself; say how many with Optuna(num_trials=...)")


def fold_population(
    planner: Planner, plan: Plan, search: SuccessiveHalving | PBT, callbacks: SweepCallbacks, path: Path | None
) -> None:
    """Runs successive halving or population-based training, or goes on with it.

    Args:
      planner: holds the experiment and the number of seeds.
      plan: all members of the sweep.
      search: the settings.
      callbacks: take steps and results.
      path: the sweep folder, or None.

    Raises:
      ConfigError: the dataset has no validation split, or is streamed.
    """
    members = sorted(member for group in plan.groups for member in group.members)
    for dataset in (member.dataset for member in members):
        if not has_monitored_split(members[0].config, dataset):
            raise ConfigError("search: it decides on the validation split, and this dataset has none")
        if dataset is not None and not hasattr(dataset.train.feed, "num_examples"):
            raise ConfigError('search: members must pause, so the data must be on the device (source="device")')
    # Members train in exact execution, so that a paused run can move between devices.
    workers = DeviceWorkers(
        planner.experiment, worker_devices(), lambda: callbacks.stop_requested() or population.is_save_due()
    )
    opened = (
        None
        if path is None
        else contextlib.closing(MemberCheckpoints(folder.checkpoint_folder(path) / "population", warn))
    )
    with opened or contextlib.nullcontext() as checkpoints:
        population = Population(members, workers, callbacks, checkpoints)
        population.restore()
        if isinstance(search, SuccessiveHalving):
            # The members of a config are consecutive, one per seed.
            configs = [list(range(first, first + planner.seeds)) for first in range(0, len(members), planner.seeds)]
            finished = successive_halving(population, configs, search)
        else:
            searched = [name in plan.fields for name in traced_names(members[0].config)]
            finished = population_based_training(population, search, searched, members[0].config.seed)
        if finished and checkpoints is not None:
            checkpoints.delete()


def fold_optuna(
    planner: Planner, search: Optuna, callbacks: SweepCallbacks, fold: Callable[[Plan], None], path: Path | None
) -> Plan:
    """Trains the configs that Optuna suggests; its objective is each config's mean of the monitored metric over seeds.

    Args:
      planner: plans the members of the suggested configs.
      search: the settings.
      callbacks: hold the results.
      fold: trains all members of a plan that have no result yet.
      path: the sweep folder, whose `sweep.json` records the suggestions, or None.

    Returns:
      The plan of all suggested configs.

    Raises:
      FoldaxError: Optuna is not installed.
    """
    optuna = import_extra("optuna", "optuna")
    config, seeds, results = planner.config, planner.seeds, callbacks.store.results
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "minimize" if config.mode == "min" else "maximize"
    # constant_liar: pending trials of a batch count as bad ones, so that its suggestions differ.
    sampler = search.sampler or optuna.samplers.TPESampler(seed=config.seed, constant_liar=True)
    study = optuna.create_study(direction=direction, sampler=sampler)

    def suggest(trial: Any, name: str, values: list[Any] | Range) -> Any:
        if isinstance(values, Range):
            return trial.suggest_float(name, values.low, values.high, log=values.log)
        # By index, because Optuna's categories must be numbers or text.
        return values[trial.suggest_categorical(name, list(range(len(values))))]

    # Results and checkpoints of a resumed sweep belong to the configs that were suggested then.
    recorded = folder.read_json(path / "sweep.json").get("suggestions", []) if path else []
    all_overrides = [_restore(planner.config, overrides) for overrides in recorded]
    for first in range(0, search.num_trials, search.batch_size):
        # 1. Ask for a batch of configs, also where they are recorded, so that the sampler's random numbers go on.
        numbers = range(first, min(first + search.batch_size, search.num_trials))
        trials = [study.ask() for _ in numbers]
        suggestions = [{name: suggest(trial, name, v) for name, v in planner.space.items()} for trial in trials]
        all_overrides += suggestions[max(0, len(all_overrides) - first) :]
        if path and len(all_overrides) > len(recorded):
            recorded = to_plain(all_overrides)
            folder.write_json(path / "sweep.json", folder.read_json(path / "sweep.json") | {"suggestions": recorded})
        # 2. Train them; after a resume, finished ones only report their results to Optuna again.
        plan = planner.plan(all_overrides[: numbers.stop])
        fold(plan)
        # 3. Tell the objectives.
        for number, trial, suggestion in zip(numbers, trials, suggestions, strict=True):
            members = range(number * seeds, (number + 1) * seeds)
            if any(member not in results for member in members):
                return plan  # interrupted
            values = []
            for metrics in (results[member].metrics for member in members):
                split, metric = monitored_split_and_metric(config, metrics)
                values.append(metrics.get(split, {}).get(metric, np.nan))
            trained = None if all_overrides[number] == suggestion else all_overrides[number]
            _tell(study, trial, values, trained, planner.space)
    return planner.plan(all_overrides)


def _restore(config: Config, overrides: Overrides) -> Overrides:
    """Restores overrides from plain values."""
    cls = type(config)
    return {name: coerce_value(value, field_type(cls, name)[1], name) for name, value in overrides.items()}


def _tell(
    study: "optuna.Study", trial: "optuna.Trial", objectives: Sequence[float], trained: Overrides | None, space: Space
) -> None:
    """Tells Optuna the objectives of a config's members; `trained` is the config if it is not the trial's own."""
    from optuna.trial import TrialState, create_trial

    # A config with a member that is not finite has failed.
    failed = not np.isfinite(objectives).all()
    value, state = None if failed else float(np.mean(objectives)), TrialState.FAIL if failed else TrialState.COMPLETE
    if trained is None:
        study.tell(trial, value, state=state)
        return
    # Another sampler, or another version of Optuna, has suggested something else: it learns about what was trained.
    study.tell(trial, state=TrialState.FAIL)
    params = {name: trained[name] if isinstance(v, Range) else v.index(trained[name]) for name, v in space.items()}
    study.add_trial(create_trial(state=state, value=value, params=params, distributions=trial.distributions))
