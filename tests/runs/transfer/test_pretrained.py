"""Parameters of other runs: those below a prefix, and a frozen teacher that manifests name and `reproduce` compares."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import foldax
from foldax import cli, models, transfer
from foldax.engine.current_program import inputs_of
from foldax.errors import RunError
from foldax.runs import folder
from foldax.runs.reproduce import reproduce
from foldax.runs.transfer import pretrained
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.launchers.launch import handle_event
from foldax.sweeps.records import ResultStore
from tests.conftest import Config, tiny


@foldax.config
class WithTeacher(Config):
    teacher: str = ""


def variables(value: float) -> dict[str, Any]:
    return {"encoder": {"w": np.full(3, value, np.float32)}, "head": {"w": np.ones(2, np.float32)}}


def student(config: WithTeacher, info: Any) -> foldax.Learner:
    """A state that adds the sum of the teacher's weights at every update."""
    teacher = foldax.pretrained(config.teacher)["params"]["encoder"]["w"]
    return foldax.Learner(
        init=lambda key, examples: {"w": jax.numpy.zeros(())},
        update=lambda state, batch, key: ({"w": state["w"] + teacher.sum()}, {"loss": state["w"]}),
        evaluate=lambda state, batch, key: {"loss": state["w"][None]},
    )


experiment = foldax.Experiment(WithTeacher, student, name="student")


def train(path: Path, teacher: Path, **options: Any) -> foldax.Result:
    steps = options.pop("steps", 2)
    config = WithTeacher(steps=steps, teacher=str(teacher))
    return foldax.train(experiment, config, run_dir=path, verbose=False, **options)


def test_manifests_name_a_frozen_teacher_and_reproduce_misses_it(tmp_path: Path, capsys) -> None:
    teacher, path = tmp_path / "teacher.safetensors", tmp_path / "run"
    transfer.save(teacher, variables(2.0))
    result = train(path, teacher)
    assert float(result.state["w"]) == 12
    (recorded,) = folder.read_json(path / "manifest.json")["inputs"]
    assert recorded["path"] == str(teacher)
    assert recorded["sha256"] == transfer.read(teacher).provenance["sha256"]
    # A second run of the compiled program, which reads nothing again, names it too; a run of another experiment does not.
    train(tmp_path / "second", teacher)
    assert folder.read_json(tmp_path / "second" / "manifest.json")["inputs"] == [recorded]
    foldax.train(tiny, Config(steps=1), run_dir=tmp_path / "other", verbose=False)
    assert "inputs" not in folder.read_json(tmp_path / "other" / "manifest.json")
    assert reproduce(path, experiment, result.config)
    transfer.save(teacher, variables(3.0))
    changed = "parameters from .*teacher.safetensors, an input of the run, have changed since it read them"
    with pytest.raises(RunError, match=changed):
        reproduce(path, experiment, result.config)
    teacher.unlink()
    with pytest.raises(RunError, match="no run folder or .safetensors file"):
        reproduce(path, experiment, result.config)


def test_a_run_goes_on_with_another_teacher_only_where_that_is_allowed(tmp_path: Path, capsys) -> None:
    teacher, path = tmp_path / "teacher.safetensors", tmp_path / "run"
    transfer.save(teacher, variables(2.0))
    train(path, teacher)
    before = folder.read_json(path / "manifest.json")["inputs"]
    transfer.save(teacher, variables(3.0))
    jax.clear_caches()  # as in another process
    with pytest.raises(RunError, match="have changed since it read them; put the old ones back, or allow others"):
        train(path, teacher, steps=4, resume=True)
    jax.clear_caches()
    assert float(train(path, teacher, steps=4, resume=True, allow_other_data=True).final_state["w"]) == 12 + 18
    manifest = folder.read_json(path / "manifest.json")
    assert manifest["inputs"] == before
    assert manifest["sessions"][-1]["inputs"][0]["sha256"] == transfer.read(teacher).provenance["sha256"]
    # What was accepted once is what the run goes on with.
    assert float(train(path, teacher, steps=6, resume=True).final_state["w"]) == 12 + 18 + 18
    transfer.save(teacher, variables(2.0))
    with pytest.raises(RunError, match="have changed since it read them"):
        train(path, teacher, steps=8, resume=True)


def test_a_look_at_a_learner_makes_its_inputs_none_of_later_runs(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    transfer.save(teacher, variables(2.0))
    result = train(tmp_path / "run", teacher)
    assert result.learner.predict is None
    foldax.train(tiny, Config(steps=1), run_dir=tmp_path / "other", verbose=False)
    assert "inputs" not in folder.read_json(tmp_path / "other" / "manifest.json")


def test_a_sweep_names_what_its_workers_have_read() -> None:
    config, other = WithTeacher(teacher="one"), WithTeacher(teacher="two")
    read = {"path": "/gone/teacher.safetensors", "sha256": "1f3a"}
    with inputs_of(experiment, config):
        handle_event(("inputs", [read]), {}, {}, SweepCallbacks(None, ResultStore(None, 1), None, lambda: False))
    assert read in pretrained.read_inputs(experiment, [config])
    assert read not in pretrained.read_inputs(experiment, [other])


def test_inputs_are_recorded_once_in_whatever_order_they_are_read(tmp_path: Path) -> None:
    transfer.save(tmp_path / "a.safetensors", variables(2.0))
    transfer.save(tmp_path / "b.safetensors", variables(3.0))
    own = foldax.Experiment(WithTeacher, student, name="student")
    for names in ("ba", "ab"):
        folder.write_json(tmp_path / "manifest.json", {"sessions": []})
        for name in names:
            with inputs_of(own, WithTeacher()):
                foldax.pretrained(tmp_path / f"{name}.safetensors")
            pretrained.record_inputs(tmp_path, own, [WithTeacher()])
        manifest = folder.read_json(tmp_path / "manifest.json")
        assert [Path(one["path"]).stem for one in manifest["inputs"]] == ["a", "b"]
        pretrained.record_inputs(tmp_path, own, [WithTeacher(steps=2)])
        assert folder.read_json(tmp_path / "manifest.json") == manifest


def compared_with_teacher(config: WithTeacher, info: Any) -> foldax.Learner:
    """A learner whose evaluation alone reads the teacher, when it is compiled, which may be in another thread."""

    def evaluate(state: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {"loss": (state["w"] - foldax.pretrained(config.teacher)["params"]["encoder"]["w"].sum())[None]}

    return foldax.Learner(
        init=lambda key, examples: {"w": jax.numpy.zeros(())},
        update=lambda state, batch, key: (state, {"loss": state["w"]}),
        evaluate=evaluate,
    )


def sweep(path: Path | None, teachers: list[Path], learner: Any = student, **options: Any) -> foldax.SweepResult:
    space = {"teacher": [str(one) for one in teachers]}
    own = foldax.Experiment(WithTeacher, learner, name="student")
    return foldax.sweep(own, space, config=WithTeacher(steps=1), sweep_dir=path, verbose=False, **options)


@pytest.mark.parametrize("execution", ["exact", "fast"])
def test_a_sweep_names_its_teachers_and_runs_after_it_do_not(tmp_path: Path, execution: str) -> None:
    teachers = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for teacher in teachers:
        transfer.save(teacher, variables(2.0))
    options = {"learner": compared_with_teacher, "execution": execution}
    swept = sweep(tmp_path / "sweep", teachers, **options)
    assert [one["path"] for one in swept.metadata["inputs"]] == [str(teacher) for teacher in teachers]
    unsaved = sweep(None, teachers[:1], save=False, **options)
    assert [one["path"] for one in unsaved.metadata["inputs"]] == [str(teachers[0])]
    # Neither has left anything to a run of another experiment.
    foldax.train(tiny, Config(steps=1), run_dir=tmp_path / "other", verbose=False)
    assert "inputs" not in folder.read_json(tmp_path / "other" / "manifest.json")


def test_an_interrupted_sweep_goes_on_with_another_teacher_only_where_that_is_allowed(tmp_path: Path, capsys) -> None:
    teacher, path = tmp_path / "teacher.safetensors", tmp_path / "sweep"
    transfer.save(teacher, variables(2.0))
    sweep(path, [teacher])
    before = folder.read_json(path / "sweep.json")
    # As a kill leaves it: recorded before the first step, and without results.
    for name in ("results.parquet", "curves.parquet", "members.jsonl"):
        (path / name).unlink(missing_ok=True)
    folder.write_json(path / "sweep.json", before | {"status": "running"})
    transfer.save(teacher, variables(3.0))
    with pytest.raises(RunError, match="have changed since it read them; put the old ones back, or allow others"):
        sweep(path, [teacher], resume=True)
    swept = sweep(path, [teacher], resume=True, allow_other_data=True)
    assert swept.metadata["inputs"] == before["inputs"]
    (recorded,) = swept.metadata["sessions"][-1]["inputs"]
    assert recorded["sha256"] == transfer.read(teacher).provenance["sha256"]
    assert len(swept.results) == 1


def test_pretrained_returns_variables_that_a_model_takes(tmp_path: Path) -> None:
    path = foldax.train(tiny, Config(steps=2), run_dir=tmp_path / "run", verbose=False).run_dir
    result = foldax.load_run(path, tiny)
    inputs = result.examples("test")["inputs"][:3]
    logits = models.MLP((8, 2), dropout=0.1).apply(foldax.pretrained(path), result.info.standardize(inputs))
    np.testing.assert_allclose(logits, result.predict(inputs), rtol=1e-5)
    # Concrete also where a program is traced.
    traced: list[bool] = []
    jax.jit(lambda: traced.append(isinstance(foldax.pretrained(path)["params"]["Dense_0"]["bias"], jax.core.Tracer)))()
    assert traced == [False]


@pytest.mark.parametrize("target", [{"encoder": {"w": np.zeros(3)}, "head": {"w": np.zeros(2)}}, {"w": np.zeros(3)}])
def test_a_prefix_takes_what_is_below_it_for_its_module_or_for_the_whole_model(tmp_path: Path, target: Any) -> None:
    transfer.save(tmp_path / "x.safetensors", variables(2.0))
    source = f"{tmp_path}/x.safetensors:encoder"
    matched = transfer.match(target, source)
    tree = matched.tree
    np.testing.assert_array_equal(tree.get("encoder", tree)["w"], np.full(3, 2.0))
    if "head" in tree:
        np.testing.assert_array_equal(tree["head"]["w"], np.zeros(2))
    assert matched.source.provenance["path"] == source
    with pytest.raises(RunError, match=r"no parameters below 'encodr' in .*; did you mean 'encoder'\? \(there are"):
        transfer.read(f"{tmp_path}/x.safetensors:encodr")


def test_a_folder_with_a_colon_in_its_name_is_no_prefix(tmp_path: Path) -> None:
    transfer.save(tmp_path / "x:y.safetensors", variables(2.0))
    assert len(transfer.read(tmp_path / "x:y.safetensors").arrays) == 2
    assert len(transfer.read(f"{tmp_path}/x:y.safetensors:head").arrays) == 1


def test_init_from_a_prefix_is_an_option_and_is_recorded(tmp_path: Path, tiny_file: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(tiny_file), "--steps", "2", "--run-dir", "first"]) == 0
    words = ["--steps", "2", "--init-from", "first:Dense_0", "--run-dir", "second"]
    assert cli.main(["run", str(tiny_file), *words]) == 0
    recorded = folder.read_json(Path("second/manifest.json"))["init_from"]
    assert (recorded["path"], recorded["prefix"]) == (f"{tmp_path}/first:Dense_0", "Dense_0")
    assert (recorded["matched"], recorded["missing in source"]) == (2, 2)
    assert cli.main(["reproduce", "second"]) == 0
