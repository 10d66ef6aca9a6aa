"""Runs with initial parameters from another run: single, resumed, reproduced, in sweeps, and under the laws."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import foldax
from foldax import data, laws, learners, models, transfer
from foldax.engine import compiled
from foldax.engine.state_leaves import state_digest
from foldax.errors import ConfigError, Interrupted, RunError
from foldax.runs.reproduce import reproduce
from foldax.runs.transfer import parameters
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.launchers import launch, worker
from foldax.sweeps.plan import make_plan
from foldax.sweeps.records import ResultStore
from foldax.sweeps.reproduce import reproduce_member
from tests.conftest import Config, tiny, tiny_arrays


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> foldax.Result:
    """A run whose best state is not its last: the best is the one with the largest loss."""
    config = tiny.config(seed=7, mode="max", evaluate_every=3)
    result = foldax.train(tiny, config, run_dir=tmp_path_factory.mktemp("source") / "r", verbose=False)
    assert result.best_step not in (None, 12)
    return result


def run(config: Config, path: Path | None = None, **options: Any) -> foldax.Result:
    options = {"verbose": False, **({"save": False} if path is None else {"run_dir": path})} | options
    return foldax.train(tiny, config, **options)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def same_params(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first.params), jax.device_get(second.params))


NO_LEARNING = dict(learning_rate=0.0, steps=2, keep="last")  # the final parameters are the initial ones


# Reading runs


def test_the_state_that_was_tested_is_read(source) -> None:
    saved = transfer.read(source.run_dir)
    assert {name: array.tolist() for name, array in saved.arrays.items()} == {
        name: np.asarray(leaf).tolist() for name, leaf in parameters.parameters_of(source.state).items()
    }
    assert (saved.provenance["state"], saved.provenance["step"], saved.provenance["experiment"]) == (
        "best",
        source.best_step,
        "tiny",
    )
    assert str(saved).endswith(f"(best state, step {source.best_step})")


def test_the_last_state_is_read_if_it_was_tested(tmp_path) -> None:
    result = run(tiny.config(keep="last"), tmp_path / "r")
    saved = transfer.read(tmp_path / "r")
    assert (saved.provenance["state"], saved.provenance["step"]) == ("last", 12)
    np.testing.assert_array_equal(saved.arrays["params/Dense_0/kernel"], result.final_state.params["Dense_0"]["kernel"])


def test_a_moving_average_is_read(tmp_path) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        return learners.classifier(models.MLP((4, 2)), optax.adam(config.learning_rate), ema_decay=0.9)

    averaged = tiny._replace(learner=learner)
    result = foldax.train(averaged, tiny.config(keep="last"), run_dir=tmp_path / "r", verbose=False)
    saved = transfer.read(tmp_path / "r").arrays["params/Dense_0/kernel"]
    np.testing.assert_array_equal(saved, result.state.ema_params["Dense_0"]["kernel"])
    assert (saved != result.state.params["Dense_0"]["kernel"]).any()


@pytest.fixture
def copied(source, tmp_path) -> Path:
    return Path(shutil.copytree(source.run_dir, tmp_path / "copy"))


def test_a_run_that_is_not_finished(source, copied) -> None:
    (copied / "result.json").unlink()
    assert transfer.read(copied).provenance["step"] == source.best_step
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(RunError, match="copy has no checkpoint .*; `foldax resume .*copy` goes on"):
        transfer.read(copied)
    (copied / "checkpoints").mkdir()
    with pytest.raises(RunError, match="has no checkpoint"):
        transfer.read(copied)


def test_a_damaged_checkpoint(copied) -> None:
    for file in (copied / "checkpoints" / "12" / "arrays").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            file.write_bytes(content)
    before = sorted(path.name for path in (copied / "checkpoints").iterdir())
    with pytest.raises(RunError, match="none of the checkpoints in .* can be read"):
        transfer.read(copied)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == before, "somebody else's folder"


def test_an_older_checkpoint_is_not_taken_for_the_tested_state(copied) -> None:
    (copied / "result.json").write_text(json.dumps(read(copied / "result.json") | {"steps": 13}))
    with pytest.raises(RunError, match="of the last step, 13, is missing or damaged .* is of step 12"):
        transfer.read(copied)


def test_folders_that_hold_no_run(source, tmp_path) -> None:
    with pytest.raises(RunError, match="no run folder or .safetensors file 'gone'"):
        transfer.read("gone")
    with pytest.raises(RunError, match=f"is not a run folder: .*; the newest run in it is {source.run_dir}"):
        transfer.read(source.run_dir.parent)
    with pytest.raises(RunError, match="is not a run folder: it has no manifest.json$"):
        transfer.read(tmp_path)
    (tmp_path / "x.safetensors").write_text("no")
    with pytest.raises(RunError, match="x.safetensors is no safetensors file"):
        transfer.read(tmp_path / "x.safetensors")


def test_the_error_for_a_sweep_names_its_best_member(tmp_path, tiny_file) -> None:
    experiment = foldax.load_experiment(tiny_file)
    space = {"learning_rate": [1e-1, 1e-5]}
    foldax.sweep(experiment, space, seeds=1, sweep_dir=tmp_path / "s", verbose=False)
    message = (
        r"keeps no parameters .* best member by validation/loss alone: foldax run .*tiny_file.py --learning-rate 0.1$"
    )
    with pytest.raises(RunError, match=message):
        transfer.read(tmp_path / "s")


# Starting from a run


def test_a_run_starts_with_the_parameters_of_another_and_a_new_optimizer(source, tmp_path, capsys) -> None:
    config = tiny.config(init_from=source.run_dir, **NO_LEARNING)
    assert config.init_from == str(source.run_dir)
    result = run(config, tmp_path / "r", verbose=True)
    same_params(result.final_state, source.state)
    assert int(result.final_state.optimizer_state[0].count) == result.step == 2
    output = capsys.readouterr().out
    assert "4 of 4 arrays, 74 of 74 values are from the source\n" in output
    recorded = read(tmp_path / "r" / "manifest.json")["init_from"]
    assert recorded == transfer.read(source.run_dir).provenance | {
        "matched": 4, "shape differs": 0, "missing in source": 0, "unused": 0,
    }  # fmt: skip
    assert recorded["path"] == str(source.run_dir)
    assert read(tmp_path / "r" / "config.json")["init_from"] == str(source.run_dir)


def test_arrays_that_do_not_fit_keep_their_initialisation(source) -> None:
    alone, started = (run(tiny.config(init_from=path, hidden=(8, 4), **NO_LEARNING)) for path in (None, source.run_dir))
    for layer, expected in (("Dense_0", source.state), ("Dense_1", alone.final_state), ("Dense_2", alone.final_state)):
        jax.tree.map(np.testing.assert_array_equal, started.final_state.params[layer], expected.params[layer])


def test_the_best_state_may_be_the_initial_one(source) -> None:
    # with a rate of 0 every evaluation is the same, so the first is the best
    result = run(tiny.config(init_from=source.run_dir, learning_rate=0.0))
    assert result.best_step == 6
    same_params(result.state, source.state)


def test_initial_parameters_compile_nothing(source) -> None:
    run(tiny.config())
    before = dict(compiled.trace_counts)
    run(tiny.config(init_from=source.run_dir))
    assert compiled.trace_counts == before


def test_two_devices_share_a_batch(source) -> None:
    result = run(tiny.config(init_from=source.run_dir, mesh="data=2", **NO_LEARNING))
    same_params(result.final_state, source.state)


@pytest.mark.parametrize("what", ["result", "state", "params", "path", "renamed", "file"])
def test_kinds_of_initial_parameters_in_python(source, tmp_path, what) -> None:
    transfer.save(tmp_path / "x.safetensors", source)
    odd = {"body": source.state.params}
    initial = {
        "result": source,
        "state": source.state,
        "params": source.state.params,
        "path": source.run_dir,
        "renamed": transfer.rename(odd, {"body": ""}),
        "file": str(tmp_path / "x.safetensors"),
    }[what]
    result = run(tiny.config(**NO_LEARNING), tmp_path / "r", initial=initial)
    same_params(result.final_state, source.state)
    recorded = read(tmp_path / "r" / "manifest.json")["init_from"]
    assert (recorded["sha256"] == transfer.read(source.run_dir).provenance["sha256"]) == (what != "renamed")
    assert (recorded["path"] is None) == (what in ("result", "state", "params", "renamed"))
    assert recorded.get("rename") == ([["body", ""]] if what == "renamed" else None)


def test_a_source_that_cannot_be_read_leaves_no_folder(source, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no run folder"):
        run(tiny.config(init_from="gone"), tmp_path / "r")
    with pytest.raises(RunError, match="no run folder"):
        foldax.sweep(tiny, {"init_from": [None, "gone"]}, verbose=False, sweep_dir=tmp_path / "s")
    with pytest.raises(ConfigError, match="init_from: .* is given, and so is initial="):
        run(tiny.config(init_from=source.run_dir), tmp_path / "r", initial=source)
    with pytest.raises(ConfigError, match="init_from: expected str | None, got 3"):
        tiny.config(init_from=3)
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_which_nothing_fits(source, tmp_path) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        return learners.classifier(models.MLP((3, 3, 2)), optax.adam(1e-3), preprocess=lambda x: x[:, :2])

    with pytest.raises(
        RunError, match="none of the parameters from .* fits this model. The model has Dense_0/bias, .*The source has "
    ):
        foldax.train(tiny._replace(learner=learner), tiny.config(init_from=source.run_dir), save=False, verbose=False)


# Resume and reproduce


def interrupted(config: Config, path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Runs until SIGTERM at an evaluation."""
    evaluations = []

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        evaluations.append(1)
        if len(evaluations) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"mean": float(values["loss"].mean())}

    with pytest.raises(Interrupted):
        foldax.train(tiny._replace(summarize=summarize), config, run_dir=path, verbose=False)


def test_a_resumed_run_has_the_same_bits_and_needs_no_source(source, copied, tmp_path, monkeypatch) -> None:
    config = tiny.config(init_from=copied, evaluate_every=2, log_every=1, checkpoint_every=2)
    whole = run(config)
    interrupted(config, tmp_path / "r", monkeypatch, at=2)
    shutil.rmtree(copied)
    result = run(config, tmp_path / "r", resume=True)
    assert state_digest(result.final_state) == state_digest(whole.final_state)
    assert read(tmp_path / "r" / "manifest.json")["init_from"]["matched"] == 4


def test_a_run_resumed_without_a_checkpoint_starts_from_the_same_parameters(
    source, copied, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny.config(init_from="copy")
    whole = run(config, tmp_path / "r")
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / "r" / name).unlink()
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = run(config, tmp_path / "r", resume=True)
    assert state_digest(again.final_state) == state_digest(whole.final_state)
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    shutil.rmtree(copied)
    transfer.save(tmp_path / "other.safetensors", {"w": np.ones(3)})
    shutil.copy(tmp_path / "other.safetensors", copied)
    with pytest.raises(RunError, match="copy have changed since the run began"):
        run(config, tmp_path / "r", resume=True)


def test_resuming_needs_the_initial_parameters_of_python_again(source, tmp_path) -> None:
    config = tiny.config()
    whole = run(config, tmp_path / "r", initial=source)
    with pytest.raises(RunError, match="given in Python"):
        reproduce(tmp_path / "r", tiny, config)
    (tmp_path / "r" / "result.json").unlink()
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    with pytest.raises(RunError, match="given in Python; foldax.train"):
        run(config, tmp_path / "r", resume=True)
    again = run(config, tmp_path / "r", resume=True, initial=source)
    assert state_digest(again.final_state) == state_digest(whole.final_state)
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    with pytest.raises(RunError, match="Python have changed since the run began"):
        run(config, tmp_path / "r", resume=True, initial=source.final_state)


def test_a_run_is_reproduced_from_another_folder(copied, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny.config(init_from="copy")
    run(config, tmp_path / "r")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert reproduce(tmp_path / "r", tiny, config)
    assert "reproduced: all bits are the same" in capsys.readouterr().out


def test_a_run_from_renamed_parameters_is_reproduced(source, tmp_path, capsys) -> None:
    config = tiny.config()
    renamed = transfer.rename(source.run_dir, {"Dense_1": "head"})
    result = run(config, tmp_path / "r", initial=renamed)
    recorded = read(tmp_path / "r" / "manifest.json")["init_from"]
    assert (recorded["rename"], recorded["matched"], recorded["unused"]) == ([["Dense_1", "head"]], 2, 2)
    assert reproduce(tmp_path / "r", tiny, config)
    assert state_digest(result.final_state) != state_digest(run(config, initial=source).final_state)


# Sweeps


@pytest.mark.parametrize("execution", ["exact", "fast"])
def test_members_start_as_single_runs_do(source, tmp_path, execution, capsys) -> None:
    space = {"init_from": [None, source.run_dir], "learning_rate": [1e-2, 3e-3]}
    sweep = foldax.sweep(tiny, space, seeds=1, execution=execution, sweep_dir=tmp_path / "s")
    assert capsys.readouterr().out.count("4 of 4 arrays") == 1
    assert sweep.metadata["init_from"] == [transfer.read(source.run_dir).provenance]
    assert sweep.results["init_from"].isna().tolist() == [True, True, False, False]
    assert set(sweep.results["init_from"].dropna()) == {str(source.run_dir)}
    for row, config in zip(sweep.results.to_dict("records"), sweep.configs):
        lone = run(config)
        if execution == "exact":
            assert row["state_sha256"] == state_digest(lone.final_state)
        assert row["test/loss"] == pytest.approx(lone.metrics["test"]["loss"], abs=0 if execution == "exact" else 1e-4)
    assert sweep.results["test/loss"].nunique() == 4
    if execution == "exact":
        assert reproduce_member_of(tmp_path / "s", 2)


def reproduce_member_of(path: Path, number: int) -> bool:
    metadata = read(path / "sweep.json")
    metadata["file"] = str(path / "tiny.py")
    (path / "tiny.py").write_text("from tests.conftest import tiny as experiment\n")
    (path / "sweep.json").write_text(json.dumps(metadata))
    return reproduce_member(path, number)


@pytest.mark.parametrize(
    "search", [foldax.SuccessiveHalving(), foldax.PBT(perturbation_interval=4)], ids=["halving", "pbt"]
)
def test_members_of_a_search_start_from_the_source(source, search) -> None:
    config = tiny.config(init_from=source.run_dir, keep="last", learning_rate=0.0)
    sweep = foldax.sweep(tiny, {"dropout": [0.0, 0.1, 0.2]}, search=search, config=config, save=False, verbose=False)
    expected = run(config).metrics["validation"]["loss"]
    assert set(sweep.results["validation/loss"]) == {expected}


def test_a_worker_finds_the_run_from_its_own_working_directory(copied, tiny_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = foldax.load_experiment(tiny_file)
    foldax.train(experiment, experiment.config(), run_dir=tmp_path / "first", verbose=False)
    config = experiment.config(init_from="first")
    plan, stub = make_plan(experiment, config, {}), type("Workers", (), {"slices_per_worker": 1, "count": 1})
    callbacks = SweepCallbacks(None, ResultStore(None, 1), None, lambda: False)
    (job,) = launch.make_jobs(experiment, plan, 1, stub, callbacks, None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    events = {event[0]: event[1:] for event in worker.run_job(json.loads(json.dumps(job)))}
    assert "error" not in events, events
    assert "inputs" in events
    monkeypatch.chdir(tmp_path)
    lone = foldax.train(experiment, config, save=False, verbose=False)
    assert events["result"][0]["state_sha256"] == state_digest(lone.final_state)


def test_a_sweep_resumes_only_from_the_same_parameters(copied, tmp_path) -> None:
    path = tmp_path / "s"
    config = tiny.config(init_from=copied)
    foldax.sweep(tiny, {"learning_rate": [1e-2, 1e-3]}, config=config, sweep_dir=path, verbose=False)
    lines = (path / "members.jsonl").read_text().splitlines(keepends=True)
    (path / "members.jsonl").write_text(lines[0])
    (path / "sweep.json").write_text(json.dumps(read(path / "sweep.json") | {"status": "interrupted"}))
    shutil.rmtree(copied)
    transfer.save(tmp_path / "x.safetensors", {"w": np.ones(3)})
    shutil.copy(tmp_path / "x.safetensors", copied)
    with pytest.raises(RunError, match="copy have changed since the run began"):
        foldax.sweep(tiny, {"learning_rate": [1e-2, 1e-3]}, config=config, sweep_dir=path, resume=True, verbose=False)


# The laws


@pytest.mark.parametrize("law", ["chunking", "resume", "sweep", "tracing"])
def test_a_run_with_initial_parameters_satisfies_the_laws(source, law) -> None:
    subject = laws.make_subject(tiny, tiny.config(init_from=source.run_dir))
    same_params(subject.start_run().fold.state, source.state)
    assert laws.LAWS[law](subject) is None


# What it is for


def test_training_continues_with_new_data(tmp_path) -> None:
    """The same experiment on the data of another year, of which there is little, starts from the first year's run."""

    def of_year(year: int, count: int) -> foldax.Experiment:
        def dataset(config: Config) -> data.Dataset:
            arrays = tiny_arrays(400)
            rows = slice(0, 200) if year == 1 else slice(200, 200 + count)
            shifted = {"inputs": arrays["inputs"][rows] + 0.1 * year, "targets": arrays["targets"][rows]}
            return data.from_arrays(shifted, name=f"year {year}", batch_size=8, validation=0.0, test=0.5)

        return tiny._replace(dataset=dataset, name=f"year_{year}")

    first, second = of_year(1, 200), of_year(2, 160)
    config = tiny.config(steps=200, batch_size=8)
    foldax.train(first, config, run_dir=tmp_path / "first", verbose=False)
    few = tiny.config(steps=10, batch_size=8)
    scratch = foldax.train(second, few, save=False, verbose=False)
    going_on = foldax.train(
        second, tiny.config(steps=10, batch_size=8, init_from=tmp_path / "first"), save=False, verbose=False
    )
    assert going_on.metrics["test"]["loss"] < 0.6 * scratch.metrics["test"]["loss"]
    assert going_on.metrics["test"]["accuracy"] > scratch.metrics["test"]["accuracy"] + 0.1


def test_a_frozen_body_is_that_of_the_source(source) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        model = models.MLP((8, 2))
        return learners.classifier(
            model, optax.adam(config.learning_rate), preprocess=info.standardize, frozen=("Dense_0",)
        )

    config = tiny.config(init_from=source.run_dir, keep="last")
    result = foldax.train(tiny._replace(learner=learner), config, save=False, verbose=False)
    jax.tree.map(np.testing.assert_array_equal, result.final_state.params["Dense_0"], source.state.params["Dense_0"])
    assert (result.final_state.params["Dense_1"]["kernel"] != source.state.params["Dense_1"]["kernel"]).any()


def test_training_on_few_examples_starts_from_the_source(source) -> None:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        model = models.MLP((8, 2))
        whole = learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)
        return learners.subset(whole, 5, info)

    config = tiny.config(init_from=source.run_dir, **NO_LEARNING)
    result = foldax.train(tiny._replace(learner=learner), config, save=False, verbose=False)
    same_params(result.final_state.learner, source.state)
