"""Where batches come from: each example once an epoch, the same wherever one starts."""

import gc
import itertools
import os
import pickle
import select
import subprocess
import sys
import threading
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import data
from foldax.data import sources
from foldax.data.info import ArrayExamples
from foldax.errors import DataError

X = np.arange(50, dtype=np.int32)


def numbers(source, batch_size=4, **options):
    """A dataset whose examples are their own numbers, in one training split."""
    arrays = {"inputs": X, "pairs": np.stack([X, -X], 1)}
    return data.from_arrays(arrays, batch_size=batch_size, source=source, **{"validation": 0, "test": 0, **options})


def small_blocks(dataset, batches):
    dataset.train.feed = dataset.train.feed._replace(batches=batches)
    return dataset.train


@pytest.fixture(scope="module")
def device_batches():
    source = numbers("device").train
    (block,) = source.blocks(0, 0)
    step = jax.jit(lambda data, key, step: source.feed.batch(data, key, step, jnp.int32(block.start)))
    return lambda seed, steps: [step(block.data, jax.random.key(seed), jnp.int32(i)) for i in steps]


def test_device_epochs_have_each_example_at_most_once(device_batches):
    first, second = (
        np.concatenate([b["inputs"] for b in device_batches(0, range(e * 12, e * 12 + 12))]) for e in (0, 1)
    )
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == 48
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:4], device_batches(1, [0])[0]["inputs"])


def test_keys_stay_together(device_batches):
    for batch in device_batches(0, range(3)):
        assert np.array_equal(batch["pairs"][:, 0], batch["inputs"])
        assert np.array_equal(batch["pairs"][:, 1], -batch["inputs"])


def test_device_source_serves_every_step_with_one_block():
    dataset = data.load("digits", batch_size=64)
    (block,) = dataset.train.blocks(0, 1000)
    assert block[1:] == (0, None)
    assert block.data is dataset.train.examples()
    hash(dataset.train.feed)


def test_the_feed_and_the_info_are_static_arguments():
    traces = []

    def batch(info, feed, block, step):
        traces.append(1)
        return info.standardize(feed.batch(block, jax.random.key(0), step, jnp.int32(0))["inputs"])

    jitted = jax.jit(batch, static_argnums=(0, 1))
    for _ in range(2):
        dataset = data.load("iris", batch_size=8)
        jitted(dataset.info, dataset.train.feed, dataset.train.examples(), jnp.int32(0))
    assert len(traces) == 1


def stream(source, seed, step, count=6):
    """Returns the first blocks from `step` on as (start, end, examples' numbers [K, B])."""
    iterator = source.blocks(seed, step)
    blocks = [(b.start, b.end, np.asarray(b.data["inputs"])) for b in itertools.islice(iterator, count)]
    iterator.close()
    return blocks


def test_stream_epochs_have_each_example_at_most_once():
    blocks = stream(small_blocks(numbers("stream"), 5), 0, 0)
    assert [(start, end) for start, end, _ in blocks] == [(i * 5, i * 5 + 5) for i in range(6)]
    batches = np.concatenate([values for *_, values in blocks])
    assert batches.shape == (30, 4)
    epochs = [batches[:12].ravel(), batches[12:24].ravel()]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert not np.array_equal(*epochs)
    assert not np.array_equal(batches[0], stream(small_blocks(numbers("stream"), 5), 1, 0, count=1)[0][2][0])


@pytest.mark.parametrize("size", [5, 3])
def test_a_stream_goes_on_where_it_was_also_in_blocks_of_another_size(size):
    whole = stream(small_blocks(numbers("stream"), 5), 3, 0)
    batches = np.concatenate([block for *_, block in whole])
    for step in (0, 5, 13, 14):
        for start, end, block in stream(small_blocks(numbers("stream"), size), 3, step, count=2):
            assert start % size == 0
            assert end == start + size
            np.testing.assert_array_equal(block, batches[start:end])
            assert step < end


def test_stream_feed_takes_the_step_of_its_block():
    source = small_blocks(numbers("stream"), 5)
    iterator = source.blocks(0, 12)
    block = next(iterator)
    iterator.close()
    batch = source.feed.batch(block.data, jax.random.key(0), jnp.int32(12), jnp.int32(block.start))
    assert np.array_equal(batch["inputs"], block.data["inputs"][2])
    assert batch["pairs"].shape == (4, 2)
    assert source.examples()["pairs"].shape == (4, 2)


def test_a_prepared_dataset_streams_what_it_holds():
    dataset = data.load("digits", batch_size=100, source="stream", validation=0, test=0)
    iterator = small_blocks(dataset, 17).blocks(0, 0)
    block = next(iterator)
    iterator.close()
    images = np.asarray(block.data["inputs"]).reshape(1700, 64)
    whole = data.load("digits", batch_size=100, validation=0, test=0).train.examples()
    known = {row.tobytes(): int(label) for row, label in zip(np.asarray(whole["inputs"]), np.asarray(whole["targets"]))}
    assert [known[row.tobytes()] for row in images] == np.asarray(block.data["targets"]).ravel().tolist()


def test_worker_processes_give_the_same_order():
    one = stream(small_blocks(numbers("stream"), 5), 3, 7, count=3)
    two = stream(small_blocks(numbers("stream", workers=2), 5), 3, 7, count=3)
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(one, two, strict=True))


def jitter(batch, random):
    return {**batch, "pairs": batch["pairs"] + random.integers(0, 1_000, batch["pairs"].shape, np.int32)}


def test_a_transform_depends_on_seed_and_step_alone():
    def pairs(seed, step, size, workers=0, count=2):
        source = small_blocks(numbers("stream", workers=workers, transform=jitter), size)
        blocks = source.blocks(seed, step)
        first = next(blocks)
        batches = np.concatenate([np.asarray(b.data["pairs"]) for b in [first, *itertools.islice(blocks, count)]])
        blocks.close()
        return batches[step - first.start :]

    whole = pairs(3, 0, 5, count=4)
    assert len(np.unique(whole)) > 100
    np.testing.assert_array_equal(pairs(3, 7, 3)[:6], whole[7:13])
    np.testing.assert_array_equal(pairs(3, 7, 3, workers=1)[:6], whole[7:13])
    assert not np.array_equal(pairs(4, 0, 5)[:5], whole[:5])
    assert isinstance(numbers("device", transform=jitter).train, data.StreamSource)


def test_a_transform_that_changes_shapes_is_an_error():
    with pytest.raises(DataError) as caught:
        numbers("stream", transform=lambda batch, random: {**batch, "pairs": batch["pairs"][:, :1]})
    assert str(caught.value) == (
        "transform: it must return arrays as it gets, 'inputs' int32[4], 'pairs' int32[4, 2]; it returned "
        "'inputs' int32[4], 'pairs' int32[4, 1]; change shapes and dtypes of all splits before the dataset is made"
    )


def test_worker_processes_share_a_mapped_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40_000.0).reshape(-1, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    examples = ArrayExamples({"view": np.asarray(mapped)[500:], "columns": mapped[:, 1][:5], "array": np.arange(3)})
    pickled = pickle.dumps(examples)
    assert len(pickled) < 2_000
    for key, array in pickle.loads(pickled).arrays.items():
        np.testing.assert_array_equal(array, examples.arrays[key])


def test_worker_processes_share_arrays_in_memory(monkeypatch):
    monkeypatch.setattr("foldax.data.info.PICKLED_BYTES", 100)
    source = numbers("stream", workers=2).train
    folder = Path(source.all_examples.folder)
    assert len(list(folder.iterdir())) == 2
    assert len(pickle.dumps(source.all_examples)) < 1_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source.all_examples)).arrays["inputs"], X)
    del source
    gc.collect()
    assert not folder.exists()


def test_closing_a_stream_ends_its_threads():
    before = set(threading.enumerate())
    iterator = small_blocks(numbers("stream"), 5).blocks(0, 0)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    del iterator
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize(("batch_size", "batches"), [(4, 64), (4_000, 8), (40_000, 1)])
def test_blocks_of_large_batches_are_small_because_closing_waits_for_them(batch_size, batches):
    arrays = {"inputs": np.zeros(40_000, np.int8)}
    dataset = data.from_arrays(arrays, batch_size=batch_size, source="stream", validation=0, test=0)
    assert dataset.train.feed.batches == batches


@pytest.mark.parametrize("source", ["device", "stream"])
@pytest.mark.parametrize("size", [1, 7, 25])
def test_evaluation_sees_each_example_once_and_in_order(source, size, monkeypatch):
    monkeypatch.setattr("foldax.data.sources.MAX_BATCHES", 3)
    dataset = numbers(source, test=0.5, evaluate_batch_size=size)
    split = dataset.splits["test"]
    blocks = list(split.blocks())
    assert split.num_examples == dataset.info.num_examples["test"] == 25
    shapes = {(block.batches["pairs"].shape, block.mask.shape) for block in blocks}
    assert len(shapes) == 1
    assert next(iter(shapes))[1][1] == size
    seen = np.concatenate([np.asarray(block.batches["inputs"])[np.asarray(block.mask)] for block in blocks])
    assert len(seen) == 25
    assert np.all(np.diff(seen) > 0)
    padding = np.concatenate([np.asarray(block.batches["inputs"])[~np.asarray(block.mask)] for block in blocks])
    assert np.all(padding == seen[0])


def test_device_splits_are_read_once():
    split = numbers("device", test=0.5).splits["test"]
    (one,), (two,) = split.blocks(), split.blocks()
    assert one is two


def test_a_split_smaller_than_a_batch():
    split = numbers("device", batch_size=30, validation=0.1).splits["validation"]
    (block,) = split.blocks()
    assert block.mask.shape == (1, 5)
    assert block.mask.all()


def test_memory_that_workers_share_is_released_at_exit():
    def shared():
        return [one for one in gc.get_objects() if type(one) is SharedMemory]

    arrays = {"inputs": np.ones((3_000, 5))}
    blocks = data.from_arrays(arrays, batch_size=16, source="stream", workers=1).train.blocks(0, 0)
    block = next(blocks)
    assert shared()
    blocks.close()
    del block
    sources._close_all()
    assert not shared()


SCRIPT = """
import multiprocessing, sys
import numpy as np
from foldax import data
dataset = data.from_arrays({"inputs": np.arange(400_000.0)}, batch_size=4, source="stream", workers=2)
blocks = dataset.train.blocks(0, 0)
next(blocks), next(blocks)  # a worker starts when it is asked for its first block
print(__file__, dataset.train.all_examples.folder, *(process.pid for process in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


def test_workers_need_no_guard_in_the_script_and_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        file, folder, *workers = process.stdout.readline().split()
        assert file == str(script)
        assert Path(folder).is_dir()
        assert len(workers) == 2
        descriptors = [os.pidfd_open(int(worker)) for worker in workers]
        process.kill()
        for descriptor in descriptors:
            ended, _, _ = select.select([descriptor], [], [], 60)
            os.close(descriptor)
            assert ended
    assert not Path(folder).exists()


def test_a_worker_that_was_killed_is_an_error_with_advice():
    def blocks():
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above.")
        yield

    with pytest.raises(DataError, match=r"a process that reads the stream ended \(.* with exit code -9\); .* or 0"):
        sources._next_block(blocks())
