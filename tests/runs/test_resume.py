"""Going on: one call that starts, resumes or returns a run, and configs that change on the way."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import foldax
from foldax import cli
from foldax.errors import ConfigError, Interrupted, RunError
from foldax.runs import folder, resume
from foldax.runs.reproduce import reproduce
from tests.conftest import Config, tiny


def train(path: Path, resume: Any = False, **fields: Any) -> foldax.Result:
    return foldax.train(tiny, Config(**fields), run_dir=path, resume=resume, verbose=False)


@pytest.fixture
def end_session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function, after whose call the next run is interrupted after its first chunk, of one step."""

    def end() -> None:
        @contextlib.contextmanager
        def stop_at_once(unsaved: str):
            asked: list[int] = []
            yield lambda: bool(asked) or asked.append(1)
            monkeypatch.undo()

        monkeypatch.setattr("foldax.runs.train.stop_on_signals", stop_at_once)

    return end


def interrupted(path: Path, end_session: Any, **fields: Any) -> None:
    end_session()
    with pytest.raises(Interrupted):
        train(path, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> foldax.Result:
    return train(tmp_path_factory.mktemp("whole") / "run")


def sha256(path: Path) -> str:
    return folder.read_result(path)["state_sha256"]


def test_one_call_starts_goes_on_and_returns_the_result(tmp_path: Path, end_session, whole: foldax.Result) -> None:
    path = tmp_path / "run"
    end_session()
    with pytest.raises(Interrupted, match="stopped at step 1 of 12"):
        train(path, "auto")
    second, third = train(path, "auto"), train(path, "auto")
    assert (second.status, third.status) == ("finished", "finished")
    assert second.metrics == third.metrics == whole.metrics
    assert second.history == third.history == whole.history
    assert sha256(path) == sha256(whole.run_dir)
    # The third call did nothing: the manifest has one later session.
    assert len(folder.read_json(path / "manifest.json")["sessions"]) == 1


def test_one_command_starts_goes_on_and_shows_the_result(tiny_file: Path, monkeypatch, capsys, end_session) -> None:
    monkeypatch.chdir(tiny_file.parent)
    command = ["run", "tiny_file.py", "--or-resume", "--learning-rate", "0.02"]
    end_session()
    assert cli.main(command) == 1
    monkeypatch.chdir(tiny_file.parent)
    assert "stopped at step 1 of 12" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "finished after 12 steps" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "finished" in capsys.readouterr().out
    assert len(list(Path("runs/tiny_file").iterdir())) == 1
    # Another config is another run; in the folder of the first it is refused.
    (path,) = Path("runs/tiny_file").iterdir()
    assert cli.main([*command, "--learning-rate", "0.03", "--run-dir", str(path)]) == 2
    message = capsys.readouterr().err
    assert "learning_rate (0.02 in the folder, now 0.03); choose another folder" in message
    assert f"change it from here on (`foldax resume {path} [--field VALUE]`" in message
    experiment = foldax.load_experiment("tiny_file.py")
    assert resume.latest_run_dir(experiment, experiment.config(learning_rate=0.02)) == path
    assert not resume.latest_run_dir(experiment, experiment.config(learning_rate=0.03)).exists()


def test_periods_that_are_not_given_are_those_of_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = foldax.Experiment(foldax.Training, lambda config, info: None, name="older")  # type: ignore[arg-type]
    path = Path("runs/older/1")
    path.mkdir(parents=True)
    folder.write_json(path / "manifest.json", {})
    folder.write_json(path / "config.json", foldax.to_json(foldax.Training(log_every=100, evaluate_every=500)))
    assert resume.latest_run_dir(experiment, foldax.Training()) == path
    assert not resume.latest_run_dir(experiment, foldax.Training(log_every=3)).exists()


def test_more_steps_go_on_with_a_finished_run(tmp_path: Path, whole: foldax.Result) -> None:
    path = tmp_path / "run"
    first = train(path, steps=6)
    result = train(path, True)
    assert (result.step, result.status) == (12, "finished")
    assert sha256(path) == sha256(whole.run_dir)
    manifest = folder.read_json(path / "manifest.json")
    session = manifest["sessions"][-1]
    assert (session["step"], session["changes"]) == (6, ["steps was 6, is 12 from step 6"])
    assert session["earlier_result"]["test"] == first.metrics["test"]
    assert folder.read_json(path / "config.json")["steps"] == 12
    assert manifest["config_hash"] == foldax.config_hash(result.config)
    assert manifest["status"] == "finished"


def test_a_run_whose_config_changed_is_reproduced(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    train(path, steps=5)
    train(path, True, steps=8, learning_rate=0.5)
    train(path, "auto", steps=12, learning_rate=0.5)
    earlier = folder.read_json(path / "manifest.json")["earlier_configs"]
    assert [(one["until"], one["config"]["learning_rate"], one["config"]["steps"]) for one in earlier] == [
        (5, 0.01, 5),
        (8, 0.5, 8),
    ]
    config = Config(learning_rate=0.5)
    assert reproduce(path, tiny, config), capsys.readouterr().out
    # Without what came before it is another run.
    folder.update_manifest(path, earlier_configs=[])
    assert not reproduce(path, tiny, config)


def test_patience_goes_on_with_a_run_that_stopped_early(tmp_path: Path) -> None:
    never = dict(evaluate_every=1, learning_rate=0.0, dropout=0.0)  # the loss never falls
    path = tmp_path / "run"
    assert train(path, patience=2, **never).status == "stopped early"
    stopped_at = folder.read_result(path)["steps"]
    assert train(path, "auto", patience=2, **never).step == stopped_at < 12
    result = train(path, "auto", patience=20, **never)
    assert (result.status, result.step) == ("finished", 12)


def test_what_cannot_change_is_refused_and_leaves_the_run_as_it_is(tmp_path: Path, whole: foldax.Result) -> None:
    path = tmp_path / "run"
    train(path, steps=6)
    files = {name: (path / name).read_bytes() for name in ("config.json", "result.json")}
    for fields, message in (
        (dict(seed=1), r"another config: seed \(0 in the folder, now 1\); choose another folder"),
        (dict(keep="last"), "keep"),
        (dict(init_from="x.safetensors"), "init_from"),
        (dict(steps=3), None),  # no more steps: its result is returned
    ):
        with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
            train(path, True, **fields)
    with pytest.raises(RunError, match="does not fit this experiment's state"):
        train(path, True, hidden=(9,))
    assert {name: (path / name).read_bytes() for name in files} == files
    assert folder.read_json(path / "manifest.json")["status"] == "finished"
    with pytest.raises(RunError, match="not a run folder: it has no manifest.json"):
        train(tmp_path, True)
    with pytest.raises(ConfigError, match="none of True, False, 'auto'"):
        train(path, "yes")


def test_fewer_steps_than_an_unfinished_run_has_are_refused(tmp_path: Path, end_session) -> None:
    interrupted(tmp_path / "run", end_session)
    with pytest.raises(ConfigError, match="is at step 5 already, and 3 are asked for; give more"):
        resume.check_steps(tmp_path / "run", Config(steps=3), 5)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_while_it_is_recorded_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch, writes: int) -> None:
    path = tmp_path / "run"
    train(path, steps=6)
    before, write = sha256(path), folder.write_json
    done: list[Path] = []

    def killed(file: Path, value: Any) -> None:
        done.append(file)
        if len(done) > writes:
            raise KeyboardInterrupt
        write(file, value)

    folder.update_manifest(path, sessions=[{"changes": []}])
    monkeypatch.setattr(folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        resume.record_config(path, Config(steps=12), 6)
    monkeypatch.undo()
    assert (path / "result.json").exists() == (writes == 0)
    train(path, "auto", steps=6)
    assert sha256(path) == before
    assert folder.read_json(path / "manifest.json").get("earlier_configs", []) == []
    assert train(path, "auto", steps=12).step == 12


def test_a_start_that_failed_may_start_with_another_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lost"):
        train(tmp_path / "run", "auto", monitor="lost", learning_rate=0.1)
    assert train(tmp_path / "run", "auto", learning_rate=0.2).status == "finished"


def with_field(name: str, default: Any) -> foldax.Experiment:
    values = {"__annotations__": {name: type(default)}, name: default}
    return tiny._replace(config=foldax.config(type("Config", (Config,), values)))


def test_a_config_that_gained_or_lost_a_field_goes_on(tmp_path: Path, end_session, whole, capsys) -> None:
    path, old, new = tmp_path / "run", with_field("lost", 3), with_field("gained", 5)
    end_session()
    with pytest.raises(Interrupted):
        foldax.train(old, run_dir=path, verbose=False)
    with pytest.raises(ConfigError, match=r"gained \(5 in the folder, now 6\)"):
        foldax.train(new, dataclasses.replace(new.config(), gained=6), run_dir=path, resume="auto", verbose=False)
    assert foldax.train(new, run_dir=path, resume="auto", verbose=False).status == "finished"
    assert sha256(path) == sha256(whole.run_dir)


def test_files_that_appear_late_are_waited_for(tmp_path: Path, whole: foldax.Result, monkeypatch) -> None:
    path = whole.run_dir
    hidden = tmp_path / "config.json"
    (path / "config.json").rename(hidden)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            hidden.rename(path / "config.json")

    monkeypatch.setattr("time.sleep", sleep)
    assert resume.run_status(path, tiny, Config()) == "finished"
    assert waits == list(resume.LATE_SECONDS[:2])
    assert resume.run_status(tmp_path / "none", tiny, Config()) == "new"
