"""Errors for people: each message says what was wrong, where, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path, PurePath


class FoldaxError(Exception):
    """Base of all errors whose message is enough: the command line prints it without a traceback."""


class ConfigError(FoldaxError, ValueError):
    """A config field or an option has a wrong name, type or value."""


class ExperimentError(FoldaxError):
    """An experiment file is missing or broken, or its learner breaks a promise of `foldax.Learner`."""


class DataError(FoldaxError):
    """A dataset is not available, or does not fit the config."""


class RunError(FoldaxError):
    """A run folder is locked, holds another run, or cannot be read or written."""


class DamagedError(RunError):
    """The content of a checkpoint is not what was written."""


class NonFiniteError(FoldaxError):
    """A training metric became NaN or infinite.

    Attributes:
      step: the update that computed it.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(FoldaxError):
    """A signal stopped the run, after its state was saved."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Suggests the closest allowed spelling of a word, as the end of an error message; empty if none is close.

    >>> did_you_mean("lerning_rate", ["steps", "learning_rate"])
    "; did you mean 'learning_rate'?"
    """
    # A cutoff of 0.5 still finds swapped and missing letters.
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_positive(**counts: int) -> None:
    """Checks that every count is at least 1.

    Args:
      **counts: the counts, by the name that the error gives.

    Raises:
      ConfigError: a count is 0 or negative.

    >>> check_positive(num_envs=0)
    Traceback (most recent call last):
    foldax.errors.ConfigError: num_envs: 0 must be 1 or more
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be 1 or more")


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class.

    >>> first_line(OSError("no such host")), first_line(KeyboardInterrupt())
    ('no such host', 'KeyboardInterrupt')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def display_path(path: PurePath) -> str:
    """Formats a path, relative to the working directory if it lies below it.

    >>> display_path(Path.cwd() / "runs" / "first")
    'runs/first'
    """
    here = Path.cwd()
    absolute = path.resolve() if isinstance(path, Path) else path  # of a bucket
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)
