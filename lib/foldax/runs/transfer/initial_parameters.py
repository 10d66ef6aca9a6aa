"""Initial parameters from another run: finds their source, checks it, and puts them into the first state."""

import functools
from collections.abc import Callable
from typing import Any

from foldax.errors import ConfigError, RunError
from foldax.learner import State
from foldax.runs.transfer import addresses, parameters
from foldax.runs.transfer.matching import Match, match
from foldax.runs.transfer.parameters import Source

ReadSource = Callable[[], Source]


def initial_source(config: Any, initial: Any = None, recorded: dict[str, Any] | None = None) -> ReadSource | None:
    """Returns a function that reads the initial parameters of a run once, or None if the run initialises its own.

    Args:
      config: the run's config; `config.init_from` may name a source.
      initial: a source passed in Python, as `match` takes it.
      recorded: provenance in the manifest of a run that is resumed or reproduced; the source must still be the same.

    Raises:
      ConfigError: both `init_from` and `initial` are given.
    """
    if initial is not None and config.init_from is not None:
        raise ConfigError(f"init_from: {config.init_from!r} is given, and so is initial=; give one of them")
    if initial is None and config.init_from is None and recorded is None:
        return None

    @functools.cache
    def source() -> Source:
        value = config.init_from if initial is None else initial
        known = recorded or {}
        # A relative path may not exist in another working directory; the manifest has the absolute one.
        if value is None or (isinstance(value, str) and not addresses.exists(value) and known.get("path")):
            value = known["path"]
        if value is None:
            raise RunError("the run began from parameters given in Python; foldax.train(..., initial=...) needs them")
        result = parameters.rename(value, known.get("rename", ()) if initial is None else ())
        check_source(result, known)
        return result

    return source


def check_source(source: Source, recorded: dict[str, Any]) -> None:
    """Checks that a source holds the same arrays as when the run began.

    Raises:
      RunError: its digest is not the recorded one.

    >>> check_source(Source({}, {"sha256": "ab"}), {"sha256": "ab"})
    """
    if recorded.get("sha256", source.provenance["sha256"]) != source.provenance["sha256"]:
        raise RunError(f"the parameters from {source} have changed since the run began")


def initial_state_hook(
    source: ReadSource | None, on_match: Callable[[Match], None] = lambda match: None
) -> Callable[[State], State] | None:
    """Makes `Callbacks.replace_initial_state`: puts the source's parameters into a state and reports the match."""
    if source is None:
        return None

    def replace(state: State) -> State:
        result = match(state, source())
        on_match(result)
        return result.tree

    return replace
