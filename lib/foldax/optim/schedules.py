"""Learning rates over a run: functions of the step, all of whose numbers may be traced.

Every one takes the highest rate, `peak`, and `steps`, the number of optimizer steps, and returns `step -> rate`, as
Optax's schedules do. `warmup` is the share of the steps in which the rate first rises from 0 to the peak in a line
(Goyal et al., 2017). `final` is the last rate as a share of the peak. After the last step the rate stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Schedule = Callable[[Any], jax.Array]


def warmup_constant(peak: Any, steps: int, *, warmup: Any = 0.0) -> Schedule:
    """Stays at the peak."""
    return _schedule(peak, steps, warmup, jnp.ones_like)


def warmup_linear(peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.0) -> Schedule:
    """Falls in a line."""
    return _schedule(peak, steps, warmup, lambda done: 1.0 - (1.0 - final) * done)


def warmup_cosine(peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.0) -> Schedule:
    """Falls in half a wave of a cosine (Loshchilov & Hutter, 2017)."""
    return _schedule(peak, steps, warmup, lambda done: _half_wave(1.0, final, done))


def warmup_polynomial(peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.0, power: Any = 2.0) -> Schedule:
    """Falls as a power of what is left of the steps; 1 is a line."""
    return _schedule(peak, steps, warmup, lambda done: final + (1.0 - final) * jnp.power(1.0 - done, power))


def warmup_exponential(peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.01) -> Schedule:
    """Falls by the same factor at every step."""
    return _schedule(peak, steps, warmup, lambda done: jnp.power(final, done))


def warmup_piecewise(
    peak: Any, steps: int, *, warmup: Any = 0.0, milestones: Sequence[Any] = (0.5, 0.75), factor: Any = 0.1
) -> Schedule:
    """Is multiplied by `factor` at each of `milestones`, shares of all steps (He et al., 2016)."""
    edges = [jnp.round(jnp.asarray(milestone, jnp.float32) * steps) for milestone in milestones]

    def rate(step: Any) -> jax.Array:
        passed = sum((jnp.asarray(step) >= edge).astype(jnp.float32) for edge in edges)
        return warm(step) * jnp.power(jnp.asarray(factor, jnp.float32), passed)

    warm = warmup_constant(peak, steps, warmup=warmup)
    return rate


def warmup_inverse_sqrt(peak: Any, steps: int, *, warmup: Any = 0.1) -> Schedule:
    """Falls as one over the root of the step; the peak is where the warmup ends (Vaswani et al., 2017)."""
    start = jnp.maximum(_length(warmup, steps), 1.0)

    def rate(step: Any) -> jax.Array:
        past = jnp.maximum(jnp.asarray(step, jnp.float32), start)
        return warm(step) * jnp.sqrt(start * jnp.reciprocal(past))

    warm = warmup_constant(peak, steps, warmup=warmup)
    return rate


def warmup_stable_decay(peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.0, cooldown: Any = 0.2) -> Schedule:
    """Stays at the peak, then falls in a line over `cooldown`, the last share of the steps (Hägele et al., 2024)."""
    last = jnp.maximum(_length(cooldown, steps), 1.0)

    def rate(step: Any) -> jax.Array:
        done = jnp.clip((jnp.asarray(step, jnp.float32) - (steps - last)) * jnp.reciprocal(last), 0.0, 1.0)
        return warm(step) * (1.0 - (1.0 - final) * done)

    warm = warmup_constant(peak, steps, warmup=warmup)
    return rate


def warmup_restarts(
    peak: Any, steps: int, *, warmup: Any = 0.0, final: Any = 0.0, cycles: int = 4, growth: Any = 1.0, factor: Any = 1.0
) -> Schedule:
    """Falls in half a wave of a cosine, `cycles` times over (SGDR: Loshchilov & Hutter, 2017).

    Each cycle is `growth` times as long as the one before, and its peak `factor` times as high.
    """
    number = jnp.arange(cycles, dtype=jnp.float32)
    lengths = jnp.power(jnp.asarray(growth, jnp.float32), number)
    lengths = lengths * jnp.reciprocal(lengths.sum())
    starts = jnp.cumsum(lengths) - lengths

    def shape(done: jax.Array) -> jax.Array:
        cycle = (done >= starts[1:]).sum()
        part = jnp.minimum((done - starts[cycle]) * jnp.reciprocal(lengths[cycle]), 1.0)
        return _half_wave(1.0, final, part) * jnp.power(jnp.asarray(factor, jnp.float32), number[cycle])

    return _schedule(peak, steps, warmup, shape)


def one_cycle(peak: Any, steps: int, *, warmup: Any = 0.3, initial: Any = 1 / 25, final: Any = 1 / 250_000) -> Schedule:
    """Rises from `initial`, a share of the peak, and falls to `final`, in half waves (Smith & Topin, 2018)."""
    start = _length(warmup, steps)
    falls = warmup_cosine(peak, steps, warmup=warmup, final=final)

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rises = peak * _half_wave(initial, 1.0, jnp.minimum(step * jnp.reciprocal(jnp.maximum(start, 1.0)), 1.0))
        return jnp.where(step < start, rises, falls(step))

    return rate


def _schedule(peak: Any, steps: int, warmup: Any, shape: Callable[[jax.Array], jax.Array]) -> Schedule:
    """Rises in a line, then multiplies the peak by `shape` of the share of the remaining steps that is done."""
    start = _length(warmup, steps)

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = step * jnp.reciprocal(jnp.maximum(start, 1.0))
        done = jnp.clip((step - start) * jnp.reciprocal(jnp.maximum(steps - start, 1.0)), 0.0, 1.0)
        return peak * jnp.where(step < start, rising, shape(done))

    return rate


def _length(share: Any, steps: int) -> jax.Array:
    """The steps in a share of them, whole, so that a float32 share cannot move an edge."""
    return jnp.round(jnp.asarray(share, jnp.float32) * steps)


def _half_wave(first: Any, last: Any, done: jax.Array) -> jax.Array:
    return last + (first - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
