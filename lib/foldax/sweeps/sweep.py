"""`foldax.sweep`: a grid of configs and seeds, on every device, with a folder, checkpoints and a table of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from foldax.configuration import as_plain, to_json
from foldax.engine import compiled
from foldax.errors import ConfigError, FoldaxError, Interrupted, RunError
from foldax.experiment import Experiment, experiment_file, experiment_name
from foldax.runs import folder, tables
from foldax.runs.progress import Progress
from foldax.runs.train import signals
from foldax.runs.transfer import matching, parameters
from foldax.sweeps import statistics
from foldax.sweeps.exact import Outcome
from foldax.sweeps.groups import Watch, fold_groups
from foldax.sweeps.launchers import multihost
from foldax.sweeps.launchers.launch import check_launcher, launch
from foldax.sweeps.plan import Plan, Planner
from foldax.sweeps.records import Records
from foldax.sweeps.search import Optuna, check_search, fold_optuna, fold_population
from foldax.sweeps.space import Range, Space, check_space, flat_values, points, structural_values

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
        name = metric or statistics.default_metric(self.facts, self.results)
        if name is None:
            raise RunError("no member has a metric yet")
        monitored = name.split("/")[-1] == self.facts["monitor"]
        best = mode or (self.facts["mode"] if monitored else "max")
        return statistics.summarize(self.results, self.facts["fields"], name, best)


def sweep(
    experiment: Experiment,
    space: dict[str, Any] | None = None,
    *,
    seeds: int = 1,
    samples: int | None = None,
    search: Any = None,
    launcher: Any = None,
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
      launcher: `foldax.Ray()` or `foldax.Slurm()`: workers elsewhere fold the members; by default this process does.
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
    if launcher is not None:
        check_launcher(launcher, experiment, search, save)
    multihost.check(search, launcher)
    planned = Planner(experiment, config, seeds, way, members_at_once)
    made = planned(checked, [] if isinstance(search, Optuna) else points(checked, samples, config.seed))
    asked: dict[str, Any] = {
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
    if launcher is not None:
        asked |= {"launcher": type(launcher).__name__.lower(), "launcher_options": launcher._asdict()}
    asked |= {"init_from": sources(config, checked)} if not resume else {}
    if not save:
        return _run(None, experiment, config, checked, made, planned, search, launcher, verbose)
    path = Path(sweep_dir) if sweep_dir is not None else folder.new_run_dir(experiment, config, "sweep-")
    path = Path(multihost.agree(str(path)))
    if jax.process_index():  # each process has a folder of its own, and the same tables in it at the end
        path = path / f"process-{jax.process_index()}"
    with folder.lock(path):
        _open(path, experiment, config, asked, resume)
        try:
            return _run(path, experiment, config, checked, made, planned, search, launcher, verbose)
        except BaseException as error:
            reason = str(error).splitlines()[0] if isinstance(error, FoldaxError) else type(error).__name__
            status = "interrupted" if isinstance(error, Interrupted) else f"failed: {reason}"
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                folder.write_json(path / "sweep.json", folder.read_json(path / "sweep.json") | {"status": status})
            raise


def sources(config: Any, space: Space) -> list[dict[str, Any]]:
    """Returns the facts of all parameters that members start from; what cannot be read is said before any begins.

    Raises:
      RunError: see `parameters.read`.
    """
    named: Any = space.get("init_from", [config.init_from])
    return [parameters.read(path).facts for path in named if path is not None]


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
    launcher: Any,
    verbose: bool,
) -> Sweep:
    began, compiling, traced = time.perf_counter(), compiled.compile_seconds(), compiled.traces["advance"]
    count = search.trials * planned.seeds if isinstance(search, Optuna) else len(made.configs)
    total = sum(one.steps for one in made.configs) or count * config.steps
    with (
        contextlib.closing(Records(path, count)) as records,
        contextlib.closing(Progress(f"{experiment_name(experiment)}, sweep", total, verbose)) as progress,
        signals() as interrupted,
    ):
        before = set(records.outcomes)
        watch = Watch(path, records, progress, interrupted, matching.show if verbose else lambda found: None)

        def fold(made: Plan) -> None:
            if launcher is None:
                fold_groups(experiment, multihost.share(made), watch)
            else:
                launch(experiment, made, launcher, watch, path)

        if isinstance(search, Optuna):
            made = _optuna(config, space, planned, search, watch, fold)
        elif search is not None and len(before) < count:
            members = sorted(member for group in made.groups for member in group.members)
            fold_population(experiment, members, planned.seeds, made.fields, search, watch, path)
        else:
            fold(made)
        for found in multihost.gather(records.outcomes):
            records.add(found)
    done, seconds = records.outcomes, time.perf_counter() - began
    facts = {
        "monitor": config.monitor,
        "mode": config.mode,
        "groups": [
            {"structural": structural_values(g.members[0].config), "members": len(g.members), "way": g.way}
            for g in made.groups
        ],
        "fields": made.fields,
        "programs": compiled.traces["advance"] - traced,
        "member_steps": sum(one.steps for one in done.values()),
        "member_steps_per_second": sum(one.steps for n, one in done.items() if n not in before) / seconds,
        "seconds": seconds,
        "compile_seconds": compiled.compile_seconds() - compiling,
        "data_fingerprint": getattr(getattr(made.groups[0].members[0].dataset, "info", None), "fingerprint", None),
        "status": "finished" if len(done) == count else "interrupted",
        "ended": folder.now(),
    }
    results, curves = frames(made, done)
    if path is not None and folder.read_json(path / "sweep.json")["status"] == "finished":
        facts = folder.read_json(path / "sweep.json")  # there was nothing left to do
    elif path is not None:
        facts = folder.read_json(path / "sweep.json") | facts
        facts["best_member"] = statistics.best_member(facts, results if len(results) else None)
        write_frames(path, results, curves)
        folder.write_json(path / "sweep.json", facts)
    if facts["status"] == "interrupted":
        again = f"foldax resume {tables.shown(path)}" if path is not None and experiment_file(experiment) else ""
        again = again or (f"foldax.sweep(..., sweep_dir={str(path)!r}, resume=True)" if path is not None else "")
        where = f"; go on with: {again}" if again else ""
        raise Interrupted(f"stopped with {len(done)} of {count} members done{where}")
    if verbose and path is not None and jax.process_index() == 0:
        statistics.show(path)
    return Sweep(results, curves, facts, made.configs, path)


def _optuna(
    config: Any, space: Space, planned: Planner, search: Optuna, watch: Watch, fold: Callable[[Plan], None]
) -> Plan:
    settings: list[dict[str, Any]] = []

    def run(batch: list[dict[str, Any]]) -> list[list[Outcome]] | None:
        first = len(settings) * planned.seeds
        settings.extend(batch)
        fold(planned(space, settings))
        numbers = range(first, len(settings) * planned.seeds)
        if any(number not in watch.records.outcomes for number in numbers):
            return None
        found = [watch.records.outcomes[number] for number in numbers]
        return [found[i : i + planned.seeds] for i in range(0, len(found), planned.seeds)]

    fold_optuna(config, space, search, run)
    return planned(space, settings)


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
        if len(results) and len({type(value) for value in results[name].dropna()}) > 1:
            missing = results[name].isna()
            results[name] = [None if none else str(x) for x, none in zip(results[name], missing)]  # one type a column
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
