"""The run folder: files of a finished run, locks, and writes that fail."""

import errno
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import foldax
from foldax.errors import ConfigError, ExperimentError, Interrupted, RunError
from foldax.runs import folder
from foldax.runs.log import read_log
from foldax.runs.resume import run_status
from foldax.runs.status import failure_status
from tests.conftest import Config


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> foldax.Result:
    from tests.conftest import tiny

    return foldax.train(tiny, tiny.config(seed=3), run_dir=tmp_path_factory.mktemp("runs") / "r", verbose=False)


@pytest.fixture(scope="module")
def run(result) -> Path:
    return result.run_dir


def read(path: Path):
    return json.loads(path.read_text())


def test_files_of_a_finished_run(run) -> None:
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    assert names == {
        "config.json", "manifest.json", "metrics.jsonl", "performance.jsonl", "result.json", "checkpoints", "figures", "lock",
    }  # fmt: skip
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["12"]


def test_the_config_is_read_back(run, result) -> None:
    assert foldax.from_json(result.experiment.config, read(run / "config.json")) == result.config


def test_the_manifest_records_the_provenance_of_the_run(run, result) -> None:
    manifest = read(run / "manifest.json")
    assert manifest["experiment"] == "tiny"
    assert manifest["file"].endswith("conftest.py")
    assert re.fullmatch("[0-9a-f]{64}", manifest["file_sha256"])
    assert manifest["command"]
    assert manifest["seed"] == 3
    assert manifest["config_hash"] == foldax.config_hash(result.config)
    assert manifest["versions"]["jax"] == jax.__version__
    assert {"foldax", "jaxlib", "flax", "optax", "numpy"} <= set(manifest["versions"])
    assert manifest["backend"] == jax.default_backend()
    assert manifest["devices"] == [str(device) for device in jax.devices()]
    assert manifest["data_fingerprint"] == result.info.fingerprint
    assert manifest["started"] <= manifest["ended"]
    assert manifest["status"] == "finished"
    if manifest["git"] is not None:
        assert re.fullmatch("[0-9a-f]{40}", manifest["git"]["commit"])
        assert isinstance(manifest["git"]["dirty"], bool)


def test_the_log_has_a_line_per_log_and_evaluation(run, result) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [
        (4, "train"), (6, "validation"), (8, "train"), (12, "train"), (12, "validation"),
    ]  # fmt: skip
    assert all({"loss", "accuracy"} <= set(line) for line in lines)
    assert lines == result.history == read_log(run)


def test_content_of_result_json(run, result) -> None:
    found = read(run / "result.json")
    assert set(found) == {
        "status", "steps", "tested", "best_step", "train", "validation", "test", "state_sha256",
        "steps_per_second", "performance", "seconds", "compile_seconds", "figures",
    }  # fmt: skip
    assert (found["status"], found["steps"], found["tested"]) == ("finished", 12, "best")
    assert found["best_step"] in (6, 12)
    for split in ("train", "validation", "test"):
        assert found[split] == result.metrics[split]
    assert found["seconds"] > found["compile_seconds"] >= 0
    assert re.fullmatch("[0-9a-f]{64}", found["state_sha256"])


def test_the_figures_are_images(run) -> None:
    for name in read(run / "result.json")["figures"].values():
        assert (run / "figures" / name).read_bytes().startswith(b"\x89PNG\r\n")


def events(path: Path) -> list:
    """Reads TensorBoard's records: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        record, content = content[12 : 12 + size], content[12 + size :]
        assert struct.unpack("<I", content[:4])[0] == masked_crc32c(record)
        found.append(Event.FromString(record))
        content = content[4:]
    return found


def test_tensorboard_events_equal_the_log(run, result) -> None:
    (path,) = run.glob("events.out.tfevents.*")
    first, *rest = events(path)
    assert first.file_version == "brain.Event:2"
    values = {(e.step, v.tag): v for e in rest for v in e.summary.value}
    assert values[12, "learning_curves"].image.encoded_image_string.startswith(b"\x89PNG")
    assert values[12, "final/test/loss"].simple_value == pytest.approx(result.metrics["test"]["loss"])
    found = {key: v.simple_value for key, v in values.items() if key[1].startswith(("train/", "validation/"))}
    expected = {
        (line["step"], f"{line['split']}/{name}"): pytest.approx(value, rel=1e-6)
        for line in result.history
        for name, value in line.items()
        if name not in ("step", "split")
    }
    assert found == expected


@pytest.mark.parametrize("name", ["..", "../up", "a/../../b", "/tmp/up", ".", "x" * 256, "nul\0", "\ud800", 3])
def test_a_name_that_leads_out_of_runs_or_names_no_file_is_refused(experiment, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError, match=r"^Experiment.name: .* cannot name the folder of the runs: it must be"):
        folder.new_run_dir(experiment._replace(name=name), experiment.config())


@pytest.mark.parametrize("name", ["a/b", "with space", "[/x]", "ü", "x" * 255, "a\nb", "..."])
def test_other_names_are_those_of_folders_below_runs(experiment, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder.new_run_dir(experiment._replace(name=name), experiment.config())
    assert path.parent == Path("runs") / name
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("stopped at step 3"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (RunError("the disk is full\nfree some"), "failed: the disk is full"),
        (ExperimentError("own code failed:\n  File x\nKeyError: 'a'"), "failed: own code failed: KeyError: 'a'"),
        (RunError(""), "failed: RunError"),
        (MemoryError("out"), "failed: MemoryError"),
    ],
)
def test_the_status_of_a_run_that_failed_has_the_reason(error, status) -> None:
    assert failure_status(error) == status


def test_runs_of_the_same_second_have_different_folders(experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Clock(folder.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(folder.datetime, "datetime", Clock)
    config, names = experiment.config(), []
    for _ in range(3):
        path = folder.new_run_dir(experiment, config)
        with folder.lock(path):
            names.append(path.name)
    base = f"20300102-030405-{foldax.config_hash(config)[:6]}"
    assert names == [base, f"{base}-2", f"{base}-3"]
    assert folder.new_run_dir(experiment, experiment.config(seed=1)).name != base


def test_a_lock_is_exclusive_and_ends_with_its_file(tmp_path) -> None:
    with folder.lock(tmp_path / "r"), pytest.raises(RunError, match=f"is in use by process {os.getpid()}"):
        folder.lock(tmp_path / "r")
    folder.lock(tmp_path / "r").close()


def test_a_filesystem_without_locks_is_warned_about(tmp_path, monkeypatch, capsys) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    folder.lock(tmp_path / "r").close()
    assert "cannot be locked (No locks available): let no other process write to it" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x.json"
    folder.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        folder.write_json(path, {"a": object()})
    assert read(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from foldax.runs import folder
from foldax.runs.status import failure_status
path = Path(sys.argv[1])
folder.write_json(path, {"a": 1})
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
folder.write_json(path, {"a": 2, "b": list(range(10_000))})
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x.json"
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL
    assert read(path) == {"a": 1}
    folder.write_json(path, {"a": 3})
    assert folder.read_json(path) == {"a": 3}


def test_a_folder_belongs_to_one_experiment_and_one_config(run, result) -> None:
    experiment, config = result.experiment, result.config
    run_status(run, experiment, config)
    with pytest.raises(RunError, match="of another experiment, 'tiny', not of 'other'"):
        run_status(run, experiment._replace(name="other"), config)
    with pytest.raises(ConfigError, match=r"another config: seed \(3 in the folder, now 4\); choose another"):
        run_status(run, experiment, experiment.config(seed=4, steps=13))
    with pytest.raises(RunError, match="holds a run already; `foldax resume"):
        folder.create(run, experiment, config)


def config_class(**fields) -> type:
    """A config class with fields of these types and defaults, always of one name."""
    annotations = {name: hint for name, (hint, _) in fields.items()}
    values = {name: default for name, (_, default) in fields.items()}
    return foldax.config(type("Config", (Config,), {"__annotations__": annotations, **values}))


def test_a_run_outlives_fields_that_its_class_gains_and_loses(experiment, tmp_path, capsys) -> None:
    old = experiment._replace(config=config_class(removed=(int, 3)))
    foldax.train(old, run_dir=tmp_path / "run", verbose=False)
    new = experiment._replace(config=config_class(added=(int, 5)))
    assert foldax.load_run(tmp_path / "run", new).config.added == 5
    assert "fields that Config no longer has; they are ignored: removed" in capsys.readouterr().err
    run_status(tmp_path / "run", new, new.config())
    with pytest.raises(ConfigError, match=r"another config: added \(5 in the folder, now 6\)"):
        run_status(tmp_path / "run", new, new.config(added=6))


def test_a_run_with_nan_in_its_config_can_be_resumed(experiment, tmp_path) -> None:
    with_nan = experiment._replace(config=config_class(threshold=(float, math.nan)))
    folder.create(tmp_path, with_nan, with_nan.config())
    run_status(tmp_path, with_nan, with_nan.config())
    assert json.loads((tmp_path / "config.json").read_text())["threshold"] == "nan"


def test_a_run_of_a_notebook_says_how_to_go_on(run, tmp_path) -> None:
    manifest = read(run / "manifest.json") | {"file": None}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"made in a notebook .* foldax\.train\(experiment, config, run_dir=.*resume"):
        folder.load(tmp_path)


def test_nothing_is_written_without_save(experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = foldax.train(experiment, save=False, verbose=False)
    assert result.run_dir is None
    assert result.metrics["test"]
    assert list(tmp_path.iterdir()) == []


def test_resume_needs_a_folder(experiment) -> None:
    with pytest.raises(RunError, match="say which run folder"):
        foldax.train(experiment, resume=True, verbose=False)
