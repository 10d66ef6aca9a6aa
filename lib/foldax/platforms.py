"""The platform that programs are traced for: that of this process, or of chips that are not here."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target_platform", default=None)


def target_platform() -> str:
    """Names the platform that a program is traced for, "cpu", "gpu" or "tpu"; JAX's default unless `tracing_for` says.

    >>> target_platform() == jax.default_backend()
    True
    """
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces programs for a platform, which need not be there.

    JAX keeps traces, so a process should trace a function for one platform only.

    >>> with tracing_for("tpu"):
    ...     target_platform()
    'tpu'
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
