"""Learning-rate schedules, whose arguments may all be traced.

Each function takes the peak of the rate and `steps`, the number of optimizer steps, and returns `step -> rate`, as
Optax's schedules do. Over the first `warmup_fraction` of the steps the rate rises linearly from 0 to the peak (Goyal et
al., 2017); `final_fraction` is the last rate as a fraction of the peak. After the last step the rate stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from chex import Numeric

Schedule: TypeAlias = Callable[[Numeric], jax.Array]  # step -> learning rate


def warmup_constant(peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.0) -> Schedule:
    """Stays at the peak.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.

    >>> rate = warmup_constant(1.0, 10, warmup_fraction=0.4)
    >>> [float(rate(step)) for step in (0, 2, 4, 10)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return _warmup_then(peak, steps, warmup_fraction, jnp.ones_like)


def warmup_linear(
    peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.0, final_fraction: Numeric = 0.0
) -> Schedule:
    """Falls linearly to `final_fraction` of the peak.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.

    >>> [float(warmup_linear(1.0, 10, final_fraction=0.5)(step)) for step in (0, 5, 10)]
    [1.0, 0.75, 0.5]
    """
    return _warmup_then(peak, steps, warmup_fraction, lambda progress: 1.0 - (1.0 - final_fraction) * progress)


def warmup_cosine(
    peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.0, final_fraction: Numeric = 0.0
) -> Schedule:
    """Falls along half a cosine wave (Loshchilov & Hutter, 2017).

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.

    >>> [round(float(warmup_cosine(1.0, 10)(step)), 2) for step in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    """
    return _warmup_then(peak, steps, warmup_fraction, lambda progress: _cosine(1.0, final_fraction, progress))


def warmup_polynomial(
    peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.0, final_fraction: Numeric = 0.0, power: Numeric = 2.0
) -> Schedule:
    """Falls as a power of the remaining fraction of the steps; power 1 is linear.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.
      power: exponent of the remaining fraction.

    >>> [float(warmup_polynomial(1.0, 10)(step)) for step in (0, 5, 10)]
    [1.0, 0.25, 0.0]
    """

    def shape(progress: jax.Array) -> jax.Array:
        return final_fraction + (1.0 - final_fraction) * jnp.power(1.0 - progress, power)

    return _warmup_then(peak, steps, warmup_fraction, shape)


def warmup_exponential(
    peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.0, final_fraction: Numeric = 0.01
) -> Schedule:
    """Falls by the same factor at every step.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.

    >>> [round(float(warmup_exponential(1.0, 10)(step)), 3) for step in (0, 5, 10)]
    [1.0, 0.1, 0.01]
    """
    return _warmup_then(peak, steps, warmup_fraction, lambda progress: jnp.power(final_fraction, progress))


def warmup_piecewise(
    peak: Numeric,
    steps: int,
    *,
    warmup_fraction: Numeric = 0.0,
    milestones: Sequence[Numeric] = (0.5, 0.75),
    factor: Numeric = 0.1,
) -> Schedule:
    """Multiplies the rate by `factor` at each milestone, a fraction of all steps (He et al., 2016).

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      milestones: increasing fractions of the steps.
      factor: factor of the rate at each milestone.

    >>> [round(float(warmup_piecewise(1.0, 100)(step)), 3) for step in (49, 50, 75)]
    [1.0, 0.1, 0.01]
    """
    boundaries = [_whole_steps(milestone, steps) for milestone in milestones]

    def rate(step: Numeric) -> jax.Array:
        drops = sum((jnp.asarray(step) >= boundary).astype(jnp.float32) for boundary in boundaries)
        return warmup(step) * jnp.power(jnp.asarray(factor, jnp.float32), drops)

    warmup = warmup_constant(peak, steps, warmup_fraction=warmup_fraction)
    return rate


def warmup_inverse_sqrt(peak: Numeric, steps: int, *, warmup_fraction: Numeric = 0.1) -> Schedule:
    """Falls as the inverse square root of the step, from the end of the warmup (Vaswani et al., 2017).

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.

    >>> [float(warmup_inverse_sqrt(1.0, 100)(step)) for step in (5, 10, 40)]
    [0.5, 1.0, 0.5]
    """
    warmup_steps = jnp.maximum(_whole_steps(warmup_fraction, steps), 1.0)

    def rate(step: Numeric) -> jax.Array:
        # During the warmup the root is 1.
        later = jnp.maximum(jnp.asarray(step, jnp.float32), warmup_steps)
        return warmup(step) * jnp.sqrt(warmup_steps * jnp.reciprocal(later))

    warmup = warmup_constant(peak, steps, warmup_fraction=warmup_fraction)
    return rate


def warmup_stable_decay(
    peak: Numeric,
    steps: int,
    *,
    warmup_fraction: Numeric = 0.0,
    final_fraction: Numeric = 0.0,
    cooldown_fraction: Numeric = 0.2,
) -> Schedule:
    """Stays at the peak, then falls linearly over the last `cooldown_fraction` of the steps (Hägele et al., 2024).

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.
      cooldown_fraction: fraction of the steps of the final linear decay.

    >>> [float(warmup_stable_decay(1.0, 20)(step)) for step in (10, 16, 18, 20)]
    [1.0, 1.0, 0.5, 0.0]
    """
    cooldown_steps = jnp.maximum(_whole_steps(cooldown_fraction, steps), 1.0)

    def rate(step: Numeric) -> jax.Array:
        # Negative before the cooldown, where the progress is clipped to 0.
        into_cooldown = jnp.asarray(step, jnp.float32) - (steps - cooldown_steps)
        progress = jnp.clip(into_cooldown * jnp.reciprocal(cooldown_steps), 0.0, 1.0)
        return warmup(step) * (1.0 - (1.0 - final_fraction) * progress)

    warmup = warmup_constant(peak, steps, warmup_fraction=warmup_fraction)
    return rate


def warmup_restarts(
    peak: Numeric,
    steps: int,
    *,
    warmup_fraction: Numeric = 0.0,
    final_fraction: Numeric = 0.0,
    num_cycles: int = 4,
    cycle_growth: Numeric = 1.0,
    factor: Numeric = 1.0,
) -> Schedule:
    """Falls along half a cosine wave `num_cycles` times (SGDR: Loshchilov & Hutter, 2017).

    Each cycle is `cycle_growth` times as long as the cycle before, and its peak `factor` times as high.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps of the linear warmup.
      final_fraction: last rate as a fraction of the peak.
      num_cycles: number of cosine cycles.
      cycle_growth: length of a cycle as a multiple of the cycle before.
      factor: peak of a cycle as a multiple of the peak before.

    >>> [round(float(warmup_restarts(1.0, 20, num_cycles=2, factor=0.5)(step)), 2) for step in (0, 5, 10, 15, 20)]
    [1.0, 0.5, 0.5, 0.25, 0.0]
    """
    # Cycle i takes a fraction growth^i / sum growth^j of the steps.
    number = jnp.arange(num_cycles, dtype=jnp.float32)
    lengths = jnp.power(jnp.asarray(cycle_growth, jnp.float32), number)
    lengths = lengths * jnp.reciprocal(lengths.sum())
    starts = jnp.cumsum(lengths) - lengths

    def shape(progress: jax.Array) -> jax.Array:
        # Number of cycles that have begun; `starts` is ascending.
        cycle = (progress >= starts[1:]).sum()
        cycle_progress = jnp.minimum((progress - starts[cycle]) * jnp.reciprocal(lengths[cycle]), 1.0)
        return _cosine(1.0, final_fraction, cycle_progress) * jnp.power(jnp.asarray(factor, jnp.float32), number[cycle])

    return _warmup_then(peak, steps, warmup_fraction, shape)


def one_cycle(
    peak: Numeric,
    steps: int,
    *,
    warmup_fraction: Numeric = 0.3,
    initial_fraction: Numeric = 1 / 25,
    final_fraction: Numeric = 1 / 250_000,
) -> Schedule:
    """Rises from `initial_fraction` of the peak, then falls to `final_fraction`, along half cosine waves.

    The one-cycle policy of Smith & Topin (2018), with the defaults and the steps of PyTorch's `OneCycleLR`: the peak is
    at step `warmup_fraction * steps - 1`, and the lowest rate at the last step, `steps - 1`.

    Args:
      peak: highest rate.
      steps: number of optimizer steps.
      warmup_fraction: fraction of the steps over which the rate rises.
      initial_fraction: first rate as a fraction of the peak.
      final_fraction: last rate as a fraction of the peak.

    >>> [round(float(one_cycle(1.0, 10)(step)), 2) for step in (0, 2, 9)]
    [0.04, 1.0, 0.0]
    """
    peak_step = jnp.maximum(jnp.asarray(warmup_fraction, jnp.float32) * steps - 1.0, 0.0)

    def progress(step: jax.Array, num_steps: Numeric) -> jax.Array:
        return jnp.clip(step * jnp.reciprocal(jnp.maximum(num_steps, 1e-6)), 0.0, 1.0)

    def rate(step: Numeric) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = _cosine(initial_fraction, 1.0, progress(step, peak_step))
        fall = _cosine(1.0, final_fraction, progress(step - peak_step, steps - 1.0 - peak_step))
        # Both are the peak at its step, which may be a fraction, and which rounding could move.
        return peak * jnp.where(step < peak_step - 1e-3, rise, fall)

    return rate


def _warmup_then(
    peak: Numeric, steps: int, warmup_fraction: Numeric, shape: Callable[[jax.Array], jax.Array]
) -> Schedule:
    """Rises linearly to the peak, then multiplies it by `shape` of the progress through the other steps, in [0, 1]."""
    warmup_steps = _whole_steps(warmup_fraction, steps)

    def rate(step: Numeric) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = step * jnp.reciprocal(jnp.maximum(warmup_steps, 1.0))
        # Multiplied by a reciprocal, not divided: XLA rewrites traced divisions differently in a sweep.
        progress = jnp.clip((step - warmup_steps) * jnp.reciprocal(jnp.maximum(steps - warmup_steps, 1.0)), 0.0, 1.0)
        return peak * jnp.where(step < warmup_steps, rise, shape(progress))

    return rate


def _whole_steps(fraction: Numeric, steps: int) -> jax.Array:
    """A fraction of the steps, rounded to whole steps, so that rounding of float32 cannot move a boundary."""
    return jnp.round(jnp.asarray(fraction, jnp.float32) * steps)


def _cosine(first: Numeric, last: Numeric, progress: jax.Array) -> jax.Array:
    """Half a cosine wave from `first` to `last`."""
    return last + (first - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
