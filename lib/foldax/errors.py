"""Errors meant for people: each says what was wrong, where, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoldaxError(Exception):
    """Base of all errors whose message is enough: the command line prints it without a traceback."""


class ConfigError(FoldaxError, ValueError):
    """A config field has a wrong name, type or value."""


class ExperimentError(FoldaxError):
    """An experiment file is missing, broken, or breaks what a `Learner` promises."""


class DataError(FoldaxError):
    """A dataset cannot be had, or does not fit the config."""


class RunError(FoldaxError):
    """A run folder is locked, foreign, unreadable, or cannot be written."""


class NonFiniteError(FoldaxError):
    """A training metric became NaN or infinite, at `step`."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(FoldaxError):
    """A signal stopped the run after it was saved."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest allowed spelling, or an empty string."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_counts(**counts: int) -> None:
    """Checks that all of these numbers, by name, are 1 or more.

    Raises:
      ConfigError: one is not.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be 1 or more")
