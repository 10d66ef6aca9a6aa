"""The functions of the fold, compiled once per structure; and errors of users' code that appear while it is traced."""

import functools
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import traced_config
from foldax.engine import best_state
from foldax.engine import fold as folds
from foldax.engine.durations import phase_seconds
from foldax.engine.flops import count_flops, inner_jaxprs
from foldax.engine.fold import Fold, Program
from foldax.engine.state_leaves import is_key, saved_array, typed_array
from foldax.errors import ExperimentError, FoldaxError, first_line
from foldax.experiment import Experiment, experiment_file, user_traceback
from foldax.learner import Batch, State

P = ParamSpec("P")
R = TypeVar("R")
TRACER_ERRORS = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)  # values that are traced

trace_counts = {"initial_fold": 0, "advance": 0}  # how often each was traced, and so compiled, in this process


def count_traces(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function, so that every trace of it is counted in `trace_counts[name]`."""

    @functools.wraps(function)
    def counting(*args: P.args, **kwargs: P.kwargs) -> R:
        trace_counts[name] += 1
        return function(*args, **kwargs)

    return counting


def jit_and_donate(function: Callable[..., R], donated: str, **options: Any) -> Callable[..., R]:
    """Jits a function that donates an argument, unless `jax_debug_nans` is on: it repeats a program that gave NaN.

    Args:
      function: the function.
      donated: name of the argument.
      **options: of `jax.jit`.

    >>> total = jnp.ones(2)
    >>> add = jit_and_donate(lambda total, x: total + x, "total")
    >>> with jax.debug_nans(True):
    ...     added = add(total, 1.0)
    >>> total.is_deleted()
    False
    """
    donating, keeping = jax.jit(function, donate_argnames=donated, **options), jax.jit(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        return (keeping if jax.config.jax_debug_nans else donating)(*args, **kwargs)  # type: ignore[attr-defined]

    return call


def jit_fold() -> tuple[Callable[..., Fold], Callable[..., tuple[Fold, folds.ChunkReport]]]:
    """Jits `initial_fold` and `advance`; jitted anew, they are traced again also for a known program."""
    initial_fold = jax.jit(count_traces("initial_fold", folds.initial_fold), static_argnames="program")
    # Folds are donated: the new one takes the memory of the old one.
    return initial_fold, jit_and_donate(count_traces("advance", folds.advance), "fold", static_argnames="program")


initial_fold, advance = jit_fold()
advance_one_step = jit_and_donate(folds.advance_one_step, "fold", static_argnames="program")
log_sums = jax.jit(folds.log_sums)
reset_metric_sums = jit_and_donate(folds.reset_metric_sums, "fold")
evaluate = jax.jit(folds.evaluate, static_argnames=("program", "collect"))
update_best = jit_and_donate(best_state.update_best, "best", static_argnames="program")
copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.partial(jax.jit, static_argnames="program")
def inference_state(program: Program, config: Any, state: State) -> State:
    """Copies what evaluation and prediction need of a state: the best state so far, which is donated by itself."""
    return jax.tree.map(jnp.copy, folds.inference_state(program, config, state))


def copy_to_host(tree: Any) -> Any:
    """Waits for a pytree and copies its arrays to the host's memory, as NumPy; random keys stay on the device.

    Arrays that are divided over devices stay so: each has its part in the host's memory.

    >>> type(copy_to_host(jnp.zeros(3))).__name__
    'ndarray'
    """

    def to_host(leaf: jax.Array) -> jax.Array | np.ndarray:
        if is_key(leaf):
            return jnp.copy(leaf)
        if not leaf.is_fully_replicated:
            return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"), may_alias=False)
        # Copies: a view of a buffer on the CPU would keep it from being donated.
        return np.array(leaf)

    jax.tree.map(lambda leaf: leaf.copy_to_host_async() if leaf.is_fully_replicated else None, tree)  # all at once
    return jax.block_until_ready(jax.tree.map(to_host, tree))


def copy_in_place(tree: Any) -> Any:
    """Copies a pytree on the devices that hold it, without compiling a program; of equal copies, one is enough.

    >>> int(copy_in_place(jnp.int32(3)))
    3
    """

    def one_copy(leaf: jax.Array) -> jax.Array:
        if not leaf.is_fully_addressable:
            return saved_array(leaf)  # JAX puts no random keys onto devices of several processes
        if is_key(leaf) or not leaf.is_fully_replicated:
            return leaf
        return leaf.addressable_shards[0].data

    leaves = jax.tree.map(one_copy, tree)
    copies = jax.device_put(leaves, jax.tree.map(lambda leaf: leaf.sharding, leaves), may_alias=False)
    return jax.tree.map(lambda copied, leaf: copied if is_key(copied) else typed_array(copied, leaf), copies, tree)


def is_in_accelerator_memory(array: Any) -> bool:
    """Whether an array is on accelerators, all of this process, and not in the host's memory.

    >>> is_in_accelerator_memory(np.zeros(3))
    False
    """
    if not isinstance(array, jax.Array) or not array.is_fully_addressable:
        return False
    return array.sharding.memory_kind == "device" and all(device.platform != "cpu" for device in array.devices())


def compile_seconds() -> float:
    """Seconds that this process has spent on tracing and compiling JAX programs.

    >>> compile_seconds() >= 0
    True
    """
    seconds = phase_seconds()
    return seconds["tracing"] + seconds["compiling"]


def training_clock() -> float:
    """Seconds of a clock that stands still while this process traces and compiles.

    >>> training_clock() <= training_clock()
    True
    """
    return time.perf_counter() - compile_seconds()


def memory_mappings() -> tuple[int, int]:
    """Number of memory mappings that this process holds, and may hold; (0, 1) where Linux does not count them.

    >>> held, most = memory_mappings()
    >>> held < most
    True
    """
    try:
        held = Path("/proc/self/maps").read_bytes().count(b"\n")
        return held, int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, 1


def drop_programs_near_map_limit() -> None:
    """Drops all compiled programs once they hold a quarter of the memory mappings that a process may have.

    XLA maps the kernels of a program one by one, hundreds on each device of the CPU, and LLVM aborts the process where
    Linux refuses another mapping: after some fifty programs on two devices (counted with jax 0.10.2).
    """
    held, most = memory_mappings()
    if held > most // 4:
        jax.clear_caches()


@contextmanager
def user_errors(program: Program, config: Any, seed: jax.Array, examples: Batch, data: Batch) -> Iterator[None]:
    """Turns errors inside the user's traced functions into an `ExperimentError` about their code.

    Args:
      program: the static part of the run.
      config: the traced config; like seed, examples and data it serves to find fields that cannot be traced.
      seed: uint32 [].
      examples: for `Learner.init`.
      data: a block of data.

    Raises:
      ExperimentError: device memory ran out, a field cannot be traced, or the user's code raised an error.
    """
    try:
        yield
    except FoldaxError:
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = first_line(error)
        raise ExperimentError(f"out of device memory: use a smaller batch_size or model ({reason})") from error
    except TRACER_ERRORS as error:
        # A Python branch on a traced value: find the fields that cause it.
        names = untraceable_fields(program, config, seed, examples, data)
        if not names:
            raise _user_error(program.experiment, error) from error
        listed = ", ".join(f"`{name}`" for name in names)
        raise ExperimentError(
            f"the learner needs {listed} as a Python number while it is traced (an `if`, a `float()`, a library "
            f"that branches on it). Write it with jnp.where or lax.cond, or declare the field structural: "
            f"`{names[0].split('.')[-1].split('[')[0]}: float = foldax.structural(...)`; each value is then compiled "
            f"anew.\n{user_traceback(error, experiment_file(program.experiment)).splitlines()[0].strip()}"
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename) == Path(folds.__file__) for frame in frames):
            raise  # raised outside of the traced functions, so not by the learner
        raise _user_error(program.experiment, error) from error


@contextmanager
def user_code_errors(experiment: Experiment) -> Iterator[None]:
    """Turns errors inside the user's functions on the host (`dataset`, `summarize`, `figures`) into `ExperimentError`s.

    Raises:
      ExperimentError: the user's code raised an error.
    """
    try:
        yield
    except FoldaxError:
        raise
    except Exception as error:
        raise _user_error(experiment, error) from error


def _user_error(experiment: Experiment, error: Exception) -> ExperimentError:
    text = f"the experiment's own code failed:\n{user_traceback(error, experiment_file(experiment))}"
    makes_learner = any(frame.name == "make_learner" for frame in traceback.extract_tb(error.__traceback__))
    if isinstance(error, jax.errors.UnexpectedTracerError) or (makes_learner and isinstance(error, TRACER_ERRORS)):
        text += (
            "\nA learner is made in a traced program, in which an environment (pgx, Jumanji) cannot compute arrays: "
            "make the environment outside and hand it in, once at the top of the file or in `with "
            "jax.ensure_compile_time_eval():`"
        )
    return ExperimentError(text)


def untraceable_fields(program: Program, config: Any, seed: jax.Array, examples: Batch, data: Batch) -> list[str]:
    """Finds the float fields of the config that cannot be traced, by tracing them one at a time.

    Returns:
      Paths of the fields, such as "optimizer.learning_rate"; none if the code cannot be traced with numbers either.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(config)
    numbers = [float(leaf) for _, leaf in leaves]

    # One field is traced; all others stay Python numbers.
    def run(value: Any, index: int) -> Fold:
        mixed = [value if i == index else number for i, number in enumerate(numbers)]
        mixed_config = jax.tree.unflatten(treedef, mixed)
        fold = folds.initial_fold(program, mixed_config, seed, examples, data)
        return folds.advance_one_step(program, mixed_config, seed, fold, data, jnp.int32(0))

    def can_be_traced(index: int) -> bool:
        try:
            jax.eval_shape(functools.partial(run, index=index), jnp.float32(0 if index < 0 else numbers[index]))
        except Exception:
            return False
        return True

    # All other fields are Python numbers, so any failure is this field's, unless there is one without it, too.
    names = [jax.tree_util.keystr(path).lstrip(".") for path, _ in leaves]
    return [name for index, name in enumerate(names) if not can_be_traced(index)] if can_be_traced(-1) else []


def traced_config_and_seed(config: Any) -> tuple[Any, jax.Array]:
    """Converts a config to the arguments of the compiled programs: its traced form, and its seed as uint32 []."""
    return traced_config(config), jax.device_put(np.uint32(config.seed))


def state_bytes(state: State) -> int:
    """Number of bytes of a state's arrays.

    >>> state_bytes({"kernel": jnp.zeros((3, 5)), "count": jnp.int32(0)})
    64
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def update_bytes(program: Program, config: Any, seed: jax.Array, examples: Batch, data: Batch) -> int:
    """Bounds the bytes of a run from above: its state, the best state, and all intermediate arrays of an update."""
    fold = jax.eval_shape(functools.partial(folds.initial_fold, program), config, seed, examples, data)
    # Four states: before the update, after it, the best one, and a copy that is saved. Intermediates count as if none
    # was freed or fused.
    return 4 * state_bytes(fold.state) + _intermediate_bytes(_update_jaxpr(program, config, seed, fold, data))


def _intermediate_bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "size"))
        total += sum(map(_intermediate_bytes, inner_jaxprs(equation)))
    return total


def update_flops(program: Program, config: Any, seed: jax.Array, fold: Fold, data: Batch) -> float:
    """Counts the floating-point operations of one update's matrix products and convolutions."""
    return count_flops(_update_jaxpr(program, config, seed, fold, data))


def _update_jaxpr(program: Program, config: Any, seed: jax.Array, fold: Fold, data: Batch) -> Any:
    step = functools.partial(folds.advance_one_step, program)
    return jax.make_jaxpr(step)(config, seed, fold, data, np.int32(0)).jaxpr
