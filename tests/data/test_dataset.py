"""Datasets by name and from arrays: what they hold, what they cost, and what they say when they cannot."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import ClassVar

import jax
import numpy as np
import pytest
import sklearn.datasets

from foldax import data
from foldax.data import bundled, cache, prepared
from foldax.errors import DataError

NAMES = ("digits", "breast_cancer", "wine", "iris", "diabetes")


def everything(dataset):
    """Returns all examples of a dataset, in the order of their splits."""
    parts = [dataset.train.examples()]
    for split in dataset.splits.values():
        for block in split.blocks():
            parts.append({key: array[block.mask] for key, array in block.batches.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize("name", NAMES)
def test_own_datasets_hold_what_scikit_learn_ships(name):
    dataset = data.load(name, batch_size=8)
    bunch = getattr(sklearn.datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    found = everything(dataset)
    inputs, targets = found["inputs"].reshape(len(bunch.target), -1), found["targets"]
    expected = np.column_stack([bunch.data, bunch.target]).astype(np.float32)
    rows = np.column_stack([inputs, targets]).astype(np.float32)
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    info = dataset.info
    assert sum(info.num_examples.values()) == len(bunch.target)
    assert found["inputs"].dtype == info.dtypes["inputs"] == (np.uint8 if name == "digits" else np.float32)
    if name == "diabetes":
        assert found["targets"].dtype == np.float32
        assert info.num_classes is info.class_names is info.class_counts is None
        train = dataset.train.examples()["targets"]
        np.testing.assert_allclose([info.target_mean, info.target_std], [np.mean(train), np.std(train)], rtol=1e-5)
    else:
        assert found["targets"].dtype == np.int32
        assert info.class_names == tuple(str(label) for label in bunch.target_names)
        assert info.class_counts == tuple(np.bincount(dataset.train.examples()["targets"]))
        assert info.target_mean is None
    assert info.feature_names == (None if name == "digits" else tuple(bunch.feature_names))


def test_digits_are_images():
    dataset = data.load("digits", batch_size=64)
    info = dataset.info
    assert info.shapes == {"inputs": (8, 8, 1), "targets": ()}
    assert info.num_examples == {"train": 1258, "validation": 180, "test": 359}
    assert info.num_classes == 10
    inputs = np.asarray(info.standardize(dataset.train.examples()["inputs"]))
    assert inputs.dtype == np.float32
    np.testing.assert_allclose([inputs.mean(), inputs.std()], [0, 1], atol=1e-4)


def test_constant_features_have_deviation_1():
    x = np.column_stack([np.full(50, 0.1), np.arange(50.0), np.full(50, 1e6)])
    info = data.from_arrays({"inputs": x}, batch_size=4).info
    assert info.std[0] == info.std[2] == 1.0
    assert np.all(info.standardize(x.astype(np.float32))[:, 0] == 0)


def test_moments_merged_over_blocks_are_those_of_the_whole(monkeypatch):
    x = 1e3 + np.random.default_rng(0).normal(size=(500, 3, 2)).astype(np.float32)
    monkeypatch.setattr("foldax.data.info.BLOCK_BYTES", 1000)
    dataset = data.from_arrays({"inputs": x}, batch_size=4, validation=0, test=0)
    np.testing.assert_allclose(dataset.info.mean, x.mean((0, 1), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(dataset.info.std, x.std((0, 1), dtype=np.float64), rtol=1e-5)


def test_the_same_facts_on_the_device_and_streamed():
    device, stream = (data.load("digits", batch_size=32, source=source) for source in ("device", "stream"))
    assert device.info == stream.info
    assert hash(device.info) == hash(stream.info)
    assert np.array_equal(device.info.mean, stream.info.mean)
    assert isinstance(stream.train, data.StreamSource)
    for split in ("validation", "test"):
        (a,), (b,) = device.splits[split].blocks(), stream.splits[split].blocks()
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_fingerprint_tells_content_and_splits():
    def fingerprint(x, key="inputs", **options):
        return data.from_arrays({key: x}, batch_size=4, **options).info.fingerprint

    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    base = fingerprint(x)
    assert base == fingerprint(x.copy()) == fingerprint(x, source="stream")
    others = [x + (x == 7), x.astype(np.int32), x.reshape(20, 2, 1)]
    prints = [
        base,
        *map(fingerprint, others),
        fingerprint(x, "z"),
        fingerprint(x, split_seed=1),
        fingerprint(x, test=0.3),
    ]
    assert len(set(prints)) == len(prints)


def test_infos_differ_by_batch_size():
    a, b = (data.load("iris", batch_size=size).info for size in (8, 16))
    assert a != b
    assert a == data.load("iris", batch_size=8).info


@pytest.mark.skipif(
    "fashion_mnist" not in bundled.bundled_names(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_keeps_its_own_test_split(monkeypatch, tmp_path):
    import gzip

    from foldax.data import builders, bundled

    monkeypatch.setattr(bundled, "FASHION_MNIST", tmp_path)
    monkeypatch.setattr(builders, "FASHION_MNIST", tmp_path)
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path / "cache"))
    images = {
        "train": np.arange(60 * 784).reshape(60, 28, 28) % 251,
        "t10k": np.arange(20 * 784).reshape(20, 28, 28) % 241,
    }
    for file, values in images.items():
        values = values.astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array(values.shape, ">u4").tobytes()
        (tmp_path / f"{file}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
        labels = (np.arange(len(values)) % 10).astype(np.uint8)
        header = b"\0\0\x08\x01" + np.array(labels.shape, ">u4").tobytes()
        (tmp_path / f"{file}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    dataset = data.load("fashion_mnist", batch_size=10)
    assert dataset.info.num_examples == {"train": 54, "validation": 6, "test": 20}
    assert dataset.info.class_names[9] == "Ankle boot"
    (block,) = dataset.splits["test"].blocks()
    assert np.array_equal(block.batches["inputs"].reshape(20, 28, 28), images["t10k"].astype(np.uint8))


def test_no_tensorflow_and_no_tfds_once_prepared(cache_folder):
    data.load("iris", batch_size=8)
    code = (
        "import sys; from foldax import data;"
        "data.load('iris', batch_size=8); print('tensorflow_datasets' in sys.modules);"
        "data.load('iris', batch_size=8, source='stream'); print('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_two_processes_prepare_at_the_same_time(tmp_path):
    code = "from foldax import data; print(data.load('wine', batch_size=8).info.fingerprint)"
    environment = {**os.environ, "FOLDAX_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] == data.load("wine", batch_size=8).info.fingerprint + "\n"
    assert not list(tmp_path.rglob("*incomplete*"))
    assert not list(tmp_path.rglob("*partial*"))


def test_what_a_killed_process_left_is_not_read(tmp_path, monkeypatch):
    whole = data.load("iris", batch_size=8)
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path))
    stale = tmp_path / "datasets" / "iris" / "1.0.0.incompleteABC_123"
    stale.mkdir(parents=True)
    (stale / "iris-train.array_record-00000-of-00001").write_bytes(b"half")
    assert data.load("iris", batch_size=8).info == whole.info
    assert not stale.exists()

    folder = tmp_path / "arrays" / "iris" / "1.0.0"
    kept = (folder / "inputs.npy").read_bytes()
    killed = folder.with_name("1.0.0.partial")
    killed.mkdir()
    (killed / "inputs.npy").write_bytes(b"half")
    for harm in (
        lambda: (folder / "dataset.json").unlink(),
        lambda: (folder / "dataset.json").write_text('{"half": '),
        lambda: (folder / "dataset.json").write_text('{"sizes": {"train": 150}}'),  # of another layout
        lambda: (folder / "dataset.json").write_text('{"layout": -1, "value": {}}'),
        lambda: (folder / "dataset.json").write_text("[150]"),
        lambda: (folder / "inputs.npy").write_bytes(b""),
        lambda: (folder / "inputs.npy").write_bytes(kept[: len(kept) // 2]),
        lambda: (folder / "targets.npy").unlink(),
        lambda: np.save(folder / "inputs.npy", np.zeros((150, 3), np.float32)),
    ):
        harm()
        again = data.load("iris", batch_size=8)
        assert again.info == whole.info
        assert (folder / "inputs.npy").read_bytes() == kept
        assert json.loads((folder / "dataset.json").read_text())["layout"] == cache.LAYOUT
    assert not killed.exists()


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path.parent / os.path.basename(os.environ["FOLDAX_CACHE"])
    monkeypatch.delenv("FOLDAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "foldax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "foldax"


class TestFromArrays:
    def test_dtypes(self):
        x, y = np.arange(60.0).reshape(20, 3), np.arange(20) % 2
        dataset = data.from_arrays({"inputs": x, "targets": y, "weights": np.ones(20, bool)}, batch_size=4)
        assert {key: str(dtype) for key, dtype in dataset.info.dtypes.items()} == {
            "inputs": "float32",
            "targets": "int32",
            "weights": "bool",
        }
        assert dataset.info.num_classes == 2
        assert data.from_arrays({"inputs": x, "targets": x[:, 0]}, batch_size=4).info.num_classes is None

    def test_unsupervised(self):
        dataset = data.from_arrays({"z": np.arange(20)}, batch_size=4)
        assert dataset.info.mean is dataset.info.num_classes is None
        assert sorted(everything(dataset)["z"]) == list(range(20))

    def test_classes(self):
        y = np.arange(20) % 2
        info = data.from_arrays({"targets": y}, batch_size=4, class_names=("a", "b", "c")).info
        assert (info.num_classes, info.class_counts) == (3, (7, 7, 0))

    def test_a_split_of_fraction_0_is_absent(self):
        dataset = data.from_arrays({"inputs": np.arange(20)}, batch_size=4, validation=0)
        assert list(dataset.splits) == ["test"]
        assert list(dataset.info.num_examples) == ["train", "test"]

    @pytest.mark.parametrize(
        ("arrays", "options", "says"),
        [
            ({"inputs": [1.0, np.nan, 2.0]}, {}, "'inputs' has values that are not finite, first in example 1"),
            ({"inputs": np.ones(9), "extra": np.full((9, 2), np.inf)}, {}, "'extra' has values"),
            ({"inputs": np.ones(9), "targets": np.ones(8)}, {}, "'inputs' has 9, 'targets' has 8"),
            ({}, {}, "there is none"),
            ({"inputs": np.array(["a", "b"])}, {}, "must be an array of numbers"),
            ({"inputs": np.array([[1], [1, 2]], dtype=object)}, {}, "must be an array of numbers"),
            ({"inputs": np.ones(20)}, {"batch_size": 15}, "batch_size=15 .* which has 14 examples"),
            ({"inputs": np.ones(20)}, {"batch_size": 0}, "batch_size=0 is too small"),
            ({"inputs": np.ones(20)}, {"workers": -1}, "workers=-1"),
            ({"inputs": np.ones(20)}, {"source": "devise"}, "did you mean 'device'"),
            ({"inputs": np.ones(20)}, {"test": 1.5}, r"test=1\.5"),
            ({"inputs": np.ones(3)}, {}, "is none"),
            ({"inputs": np.ones((0, 2))}, {}, "no examples"),
            ({"targets": np.array([-1, 0, 1])}, {}, "from -1 to 1"),
            ({"targets": np.array([0, 5])}, {"num_classes": 3}, "classes 0 to 2, but they go from 0 to 5"),
            ({"targets": np.array([0, 1])}, {"num_classes": 3, "class_names": ("a",)}, "1 class_names"),
            ({"targets": np.array([0.5, 1])}, {"num_classes": 3}, "need integer targets"),
        ],
    )
    def test_what_does_not_fit(self, arrays, options, says):
        with pytest.raises(DataError, match=says):
            data.from_arrays(arrays, **{"batch_size": 2, **options})


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no dataset 'digit'; did you mean 'digits'"):
        data.load("digit", batch_size=8)
    with pytest.raises(DataError, match=r"did you mean 'cifar100'"):
        data.load("cifar1000", batch_size=8)
    with pytest.raises(DataError, match="no dataset 'mnist/nope'"):
        data.load("mnist/nope", batch_size=8)


def test_what_cannot_be_batched_is_said_before_it_is_downloaded():
    with pytest.raises(DataError, match="'cats_vs_dogs' cannot be batched"):
        data.load("cats_vs_dogs", batch_size=8)


@pytest.mark.skipif(
    importlib.util.find_spec("importlib_resources") is None, reason="TFDS needs it for its own datasets"
)
def test_without_a_network(monkeypatch, cache_folder):
    def unknown_host(host, *rest):
        raise OSError(f"{host} is not known")

    monkeypatch.setattr(prepared.socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(prepared.urllib.request, "getproxies", dict)
    with pytest.raises(DataError) as caught:
        data.load("mnist", batch_size=8)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'mnist'", "must be downloaded", "no connection", str(cache_folder), "digits"):
        assert part in message


def test_other_failures_are_one_line(monkeypatch):
    monkeypatch.setattr(prepared, "_check_connection", lambda builder, folder: 1 / 0)
    with pytest.raises(DataError, match=r"'mnist' could not be prepared in .*: ZeroDivisionError: division by zero"):
        data.load("mnist", batch_size=8)


class TestNamedSets:
    """Evaluation sets beside validation and test."""

    arrays: ClassVar = {"inputs": np.arange(40.0).reshape(20, 2), "targets": np.arange(20) % 2}

    def make(self, evaluation, **options):
        return data.from_arrays(self.arrays, batch_size=4, name="toy", evaluation=evaluation, **options)

    def test_they_are_splits_and_part_of_the_fingerprint(self):
        ood = {"inputs": np.full((5, 2), 7.0), "targets": np.ones(5, int)}
        dataset = self.make({"ood": ood, "other": data.from_arrays(self.arrays, batch_size=4).splits["test"]})
        assert list(dataset.splits) == ["validation", "test", "ood", "other"]
        assert dataset.info.num_examples == {"train": 14, "validation": 2, "test": 4, "ood": 5, "other": 4}
        for key, array in ood.items():
            np.testing.assert_array_equal(dataset.splits["ood"].examples()[key], array)
        changed = {**ood, "inputs": ood["inputs"] + 1}
        prints = {self.make(sets).info.fingerprint for sets in (None, {"ood": ood}, {"ood": changed}, {"far": ood})}
        assert len(prints) == 4
        assert self.make({}).info.fingerprint == self.make(None).info.fingerprint

    @pytest.mark.parametrize(
        ("evaluation", "message"),
        [
            (
                {"test": arrays},
                "toy: an evaluation set cannot be named 'test'; allowed are letters, digits, '_', '-' and '.', and none of "
                "('train', 'validation', 'test')",
            ),
            ({"ood": np.zeros((5, 2))}, "toy: evaluation set 'ood' is ndarray, expected arrays by key, as those of the training split"),
            (
                {"ood": {"inputs": np.zeros((5, 2))}},
                "toy: split 'ood' has the keys ['inputs'], but 'train' has ['inputs', 'targets']; all splits must have the same",
            ),
            (
                {"ood": {"inputs": np.zeros((5, 3)), "targets": np.zeros(5, int)}},
                "toy: examples of 'inputs' are float32[3] in split 'ood', but float32[2] in 'train'; all splits must have the same",
            ),
            (
                {"ood": {"inputs": np.zeros((5, 2)), "targets": np.full(5, 2)}},
                "toy: 'targets' of split 'ood' must be classes 0 to 1, but they go from 2 to 2",
            ),
            ({"ood": {"inputs": np.zeros((0, 2)), "targets": np.zeros(0, int)}}, "toy: evaluation set 'ood' has no examples"),
        ],
    )  # fmt: skip
    def test_slips_are_one_clear_line(self, evaluation, message):
        with pytest.raises(DataError) as caught:
            self.make(evaluation)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "64"}, "batch_size='64' is no integer"),
        ({"batch_size": 4.5}, "batch_size=4.5 is no integer"),
        ({"batch_size": 4, "workers": None, "train_examples": 0.5}, "train_examples=0.5 is no integer"),
        ({"batch_size": 4, "validation": "0.1"}, "validation='0.1' is no number; it is the fraction of a split"),
        ({"batch_size": 4, "evaluation": [1]}, "evaluation must be a dict of sets by name, not list"),
        ({"batch_size": 4, "transform": 3}, "transform must be a function of a batch and a random generator, not 3"),
        ({}, "batch_size is missing: give the number of examples of a training batch"),
    ],
)
def test_slips_in_options_are_one_clear_line(options, message):
    with pytest.raises(DataError) as caught:
        data.from_arrays({"inputs": np.zeros((20, 2))}, **options)
    assert str(caught.value) == message
