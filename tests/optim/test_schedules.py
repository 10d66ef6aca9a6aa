"""Schedules equal Optax's, or their closed forms, and take traced numbers, the warmup's length too."""

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
SHARES = st.floats(0.0, 1.0)
WARMUPS = st.integers(0, STEPS - 1)
TRACED = {
    optim.warmup_constant: {"warmup": 0.2},
    optim.warmup_linear: {"warmup": 0.2, "final": 0.1},
    optim.warmup_cosine: {"warmup": 0.2, "final": 0.1},
    optim.warmup_polynomial: {"warmup": 0.2, "final": 0.1, "power": 1.7},
    optim.warmup_exponential: {"warmup": 0.2, "final": 0.1},
    optim.warmup_piecewise: {"warmup": 0.2, "milestones": (0.3, 0.6), "factor": 0.3},
    optim.warmup_inverse_sqrt: {"warmup": 0.2},
    optim.warmup_stable_decay: {"warmup": 0.2, "final": 0.1, "cooldown": 0.3},
    optim.warmup_restarts: {"warmup": 0.2, "final": 0.1, "growth": 1.5, "factor": 0.7},
    optim.one_cycle: {"warmup": 0.2, "initial": 0.1, "final": 0.01},
}


def values(make, **numbers):
    """The rates at all steps; numbers are traced, so that hypothesis's examples share one program."""
    return np.asarray(_compiled(make)(jax.tree.map(jnp.float32, numbers)))


def _compiled(make, cache={}):  # noqa: B006
    if make not in cache:
        cache[make] = jax.jit(lambda numbers: jax.vmap(make(numbers.pop("peak"), STEPS, **numbers))(COUNTS))
    return cache[make]


def expected(schedule):
    return np.asarray(jax.vmap(schedule)(COUNTS))


def close(found, wanted, peak=1.0) -> None:
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6 * peak)


@settings(max_examples=15, deadline=None)
@given(peak=RATES, final=SHARES, warmup=WARMUPS)
def test_linear_and_cosine_and_exponential_equal_optax(peak, final, warmup) -> None:
    ours = {"peak": peak, "final": final, "warmup": warmup / STEPS}
    wanted = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, STEPS, peak * final)
    close(values(optim.warmup_cosine, **ours), expected(wanted), peak)
    wanted = optax.warmup_exponential_decay_schedule(0.0, peak, warmup, STEPS - warmup, max(final, 0.01))
    found = values(optim.warmup_exponential, **(ours | {"final": max(final, 0.01)}))
    close(found[: STEPS + 1], expected(wanted)[: STEPS + 1], peak)
    rise, fall = optax.linear_schedule(0.0, peak, warmup), optax.linear_schedule(peak, peak * final, STEPS - warmup)
    close(values(optim.warmup_linear, **ours), expected(optax.join_schedules([rise, fall], [warmup])), peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, final=SHARES, power=st.floats(0.5, 4.0))
def test_polynomial_equals_optax(peak, final, power) -> None:
    wanted = optax.polynomial_schedule(peak, peak * final, power, STEPS)
    found = values(optim.warmup_polynomial, peak=peak, final=final, power=power)
    np.testing.assert_allclose(found, expected(wanted), rtol=1e-4, atol=1e-5 * peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, factor=SHARES, first=st.integers(1, STEPS), second=st.integers(1, STEPS))
def test_piecewise_equals_optax(peak, factor, first, second) -> None:
    wanted = optax.piecewise_constant_schedule(
        peak, {first: factor} | {second: factor * (factor if first == second else 1)}
    )
    found = values(optim.warmup_piecewise, peak=peak, milestones=(first / STEPS, second / STEPS), factor=factor)
    close(found, expected(wanted), peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, warmup=st.integers(1, STEPS - 1))
def test_one_cycle_equals_optax(peak, warmup) -> None:
    wanted = optax.cosine_onecycle_schedule(STEPS, peak, warmup / STEPS)
    if int(warmup / STEPS * STEPS) == warmup:  # Optax rounds down what is not quite whole
        close(values(optim.one_cycle, peak=peak, warmup=warmup / STEPS), expected(wanted), peak)


@settings(max_examples=10, deadline=None)
@given(peak=RATES, final=SHARES)
def test_restarts_equal_optax_joined(peak, final) -> None:
    lengths, factor = (8, 32), 0.5
    cycles = [optax.cosine_decay_schedule(peak * factor**i, length, final) for i, length in enumerate(lengths)]
    found = values(
        lambda peak, steps, **n: optim.warmup_restarts(peak, steps, cycles=2, **n),
        peak=peak,
        final=final,
        growth=4.0,
        factor=factor,
    )
    close(found, expected(optax.join_schedules(cycles, [8])), peak)


def test_sgdr_of_equal_cycles() -> None:
    found = np.asarray(jax.vmap(optim.warmup_restarts(1.0, 40, cycles=4))(jnp.arange(40)))
    np.testing.assert_allclose(found, np.tile(0.5 * (1 + np.cos(np.pi * np.arange(10) / 10)), 4), atol=1e-6)


def test_inverse_sqrt_is_that_of_the_transformer() -> None:
    warmup, width = 10, 512
    step = np.arange(1, STEPS)
    vaswani = width**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
    found = values(optim.warmup_inverse_sqrt, peak=width**-0.5 * warmup**-0.5, warmup=warmup / STEPS)
    np.testing.assert_allclose(found[1:STEPS], vaswani, rtol=1e-5)


def test_stable_decay_closed_form() -> None:
    found = values(optim.warmup_stable_decay, peak=2.0, warmup=0.1, final=0.5, cooldown=0.25)
    wanted = np.interp(COUNTS, [0, 4, 30, 40], [0.0, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", TRACED, ids=lambda make: make.__name__)
def test_traced_numbers_compile_once_and_change_the_rate(make) -> None:
    traces = []

    @jax.jit
    def rates(peak, numbers, counts):
        traces.append(1)
        return jax.vmap(make(peak, STEPS, **numbers))(counts)

    numbers = jax.tree.map(jnp.float32, TRACED[make])
    first = rates(jnp.float32(0.3), numbers, COUNTS)
    plain = jnp.stack([make(0.3, STEPS, **TRACED[make])(count) for count in COUNTS])
    np.testing.assert_allclose(first, plain, rtol=1e-5, atol=1e-7)
    assert jnp.isfinite(first).all()
    for name in numbers:  # every one has an effect
        other = {**numbers, name: jax.tree.map(lambda x: 0.5 * x, numbers[name])}
        assert not np.allclose(first, rates(jnp.float32(0.3), other, COUNTS), rtol=1e-4), name
    assert len(traces) == 1


@pytest.mark.parametrize("make", TRACED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_warmup_and_nothing_but_warmup_are_finite(make, warmup) -> None:
    rates = jax.jit(lambda warmup: jax.vmap(make(1.0, 4, warmup=warmup))(jnp.arange(8)))(warmup)
    assert jnp.isfinite(rates).all()
    assert (rates >= 0).all()
    assert (rates <= 1.0 + 1e-6).all()
