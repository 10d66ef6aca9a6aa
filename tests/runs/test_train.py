"""A run in its folder: the result stands before its figures, a failed start leaves no trace, and NaN has a text."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

import foldax
from foldax import cli
from foldax.errors import ConfigError, RunError
from foldax.runs import folder
from foldax.runs.log import read_log
from tests.conftest import Config, tiny


def counter(losses: list[float], **changes: Any) -> foldax.Experiment:
    """An experiment whose evaluation after step k has the loss `losses[k]`."""
    table = np.asarray(losses, np.float32)

    def learner(config: Config, info: None) -> foldax.Learner:
        return foldax.Learner(
            init=lambda key, examples: jnp.int32(0),
            update=lambda state, batch, key: (state + 1, {"loss": jnp.float32(0)}),
            evaluate=lambda state, batch, key: {"loss": jnp.asarray(table)[state][None]},
        )

    return foldax.Experiment(Config, learner, name="counter", **changes)


def strict_json(path: Path) -> list[Any]:
    """Reads the lines of a file as JSON, which has neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = path.read_text()
    texts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(line, parse_constant=refuse) for line in texts]


def test_floats_that_json_lacks_are_texts_in_files_and_floats_when_read(tmp_path: Path, capsys) -> None:
    experiment = counter([0, np.nan, np.inf, -np.inf])
    result = foldax.train(experiment, Config(steps=3, evaluate_every=1), run_dir=tmp_path / "r", verbose=False)
    status = "finished (validation loss is nan at step 1; test loss is -inf at step 3)"
    assert capsys.readouterr().err == "foldax: validation metric 'loss' is nan at step 1, which is never the best\n"
    (saved,) = strict_json(tmp_path / "r" / "result.json")
    assert (saved["test"]["loss"], saved["status"], result.status) == ("-inf", status, status)
    assert folder.read_json(tmp_path / "r" / "manifest.json")["status"] == status
    lines = [line["loss"] for line in strict_json(tmp_path / "r" / "metrics.jsonl") if line["split"] == "validation"]
    assert lines == ["nan", "inf", "-inf"]
    read = [line["loss"] for line in read_log(tmp_path / "r") if line["split"] == "validation"]
    np.testing.assert_array_equal(read, [np.nan, np.inf, -np.inf])
    assert folder.read_result(tmp_path / "r")["test"]["loss"] == -np.inf
    assert foldax.load_run(tmp_path / "r", experiment).metrics["test"]["loss"] == -np.inf


def test_figures_that_fail_are_warnings_about_a_finished_run(tmp_path: Path, capsys) -> None:
    seen = []

    def figures(result: foldax.Result) -> dict[str, Any]:
        seen.append((result.run_dir / "result.json").exists())
        figure = matplotlib.figure.Figure
        names = {"a/b": figure(), "../c": "text", "learning_curves": "own", "": "text", "n" * 300: "text"}
        return {**names, "array": np.ones(3), "lone \ud800": "\ud800", "R²": "Größe"}

    result = foldax.train(counter([0] * 4, figures=figures), Config(steps=3), run_dir=tmp_path / "r", verbose=False)
    assert seen == [True]
    names = {"learning_curves": "learning_curves.txt", "a/b": "a%2Fb.png", "../c": "..%2Fc.txt", "R²": "R².txt"}
    assert {name: path.name for name, path in result.figures.items()} == names
    assert folder.read_result(tmp_path / "r")["figures"] == names
    assert {path.name for path in (tmp_path / "r" / "figures").iterdir()} >= set(names.values())
    assert (tmp_path / "r" / "figures" / "R².txt").read_text(encoding="utf-8") == "Größe\n"
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(" could not be drawn")[0] for line in warnings] == [
        "foldax: figure ''",
        f"foldax: figure {'n' * 300!r}",
        "foldax: figure 'array'",
        "foldax: figure 'lone \\ud800'",
    ]
    assert warnings[2].endswith("saved: expected a matplotlib figure or a text, not ndarray")


def test_figures_that_are_no_dict_are_a_warning(tmp_path: Path, capsys) -> None:
    experiment = counter([0] * 4, figures=lambda result: None)
    result = foldax.train(experiment, Config(steps=3), run_dir=tmp_path / "r", verbose=False)
    assert list(result.figures) == ["learning_curves"]
    assert "they must be a dict of figures and texts by name, not NoneType" in capsys.readouterr().err


def test_a_start_that_failed_does_not_block_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no validation metric 'lost'"):
        foldax.train(tiny, Config(monitor="lost"), run_dir=tmp_path / "r", verbose=False)
    assert folder.read_json(tmp_path / "r" / "manifest.json")["status"].startswith("failed: monitor: there is no")
    assert foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False).status == "finished"
    with pytest.raises(RunError, match="holds a run already"):
        foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False)


def test_monitor_mode_and_patience_are_options_of_resume(tiny_file: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tiny_file.parent)
    assert cli.main(["run", "tiny_file.py", "--monitor", "accurracy", "--run-dir", "r"]) == 2
    assert "did you mean 'accuracy'?" in capsys.readouterr().err
    assert cli.main(["resume", "r", "--monitor", "accuracy", "--seed", "20"]) == 2
    assert "r was started with another config: seed (0 in the folder, now 20)" in capsys.readouterr().err
    at_the_end = ["--evaluate-every", "0"]
    assert cli.main(["resume", "r", "--monitor", "accuracy", "--mode", "max", "--patience", "5", *at_the_end]) == 0
    config = folder.read_json(Path("r/config.json"))
    assert (config["monitor"], config["mode"], config["patience"]) == ("accuracy", "max", 5)
    assert folder.read_result(Path("r"))["best_step"] == 12


def test_a_run_prints_the_time_to_its_first_step_by_phase(tiny_file: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tiny_file.parent)
    monkeypatch.setenv("FOLDAX_COMPILE_CACHE", "")
    assert cli.main(["run", "tiny_file.py", "--no-compile-cache", "--run-dir", "r"]) == 0
    assert os.environ["FOLDAX_COMPILE_CACHE"] == "off"
    line = capsys.readouterr().out.splitlines()[-1]
    number = r"(\d+\.\d)"
    phases = "".join(f",? {name} {number}" for name in ("imports", "data", "tracing", "compiling", "rest"))
    found = re.fullmatch(f"first step after {number} s:{phases}", line)
    assert found, line
    total, *parts = map(float, found.groups())
    assert total == pytest.approx(sum(parts), abs=0.3)  # each is rounded


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    leave = foldax.Every(2, lambda step, state, context: os.chdir("/"))
    config = Config(steps=3, evaluate_every=1)
    result = foldax.train(counter([0] * 4), config, run_dir="r", verbose=False, hooks=leave)
    assert result.run_dir == tmp_path / "r"
    assert folder.read_json(result.run_dir / "manifest.json")["status"] == "finished"
    assert all(path.exists() for path in result.figures.values())
    monkeypatch.chdir(tmp_path)
    loaded = foldax.load_run("r", counter([0] * 4))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loaded.run_dir == result.run_dir
    assert loaded.figures == result.figures
    assert not list(Path().iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")  # JAX and Python 3.12 warn of it too
def test_a_fork_of_a_process_that_has_trained_is_refused(tmp_path: Path) -> None:
    foldax.train(counter([0] * 4), Config(steps=3), save=False, verbose=False)
    if (child := os.fork()) == 0:
        try:
            foldax.train(counter([0] * 4), Config(steps=3), run_dir=tmp_path / "r")
        except BaseException as error:
            (tmp_path / "error").write_text(repr(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    text = (tmp_path / "error").read_text()
    assert "RunError('this process is a fork of one that has used JAX" in text
    assert 'get_context("spawn")' in text
    assert not (tmp_path / "r").exists()
