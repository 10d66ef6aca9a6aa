"""Figures of a run, saved in its folder: those of its end, and those that hooks draw on the way."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foldax.configuration import RLTraining, to_json
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ExperimentError
from foldax.runs import terminal
from foldax.runs.terminal import warn

AGENT_FIELDS = ("environment_steps", "learning_starts", "num_envs", "rollout_steps")


def save_figures(result: Result, path: Path, verbose: bool = True) -> dict[str, Path]:
    """Saves the learning curves and the experiment's `figures`: figures as PNG, texts as `.txt`.

    A figure that fails is left out, with a warning: the run has ended, and its result stands.

    Returns:
      The files by name of the figure; characters that file names lack become "%" and their code.
    """
    figures: dict[str, Any] = {}
    with figure_errors("learning curves"):
        figures["learning_curves"] = draw_learning_curves(result.history, to_json(result.config), result.best_step)
    with figure_errors("the experiment's `figures`"), compiled.user_code_errors(result.experiment):
        own = {} if result.experiment.figures is None else result.experiment.figures(result)
        if not isinstance(own, dict):
            raise ExperimentError(f"they must be a dict of figures and texts by name, not {type(own).__name__}")
        figures |= own
    files = {}
    for name, figure in figures.items():
        with figure_errors(f"figure {name!r}"):
            files[name] = save_figure(str(name), figure, path)
            if verbose and isinstance(figure, str):
                terminal.echo(figure)
    return files


def draw_learning_curves(
    history: Sequence[dict[str, Any]], config: Mapping[str, Any], best_step: int | None = None
) -> Any:
    """Draws the learning curves of a run: those of an agent against environment steps, else against updates.

    Args:
      history: lines of its log.
      config: plain values of its config.
      best_step: step of its best evaluation, if that state was kept.
    """
    from foldax.plots import common

    return common.learning_curves(history, environment_steps_after(config), best_step)


def environment_steps_after(config: Mapping[str, Any]) -> Any:
    """Returns the function `updates -> environment steps` of an agent's config; None for other configs.

    >>> environment_steps_after({"environment_steps": 800, "learning_starts": 0, "num_envs": 2, "rollout_steps": 4})(3)
    24
    >>> environment_steps_after({"steps": 10})
    """
    if not all(name in config for name in AGENT_FIELDS):
        return None
    return RLTraining(**{name: config[name] for name in AGENT_FIELDS}).environment_steps_after


def save_figure(name: str, figure: Any, folder: Path, stem: str | None = None) -> Path:
    """Saves a figure as PNG or a text as `.txt`, and returns the path of the file.

    Args:
      name: of the figure; characters that file names lack become "%" and their code.
      figure: a matplotlib figure, or a text.
      folder: where to save it; with a `stem`, in a folder of the figure's name in it.
      stem: name of the file without suffix; None: the figure's name.

    Raises:
      ExperimentError: it is neither, or has no name.
    """
    if not (isinstance(figure, str) or hasattr(figure, "savefig")):
        raise ExperimentError(f"expected a matplotlib figure or a text, not {type(figure).__name__}")
    if not name:
        raise ExperimentError("it has no name")
    file_name = re.sub(r'[/\\%\0-\x1f:*?"<>|]', lambda match: f"%{ord(match[0]):02X}", name)
    if not file_name.strip("."):
        file_name = file_name.replace(".", "%2E")  # else a folder above
    path = folder / file_name if stem is None else folder / file_name / stem
    file = path.with_name(f"{path.name}.{'txt' if isinstance(figure, str) else 'png'}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(figure, str):
        file.write_text(figure + "\n", encoding="utf-8")
    else:
        figure.savefig(file, dpi=120)
    return file


@contextlib.contextmanager
def figure_errors(what: str, consequence: str = "the result of the run is saved") -> Iterator[None]:
    """Turns every error of a figure into a warning, which says what it is about, and what is not lost."""
    try:
        yield
    except Exception as error:
        warn(f"{what} could not be drawn; {consequence}: {str(error) or type(error).__name__}")
