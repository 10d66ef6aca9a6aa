"""Actor-critics: a memory that goes on step by step is that of the whole sequence, and ends with its episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import models

KEY = jax.random.key(0)


@pytest.mark.parametrize(("cell", "continuous"), [("lstm", False), ("gru", True)])
def test_a_sequence_says_what_its_steps_say_one_by_one(cell, continuous):
    model = models.RecurrentActorCritic(2, continuous, hidden=(4,), width=3, cell=cell)
    x = jax.random.normal(KEY, (3, 7, 2))
    starts = jnp.array([[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]], bool)
    memory = jax.tree.map(lambda part: part + 0.5, model.initial_memory(3))  # in the midst of an episode
    variables = model.init(KEY, x)
    apply = jax.jit(model.apply)
    whole, end = apply(variables, x, memory, starts)
    for t in range(x.shape[1]):
        if t:
            memory = jax.tree.map(lambda part, t=t: jnp.where(starts[:, t, None], 0.0, part), memory)
        one, memory = apply(variables, x[:, t : t + 1], memory)
        for found, expected in zip(jax.tree.leaves(whole), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(found[:, t], expected[:, 0], rtol=1e-4, atol=1e-6)
    for found, expected in zip(jax.tree.leaves(end), jax.tree.leaves(memory), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (whole.log_std is None) != continuous
    assert whole.value.shape == (3, 7)


def test_without_a_memory_an_episode_begins():
    model = models.RecurrentActorCritic(2, hidden=(), width=3)
    x = jax.random.normal(KEY, (2, 4, 2))
    variables = model.init(KEY, x)
    first, _ = model.apply(variables, x)
    second, _ = model.apply(variables, x, model.initial_memory(2), jnp.zeros((2, 4), bool))
    np.testing.assert_array_equal(first.policy, second.policy)
