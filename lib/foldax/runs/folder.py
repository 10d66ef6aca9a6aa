"""The run folder: creates it, locks it, and reads and writes its JSON files."""

import contextlib
import datetime
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from foldax.configuration import config_hash, drop_unknown_fields, from_json, to_json
from foldax.data.arrays import SPLITS
from foldax.engine.checkpoint import checkpoint_steps
from foldax.engine.checkpoint_folder import Folder, checkpoint_location
from foldax.errors import ExperimentError, RunError
from foldax.experiment import Experiment, experiment_file, experiment_name, load_experiment
from foldax.field_values import restore_floats, to_plain
from foldax.locks import lock_file
from foldax.runs import provenance
from foldax.runs.terminal import ask, warn

T = TypeVar("T")
MAX_NAME_BYTES = 255  # of a file name, in Linux and macOS
NO_RENAME = (errno.EPERM, errno.EEXIST, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def new_run_dir(experiment: Experiment, config: Any, prefix: str = "") -> Path:
    """Returns `runs/<experiment>/<prefix><time>-<hash of the config>`, which does not exist yet.

    Raises:
      ExperimentError: the experiment's name cannot name a folder below runs.
    """
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = experiment_name(experiment)
    if not _is_path_below(name):
        rule = f"it must be a file name of at most {MAX_NAME_BYTES} bytes, or several divided by '/', none of them '..'"
        raise ExperimentError(f"Experiment.name: {name!r} cannot name the folder of the runs: {rule}")
    base = Path("runs") / name / f"{prefix}{time}-{config_hash(config)[:6]}"
    return next(
        path for i in range(1, 10_000) if not (path := base.with_name(base.name + (f"-{i}" if i > 1 else ""))).exists()
    )


def _is_path_below(name: Any) -> bool:
    """Whether a name is a relative path that does not leave the folder it is joined to."""
    try:
        path = Path(name)
        lengths = [len(os.fsencode(part)) for part in path.parts]
    except (TypeError, ValueError):  # no text, or one that file names cannot hold
        return False
    is_below = bool(lengths) and not path.is_absolute() and ".." not in path.parts
    return is_below and "\0" not in str(name) and max(lengths) <= MAX_NAME_BYTES


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Converts the errors of writing files in its block.

    Raises:
      RunError: an `OSError` occurred, such as a full disk; names the path and the reason.

    >>> with write_errors(Path("/gone")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    foldax.errors.RunError: cannot write to /gone: No space left on device
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which takes the name `path` at the end of its block, if nothing failed.

    Raises:
      RunError: the file cannot be written.

    >>> with whole_file(Path("/gone/x.txt")) as temporary:
    ...     temporary.write_text("x")
    Traceback (most recent call last):
    foldax.errors.RunError: cannot write to /gone/x.txt: No such file or directory
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # np.save wants the suffix at the end
    is_whole = False
    try:
        with write_errors(path):
            yield temporary
            is_whole = True
            # A process that is killed before leaves the old file.
            _replace(temporary, path)
            is_whole = False
    finally:
        # What is whole and took no other name is all there is, and `read_json` finds it.
        if not is_whole:
            with contextlib.suppress(OSError):  # its folder may be none
                temporary.unlink()


def _replace(temporary: Path, path: Path) -> None:
    """Renames a file, or copies it where the filesystem renames none."""
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in NO_RENAME:
            temporary.unlink(missing_ok=True)
            raise
        shutil.copyfile(temporary, path)
        temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file completely or not at all; floats that JSON lacks become texts (see `to_plain`).

    Raises:
      RunError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_json(Path(directory) / "x.json", {"steps": 3})
    ...     read_json(Path(directory) / "x.json")
    {'steps': 3}
    """
    with whole_file(path) as temporary, temporary.open("w") as file:
        json.dump(to_plain(value), file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
      RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        # Where a rename is no single step, a kill leaves half a file or none, and the whole one under its first name.
        temporaries = sorted(path.parent.glob(f".*.{path.name}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for temporary in temporaries:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(temporary.read_text())
        if isinstance(error, FileNotFoundError):
            raise RunError(f"{path.parent} is not a run folder: it has no {path.name}") from None
        raise RunError(f"{path} cannot be read: {error}") from error


def read_result(folder: Path) -> dict[str, Any]:
    """Reads the `result.json` of a finished run.

    Raises:
      RunError: it is missing or damaged.
    """
    return restore_floats(read_json(folder / "result.json"))


def result_metrics(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Selects the metrics by split from the content of a `result.json`: those of named evaluation sets come last.

    >>> result_metrics({"steps": 5, "test": {"loss": 0.5}, "evaluation": {"ood": {"loss": 2.0}}})
    {'test': {'loss': 0.5}, 'ood': {'loss': 2.0}}
    """
    return {split: result[split] for split in SPLITS if split in result} | result.get("evaluation", {})


def lock(folder: Path, remedy: str = "wait for it or choose another folder (--run-dir, --sweep-dir)") -> IO[str]:
    """Locks a folder for this process until the returned file is closed; creates the folder if it is missing.

    Args:
      folder: the folder.
      remedy: end of the error if another process holds the lock.

    Raises:
      RunError: another process holds the lock, or the folder cannot be written or is an address such as gs://bucket/run.
    """
    # A path has one of the two slashes.
    if re.fullmatch(r"\w{2,}:", folder.parts[0] if folder.parts else ""):
        remedy = "mount it, or choose a folder and copy it there in the end"
        raise RunError(f"{folder} is an address, and files are written and locked in folders only: {remedy}")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    try:
        # The system releases the lock when the process ends, also after a kill.
        lock_file(file, wait=False)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            # Some network filesystems have no locks.
            warn(f"{folder} cannot be locked ({error.strerror}): let no other process write to it")
            return file
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RunError(f"{folder} is in use by process {owner}; {remedy}") from None
    # For the message of the next process that wants the folder.
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def is_sweep(folder: Path) -> bool:
    """Whether a folder is the folder of a sweep.

    >>> is_sweep(Path("nowhere"))
    False
    """
    return (folder / "sweep.json").is_file()


def has_progress(folder: Path) -> bool:
    """Whether a run in this folder has taken a step: it has a checkpoint, or a line in its log.

    >>> has_progress(Path("nowhere"))
    False
    """
    log = folder / "metrics.jsonl"
    return (log.exists() and log.stat().st_size > 0) or bool(checkpoint_steps(checkpoint_folder(folder)))


def checkpoint_folder(folder: Path) -> Folder:
    """Where the checkpoints of a run are, or folders of those of a sweep's members: in its folder, or as it recorded.

    >>> checkpoint_folder(Path("runs") / "first")
    PosixPath('runs/first/checkpoints')
    """
    name, default = ("sweep.json", "members") if is_sweep(folder) else ("manifest.json", "checkpoints")
    recorded = None
    if (folder / name).exists():
        with contextlib.suppress(RunError):  # a damaged file: whoever needs it says so
            recorded = read_json(folder / name).get("checkpoints")
    return checkpoint_location(recorded) if recorded else folder / default


def record_checkpoints(folder: Path, config: Any) -> dict[str, str]:
    """Makes the entry of a manifest that says where checkpoints are written, if that is not the folder itself.

    The name of the place is that of the folder and eight random digits: folders of the same name, perhaps on several
    machines, do not share checkpoints.
    """
    if not config.checkpoints:
        return {}
    return {"checkpoints": f"{config.checkpoints.rstrip('/')}/{folder.absolute().name}-{secrets.token_hex(4)}"}


def create(folder: Path, experiment: Experiment, config: Any) -> None:
    """Writes `config.json` and `manifest.json` of a new run, over those of a run that failed before its first log line.

    Raises:
      RunError: the folder holds a run or a sweep already.
    """
    if is_sweep(folder):
        raise RunError(f"{folder} is the folder of a sweep; choose another --run-dir")
    # Another experiment in the folder is a mistake; the same one was probably meant to be resumed.
    if (folder / "manifest.json").exists() and has_progress(folder):
        check_experiment(folder, experiment)
        remedy = f'`foldax resume {folder}` goes on with it, and so does --or-resume (resume="auto")'
        raise RunError(f"{folder} holds a run already; {remedy}")
    write_json(folder / "config.json", to_json(config))
    write_json(folder / "manifest.json", manifest(experiment, config) | record_checkpoints(folder, config))


def check_experiment(folder: Path, experiment: Experiment) -> None:
    """Checks that a folder holds a run of this experiment.

    Raises:
      RunError: it holds a run of another one, or none.
    """
    owner, name = read_json(folder / "manifest.json")["experiment"], experiment_name(experiment)
    if owner != name:
        raise RunError(f"{folder} is a run of another experiment, {owner!r}, not of {name!r}; choose another folder")


def read_config(folder: Path, cls: type[T], values: dict[str, Any]) -> T:
    """Restores the config of a run; fields that its class no longer has are left out, with a warning.

    Args:
      folder: the run folder, named in the warning.
      cls: the config class.
      values: content of `config.json`.

    Raises:
      ConfigError: a value does not fit its field.

    >>> from foldax import Training
    >>> read_config(Path("run"), Training, {"steps": 10}).steps
    10
    """
    known, unknown = drop_unknown_fields(cls, values)
    if unknown:
        listed = ", ".join(unknown)
        warn(f"{folder} was made with fields that {cls.__name__} no longer has; they are ignored: {listed}")
    return from_json(cls, known)


def manifest(experiment: Experiment, config: Any) -> dict[str, Any]:
    """Makes the manifest of a run or sweep that starts now: command, provenance and status."""
    file = experiment_file(experiment)
    return provenance.collect(experiment) | {
        "command": shlex.join(sys.argv) if file else "a notebook or prompt",
        "seed": config.seed,
        "config_hash": config_hash(config),
        "data_fingerprint": None,
        "nonresumable_reason": None,
        "started": now(),
        "ended": None,
        "status": "running",
        "sessions": [],
    }


def begin_session(folder: Path, experiment: Experiment, name: str = "manifest.json") -> dict[str, Any]:
    """Records that a run or sweep is resumed, and what has changed since it was made.

    Args:
      folder: its folder.
      experiment: the experiment as it is now.
      name: "manifest.json", or "sweep.json" for a sweep.

    Returns:
      The content of that file.
    """
    content = read_json(folder / name)
    changes = provenance.warn_of_changes(folder, content, experiment)
    session = {"started": now(), "command": shlex.join(sys.argv), "changes": changes}
    content |= {"status": "running", "ended": None, "sessions": [*content.get("sessions", []), session]}
    write_json(folder / name, content)
    return content


def record_data(
    folder: Path, fingerprint: str | None, allow_other_data: bool, name: str = "manifest.json", **values: Any
) -> None:
    """Records the fingerprint of the data at the first start of a run or sweep; later, checks that it is the same.

    Args:
      folder: its folder.
      fingerprint: of the data now.
      allow_other_data: whether other data are recorded with the current session, instead of an error.
      name: "manifest.json", or "sweep.json" for a sweep.
      **values: other entries to record.

    Raises:
      DataError: the data are others.
    """
    content = read_json(folder / name) | values
    if not provenance.check_data(folder, content, fingerprint, allow_other_data):
        content["sessions"][-1]["data_fingerprint"] = fingerprint
    elif content["data_fingerprint"] is None:
        content["data_fingerprint"] = fingerprint
    write_json(folder / name, content)


def update_manifest(folder: Path, **values: Any) -> None:
    """Changes entries of a run's manifest."""
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | values)


def load(folder: Path, manifest: str = "manifest.json", call: str | None = None) -> tuple[Experiment, Any]:
    """Loads the experiment and the config of a run folder.

    Args:
      folder: the run folder.
      manifest: "manifest.json", or "sweep.json" for the base config of a sweep.
      call: code that does the same in a notebook, for the error of a run that was made in one; by default the call that
        resumes it.

    Raises:
      RunError: it is no run folder, or its experiment was made in a notebook.
      ExperimentError: its experiment file is missing or broken.
    """
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}")
    content = read_json(folder / manifest)
    # Nothing to import: the experiment exists only in the process that defined it.
    if content["file"] is None:
        is_run = manifest == "manifest.json"
        resume = "train(experiment, config, run_dir" if is_run else "sweep(experiment, space, sweep_dir"
        call = call or f"foldax.{resume}={str(folder)!r}, resume=True)"
        raise RunError(f"{folder} was made in a notebook or prompt, so there is no file to load; call there: {call}")
    if file := provenance.edited_file(content):
        ask(f"{file} has changed since {folder} was made, and is run now")
        provenance.known_files.add(provenance.file_sha256(file))
    experiment = load_experiment(content["file"])
    config = content["config"] if "config" in content else read_json(folder / "config.json")
    return experiment, read_config(folder, experiment.config, config)


def now() -> str:
    """Returns the current time (UTC) in ISO format."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
