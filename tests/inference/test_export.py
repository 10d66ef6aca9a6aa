"""`foldax export`: its files, predictions without foldax, and errors."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export as jax_export
from safetensors import safe_open
from safetensors.numpy import load_file

import foldax
from foldax import data, learners, models, transfer
from foldax.engine import setup
from foldax.engine.state import Callbacks
from foldax.errors import ConfigError, DataError, ExperimentError, RunError
from foldax.inference.predict import predict
from foldax.runs.transfer import parameters
from tests.conftest import Config, tiny, tiny_dataset
from tests.laws.test_laws import LEARNERS

ALONE = """
import runpy, sys
for name in ("foldax", "flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
out, sys.argv = sys.argv[1], sys.argv[2:]
found = runpy.run_path(sys.argv[0])
import numpy as np
np.savez(out, found["outputs"])
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> foldax.Result:
    return foldax.train(tiny, tiny.config(), run_dir=tmp_path_factory.mktemp("run") / "r", verbose=False)


@pytest.fixture(scope="module")
def exported(result) -> Path:
    return foldax.export(result, verbose=False)


def signature(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "signature.json").read_text())


def program(folder: Path, *inputs: Any) -> Any:
    called = jax_export.deserialize(bytearray((folder / "predict.jax").read_bytes()))
    weights = load_file(folder / "params.safetensors")
    return called.call({name: weights[name] for name in signature(folder)["parameters"]}, *inputs)


def trained(learner: Any, path: Path, dataset: Any = tiny_dataset, **changes: Any) -> foldax.Result:
    experiment = foldax.Experiment(Config, learner, dataset, name="made")
    return foldax.train(experiment, Config(steps=2, **changes), run_dir=path, verbose=False)


def untrained(experiment: foldax.Experiment) -> foldax.Result:
    """A run before its first step: exports and samples do not depend on the training."""
    config = experiment.config()
    run = setup.start_run(experiment, config, Callbacks(), experiment.dataset and experiment.dataset(config))
    info, state = run.dataset and run.dataset.info, run.fold.state
    return foldax.Result(
        experiment, config, info, run.dataset, state, state, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0
    )


# Files


def test_files_of_an_export(result, exported) -> None:
    assert exported == result.run_dir / "export"
    assert sorted(path.name for path in exported.iterdir()) == [
        "example.py", "params.safetensors", "predict.jax", "signature.json",
    ]  # fmt: skip
    assert len({stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()}) == 1
    weights = load_file(exported / "params.safetensors")
    expected = parameters.parameters_of(result.state)
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, expected[name])
    with safe_open(exported / "params.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert foldax.from_json(Config, json.loads(metadata["config"])) == result.config
    assert metadata["data_fingerprint"] == result.info.fingerprint
    assert (metadata["experiment"], metadata["foldax"]) == ("tiny", foldax.__version__)


def test_content_of_the_signature(result, exported) -> None:
    found = signature(exported)
    meaning = "as the dataset's inputs"
    assert found["inputs"] == {"shape": ["batch", 6], "dtype": "float32", "meaning": meaning}
    assert found["outputs"] == {"shape": ["batch", 2], "dtype": "float32"}
    assert found["parameters"] == [f"params/Dense_{i}/{name}" for i in (0, 1) for name in ("bias", "kernel")]
    assert (found["takes_seed"], found["platforms"]) == (False, ["cpu", "cuda", "tpu"])
    assert (found["state"], found["step"], found["test"]) == ("best", result.best_step, result.metrics["test"])


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_program_takes_raw_inputs_in_any_number(result, exported, batch) -> None:
    inputs = result.examples("test")["inputs"][:batch]
    np.testing.assert_array_equal(program(exported, inputs), result.predict(inputs))


def test_the_example_needs_neither_foldax_nor_flax(result, exported, tmp_path) -> None:
    text = (exported / "example.py").read_text()
    assert "import foldax" not in text
    assert len(text.splitlines()) <= 25
    inputs = result.examples("test")["inputs"][:5]
    np.save(tmp_path / "x.npy", inputs)
    (tmp_path / "alone.py").write_text(ALONE)
    call = [sys.executable, tmp_path / "alone.py", tmp_path / "y.npz", exported / "example.py", tmp_path / "x.npy"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "y.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], result.predict(inputs))


def test_the_example_runs_without_a_file(exported) -> None:
    done = subprocess.run([sys.executable, exported / "example.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("[") == 5  # a row for each of four zeros


def test_a_run_starts_from_exported_parameters(result, exported) -> None:
    config = tiny.config(init_from=exported, learning_rate=0.0, steps=1, keep="last")
    started = foldax.train(tiny, config, save=False, verbose=False)
    jax.tree.map(np.testing.assert_array_equal, started.final_state.params, result.state.params)


def test_a_run_folder_is_exported_from_its_file(tiny_file, tmp_path, capsys) -> None:
    experiment = foldax.load_experiment(tiny_file)
    result = foldax.train(experiment, run_dir=tmp_path / "r", verbose=False)
    folder = foldax.export(tmp_path / "r", tmp_path / "out", batch_size=3, platforms=["cpu"])
    output = capsys.readouterr().out
    assert "[3, 6]" in output
    assert "platforms: cpu; same bits as `predict`" in output
    inputs = result.examples("test")["inputs"][:3]
    np.testing.assert_array_equal(program(folder, inputs), result.predict(inputs))
    with pytest.raises(ValueError):
        program(folder, inputs[:2])


# Other learners


def test_predict_reads_statistics_and_the_average(tmp_path) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        model = models.MLP((4, 2), normalization="batch")
        return learners.classifier(model, optax.adam(0.1), preprocess=info.standardize, ema_decay=0.9)

    result = trained(learner, tmp_path / "r", keep="last")
    folder = foldax.export(result, verbose=False)
    weights = load_file(folder / "params.safetensors")
    assert weights.keys() == parameters.parameters_of(result.state).keys()
    np.testing.assert_array_equal(weights["params/Dense_0/kernel"], result.state.ema_params["Dense_0"]["kernel"])
    assert (weights["params/Dense_0/kernel"] != result.state.params["Dense_0"]["kernel"]).any()
    assert set(signature(folder)["parameters"]) == set(weights)
    inputs = result.examples("test")["inputs"]
    np.testing.assert_allclose(program(folder, inputs), result.predict(inputs), rtol=1e-6, atol=1e-6)


def test_several_outputs_and_masked_sequences_of_any_length(tmp_path) -> None:
    def dataset(config: Config) -> data.Dataset:
        random = np.random.RandomState(0)
        arrays = {"inputs": random.randn(40, 7, 2), "targets": random.randn(40), "mask": random.randint(0, 2, (40, 7))}
        return data.from_arrays(arrays, batch_size=8)

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        return learners.gaussian_regressor(models.Recurrent(2, (4,), pooling="mean"), optax.adam(0.1))

    result = trained(learner, tmp_path / "r", dataset)
    folder = foldax.export(result, tmp_path / "out", shape=["time", 2], verbose=False)
    found = signature(folder)
    assert found["inputs"]["inputs"]["shape"] == ["batch", "time", 2]
    assert found["inputs"]["mask"]["shape"] == ["batch", "time"]
    assert set(found["outputs"]) == {"mean", "std"}
    for length in (7, 3):
        inputs = {name: result.examples("test")[name][:2, :length] for name in ("inputs", "mask")}
        ours, theirs = result.predict(inputs), program(folder, inputs)
        for name in ("mean", "std"):
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-6, atol=1e-6)


def custom_learner(predict: Any) -> Any:
    """A custom learner, whose state is a dict."""

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def init(key: jax.Array, examples: Any) -> dict[str, jax.Array]:
            return {"w": jnp.ones(6), "unused": jnp.zeros(1000), "count": jnp.int32(0)}

        def update(state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
            return {**state, "count": state["count"] + 1}, {"loss": (batch["inputs"] @ state["w"]).mean()}

        def evaluate(state: dict, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
            return {"loss": batch["inputs"] @ state["w"]}

        return foldax.Learner(init, update, evaluate, predict)

    return learner


def test_a_predict_that_samples_takes_a_seed(tmp_path) -> None:
    def predict(state: dict, inputs: jax.Array, key: jax.Array) -> jax.Array:
        return inputs @ state["w"] + jax.random.normal(key, inputs.shape[:1])

    result = trained(custom_learner(predict), tmp_path / "r")
    folder = foldax.export(result, verbose=False)
    assert signature(folder)["takes_seed"]
    assert signature(folder)["parameters"] == ["params/w"], "what predict does not read is no argument"
    assert load_file(folder / "params.safetensors").keys() == {"params/w", "params/unused", "params/count"}
    inputs = result.examples("test")["inputs"][:4]
    for seed in (0, 3):
        np.testing.assert_array_equal(program(folder, inputs, np.uint32(seed)), result.predict(inputs, seed=seed))
    done = subprocess.run([sys.executable, folder / "example.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_state_with_random_keys(tmp_path) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def init(key: jax.Array, examples: Any) -> dict[str, jax.Array]:
            return {"w": jnp.ones(6), "key": key, "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2)}

        def update(state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
            return {**state, "key": jax.random.fold_in(state["key"], 1)}, {
                "loss": (batch["inputs"] @ state["w"]).mean()
            }

        def evaluate(state: dict, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
            return {"loss": batch["inputs"] @ state["w"]}

        def predict(state: dict, inputs: jax.Array, key: jax.Array) -> jax.Array:
            return inputs @ state["w"] + jax.random.normal(state["key"]) + jax.random.normal(state["keys"][1])

        return foldax.Learner(init, update, evaluate, predict)

    result = trained(learner, tmp_path / "r")
    inputs = result.examples("test")["inputs"][:4]
    loaded = foldax.load_run(tmp_path / "r", result.experiment)
    np.testing.assert_array_equal(loaded.predict(inputs), result.predict(inputs))
    folder = foldax.export(loaded, verbose=False)
    weights = load_file(folder / "params.safetensors")
    assert {name: (array.dtype.name, array.shape) for name, array in weights.items()} == {
        "params/w": ("float32", (6,)), "params/key": ("uint32", (2,)), "params/keys": ("uint32", (2, 4))
    }  # fmt: skip
    np.testing.assert_allclose(program(folder, inputs), result.predict(inputs), rtol=1e-6)
    assert str(transfer.match(result.state, result)) == "Python: 1 matched"


def test_a_model_that_needs_a_fixed_batch_size(tmp_path, capsys) -> None:
    def predict(state: dict, inputs: jax.Array, key: jax.Array) -> jax.Array:
        return inputs @ state["w"] + np.arange(len(inputs) + 0).sum()

    result = trained(custom_learner(predict), tmp_path / "r")
    folder = foldax.export(result, verbose=False)
    assert "with a symbolic batch size" in capsys.readouterr().err
    assert signature(folder)["inputs"]["shape"] == [16, 6]
    with pytest.raises(ExperimentError, match=r"cannot be exported with a symbolic batch size \(a number may do: --b"):
        foldax.export(result, batch_size="symbolic", verbose=False)
    assert signature(foldax.export(result, batch_size=4, verbose=False))["inputs"]["shape"] == [4, 6]


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("recurrent_ppo", np.ones((3, 7, 2), np.float32), {"shape": ["batch", "time", 2], "dtype": "float32"}),
        ("gan", np.array([0, 2, 1], np.int32), {"shape": ["batch"], "meaning": "class of each sample", "num_classes": 3}),
        (
            "vae",
            {"inputs": np.ones((3, 6, 6, 1), np.uint8), "targets": np.array([0, 2, 1], np.int32)},
            {"targets": {"shape": ["batch"], "dtype": "int32", "meaning": "as the dataset's targets", "num_classes": 3}},
        ),
    ],
)  # fmt: skip
def test_policies_and_samplers_run_without_foldax(name, inputs, expected, tmp_path) -> None:
    result = untrained(LEARNERS[name])
    folder = foldax.export(result, tmp_path / "out", verbose=False)
    assert expected.items() <= signature(folder)["inputs"].items()
    file = tmp_path / ("inputs.npz" if isinstance(inputs, dict) else "inputs.npy")
    np.savez(file, **inputs) if isinstance(inputs, dict) else np.save(file, inputs)
    command = [sys.executable, "-c", ALONE, tmp_path / "outputs.npz", folder / "example.py", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted = predict(result, str(file))
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npz")["arr_0"], predicted, rtol=1e-5, atol=1e-6)


# Errors


def test_bad_arguments(result, tmp_path) -> None:
    for options, message in (
        ({"platforms": ["cpu", "gpu"]}, "platforms: gpu given; allowed are cpu, cuda, rocm and tpu"),
        ({"platforms": []}, "platforms: none given"),
        ({"batch_size": 0}, "batch_size: 0 is neither a number above 0 nor 'symbolic'"),
        ({"batch_size": "many"}, "batch_size: 'many'"),
    ):
        with pytest.raises(ConfigError, match=message):
            foldax.export(result, tmp_path / "out", **options)
    with pytest.raises(ExperimentError, match="predict cannot be exported: "):
        foldax.export(result, tmp_path / "out", shape=[7])
    assert not (tmp_path / "out").exists()


def test_other_files_are_not_overwritten(result, tmp_path) -> None:
    (tmp_path / "example.py").write_text("mine")
    with pytest.raises(
        RunError, match=r"holds a example.py that is not an exported one; choose another folder \(--out"
    ):
        foldax.export(result, tmp_path)
    assert (tmp_path / "example.py").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        foldax.export(result, tmp_path / "file", verbose=False)


def test_learners_without_predict_or_data(tmp_path) -> None:
    result = trained(custom_learner(None), tmp_path / "r")
    with pytest.raises(ExperimentError, match="no `predict`, so there is nothing to export"):
        foldax.export(result)


def test_a_run_that_was_not_saved(tmp_path) -> None:
    result = foldax.train(tiny, save=False, verbose=False)
    with pytest.raises(ConfigError, match="out: the run has no folder"):
        foldax.export(result)
    assert (foldax.export(result, tmp_path / "out", verbose=False) / "predict.jax").exists()


# load_run


def test_a_run_is_read_back(result) -> None:
    found = foldax.load_run(result.run_dir, tiny)
    jax.tree.map(np.testing.assert_array_equal, found.state, result.state)
    jax.tree.map(np.testing.assert_array_equal, found.final_state, result.final_state)
    for name in ("config", "info", "step", "best_step", "status", "metrics", "history", "figures", "run_dir"):
        assert getattr(found, name) == getattr(result, name), name
    inputs = result.examples("test")["inputs"]
    np.testing.assert_array_equal(found.predict(inputs), result.predict(inputs))


def test_runs_that_cannot_be_read_back(result, tmp_path, capsys) -> None:
    wider = tiny._replace(learner=lambda config, info: tiny.learner(Config(hidden=(9,)), info))
    with pytest.raises(
        RunError,
        match=r"does not fit its experiment file, which has changed; these arrays differ: params.Dense_0.bias, ",
    ):
        foldax.load_run(result.run_dir, wider)
    other = tiny._replace(
        dataset=lambda config: data.from_arrays(
            {"inputs": np.ones((50, 6)), "targets": np.arange(50) % 2}, batch_size=8
        )
    )
    with pytest.raises(DataError, match="have changed: their fingerprint was"):
        foldax.load_run(result.run_dir, other)
    foldax.load_run(result.run_dir, other, allow_other_data=True)
    assert "have changed: their fingerprint was" in capsys.readouterr().err
    copy = shutil.copytree(result.run_dir, tmp_path / "notebook")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"file": None}))
    with pytest.raises(RunError, match="was made in a notebook"):
        foldax.export(copy)
    assert transfer.read(copy).provenance["state"] == "best", "parameters need no experiment"
