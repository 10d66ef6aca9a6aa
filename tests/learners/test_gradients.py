"""The shared gradient step: accumulation, moving averages, optimizers that look at the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax.errors import ExperimentError
from foldax.learners import gradients

BATCH = {"x": jnp.arange(12.0).reshape(6, 2) / 10}
KEY = jax.random.key(0)


def loss(params, model_state, batch, key):
    value = jnp.square(batch["x"] @ params - 1.0).mean()
    return value, ({"seen": model_state["seen"] + batch["x"].shape[0]}, {"loss": value})


def fresh(optimizer, **options):
    return gradients.create(jnp.array([0.5, -0.5]), optimizer, {"seen": jnp.zeros((), int)}, **options)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    optimizer = optax.adamw(0.1)
    whole, metrics = gradients.step(fresh(optimizer), loss, optimizer, BATCH, KEY)
    parts, accumulated = gradients.step(fresh(optimizer), loss, optimizer, BATCH, KEY, accumulate=3)
    np.testing.assert_allclose(parts.params, whole.params, rtol=1e-6)
    assert parts.model_state["seen"] == whole.model_state["seen"] == 6
    for name, value in metrics.items():
        assert accumulated[name] == pytest.approx(float(value), rel=1e-5)


def test_gradient_norm_is_that_of_the_gradient():
    optimizer = optax.sgd(0.1)
    state = fresh(optimizer)
    gradient = jax.grad(lambda params: loss(params, state.model_state, BATCH, KEY)[0])(state.params)
    _, metrics = gradients.step(state, loss, optimizer, BATCH, KEY)
    assert metrics["gradient_norm"] == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-6)


@pytest.mark.parametrize("parts", [4, 0])
def test_parts_that_do_not_divide_the_batch_say_so(parts):
    optimizer = optax.sgd(0.1)
    with pytest.raises(ExperimentError, match=f"accumulate={parts}"):
        gradients.step(fresh(optimizer), loss, optimizer, BATCH, KEY, accumulate=parts)


def test_moving_average_is_its_closed_form_for_a_traced_decay():
    optimizer = optax.sgd(0.1)

    @jax.jit
    def run(decay):
        def body(state, _):
            state, _ = gradients.step(state, loss, optimizer, BATCH, KEY, ema_decay=decay)
            return state, state.params

        state = fresh(optimizer, ema_decay=decay)
        return state.params, *jax.lax.scan(body, state, None, length=5)

    first, state, path = run(0.7)
    expected = 0.7**5 * first + sum(0.3 * 0.7 ** (4 - i) * path[i] for i in range(5))
    np.testing.assert_allclose(state.ema_params, expected, rtol=1e-5)
    np.testing.assert_array_equal(state.averaged, state.ema_params)
    assert not np.allclose(state.ema_params, state.params)


def test_a_moving_average_starts_in_memory_of_its_own():
    """The driver donates the state: no buffer may be in it twice."""
    optimizer = optax.sgd(0.1)
    step = jax.jit(lambda state: gradients.step(state, loss, optimizer, BATCH, KEY, ema_decay=0.9)[0], donate_argnums=0)
    for create in (fresh, jax.jit(fresh, static_argnums=0)):
        assert np.isfinite(step(create(optimizer, ema_decay=0.9)).ema_params).all()


def test_optimizers_may_look_at_the_loss():
    optimizer = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    state = fresh(optimizer)
    for _ in range(4):
        state, _ = gradients.step(state, loss, optimizer, BATCH, KEY)
    assert float(state.optimizer_state[1].scale) < 1.0
