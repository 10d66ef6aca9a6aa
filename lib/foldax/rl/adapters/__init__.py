"""Adapters to libraries of environments, one library a file."""

from collections.abc import Iterable

from foldax.errors import ConfigError, did_you_mean


def check_name(name: str, allowed: Iterable[str], problem: str) -> None:
    """Checks that a library knows a name; `problem`, such as "gymnax has no environment", begins the error.

    Raises:
      ConfigError: the name is not allowed; lists those that are.

    >>> check_name("CartPole-v1", ["CartPole-v1"], "gymnax has no environment")
    """
    known = list(allowed)
    if name not in known:
        raise ConfigError(f"{problem} {name!r}{did_you_mean(name, known)} (it has {', '.join(known)})")
