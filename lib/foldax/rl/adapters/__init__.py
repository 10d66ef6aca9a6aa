"""Adapters to libraries of environments, one library a file."""

from collections.abc import Iterable

from foldax.errors import ConfigError, did_you_mean


def check_name(name: str, allowed: Iterable[str] | None, problem: str) -> None:
    """Checks that a library knows a name; `problem`, such as "gymnax has no environment", begins the error.

    Args:
      name: what the user gave.
      allowed: the names that the library has; None where it finds unknown ones itself.
      problem: the beginning of the error.

    Raises:
      ConfigError: it is not allowed, or no name; lists those that are.

    >>> check_name("CartPole-v1", ["CartPole-v1"], "gymnax has no environment")
    """
    if not isinstance(name, str):
        remedy = "give its name; of an object make an rl.Environment, or on the host use rl.from_vector_env"
        raise ConfigError(f"{problem} {name!r:.80}, of type {type(name).__name__}, which is no name; {remedy}")
    if allowed is not None and name not in (known := list(allowed)):
        raise ConfigError(f"{problem} {name!r}{did_you_mean(name, known)} (it has {', '.join(known)})")
