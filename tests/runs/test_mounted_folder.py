"""Run folders on mounted drives: no locks, renames that fail or copy file by file, and kills between."""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import foldax
from foldax.engine import checkpoint_folder
from foldax.errors import RunError
from foldax.runs import folder
from foldax.runs.log import Log, read_log
from tests.conftest import Config, tiny

OPTIONS = dict(checkpoint_every=4)


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which locks are not supported and renames fail; other folders are as they are."""
    drive = tmp_path / "drive"
    drive.mkdir()

    def refuse(module: Any, name: str, code: int) -> None:
        original = getattr(module, name)

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if Path(first if isinstance(first, str | Path) else getattr(first, "name", "")).is_relative_to(
                drive
            ):  # of a file, or a path
                raise OSError(code, os.strerror(code))
            return original(first, *rest, **options)

        monkeypatch.setattr(module, name, call)

    refuse(os, "rename", errno.EPERM)
    refuse(os, "replace", errno.EPERM)
    refuse(fcntl, "flock", errno.ENOSYS)
    return drive


class Killed(BaseException):
    """The process ends here."""


def copying_rename(files: int) -> Any:
    """A rename that copies one file after another, and is killed after some."""
    left = [files]

    def copy(source: str, target: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        shutil.copyfile(source, target)

    def rename(source: Any, target: Any) -> None:
        if os.path.isdir(source):
            shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)
            shutil.rmtree(source)
        else:
            copy(source, target)
            os.unlink(source)

    return rename


def train(path: Path, steps: int) -> foldax.Result:
    return foldax.train(tiny, Config(steps=steps, **OPTIONS), run_dir=path, resume="auto", verbose=False)


def test_a_run_goes_on_where_locks_and_renames_fail(tmp_path: Path, drive: Path, capsys) -> None:
    with pytest.raises(OSError, match="not permitted"):
        (drive / "lock").rename(drive / "other")
    assert checkpoint_folder.lacks_locks(drive)
    assert not checkpoint_folder.lacks_locks(tmp_path)
    assert train(drive / "run", 6).status == train(drive / "run", 12).status == "finished"
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err
    names = sorted(path.name for path in (drive / "run" / "checkpoints").iterdir())
    assert names == ["12", "8"]
    whole = foldax.train(tiny, Config(**OPTIONS), run_dir=tmp_path / "run", verbose=False)
    sha256 = [folder.read_result(path)["state_sha256"] for path in (whole.run_dir, drive / "run")]
    assert sha256[0] == sha256[1]
    assert foldax.load_run(drive / "run", tiny).step == 12


def test_a_sweep_goes_on_where_locks_and_renames_fail(drive: Path, capsys) -> None:
    def sweep() -> foldax.SweepResult:
        space = {"learning_rate": [1e-3, 1e-2]}
        options = dict(sweep_dir=drive / "sweep", resume="auto", verbose=False)
        return foldax.sweep(tiny, space, config=Config(steps=4, **OPTIONS), **options)

    first = sweep()
    members = drive / "sweep" / "members.jsonl"
    members.write_text(members.read_text().splitlines(keepends=True)[0])  # one of two members had ended
    record = folder.read_json(drive / "sweep" / "sweep.json")
    folder.write_json(drive / "sweep" / "sweep.json", record | {"status": "interrupted"})
    assert first.results["state_sha256"].tolist() == sweep().results["state_sha256"].tolist()
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err
    assert not [path.name for path in (drive / "sweep").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("files", [0, 3])
def test_a_kill_while_a_checkpoint_is_copied_leaves_the_one_before(
    tmp_path: Path, drive: Path, monkeypatch, capsys, files: int
) -> None:
    train(drive / "run", 6)
    checkpoints, local = drive / "run" / "checkpoints", tmp_path / "local"
    for step in ("6", "10"):
        shutil.copytree(checkpoints / "6", local / step)
    copyfile, left = shutil.copyfile, [files]

    def copy(*paths: Any, **options: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return copyfile(*paths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy)
        with pytest.raises(Killed):
            checkpoint_folder.publish(local, checkpoints)
    assert {path.name for path in checkpoints.iterdir()} == {"4", "6", "10"}
    assert train(drive / "run", 12).step == 12
    assert "checkpoints/10 is damaged and was set aside" in capsys.readouterr().err
    assert {path.name for path in checkpoints.iterdir()} == {"8", "12"}  # removed, where it cannot be renamed


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_kill_while_a_checkpoint_is_renamed_leaves_the_one_before(tmp_path: Path, files: int, capsys) -> None:
    path = tmp_path / "run"
    train(path, 6)
    (newest,) = [one for one in (path / "checkpoints").iterdir() if one.name == "6"]
    moved = path / "checkpoints" / "10.orbax-checkpoint-tmp"
    shutil.copytree(newest, moved)
    with pytest.raises(Killed):
        copying_rename(files)(moved, path / "checkpoints" / "10")
    assert train(path, 12).step == 12
    assert "checkpoints/10 is damaged and was set aside" in capsys.readouterr().err
    assert (path / "checkpoints" / "damaged-10").is_dir()


def test_a_second_damaged_checkpoint_of_a_step_is_set_aside_too(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "5").mkdir()
        checkpoint_folder.set_aside(tmp_path / "5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-5", "damaged-5-2"]


def test_a_json_file_is_read_from_its_whole_copy(tmp_path: Path, drive: Path, monkeypatch) -> None:
    path = drive / "x.json"
    folder.write_json(path, {"a": 1})
    folder.write_json(path, {"a": 2})
    assert folder.read_json(path) == {"a": 2}
    assert [file.name for file in drive.iterdir()] == ["x.json"]

    def killed(source: Path, target: Path) -> None:
        Path(target).write_text(Path(source).read_text()[:5])
        raise Killed

    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(Killed):
        folder.write_json(path, {"a": 3})
    assert path.read_text() == '{\n  "'
    assert folder.read_json(path) == {"a": 3}
    path.unlink()
    assert folder.read_json(path) == {"a": 3}


def test_a_full_disk_during_a_rename_leaves_no_second_file(tmp_path: Path, monkeypatch) -> None:
    def full(*paths: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space left"):
        folder.write_json(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_rewound_in_place(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step)})
    before, inode = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "metrics.jsonl").stat().st_ino
    assert [line["step"] for line in log.rewind(2)] == [1, 2]
    log.write(3, "train", {"loss": 3.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
