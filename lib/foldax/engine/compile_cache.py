"""The persistent cache of compiled programs: a program that this machine has compiled before is read from disk."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

from foldax.data.cache import cache_folder
from foldax.errors import DataError

MAX_BYTES = 2**30  # of the programs of one type of machine; the least recently used ones are deleted
LOCK_SECONDS = 10  # as JAX waits for it
OFF = ("0", "off", "false", "no")

_folders: list[str] = []  # the one that `enable` has chosen, so that a user's own is left alone


def enable() -> Path | None:
    """Lets JAX keep compiled programs in the cache folder of the user, unless a setting of JAX says where to keep them.

    `FOLDAX_COMPILE_CACHE=off` turns it off, any other value is the folder. JAX's own settings come first:
    `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`, and those of sizes and times.

    Returns:
      The folder, or None where programs are not kept, or kept by a setting of the user.

    >>> enable() is None  # the tests have a folder of their own
    True
    """
    chosen = os.environ.get("FOLDAX_COMPILE_CACHE", "")
    if jax.config.values["jax_compilation_cache_dir"] is not None or chosen.lower() in OFF:
        return None
    try:
        folder = (Path(chosen).expanduser() if chosen else cache_folder() / "programs") / machine_type()
        _remove_unfinished(folder)
    except (OSError, RuntimeError, NotImplementedError, DataError):
        return None  # a folder that cannot be written or locked: programs are compiled, as without a cache
    _folders.append(str(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, ours, default in (
        ("jax_compilation_cache_max_size", MAX_BYTES, -1),
        # Every program: one that compiles in milliseconds is also read in less.
        ("jax_persistent_cache_min_compile_time_secs", 0.0, 1.0),
    ):
        if jax.config.values[name] == default:
            jax.config.update(name, ours)
    return folder


def disable() -> None:
    """Compiles anew from now on, unless a setting of the user keeps programs.

    >>> disable()
    """
    os.environ["FOLDAX_COMPILE_CACHE"] = "off"  # also for processes that this one starts
    if jax.config.values["jax_compilation_cache_dir"] in _folders:
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()  # it stays open otherwise


def machine_type() -> str:
    """Names the type of this machine: programs of a CPU hold instructions that another one may lack.

    >>> machine_type() == machine_type()
    True
    """
    facts = f"{platform.system()} {platform.processor()}"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb") as file:
        lines = file.read(1 << 14).split(b"\n\n")[0].splitlines()  # of the first core
        names = (b"vendor_id", b"cpu family", b"model", b"flags", b"CPU implementer", b"CPU part", b"Features")
        facts += str([line for line in lines if line.startswith(names)])
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _remove_unfinished(folder: Path) -> None:
    """Removes programs whose writer was killed: JAX writes a file of the time of use after each, and relies on it."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lockfile", timeout=LOCK_SECONDS):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('cache')}atime").exists():
                program.unlink()
