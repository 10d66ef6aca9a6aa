"""`foldax.sweep`: trains a grid, random sample or search of configs with several seeds, and tabulates the results."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from foldax import processes
from foldax.configuration import from_json, to_json
from foldax.engine import compile_cache, compiled, evaluation
from foldax.engine.checkpoint_folder import check_writable, checkpoint_location
from foldax.engine.forks import check_process
from foldax.errors import ConfigError, Interrupted, RunError, display_path
from foldax.experiment import Experiment, experiment_file, experiment_name
from foldax.field_values import to_plain
from foldax.runs import folder
from foldax.runs.progress import Progress
from foldax.runs.resume import changed_values
from foldax.runs.signals import stop_on_signals
from foldax.runs.status import failure_status
from foldax.runs.tables import flat_metrics
from foldax.runs.trackers.choose import NONE, Trackers, make_trackers
from foldax.runs.trackers.protocol import Tracker
from foldax.runs.transfer import matching, parameters, pretrained
from foldax.sweeps import statistics
from foldax.sweeps.exact import MemberResult
from foldax.sweeps.groups import SweepCallbacks, fold_groups
from foldax.sweeps.launchers import multihost
from foldax.sweeps.launchers.launch import LAUNCHERS, Launcher, check_launcher, launch
from foldax.sweeps.plan import Plan, Planner
from foldax.sweeps.records import ResultStore, write_tables
from foldax.sweeps.search import SEARCHES, Optuna, Search, check_search, fold_optuna, fold_population
from foldax.sweeps.show import show
from foldax.sweeps.space import Config, Range, enumerate_overrides, flat_values, parse_space
from foldax.sweeps.tracking import MemberTracking

if TYPE_CHECKING:
    import pandas

COLUMNS = ("member", "group", "status", "steps_done", "best_step", "seconds", "state_sha256")


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Results of a sweep.

    Attributes:
      results: a row per member: its config's fields, `seed`, `status`, `steps_done`, and metrics as "test/accuracy".
      curves: logged metrics, with the columns member, step, split, metric and value.
      metadata: content of `sweep.json`: programs, seconds, member_steps_per_second, versions and more.
      configs: config of each member.
      path: the sweep folder, or None if nothing was saved.
    """

    results: "pandas.DataFrame"
    curves: "pandas.DataFrame"
    metadata: dict[str, Any]
    configs: list[Config]
    path: Path | None

    def __repr__(self) -> str:
        return f"<SweepResult: {self.metadata['status']}, {len(self.configs)} members  path={self.path or None!s}>"

    def summary(self, metric: str | None = None, mode: str | None = None) -> "pandas.DataFrame":
        """Summarises members by config: mean over seeds, 95% interval and number of seeds, best config first.

        Args:
          metric: such as "test/accuracy"; by default the monitored metric on the validation split.
          mode: "min" or "max", whichever is best; by default the config's `mode` for the metric that it monitors, "min"
            for losses and errors, and "max" for accuracies, returns and scores.

        Raises:
          RunError: there is no such metric.
          ConfigError: `mode` is needed, because nothing says which values of the metric are best.
        """
        name = metric or statistics.default_metric(self.metadata, self.results)
        if name is None:
            raise RunError(statistics.missing_metric(self.results))
        best = mode or statistics.best_mode(self.metadata, name)
        if best not in ("min", "max") and name in self.results:
            raise ConfigError(f'mode: say which values of {name!r} are best: mode="min" or mode="max"')
        return statistics.summarize(self.results, self.metadata["fields"], name, best or "max")


@processes.alone()
def sweep(
    experiment: Experiment,
    space: Mapping[str, Any] | None = None,
    *,
    seeds: int = 1,
    samples: int | None = None,
    search: Search | None = None,
    launcher: Launcher | None = None,
    config: Config = None,
    execution: str | None = None,
    max_concurrent: int | None = None,
    sweep_dir: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    allow_other_data: bool = False,
    tracker: Trackers = NONE,
    save: bool = True,
    verbose: bool = True,
) -> SweepResult:
    """Trains every config of a search space with several seeds; configs of equal structure share a program.

    Args:
      experiment: the experiment to run.
      space: values of each swept field, by name ("optimizer.learning_rate" in a nested config); for a float also a
        `Range` or its text, "log:1e-5:1e-1" or "uniform:0:0.5", with `samples` or Optuna.
      seeds: members per config, whose seeds count up from the config's own.
      samples: number of random configs; by default the whole grid.
      search: `foldax.SuccessiveHalving()`, `foldax.PBT()` or `foldax.Optuna()`; by default every config
        trains to the end.
      launcher: `foldax.Ray()` or `foldax.Slurm()`, to train members on other machines; by default in this process.
      config: base config, whose other fields all members share; by default the experiment's.
      execution: "exact" (members are bit for bit as single runs; the default on CPUs) or "fast" (vmapped; the default
        elsewhere).
      max_concurrent: maximum number of members that train at a time; by default what fits into memory.
      sweep_dir: the sweep folder; by default a new one under `runs/`.
      resume: True goes on with the sweep in `sweep_dir`; "auto" starts it, goes on with it, or returns the tables of a
        finished one, however often it is called.
      allow_other_data: goes on although the data, or runs that `foldax.pretrained` reads, have changed; `sweep.json`
        records both fingerprints.
      tracker: trackers, as in `foldax.train`, that get each member when it has ended; none by default.
      save: False writes nothing to disk.
      verbose: shows progress and tables.

    Raises:
      ConfigError: the space or an option does not fit the experiment.
      RunError: the folder cannot be used, or this process is a fork of one that has used JAX.
      Interrupted: a signal stopped the sweep, which can be resumed.
      FoldaxError: an error that `foldax.train` raises; a member that is not finite ends only itself.

    >>> import foldax, jax.numpy as jnp
    >>> @foldax.config
    ... class Quadratic(foldax.Training):
    ...     steps: int = 3
    ...     learning_rate: float = 0.1
    >>> def learner(config, info):
    ...     loss = lambda w: (w - 1) ** 2
    ...     update = lambda w, batch, key: (w - config.learning_rate * jax.grad(loss)(w), {"loss": loss(w)})
    ...     evaluate = lambda w, batch, key: {"loss": loss(w)[None]}
    ...     return foldax.Learner(lambda key, examples: jnp.zeros(()), update, evaluate)
    >>> experiment = foldax.Experiment(Quadratic, learner)
    >>> swept = sweep(experiment, {"learning_rate": [0.1, 0.4]}, save=False, verbose=False)
    >>> swept.summary("test/loss", "min").index.tolist()
    [0.4, 0.1]
    """
    check_process()
    compile_cache.enable()
    # 1. Check the options.
    config = experiment.config() if config is None else config
    if not isinstance(config, experiment.config):
        raise ConfigError(f"expected a config of class {experiment.config.__name__}, got {type(config).__name__}")
    clashing = [name for name in flat_values(config) if name in COLUMNS]
    if clashing:
        raise ConfigError(f"{clashing[0]}: a column of a sweep's results has this name; give the field another one")
    parsed = parse_space(config, space or {})
    if resume and sweep_dir is None:
        raise RunError("resume: say which sweep folder to go on with (sweep_dir=..., --sweep-dir DIR)")
    if search is not None:
        check_search(search, config, parsed, samples)
    if launcher is not None:
        check_launcher(launcher, experiment, search, save)
    multihost.check_single_process(search, launcher)
    trackers = make_trackers(tracker)
    if trackers and not save:
        raise ConfigError("tracker: trackers need the sweep folder, and save=False has none")
    # 2. Plan: load the data, group the members, choose the execution.
    planner = Planner(experiment, config, parsed, seeds, execution, max_concurrent)
    plan = planner.plan([] if isinstance(search, Optuna) else enumerate_overrides(parsed, samples, config.seed))
    request = _request(planner, samples, search, launcher) | {"trackers": list(trackers)}
    path = _choose_folder(experiment, config, sweep_dir) if save else None
    if resume == "auto":
        resume = path is not None and folder.is_sweep(path)
    if not resume:
        # The sources of all members' initial parameters: a broken one is an error before any member starts.
        paths: Any = parsed.get("init_from", [config.init_from])
        request["init_from"] = [parameters.read(path).provenance for path in paths if path is not None]
    # 3. Train, in a locked folder unless nothing is saved.
    if path is None:
        return _run(None, planner, plan, search, launcher, {}, verbose)
    with folder.lock(path):
        _create_or_check_folder(path, experiment, config, request, resume)
        path = path.absolute()  # the working directory may change
        members = [member for group in plan.groups for member in group.members]
        if members:
            folder.record_data(path, members[0].data_fingerprint, allow_other_data, "sweep.json")
        pretrained.check_inputs(folder.read_json(path / "sweep.json"), allow_other_data)
        _record_inputs(path, experiment, plan)
        try:
            return _run(path, planner, plan, search, launcher, trackers, verbose)
        except BaseException as error:
            status = failure_status(error)
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                folder.write_json(path / "sweep.json", folder.read_json(path / "sweep.json") | {"status": status})
            raise


def _choose_folder(experiment: Experiment, config: Config, sweep_dir: str | Path | None) -> Path:
    path = Path(sweep_dir) if sweep_dir is not None else folder.new_run_dir(experiment, config, "sweep-")
    path = Path(multihost.broadcast_text(str(path)))
    # Each process has a folder of its own, with the same tables in the end.
    return path / f"process-{jax.process_index()}" if jax.process_index() else path


def _request(planner: Planner, samples: int | None, search: Search | None, launcher: Launcher | None) -> dict[str, Any]:
    """Describes a sweep for `sweep.json`; a resumed sweep must agree in it."""
    request: dict[str, Any] = {
        "search": "grid" if samples is None else "random",
        "space": {name: str(v) if isinstance(v, Range) else to_plain(v) for name, v in planner.space.items()},
        "seeds": planner.seeds,
        "samples": samples,
        "execution": planner.execution,
        "max_concurrent": planner.max_concurrent,
        "config": to_json(planner.config),
    }
    for role, chosen, kinds in (("search", search, SEARCHES), ("launcher", launcher, LAUNCHERS)):
        if chosen is not None:
            name = next(name for name, kind in kinds.items() if isinstance(chosen, kind))
            request |= {role: name, f"{role}_options": chosen._asdict()}
    if isinstance(search, Optuna):
        request["search_options"]["sampler"] = search.sampler and type(search.sampler).__name__  # JSON holds no object
    return request


def _create_or_check_folder(
    path: Path, experiment: Experiment, config: Config, request: dict[str, Any], resume: bool
) -> None:
    if not resume:
        if (path / "sweep.json").exists() or (path / "manifest.json").exists():
            remedy = f'choose another --sweep-dir, or `foldax resume {path}`, or --or-resume (resume="auto")'
            raise RunError(f"{path} holds a run already; {remedy}")
        if config.checkpoints:
            check_writable(checkpoint_location(config.checkpoints))
        manifest = folder.manifest(experiment, config) | {"monitor": config.monitor, "mode": config.mode}
        folder.write_json(path / "sweep.json", manifest | request | folder.record_checkpoints(path, config))
        return
    before = folder.read_json(path / "sweep.json")
    owner, name = before["experiment"], experiment_name(experiment)
    if owner != name:
        raise RunError(f"{path} is a sweep of another experiment, {owner!r}, not of {name!r}")
    names = ("search", "space", "seeds", "samples", "execution")
    # As text, because tuples come back from JSON as lists.
    differing = [name for name in names if json.dumps(before.get(name)) != json.dumps(request[name])]
    differing += ["config"] if changed_values(before["config"], config) else []
    if differing:
        raise ConfigError(f"{path} was started with another {', '.join(differing)}; see its sweep.json")
    if before["status"] != "finished":
        before = folder.begin_session(path, experiment, "sweep.json")
        folder.write_json(path / "sweep.json", before | {"trackers": request["trackers"]})


def _run(
    path: Path | None,
    planner: Planner,
    plan: Plan,
    search: Search | None,
    launcher: Launcher | None,
    trackers: Mapping[str, Tracker],
    verbose: bool,
) -> SweepResult:
    experiment, config = planner.experiment, planner.config
    began, compile_began = time.perf_counter(), compiled.compile_seconds()
    traces_before = compiled.trace_counts["advance"]
    count = search.num_trials * planner.seeds if isinstance(search, Optuna) else len(plan.configs)
    total_steps = sum(one.steps for one in plan.configs) or count * config.steps
    name = experiment_name(experiment)
    with (
        contextlib.closing(ResultStore(path, count)) as store,
        contextlib.closing(MemberTracking(trackers, name, path or Path())) as tracking,
        contextlib.closing(Progress(f"{name}, sweep", total_steps, verbose)) as progress,
        stop_on_signals() as stop_requested,
    ):
        # Results of earlier runs of this sweep count as done, but not for its speed.
        before = set(store.results)
        show_match = matching.show if verbose else lambda match: None
        callbacks = SweepCallbacks(path, store, progress, stop_requested, show_match, tracking.track)

        def fold(plan: Plan) -> None:
            _record_inputs(path, experiment, plan)  # a search plans members on the way
            if launcher is None:
                fold_groups(experiment, multihost.process_shard(plan).groups, callbacks)
            else:
                launch(experiment, plan, launcher, callbacks, path)

        if isinstance(search, Optuna):
            plan = fold_optuna(planner, search, callbacks, fold, path)
        elif search is not None and len(before) < count:
            fold_population(planner, plan, search, callbacks, path)
        else:
            fold(plan)
        for result in multihost.gather_results(store.results):
            store.add(result)
    # With several processes, each now has the results of all.
    done, seconds = store.results, time.perf_counter() - began
    measured: dict[str, Any] = {
        "programs": compiled.trace_counts["advance"] - traces_before,
        "member_steps": sum(one.steps for one in done.values()),
        "member_steps_per_second": sum(one.steps for n, one in done.items() if n not in before) / seconds,
        "seconds": seconds,
        "compile_seconds": compiled.compile_seconds() - compile_began,
        "status": "finished" if len(done) == count else "interrupted",
    }
    measured |= _record_inputs(path, experiment, plan)  # also what only an update has read
    swept = _save(path, config, plan, done, measured)
    if swept.metadata["status"] == "interrupted":
        call = f"foldax.sweep(..., sweep_dir={str(path)!r}, resume=True)"
        command = f"foldax resume {display_path(path)}" if path and experiment_file(experiment) else call
        hint = f"; go on with: {command}" if path else ""
        raise Interrupted(f"stopped with {len(done)} of {count} members done{hint}")
    if verbose and path is not None and jax.process_index() == 0:
        show(path)
    return swept


def _record_inputs(path: Path | None, experiment: Experiment, plan: Plan) -> dict[str, Any]:
    """Names what members have read in `sweep.json`, unless they all have ended; without a folder, returns it."""
    configs = [group.members[0].config for group in plan.groups]
    if path is None:
        inputs = pretrained.read_inputs(experiment, configs)
        return {"inputs": inputs} if inputs else {}
    if folder.read_json(path / "sweep.json")["status"] != "finished":
        pretrained.record_inputs(path, experiment, configs, "sweep.json")
    return {}


def _save(
    path: Path | None, config: Config, plan: Plan, results: dict[int, MemberResult], measured: dict[str, Any]
) -> SweepResult:
    """Makes the tables and metadata of a sweep, and writes them, unless the folder holds a finished sweep already."""
    # A search may have changed configs while members trained.
    ended = {n: from_json(type(config), json.loads(result.config)) for n, result in results.items() if result.config}
    plan = plan._replace(configs=[ended.get(number, one) for number, one in enumerate(plan.configs)])
    frame, curves = make_tables(plan, results)
    metadata = {
        "monitor": config.monitor,
        "mode": config.mode,
        "groups": [group.metadata() for group in plan.groups],
        "fields": plan.fields,
        **measured,
        "data_fingerprint": plan.groups[0].members[0].data_fingerprint,
        "ended": folder.now(),
    }
    if path is not None:
        before = folder.read_json(path / "sweep.json")
        if before["status"] == "finished":
            return SweepResult(frame, curves, before, plan.configs, path)
        metadata = before | metadata | {"data_fingerprint": before["data_fingerprint"]}
        metadata["best_member"] = statistics.best_member(metadata, frame if len(frame) else None, plan.configs)
        write_tables(path, frame, curves)
        folder.write_json(path / "sweep.json", metadata)
    return SweepResult(frame, curves, metadata, plan.configs, path)


def make_tables(plan: Plan, results: dict[int, MemberResult]) -> tuple["pandas.DataFrame", "pandas.DataFrame"]:
    """Tabulates the members that have ended.

    Args:
      plan: the plan of the sweep.
      results: results by member number.

    Returns:
      `(results, curves)`, see `SweepResult`.
    """
    import pandas

    group_of = {member.number: member.group for group in plan.groups for member in group.members}
    rows, points = [], []
    for number, result in sorted(results.items()):
        row = {"member": number, "group": group_of[number], **flat_values(plan.configs[number])}
        row |= {"status": _status(result), "steps_done": result.steps, "best_step": result.best_step}
        rows.append(
            row | {"seconds": result.seconds, "state_sha256": result.state_sha256} | flat_metrics(result.metrics)
        )
        for line in result.history:
            names = [name for name in line if name not in ("step", "split")]
            points += [(number, line["step"], line["split"], name, line[name]) for name in names]
    frame = pandas.DataFrame(rows)
    for name in plan.configs and flat_values(plan.configs[0]):
        # Parquet columns have one type: a field whose values have several becomes text.
        if len(frame) and len({type(value) for value in frame[name].dropna()}) > 1:
            missing = frame[name].isna()
            frame[name] = [None if none else str(x) for x, none in zip(frame[name], missing)]
    if len(frame):
        frame["best_step"] = frame["best_step"].astype("Int64")
    return frame, pandas.DataFrame(points, columns=["member", "step", "split", "metric", "value"])


def _status(result: MemberResult) -> str:
    """Status of a member, with every metric of its evaluations that was NaN or infinite, as of a run."""
    if result.status == statistics.NOT_FINITE:
        return result.status
    tested_at = result.steps if result.best_step is None else result.best_step
    return evaluation.status_with_nonfinite(result.status, result.history, result.metrics, tested_at)
