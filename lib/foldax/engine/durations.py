"""How long this process has spent on loading data, tracing and compiling."""

import contextlib
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
    if event in _EVENTS:
        _seconds[_EVENTS[event]] += duration_secs


# JAX reports how long compiling took only to listeners.
jax.monitoring.register_event_duration_secs_listener(_on_event)
