"""`foldax.train`: the driver with a run folder, a progress bar and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from foldax.configuration import Interaction
from foldax.engine import compiled
from foldax.engine.checkpoint import Checkpoints, state_digest
from foldax.engine.loop import Hooks, Run, fit, unsaved
from foldax.engine.result import Result
from foldax.errors import FoldaxError, Interrupted, RunError
from foldax.experiment import Experiment, experiment_name
from foldax.runs import folder, tables
from foldax.runs.log import Log
from foldax.runs.progress import Progress
from foldax.runs.transfer import initial_parameters, matching


def train(
    experiment: Experiment,
    config: Any = None,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    save: bool = True,
    dataset: Any = None,
    initial: Any = None,
    verbose: bool = True,
) -> Result:
    """Trains, evaluates and tests an experiment, and keeps a record of it in a run folder.

    Args:
      experiment: what to run.
      config: an instance of `experiment.config`; its defaults if None.
      run_dir: the run folder; a new one under `runs/` if None.
      resume: go on from the newest checkpoint in `run_dir`.
      save: without it nothing is written to disk, and figures are not made.
      dataset: the data, if it is loaded already.
      initial: parameters to start from, instead of `config.init_from`: a `Result`, a state, Flax's variables, arrays by
        path, a run folder, or what `foldax.transfer.renamed` made of one. Matched by path and shape.
      verbose: whether to show progress and tables.

    Returns:
      The trained state and all that was measured.

    Raises:
      FoldaxError: see `foldax.engine.loop.fit`; `Interrupted` after SIGINT or SIGTERM, when all is saved;
        `RunError` if the folder is locked, another experiment's, or cannot be written, or if no parameter to start
        from fits the model.
    """
    config = experiment.config() if config is None else config
    facts = folder.read_json(Path(run_dir) / "manifest.json").get("init_from") if resume and run_dir else None
    source = initial_parameters.begins(config, initial, facts)
    if source is not None and not resume:
        source()  # what cannot be read is said before a folder is made
    progress = Progress(experiment_name(experiment), config.steps, verbose)
    if not save:
        with contextlib.closing(progress), signals() as interrupted:
            return fit(experiment, config, _hooks(progress, interrupted, source, verbose=verbose), dataset)
    if resume and run_dir is None:
        raise RunError("resume: say which run folder to go on with (run_dir=...)")
    path = Path(run_dir) if run_dir is not None else folder.new_run_dir(experiment, config)
    with folder.lock(path), contextlib.closing(progress):
        if resume:
            folder.check_same(path, experiment, config)
            if lost := folder.read_json(path / "manifest.json").get("unsaved"):
                warn(lost)
            folder.amend_manifest(path, status="running", ended=None)
        else:
            folder.create(path, experiment, config)
            if source is not None:
                folder.amend_manifest(path, init_from=source().facts)
        try:
            return _train_in(path, experiment, config, dataset, source, progress, verbose)
        except BaseException as error:
            reason = str(error).splitlines()[0] if isinstance(error, FoldaxError) else type(error).__name__
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                folder.end_manifest(path, "interrupted" if isinstance(error, Interrupted) else f"failed: {reason}")
            raise


def _train_in(
    path: Path, experiment: Experiment, config: Any, dataset: Any, source: Any, progress: Progress, verbose: bool
) -> Result:
    with (
        contextlib.closing(Log(path)) as log,
        contextlib.closing(Checkpoints(path / "checkpoints", warn)) as checkpoints,
        signals() as interrupted,
    ):
        hooks = _hooks(progress, interrupted, source, log, checkpoints, path, verbose, config)
        result = fit(experiment, config, hooks, dataset)
    if result.status == "interrupted":
        lost = f" ({unsaved(result.dataset)})" if unsaved(result.dataset) else ""
        raise Interrupted(
            f"stopped at step {result.step} of {config.steps}; go on with: foldax resume {tables.shown(path)}{lost}"
        )
    result = dataclasses.replace(result, run_dir=path)
    progress.close()
    result = dataclasses.replace(result, figures=save_figures(result, path / "figures", verbose))
    folder.end_manifest(path, result.status)
    folder.write_json(path / "result.json", as_json(result))
    if verbose:
        report(result)
    return result


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    print(f"foldax: {message}", file=sys.stderr)


def _hooks(
    progress: Progress,
    interrupted: Any,
    source: Any = None,
    log: Log | None = None,
    checkpoints: Checkpoints | None = None,
    path: Path | None = None,
    verbose: bool = False,
    config: Any = None,
) -> Hooks:
    def write(step: int, split: str, metrics: dict[str, float]) -> None:
        progress.metrics(split, metrics)
        if log is not None:
            log.write(step, split, metrics)

    def ready(run: Run) -> None:
        if path is not None and run.program.info is not None:
            facts = dict(data_fingerprint=run.program.info.fingerprint, unsaved=unsaved(run.dataset))
            folder.amend_manifest(path, **facts)
        if verbose:
            _print(tables.summary(run))

    def tell(found: matching.Match) -> None:
        if path is not None:
            folder.amend_manifest(path, init_from=found.source.facts | {how: found.count(how) for how in matching.HOWS})
        if verbose:
            matching.show(found)

    profile = path / "profile" if path is not None and config.profile else None
    rewind = log.rewind if log is not None else lambda step: []
    return Hooks(
        write,
        progress.step,
        interrupted,
        rewind,
        ready,
        initial_parameters.starting(source, tell),
        checkpoints,
        profile,
    )


@contextlib.contextmanager
def signals() -> Iterator[Any]:
    """Catches SIGINT and SIGTERM: the first asks to save and stop, a second SIGINT stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save_figures(result: Result, path: Path, verbose: bool = True) -> dict[str, Path]:
    """Saves the learning curves and what the experiment's `figures` makes: PNGs, and texts as `.txt`."""
    from foldax.plots import common

    made: dict[str, Any] = {"learning_curves": common.learning_curves(result.history)}
    if result.experiment.figures is not None:
        with compiled.own_code(result.experiment):
            made |= result.experiment.figures(result)
    files = {name: path / f"{name}.{'txt' if isinstance(figure, str) else 'png'}" for name, figure in made.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            if isinstance(figure, str):
                files[name].write_text(figure + "\n")
            else:
                figure.savefig(files[name], dpi=120)
    except OSError as error:
        raise RunError(f"cannot write the figures to {path}: {error.strerror}") from error
    for text in made.values():
        if verbose and isinstance(text, str):
            print(text)
    return files


def as_json(result: Result) -> dict[str, Any]:
    """Returns what `result.json` holds."""
    config = result.config
    return {
        "status": result.status,
        "steps": result.step,
        **({"environment_steps": config.acted(result.step)} if isinstance(config, Interaction) else {}),
        "tested": "last" if result.best_step is None else "best",
        "best_step": result.best_step,
        **result.metrics,
        "state_sha256": state_digest(result.final),
        **({"unsaved": unsaved(result.dataset)} if unsaved(result.dataset) else {}),
        "steps_per_second": result.steps_per_second,
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "figures": {name: str(path.name) for name, path in result.figures.items()},
    }


def report(result: Result) -> None:
    """Prints the final table, and where things are."""
    which = "last state" if result.best_step is None else f"best state, step {result.best_step}"
    acted = f", {result.config.acted(result.step):,} of environments" if isinstance(result.config, Interaction) else ""
    title = f"{experiment_name(result.experiment)}: {result.status} after {result.step} steps{acted} ({which})"
    _print(tables.metrics(title, {k: v for k, v in result.metrics.items() if k != "train"} or result.metrics))
    speed = f"{result.steps_per_second:,.0f} steps/s, " if result.steps_per_second else ""
    print(f"{speed}{result.seconds:.1f} s in all, {result.compile_seconds:.1f} s of it compiling")
    for name, path in result.figures.items():
        print(f"{name}: {tables.shown(path)}")
    if result.run_dir is not None:
        print(f"run folder: {tables.shown(result.run_dir)}")


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
