"""How a run, or a member of a sweep, starts from the parameters of another run: what is read, when, and into what."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foldax.errors import ConfigError, RunError
from foldax.runs.transfer.matching import Match, match
from foldax.runs.transfer.parameters import Source, renamed


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
