"""What a run is made with (file, data, versions, devices, flags): recorded by every run, and compared by its users."""

import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from foldax.engine.state import NEVER
from foldax.errors import DataError
from foldax.experiment import Experiment, experiment_file, experiment_name
from foldax.field_values import to_plain
from foldax.runs.terminal import warn

PACKAGES = ("foldax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "grain")
# Settings of JAX that change what is computed.
FLAGS = ["jax_enable_x64", "jax_default_prng_impl", "jax_default_matmul_precision", "jax_threefry_partitionable"]
FLAGS += ["jax_numpy_dtype_promotion", "jax_disable_jit", "jax_disable_most_optimizations"]


known_files: set[str] = set()  # hashes of experiment files whose change the user knows


def collect(experiment: Experiment) -> dict[str, Any]:
    """Collects what a run that starts now is made with.

    >>> collect(Experiment(None, print))["flags"]["jax_enable_x64"]
    False
    """
    return _conditions(experiment) | {"git": _git(experiment)}


def _conditions(experiment: Experiment) -> dict[str, Any]:
    """Collects all but the part of git, which takes time."""
    file = experiment_file(experiment)
    flags = {name: to_plain(jax.config.values.get(name)) for name in FLAGS}
    return {
        "experiment": experiment_name(experiment),
        "file": str(file) if file else None,
        "file_sha256": file_sha256(file) if file else None,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "flags": flags | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")},
    }


def changes(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names what differs between the provenance of a run and that of now, but for its data.

    Args:
      recorded: content of `manifest.json` or `sweep.json`; what an older version did not record counts as unchanged.
      now: see `collect`.

    >>> changes({"python": "3.11.4", "flags": {"jax_enable_x64": False}}, {"python": "3.12.1", "flags": {}})
    ['python was 3.11.4, is 3.12.1']
    """
    hashes = {recorded.get("file_sha256"), now.get("file_sha256")} - {None}
    texts = [_file_text(now)] if len(hashes) == 2 else []
    git, git_now = (facts.get("git") or {} for facts in (recorded, now))
    pairs = {name: (recorded.get(name), now.get(name)) for name in ("python", "backend", "devices")}
    pairs |= {"commit": (git.get("commit"), git_now.get("commit"))}
    pairs |= {name: (value, now["versions"].get(name)) for name, value in (recorded.get("versions") or {}).items()}
    pairs = {name: pair for name, pair in pairs.items() if None not in pair}
    # None is a value of flags.
    flags = recorded.get("flags") or {}
    pairs |= {name: (flags[name], value) for name, value in (now.get("flags") or {}).items() if name in flags}
    return texts + [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]


def session_changes(recorded: dict[str, Any]) -> list[str]:
    """Names what had changed each time that a run or sweep was resumed, unless the steps after it were lost.

    Args:
      recorded: content of `manifest.json` or `sweep.json`.

    >>> session_changes({"sessions": [{"step": 5, "changes": ["python was 3.11.4, is 3.12.1"]}]})
    ['resumed at step 5 with changes: python was 3.11.4, is 3.12.1']
    """
    texts, sessions = [], recorded.get("sessions", [])
    for number, session in enumerate(sessions, 1):
        changed = session["changes"] + (["other data"] if "data_fingerprint" in session else [])
        step = session.get("step")  # none in a sweep, or where the session ended before it took one
        # What was not saved before a kill has not happened.
        is_lost = step is not None and any(later.get("step", NEVER) <= step for later in sessions[number:])
        if changed and not is_lost:
            texts.append(f"resumed{'' if step is None else f' at step {step}'} with changes: {'; '.join(changed)}")
    return texts


def warn_of_changes(folder: Path, recorded: dict[str, Any], experiment: Experiment) -> list[str]:
    """Warns of what has changed since a run or sweep was made, and returns it; see `changes`."""
    now = _conditions(experiment)
    if recorded.get("git"):
        now["git"] = {"commit": _commit(experiment)}
    texts = changes(recorded, now)
    # Whoever loaded the experiment from the folder knows about its file.
    new_texts = [text for text in texts if text != _file_text(now) or now["file_sha256"] not in known_files]
    if new_texts:
        warn(f"{folder} was made under other conditions: {'; '.join(new_texts)}")
    return texts


def _file_text(now: dict[str, Any]) -> str:
    return f"{Path(now['file'] or '').name} has changed since"


def check_data(folder: Path, recorded: dict[str, Any], fingerprint: str | None, allow_other_data: bool) -> bool:
    """Checks that the data are those that a run was made with, or last resumed with.

    Args:
      folder: the run's or sweep's folder.
      recorded: content of `manifest.json` or `sweep.json`.
      fingerprint: that of the data now; None if there are none.
      allow_other_data: whether other data are only warned about.

    Returns:
      Whether they are the same.

    Raises:
      DataError: they are not, and that is not allowed.

    >>> check_data(Path("run"), {"data_fingerprint": "1f3a"}, "1f3a", allow_other_data=False)
    True
    """
    sessions = [one["data_fingerprint"] for one in recorded.get("sessions", []) if "data_fingerprint" in one]
    before = [recorded.get("data_fingerprint"), *sessions][-1]
    if None in (before, fingerprint) or before == fingerprint:
        return True
    problem = f"the data of {folder} have changed: their fingerprint was {before:.12}, and is {fingerprint:.12}"
    if not allow_other_data:
        remedy = "put the old data back, or allow others (--allow-other-data, allow_other_data=True)"
        raise DataError(f"{problem}; {remedy}")
    warn(problem)
    return False


def edited_file(recorded: dict[str, Any]) -> Path | None:
    """Path of the experiment file of a run or sweep, if it has changed since.

    >>> edited_file({"file": None})
    """
    file, before = Path(recorded.get("file") or ""), recorded.get("file_sha256")
    try:
        return file if before and file.is_file() and file_sha256(file) != before else None
    except OSError:
        return None  # loading it is the error


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(experiment: Experiment) -> dict[str, Any] | None:
    commit = _commit(experiment)
    return {"commit": commit, "dirty": bool(_ask_git(experiment, "status", "--porcelain"))} if commit else None


def _commit(experiment: Experiment) -> str | None:
    return _ask_git(experiment, "rev-parse", "HEAD")


def _ask_git(experiment: Experiment, *arguments: str) -> str | None:
    """Answer of git about the experiment's folder; None outside of a repository, or without git."""
    file = experiment_file(experiment)
    command = ["git", "-C", str(file.parent if file else Path.cwd()), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
