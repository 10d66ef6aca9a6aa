"""Compile time of deep networks relative to shallow ones, with identical blocks run as a scan.

    python research/throughput/compile_times.py [--rounds 3] [--unrolled]

Compiles one training step (loss, gradient, AdamW) of four networks, one after another in one process, several times,
with all caches off: residual networks of 56 layers (basic blocks) and of 1,001 (pre-activation bottlenecks), both as
published for CIFAR, and causal Transformers of 4 and 200 layers. The step is never run, so no memory is needed.
README.md beside this file has the results. `--unrolled` adds the two shallow networks without a scan (minutes).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.table import Table

from foldax import models

CONSOLE = Console(width=110)
IMAGES = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((16, 128), jnp.int32)


class Case(NamedTuple):
    """A network, and the shallow network it is compared with."""

    name: str
    model: Any
    inputs: jax.ShapeDtypeStruct
    shallow: str | None  # name of the shallow network


def transformer(depth: int, scan: bool = True) -> models.Transformer:
    return models.Transformer(256, 256, 128, depth, 4, causal=True, scan_layers=scan)


def resnet(depth: int, scan: bool = True) -> models.ResNet:
    """The published networks: basic blocks with padded shortcuts, or pre-activation bottlenecks past 200 layers."""
    if depth > 200:
        return models.ResNet(10, depth, "bottleneck", preactivation=True, scan_layers=scan)
    return models.ResNet(10, depth, "basic", shortcut="pad", scan_layers=scan)


CASES = (
    Case("ResNet-56", resnet(56), IMAGES, None),
    Case("ResNet-1001", resnet(1001), IMAGES, "ResNet-56"),
    Case("Transformer, 4 layers", transformer(4), TOKENS, None),
    Case("Transformer, 200 layers", transformer(200), TOKENS, "Transformer, 4 layers"),
)
UNROLLED = (
    Case("ResNet-56, unrolled", resnet(56, scan=False), IMAGES, "ResNet-56"),
    Case("Transformer, 4 layers, unrolled", transformer(4, scan=False), TOKENS, "Transformer, 4 layers"),
)


def compile_seconds(model: Any, inputs: jax.ShapeDtypeStruct) -> tuple[float, float]:
    """Seconds to trace and lower one training step, and seconds to compile it."""
    optimizer = optax.adamw(1e-3)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    state = (variables, jax.eval_shape(optimizer.init, variables["params"]))
    targets = jax.ShapeDtypeStruct(inputs.shape[: 1 if inputs.ndim == 4 else 2], jnp.int32)

    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        variables, moments = state
        params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = model.apply({"params": params, **rest}, inputs, train=True, mutable=list(rest))
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), changed

        (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return ({"params": optax.apply_updates(params, updates), **changed}, moments), value

    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, inputs, targets)
    lowered_at = time.perf_counter()
    lowered.compile()
    return lowered_at - start, time.perf_counter() - lowered_at


def measure(cases: Sequence[Case], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measures the seconds of tracing with lowering, and of compiling, in every round, by network."""
    previous = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once unless the cache is reset
    try:
        results: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
        for _ in range(rounds):
            for case in cases:
                results[case.name].append(compile_seconds(case.model, case.inputs))
        return results
    finally:
        jax.config.update("jax_enable_compilation_cache", previous)
        compilation_cache.reset_cache()


def ratios(cases: Sequence[Case], results: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Median over rounds of a network's total seconds relative to those of the shallow network."""
    return {
        case.name: statistics.median(
            sum(mine) / sum(other) for mine, other in zip(results[case.name], results[case.shallow], strict=True)
        )
        for case in cases
        if case.shallow
    }


def table(cases: Sequence[Case], results: dict[str, list[tuple[float, float]]]) -> Table:
    rows, title = ratios(cases, results), "One training step, from Python to a program"
    result = Table("", title=title, title_justify="left")
    for heading in ("trace, lower: s", "compile: s", "both: s (median)", "lowest to highest", "relative to shallow"):
        result.add_column(heading, justify="right")
    for case in cases:
        parts = [statistics.median(part) for part in zip(*results[case.name], strict=True)]
        both = [sum(pair) for pair in results[case.name]]
        spread = f"{min(both):.1f} to {max(both):.1f}"
        ratio = f"{rows[case.name]:.2f}" if case.shallow else ""
        result.add_row(case.name, *(f"{part:.1f}" for part in parts), f"{statistics.median(both):.1f}", spread, ratio)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is compiled (default: 3)")
    parser.add_argument("--unrolled", action="store_true", help="also compile the shallow networks without a scan")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} must be at least 1")
    cases = CASES + UNROLLED * options.unrolled
    CONSOLE.print(f"{jax.devices()[0].platform}, jax {jax.__version__}")
    CONSOLE.print(table(cases, measure(cases, options.rounds)))


if __name__ == "__main__":
    main()
