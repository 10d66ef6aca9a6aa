"""Transfer learning: parameters of a run, or of a file, as the start of another model, matched by path and shape.

    foldax run first_year.py --run-dir runs/first
    foldax run second_year.py --init-from runs/first

`--init-from RUN` (`Training.init_from`), or `foldax.train(..., initial=...)`, starts a run from the parameters and
statistics of another one. What does not fit (a new head) keeps its initialisation and is listed. With the learners'
`frozen` that is feature extraction, and with `optim.depth_decay` fine-tuning.

Continued training on new data is the same experiment, or one with the same model, over other data: parameters,
running statistics and a moving average go on; step, optimizer, schedule and early stopping start anew. So do the facts
of the data: `info.standardize` uses the new data's means. Where old and new inputs must be scaled alike, scale them by
constants of your own.

In Python, `transfer.match` shows what would fit, `transfer.renamed` gives paths other names, and
`transfer.from_safetensors` reads weights of other libraries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foldax.errors import ConfigError, RunError
from foldax.runs.match import HOWS, Match, load_params, match, show, table
from foldax.runs.parameters import Source, read, renamed
from foldax.runs.weights import from_safetensors, save

__all__ = [
    "HOWS",
    "Match",
    "Source",
    "begins",
    "check_same",
    "from_safetensors",
    "load_params",
    "match",
    "read",
    "renamed",
    "save",
    "show",
    "starting",
    "table",
]


def begins(config: Any, initial: Any = None, facts: dict[str, Any] | None = None) -> Callable[[], Source] | None:
    """Returns how to get the parameters that a run starts from, or None if they are its own; they are read once.

    Args:
      config: may name them, as `init_from`.
      initial: what was given in Python; see `match`.
      facts: of a run that began before, what its manifest says of them: they must be the same.

    Raises:
      ConfigError: both `init_from` and `initial` are given.
    """
    if initial is not None and config.init_from is not None:
        raise ConfigError(
            f"init_from: {config.init_from!r} is given, and so is initial=; a run starts from one of them"
        )
    if initial is None and config.init_from is None and facts is None:
        return None

    @functools.cache
    def source() -> Source:
        value = config.init_from if initial is None else initial
        known = facts or {}
        if value is None or (isinstance(value, str) and not Path(value).exists() and known.get("path")):
            value = known["path"]  # the working directory may be another one
        if value is None:
            raise RunError("the run began from parameters given in Python; foldax.train(..., initial=...) needs them")
        found = renamed(value, known.get("rename", ()) if initial is None else ())
        check_same(found, known)
        return found

    return source


def check_same(found: Source, facts: dict[str, Any]) -> None:
    """Checks that a source holds what a manifest says that a run began from.

    Raises:
      RunError: it does not.
    """
    if facts.get("sha256", found.facts["sha256"]) != found.facts["sha256"]:
        raise RunError(f"the parameters from {found} are others than when the run began")


def starting(
    source: Callable[[], Source] | None, tell: Callable[[Match], None] = lambda found: None
) -> Callable[[Any], Any] | None:
    """Returns `Hooks.initial`: a function of a state that puts parameters in, and tells what fitted; None for none."""
    if source is None:
        return None

    def start(state: Any) -> Any:
        found = match(state, source())
        tell(found)
        return found.tree

    return start
