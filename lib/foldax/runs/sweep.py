"""`foldax.sweep`: a grid of configs and seeds, on every device, with a folder, checkpoints and a table of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from foldax.config import as_plain, to_json
from foldax.errors import ConfigError, FoldaxError, Interrupted, RunError
from foldax.experiment import Experiment, experiment_file, experiment_name
from foldax.runs import folder, tables
from foldax.runs.members import MemberCheckpoints, Records
from foldax.runs.plan import Group, Plan, Planner
from foldax.runs.progress import Progress
from foldax.runs.search import Optuna, check_search, fold_optuna, fold_population
from foldax.runs.train import signals, warn
from foldax.train import programs
from foldax.train.driver import Hooks
from foldax.train.members import Lanes, Member, Outcome, outcome, own_devices
from foldax.train.space import Range, Space, check_space, flat_values, points, structural_values
from foldax.train.together import fold_together

COLUMNS = ("member", "group", "status", "steps_done", "best_step", "seconds", "state_sha256")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep gives back.

    Attributes:
      results: a data frame, a row per member: its config, `seed`, `status`, `steps_done`, metrics as `test/accuracy`.
      curves: a data frame with the columns member, step, split, metric, value.
      facts: what `sweep.json` holds: programs, seconds, member_steps_per_second, versions, ...
      configs: of every member.
      path: the sweep folder, or None.
    """

    results: Any
    curves: Any
    facts: dict[str, Any]
    configs: list[Any]
    path: Path | None

    def __repr__(self) -> str:
        return f"<Sweep: {self.facts['status']}, {len(self.configs)} members  path={self.path or None!s}>"

    def summary(self, metric: str | None = None, mode: str | None = None) -> Any:
        """Returns a data frame with a row per config, best first: mean over seeds, 95% interval, number of seeds.

        Args:
          metric: such as "test/accuracy"; by default the monitored one on the validation split.
          mode: "min" or "max": which is best; by default the config's, where the metric is the one it monitors.

        Raises:
          RunError: there is no such metric.
        """
        from foldax.runs import summary

        name = metric or summary.default_metric(self.facts, self.results)
        if name is None:
            raise RunError("no member has a metric yet")
        monitored = name.split("/")[-1] == self.facts["monitor"]
        best = mode or (self.facts["mode"] if monitored else "max")
        return summary.summarize(self.results, self.facts["fields"], name, best)


def sweep(
    experiment: Experiment,
    space: dict[str, Any] | None = None,
    *,
    seeds: int = 1,
    samples: int | None = None,
    search: Any = None,
    config: Any = None,
    way: str | None = None,
    members_at_once: int | None = None,
    sweep_dir: str | Path | None = None,
    resume: bool = False,
    save: bool = True,
    verbose: bool = True,
) -> Sweep:
    """Trains an experiment with every config of a space and several seeds, as one program for each structure.

    Args:
      experiment: what to run.
      space: a list of values for each field that varies; with `samples` also `Range(low, high, log)`, or
        "log:1e-5:1e-1" or "uniform:0:0.5".
      seeds: members of each config; their seeds count up from the config's own.
      samples: draws this many configs at random instead of making the whole grid.
      search: `foldax.Halving()`, `foldax.PBT()` or `foldax.Optuna()`: decide on the way which configs are worth it.
      config: the config that the values are put into; the experiment's defaults if None.
      way: "exact" (members have the bits of their lone runs; the default on CPUs) or "fast" (side by side in one
        program; the default elsewhere).
      members_at_once: most members at a time; by default what the memory holds.
      sweep_dir: the sweep folder; a new one under `runs/` if None.
      resume: go on with the sweep in `sweep_dir`.
      save: without it nothing is written to disk.
      verbose: whether to show progress and tables.

    Raises:
      ConfigError: the space does not fit the experiment.
      FoldaxError: as `foldax.train`; a member that is not finite only ends itself.
    """
    config = experiment.config() if config is None else config
    if not isinstance(config, experiment.config):
        raise ConfigError(f"expected a config of class {experiment.config.__name__}, got {type(config).__name__}")
    taken = [name for name in flat_values(config) if name in COLUMNS]
    if taken:
        raise ConfigError(f"{taken[0]}: a column of a sweep's results has this name; give the field another one")
    checked = check_space(config, space or {})
    if resume and sweep_dir is None:
        raise RunError("resume: say which sweep folder to go on with (sweep_dir=...)")
    if search is not None:
        check_search(search, config, checked, samples)
    planned = Planner(experiment, config, seeds, way, members_at_once)
    made = planned(checked, [] if isinstance(search, Optuna) else points(checked, samples, config.seed))
    asked = {
        "search": "grid" if samples is None else "random",
        "space": {
            name: str(values) if isinstance(values, Range) else as_plain(values) for name, values in checked.items()
        },
        "seeds": seeds,
        "samples": samples,
        "way": planned.way,
        "members_at_once": members_at_once,
        "config": to_json(config),
    }
    if search is not None:
        asked |= {"search": type(search).__name__.lower(), "search_options": search._asdict() | {"sampler": None}}
    if not save:
        return _run(None, experiment, config, checked, made, planned, search, verbose)
    path = Path(sweep_dir) if sweep_dir is not None else folder.new_run_dir(experiment, config, "sweep-")
    with folder.lock(path):
        _open(path, experiment, config, asked, resume)
        try:
            return _run(path, experiment, config, checked, made, planned, search, verbose)
        except BaseException as error:
            reason = str(error).splitlines()[0] if isinstance(error, FoldaxError) else type(error).__name__
            status = "interrupted" if isinstance(error, Interrupted) else f"failed: {reason}"
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                folder.write_json(path / "sweep.json", folder.read_json(path / "sweep.json") | {"status": status})
            raise


def _open(path: Path, experiment: Experiment, config: Any, asked: dict[str, Any], resume: bool) -> None:
    """Makes a new sweep folder, or checks that the one there is of the same sweep."""
    if not resume:
        if (path / "sweep.json").exists() or (path / "manifest.json").exists():
            raise RunError(f"{path} holds a run already; choose another --sweep-dir, or `foldax resume {path}`")
        facts = folder.manifest(experiment, config) | {"monitor": config.monitor, "mode": config.mode} | asked
        folder.write_json(path / "sweep.json", facts)
        return
    before = folder.read_json(path / "sweep.json")
    if before["experiment"] != experiment_name(experiment):
        raise RunError(
            f"{path} is a sweep of another experiment, {before['experiment']!r}, not of {experiment_name(experiment)!r}"
        )
    names = ("search", "space", "seeds", "samples", "way", "config")
    differ = [name for name in names if json.dumps(before.get(name)) != json.dumps(asked[name])]
    if differ:
        raise ConfigError(f"{path} was started with another {', '.join(differ)}; see its sweep.json")
    if before["status"] != "finished":
        folder.write_json(path / "sweep.json", before | {"status": "running", "ended": None})


def _run(
    path: Path | None,
    experiment: Experiment,
    config: Any,
    space: Space,
    made: Plan,
    planned: Planner,
    search: Any,
    verbose: bool,
) -> Sweep:
    began, compiled, traced = time.perf_counter(), programs.compile_seconds(), programs.traces["advance"]
    count = search.trials * planned.seeds if isinstance(search, Optuna) else len(made.configs)
    total = sum(one.steps for one in made.configs) or count * config.steps
    with (
        contextlib.closing(Records(path, count)) as records,
        contextlib.closing(Progress(f"{experiment_name(experiment)}, sweep", total, verbose)) as progress,
        signals() as interrupted,
    ):
        before = set(records.outcomes)
        watch = Watch(path, records, progress, interrupted)
        if isinstance(search, Optuna):
            made = _optuna(experiment, config, space, planned, search, watch)
        elif search is not None and len(before) < count:
            members = sorted(member for group in made.groups for member in group.members)
            fold_population(experiment, members, planned.seeds, made.fields, search, watch, path)
        else:
            fold_groups(experiment, made, watch)
    done, seconds = records.outcomes, time.perf_counter() - began
    facts = {
        "monitor": config.monitor,
        "mode": config.mode,
        "groups": [
            {"structural": structural_values(g.members[0].config), "members": len(g.members), "way": g.way}
            for g in made.groups
        ],
        "fields": made.fields,
        "programs": programs.traces["advance"] - traced,
        "member_steps": sum(one.steps for one in done.values()),
        "member_steps_per_second": sum(one.steps for n, one in done.items() if n not in before) / seconds,
        "seconds": seconds,
        "compile_seconds": programs.compile_seconds() - compiled,
        "data_fingerprint": getattr(getattr(made.groups[0].members[0].dataset, "info", None), "fingerprint", None),
        "status": "finished" if len(done) == count else "interrupted",
        "ended": folder.now(),
    }
    results, curves = frames(made, done)
    if path is not None and folder.read_json(path / "sweep.json")["status"] == "finished":
        facts = folder.read_json(path / "sweep.json")  # there was nothing left to do
    elif path is not None:
        facts = folder.read_json(path / "sweep.json") | facts
        write_frames(path, results, curves)
        folder.write_json(path / "sweep.json", facts)
    if facts["status"] == "interrupted":
        again = f"foldax resume {tables.shown(path)}" if path is not None and experiment_file(experiment) else ""
        again = again or (f"foldax.sweep(..., sweep_dir={str(path)!r}, resume=True)" if path is not None else "")
        where = f"; go on with: {again}" if again else ""
        raise Interrupted(f"stopped with {len(done)} of {count} members done{where}")
    if verbose and path is not None:
        from foldax.runs import summary

        summary.show(path)
    return Sweep(results, curves, facts, made.configs, path)


def _optuna(experiment: Experiment, config: Any, space: Space, planned: Planner, search: Optuna, watch: Watch) -> Plan:
    settings: list[dict[str, Any]] = []

    def run(batch: list[dict[str, Any]]) -> list[list[Outcome]] | None:
        first = len(settings) * planned.seeds
        settings.extend(batch)
        fold_groups(experiment, planned(space, settings), watch)
        numbers = range(first, len(settings) * planned.seeds)
        if any(number not in watch.records.outcomes for number in numbers):
            return None
        found = [watch.records.outcomes[number] for number in numbers]
        return [found[i : i + planned.seeds] for i in range(0, len(found), planned.seeds)]

    fold_optuna(config, space, search, run)
    return planned(space, settings)


def fold_groups(experiment: Experiment, made: Plan, watch: Watch) -> None:
    """Folds all members that are not done yet, group after group."""
    for group in made.groups:
        waiting = [member for member in group.members if member.number not in watch.records.outcomes]
        if waiting and not watch.interrupted():
            if group.way == "exact":
                fold_exact(experiment, dataclasses.replace(group, members=waiting), watch)
            else:
                fold_fast(experiment, group, watch)


class Watch:
    """What members tell while they run: outcomes are recorded, steps are shown, checkpoints are kept."""

    def __init__(
        self, path: Path | None, records: Records, progress: Progress, interrupted: Callable[[], bool]
    ) -> None:
        self.records, self.interrupted = records, interrupted
        self._path, self._progress = path, progress
        self._steps = {number: found.steps for number, found in records.outcomes.items()}

    def step(self, number: int, step: int) -> None:
        """Shows how far a member is."""
        self._steps[number] = step
        self._progress.step(sum(list(self._steps.values())))

    @contextlib.contextmanager
    def hooks(self, members: Sequence[Member]) -> Iterator[Hooks]:
        """Gives the driver's hooks for a member, or for several side by side."""
        numbers = [member.number for member in members]

        def progress(step: int) -> None:
            self._steps.update(dict.fromkeys(numbers, step))
            self.step(numbers[0], step)

        hooks = Hooks(progress=progress, interrupted=self.interrupted)
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
            if not fold_together(experiment, members, jax.devices(), hooks, watch.done):
                return
            if hooks.checkpoints is not None:
                hooks.checkpoints.discard()


def frames(made: Plan, outcomes: dict[int, Outcome]) -> tuple[Any, Any]:
    """Returns results and curves of the members that are done, as data frames."""
    import pandas

    group_of = {member.number: member.group for group in made.groups for member in group.members}
    rows, points = [], []
    for number, found in sorted(outcomes.items()):
        metrics = {f"{split}/{k}": v for split, values in found.metrics.items() for k, v in values.items()}
        cells = {**flat_values(made.configs[number]), "status": found.status, "steps_done": found.steps}
        rows.append(
            {
                "member": number,
                "group": group_of[number],
                **cells,
                "best_step": found.best_step,
                "seconds": found.seconds,
                "state_sha256": found.state_sha256,
                **metrics,
            }
        )
        for line in found.history:
            points += [
                (number, line["step"], line["split"], k, v) for k, v in line.items() if k not in ("step", "split")
            ]
    results = pandas.DataFrame(rows)
    for name in made.configs and flat_values(made.configs[0]):
        if len(results) and len({type(value) for value in results[name] if value is not None}) > 1:
            results[name] = [None if value is None else str(value) for value in results[name]]  # one type a column
    if len(results):
        results["best_step"] = results["best_step"].astype("Int64")
    return results, pandas.DataFrame(points, columns=["member", "step", "split", "metric", "value"])


def write_frames(path: Path, results: Any, curves: Any) -> None:
    """Writes results and curves as Parquet files, each whole or not at all."""
    for name, frame in (("results", results), ("curves", curves)):
        partial = path / f".{name}.partial"
        try:
            frame.to_parquet(partial, index=False)
            partial.replace(path / f"{name}.parquet")
        except OSError as error:
            raise RunError(f"cannot write {path / name}.parquet: {error.strerror}") from error
