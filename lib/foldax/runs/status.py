"""The status of a run or a sweep, as its folder has it: how it ended."""

import re

from foldax.errors import FoldaxError, Interrupted


def failure_status(error: BaseException) -> str:
    """Describes how an error ended a run or a sweep, as the status in its folder.

    >>> from foldax.errors import ExperimentError
    >>> failure_status(ExperimentError("the experiment's own code failed:\\n  File exp.py\\nOSError: it is gone"))
    "failed: the experiment's own code failed: OSError: it is gone"
    """
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    lines = str(error).strip().splitlines() if isinstance(error, FoldaxError) else []
    reason = lines[0] if lines else type(error).__name__
    # A line that announces others is followed by those of a traceback, the last of which has the reason.
    return f"failed: {reason} {lines[-1].strip()}" if reason.endswith(":") and len(lines) > 1 else f"failed: {reason}"


def status_kind(status: str) -> str:
    """Returns a status without the reason of a failure, and without the metrics that were not finite.

    >>> status_kind("failed: no data"), status_kind("stopped early (test/loss not finite)")
    ('failed', 'stopped early')
    """
    return re.split(r":| \(", status)[0]


def is_success(status: str) -> bool:
    """Whether a run with this status has a result: it has finished, or was stopped early or by a search.

    >>> is_success("finished"), is_success("stopped by the search"), is_success("interrupted")
    (True, True, False)
    """
    return status_kind(status) in ("finished", "stopped early", "stopped by the search")
