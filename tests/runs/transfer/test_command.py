"""`foldax run --init-from`, `foldax export` and `foldax predict` on the command line, and their errors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from foldax import cli
from tests.conftest import write_tiny_file


@pytest.fixture
def foldax(capsys):
    """Runs a command; returns its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, `tiny_file.py`, and a run of it, `first`."""
    folder = tmp_path_factory.mktemp("base")
    write_tiny_file(folder)
    assert cli.main(["run", str(folder / "tiny_file.py"), "--run-dir", str(folder / "first")]) == 0
    return folder


@pytest.fixture
def run(base, tmp_path, monkeypatch) -> Path:
    """A working directory with the same; returns the run's folder."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "first"


@pytest.mark.parametrize("command", ["export", "predict"])
def test_help_of_the_commands(foldax, command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = foldax(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: foldax {command}")
    assert f" {command} " in foldax("--help")[1]


def test_a_run_starts_another_which_is_exported_and_predicts(foldax, run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ("--learning-rate", 1e-3, "--hidden", 8, 4, "--run-dir", "second")
    code, out, err = foldax("run", "tiny_file.py", "--init-from", "first", *options)
    assert code == 0, err
    assert "Parameters from first (" in out
    assert "shape differs" in out
    assert "2 of 6 arrays, 56 of 102 values are from the source; the others keep their" in out
    assert json.loads(Path("second/manifest.json").read_text())["init_from"]["path"] == str(run)

    shutil.rmtree("first")
    code, out, _ = foldax("resume", "second")
    assert (code, out) == (0, "second is finished; `foldax show second` shows it\n")
    assert "init_from=first" in foldax("show", "second")[1]
    code, _, err = foldax("reproduce", "second")
    assert (code, err) == (1, f"foldax: there is no run folder or .safetensors file {str(run)!r}\n")

    code, out, err = foldax("export", "second", "--batch-size", "symbolic", "--platforms", "cpu", "tpu")
    assert (code, err) == (0, "")
    assert "platforms: cpu, tpu; same bits as `predict`" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "second/export/params.safetensors" in out
    assert sorted(path.name for path in Path("second/export").iterdir())[0] == "example.py"

    code, out, err = foldax("predict", "second", "test", "--out", "y.csv")
    assert (code, err) == (0, "")
    assert "right" in out
    assert out.endswith("written: y.csv\n")
    assert Path("y.csv").read_text().startswith("class,0,1\n")


def test_a_sweep_over_initial_parameters(foldax, run) -> None:
    code, out, err = foldax(
        "sweep", "tiny_file.py", "--init-from", "None", "first", "--steps", 4, "--seeds", 2, "--sweep-dir", "s"
    )
    assert code == 0, err
    assert "4 of 4 arrays" in out
    metadata = json.loads(Path("s/sweep.json").read_text())
    assert metadata["space"] == {"init_from": [None, "first"]}
    assert metadata["programs"] <= 1
    code, out, err = foldax("reproduce", "s", "--member", 2)
    assert code == 0, err
    assert out.endswith("reproduced: all bits are the same\n")
    for command in (("export", "s"), ("predict", "s", "test"), ("run", "tiny_file.py", "--init-from", "s")):
        code, _, err = foldax(*command)
        assert code == 1
        assert err.startswith(
            "foldax: s is the folder of a sweep, which keeps no parameters of its members; train its best "
        )
        assert re.search("alone: foldax run tiny_file.py .*--init-from ", err)


@pytest.mark.parametrize("command", [("export", "RUN"), ("predict", "RUN", "test"), ("run", "tiny_file.py", "--init-from", "RUN")], ids=lambda c: c[0])  # fmt: skip
def test_folders_that_are_no_runs(foldax, run, command) -> None:
    def error_of(path: str) -> str:
        code, _, err = foldax(*(path if word == "RUN" else word for word in command))
        assert code == 1
        assert len(err.splitlines()) == 1
        return err

    assert error_of("gone") == "foldax: there is no run folder or .safetensors file 'gone'\n"
    Path("other").mkdir()
    assert error_of("other") == "foldax: other is not a run folder: it has no manifest.json\n"
    assert error_of(".") == "foldax: . is not a run folder: it has no manifest.json; the newest run in it is first\n"
    shutil.copytree("first", "stopped")
    shutil.rmtree("stopped/checkpoints")
    Path("stopped/result.json").unlink()
    assert error_of("stopped") == (
        "foldax: stopped has no checkpoint (its status is 'finished'); `foldax resume stopped` goes on with the run\n"
    )
    for file in Path("first/checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert "none of the checkpoints in first/checkpoints can be read (12: " in error_of("first")


def test_a_run_of_a_notebook_has_parameters_but_no_program(foldax, run) -> None:
    manifest = json.loads(Path("first/manifest.json").read_text())
    Path("first/manifest.json").write_text(json.dumps(manifest | {"file": None}))
    for command in (("export", "first"), ("predict", "first", "test")):
        code, _, err = foldax(*command)
        assert code == 1
        assert "first was made in a notebook or prompt, so there is no file to load" in err
    assert foldax("run", "tiny_file.py", "--init-from", "first", "--steps", 1, "--run-dir", "r")[0] == 0


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["export", "first", "--batch-size", "0"], 2, "batch_size: 0 is neither a number above 0 nor 'symbolic'"),
        (["export", "first", "--batch-size", "-1"], 2, "batch_size: '-1' is neither"),
        (["export", "first", "--platforms", "gpu"], 2, "platforms: gpu given; allowed are cpu, cuda, rocm and tpu"),
        (["export", "first", "--shape", "7"], 1, "predict cannot be exported: "),
        (["export", "first", "--steps", "3"], 2, "'--steps' is no option of this command"),
        (["predict", "first"], 2, "INPUT"),
        (["predict", "first", "tset"], 1, "'tset' is neither a split nor a file of a known kind (splits: "),
        (["predict", "first", "gone.npy"], 1, "there is no file 'gone.npy'"),
        (["predict", "first", "wrong.npy"], 1, "wrong.npy: expected [B, 6] or [6], got [2, 7]"),
        (["predict", "first", "test", "--out", "y.txt"], 2, "--out: 'y.txt' is of no known kind"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(foldax, run, command, code, message) -> None:
    np.save("wrong.npy", np.zeros((2, 7)))
    actual_code, _, err = foldax(*command)
    assert actual_code == code
    assert message in err
    assert "Traceback" not in err
