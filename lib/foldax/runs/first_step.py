"""The time from the command to the first step of a run, by phase."""

import os
import time
from pathlib import Path

from foldax.engine.durations import phase_seconds

_imported_at = time.perf_counter()
_import_seconds = 0.0


def process_seconds() -> float:
    """Seconds since this process was started; since this module was imported, where the system does not say.

    >>> process_seconds() > 0
    True
    """
    try:
        # The 22nd value; the name before it, in parentheses, may hold spaces.
        ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _imported_at


def begin_command() -> None:
    """Counts the time since the process was started, which went into imports, for the next run."""
    global _import_seconds
    _import_seconds = process_seconds()


class FirstStepTimer:
    """Measures how long a run takes up to its first step; a run of a command counts from the start of the process.

    >>> timer = FirstStepTimer()
    >>> timer.stop()
    >>> str(timer)
    'first step after 0.0 s: data 0.0, tracing 0.0, compiling 0.0, rest 0.0'
    """

    def __init__(self) -> None:
        global _import_seconds
        self._imports, _import_seconds = _import_seconds, 0.0
        self._began, self._before = time.perf_counter(), phase_seconds()
        self._phases: dict[str, float] | None = None

    def stop(self) -> None:
        """Takes the time; only the first call counts."""
        if self._phases is None:
            phases = {name: seconds - self._before[name] for name, seconds in phase_seconds().items()}
            rest = time.perf_counter() - self._began - sum(phases.values())
            phases = {name: phases[name] for name in ("data", "tracing", "compiling")} | {"rest": max(rest, 0.0)}
            self._phases = ({"imports": self._imports} if self._imports else {}) | phases

    def __str__(self) -> str:
        if self._phases is None:
            return ""
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._phases.items())
        return f"first step after {sum(self._phases.values()):.1f} s: {phases}"
