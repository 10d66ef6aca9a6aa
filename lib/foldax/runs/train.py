"""`foldax.train`: trains an experiment with a run folder, a progress bar and signals."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from foldax.configuration import RLTraining
from foldax.data.protocol import Dataset
from foldax.engine import compile_cache, compiled
from foldax.engine.checkpoint import Checkpoints, checkpoint_steps, state_digest
from foldax.engine.loop import Hooks, Run, fit
from foldax.engine.result import Result
from foldax.engine.setup import nonresumable_reason
from foldax.errors import ConfigError, ExperimentError, Interrupted, RunError
from foldax.experiment import Experiment, experiment_name
from foldax.runs import folder, tables, terminal
from foldax.runs import resume as resuming
from foldax.runs.first_step import FirstStepTimer
from foldax.runs.load import load_run
from foldax.runs.log import Log
from foldax.runs.progress import Progress
from foldax.runs.signals import stop_on_signals
from foldax.runs.terminal import warn
from foldax.runs.transfer import initial_parameters, matching, pretrained
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
      verbose: shows progress and tables.

    Returns:
      The trained state, its metrics and the log.

    Raises:
      FoldaxError: see `foldax.engine.loop.fit`.
      Interrupted: SIGINT, SIGTERM or SIGHUP stopped the run, after its state was saved.
      ConfigError: a run that goes on has another value in a field that cannot change.
      RunError: the folder is locked, holds another run or cannot be written, or no initial parameter fits the model.
    """
    compile_cache.enable()
    timer = FirstStepTimer()
    config = experiment.config() if config is None else config
    # 1. The folder, and what there is to do in it
    path, status = _folder_and_status(experiment, config, run_dir, resume) if save else (None, "new")
    if path is not None and status == "finished":
        return _finished_result(path, experiment, dataset, allow_other_data, verbose)
    # 2. Initial parameters
    recorded = folder.read_json(path / "manifest.json").get("init_from") if path and status == "unfinished" else None
    source = initial_parameters.initial_source(config, initial, recorded)
    if source is not None and status == "new":
        source()  # an unreadable source is an error before a folder is created
    # 3. Without a folder
    if path is None:
        progress = Progress(experiment_name(experiment), config.steps, verbose)
        with contextlib.closing(progress), stop_on_signals() as stop_requested:
            return fit(experiment, config, _hooks(progress, timer, stop_requested, source, verbose), dataset)
    # 4. In a locked folder, whose manifest always records how the run ended
    with folder.lock(path):
        if status == "unfinished":
            # Some datasets, such as simulators on the host, cannot be resumed bit for bit.
            if reason := folder.begin_session(path, experiment).get("nonresumable_reason"):
                warn(reason)
        else:
            folder.create(path, experiment, config)
            if source is not None:
                folder.update_manifest(path, init_from=source().provenance)
        try:
            result = _train_in_folder(path, experiment, config, dataset, source, timer, allow_other_data, verbose)
        except BaseException as error:
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                # A finished run that could not go on is as it was.
                before = folder.read_result(path) if (path / "result.json").exists() else {}
                status = before.get("status", folder.failure_status(error))
                folder.update_manifest(path, status=status, ended=folder.now())
            raise
        # 5. The run is finished, whatever happens to its figures
        return _save_pictures(result, timer, verbose)


def _folder_and_status(
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
    if resume is True and status == "finished" and not checkpoint_steps(path / "checkpoints"):
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
        terminal.echo(f"{tables.display_path(path)} is finished already:")
        print_result(result)
    return result


def _train_in_folder(
    path: Path,
    experiment: Experiment,
    config: Any,
    dataset: Dataset | None,
    source: ReadSource | None,
    timer: FirstStepTimer,
    allow_other_data: bool,
    verbose: bool,
) -> Result:
    command = f"foldax resume {tables.display_path(path)}"
    with (
        contextlib.closing(Progress(experiment_name(experiment), config.steps, verbose)) as progress,
        contextlib.closing(Log(path)) as log,
        contextlib.closing(Checkpoints(path / "checkpoints", warn)) as checkpoints,
        stop_on_signals(f"stopped before its first step; go on with: {command}") as stop_requested,
    ):
        hooks = _hooks(progress, timer, stop_requested, source, verbose, path, log, allow_other_data)._replace(
            load_history=log.rewind, checkpoints=checkpoints, profile_dir=path / "profile" if config.profile else None
        )
        with pretrained.inputs_of(experiment, config):
            result = fit(experiment, config, hooks, dataset)
        _record_inputs(path, experiment, config)  # also what only an update has read
    if result.status == "interrupted":
        reason = nonresumable_reason(result.dataset)
        command += f" ({reason})" if reason else ""
        raise Interrupted(f"stopped at step {result.step} of {config.steps}; go on with: {command}")
    result = dataclasses.replace(result, run_dir=path)
    folder.update_manifest(path, status=result.status, ended=folder.now())
    folder.write_json(path / "result.json", result_json(result))  # marks the run as finished
    return result


def _save_pictures(result: Result, timer: FirstStepTimer, verbose: bool) -> Result:
    """Saves the figures of a finished run, names them in its `result.json`, and prints its metrics."""
    path = result.run_dir
    assert path is not None
    result = dataclasses.replace(result, figures=save_figures(result, path / "figures", verbose))
    try:
        folder.write_json(path / "result.json", result_json(result))
    except RunError as error:
        warn(f"{error}; the result of the run is saved, but does not name its figures")
    if verbose:
        print_result(result)
        terminal.echo(timer)
    return result


def _hooks(
    progress: Progress,
    timer: FirstStepTimer,
    stop_requested: Callable[[], bool],
    source: ReadSource | None,
    verbose: bool,
    path: Path | None = None,
    log: Log | None = None,
    allow_other_data: bool = False,
) -> Hooks:
    """Makes the hooks of a run; without `path` and `log` they write nothing to disk."""

    def write_metrics(step: int, split: str, metrics: dict[str, float]) -> None:
        progress.metrics(split, metrics)
        if log is not None:
            log.write(step, split, metrics)

    def show_step(step: int) -> None:
        timer.stop()
        progress.step(step)

    def on_start(run: Run) -> None:
        info, reason = run.program.info, nonresumable_reason(run.dataset)
        if path is not None and info is not None:
            folder.record_data(path, info.fingerprint, allow_other_data, nonresumable_reason=reason)
        if path is not None and (manifest := folder.read_json(path / "manifest.json"))["sessions"]:
            pretrained.check_inputs(manifest.get("inputs", []), allow_other_data)
            resuming.record_config(path, run.config, run.step)
        if path is not None:
            _record_inputs(path, run.program.experiment, run.config)
        if verbose:
            _print_start(run)

    def on_match(match: matching.Match) -> None:
        if path is not None:
            counts = {status: match.count(status) for status in matching.STATUSES}
            folder.update_manifest(path, init_from=match.source.provenance | counts)
        if verbose:
            matching.show(match)

    hooks = Hooks(write_metrics, show_step, stop_requested, on_start=on_start, warn=warn)
    return hooks._replace(replace_initial_state=initial_parameters.initial_state_hook(source, on_match))


def _record_inputs(path: Path, experiment: Experiment, config: Any) -> None:
    """Names what `foldax.pretrained` has read in the manifest."""
    manifest, inputs = folder.read_json(path / "manifest.json"), pretrained.read_inputs(experiment, config)
    if not inputs or manifest.get("inputs") == inputs:
        return
    # What the run began with stays recorded.
    if manifest["sessions"] and "inputs" in manifest:
        manifest["sessions"][-1]["inputs"] = inputs
    else:
        manifest["inputs"] = inputs
    folder.write_json(path / "manifest.json", manifest)


def _print_start(run: Run) -> None:
    """Prints the sizes of the model and, at the first step, why the run could not be resumed bit for bit."""
    terminal.print_table(tables.model_table(run))
    if run.step == 0 and (reason := nonresumable_reason(run.dataset)):
        terminal.echo(f"note: {reason}")


def save_figures(result: Result, path: Path, verbose: bool = True) -> dict[str, Path]:
    """Saves the learning curves and the experiment's `figures`: figures as PNG, texts as `.txt`.

    A figure that fails is left out, with a warning: the run has ended, and its result stands.

    Returns:
      The files by name of the figure; characters that file names lack become "%" and their code.
    """
    from foldax.plots import common

    figures: dict[str, Any] = {}
    with _figure_errors("learning curves"):
        figures["learning_curves"] = common.learning_curves(result.history)
    with _figure_errors("the experiment's `figures`"), compiled.user_code_errors(result.experiment):
        own = {} if result.experiment.figures is None else result.experiment.figures(result)
        if not isinstance(own, dict):
            raise ExperimentError(f"they must be a dict of figures and texts by name, not {type(own).__name__}")
        figures |= own
    files = {}
    for name, figure in figures.items():
        with _figure_errors(f"figure {name!r}"):
            files[name] = _save_figure(str(name), figure, path)
            if verbose and isinstance(figure, str):
                terminal.echo(figure)
    return files


def _save_figure(name: str, figure: Any, folder: Path) -> Path:
    if not (isinstance(figure, str) or hasattr(figure, "savefig")):
        raise ExperimentError(f"expected a matplotlib figure or a text, not {type(figure).__name__}")
    if not name:
        raise ExperimentError("it has no name")
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r'[/\\%\0-\x1f:*?"<>|]', lambda match: f"%{ord(match[0]):02X}", name)
    file = folder / f"{stem}.{'txt' if isinstance(figure, str) else 'png'}"
    if isinstance(figure, str):
        file.write_text(figure + "\n", encoding="utf-8")
    else:
        figure.savefig(file, dpi=120)
    return file


@contextlib.contextmanager
def _figure_errors(what: str) -> Iterator[None]:
    """Turns every error of a figure into a warning."""
    try:
        yield
    except Exception as error:
        warn(f"{what} could not be drawn; the result of the run is saved: {str(error) or type(error).__name__}")


def result_json(result: Result) -> dict[str, Any]:
    """Returns the content of `result.json`."""
    config, reason = result.config, nonresumable_reason(result.dataset)
    is_agent = isinstance(config, RLTraining)
    named = {split: metrics for split, metrics in result.metrics.items() if split not in folder.SPLITS}
    return {
        "status": result.status,
        "steps": result.step,
        **({"environment_steps": config.environment_steps_after(result.step)} if is_agent else {}),
        "tested": "last" if result.best_step is None else "best",
        "best_step": result.best_step,
        **{split: metrics for split, metrics in result.metrics.items() if split in folder.SPLITS},
        **({"evaluation": named} if named else {}),
        "state_sha256": state_digest(result.final_state),
        **({"nonresumable_reason": reason} if reason else {}),
        "steps_per_second": result.steps_per_second,
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
    speed = f"{result.steps_per_second:,.0f} steps/s, " if result.steps_per_second else ""
    terminal.echo(f"{speed}{result.seconds:.1f} s in all, {result.compile_seconds:.1f} s of it compiling")
    paths = result.figures if result.run_dir is None else {**result.figures, "run folder": result.run_dir}
    for name, path in paths.items():
        terminal.echo(f"{name}: {tables.display_path(path)}")
