"""Sampling with replacement: frequencies are those of the weights, and a batch depends on seed and step alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import data
from foldax.data.sampling import MAX_DRAW, sampling_bounds
from foldax.errors import DataError

LABELS = np.array([0] * 90 + [1] * 9 + [2])
WEIGHTS = np.array([0.0, 1.0, 0.0, 2.0, 7.0, 0.0])


def dataset(weights, source="device", count=None, **options):
    count = len(weights) if count is None else count
    arrays = {"inputs": np.arange(count, dtype=np.int32)}
    return data.from_arrays(
        arrays, weights=weights, source=source, **{"batch_size": 4, "validation": 0, "test": 0, **options}
    )


def device_batches(dataset, seed, steps):
    (block,) = dataset.train.blocks(seed, 0)
    select = jax.jit(lambda data, step: dataset.train.feed.batch(data, jax.random.key(seed), step, jnp.int32(0)))
    return np.stack([np.asarray(select(block.data, jnp.int32(step))["inputs"]) for step in steps])


def stream_batches(dataset, seed, step, count):
    blocks = dataset.train.blocks(seed, step)
    first = next(blocks)
    taken = [first, *itertools.islice(blocks, count // dataset.train.feed.batches)]
    blocks.close()
    return np.concatenate([np.asarray(block.data["inputs"]) for block in taken])[step - first.start :][:count]


def test_bounds_never_draw_an_example_of_weight_0():
    bounds = sampling_bounds(WEIGHTS)
    draws = np.array([0, MAX_DRAW // 2, MAX_DRAW], np.uint32)
    assert set(np.searchsorted(bounds, draws, side="right").tolist()) <= {1, 3, 4}
    np.testing.assert_allclose(np.diff(bounds, prepend=0) / 2.0**32, WEIGHTS / WEIGHTS.sum(), atol=1e-9)


@pytest.mark.parametrize("source", ["device", "stream"])
def test_frequencies_are_those_of_the_weights(source):
    sampled = dataset(WEIGHTS, source, count=6, batch_size=6)
    batches = device_batches(sampled, 0, range(500)) if source == "device" else stream_batches(sampled, 0, 0, 500)
    counts = np.bincount(batches.ravel(), minlength=6)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(counts / counts.sum(), WEIGHTS / WEIGHTS.sum(), atol=0.03)  # 3 standard errors


def test_classes_are_equally_frequent_when_balanced():
    arrays = {"inputs": np.arange(100.0), "targets": LABELS}
    balanced = data.from_arrays(arrays, batch_size=50, validation=0, test=0, weights="balanced")
    (block,) = balanced.train.blocks(0, 0)
    batches = [balanced.train.feed.batch(block.data, jax.random.key(0), jnp.int32(i), jnp.int32(0)) for i in range(20)]
    counts = np.bincount(np.concatenate([batch["targets"] for batch in batches]))
    np.testing.assert_allclose(counts / 1000, 1 / 3, atol=0.05)
    assert balanced.info.class_counts == (90, 9, 1)


def test_a_batch_depends_on_seed_and_step_alone():
    sampled = dataset(WEIGHTS, count=6)
    whole = device_batches(sampled, 3, range(12))
    np.testing.assert_array_equal(whole[7:], device_batches(sampled, 3, range(7, 12)))
    assert not np.array_equal(whole, device_batches(sampled, 4, range(12)))
    assert len(np.unique(whole, axis=0)) > 6
    sampled = dataset(WEIGHTS, "stream", count=6)
    sampled.train.feed = sampled.train.feed._replace(batches=5)
    whole = stream_batches(sampled, 3, 0, 12)
    np.testing.assert_array_equal(whole[7:], stream_batches(sampled, 3, 7, 5))
    assert not np.array_equal(whole, stream_batches(sampled, 4, 0, 12))


def test_weights_follow_the_examples_into_the_training_split():
    weights = np.arange(40) % 2
    sampled = data.from_arrays({"inputs": np.arange(40)}, batch_size=8, test=0.5, weights=weights)
    assert set(np.unique(device_batches(sampled, 0, range(20)) % 2)) == {1}
    assert (
        sampled.info.fingerprint != data.from_arrays({"inputs": np.arange(40)}, batch_size=8, test=0.5).info.fingerprint
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balance", "arrays: weights='balance' is neither 'balanced' nor an array of one weight per example"),
        ("balanced", "arrays: weights='balanced' needs classes, which are integer 'targets' [N]"),
        (np.ones(5), "arrays: weights must be numbers [6], one for each example, not float64[5]"),
        (["a"] * 6, "arrays: weights must be numbers [6], one for each example, not <U1[6]"),
        ([1, 1, -1, 1, 1, 1], "arrays: weights must be finite and at least 0, got -1 for example 2"),
        ([1, 1, 1, np.nan, 1, 1], "arrays: weights must be finite and at least 0, got nan for example 3"),
        (np.zeros(6), "arrays: all weights of the training split are 0"),
    ],
)
def test_slips_are_one_clear_line(weights, message):
    with pytest.raises(DataError) as caught:
        dataset(weights, count=6)
    assert str(caught.value) == message


def test_a_transform_has_other_random_numbers_than_the_choice_of_examples():
    def offsets(batch, random):
        return {**batch, "offsets": random.integers(0, 4, batch["offsets"].shape, np.int32)}

    arrays = {"inputs": np.arange(4, dtype=np.int32), "offsets": np.zeros(4, np.int32)}
    options = {"batch_size": 4, "validation": 0, "test": 0, "weights": np.ones(4), "transform": offsets}
    blocks = data.from_arrays(arrays, **options).train.blocks(0, 0)
    block = next(blocks).data
    blocks.close()
    pairs = np.stack([np.asarray(block["inputs"]).ravel(), np.asarray(block["offsets"]).ravel()], axis=1)
    assert len(np.unique(pairs, axis=0)) == 16  # every example with every offset
