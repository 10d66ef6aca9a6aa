"""Actor-critic networks: a recurrent policy is the same step by step and over the whole sequence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import models

KEY = jax.random.key(0)


@pytest.mark.parametrize(("cell", "continuous"), [("lstm", False), ("gru", True)])
def test_a_sequence_has_the_outputs_of_its_steps_one_by_one(cell, continuous):
    model = models.RecurrentActorCritic(2, continuous, hidden=(4,), width=3, cell=cell)
    x = jax.random.normal(KEY, (3, 7, 2))
    starts = jnp.array([[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]], bool)
    memory = jax.tree.map(lambda part: part + 0.5, model.initial_memory(3))  # as in the middle of an episode
    variables = model.init(KEY, x)
    apply = jax.jit(model.apply)
    whole, end = apply(variables, x, memory, starts)
    for t in range(x.shape[1]):
        if t:
            memory = jax.tree.map(lambda part, t=t: jnp.where(starts[:, t, None], 0.0, part), memory)
        one, memory = apply(variables, x[:, t : t + 1], memory)
        step = jax.tree.map(lambda part, t=t: part[:, t], whole)
        chex.assert_trees_all_close(step, jax.tree.map(lambda part: part[:, 0], one), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(end, memory, rtol=1e-4, atol=1e-6)
    assert isinstance(whole.distribution, models.Normal if continuous else models.Categorical)
    assert whole.value.shape == (3, 7)


def test_without_memory_an_episode_starts():
    model = models.RecurrentActorCritic(2, hidden=(), width=3)
    x = jax.random.normal(KEY, (2, 4, 2))
    variables = model.init(KEY, x)
    first, _ = model.apply(variables, x)
    second, _ = model.apply(variables, x, model.initial_memory(2), jnp.zeros((2, 4), bool))
    np.testing.assert_array_equal(first.distribution.logits, second.distribution.logits)
