"""Trackers: each gets what the log has, none ends or delays a run, and a resumed run goes on in them."""

import csv
import importlib.util
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foldax
from foldax import cli
from foldax.errors import ConfigError, Interrupted, RunError
from foldax.runs import folder
from foldax.runs.log import read_log
from foldax.runs.trackers.choose import make_trackers
from foldax.runs.trackers.protocol import TrackedRun
from foldax.runs.trackers.tracking import TrackerThread
from tests.conftest import Config, tiny


class Recording:
    """A tracker that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, run: TrackedRun) -> str:
        self.calls.append(("start", run))
        return f"{run.id or 'id'}+"

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        self.calls.append(("log", step, split, metrics))

    def figure(self, step: int, name: str, path: Path) -> None:
        self.calls.append(("figure", step, name, path))

    def summary(self, metrics: dict[str, float]) -> None:
        self.calls.append(("summary", metrics))

    def finish(self, status: str) -> None:
        self.calls.append(("finish", status))

    def lines(self) -> list[dict[str, Any]]:
        calls = [call[1:] for call in self.calls if call[0] == "log" and call[2] != "performance"]
        return [{"step": step, "split": split, **metrics} for step, split, metrics in calls]


def test_a_tracker_gets_what_the_log_has(tmp_path: Path) -> None:
    tracker, run = Recording(), tmp_path / "r"
    hooks = [foldax.Every(6, lambda step, state, context: {"note": "text"})]
    result = foldax.train(tiny, Config(), run_dir=run, verbose=False, tracker=tracker, hooks=hooks)
    (_, tracked), *_ = tracker.calls
    assert tracked == TrackedRun("tiny", "r", run, folder.read_json(run / "config.json") | {"hidden": [8]})
    assert tracker.lines() == result.history
    figures = [call[1:] for call in tracker.calls if call[0] == "figure"]
    notes = [(step, "note", run / "figures" / "note" / f"step_{step}.txt") for step in (6, 12)]
    assert figures == [*notes, (12, "learning_curves", run / "figures" / "learning_curves.png")]
    (_, final), last = tracker.calls[-3], tracker.calls[-1]
    assert (final["test/loss"], last) == (result.metrics["test"]["loss"], ("finish", "finished"))


def test_a_resumed_run_goes_on_in_its_trackers(tmp_path: Path, capsys) -> None:
    first, second = Recording(), Recording()

    def fail(step: int, state: Any, context: Any) -> None:
        raise ValueError

    run = tmp_path / "r"
    with pytest.raises(foldax.FoldaxError):
        foldax.train(tiny, Config(), run_dir=run, verbose=False, tracker=[first, "csv"], hooks=foldax.Every(6, fail))
    assert first.calls[-1][1].startswith("failed: hook 'fail' at step 6")
    assert folder.read_json(run / "manifest.json")["trackers"] == {"Recording": "id+", "csv": None}
    # A line of the table after the checkpoint, as a kill leaves it.
    with (run / "metrics.csv").open("a") as file:
        file.write("8,train,loss,0.1\n")
    result = foldax.train(tiny, Config(), run_dir=run, verbose=False, resume=True, tracker=["csv", second])
    assert "gets nothing now" not in capsys.readouterr().err
    assert (second.calls[0][1].step, second.calls[0][1].id) == (6, "id+")
    assert [*first.lines(), *second.lines()] == result.history
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "performance"]
    values = [
        (line["step"], name, line[name]) for line in result.history for name in line if name not in ("step", "split")
    ]
    assert [(int(row["step"]), row["metric"], float(row["value"])) for row in rows] == values
    with (run / "summary.csv").open() as file:
        assert {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}["test/loss"] == result.metrics[
            "test"
        ]["loss"]


def test_trackers_that_a_resumed_run_chooses_hold_from_then_on(tmp_path: Path, capsys) -> None:
    def stop(step: int, state: Any, context: Any) -> None:
        raise Interrupted("enough")

    run, second = tmp_path / "r", Recording()
    for options in ({"tracker": [Recording(), "csv"]}, {"tracker": [second], "resume": True}):
        hooks = foldax.Every(4, stop)
        with pytest.raises(foldax.FoldaxError):
            foldax.train(tiny, Config(), run_dir=run, verbose=False, hooks=hooks, **options)
    manifest = folder.read_json(run / "manifest.json")
    assert (manifest["trackers"], manifest["chosen_trackers"]) == ({"Recording": "id++", "csv": None}, ["Recording"])
    foldax.train(tiny, Config(), run_dir=run, verbose=False, resume=True)
    assert "tracker Recording of earlier sessions gets nothing now" in capsys.readouterr().err
    assert not (run / "summary.csv").exists()  # csv was left, and does not come back


def test_a_resumed_run_has_its_trackers_without_being_told(tmp_path: Path, capsys) -> None:
    def stop(step: int, state: Any, context: Any) -> None:
        raise Interrupted("enough")

    for tracker, names in ((["csv", Recording()], ["csv"]), ("none", [])):
        run = tmp_path / str(len(names))
        with pytest.raises(foldax.FoldaxError):
            foldax.train(tiny, Config(), run_dir=run, verbose=False, tracker=tracker, hooks=foldax.Every(6, stop))
        capsys.readouterr()
        foldax.train(tiny, Config(), run_dir=run, verbose=False, resume=True)
        lost = (
            "foldax: tracker Recording of earlier sessions gets nothing now; go on with it by tracker=Recording(...)\n"
        )
        assert (lost in capsys.readouterr().err) == bool(names)
        assert [path.name for path in run.glob("summary.csv")] == ["summary.csv"] * len(names)
        assert not list(run.glob("events*"))


class Failing(Recording):
    """A tracker whose every method but `start` raises an error."""

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        raise OSError("no such host\nand more")

    figure = summary = finish = log


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(tmp_path: Path, capsys) -> None:
    whole = foldax.train(tiny, Config(), save=False, verbose=False)
    foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False, tracker=[Failing(), "csv"])
    problem = "tracker 'Failing' failed, and may lack some of the run: no such host"
    assert capsys.readouterr().err == f"foldax: {problem}. The run goes on, and its own log is complete\n"
    saved = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (saved["status"], saved["test"]) == ("finished", whole.metrics["test"])
    assert read_log(tmp_path / "r") == whole.history
    assert (tmp_path / "r" / "summary.csv").exists()


def test_a_tracker_that_hangs_is_left_behind() -> None:
    released, warnings = threading.Event(), []
    thread = TrackerThread("slow", warnings.append)
    thread.call(released.wait)
    thread.close(seconds=0.2)
    released.set()
    assert warnings == ["tracker 'slow' did not answer in time, and is left behind: it lacks some of the run"]


def test_a_tracker_that_cannot_start_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(
        RunError, match=r"^tracker 'csv' cannot start: .*Is a directory.*; --tracker none goes on without it$"
    ):
        foldax.train(tiny, Config(), run_dir=tmp_path, verbose=False, tracker="csv")
    assert folder.read_json(tmp_path / "manifest.json")["status"].startswith("failed: tracker 'csv' cannot start")
    assert read_log(tmp_path) == []


class Silent:
    def start(self, run: TrackedRun) -> None: ...


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandbb", r"^tracker: there is no 'wandbb'; did you mean 'wandb'\? \(allowed: tensorboard, csv, wandb, mlflow, trackio, none\)$"),
        ("csv, tensorbord", r"there is no 'tensorbord'; did you mean 'tensorboard'\?"),
        ("", r"there is no ''"),
        (Recording, r"^tracker: Recording is a class; give an instance, Recording\(...\)$"),
        (Silent(), r"^tracker: Silent is no tracker: it has no method log, figure, summary, finish \(see foldax.Tracker\)$"),
        (3, r"int is no tracker"),
    ],
)  # fmt: skip
def test_a_wrong_tracker_is_an_error_before_there_is_a_folder(tracker: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        foldax.train(tiny, Config(), run_dir=tmp_path / "r", tracker=tracker)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_names_its_extra(name: str, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"{name!r} needs the package {name}, .*: pip install 'foldax\[{name}\]'"):
        make_trackers(name)


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("trackio").origin is not None:
        pytest.skip("trackio is installed, and is found before the folder")
    with pytest.raises(ConfigError, match="'trackio' needs the package"):
        make_trackers("trackio")


def test_trackers_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="trackers need the run folder"):
        foldax.train(tiny, Config(), save=False, tracker="csv")
    with pytest.raises(ConfigError, match="trackers need the sweep folder"):
        foldax.sweep(tiny, config=Config(), save=False, tracker="csv")


def test_the_option_names_trackers(tiny_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["run", str(tiny_file), "--run-dir", "r", "--tracker", "csv", "--tracker", "none", "--steps", "2"])
        == 0
    )
    assert (Path("r/summary.csv").exists(), list(Path("r").glob("events*"))) == (True, [])
    capsys.readouterr()
    assert cli.main(["run", str(tiny_file), "--run-dir", "s", "--tracker", "tensor"]) == 2
    assert capsys.readouterr().err.startswith("foldax: tracker: there is no 'tensor'; did you mean 'tensorboard'?")
    assert not Path("s").exists()


def test_members_of_a_sweep_are_sent_when_they_have_ended(tmp_path: Path) -> None:
    tracker, path = Recording(), tmp_path / "s"
    swept = foldax.sweep(
        tiny,
        {"learning_rate": [0.1, 0.2]},
        config=Config(steps=4),
        sweep_dir=path,
        tracker=[tracker, "csv"],
        verbose=False,
    )
    runs = [call[1] for call in tracker.calls if call[0] == "start"]
    assert sorted(run.name for run in runs) == ["s-0", "s-1"]
    assert {run.group for run in runs} == {"s"}
    assert {run.config["learning_rate"] for run in runs} == {0.1, 0.2}
    summaries = {call[1]["test/loss"] for call in tracker.calls if call[0] == "summary"}
    assert summaries == set(swept.results["test/loss"])
    assert (path / "trackers" / "1" / "metrics.csv").exists()
    metadata = folder.read_json(path / "sweep.json")
    assert metadata["trackers"] == ["Recording", "csv"]
    # What a resumed sweep chooses holds from then on.
    folder.write_json(path / "sweep.json", metadata | {"status": "interrupted"})
    options = {"config": Config(steps=4), "sweep_dir": path, "resume": True, "verbose": False}
    foldax.sweep(tiny, {"learning_rate": [0.1, 0.2]}, tracker="csv", **options)
    assert folder.read_json(path / "sweep.json")["trackers"] == ["csv"]


def use(name: str, path: Path) -> str:
    """Sends a short run to an installed tracker, in two sessions."""
    if importlib.util.find_spec(name) is None or importlib.util.find_spec(name).origin is None:
        pytest.skip(f"{name} is not installed: pip install 'foldax[{name}]'")
    (path / "run").mkdir()
    (path / "note.txt").write_text("text")
    from foldax.plots import learning_curves

    learning_curves([{"step": 1, "split": "train", "loss": 1.0}]).savefig(path / "image.png")
    run = TrackedRun("an experiment", "first", path / "run", {"steps": 3, "optimizer": {"name": "adam"}})
    (tracker,) = make_trackers(name).values()
    key = tracker.start(run)
    for step in (1, 2):
        tracker.log(step, "train", {"loss": 1 / step, "f1@5": float("nan")})
    tracker.figure(2, "image", path / "image.png")
    tracker.figure(2, "note", path / "note.txt")
    tracker.finish("interrupted")
    (tracker,) = make_trackers(name).values()
    assert tracker.start(run._replace(step=1, id=key)) == key
    for step in (2, 3):
        tracker.log(step, "train", {"loss": 1 / step})
    tracker.summary({"test/loss": 0.25})
    tracker.finish("finished")
    return key


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    key = use("mlflow", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(key)
    assert (run.info.status, run.data.params) == ("FINISHED", {"steps": "3", "optimizer.name": "adam"})
    assert {metric.step: metric.value for metric in client.get_metric_history(key, "train/loss")} == {
        1: 1,
        2: 0.5,
        3: 1 / 3,
    }
    assert run.data.metrics["final/test/loss"] == 0.25
    assert [item.path for item in client.list_artifacts(key, "figures/image")] == ["figures/image/image.png"]


def leveldb_records(content: bytes, start: int = 7) -> Iterator[bytes]:
    """Yields the records of a log of LevelDB, in which W&B's offline files are, after a header of `start` bytes."""
    record, block = b"", 2**15
    while content:
        if (left := block - start % block) < 7:  # the rest of a block that has no room for a header
            content, start = content[left:], start + left
            continue
        length, kind = struct.unpack("<HB", content[4:7])
        record, content, start = record + content[7 : 7 + length], content[7 + length :], start + 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")  # those of the library itself, as in the tests beside it
def test_wandb_has_the_run_offline(tmp_path: Path, monkeypatch) -> None:
    for variable in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    key = use("wandb", tmp_path)
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its process writes the files
    losses = {}
    for path in sorted(tmp_path.glob(f"run/wandb/offline-run-*-{key}/*.wandb")):
        for content in leveldb_records(path.read_bytes()[7:]):
            items = wandb_internal_pb2.Record.FromString(content).history.item
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            losses |= {values["step"]: values["train/loss"]} if "train/loss" in values else {}
    assert losses == {1: 1, 2: 0.5, 3: 1 / 3}
    assert list(tmp_path.glob("run/wandb/offline-run-*/files/media/images/figures/image_*.png"))


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_the_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for variable in ("TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    use("trackio", tmp_path)
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("an_experiment", "first")
    assert {log["step"]: log["train/loss"] for log in logs if "train/loss" in log} == {1: 1, 2: 0.5, 3: 1 / 3}
    assert capsys.readouterr().out == ""
