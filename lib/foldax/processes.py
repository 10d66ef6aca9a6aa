"""Several processes that train one run together, and what they agree on: through JAX's coordination service.

Every process runs the same program on its own devices. What must be equal in all of them and depends on time, files or
signals, such as where a chunk of steps ends, is decided by the first process and sent to the others, by messages
between hosts: no device waits for them.
"""

import collections
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from foldax import errors

T = TypeVar("T")

PREFIX = "foldax"  # of all keys, which other users of the service do not have
WAIT_SECONDS = 5  # a wait is made of these, so that it can be interrupted
KEPT_DECISIONS = 1_000  # by how many a slow process may be behind
BEAT_SECONDS, LOST_SECONDS = 2.0, 30.0  # a process gives a sign of life, and counts as lost without one
GRACE_SECONDS = 5.0  # for a process that meets the error of another one itself
CPU_THREADS = 32  # of a process whose devices are CPUs
LEFT = "left"  # the sign of a process that needs none

_calls: collections.Counter[str] = collections.Counter()
_lone_blocks = 0  # that run now


def number_of_processes() -> int:
    """Number of processes that train a run together: those that `jax.distributed.initialize` has connected, else 1.

    Unlike `jax.process_count`, it does not start JAX's backends.

    >>> number_of_processes()
    1
    """
    return _state().num_processes if jax.distributed.is_initialized() and not _lone_blocks else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Lets a block train runs of this process alone, as of the members of a sweep, of which each process has its own.

    >>> with alone():
    ...     is_alone()
    True
    """
    global _lone_blocks
    _lone_blocks += 1
    try:
        yield
    finally:
        _lone_blocks -= 1


def is_alone() -> bool:
    """Whether runs are of this process alone although others may be connected."""
    return _lone_blocks > 0


def is_first() -> bool:
    """Whether this process decides, writes and prints: it is the only one, or the first of several.

    >>> is_first()
    True
    """
    return number_of_processes() == 1 or _state().process_id == 0


def this_process() -> int:
    """Number of this process, from 0 on."""
    return _state().process_id if number_of_processes() > 1 else 0


def connect(is_wanted: bool) -> None:
    """Connects the processes that train one run together, before anything else uses JAX, where there are several.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say so, or a job of Slurm, Open MPI or TPU
    hosts. `FOLDAX_DISTRIBUTED=1` connects them where the environment says nothing of it, as on a slice of TPUs;
    0 lets each process be a run of its own.

    Args:
      is_wanted: whether the run is meant for several devices, which a job of several tasks alone does not say.

    Raises:
      ConfigError: they cannot be connected.
    """
    chosen, environment = os.environ.get("FOLDAX_DISTRIBUTED", ""), os.environ
    is_explicit = "JAX_COORDINATOR_ADDRESS" in environment and "JAX_NUM_PROCESSES" in environment
    if chosen not in ("", "0", "1"):
        raise errors.ConfigError(f"FOLDAX_DISTRIBUTED={chosen} is neither 0 nor 1")
    if chosen == "0" or jax.distributed.is_initialized():
        return
    if chosen == "1" or is_explicit or (is_wanted and _is_task_of_several()):
        options: dict[str, Any] = {}
        try:
            if is_explicit:
                options = {"num_processes": int(environment["JAX_NUM_PROCESSES"])}
                options |= {"process_id": int(environment["JAX_PROCESS_ID"])}
            # On CPUs each device that waits for the others takes a thread, and XLA has one for each core: a save that
            # needs one too would wait for ever (seen with jax 0.10.2).
            os.environ.setdefault("NPROC", str(max(CPU_THREADS, os.cpu_count() or 1)))
            jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, which ours stops on
            jax.distributed.initialize(**options)
            find_devices()
        except (KeyError, ValueError, RuntimeError) as error:
            problem = f"the processes cannot be connected: {errors.first_line(error)}"
            remedy = "FOLDAX_DISTRIBUTED=0 makes each process a run of its own"
            raise errors.ConfigError(f"{problem}; {remedy}") from error


def find_devices() -> None:
    """Starts JAX's backends where there are several processes, which wait for each other then.

    >>> find_devices()
    """
    if number_of_processes() > 1:
        jax.devices()


def _is_task_of_several() -> bool:
    """Whether a launcher says that this process is one of several tasks of a job."""
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(size.isdigit() and int(size) > 1 for size in sizes) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def agree(name: str, decide: Callable[[], T]) -> T:
    """Lets the first process decide, and returns its decision in all of them.

    All processes must make the calls of one name in the same order.

    Args:
      name: what is decided.
      decide: called in the first process only; returns what JSON can hold.

    Raises:
      FoldaxError: `decide` raised it; of another error, the other processes get a `RunError`.

    >>> agree("chunk", lambda: [7, False])
    [7, False]
    """
    if number_of_processes() == 1:
        return decide()
    number = _count_call(name)
    if not is_first():
        return _unwrap(_get(f"{name}/{number}"))
    try:
        value = decide()
    except Exception as error:
        _set(f"{name}/{number}", _error_message(error))
        raise
    _set(f"{name}/{number}", {"value": value})
    _delete(f"{name}/{number - KEPT_DECISIONS}")
    return value


def gather(name: str, value: Any) -> list[Any]:
    """Returns the values of all processes, in their order; all must call it.

    >>> gather("checks", 3)
    [3]
    """
    if number_of_processes() == 1:
        return [value]
    number, own = _count_call(name), this_process()
    _set(f"{name}/{number}/{own}", {"value": value})
    values = [_unwrap(_get(f"{name}/{number}/{i}")) for i in range(number_of_processes())]
    _delete(f"{name}/{number - 1}/{own}")  # all are in this call, so none reads the one before
    return values


def together(name: str, function: Callable[[], T]) -> T:
    """Calls a function in every process; if it fails in one of them, it fails in all.

    Raises:
      FoldaxError: of this process, else of the first one that failed; of another error it is a `RunError`.

    >>> together("data", lambda: 3)
    3
    """
    own = None
    try:
        value = function()
    except Exception as error:
        own = error
    messages = gather(name, None if own is None else _error_message(own))
    if own is not None:
        raise own
    for message in messages:
        if message is not None:
            _unwrap(message)
    return value


def any_requests(requested: Callable[[], bool]) -> bool:
    """Whether some process asks for something, such as a stop after a signal: one answer for all.

    Args:
      requested: whether this process asks; called in each.

    >>> any_requests(lambda: False)
    False
    """
    asks = requested()
    if number_of_processes() == 1:
        return asks
    # Those of an earlier run count no more.
    folder = f"request/{_calls['watch']}"
    if asks and not is_first():
        _set_again(f"{folder}/{this_process()}", True)
    return agree("requested", lambda: asks or bool(_read_folder(folder)))


@contextlib.contextmanager
def watch(advice: str = "") -> Iterator[None]:
    """Ends this process if another one of the run fails, or is lost, while the block runs.

    An error of this process ends the block, and the others. One that all meet ends every block, and no process.

    Args:
      advice: what to do then, for the message.
    """
    if number_of_processes() == 1:
        yield
        return
    block, ended = f"watch/{_count_call('watch')}", threading.Event()
    thread = threading.Thread(target=_watch, args=(block, ended, advice), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        failed = {}
        with contextlib.suppress(Exception):  # the first process may be gone
            failed = _read_folder(f"{block}/failed")
            _set(f"{block}/failed/{this_process()}", errors.first_line(error))
        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        process, message = min(failed.items(), default=("", ""))
        reason = f"process {process} failed, {json.loads(message)}" if failed else errors.first_line(error)
        raise errors.RunError(f"the processes of this run lost each other ({reason}){advice}") from error
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            _set_again(f"{block}/beat/{this_process()}", LEFT)


def leave(code: int) -> None:
    """Ends a process that has failed at once: JAX would wait for the others, which may never come.

    Does nothing in a run of one process.
    """
    if number_of_processes() == 1:
        return
    with contextlib.suppress(Exception):
        _set_again(f"leaving/{this_process()}", code)
        # The messages between the others end with the first one: it gives them the time to read why.
        deadline = time.monotonic() + BEAT_SECONDS + 2 * GRACE_SECONDS
        while is_first() and len(_read_folder("leaving")) < number_of_processes() and time.monotonic() < deadline:
            time.sleep(0.1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _watch(block: str, ended: threading.Event, advice: str) -> None:
    """Gives signs of life, and looks at those of the others."""
    own, beats = this_process(), 0
    seen: dict[str, tuple[str, float]] = {}  # of the others: its last sign, and when that was new
    while not ended.wait(BEAT_SECONDS):
        beats += 1
        try:
            _set_again(f"{block}/beat/{own}", beats)
            signs, failed = _read_folder(f"{block}/beat"), _read_folder(f"{block}/failed")
            codes = _read_folder("leaving")  # of those that may never come to this block
        except Exception:  # the first process, which runs the service, is gone; JAX ends this one
            return
        failed = {process: json.dumps(f"exit code {code}") for process, code in codes.items()} | failed
        now, others = time.monotonic(), {str(i) for i in range(number_of_processes())} - {str(own)}
        # One that gave no sign yet may still be busy before its block; if it is dead, JAX notices.
        for process in others & signs.keys():
            if seen.get(process, ("", 0.0))[0] != signs[process]:
                seen[process] = signs[process], now
        lost = [
            process
            for process, (sign, since) in seen.items()
            if now - since > LOST_SECONDS and sign != json.dumps(LEFT)
        ]
        if failed and not ended.wait(GRACE_SECONDS):
            process, message = min(failed.items(), key=lambda item: int(item[0]))
            _end(f"process {process} of this run failed ({json.loads(message)})", advice)
        elif lost:
            _end(f"process {min(lost, key=int)} of this run is lost: no sign of life for {LOST_SECONDS:.0f} s", advice)


def _end(problem: str, advice: str) -> None:
    """Ends this process, whatever its main thread waits for."""
    with contextlib.suppress(Exception):
        print(f"foldax: {problem}, so process {this_process()} ends too{advice}", file=sys.stderr, flush=True)
    os._exit(1)


def _error_message(error: Exception) -> dict[str, str]:
    text = (
        str(error) if isinstance(error, errors.FoldaxError) else f"{type(error).__name__}: {errors.first_line(error)}"
    )
    return {"error": type(error).__name__, "text": text}


def _unwrap(message: Any) -> Any:
    """Returns the value in a message, or raises its error."""
    if "value" in message:
        return message["value"]
    if message["error"] == errors.NonFiniteError.__name__:
        raise errors.RunError(message["text"])
    raise getattr(errors, message["error"], errors.RunError)(message["text"])


def _count_call(name: str) -> int:
    _calls[name] += 1
    return _calls[name] - 1


def _state() -> Any:
    from jax._src import distributed  # JAX has no public name for its coordination service

    return distributed.global_state


def _client() -> Any:
    return _state().client


def _set(key: str, value: Any) -> None:
    _client().key_value_set(f"{PREFIX}/{key}", json.dumps(value))


def _set_again(key: str, value: Any) -> None:
    _client().key_value_set(f"{PREFIX}/{key}", json.dumps(value), allow_overwrite=True)


def _get(key: str) -> Any:
    """Waits for a value; `watch` ends the process if the one that would set it is gone."""
    while True:
        try:
            return json.loads(_client().blocking_key_value_get(f"{PREFIX}/{key}", WAIT_SECONDS * 1_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _delete(key: str) -> None:
    _client().key_value_delete(f"{PREFIX}/{key}")


def _read_folder(key: str) -> dict[str, str]:
    """Reads all values below a key, by the last part of theirs."""
    return {name.rpartition("/")[2]: value for name, value in _client().key_value_dir_get(f"{PREFIX}/{key}")}
