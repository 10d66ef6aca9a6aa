"""Batches of Python code and of grain: exact from any step, or said not to be."""

import contextlib
import importlib.util
import itertools
import weakref

import chex
import grain
import jax
import numpy as np
import pytest

import foldax
from foldax import data
from foldax.data import sources
from foldax.engine import loop
from foldax.engine.checkpoint import Checkpoints
from foldax.errors import DataError
from tests.conftest import Config, tiny, tiny_dataset


def numbers(seed, epoch, count=10, batch=4):
    """Batches of random numbers, the last of which is smaller."""
    random = np.random.default_rng((seed, epoch))
    for i in range(count):
        yield {"inputs": random.normal(size=(batch if i < count - 1 else 1, 2)).astype(np.float32)}


def read(dataset, seed, step, count):
    """Returns batches `[count, B, ...]` of "inputs" from a step on."""
    blocks = dataset.train.blocks(seed, step)
    first = next(blocks)
    rest = itertools.islice(blocks, count // dataset.train.feed.batches + 1)
    batches = np.concatenate([np.asarray(block.data["inputs"]) for block in [first, *rest]])
    blocks.close()
    return batches[step - first.start :][:count]


def test_a_function_of_seed_and_epoch_is_read_from_any_step():
    dataset = data.from_iterable(numbers)
    assert dataset.nonresumable_reason is None
    whole = read(dataset, 3, 0, 40)
    expected = [batch["inputs"] for epoch in range(5) for batch in list(numbers(3, epoch))[:-1]]
    np.testing.assert_array_equal(whole, expected[:40])
    for step in (1, 16, 25):
        np.testing.assert_array_equal(read(dataset, 3, step, 15), whole[step : step + 15])
    assert not np.array_equal(whole, read(dataset, 4, 0, 40))
    np.testing.assert_array_equal(dataset.train.examples()["inputs"], next(numbers(0, 0))["inputs"])


def test_a_list_resumes_and_an_iterable_of_its_own_order_says_that_it_does_not():
    batches = list(numbers(0, 0))
    dataset = data.from_iterable(batches)
    assert dataset.nonresumable_reason is None
    np.testing.assert_array_equal(read(dataset, 0, 12, 3), [batch["inputs"] for batch in batches[3:6]])

    class Loader:
        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return numbers(0, self.passes)

    shuffled = data.from_iterable(Loader(), name="pets")
    assert shuffled.nonresumable_reason == (
        "pets: the order of Loader is its own: a resumed run starts a new pass, and has other bits; "
        "a function of (seed, epoch) in its place resumes exactly"
    )
    assert shuffled.info.fingerprint == data.from_iterable(Loader(), name="pets").info.fingerprint
    assert read(shuffled, 0, 12, 3).shape == (3, 4, 2)


def test_pairs_and_tensors_are_batches():
    class Tensor:
        """As a tensor of PyTorch on another device, which NumPy cannot read."""

        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def detach(self):
            return self

        def cpu(self):
            return self

        def numpy(self):
            return np.asarray(self.values)

        def __array__(self, *args, **kwargs):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    dataset = data.from_iterable([(Tensor([[1.0], [2.0]]), Tensor([0, 2]))], class_names=["a", "b", "c"])
    assert (dataset.info.num_classes, dataset.info.batch_size) == (3, 2)
    assert np.asarray(dataset.train.examples()["targets"]).tolist() == [0, 2]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_data_loader_of_pytorch():
    import torch

    arrays = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*arrays), batch_size=8, shuffle=True)
    dataset = data.from_iterable(loader, num_classes=2)
    assert dataset.info.shapes == {"inputs": (2,), "targets": ()}
    assert dataset.nonresumable_reason.startswith("iterable: the order of DataLoader is its own")


@pytest.mark.parametrize("kind", ["map", "iter", "function"])
def test_grain_datasets_are_read_from_any_step(kind):
    def make(seed):
        shuffled = grain.MapDataset.source(np.arange(40, dtype=np.float32)).shuffle(seed)
        batches = shuffled.batch(4, drop_remainder=True).map(lambda x: {"inputs": x})
        return batches if kind != "iter" else batches.to_iter_dataset()

    dataset = data.from_grain(make if kind == "function" else make(0))
    whole = read(dataset, 1, 0, 35)
    for epoch in (whole[:10], whole[10:20]):
        assert sorted(epoch.ravel().tolist()) == list(range(40))
    assert np.array_equal(whole[:10], whole[10:20]) == (kind == "iter")
    for step in (1, 16, 25):
        np.testing.assert_array_equal(read(dataset, 1, step, 10), whole[step : step + 10])
    assert np.array_equal(whole, read(dataset, 2, 0, 35)) == (kind != "function")


def test_a_run_trains_and_resumes_with_the_same_bits(tmp_path):
    config = Config()
    base = tiny_dataset(config)
    arrays = {key: np.asarray(value) for key, value in base.train.examples().items()}

    def batches(seed, epoch):
        rows = np.random.default_rng((seed, epoch)).permutation(len(arrays["targets"]))
        for start in range(0, len(rows), config.batch_size):
            yield {key: value[rows[start : start + config.batch_size]] for key, value in arrays.items()}

    sets = {"validation": base.splits["validation"], "test": [base.splits["test"].examples()], "ood": arrays}
    statistics = {"mean": base.info.mean, "std": base.info.std}
    dataset = data.from_iterable(batches, evaluation=sets, num_classes=base.info.num_classes, **statistics)
    whole = foldax.train(tiny, config, dataset=dataset, save=False, verbose=False)
    assert set(whole.metrics) == {"train", "validation", "test", "ood"}
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        hooks = loop.Callbacks(checkpoints=checkpoints)
        assert loop.fit(tiny, config, hooks, dataset, until=7).step == 7
        resumed = loop.fit(tiny, config, hooks, dataset)
    assert resumed.metrics["ood"] == whole.metrics["ood"]
    chex.assert_trees_all_equal(*(jax.device_get(result.final_state) for result in (whole, resumed)))


def test_a_run_that_cannot_resume_exactly_says_so_at_the_start(tmp_path, capsys):
    config = Config(steps=2)
    base = tiny_dataset(config)
    loader = {"only": base.train.examples()}.values()
    facts = {"num_classes": base.info.num_classes, "mean": base.info.mean, "std": base.info.std}
    dataset = data.from_iterable(loader, evaluation=base.splits, **facts)
    foldax.train(tiny, config, dataset=dataset, run_dir=tmp_path / "run")
    assert "note: iterable: the order of dict_values is its own" in " ".join(capsys.readouterr().out.split())
    assert "a function of (seed, epoch)" in (tmp_path / "run" / "manifest.json").read_text()


def test_batches_that_are_still_read_are_closed_at_exit(monkeypatch):
    monkeypatch.setattr(sources, "_OPEN", weakref.WeakSet())
    monkeypatch.setattr(sources, "RELEASE_SECONDS", 0)
    closed = []

    def batches(seed, epoch):
        try:
            yield from numbers(seed, epoch)
        finally:
            closed.append(epoch)

    blocks = data.from_iterable(batches).train.blocks(0, 0)
    next(blocks)
    closed.clear()
    sources._close_all()
    assert closed == [1]
    assert next(blocks, None) is None


def once():
    yield {"inputs": np.zeros((2, 3))}


SLIPS = {
    "a generator": (
        once(),
        {},
        "toy: generator objects can be read once, but every epoch, and a resumed run, reads them again; "
        "give a function of (seed, epoch) that makes one",
    ),
    "nothing": ([], {}, "toy: there are no batches"),
    "no iterable": (3, {}, "toy: expected an iterable of batches, or a function of (seed, epoch), not 3"),
    "no batch": (
        [np.zeros((3, 4))],
        {},
        "toy: expected a dict of arrays [B, ...], or a pair (inputs, targets), got ndarray",
    ),
    "lengths": (
        [(np.zeros((3, 4)), np.zeros(2))],
        {},
        "toy: all arrays of a batch must have the same number of examples, but 'inputs' has 3, 'targets' has 2",
    ),
    "texts": (
        [(np.zeros((2, 4)), ["a", "b"])],
        {},
        "'targets' of a batch must be an array of numbers, not <U1; number labels by np.unique(labels, return_inverse=True)",
    ),
    "classes": (
        [(np.zeros((3, 4)), np.zeros(3, int))],
        {},
        "toy: a batch does not show all classes of its integer targets; "
        "give num_classes or class_names, or float targets for regression",
    ),
    "a mean": (
        [{"inputs": np.zeros((3, 4))}],
        {"mean": np.zeros(3)},
        "toy: mean must be numbers [4], one for each column of 'inputs', got array([0., 0., 0.])",
    ),
    "an evaluation set": (
        [(np.zeros((3, 4)), np.zeros(3))],
        {"evaluation": {"test": [(np.zeros((3, 5)), np.zeros(3))]}},
        "toy, 'test': examples of a batch are 'inputs' float32[5], 'targets' float32[], "
        "but those of the first are 'inputs' float32[4], 'targets' float32[]",
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_slips_are_one_clear_line(case):
    batches, options, message = SLIPS[case]
    with pytest.raises(DataError) as caught:
        data.from_iterable(batches, name="toy", **options)
    assert str(caught.value) == message


def test_later_batches_must_be_as_the_first():
    def batches(seed, epoch):
        yield {"inputs": np.zeros((2, 3))}
        yield {"inputs": np.zeros((2, 4))}

    with pytest.raises(DataError) as caught:
        read(data.from_iterable(batches, name="toy"), 0, 0, 2)
    assert str(caught.value) == (
        "toy: examples of a batch are 'inputs' float32[4], but those of the first are 'inputs' float32[3]"
    )


def test_standardizing_by_unknown_statistics_is_an_error():
    with pytest.raises(DataError, match="iterable: mean and standard deviation of 'inputs' are not known; where"):
        data.from_iterable(numbers).info.standardize(np.zeros((1, 2)))


@pytest.mark.parametrize("make", [data.from_iterable, data.from_grain])
def test_other_statistics_are_another_dataset(make):
    rows = grain.MapDataset.source(np.zeros((8, 2), np.float32))
    batches = list(numbers(0, 0)) if make is data.from_iterable else rows.batch(4).map(lambda x: {"inputs": x})

    def info(mean, std):
        return make(batches, mean=mean, std=std).info

    assert info([0, 0], [1, 1]) == info(np.zeros(2), np.ones(2))
    assert len({info([0, 0], [1, 1]), info([0, 1], [1, 1]), info([0, 0], [1, 2]), info([0, 0], None)}) == 4


def test_slips_with_grain():
    source = grain.MapDataset.source(np.zeros((10, 2), np.float32))
    with pytest.raises(
        DataError, match="grain: expected a grain.MapDataset or grain.IterDataset, or a function of the"
    ):
        data.from_grain([1])
    with pytest.raises(DataError) as caught:
        data.from_grain(source.batch(4).map(lambda x: {"inputs": x}))
    assert str(caught.value) == (
        "grain: the last of its 3 batches has 2 examples, the first 4; make them with .batch(4, drop_remainder=True)"
    )
