"""`foldax reproduce`: trains a finished run again and compares all bits."""

import contextlib
import functools
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from foldax.engine.checkpoint import Checkpoints
from foldax.engine.current_program import inputs_of
from foldax.engine.loop import NEVER, Callbacks, Run, fit
from foldax.errors import RunError
from foldax.experiment import Experiment
from foldax.runs import folder, provenance
from foldax.runs.log import read_log
from foldax.runs.progress import Progress
from foldax.runs.terminal import echo, warn
from foldax.runs.train import result_json
from foldax.runs.transfer import initial_parameters, pretrained
from foldax.runs.transfer.initial_parameters import ReadSource

Json = dict[str, Any]


def reproduce(path: Path, experiment: Experiment, config: Any) -> bool:
    """Trains a finished run again and prints which results differ.

    It compares final validation and test metrics, the bits of the final state and every line of the log; training
    metrics too, unless `log_every` differs: they are then means over other steps.

    Args:
      path: the run folder.
      experiment: the run's experiment.
      config: the run's config; `log_every` and `checkpoint_every` may differ.

    Returns:
      Whether all results are the same.

    Raises:
      RunError: the run is not finished.
    """
    if not (path / "result.json").exists():
        raise RunError(f"{path} is not finished; `foldax resume {path}` goes on with it")
    manifest = folder.read_json(path / "manifest.json")
    # Training metrics are means between log lines, so other lines have other means.
    same_log_steps = config.log_every == folder.read_json(path / "config.json")["log_every"]
    source = initial_parameters.initial_source(config, recorded=manifest.get("init_from"))
    before = folder.read_result(path)
    before["history"] = read_log(path)
    values = [(one["config"], one["until"]) for one in manifest.get("earlier_configs", [])]
    earlier = [(folder.read_config(path, experiment.config, config), until) for config, until in values]
    return run_and_compare(path, before, manifest, experiment, config, same_log_steps, source, earlier=earlier)


def run_and_compare(
    path: Path,
    before: Json,
    manifest: Json,
    experiment: Experiment,
    config: Any,
    compare_train: bool,
    source: ReadSource | None,
    until: int = NEVER,
    earlier: Sequence[tuple[Any, int]] = (),
) -> bool:
    """Trains with a config and prints which results differ from those of an earlier run.

    Args:
      path: the folder of the run or sweep.
      before: the earlier results, as in `result.json`, and the lines of the log as "history".
      manifest: the earlier manifest, to note what has changed since.
      experiment: the experiment.
      config: its config.
      compare_train: whether to compare training metrics.
      source: reads the initial parameters; None: the run initialises its own.
      until: step at which a search has stopped the run.
      earlier: configs that the run had before, each with the step up to which it had it.

    Returns:
      Whether all results are the same.

    Raises:
      DataError: the data have changed since.
      RunError: parameters of another run that it uses have changed.
    """
    # 1. Changes that may explain a difference
    changes = provenance.changes(manifest, provenance.collect(experiment))
    for note in changes + provenance.session_changes(manifest):
        echo(f"note: {note}")

    # 2. The same run, without a folder
    def check_data(run: Run) -> None:
        provenance.check_data(path, manifest, getattr(run.program.info, "fingerprint", None), allow_other_data=False)
        pretrained.check_inputs(manifest)

    with contextlib.closing(Progress(f"{path.name}, again", config.steps)) as progress:
        replace_initial_state = initial_parameters.initial_state_hook(source)
        callbacks = Callbacks(progress=progress.step, on_start=check_data, replace_initial_state=replace_initial_state)
        # Where other configs came before, one step of it after another, as the run went on.
        with inputs_of(experiment, config), _checkpoints_between(earlier) as checkpoints:
            callbacks = callbacks._replace(checkpoints=checkpoints)
            for earlier_config, end in earlier:
                history = fit(experiment, earlier_config, callbacks, until=end).history
                callbacks = callbacks._replace(load_history=functools.partial(_same_history, history))
            result = fit(experiment, config, callbacks, until=until)
    after = result_json(result)
    # 3. Comparison
    all_same = True
    train = ["train"] if compare_train else []
    # The hash of the final state compares every parameter; metrics locate a difference.
    for key in ["steps", "tested", "best_step", "validation", "test", "evaluation", "state_sha256", *train]:
        old, new = _flatten(key, before.get(key)), _flatten(key, after.get(key))
        for metric in old | new:
            # As texts: equal bits of a float have equal `repr`, also NaN.
            is_same = repr(old.get(metric)) == repr(new.get(metric))
            all_same &= is_same
            difference = f"DIFFERS: {old.get(metric)!r} then, {new.get(metric)!r} now"
            echo(f"{metric:32} {'identical' if is_same else difference}")
    log, log_now = (_log_texts(lines, compare_train) for lines in (before["history"], result.history))
    different = [index for index, (old, new) in enumerate(itertools.zip_longest(log, log_now)) if old != new]
    for index in different[:1]:
        then, now = (lines[index] if index < len(lines) else "no line" for lines in (log, log_now))
        echo(f"line {index + 1} of the log DIFFERS: {then} then, {now} now")
    echo(f"{'log':32} {len(log)} lines, {f'{len(different)} of them DIFFER' if different else 'identical'}")
    all_same &= not different
    echo("reproduced: all bits are the same" if all_same else "NOT reproduced")
    return all_same


def _same_history(history: Sequence[Json], step: int) -> Sequence[Json]:
    return history


@contextlib.contextmanager
def _checkpoints_between(earlier: Sequence[tuple[Any, int]]) -> Iterator[Checkpoints | None]:
    """Yields a temporary folder of checkpoints, or None where no config is followed by another one."""
    if not earlier:
        yield None
        return
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="foldax-"))
        yield stack.enter_context(contextlib.closing(Checkpoints(Path(directory), warn)))


def _log_texts(lines: Iterable[Json], with_train: bool) -> list[str]:
    return [json.dumps(line) for line in lines if with_train or line["split"] != "train"]


def _flatten(key: str, value: Any) -> Json:
    return {f"{key}/{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
