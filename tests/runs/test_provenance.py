"""What a run was made with is recorded once, and compared by all that use the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import foldax
from foldax import cli
from foldax.engine import checkpoint_files
from foldax.errors import DataError
from foldax.runs import provenance, reproduce
from foldax.runs.folder import read_json
from tests.conftest import Config, tiny_arrays, tiny_dataset


def with_other_data(experiment: foldax.Experiment) -> foldax.Experiment:
    """The same experiment after somebody has replaced its data."""
    arrays = tiny_arrays()
    arrays["inputs"] = arrays["inputs"] + np.float32(1)
    return experiment._replace(
        dataset=lambda config: foldax.data.from_arrays(
            arrays, batch_size=config.batch_size, validation=0.2, test=0.2, source="device"
        )
    )


@pytest.fixture
def interrupted(experiment: foldax.Experiment, tmp_path: Path) -> Path:
    """A run that was stopped half-way, as a kill leaves it."""
    foldax.train(experiment, Config(checkpoint_every=6), run_dir=tmp_path / "run", verbose=False)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "12")
    return tmp_path / "run"


def test_what_has_changed_is_named() -> None:
    before = {"file_sha256": "1", "file": "/a/exp.py", "versions": {"jax": "0.9"}, "git": None, "backend": "gpu"}
    now = {"file_sha256": "2", "file": "/b/exp.py", "versions": {"jax": "0.10"}, "git": {"commit": "c"}}
    assert provenance.changes(before, now | {"backend": "cpu"}) == [
        "exp.py has changed since",
        "backend was gpu, is cpu",
        "jax was 0.9, is 0.10",
    ]
    assert provenance.changes(before, before) == []
    flags = {"versions": {}, "flags": {"jax_default_matmul_precision": None}}
    changed = {"versions": {}, "flags": {"jax_default_matmul_precision": "bfloat16", "new": 1}}
    assert provenance.changes(flags, changed) == ["jax_default_matmul_precision was None, is bfloat16"]


def test_flags_of_jax_are_recorded(experiment: foldax.Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.collect(experiment)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    (change,) = provenance.changes(before, provenance.collect(experiment))
    assert change.startswith("XLA_FLAGS was ")
    assert change.endswith("is --xla_cpu_enable_fast_math=true")


def test_a_run_is_not_resumed_on_other_data_unless_they_are_allowed(interrupted: Path, experiment, capsys) -> None:
    other, config, before = (
        with_other_data(experiment),
        Config(checkpoint_every=6),
        read_json(interrupted / "manifest.json"),
    )
    with pytest.raises(DataError, match=r"the data of .*run have changed: .*; put the old data back, or allow others"):
        foldax.train(other, config, run_dir=interrupted, resume=True, verbose=False)
    assert read_json(interrupted / "manifest.json")["data_fingerprint"] == before["data_fingerprint"]
    result = foldax.train(other, config, run_dir=interrupted, resume=True, allow_other_data=True, verbose=False)
    manifest = read_json(interrupted / "manifest.json")
    assert manifest["data_fingerprint"] == before["data_fingerprint"]
    assert manifest["sessions"][-1]["data_fingerprint"] == result.info.fingerprint
    assert "have changed" in capsys.readouterr().err
    # From now on the run's data are those that it was resumed with.
    assert foldax.load_run(interrupted, other).step == 12
    with pytest.raises(DataError, match="have changed"):
        foldax.load_run(interrupted, experiment)
    assert foldax.load_run(interrupted, experiment, allow_other_data=True).step == 12


def test_a_finished_run_without_checkpoints_is_left_as_it_is_where_its_data_are_others(experiment, tmp_path) -> None:
    path = tmp_path / "run"
    foldax.train(experiment, Config(), run_dir=path, verbose=False)
    shutil.rmtree(path / "checkpoints")
    names = ("metrics.jsonl", "performance.jsonl", "result.json", "config.json")
    before = {name: (path / name).read_bytes() for name in names}
    with pytest.raises(DataError, match="have changed"):
        foldax.train(with_other_data(experiment), Config(), run_dir=path, resume=True, verbose=False)
    assert {name: (path / name).read_bytes() for name in names} == before
    assert read_json(path / "manifest.json")["status"] == "finished"
    # With its own data it is trained again, to the same log.
    foldax.train(experiment, Config(), run_dir=path, resume=True, verbose=False)
    assert (path / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


def test_a_sweep_is_not_resumed_on_other_data_unless_they_are_allowed(experiment, tmp_path: Path) -> None:
    path, space = tmp_path / "sweep", {"dropout": [0.0, 0.1]}
    foldax.sweep(experiment, space, config=Config(), sweep_dir=path, verbose=False)
    sweep = read_json(path / "sweep.json")
    (path / "sweep.json").write_text(json.dumps(sweep | {"status": "interrupted"}))
    options = dict(config=Config(), sweep_dir=path, resume=True, verbose=False)
    with pytest.raises(DataError, match="have changed"):
        foldax.sweep(with_other_data(experiment), space, **options)
    foldax.sweep(with_other_data(experiment), space, allow_other_data=True, **options)
    after = read_json(path / "sweep.json")
    assert after["data_fingerprint"] == sweep["data_fingerprint"] != after["sessions"][-1]["data_fingerprint"]


def test_an_edited_experiment_file_is_named_by_all_that_use_the_run(tiny_file, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(tiny_file), "--run-dir", "run"]) == 0
    tiny_file.write_text(tiny_file.read_text() + "\n# edited\n")
    for command in (["show", "run"], ["predict", "run", "test"], ["reproduce", "run"]):
        capfd.readouterr()
        assert cli.main(command) == 0
        err = capfd.readouterr().err
        assert err.count("tiny_file.py has changed since") == 1, command


def test_git_is_asked_for_a_commit_only_where_one_is_recorded(experiment, monkeypatch) -> None:
    questions = []
    monkeypatch.setattr(provenance, "_ask_git", lambda experiment, *arguments: questions.append(arguments) or "1f3a")
    recorded = provenance.collect(experiment)
    assert recorded["git"] == {"commit": "1f3a", "dirty": True}
    for git in (None, {"commit": "1f3a", "dirty": False}):
        assert provenance.warn_of_changes(Path("run"), recorded | {"git": git}, experiment) == []
    assert [one[0] for one in questions] == ["rev-parse", "status", "rev-parse"]


def test_seconds_add_up_over_sessions(interrupted: Path, experiment) -> None:
    meta = next((interrupted / "checkpoints" / "6" / "meta").rglob("metadata"))
    content = json.loads(meta.read_text())
    assert content["times"]["seconds"] > 0
    del content["meta_checksum"]
    longer = content | {"times": {"seconds": 1000.0, "compile_seconds": 100.0}}
    meta.write_text(json.dumps(checkpoint_files.with_checksum(longer)))
    result = foldax.train(experiment, Config(checkpoint_every=6), run_dir=interrupted, resume=True, verbose=False)
    assert result.seconds > 1000
    assert result.compile_seconds >= 100


def test_what_had_changed_when_a_run_was_resumed_is_named(interrupted: Path, experiment, capsys, monkeypatch) -> None:
    config = Config(checkpoint_every=6)
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        foldax.train(experiment, config, run_dir=interrupted, resume=True, verbose=False)
    assert reproduce.reproduce(interrupted, experiment, config)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert note.startswith("note: resumed at step 6 with changes: XLA_FLAGS was ")
    assert note.endswith("is --xla_cpu_enable_fast_math=true")


def test_changes_of_steps_that_were_lost_explain_nothing() -> None:
    sessions = [{"step": 6, "changes": ["a"]}, {"step": 4, "changes": []}, {"changes": ["b"], "data_fingerprint": "1f"}]
    assert provenance.session_changes({"sessions": sessions}) == ["resumed with changes: b; other data"]
    sessions[1]["step"] = 7
    assert len(provenance.session_changes({"sessions": sessions})) == 2


def test_an_altered_line_of_the_log_does_not_reproduce(experiment, tmp_path: Path, capsys) -> None:
    foldax.train(experiment, Config(), run_dir=tmp_path / "run", verbose=False)
    assert reproduce.reproduce(tmp_path / "run", experiment, Config())
    assert "lines, identical" in capsys.readouterr().out
    log = tmp_path / "run" / "metrics.jsonl"
    first, *rest = map(json.loads, log.read_text().splitlines())
    log.write_text("".join(json.dumps(line) + "\n" for line in [first | {"loss": 0.5}, *rest]))
    assert not reproduce.reproduce(tmp_path / "run", experiment, Config())
    assert "line 1 of the log DIFFERS: " in capsys.readouterr().out


def test_data_are_read_as_before(experiment) -> None:
    assert with_other_data(experiment).dataset(Config()).info.fingerprint != tiny_dataset(Config()).info.fingerprint
