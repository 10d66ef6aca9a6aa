"""Hugging Face datasets: columns become arrays, in memory and from Arrow files."""

import importlib.util

import numpy as np
import pytest

from foldax import data
from foldax.errors import DataError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed: pip install 'foldax[huggingface]'"
)


def table(count=20, names=("cat", "dog"), **columns):
    import datasets

    i = np.arange(count)
    features = {
        "length": datasets.Value("float32"),
        "count": datasets.Value("int64"),
        "pet": datasets.ClassLabel(names=list(names)),
        "name": datasets.Value("string"),
    }
    values = {"length": i / 2, "count": i, "pet": i % 2, "name": [f"n{k}" for k in i]} | columns
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def whole(dataset, **options):
    options = {"inputs": ["length", "count"], "targets": "pet", "batch_size": 2, "validation": 0, "test": 0, **options}
    return data.from_huggingface(dataset, **options)


@pytest.mark.parametrize("source", ["device", "stream"])
def test_columns_become_inputs_and_classes(source):
    dataset = whole(table(), source=source)
    assert dataset.info.class_names == ("cat", "dog")
    assert dataset.info.feature_names == ("length", "count")
    block = next(dataset.train.blocks(0, 0)).data if source == "stream" else dataset.train.examples()
    inputs, targets = (
        np.asarray(block[key]).reshape(-1, *dataset.info.shapes[key])[:20] for key in ("inputs", "targets")
    )
    rows = np.argsort(inputs[:, 1])
    np.testing.assert_array_equal(inputs[rows], np.stack([np.arange(20) / 2, np.arange(20)], 1))
    np.testing.assert_array_equal(targets[rows], np.arange(20) % 2)


def test_splits_and_named_sets(tmp_path):
    import datasets

    by_split = datasets.DatasetDict(train=table(10), test=table(4))
    by_split.save_to_disk(tmp_path / "pets")
    read = datasets.load_from_disk(tmp_path / "pets")
    dataset = whole(read, test=0.2, evaluation={"ood": table(3)})
    assert dataset.info.num_examples == {"train": 10, "test": 4, "ood": 3}
    assert dataset.splits["test"].examples()["inputs"][:, 1].tolist() == [0, 1, 2, 3]
    assert whole(read, test=0.2).info == whole(by_split, test=0.2).info


def test_images_and_numbers_as_targets():
    import datasets

    images = [np.full((3, 4), i, np.uint8) for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "score": datasets.Value("float64")})
    rows = datasets.Dataset.from_dict({"image": images, "score": np.arange(4.0)}, features=features)
    dataset = whole(rows, inputs="image", targets="score")
    assert dataset.info.shapes == {"inputs": (3, 4, 1), "targets": ()}
    assert np.asarray(dataset.train.examples()["inputs"])[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert dataset.info.num_classes is None


def test_rows_that_were_filtered_out_do_not_count():
    import datasets

    rows = table(pet=[-1, 0, 1, 0] * 5)
    known = rows.filter(lambda row: row["pet"] >= 0)
    dataset = whole(known)
    assert dataset.info.class_counts == (10, 5)
    numbers = known.cast_column("pet", datasets.Value("int32"))
    assert whole(numbers.filter(lambda row: row["pet"] == 0)).info.num_classes == 1


def test_classes_of_an_evaluation_set_are_those_of_their_names():
    other = table(4, names=["dog", "cat"])
    dataset = whole(table(), evaluation={"other": other, "same": table(4)})
    assert dataset.splits["other"].examples()["targets"].tolist() == [1, 0, 1, 0]
    assert dataset.splits["same"].examples()["targets"].tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError) as caught:
        whole(table(), evaluation={"other": table(4, names=["cat", "eel"])})
    assert str(caught.value) == (
        "huggingface, split 'other': column 'pet' has the class 'eel', but 'train' has cat, dog; "
        "rename or drop it (dataset.cast_column, dataset.filter)"
    )
    with pytest.raises(DataError, match="must be classes 0 to 1, but they go from -1 to 1"):
        whole(table(), evaluation={"other": table(3, names=["dog", "cat"], pet=[-1, 0, 1])})


SLIPS = {
    "a column": (
        {},
        {"targets": "pets"},
        "huggingface, split 'train': there is no column 'pets'; did you mean 'pet'? (columns: length, count, pet, name)",
    ),
    "texts": (
        {},
        {"targets": "name"},
        "huggingface: column 'name' (Value) has no numbers but <U2; "
        "dataset.class_encode_column numbers classes; tokenize other texts with dataset.map",
    ),
    "secret labels": (
        {"pet": [-1] * 20},
        {},
        "huggingface: column 'pet' has the label -1; "
        "leave out the split, or the rows (dataset.filter), whose labels are not published",
    ),
    "missing values": (
        {"length": [None] * 20},
        {},
        "huggingface: column 'length' has values that are not finite, first in example 0; leave it out or fill it in",
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_slips_are_one_clear_line(case):
    columns, options, message = SLIPS[case]
    with pytest.raises(DataError) as caught:
        whole(table(**columns), **options)
    assert str(caught.value) == message


def test_other_slips():
    import datasets

    with pytest.raises(DataError, match="split 'train': expected a datasets.Dataset, not ndarray; read an Iterable"):
        whole(np.zeros(3))
    ragged = datasets.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "y": [0.0, 1.0]})
    with pytest.raises(DataError, match=r"rows of column 'x' differ.*\[1\].*make them equal with dataset.map"):
        whole(ragged, inputs="x", targets="y", batch_size=1)
    with pytest.raises(DataError, match="there is no split 'tset'; did you mean 'test'"):
        whole(datasets.DatasetDict(train=table(4), tset=table(4)))
