"""Hooks of users: functions that a run calls every so many steps, between two chunks."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from foldax.engine import compiled
from foldax.engine.state import Run
from foldax.errors import ConfigError, ExperimentError
from foldax.experiment import Experiment, experiment_file, user_traceback
from foldax.learner import Learner, State
from foldax.runs.figures import figure_errors, save_figure
from foldax.runs.terminal import warn
from foldax.runs.trackers.tracking import Tracking


class HookContext(NamedTuple):
    """The run, as a hook gets it.

    Attributes:
      experiment: the experiment.
      config: its config.
      info: static facts of the training split, or None.
      dataset: the data, or None.
      history: the log lines so far, `{"step": ..., "split": ..., metrics...}`; it grows while the run goes on.
      run_dir: the run folder; None with `save=False`.
    """

    experiment: Experiment
    config: Any
    info: Any
    dataset: Any
    history: Sequence[dict[str, Any]]
    run_dir: Path | None

    @property
    def learner(self) -> Learner:
        """The learner, built from the config: `context.learner.predict(state, inputs, key)`."""
        return self.experiment.learner(self.config, self.info)


@dataclasses.dataclass(frozen=True)
class Every:
    """A function that a run calls at all multiples of some steps; see the argument `hooks` of `foldax.train`.

    Args:
      steps: number of updates between two calls, at least 1.
      function: `(step, state, context) -> {name: figure} or None`. The learner's state is on the device and valid only
        during the call: copy what you keep. Figures, of matplotlib or texts, are saved in the run folder and sent to
        the trackers. What the function does changes no bit of the run.

    Raises:
      ConfigError: `steps` is no positive integer, or the function cannot be called with three arguments.

    >>> def show_step(step, state, context):
    ...     print(step)
    >>> Every(500, show_step).steps
    500
    """

    steps: int
    function: Callable[[int, State, HookContext], dict[str, Any] | None]

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(
                f"foldax.Every: the steps between two calls must be an integer of 1 or more, not {self.steps!r}"
            )
        if not callable(self.function):
            raise ConfigError(f"foldax.Every({self.steps}, ...): {self.function!r} is no function")
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # functions of C have none
            return
        try:
            signature.bind(0, None, None)
        except TypeError:
            problem = f"{self.name}{signature} cannot be called with (step, state, context)"
            raise ConfigError(f"foldax.Every({self.steps}, ...): {problem}") from None

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)


def check_hooks(hooks: Any, steps: int) -> tuple[Every, ...]:
    """Returns the hooks of a run as a tuple, and warns of those that it never calls.

    Args:
      hooks: one, or several.
      steps: number of updates of the run.

    Raises:
      ConfigError: one of them is no `Every`.

    >>> len(check_hooks(Every(500, lambda step, state, context: None), steps=1_000))
    1
    """
    all_hooks = (hooks,) if isinstance(hooks, Every) else tuple(hooks) if isinstance(hooks, Sequence) else (hooks,)
    for hook in all_hooks:
        if not isinstance(hook, Every):
            name = getattr(hook, "__name__", type(hook).__name__)
            raise ConfigError(f"hooks: {name} is no hook; write hooks=[foldax.Every(500, function)]")
        if hook.steps > steps:
            warn(f"hook {hook.name} is never called: the run has {steps} steps, and its interval is {hook.steps}")
    return all_hooks


def missing_hooks_warning(names: Sequence[str], hooks: Sequence[Every]) -> str | None:
    """Explains which hooks of earlier sessions a resumed run does not call; None if there are none.

    >>> missing_hooks_warning(["draw"], []).split(";")[0]
    'hooks of earlier sessions are not called now: draw'
    """
    missing = [name for name in names if name not in [hook.name for hook in hooks]]
    remedy = "go on by foldax.train(..., resume=True, hooks=...) to call them"
    return f"hooks of earlier sessions are not called now: {', '.join(missing)}; {remedy}" if missing else None


def call_hooks(hooks: Sequence[Every], run: Run, path: Path | None, tracking: Tracking | None) -> float:
    """Calls the hooks that are due at the run's step, and saves the figures that they return.

    Returns:
      The seconds that they took, without compiling.

    Raises:
      ExperimentError: a hook failed, or spoilt the state; names the hook and the step.
    """
    began = compiled.training_clock()
    context = HookContext(run.program.experiment, run.config, run.program.info, run.dataset, run.history, path)
    for hook in hooks:
        if run.step % hook.steps:
            continue
        where = f"hook {hook.name!r} at step {run.step}"
        try:
            # The same arrays in containers of its own: the hook cannot put others into the run's.
            figures = hook.function(run.step, jax.tree.map(lambda leaf: leaf, run.fold.state), context)
        except Exception as error:
            file = experiment_file(run.program.experiment)
            raise ExperimentError(f"{where} failed:\n{user_traceback(error, file)}") from error
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(run.fold.state)):
            raise ExperimentError(
                f"{where} donated arrays of the state to a function (donate_argnums); copy them first"
            )
        if not isinstance(figures, dict | None):
            raise ExperimentError(f"{where} returned {type(figures).__name__}; return {{name: figure}} or None")
        _save_figures(figures or {}, run.step, path, tracking, where)
    return compiled.training_clock() - began


def _save_figures(figures: dict[str, Any], step: int, path: Path | None, tracking: Tracking | None, where: str) -> None:
    """Saves figures as `figures/NAME/step_STEP.png`, and sends them to the trackers; what fails is a warning."""
    for name, figure in figures.items():
        if path is not None:
            with figure_errors(f"figure {name!r} of {where}", "the run goes on"):
                file = save_figure(str(name), figure, path / "figures", f"step_{step}")
                if tracking is not None:
                    tracking.figure(step, str(name), file)
        if hasattr(figure, "savefig"):
            from matplotlib import pyplot

            pyplot.close(figure)  # pyplot keeps its figures otherwise
