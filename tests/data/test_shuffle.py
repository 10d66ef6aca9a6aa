"""A shuffled epoch is a permutation, uniform, and its own for every key and epoch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from foldax.data.shuffle import shuffled_indices


@functools.partial(jax.jit, static_argnums=2)
def order(key, epoch, size):
    return shuffled_indices(key, epoch, jnp.arange(size, dtype=jnp.int32), size)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 3, 5, 16, 97, 1437]),  # a size is a compilation
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**31 - 1),
)
def test_an_epoch_visits_every_example_once(size, seed, epoch):
    values = order(jax.random.key(seed), epoch, size)
    assert values.dtype == jnp.int32
    assert np.array_equal(np.sort(values), np.arange(size))


def test_keys_and_epochs_have_orders_of_their_own():
    orders = [np.asarray(order(jax.random.key(k), e, 97)) for k in range(5) for e in range(5)]
    assert len({values.tobytes() for values in orders}) == len(orders)


@pytest.mark.parametrize("size", [5, 31])
def test_every_example_is_as_likely_at_every_position(size):
    draws = 4000
    for over_keys in (True, False):
        if over_keys:
            orders = jax.vmap(lambda key: order(key, 0, size))(jax.random.split(jax.random.key(1), draws))
        else:
            orders = jax.vmap(lambda epoch: order(jax.random.key(1), epoch, size))(jnp.arange(draws))
        for position in {0, size // 2, size - 1}:
            counts = np.bincount(orders[:, position], minlength=size)
            statistic = np.sum((counts - draws / size) ** 2) / (draws / size)
            assert chi2.sf(statistic, size - 1) > 1e-4


@pytest.mark.parametrize("size", [4, 5, 6])
@pytest.mark.parametrize("over", ["keys", "epochs"])
def test_all_orders_of_few_examples_are_as_likely(size, over):
    count = math.factorial(size)
    draws, mean = 100 * count, 100
    if over == "keys":
        orders = jax.vmap(lambda key: order(key, 0, size))(jax.random.split(jax.random.key(5), draws))
    else:
        orders = jax.vmap(lambda epoch: order(jax.random.key(5), epoch, size))(jnp.arange(draws))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == count
    assert chi2.sf(np.sum((counts - mean) ** 2) / mean, count - 1) > 1e-4


@pytest.mark.parametrize("size", [7, 8, 9, 10, 16])
def test_the_first_three_of_an_epoch_are_any_three_as_likely(size):
    triples = size * (size - 1) * (size - 2)
    draws = 40 * triples
    orders = np.asarray(jax.vmap(lambda epoch: order(jax.random.key(3), epoch, size))(jnp.arange(draws)))
    _, counts = np.unique(orders[:, :3], axis=0, return_counts=True)
    assert len(counts) == triples
    assert chi2.sf(np.sum((counts - 40) ** 2) / 40, triples - 1) > 1e-4


def test_neighbouring_epochs_and_positions_are_unrelated():
    size, epochs = 211, 400
    orders = np.asarray(jax.vmap(lambda epoch: order(jax.random.key(2), epoch, size))(jnp.arange(epochs)))
    centred = orders / ((size - 1) / 2) - 1  # variance 1/3
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        z = 3 * np.mean(a * b) * np.sqrt(a.size)
        assert abs(z) < 5


def test_vmap_over_keys_equals_single_calls():
    keys = jax.random.split(jax.random.key(7), 3)
    together = jax.vmap(lambda key: order(key, 2, 97))(keys)
    for i in range(3):
        assert np.array_equal(together[i], order(keys[i], 2, 97))


def test_only_the_asked_positions():
    positions = jnp.array([5, 90, 5], jnp.int32)
    some = jax.jit(shuffled_indices, static_argnums=3)(jax.random.key(0), 1, positions, 97)
    assert np.array_equal(some, order(jax.random.key(0), 1, 97)[positions])
