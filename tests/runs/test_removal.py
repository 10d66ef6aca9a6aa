"""`foldax rm` and `foldax tag`: what may be removed, and what never is."""

import io
from pathlib import Path

import pytest

from foldax import cli
from foldax.errors import ConfigError, RunError
from foldax.runs import folder, removal, terminal
from foldax.runs.tags import change_tags, read_tags


def make_run(path: Path) -> Path:
    path.mkdir()
    for name in removal.RUN_FILES:
        (path / name).write_text("{}")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_runs_and_sweeps_are_removed_with_all_their_files(run, tmp_path, capsys) -> None:
    (run / "checkpoints/7").mkdir(parents=True)
    (run / "checkpoints/7/array").write_bytes(b"0" * 2_000)
    (sweep := tmp_path / "sweep").mkdir()
    for name in removal.SWEEP_FILES:
        (sweep / name).touch()
    assert cli.main(["rm", str(run), str(sweep), str(run), "--yes"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert f"removed {run}, {sweep} (2.0 kB)" in capsys.readouterr().out


def test_a_sweep_of_several_processes_is_removed_once_all_have_ended(tmp_path) -> None:
    sweep = tmp_path / "sweep"
    for path in (sweep, sweep / "process-1", sweep / "process-2"):
        path.mkdir()
        for name in removal.SWEEP_FILES:
            (path / name).touch()
    with folder.lock(sweep / "process-2"), pytest.raises(RunError, match="is in use by process"):
        removal.remove_folders([sweep])
    make_run(run := sweep / "process-1" / "members")
    with pytest.raises(RunError, match="holds another run"):
        removal.remove_folders([sweep])
    run.rename(tmp_path / "elsewhere")
    removal.remove_folders([sweep])
    assert not sweep.exists()


@pytest.mark.parametrize("missing", sorted(removal.RUN_FILES))
def test_a_folder_without_the_files_of_a_run_is_refused(run, missing: str, capsys) -> None:
    (run / missing).unlink()
    assert cli.main(["rm", str(run), "--yes"]) == 1
    assert "is not the folder of a run or sweep" in capsys.readouterr().err
    assert run.exists()


def test_nothing_is_removed_if_one_folder_is_refused(run, tmp_path) -> None:
    outer = make_run(tmp_path / "outer")
    make_run(outer / "inner")
    (link := tmp_path / "link").symlink_to(run)
    for refused, reason in ((outer, "holds another run"), (link, "is a link"), (tmp_path / "gone", "there is no")):
        with pytest.raises(RunError, match=reason):
            removal.remove_folders([run, refused])
    (outer / "config.json").rename(outer / "sweep.json")
    with pytest.raises(RunError, match="is not the folder of a run, which"):
        removal.remove_folders([run, outer], with_sweeps=False)
    assert run.exists()


def test_a_run_that_a_process_trains_is_refused(run, tmp_path) -> None:
    other = make_run(tmp_path / "other")
    with folder.lock(run), pytest.raises(RunError, match="is in use by process .* cannot be removed until"):
        removal.remove_folders([other, run])
    assert run.exists()
    assert other.exists()


@pytest.mark.parametrize(("answer", "is_removed"), [("y\n", True), ("n\n", False), ("", False)])
def test_the_command_asks(run, monkeypatch, capsys, answer: str, is_removed: bool) -> None:
    monkeypatch.setattr(terminal, "_is_interactive", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert cli.main(["rm", str(run)]) == (0 if is_removed else 1)
    assert "this removes 1 folder of" in capsys.readouterr().err
    assert run.exists() != is_removed


def test_without_a_terminal_nothing_is_removed(run, capsys) -> None:
    assert cli.main(["rm", str(run)]) == 1
    assert "--yes goes on without asking" in capsys.readouterr().err
    assert run.exists()


def test_tags_are_added_and_removed_in_order(run, capsys) -> None:
    assert cli.main(["tag", str(run), "b", "a", "b"]) == 0
    assert cli.main(["tag", str(run), "c", "a"]) == 0
    assert read_tags(run) == ["b", "a", "c"]
    assert cli.main(["tag", str(run), "a", "other", "--remove"]) == 0
    assert cli.main(["tag", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{run}: b, c"] * 2


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "a\nb"])
def test_a_tag_is_a_word(run, tag: str) -> None:
    with pytest.raises(ConfigError, match="is no tag"):
        change_tags(run, [tag])
    assert read_tags(run) == []


def test_only_runs_have_tags(run, tmp_path) -> None:
    with pytest.raises(RunError, match="is not the folder of a run or sweep"):
        change_tags(tmp_path, ["a"])
    (run / "tags.json").write_text('{"a": 1}')
    with pytest.raises(RunError, match="must hold a list of words"):
        change_tags(run, ["a"])
