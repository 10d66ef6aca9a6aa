"""Mixtures: examples come from each dataset with the probability of its weight."""

import gc
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import data
from foldax.data.info import temporary_folders
from foldax.errors import DataError


def part(value, count=100, source="device", **options):
    arrays = {
        "inputs": np.full((count, 2), value, np.float32) + np.array([0, 1], np.float32) * np.arange(count)[:, None]
    }
    return data.from_arrays(arrays, source=source, **{"batch_size": 50, "test": 0, **options})


def batches(mixed, seed=0, steps=range(40)):
    (block,) = mixed.train.blocks(seed, 0)
    feed = mixed.train.feed
    return np.stack(
        [np.asarray(feed.batch(block.data, jax.random.key(seed), jnp.int32(s), jnp.int32(0))["inputs"]) for s in steps]
    )


def test_a_batch_has_each_dataset_by_its_weight():
    mixed = data.mixture({"a": part(0.0), "b": part(1.0, 900)}, {"a": 3, "b": 1})
    sampled = batches(mixed)[..., 0]
    np.testing.assert_allclose(sampled.mean(), 0.25, atol=0.03)
    assert isinstance(mixed.train, data.DeviceSource)
    np.testing.assert_array_equal(batches(mixed, steps=[7]), batches(mixed, steps=range(8))[7:])
    assert mixed.info.num_examples == {"train": 900, "validation": 100, "a": 10, "b": 90}
    inputs = batches(mixed, steps=range(400)).reshape(-1, 2)
    np.testing.assert_allclose(mixed.info.mean, inputs.mean(0), rtol=0.05)
    np.testing.assert_allclose(mixed.info.std, inputs.std(0), rtol=0.05)


def test_a_stream_reads_from_all_datasets():
    mixed = data.mixture({"a": part(0.0, source="stream"), "b": part(1.0)}, {"a": 1, "b": 1})
    assert isinstance(mixed.train, data.StreamSource)
    blocks = mixed.train.blocks(0, 0)
    block = np.asarray(next(blocks).data["inputs"])
    blocks.close()
    np.testing.assert_allclose(block[..., 0].mean(), 0.5, atol=0.05)


def test_workers_map_the_arrays_of_all_datasets(monkeypatch):
    monkeypatch.setattr("foldax.data.info.PICKLED_BYTES", 100)
    parts = {"a": part(0.0, source="stream", workers=1), "b": part(1.0)}
    mixed = data.mixture(parts, {"a": 1, "b": 1})
    folders = temporary_folders(mixed.train.all_examples)
    assert len(folders) == 2
    assert len(pickle.dumps(mixed.train.all_examples)) < 1_500
    rows = np.array([0, 3, 100, 199])
    read = pickle.loads(pickle.dumps(mixed.train.all_examples)).read(rows)["inputs"]
    np.testing.assert_array_equal(read, [[0, 0], [0, 3], [1, 1], [1, 100]])
    del mixed, parts
    gc.collect()
    assert not any(Path(folder).exists() for folder in folders)


def test_named_sets_of_the_datasets_stay():
    sets = {"far": {"inputs": np.full((3, 2), 9.0, np.float32)}}
    mixed = data.mixture({"a": part(0.0, evaluation=sets), "b": part(1.0)}, {"a": 1, "b": 1})
    assert mixed.info.num_examples == {"train": 180, "validation": 20, "a": 10, "a.far": 3, "b": 10}
    assert mixed.splits["a.far"].examples()["inputs"].tolist() == [[9, 9]] * 3
    with pytest.raises(DataError) as caught:
        data.mixture({"a": part(0.0, evaluation=sets), "a.far": part(1.0)}, {"a": 1, "a.far": 1})
    assert str(caught.value) == "mixture: there are two evaluation sets 'a.far'; give 'a.far' another name"


def test_a_joined_split_has_the_largest_batches_of_its_parts():
    mixed = data.mixture({"a": part(0.0), "b": part(1.0, 400)}, {"a": 1, "b": 1})
    assert mixed.splits["validation"].batch_size == mixed.splits["b"].batch_size == 40


def test_own_weights_of_a_dataset_stay():
    weighted = part(0.0, 4, validation=0, batch_size=2, weights=[0, 0, 1, 1])
    mixed = data.mixture({"a": weighted, "b": part(9.0, 4, validation=0, batch_size=2)}, {"a": 1, "b": 1})
    sampled = batches(mixed).reshape(-1, 2)
    assert set(sampled[sampled[:, 0] == 0, 1].tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("make", "weights", "message"),
    [
        (lambda: {"a": part(0.0)}, {"b": 1}, "mixture: the datasets are ['a'], the weights of ['b']; give one of each"),
        (lambda: {"a": part(0.0)}, {"a": 0}, "mixture: the weight of 'a' must be above 0, got 0"),
        (
            lambda: {"a": part(0.0), "b": part(0.0, batch_size=10)},
            {"a": 1, "b": 1},
            "mixture: batch_size is 10 in 'b', but 50 in 'a'; they must be the same",
        ),
        (
            lambda: {"a": data.from_iterable([{"inputs": np.zeros((5, 2))}])},
            {"a": 1},
            "mixture: 'a' is read batch by batch, not example by example; mix its batches in the function that makes them",
        ),
        (
            lambda: {"test": part(0.0)},
            {"test": 1},
            "mixture: an evaluation set cannot be named 'test'; allowed are letters, digits, '_', '-' and '.', and none of "
            "('train', 'validation', 'test')",
        ),
    ],
)
def test_slips_are_one_clear_line(make, weights, message):
    with pytest.raises(DataError) as caught:
        data.mixture(make(), weights)
    assert str(caught.value) == message
