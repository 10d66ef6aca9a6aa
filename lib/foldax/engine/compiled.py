"""The fold's functions, compiled once per structure, and what can go wrong while they are traced."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import traced
from foldax.engine import fold as folds
from foldax.engine.flops import operations_of
from foldax.engine.fold import Program
from foldax.errors import ExperimentError, FoldaxError
from foldax.experiment import Experiment, experiment_file, own_traceback

traces = {"start": 0, "advance": 0}  # how often each was traced in this process, that is, compiled


def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, counting in `traces` how often it is traced."""

    @functools.wraps(function)
    def traced_now(*args: Any, **kwargs: Any) -> Any:
        traces[name] += 1
        return function(*args, **kwargs)

    return traced_now


start = jax.jit(counted("start", folds.start), static_argnames="program")
advance = jax.jit(counted("advance", folds.advance), static_argnames="program", donate_argnames="fold")
advance_once = jax.jit(folds.advance_once, static_argnames="program", donate_argnames="fold")
forget = jax.jit(folds.forget, donate_argnames="fold")
evaluate = jax.jit(folds.evaluate, static_argnames=("program", "collect"))
observe = jax.jit(folds.observe, donate_argnames="best")
copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

_compile_seconds = 0.0


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    global _compile_seconds
    if event in (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    ):
        _compile_seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_event)


def mappings() -> tuple[int, int]:
    """Returns how many memory mappings this process holds and may hold, as Linux counts them; elsewhere (0, 1)."""
    try:
        held = Path("/proc/self/maps").read_bytes().count(b"\n")
        return held, int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, 1


def make_room() -> None:
    """Drops all compiled programs once they hold a quarter of the memory mappings that a process may have.

    XLA maps a program's kernels one by one, hundreds on each device of the CPU, and LLVM ends the process where Linux
    refuses another: after some fifty programs on two devices (counted with jax 0.10.2).
    """
    held, most = mappings()
    if held > most // 4:
        jax.clear_caches()


def compile_seconds() -> float:
    """Returns the seconds this process has spent tracing and compiling JAX programs."""
    return _compile_seconds


@contextmanager
def explained(program: Program, config: Any, seed: Any, examples: Any, data: Any) -> Iterator[None]:
    """Turns what goes wrong inside the user's functions into an error that is about their code."""
    try:
        yield
    except FoldaxError:
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ExperimentError(
                f"out of device memory: use a smaller batch_size or model ({str(error).splitlines()[0]})"
            ) from error
        raise
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        names = untraceable_fields(program, config, seed, examples, data)
        if not names:
            raise _from_user(program.experiment, error) from error
        listed = ", ".join(f"`{name}`" for name in names)
        raise ExperimentError(
            f"the learner needs {listed} as a Python number while it is traced (an `if`, a `float()`, a library "
            f"that branches on it). Write it with jnp.where or lax.cond, or declare the field structural: "
            f"`{names[0].split('.')[-1].split('[')[0]}: float = foldax.structural(...)`; each value is then compiled "
            f"anew.\n{own_traceback(error, experiment_file(program.experiment)).splitlines()[0].strip()}"
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename) == Path(folds.__file__) for frame in frames):
            raise  # not while the learner was traced, so not the learner's doing
        raise _from_user(program.experiment, error) from error


@contextmanager
def own_code(experiment: Experiment) -> Iterator[None]:
    """Turns what goes wrong in the experiment's functions on the host into an error that is about their code."""
    try:
        yield
    except FoldaxError:
        raise
    except Exception as error:
        raise _from_user(experiment, error) from error


def _from_user(experiment: Experiment, error: Exception) -> ExperimentError:
    file = experiment_file(experiment)
    return ExperimentError(f"the experiment's own code failed:\n{own_traceback(error, file)}")


def untraceable_fields(program: Program, config: Any, seed: Any, examples: Any, data: Any) -> list[str]:
    """Returns the float fields that cannot stay traced: each is traced alone, all others as numbers."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(config)
    numbers = [float(leaf) for _, leaf in leaves]

    def run(value: Any, index: int) -> Any:
        mixed = [value if i == index else number for i, number in enumerate(numbers)]
        built = jax.tree.unflatten(treedef, mixed)
        fold = folds.start(program, built, seed, examples, data)
        return folds.advance_once(program, built, seed, fold, data, jnp.int32(0))

    culprits = []
    for index, (path, _) in enumerate(leaves):
        try:
            jax.eval_shape(lambda value, index=index: run(value, index), jnp.float32(numbers[index]))
        except Exception:  # whatever fails with this field alone traced is this field's doing
            culprits.append(jax.tree_util.keystr(path).lstrip("."))
    return culprits


def prepared(config: Any) -> tuple[Any, jax.Array]:
    """Returns what programs are given of a config: its traced form and the seed as uint32."""
    return traced(config), jax.device_put(np.uint32(config.seed))


def state_bytes(state: Any) -> int:
    """Returns the bytes that a state's arrays take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def update_bytes(program: Program, config: Any, seed: Any, examples: Any, data: Any) -> int:
    """Returns an upper bound of the memory of a run: its state, its best one, and all that one update computes."""
    fold = jax.eval_shape(functools.partial(folds.start, program), config, seed, examples, data)
    step = functools.partial(folds.advance_once, program)
    jaxpr = jax.make_jaxpr(step)(config, seed, fold, data, np.int32(0))
    return 3 * state_bytes(fold.state) + _computed_bytes(jaxpr.jaxpr)


def _computed_bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "size"))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            total += _computed_bytes(inner) if hasattr(inner, "eqns") else 0
    return total


def update_flops(program: Program, config: Any, seed: Any, fold: Any, data: Any) -> float:
    """Returns the floating-point operations of one update's products and convolutions."""
    step = functools.partial(folds.advance_once, program)
    return operations_of(jax.make_jaxpr(step)(config, seed, fold, data, np.int32(0)).jaxpr)
