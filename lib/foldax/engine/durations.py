"""How long this process has spent on loading data, tracing and compiling."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "tracing",
    "/jax/core/compile/backend_compile_duration": "compiling",  # or reading from the cache of compiled programs
}
_seconds = {"data": 0.0, "tracing": 0.0, "compiling": 0.0}
_intervals = threading.local()  # (start, duration, phase) of this thread's events


def phase_seconds() -> dict[str, float]:
    """Seconds that this process has spent so far on "data", "tracing" and "compiling".

    >>> sorted(phase_seconds())
    ['compiling', 'data', 'tracing']
    """
    return dict(_seconds)


@contextlib.contextmanager
def count_seconds(phase: str) -> Iterator[None]:
    """Adds the time of its block to a phase."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _seconds[phase] += time.perf_counter() - began


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    if event not in _EVENTS:
        return
    start = time.perf_counter() - duration_secs
    intervals = vars(_intervals).setdefault("value", collections.deque(maxlen=10_000))
    # jax 0.7 also reports traces inside of traces, which are in the time of the outer one already.
    while intervals and intervals[-1][0] >= start:
        _, seconds, phase = intervals.pop()
        _seconds[phase] -= seconds
    intervals.append((start, duration_secs, _EVENTS[event]))
    _seconds[_EVENTS[event]] += duration_secs


# JAX reports how long compiling took only to listeners.
jax.monitoring.register_event_duration_secs_listener(_on_event)
