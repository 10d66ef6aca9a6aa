"""`foldax predict`: inputs from files and splits, printed outputs, and written files."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import foldax
from foldax import data
from foldax.engine.result import Result
from foldax.errors import ConfigError, DataError, ExperimentError, RunError
from foldax.inference.inputs import MAX_BATCH, input_specs, read_inputs
from foldax.inference.predict import class_probabilities, predict
from tests.conftest import Config, tiny


def run_of(arrays: dict[str, np.ndarray], outputs: Any, **names: Any) -> Result:
    """A run whose `predict` is the function `outputs` of the inputs."""
    dataset = data.from_arrays(arrays, batch_size=4, validation=0.0, test=0.25, **names)

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def update(state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
            return state, {"loss": jnp.float32(0)}

        def evaluate(state: dict, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
            return {"loss": jnp.zeros(len(batch["inputs"]))}

        return foldax.Learner(lambda key, examples: {}, update, evaluate, lambda state, inputs, key: outputs(inputs))

    experiment = foldax.Experiment(Config, learner, lambda config: dataset, name="made")
    return Result(
        experiment, tiny.config(), dataset.info, dataset, {}, {}, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0
    )


NAMES = ("sepal", "petal", "width")


@pytest.fixture(scope="module")
def table() -> Result:
    arrays = {"inputs": np.random.RandomState(0).randn(40, 3).astype(np.float32), "targets": np.arange(40) % 2}
    return run_of(
        arrays, lambda x: x @ np.float32([[1, 0], [0, 1], [0, 0]]), feature_names=NAMES, class_names=("no", "yes")
    )


def images(shape: tuple[int, ...], dtype: Any = np.uint8, most: float = 255) -> Result:
    pixels = np.resize(np.array([0, most], dtype), (8, *shape))
    arrays = {"inputs": pixels, "targets": np.arange(8) % 2}
    return run_of(arrays, lambda x: jnp.float32(x).reshape(len(x), -1)[:, :2])


@pytest.fixture(scope="module")
def tokens() -> Result:
    arrays = {"inputs": np.arange(80).reshape(8, 10) % 7, "mask": np.ones((8, 10), np.int32)}
    return run_of(arrays, lambda batch: batch["inputs"] * batch["mask"])


# Inputs

ROWS = [[1.5, -2.0, 0.25], [0.0, 3.0, -1.0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", json.dumps(ROWS)),
        ("x.json", json.dumps({"inputs": ROWS})),
        ("x.csv", "1.5,-2.0,0.25\n0,3,-1\n\n"),
        ("x.csv", "sepal, petal,width\n1.5,-2.0,0.25\n0,3,-1\n"),
        ("x.csv", "\ufeffsepal,petal,width\n1.5,-2.0,0.25\n0,3,-1\n"),
        ("x.csv", "\ufeff1.5,-2.0,0.25\n0,3,-1\n"),
        ("x.json", "\ufeff" + json.dumps(ROWS)),
        ("x.csv", "name,width,petal,sepal\na,0.25,-2.0,1.5\nb,-1,3,0\n"),
        ("x.CSV", "1.5,-2.0,0.25\n0,3,-1\n"),
    ],
)
def test_json_and_csv_files(table, tmp_path, name, content) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    arrays, targets = read_inputs(table, str(tmp_path / name))
    assert arrays["inputs"].dtype == np.float32
    np.testing.assert_array_equal(arrays["inputs"], np.float32(ROWS))
    assert targets == {}


def test_npy_and_npz_files(table, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.float64(ROWS))
    np.savez(tmp_path / "one.npz", anything=np.float64(ROWS))
    np.savez(tmp_path / "two.npz", inputs=np.float64(ROWS), other=np.zeros(3))
    for name in ("x.npy", "one.npz", "two.npz"):
        np.testing.assert_array_equal(read_inputs(table, str(tmp_path / name))[0]["inputs"], np.float32(ROWS))
    np.save(tmp_path / "x.npy", np.float64(ROWS[0]))
    np.testing.assert_array_equal(read_inputs(table, str(tmp_path / "x.npy"))[0]["inputs"], np.float32(ROWS[:1]))


def test_a_row_of_numbers_becomes_an_example_of_any_shape(tmp_path) -> None:
    (tmp_path / "x.csv").write_text("0,1,2,3,4,5\n")
    found, _ = read_inputs(images((2, 3, 1)), str(tmp_path / "x.csv"))
    np.testing.assert_array_equal(found["inputs"], np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1))


def test_rows_of_a_split_come_with_their_targets(table) -> None:
    arrays, targets = read_inputs(table, "test")
    examples = table.examples("test")
    np.testing.assert_array_equal(arrays["inputs"], examples["inputs"])
    np.testing.assert_array_equal(targets["targets"], examples["targets"])


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)], ids=str)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_image_files(tmp_path, shape, kind) -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{kind}", quality=100)
    found = read_inputs(images(shape), str(tmp_path / f"x.{kind}"))[0]["inputs"]
    assert (found.shape, found.dtype) == ((1, *shape), np.uint8)
    if kind == "png":
        grey = np.asarray(Image.fromarray(pixels).convert("L")).reshape(4, 6, 1)
        np.testing.assert_array_equal(found.reshape(4, 6, -1), pixels if shape[-1] == 3 else grey)


def test_images_that_would_be_guessed_at_are_refused(tmp_path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((2, 3, 4), (9, 9, 9, 0), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"x.png has transparent pixels, and 3 channels have none"):
        read_inputs(images((2, 3, 3)), str(path))
    assert read_inputs(images((2, 3, 4)), str(path))[0]["inputs"][0, 0, 0].tolist() == [9, 9, 9, 0]
    Image.fromarray(np.full((2, 3, 4), (9, 9, 9, 255), np.uint8)).save(path)
    assert (read_inputs(images((2, 3)), str(path))[0]["inputs"] == 9).all()
    # 16 bits
    Image.fromarray(np.full((2, 3), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"expected uint8 \(0 to 255\), got 40000 in row 0"):
        read_inputs(images((2, 3)), str(path))
    with pytest.raises(DataError, match="expected an image of 3 channels, got one of mode I;16"):
        read_inputs(images((2, 3, 3)), str(path))
    assert (read_inputs(images((2, 3), np.int32, 65_535), str(path))[0]["inputs"] == 40_000).all()
    # Values 0 to 255, where the training data were scaled
    Image.new("L", (3, 2), 200).save(path)
    with pytest.raises(DataError, match=r"has values up to 200, but the training data up to 1; scale it as they were"):
        read_inputs(images((2, 3), np.float32, 1), str(path))


def test_tokens_of_any_length_and_their_mask(tokens, tmp_path) -> None:
    (tmp_path / "x.json").write_text("[[1, 2, 3], [4, 5, 6]]")
    arrays, _ = read_inputs(tokens, str(tmp_path / "x.json"))
    assert arrays["inputs"].shape == arrays["mask"].shape == (2, 3)
    np.testing.assert_array_equal(predict(tokens, str(tmp_path / "x.json")), [[1, 2, 3], [4, 5, 6]])
    np.savez(tmp_path / "x.npz", inputs=[[1, 2, 3]], mask=[[1, 1, 0]])
    np.testing.assert_array_equal(predict(tokens, str(tmp_path / "x.npz")), [[1, 2, 0]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[[1, 2]]", r"x.json: expected \[B, 3\] or \[3\], got \[1, 2\]"),
        ("x.json", "[]", r"expected \[B, 3\] or \[3\], got \[0\]"),
        ("x.json", "[[1, 2], [3]]", "x.json cannot be read"),
        ("x.json", '[["a", "b", "c"]]', "x.json must be an array of numbers, not <U1"),
        ("x.json", '{"x": 1}', 'expected a list, or an object with "inputs"; got the keys x'),
        ("x.json", "[[1, 2, NaN]]", "values that are not finite, first in row 0"),
        ("x.json", "[", "x.json cannot be read"),
        ("x.csv", "1,2\n", "x.csv, line 1: expected 3 columns, got 2"),
        ("x.csv", "1,2,3,4\n", "x.csv, line 1: expected 3 columns, got 4"),
        ("x.csv", "sepal,petel,width\n1,2,3\n", "no column 'petal'; did you mean 'petel'"),
        ("x.csv", "sepal,petal,width\n\n1,2,3\n1,2\n", "x.csv, line 4: expected 3 columns, got 2"),
        ("x.csv", "1,,3\n1,2,3\n", "x.csv, line 1: '' is not a number"),
        ("x.csv", ",,\n1,2,3\n", "x.csv, line 1: '' is not a number"),
        ("x.csv", "1,2_0,3\n", "x.csv, line 1: '2_0' is not a number"),
        ("x.csv", "sepal,petal,width,petal\n1,2,3,4\n", "there are several columns 'petal'"),
        ("x.csv", "sepal,petal,width\n1,2,3\n1,x,3\n", "x.csv, line 3: 'x' is not a number"),
        ("x.csv", "", r"expected \[B, 3\] or \[3\], got \[0, 3\]"),
        ("x.npy", "no", "x.npy cannot be read"),
        ("x.npz", "no", "x.npz cannot be read"),
        ("x.png", "no", r"x.png: expected \[3\], which is no image"),
        ("x.txt", "1,2,3", "'.*x.txt' is neither a split nor a file of a known kind .splits: test; files: .npy, "),
    ],
)
def test_files_that_do_not_fit(table, tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_inputs(table, str(tmp_path / name))


def test_other_inputs_that_do_not_fit(table, tokens, tmp_path) -> None:
    with pytest.raises(DataError, match=r"there is no file 'gone.npy' \(splits: test; files"):
        read_inputs(table, "gone.npy")
    with pytest.raises(DataError, match="'validation' is neither a split nor a file"):
        read_inputs(table, "validation")
    Image.new("L", (6, 5)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"expected an image of 6 x 4 pixels \(width x height\), got 6 x 5"):
        read_inputs(images((4, 6, 1)), str(tmp_path / "x.png"))
    (tmp_path / "torn.png").write_bytes((tmp_path / "x.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"torn.png cannot be read"):
        read_inputs(images((5, 6)), str(tmp_path / "torn.png"))
    (tmp_path / "x.json").write_text("[[1, 2.5]]")
    with pytest.raises(DataError, match=r"expected int32 \(-2147483648 to 2147483647\), got 2.5"):
        read_inputs(tokens, str(tmp_path / "x.json"))
    (tmp_path / "x.csv").write_text("0,1,256,0,0,0\n")
    with pytest.raises(DataError, match=r"expected uint8 \(0 to 255\), got 256.0"):
        read_inputs(images((2, 3)), str(tmp_path / "x.csv"))
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError, match=r'expected an array "inputs", or one alone; got a, b'):
        read_inputs(table, str(tmp_path / "x.npz"))
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="x.npy cannot be read"):
        read_inputs(table, str(tmp_path / "x.npy"))
    text = run_of({"inputs": np.arange(80).reshape(8, 10) % 7}, lambda tokens: tokens, vocabulary_size=7)
    (tmp_path / "x.json").write_text("[1, 7]")
    with pytest.raises(DataError, match=r"x.json: there is no token 7; there are 0 to 6"):
        read_inputs(text, str(tmp_path / "x.json"))


def test_inputs_need_a_dataset(table) -> None:
    import dataclasses

    with pytest.raises(RunError, match='no dataset with "inputs"'):
        input_specs(dataclasses.replace(table, info=None, dataset=None))


# Outputs


def test_probabilities_are_those_of_softmax_and_sigmoid(table) -> None:
    logits = np.float32([[1000.0, 0.0], [0.0, np.log(3)]])
    np.testing.assert_allclose(class_probabilities(table, logits), [[1, 0], [0.25, 0.75]], atol=1e-6)
    np.testing.assert_allclose(class_probabilities(table, logits[:, 1:]), [[0.5, 0.5], [0.25, 0.75]], atol=1e-6)
    assert class_probabilities(table, np.zeros((2, 3))) is None
    assert class_probabilities(table, {"mean": logits}) is None


@pytest.mark.parametrize("width", [80, 140])
def test_classes_are_printed_by_name_with_probabilities(table, monkeypatch, capsys, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    outputs = predict(table, "test")
    output = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[0] == "│"]
    found = class_probabilities(table, outputs)
    for row, line in enumerate(lines):
        first = int(found[row].argmax())
        names = ["no", "yes"]
        assert line[:3] == [str(row), names[first], f"{found[row, first]:.4f}"]
        assert line[3:5] == [names[1 - first], f"{found[row, 1 - first]:.4f}"]
        assert line[5] == names[table.examples("test")["targets"][row]]
    right = (found.argmax(1) == table.examples("test")["targets"]).sum()
    assert f"{right} of {len(found)} right" in output
    assert len(lines) == len(found) == 10


def test_many_rows_are_predicted_in_batches(capsys, tmp_path) -> None:
    count = MAX_BATCH + 3
    run = run_of({"inputs": np.ones((8, 1), np.float32), "targets": np.ones(8, np.float32)}, lambda x: x[:, 0] * 2)
    np.save(tmp_path / "x.npy", np.arange(count, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(predict(run, str(tmp_path / "x.npy")), 2 * np.arange(count))
    assert f"and {count - 20} more rows" in capsys.readouterr().out


def test_other_outputs_are_printed_as_a_table(capsys) -> None:
    arrays = {"inputs": np.ones((8, 3), np.float32), "targets": np.full(8, 7.5, np.float32)}
    predict(run_of(arrays, lambda x: {"mean": x[:, :2], "std": x[:, :1]}), "test")
    output = capsys.readouterr().out
    for part in ("mean 0", "mean 1", "std", "target", "7.5"):
        assert part in output
    predict(run_of(arrays, lambda x: jnp.ones((len(x), 5, 4))), "test")
    output = capsys.readouterr().out
    assert "2x5x4" in output
    assert "--out FILE writes them" in output


def test_files_hold_the_predictions(table, tmp_path, capsys) -> None:
    outputs, out = None, {kind: tmp_path / f"y{kind}" for kind in (".npy", ".npz", ".csv", ".json")}
    for path in out.values():
        outputs = predict(table, "test", path)
        assert f"written: {path}" in capsys.readouterr().out.replace("\n", "")
    found = class_probabilities(table, outputs)
    np.testing.assert_array_equal(np.load(out[".npy"]), outputs)
    np.testing.assert_array_equal(np.load(out[".npz"])["outputs"], outputs)
    with out[".csv"].open() as file:
        rows = list(csv.DictReader(file))
    plain = json.loads(out[".json"].read_text())
    assert list(plain) == ["class", "no", "yes"]
    for row, line in enumerate(rows):
        assert line["class"] == plain["class"][row] == ("no", "yes")[found[row].argmax()]
        assert [float(line["no"]), float(line["yes"])] == [plain["no"][row], plain["yes"][row]] == found[row].tolist()


def test_a_class_named_like_the_first_column_has_a_column_of_its_own(tmp_path) -> None:
    arrays = {"inputs": np.float32([[0, 1], [2, 0]] * 4), "targets": np.arange(8) % 2}
    run = run_of(arrays, lambda x: x, class_names=("class", "other"))
    predict(run, "test", tmp_path / "y.csv")
    assert (tmp_path / "y.csv").read_text().splitlines()[0] == "class,class (0),other"


def test_outputs_of_nan_are_right_for_no_row_and_have_a_text_in_json(tmp_path, capsys) -> None:
    arrays = {"inputs": np.ones((8, 2), np.float32), "targets": np.zeros(8, int)}
    run = run_of(arrays, lambda x: x * jnp.nan, class_names=("no", "yes"))
    predict(run, "test", tmp_path / "y.json")
    assert "0 of 2 right" in capsys.readouterr().out
    assert json.loads((tmp_path / "y.json").read_text())["no"] == ["nan", "nan"]


def test_several_outputs_are_written(tmp_path) -> None:
    run = run_of({"inputs": np.ones((8, 3), np.float32)}, lambda x: {"mean": x[:, :2] + 1, "std": x[:, 0]})
    predict(run, "test", tmp_path / "y.npz")
    assert set(np.load(tmp_path / "y.npz")) == {"mean", "std"}
    predict(run, "test", tmp_path / "y.csv")
    assert (tmp_path / "y.csv").read_text().splitlines() == ["mean 0,mean 1,std", "2.0,2.0,1.0", "2.0,2.0,1.0"]
    predict(run, "test", tmp_path / "y.json")
    assert json.loads((tmp_path / "y.json").read_text()) == {"mean": [[2.0, 2.0]] * 2, "std": [1.0] * 2}
    with pytest.raises(ConfigError, match=r"there are several outputs \(mean, std\); write a .npz"):
        predict(run, "test", tmp_path / "y.npy")


def test_a_full_disk_leaves_the_earlier_file(table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *arguments: object, **options: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    predict(table, "test", tmp_path / "y.npy")
    before = (tmp_path / "y.npy").read_bytes()
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match="cannot write to .*y.npy: No space left on device"):
        predict(table, "test", tmp_path / "y.npy")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("y.npy", before)]


def test_errors_of_predict(table, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out: '.*y.txt' is of no known kind; allowed are .npy, .npz, .csv, .json"):
        predict(table, "test", tmp_path / "y.txt")
    with pytest.raises(RunError, match="cannot write .*gone/y.npy: No such file"):
        predict(table, "test", tmp_path / "gone" / "y.npy")
    broken = run_of({"inputs": np.ones((8, 3), np.float32)}, lambda x: x @ jnp.ones((7, 2)))
    with pytest.raises(ExperimentError, match="own code failed"):
        predict(broken, "test")
