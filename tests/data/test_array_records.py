"""Shards of ArrayRecord: every example once an epoch, in an order of the seed, from any step; mixtures by weight."""

import itertools

import numpy as np
import pytest

from foldax import data
from foldax.errors import ConfigError, DataError


def write(folder, numbers, name="train", num_shards=3):
    examples = ({"inputs": np.full(2, number, np.int32)} for number in numbers)
    return data.write_array_records(folder, examples, name=name, num_shards=num_shards)


def batches(dataset, seed, step, count):
    """The first number of each example, `[count, B]`."""
    blocks = dataset.train.blocks(seed, step)
    block = next(blocks)
    rows = list(np.asarray(block.data["inputs"])[step - block.start :, :, 0])
    while len(rows) < count:
        rows.extend(np.asarray(next(blocks).data["inputs"])[:, :, 0])
    return np.stack(rows[:count])


def test_every_example_once_an_epoch_in_an_order_of_the_seed_from_any_step(tmp_path):
    write(tmp_path, range(40))
    write(tmp_path, range(5), "other", 2)
    files, evaluation = f"{tmp_path}/train-*", {"test": f"{tmp_path}/other-*"}
    dataset = data.from_array_records(files, batch_size=8, vocabulary_size=40, evaluation=evaluation)
    assert sorted(dataset.splits["test"].examples()["inputs"][:, 0]) == list(range(5))
    whole = batches(dataset, 7, 0, 30)
    epochs = [whole[start : start + 5].ravel() for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert not any((a == b).all() for a, b in itertools.combinations(epochs, 2))
    assert (whole[0] % 3 != whole[0, 0] % 3).any()  # not of one shard
    reopened = data.from_array_records(sorted(tmp_path.glob("train-*")), batch_size=8, vocabulary_size=40)
    np.testing.assert_array_equal(batches(reopened, 7, 23, 7), whole[23:])
    assert (batches(dataset, 8, 0, 5) != whole[:5]).any()
    assert dataset.nonresumable_reason is None


def test_corpora_are_mixed_by_weight_and_each_starts_anew_at_its_own_end(tmp_path):
    write(tmp_path, range(10), "small", 1), write(tmp_path, range(100, 400), "large")
    files = {name: f"{tmp_path}/{name}-*" for name in ("small", "large")}
    weights = {"small": 3, "large": 1}
    dataset = data.from_array_records(files, weights=weights, batch_size=16, vocabulary_size=400)
    rows = batches(dataset, 0, 0, 20)
    assert (rows < 100).mean() == pytest.approx(0.75, abs=0.02)
    small = rows[rows < 100]
    assert sorted(small[:10]) == sorted(small[10:20]) == list(range(10))
    assert list(small[:10]) != list(small[10:20])
    np.testing.assert_array_equal(batches(dataset, 0, 11, 4), rows[11:15])


def test_records_of_others_are_decoded_by_a_function(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "raw"), "group_size:1")
    for number in range(4):
        writer.write(bytes([number] * 3))
    writer.close()
    decode = lambda record: {"inputs": np.frombuffer(record, np.uint8)}  # noqa: E731
    dataset = data.from_array_records(tmp_path / "raw", batch_size=2, decode=decode, vocabulary_size=4)
    assert dataset.info.shapes == {"inputs": (3,)}


def test_slips_are_errors_that_name_them(tmp_path):
    write(tmp_path, range(4), num_shards=1)
    files = f"{tmp_path}/*"
    with pytest.raises(DataError, match=r"text: no file fits .*none-\*"):
        data.from_array_records({"text": f"{tmp_path}/none-*"}, batch_size=2)
    with pytest.raises(DataError, match="a batch of 5 is more than the 4 examples"):
        data.from_array_records(files, batch_size=5)
    with pytest.raises(DataError, match="give each corpus a weight above 0"):
        data.from_array_records({"a": files, "b": files}, weights={"a": 1.0}, batch_size=2)
    with pytest.raises(DataError, match="1 examples do not fill 2 shards"):
        write(tmp_path / "few", [1], num_shards=2)
    with pytest.raises(DataError, match="'text' must be numbers"):
        data.write_array_records(tmp_path, [{"text": "words"}])
    with pytest.raises(ConfigError, match="num_shards: 0"):
        write(tmp_path, [1], num_shards=0)
    (tmp_path / "other.txt").write_text("no records")
    with pytest.raises(DataError, match="cannot be read as ArrayRecord"):
        data.from_array_records(tmp_path / "other.txt", batch_size=1)
