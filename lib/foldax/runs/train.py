"""`foldax.train`: trains an experiment with a run folder, a progress bar and signals."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from foldax import processes
from foldax.configuration import RLTraining
from foldax.data.arrays import SPLITS
from foldax.data.protocol import Dataset
from foldax.engine import compile_cache
from foldax.engine.checkpoint import Checkpoints, checkpoint_steps
from foldax.engine.checkpoint_folder import Folder, check_writable, checkpoint_location
from foldax.engine.current_program import inputs_of
from foldax.engine.forks import check_process
from foldax.engine.loop import fit
from foldax.engine.result import Result, is_divided
from foldax.engine.setup import nonresumable_reason
from foldax.engine.state_leaves import state_digest
from foldax.errors import ConfigError, Interrupted, NonFiniteError, RunError, display_path
from foldax.experiment import Experiment, experiment_name
from foldax.runs import folder, tables, terminal
from foldax.runs import resume as resuming
from foldax.runs.callbacks import RunCallbacks, RunFiles
from foldax.runs.figures import save_figures
from foldax.runs.first_step import FirstStepTimer
from foldax.runs.hooks import Every, check_hooks, missing_hooks_warning
from foldax.runs.load import load_run
from foldax.runs.log import read_log
from foldax.runs.performance import Performance, performance_text
from foldax.runs.progress import Progress
from foldax.runs.recorder import Recorder
from foldax.runs.signals import SECONDS_TO_END, stop_on_signals
from foldax.runs.status import failure_status
from foldax.runs.terminal import warn
from foldax.runs.trackers.choose import DEFAULT, NONE, Trackers, make_trackers, recorded_names
from foldax.runs.trackers.protocol import Tracker
from foldax.runs.trackers.tracking import FINISH_SECONDS, Tracking
from foldax.runs.transfer import initial_parameters, pretrained
from foldax.runs.transfer.initial_parameters import ReadSource


def train(
    experiment: Experiment,
    config: Any = None,
    *,
    run_dir: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    save: bool = True,
    dataset: Dataset | None = None,
    initial: Any = None,
    allow_other_data: bool = False,
    tracker: Trackers | None = None,
    hooks: Every | Sequence[Every] = (),
    verbose: bool = True,
) -> Result:
    """Trains, evaluates and tests an experiment, and records it in a run folder.

    Args:
      experiment: the experiment.
      config: an instance of `experiment.config`; by default one without arguments.
      run_dir: the run folder; by default a new one under `runs/`.
      resume: True goes on from the newest checkpoint in `run_dir`; all fields of `config` but `seed`, `init_from` and
        `keep` may have changed. "auto" starts a run, goes on with it, or returns the result of a finished one, however
        often it is called; only `steps`, `environment_steps` and driver fields may have changed. Without `run_dir`
        it takes the newest run of the same config under `runs/`.
      save: False writes nothing to disk and makes no figures.
      dataset: the dataset, if it is loaded already.
      initial: initial parameters, instead of `config.init_from`: a `Result`, a state, Flax's variables, arrays by path,
        a run folder, or the result of `foldax.transfer.rename`; matched by path and shape.
      allow_other_data: goes on with a run although its data have changed; its manifest records both fingerprints.
      tracker: names of trackers as of the option `--tracker` ("tensorboard" by default, "none" for none), several with
        commas, or objects with the methods of `foldax.Tracker`; a resumed run goes on with those that it had.
      hooks: functions that are called on the way, `foldax.Every(500, function)`.
      verbose: shows progress and tables.

    Returns:
      The trained state, its metrics and the log.

    Raises:
      FoldaxError: see `foldax.engine.loop.fit`.
      Interrupted: SIGINT, SIGTERM or SIGHUP stopped the run, after its state was saved.
      ConfigError: a run that goes on has another value in a field that cannot change, or a tracker or hook is none.
      RunError: the folder is locked, holds another run or cannot be written, no initial parameter fits the model, or
        this process is a fork of one that has used JAX.
    """
    check_process()
    processes.find_devices()
    compile_cache.enable()
    timer = FirstStepTimer()
    config = experiment.config() if config is None else config
    every = check_hooks(hooks, config.steps)
    own_trackers = processes.together("trackers", lambda: _chosen_trackers(tracker, save))
    # 1. The folder, and what there is to do in it; of several processes, only the first one looks and writes
    path, status = _folder_and_status(experiment, config, run_dir, resume) if save else (None, "new")
    if path is not None and status == "finished":
        return _finished_result(path, experiment, dataset, allow_other_data, verbose and processes.is_first())
    # From here on, an error in one of several processes ends the others, whatever they wait for.
    with processes.watch(_advice(path)):
        # 2. Initial parameters
        recorded = _read_manifest(path) if path and status == "unfinished" else {}
        source = initial_parameters.initial_source(config, initial, recorded.get("init_from"))
        if source is not None and status == "new":
            source()  # an unreadable source is an error before a folder is created
        if path is not None and status == "new" and config.checkpoints:
            check_writable(checkpoint_location(config.checkpoints))  # likewise
        # 3. Without a folder
        if path is None:
            verbose = verbose and processes.is_first()
            progress = Progress(experiment_name(experiment), config.steps, verbose)
            ascribed = inputs_of(experiment, config)
            with contextlib.closing(progress), ascribed, stop_on_signals() as stop_requested:
                performance = Performance()
                callbacks = RunCallbacks(progress, timer, performance, every, verbose)
                result = fit(experiment, config, callbacks.for_engine(stop_requested, source), dataset)
                return dataclasses.replace(result, performance=performance.summary())
        if not processes.is_first():
            return _train_beside_first(path.absolute(), experiment, config, dataset, every, source)
        # 4. In a locked folder, whose manifest always records how the run ended
        if own_trackers is None:
            names = recorded.get("chosen_trackers", recorded.get("trackers"))  # older manifests have the ids alone
            own_trackers = make_trackers(DEFAULT if names is None else recorded_names(names))
        tracking = Tracking(own_trackers, warn)
        with contextlib.ExitStack() as lock:
            lost = missing_hooks_warning(recorded.get("hooks", []), every)
            processes.agree("begin", functools.partial(_begin, lock, path, status, experiment, config, source, lost))
            path = path.absolute()  # the working directory may change
            try:
                if every:
                    folder.update_manifest(path, hooks=[hook.name for hook in every])
                performance = Performance()
                with (
                    contextlib.closing(Progress(experiment_name(experiment), config.steps, verbose)) as progress,
                    contextlib.closing(Recorder(path, tracking, performance)) as recorder,
                ):
                    files = RunFiles(path, recorder, tracking, allow_other_data)
                    callbacks = RunCallbacks(progress, timer, performance, every, verbose, files)
                    result = _fit_in_folder(experiment, config, dataset, callbacks, path, source)
                result = _finish(path, dataclasses.replace(result, performance=performance.summary()))
            except BaseException as error:
                with contextlib.suppress(RunError):  # a full disk must not hide the first error
                    # A finished run that could not go on is as it was.
                    before = folder.read_result(path) if (path / "result.json").exists() else {}
                    status = before.get("status", failure_status(error))
                    folder.update_manifest(path, status=status, ended=folder.now())
                seconds = FINISH_SECONDS if isinstance(error, Exception) else SECONDS_TO_END
                tracking.finish(failure_status(error), seconds)
                raise
            # 5. The run is finished, whatever happens to its figures and trackers
            try:
                tracking.summary(result.metrics)
                return _save_pictures(result, timer, tracking, verbose)
            finally:
                tracking.finish(result.status)


def _chosen_trackers(tracker: Trackers | None, save: bool) -> dict[str, Tracker] | None:
    """Makes the trackers that a call names; None if it names none, and they are those of the run so far."""
    if tracker is None:
        return None
    if not save and tracker != NONE:
        raise ConfigError("tracker: trackers need the run folder, and save=False has none")
    return make_trackers(tracker)


def _begin(
    stack: contextlib.ExitStack,
    path: Path,
    status: str,
    experiment: Experiment,
    config: Any,
    source: ReadSource | None,
    missing_hooks: str | None,
) -> None:
    """Locks a run folder until a stack ends, and records that a run begins in it, or goes on."""
    stack.enter_context(folder.lock(path))
    if status != "unfinished":
        folder.create(path, experiment, config)
        if source is not None:
            folder.update_manifest(path, init_from=source().provenance)
        return
    # Some datasets, such as simulators on the host, cannot be resumed bit for bit.
    for warning in (folder.begin_session(path, experiment).get("nonresumable_reason"), missing_hooks):
        if warning:
            warn(warning)


def _train_beside_first(
    path: Path,
    experiment: Experiment,
    config: Any,
    dataset: Dataset | None,
    hooks: Sequence[Every],
    source: ReadSource | None,
) -> Result:
    """Trains in another process than the first one: it writes its parts of the checkpoints, and nothing else."""
    processes.agree("begin", lambda: None)  # the first one makes the folder
    progress = Progress(experiment_name(experiment), config.steps, shown=False)
    callbacks = RunCallbacks(progress, FirstStepTimer(), Performance(), hooks, verbose=False)
    return _finish(path, _fit_in_folder(experiment, config, dataset, callbacks, path, source))


def _folder_and_status(
    experiment: Experiment, config: Any, run_dir: str | Path | None, resume: bool | Literal["auto"]
) -> tuple[Path, resuming.Status]:
    """Chooses the run folder, and says what there is to do in it; of several processes the first one looks."""

    def choose() -> tuple[str, resuming.Status]:
        path, status = _choose_folder(experiment, config, run_dir, resume)
        return str(path), status

    chosen, status = processes.agree("folder", choose)
    return Path(chosen), status


def _checkpoint_folder(path: Path) -> Folder:
    return checkpoint_location(processes.agree("checkpoints", lambda: str(folder.checkpoint_folder(path))))


def _read_manifest(path: Path) -> dict[str, Any]:
    return processes.agree("manifest", lambda: folder.read_json(path / "manifest.json"))


def _choose_folder(
    experiment: Experiment, config: Any, run_dir: str | Path | None, resume: bool | Literal["auto"]
) -> tuple[Path, resuming.Status]:
    if resume not in (True, False, "auto"):
        raise ConfigError(f"resume: {resume!r} is none of True, False, 'auto'")
    if not resume:
        return Path(run_dir) if run_dir is not None else folder.new_run_dir(experiment, config), "new"
    if run_dir is None and resume != "auto":
        raise RunError("resume: say which run folder to go on with (run_dir=...)")
    path = Path(run_dir) if run_dir is not None else resuming.latest_run_dir(experiment, config)
    status = resuming.run_status(path, experiment, config, allow_any=resume is True)
    if resume is True and status == "finished" and not checkpoint_steps(folder.checkpoint_folder(path)):
        return path, "unfinished"  # whoever removed them wants it trained again
    if resume is True and status == "new":
        for name in ("manifest.json", "config.json"):
            folder.read_json(path / name)  # raises: it is no run folder
    return path, status


def _finished_result(
    path: Path, experiment: Experiment, dataset: Dataset | None, allow_other_data: bool, verbose: bool
) -> Result:
    """Loads what an earlier call has trained."""
    result = load_run(path, experiment, allow_other_data, dataset)
    if verbose:
        terminal.echo(f"{display_path(path)} is finished already:")
        print_result(result)
    return result


def _fit_in_folder(
    experiment: Experiment,
    config: Any,
    dataset: Dataset | None,
    callbacks: RunCallbacks,
    path: Path,
    source: ReadSource | None,
) -> Result:
    """Trains with checkpoints; a signal stops it after its state was saved."""
    resume, others = f"go on with: {_resume_command(path)}", {}
    if callbacks.files is None:  # else the recorder does
        others["load_history"] = lambda step: (line for line in read_log(path) if line["step"] <= step)
    with (
        contextlib.closing(_open_checkpoints(path, config)) as checkpoints,
        stop_on_signals(f"stopped before its first step; {resume}") as stop_requested,
        processes.watch(_advice(path)),
    ):
        for_engine = callbacks.for_engine(
            stop_requested,
            source,
            checkpoints=checkpoints,
            profile_dir=path / "profile" if config.profile else None,
            **others,
        )
        try:
            with inputs_of(experiment, config):
                result = fit(experiment, config, for_engine, dataset)
        except NonFiniteError:  # in all processes
            raise
        except BaseException:
            checkpoints.abandon()
            raise
        if callbacks.files is not None:
            pretrained.record_inputs(path, experiment, [config])  # also what only an update has read
    return result


def _open_checkpoints(path: Path, config: Any) -> Checkpoints:
    return Checkpoints(_checkpoint_folder(path), warn, config.max_to_keep, config.keep_period)


def _finish(path: Path, result: Result) -> Result:
    """Marks a run as finished.

    Raises:
      Interrupted: it was stopped before.
    """
    if result.status == "interrupted":
        reason = nonresumable_reason(result.dataset)
        command = _resume_command(path) + (f" ({reason})" if reason else "")
        raise Interrupted(f"stopped at step {result.step} of {result.config.steps}; go on with: {command}")
    result = dataclasses.replace(result, run_dir=path)
    content = result_json(result)  # in all processes, as a state that they divide is hashed by all
    if processes.is_first():
        folder.update_manifest(path, status=result.status, ended=folder.now())
        folder.write_json(path / "result.json", content)
    return result


def _resume_command(path: Path) -> str:
    return f"foldax resume {display_path(path)}"


def _advice(path: Path | None) -> str:
    return "" if path is None else f"; go on with: {_resume_command(path)}"


def _save_pictures(result: Result, timer: FirstStepTimer, tracking: Tracking, verbose: bool) -> Result:
    """Saves the figures of a finished run, names them in its `result.json`, and prints its metrics."""
    path = result.run_dir
    assert path is not None
    if is_divided(result.state):
        warn("no figures are made of a state that is too large for the host of one process")
    else:
        result = dataclasses.replace(result, figures=save_figures(result, path / "figures", verbose))
    for name, file in result.figures.items():
        tracking.figure(result.step, name, file)
    try:
        figures = {name: file.name for name, file in result.figures.items()}
        folder.write_json(path / "result.json", folder.read_json(path / "result.json") | {"figures": figures})
    except RunError as error:
        warn(f"{error}; the result of the run is saved, but does not name its figures")
    if verbose:
        print_result(result)
        terminal.echo(timer)
    return result


def result_json(result: Result) -> dict[str, Any]:
    """Returns the content of `result.json`."""
    config, reason = result.config, nonresumable_reason(result.dataset)
    is_agent = isinstance(config, RLTraining)
    named = {split: metrics for split, metrics in result.metrics.items() if split not in SPLITS}
    return {
        "status": result.status,
        "steps": result.step,
        **({"environment_steps": config.environment_steps_after(result.step)} if is_agent else {}),
        "tested": "last" if result.best_step is None else "best",
        "best_step": result.best_step,
        **{split: metrics for split, metrics in result.metrics.items() if split in SPLITS},
        **({"evaluation": named} if named else {}),
        "state_sha256": state_digest(result.final_state),
        **({"nonresumable_reason": reason} if reason else {}),
        "steps_per_second": result.steps_per_second,
        "performance": result.performance,
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "figures": {name: path.name for name, path in result.figures.items()},
    }


def print_result(result: Result) -> None:
    """Prints the final metrics, the speed, and the paths of figures and run folder."""
    state = "last state" if result.best_step is None else f"best state, step {result.best_step}"
    is_agent = isinstance(result.config, RLTraining)
    environment = f", {result.config.environment_steps_after(result.step):,} environment steps" if is_agent else ""
    title = f"{experiment_name(result.experiment)}: {result.status} after {result.step} steps{environment} ({state})"
    evaluations = {split: metrics for split, metrics in result.metrics.items() if split != "train"}
    terminal.print_table(tables.metrics_table(title, evaluations or result.metrics))
    speed = f"{text}, " if (text := performance_text(result.performance)) else ""
    terminal.echo(f"{speed}{result.seconds:.1f} s in all, {result.compile_seconds:.1f} s of it compiling")
    paths = result.figures if result.run_dir is None else {**result.figures, "run folder": result.run_dir}
    for name, path in paths.items():
        terminal.echo(f"{name}: {display_path(path)}")
