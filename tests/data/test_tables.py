"""Tables: columns become features and targets by name, and every message names the column."""

import numpy as np
import pytest
import sklearn.datasets

from foldax import data
from foldax.errors import DataError

ROWS = [
    f"{i / 2},{i % 7},{'yes' if i % 3 else 'no'},{('red', 'blue')[i % 2]},{('cat', 'dog')[i % 2]}" for i in range(20)
]
HEADER = "length,count,tame,color,pet"


@pytest.fixture
def write(tmp_path):
    def write(rows, header=HEADER, name="pets.csv"):
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


def whole(path, **options):
    """All rows in their order, in the training split, as arrays; and the info."""
    options = {"targets": "pet", "batch_size": 2, "validation": 0, "test": 0, **options}
    dataset = data.from_csv(path, **options)
    return {key: np.asarray(array) for key, array in dataset.train.examples().items()}, dataset.info


def test_columns_become_features_and_classes_by_name(write):
    arrays, info = whole(write(ROWS))
    assert info.name == "pets"
    assert info.feature_names == ("length", "count", "tame=no", "tame=yes", "color=blue", "color=red")
    assert info.class_names == ("cat", "dog")
    i = np.arange(20)
    columns = [i / 2, i % 7, i % 3 == 0, i % 3 > 0, i % 2, i % 2 == 0]
    np.testing.assert_array_equal(arrays["inputs"], np.stack(columns, 1).astype(np.float32))
    np.testing.assert_array_equal(arrays["targets"], i % 2)


def test_the_same_dataset_as_from_arrays(write):
    bunch = sklearn.datasets.load_iris()
    rows = [",".join(map(repr, [*map(float, x), str(bunch.target_names[y])])) for x, y in zip(bunch.data, bunch.target)]
    path = write([row.replace("'", "") for row in rows], ",".join([*bunch.feature_names, "species"]), "iris.csv")
    read = data.from_csv(path, targets="species", batch_size=8)
    arrays = {"inputs": bunch.data.astype(np.float32), "targets": bunch.target}
    names = {"class_names": bunch.target_names, "feature_names": bunch.feature_names}
    assert read.info == data.from_arrays(arrays, name="iris", batch_size=8, **names).info


def test_inputs_are_chosen_and_targets_may_be_absent_or_numbers(write):
    path = write(ROWS)
    arrays, info = whole(path, inputs=["count", "length"])
    assert info.feature_names == ("count", "length")
    arrays, info = whole(path, targets=None, inputs=["count"])
    assert set(arrays) == {"inputs"}
    arrays, info = whole(path, targets="length", inputs=["count"])
    assert arrays["targets"].dtype == np.float32
    assert info.num_classes is None
    arrays, info = whole(path, targets="count", inputs=["length"])
    assert info.class_names == tuple("0123456")
    assert whole(path, targets="count", inputs=["length"], task="regression")[1].num_classes is None


def test_files_by_split_share_classes_and_categories(write):
    train, test = write(ROWS[:10]), write(["1,2,never,green,dog", "1,2,no,red,eel"], name="other.csv")
    dataset = data.from_csv({"train": train, "test": test}, targets="pet", batch_size=2, validation=0)
    assert dataset.info.num_examples == {"train": 10, "test": 2}
    assert dataset.info.class_names == ("cat", "dog", "eel")
    assert dataset.info.feature_names[2:5] == ("tame=never", "tame=no", "tame=yes")
    assert dataset.splits["test"].examples()["targets"].tolist() == [1, 2]


def test_a_named_set_is_a_file_with_the_same_columns(write):
    ood = write(["3,4,no,blue,dog", "5,,yes,red,cat"], name="ood.csv")
    options = {"targets": "pet", "batch_size": 2, "missing": "mean"}
    dataset = data.from_csv(write(ROWS), evaluation={"ood": ood}, **options)
    assert dataset.info.num_examples["ood"] == 2
    assert dataset.splits["ood"].examples()["targets"].tolist() == [1, 0]
    train = np.asarray(dataset.train.examples()["inputs"])
    np.testing.assert_allclose(dataset.splits["ood"].examples()["inputs"][:, 1], [4, train[:, 1].mean()], rtol=1e-6)


MISSING = ["1,,yes,red,cat", ",2,,blue,dog"]


def test_missing_values_are_filled_in_by_means_of_the_training_split(write):
    path = write([*ROWS, *MISSING])
    dropped, _ = whole(path, missing="drop")
    assert len(dropped["targets"]) == 20
    filled, info = whole(path, missing="mean")
    i = np.arange(20)
    np.testing.assert_allclose(filled["inputs"][20, 1], np.append(i % 7, 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(filled["inputs"][21, 0], np.append(i / 2, 1).mean(), rtol=1e-6)
    assert filled["inputs"][21, 2:4].tolist() == [0, 0]
    marked, info = whole(path, missing="indicator")
    names = ["length is missing", "count is missing", "tame is missing"]
    columns = [info.feature_names.index(name) for name in names]
    assert marked["inputs"][20:, columns].tolist() == [[0, 1, 0], [1, 0, 1]]


def test_means_are_those_of_the_training_split_alone(write):
    dataset = data.from_csv(
        write([*ROWS, *MISSING]), targets="pet", batch_size=2, missing="indicator", validation=0, test=0.5
    )
    train, test = np.asarray(dataset.train.examples()["inputs"]), dataset.splits["test"].examples()["inputs"]
    is_missing = dataset.info.feature_names.index("length is missing")
    expected = train[train[:, is_missing] == 0, 0].mean()
    filled = np.concatenate([train, test])
    np.testing.assert_allclose(filled[filled[:, is_missing] == 1, 0], [expected], rtol=1e-6)


def test_other_dialects(write):
    path = write(
        [row.replace(".", ";").replace(",", "\t").replace(";", ",") for row in ROWS], HEADER.replace(",", "\t")
    )
    arrays, _ = whole(path, read_options={"sep": "\t", "decimal": ","})
    np.testing.assert_array_equal(arrays["inputs"][:, 0], np.arange(20, dtype=np.float32) / 2)


OPTIONS = {
    "usecols": ["pet", "length"],
    "parse_dates": ["born"],
    "dtype": {"count": str},
    "converters": {0: float},
    "index_col": "color",
    "na_values": {"tame": ["no"]},
    "nrows": 15,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_choose_and_convert_columns(write, option):
    path = write([f"{row},2024-01-{i + 1:02}" for i, row in enumerate(ROWS)], HEADER + ",born")
    arrays, info = whole(path, inputs=["length"], read_options={option: OPTIONS[option]})
    np.testing.assert_array_equal(arrays["inputs"][:, 0], np.arange(len(arrays["inputs"]), dtype=np.float32) / 2)
    assert len(arrays["inputs"]) == (15 if option == "nrows" else 20)
    assert info.class_names == ("cat", "dog")


def test_only_chosen_columns_need_a_name_of_their_own(write):
    path = write(ROWS, "length,x,x,tame,pet")
    _, info = whole(path, read_options={"usecols": ["length", "pet"]})
    assert info.feature_names == ("length",)
    with pytest.raises(DataError, match="there are several columns 'x'; every name must differ"):
        whole(path, read_options={"usecols": ["x", "pet"]})
    assert whole(write(ROWS, "1,01,1.0,tame,pet"), inputs=["01"])[1].feature_names == ("01",)


def test_truth_values_with_gaps_are_numbers(write):
    rows = [f"{row},{('True', 'False', '')[i % 3]}" for i, row in enumerate(ROWS)]
    path = write(rows, HEADER + ",indoors")
    i = np.arange(20) % 3
    dropped, info = whole(path, inputs=["indoors"], missing="drop")
    assert info.feature_names == ("indoors",)
    np.testing.assert_array_equal(dropped["inputs"][:, 0], (i[i < 2] == 0).astype(np.float32))
    filled, _ = whole(path, inputs=["indoors"], missing="mean")
    np.testing.assert_allclose(filled["inputs"][:, 0], np.choose(i, [1, 0, 0.5]), rtol=1e-6)
    _, info = whole(path, inputs=["indoors"], missing="indicator")
    assert info.feature_names == ("indoors", "indoors is missing")
    assert whole(path, inputs=["length"], targets="indoors", missing="drop")[1].class_names == ("False", "True")


def slip(rows=None, header=HEADER, add=(), **options):
    return (rows or ROWS) + list(add), header, options


SLIPS = {
    "targets": (
        slip(targets="pets"),
        "{path}: there is no column 'pets'; did you mean 'pet'? (columns: length, count, tame, color, pet)",
    ),
    "inputs": (
        slip(inputs=["lenght"]),
        "{path}: there is no column 'lenght'; did you mean 'length'? (columns: length, count, tame, color, pet)",
    ),
    "targets among inputs": (slip(inputs=["pet"]), "inputs: 'pet' is the column of targets; leave it out"),
    "one name": (slip(inputs="length"), "inputs: expected several names, as a list or tuple, got 'length'"),
    "missing values": (
        slip(add=MISSING),
        "{path}: values are missing: column 'length' has 1, 'count' has 1, 'tame' has 1; "
        "fill them in, or choose missing='drop', 'mean' or 'indicator'",
    ),
    "missing targets": (
        slip(add=["1,2,yes,red,"], missing="mean"),
        "{path}: column 'pet', the targets, has 1 missing values; such rows cannot be learned from: missing='drop' leaves them out",
    ),
    "a text among numbers": (
        slip(add=["1O,2,yes,red,cat"]),
        "{path}, row 21: column 'length' has the text '1O' among numbers; declare it missing: "
        "read_options={{'na_values': [...]}}",
    ),
    "an identifier": (
        slip([f"{row},n{i}" for i, row in enumerate(ROWS)], HEADER + ",name"),
        "{path}: column 'name' has 20 different texts in 20 rows, as names, dates and identifiers have; "
        "leave it out (inputs=[...]) or make it numbers",
    ),
    "spaces": (
        slip(add=["1,2,yes,red, cat"]),
        "{path}: column 'pet' has ' cat', which is blank or differs from another text in spaces alone; "
        "give read_options={{'skipinitialspace': True}}",
    ),
    "an index": (
        slip([f"{i},{row}" for i, row in enumerate(ROWS)], "," + HEADER),
        "{path}: column 1 has no name; for an index that was saved with the table, give read_options={{'index_col': 0}}",
    ),
    "a name twice": (
        slip(header="length,length,tame,color,pet"),
        "{path}: there are several columns 'length'; every name must differ",
    ),
    "separator": (
        slip([row.replace(",", ";") for row in ROWS], HEADER.replace(",", ";")),
        "{path} has one column, 'length;count;tame;color;pet'; give read_options={{'sep': ';'}}",
    ),
    "no rows": (slip(["\n"]), "{path} has no rows below its header"),
    "an infinite value": (
        slip(add=["inf,2,yes,red,cat"]),
        "{path}, row 21: column 'length' is infinite; leave it out or correct it",
    ),
    "time stamps": (
        slip([f"{1_700_000_000 + i},{row}" for i, row in enumerate(ROWS)], "time," + HEADER),
        "{path}, column 'time': 1700000000 to 1700000019 are too close for float32 (7 digits); subtract the mean",
    ),
    "texts for a regression": (
        slip(task="regression"),
        "{path}: column 'pet' has texts such as 'cat'; regression needs numbers",
    ),
    "fractions for classes": (
        slip(targets="length", task="classification"),
        "{path}, row 2: column 'length' is 0.5, which is no class",
    ),
    "many integers": (
        slip([f"{i}" for i in range(300)], "price", targets="price", inputs=[]),
        "{path}: no column is left for inputs",
    ),
    "prices": (
        slip([f"{i},{i}" for i in range(300)], "size,price", targets="price"),
        "{path}: column 'price' has 300 different integers; say whether they are classes or numbers: "
        "task='classification' or 'regression'",
    ),
    "a task": (
        slip(task="regresion"),
        "task='regresion' is none of (None, 'classification', 'regression'); did you mean 'regression'?",
    ),
    "what to do with missing values": (
        slip(missing="median"),
        "missing='median' is none of ('error', 'drop', 'mean', 'indicator'); did you mean 'mean'?",
    ),
    "an option": (
        slip(batchsize=3),
        "there is no option 'batchsize'; did you mean 'batch_size'? (options: batch_size, validation, test, "
        "train_examples, split_seed, source, evaluate_batch_size, workers, evaluation, weights, transform)",
    ),
}


@pytest.mark.parametrize("case", SLIPS)
def test_slips_are_one_clear_line(write, case):
    (rows, header, options), message = SLIPS[case]
    path = write(rows, header)
    with pytest.raises(DataError) as caught:
        whole(path, **options)
    assert str(caught.value) == message.format(path=path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"there is no file '.*gone\.csv'"):
        whole(tmp_path / "gone.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(
        DataError, match=r"empty\.csv cannot be read: No columns to parse from file; see `read_options`"
    ):
        whole(tmp_path / "empty.csv")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match=r"cannot be read: .*Expected 2 fields in line 3, saw 3"):
        whole(tmp_path / "ragged.csv")
    (tmp_path / "latin.csv").write_bytes(b"a,b\n1,caf\xe9\n")
    with pytest.raises(DataError, match=r"cannot be read: 'utf-8' codec can't decode byte 0xe9 in position"):
        whole(tmp_path / "latin.csv")


def test_a_named_set_may_be_arrays(write):
    ood = {"inputs": np.zeros((3, 6)), "targets": np.ones(3, int)}
    dataset = data.from_csv(write(ROWS), targets="pet", batch_size=2, evaluation={"ood": ood})
    assert dataset.info.num_examples["ood"] == 3
