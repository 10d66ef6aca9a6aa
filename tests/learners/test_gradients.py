"""The shared gradient step: microbatches, moving averages, optimizers that read the loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax.errors import ExperimentError
from foldax.learners import gradient_step, init_train_state
from foldax.optim import Optimizer, build

BATCH = {"x": jnp.arange(12.0).reshape(6, 2) / 10}
KEY = jax.random.key(0)


def loss(params, model_state, batch, key):
    value = jnp.square(batch["x"] @ params - 1.0).mean()
    return value, ({"examples": model_state["examples"] + batch["x"].shape[0]}, {"loss": value})


def initial_state(optimizer, **options):
    return init_train_state(jnp.array([0.5, -0.5]), optimizer, {"examples": jnp.zeros((), int)}, **options)


def test_gradients_of_microbatches_average_to_those_of_the_whole_batch():
    optimizer = optax.adamw(0.1)
    whole, metrics = gradient_step(initial_state(optimizer), loss, optimizer, BATCH, KEY)
    parts, averaged_metrics = gradient_step(initial_state(optimizer), loss, optimizer, BATCH, KEY, microbatches=3)
    np.testing.assert_allclose(parts.params, whole.params, rtol=1e-6)
    assert parts.model_state["examples"] == whole.model_state["examples"] == 6
    chex.assert_trees_all_close(averaged_metrics, metrics, rtol=1e-5)


def test_gradient_norm_is_that_of_the_gradient():
    optimizer = optax.sgd(0.1)
    state = initial_state(optimizer)
    gradient = jax.grad(lambda params: loss(params, state.model_state, BATCH, KEY)[0])(state.params)
    _, metrics = gradient_step(state, loss, optimizer, BATCH, KEY)
    assert metrics["gradient_norm"] == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-6)


@pytest.mark.parametrize("microbatches", [4, 0])
def test_microbatches_that_do_not_divide_the_batch_are_refused(microbatches):
    optimizer = optax.sgd(0.1)
    with pytest.raises(ExperimentError, match=f"microbatches={microbatches}"):
        gradient_step(initial_state(optimizer), loss, optimizer, BATCH, KEY, microbatches=microbatches)


@pytest.mark.parametrize(
    "optimizer",
    [
        build(Optimizer(name="sgd", accumulate_steps=2), 10),
        optax.chain(optax.clip(1.0), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
    ],
)
def test_microbatches_with_an_optimizer_that_accumulates_are_refused(optimizer):
    with pytest.raises(ExperimentError, match="microbatches=3, but the optimizer accumulates gradients too"):
        gradient_step(initial_state(optimizer), loss, optimizer, BATCH, KEY, microbatches=3)
    gradient_step(initial_state(optimizer), loss, optimizer, BATCH, KEY)  # either alone is allowed


def test_moving_average_is_its_closed_form_for_a_traced_decay():
    optimizer = optax.sgd(0.1)

    @jax.jit
    def run(decay):
        def body(state, _):
            state, _ = gradient_step(state, loss, optimizer, BATCH, KEY, ema_decay=decay)
            return state, state.params

        state = initial_state(optimizer, ema_decay=decay)
        return state.params, *jax.lax.scan(body, state, None, length=5)

    first, state, path = run(0.25)
    expected = first
    for decay, params in zip((0.1, 2 / 11, 0.25, 0.25, 0.25), path, strict=True):  # at first (1 + t) / (10 + t)
        expected = decay * expected + (1 - decay) * params
    np.testing.assert_allclose(state.ema_params, expected, rtol=1e-5)
    np.testing.assert_array_equal(state.evaluation_params, state.ema_params)
    assert not np.allclose(state.ema_params, state.params)


def test_a_moving_average_takes_a_step_with_the_parameters_not_with_each_accumulated_batch():
    accumulating = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    state, plain = initial_state(accumulating, ema_decay=0.9), initial_state(optax.sgd(0.1), ema_decay=0.9)
    for _ in range(6):
        state, _ = gradient_step(state, loss, accumulating, BATCH, KEY, ema_decay=0.9)
    for _ in range(2):
        plain, _ = gradient_step(plain, loss, optax.sgd(0.1), BATCH, KEY, ema_decay=0.9)
    np.testing.assert_allclose(state.ema_params, plain.ema_params, rtol=1e-5)
    assert state.ema_steps == plain.ema_steps == 2


def test_a_moving_average_starts_in_memory_of_its_own():
    """The engine donates the state: no buffer may stand in it twice."""
    optimizer = optax.sgd(0.1)
    step = jax.jit(lambda state: gradient_step(state, loss, optimizer, BATCH, KEY, ema_decay=0.9)[0], donate_argnums=0)
    for init in (initial_state, jax.jit(initial_state, static_argnums=0)):
        assert np.isfinite(step(init(optimizer, ema_decay=0.9)).ema_params).all()


def test_optimizers_may_read_the_loss():
    optimizer = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    state = initial_state(optimizer)
    for _ in range(4):
        state, _ = gradient_step(state, loss, optimizer, BATCH, KEY)
    assert float(state.optimizer_state[1].scale) < 1.0
