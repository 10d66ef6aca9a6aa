"""Schedules equal Optax's or their closed forms, and every argument may be traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import optim

STEPS = 40
COUNTS = jnp.arange(STEPS + 5)
RATES = st.floats(1e-4, 10.0)
FRACTIONS = st.floats(0.0, 1.0)
WARMUPS = st.integers(0, STEPS - 1)
TRACED = {
    optim.warmup_constant: {"warmup_fraction": 0.2},
    optim.warmup_linear: {"warmup_fraction": 0.2, "final_fraction": 0.1},
    optim.warmup_cosine: {"warmup_fraction": 0.2, "final_fraction": 0.1},
    optim.warmup_polynomial: {"warmup_fraction": 0.2, "final_fraction": 0.1, "power": 1.7},
    optim.warmup_exponential: {"warmup_fraction": 0.2, "final_fraction": 0.1},
    optim.warmup_piecewise: {"warmup_fraction": 0.2, "milestones": (0.3, 0.6), "factor": 0.3},
    optim.warmup_inverse_sqrt: {"warmup_fraction": 0.2},
    optim.warmup_stable_decay: {"warmup_fraction": 0.2, "final_fraction": 0.1, "cooldown_fraction": 0.3},
    optim.warmup_restarts: {"warmup_fraction": 0.2, "final_fraction": 0.1, "cycle_growth": 1.5, "factor": 0.7},
    optim.one_cycle: {"warmup_fraction": 0.2, "initial_fraction": 0.1, "final_fraction": 0.01},
}


def values(make, **arguments):
    """Returns the rates at all steps; arguments are traced, so that the examples of hypothesis share one program."""
    return np.asarray(_compiled(make)(jax.tree.map(jnp.float32, arguments)))


def _compiled(make, cache={}):  # noqa: B006
    if make not in cache:
        cache[make] = jax.jit(lambda arguments: jax.vmap(make(arguments.pop("peak"), STEPS, **arguments))(COUNTS))
    return cache[make]


def rates_of(schedule):
    return np.asarray(jax.vmap(schedule)(COUNTS))


def assert_close(actual, expected, peak=1.0) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6 * peak)


@settings(max_examples=15, deadline=None)
@given(peak=RATES, final_fraction=FRACTIONS, warmup_fraction=WARMUPS)
def test_linear_and_cosine_and_exponential_equal_optax(peak, final_fraction, warmup_fraction) -> None:
    ours = {"peak": peak, "final_fraction": final_fraction, "warmup_fraction": warmup_fraction / STEPS}
    expected = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_fraction, STEPS, peak * final_fraction)
    assert_close(values(optim.warmup_cosine, **ours), rates_of(expected), peak)
    expected = optax.warmup_exponential_decay_schedule(
        0.0, peak, warmup_fraction, STEPS - warmup_fraction, max(final_fraction, 0.01)
    )
    actual = values(optim.warmup_exponential, **(ours | {"final_fraction": max(final_fraction, 0.01)}))
    assert_close(actual[: STEPS + 1], rates_of(expected)[: STEPS + 1], peak)
    rise, fall = (
        optax.linear_schedule(0.0, peak, warmup_fraction),
        optax.linear_schedule(peak, peak * final_fraction, STEPS - warmup_fraction),
    )
    assert_close(
        values(optim.warmup_linear, **ours), rates_of(optax.join_schedules([rise, fall], [warmup_fraction])), peak
    )


@settings(max_examples=10, deadline=None)
@given(peak=RATES, final_fraction=FRACTIONS, power=st.floats(0.5, 4.0))
def test_polynomial_equals_optax(peak, final_fraction, power) -> None:
    expected = optax.polynomial_schedule(peak, peak * final_fraction, power, STEPS)
    actual = values(optim.warmup_polynomial, peak=peak, final_fraction=final_fraction, power=power)
    np.testing.assert_allclose(actual, rates_of(expected), rtol=1e-4, atol=1e-5 * peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, factor=FRACTIONS, first=st.integers(1, STEPS), second=st.integers(1, STEPS))
def test_piecewise_equals_optax(peak, factor, first, second) -> None:
    expected = optax.piecewise_constant_schedule(
        peak, {first: factor} | {second: factor * (factor if first == second else 1)}
    )
    actual = values(optim.warmup_piecewise, peak=peak, milestones=(first / STEPS, second / STEPS), factor=factor)
    assert_close(actual, rates_of(expected), peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, warmup_fraction=st.integers(1, STEPS - 1))
def test_one_cycle_is_that_of_pytorch(peak, warmup_fraction) -> None:
    """`OneCycleLR(total_steps=STEPS)`, whose last step, not the one after it, has the lowest rate."""

    def cosine(start, end, fraction):
        return end + (start - end) / 2 * (1 + np.cos(np.pi * np.clip(fraction, 0, 1)))

    steps, first, last = np.asarray(COUNTS), warmup_fraction - 1, STEPS - 1
    rise, fall = (
        cosine(peak / 25, peak, steps / max(first, 1)),
        cosine(peak, peak / 25e4, (steps - first) / (last - first)),
    )
    actual = values(optim.one_cycle, peak=peak, warmup_fraction=warmup_fraction / STEPS)
    assert_close(actual, np.where(steps < first, rise, fall), peak)
    np.testing.assert_allclose(actual[last], peak / 25e4, rtol=0.1)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, final_fraction=FRACTIONS)
def test_restarts_equal_optax_joined(peak, final_fraction) -> None:
    lengths, factor = (8, 32), 0.5
    cycles = [optax.cosine_decay_schedule(peak * factor**i, length, final_fraction) for i, length in enumerate(lengths)]
    actual = values(
        lambda peak, steps, **n: optim.warmup_restarts(peak, steps, num_cycles=2, **n),
        peak=peak,
        final_fraction=final_fraction,
        cycle_growth=4.0,
        factor=factor,
    )
    assert_close(actual, rates_of(optax.join_schedules(cycles, [8])), peak)


def test_sgdr_of_equal_cycles() -> None:
    actual = np.asarray(jax.vmap(optim.warmup_restarts(1.0, 40, num_cycles=4))(jnp.arange(40)))
    np.testing.assert_allclose(actual, np.tile(0.5 * (1 + np.cos(np.pi * np.arange(10) / 10)), 4), atol=1e-6)


def test_inverse_sqrt_is_that_of_the_transformer() -> None:
    warmup_fraction, width = 10, 512
    step = np.arange(1, STEPS)
    vaswani = width**-0.5 * np.minimum(step**-0.5, step * warmup_fraction**-1.5)
    actual = values(
        optim.warmup_inverse_sqrt, peak=width**-0.5 * warmup_fraction**-0.5, warmup_fraction=warmup_fraction / STEPS
    )
    np.testing.assert_allclose(actual[1:STEPS], vaswani, rtol=1e-5)


def test_stable_decay_closed_form() -> None:
    actual = values(
        optim.warmup_stable_decay, peak=2.0, warmup_fraction=0.1, final_fraction=0.5, cooldown_fraction=0.25
    )
    expected = np.interp(COUNTS, [0, 4, 30, 40], [0.0, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", TRACED, ids=lambda make: make.__name__)
def test_traced_arguments_compile_once_and_change_the_rate(make) -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def rates(peak, arguments, counts):
        return jax.vmap(make(peak, STEPS, **arguments))(counts)

    arguments = jax.tree.map(jnp.float32, TRACED[make])
    first = rates(jnp.float32(0.3), arguments, COUNTS)
    plain = jnp.stack([make(0.3, STEPS, **TRACED[make])(count) for count in COUNTS])
    np.testing.assert_allclose(first, plain, rtol=1e-5, atol=1e-7)
    assert jnp.isfinite(first).all()
    for name in arguments:  # each has an effect
        other = {**arguments, name: jax.tree.map(lambda x: 0.5 * x, arguments[name])}
        assert not np.allclose(first, rates(jnp.float32(0.3), other, COUNTS), rtol=1e-4), name


@pytest.mark.parametrize("make", TRACED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("warmup_fraction", [0.0, 1.0])
def test_rates_are_finite_without_warmup_and_with_nothing_else(make, warmup_fraction) -> None:
    rates = jax.jit(lambda warmup_fraction: jax.vmap(make(1.0, 4, warmup_fraction=warmup_fraction))(jnp.arange(8)))(
        warmup_fraction
    )
    assert jnp.isfinite(rates).all()
    assert (rates >= 0).all()
    assert (rates <= 1.0 + 1e-6).all()
