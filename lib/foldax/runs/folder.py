"""The run folder: what is in it, who may write to it, and how it is read again."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax

from foldax.configuration import config_hash, from_json, to_json
from foldax.errors import ConfigError, RunError
from foldax.experiment import Experiment, experiment_file, experiment_name, load_experiment

PACKAGES = ("foldax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "grain")


def new_run_dir(experiment: Experiment, config: Any, prefix: str = "") -> Path:
    """Returns `runs/<experiment>/<prefix><time>-<hash of the config>`, under the working directory."""
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / experiment_name(experiment) / f"{prefix}{time}-{config_hash(config)[:6]}"
    return next(
        path for i in range(1, 10_000) if not (path := base.with_name(base.name + (f"-{i}" if i > 1 else ""))).exists()
    )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is always whole: under another name first, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
      RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def lock(folder: Path) -> IO[str]:
    """Takes the folder for this process until the returned file is closed.

    Raises:
      RunError: another process has it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RunError(
            f"{folder} is in use by process {owner}; wait for it or choose another folder (--run-dir, --sweep-dir)"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / "sweep.json").is_file()


def create(folder: Path, experiment: Experiment, config: Any) -> None:
    """Writes `config.json` and `manifest.json` of a new run.

    Raises:
      RunError: the folder holds a run already.
    """
    if is_sweep(folder):
        raise RunError(f"{folder} is the folder of a sweep; choose another --run-dir")
    if (folder / "manifest.json").exists():
        owner = read_json(folder / "manifest.json")["experiment"]
        if owner != experiment_name(experiment):
            raise RunError(f"{folder} is a run of another experiment, {owner!r}; choose another --run-dir")
        raise RunError(f"{folder} holds a run already; `foldax resume {folder}` goes on with it")
    write_json(folder / "config.json", to_json(config))
    write_json(folder / "manifest.json", manifest(experiment, config))


def check_same(folder: Path, experiment: Experiment, config: Any) -> None:
    """Checks that the folder's run is of this experiment and config.

    Raises:
      RunError: it is another experiment's.
      ConfigError: the configs differ; says in which fields.
    """
    owner = read_json(folder / "manifest.json")["experiment"]
    if owner != experiment_name(experiment):
        raise RunError(f"{folder} is a run of another experiment, {owner!r}, not of {experiment_name(experiment)!r}")
    saved, given = read_json(folder / "config.json"), to_json(config)
    differ = [f"{k} ({saved.get(k)!r} there, {given.get(k)!r} here)" for k in given if saved.get(k) != given[k]]
    if differ:
        raise ConfigError(f"{folder} was started with another config: {', '.join(differ)}")


def manifest(experiment: Experiment, config: Any) -> dict[str, Any]:
    """Returns how a run was made: command, versions, commit, devices."""
    file = experiment_file(experiment)
    return {
        "experiment": experiment_name(experiment),
        "file": str(file) if file else None,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        "command": shlex.join(sys.argv) if file else "a notebook or prompt",
        "seed": config.seed,
        "config_hash": config_hash(config),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git(file.parent if file else Path.cwd()),
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "data_fingerprint": None,
        "unsaved": None,
        "started": now(),
        "ended": None,
        "status": "running",
    }


def amend_manifest(folder: Path, **values: Any) -> None:
    """Changes entries of a run's manifest."""
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | values)


def end_manifest(folder: Path, status: str) -> None:
    """Notes in the manifest how and when the run ended."""
    amend_manifest(folder, status=status, ended=now())


def load(folder: Path, manifest: str = "manifest.json") -> tuple[Experiment, Any]:
    """Returns the experiment and the config of a run folder, or the base config of a sweep's ("sweep.json").

    Raises:
      RunError: it is no run folder, or its experiment was made in a notebook.
      ExperimentError: its experiment file is gone or broken.
    """
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}")
    made = read_json(folder / manifest)
    if made["file"] is None:
        call = f"foldax.train(experiment, config, run_dir={str(folder)!r}"
        call = call if manifest == "manifest.json" else f"foldax.sweep(experiment, space, sweep_dir={str(folder)!r}"
        raise RunError(
            f"{folder} was made in a notebook or prompt, so there is no file to load; there: {call}, resume=True)"
        )
    experiment = load_experiment(made["file"])
    config = made["config"] if "config" in made else read_json(folder / "config.json")
    return experiment, from_json(experiment.config, config)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Returns the present time as ISO text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
