"""`foldax.sweep`: its folder, its tables, and going on after it was stopped or killed at any moment."""

import contextlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from pandas.testing import assert_frame_equal

import foldax
from foldax import data
from foldax.engine import compiled
from foldax.errors import ConfigError, ExperimentError, Interrupted, RunError
from foldax.runs import folder
from foldax.sweeps.records import Records
from foldax.sweeps.reproduce import reproduce_member

WAYS = ("exact", "fast")


@foldax.config
class Noise:
    scale: float = 0.01
    kind: str = "normal"


@foldax.config
class Config(foldax.Training):
    steps: int = 18
    log_every: int = 5
    evaluate_every: int = 2
    checkpoint_every: int | str = 3
    monitor: str = "distance"
    patience: int | None = 1
    learning_rate: float = 0.1
    target: float = 100.0  # the evaluation at this step is the best, so the run stops after it
    width: tuple[int, ...] = (4,)
    size: int | tuple[int, ...] = 3
    noise: Noise = Noise()


def dataset(config: Config) -> data.Dataset:
    inputs = np.random.RandomState(0).randn(60, 3).astype(np.float32)
    return data.from_arrays({"inputs": inputs, "targets": inputs.sum(1)}, batch_size=8, validation=0.2, test=0.2)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """A regression whose every step draws noise, and that also says how far it is from `config.target` steps."""

    def errors(state: dict, batch: dict) -> jax.Array:
        return ((batch["inputs"] @ state["w"]).mean(1) - batch["targets"]) ** 2

    def init(key: jax.Array, examples: dict) -> dict:
        return {"w": jax.random.normal(key, (3, config.width[0])), "count": jnp.int32(0)}

    def update(state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
        loss, gradient = jax.value_and_grad(lambda w: errors({"w": w}, batch).mean())(state["w"])
        noise = config.noise.scale * jax.random.normal(key, gradient.shape)
        return {"w": state["w"] - config.learning_rate * (gradient + noise), "count": state["count"] + 1}, {
            "loss": loss
        }

    def evaluate(state: dict, batch: dict, key: jax.Array) -> dict:
        loss = errors(state, batch)
        return {"loss": loss, "distance": jnp.abs(state["count"] - config.target) + 0 * loss}

    return foldax.Learner(init, update, evaluate)


class Host:
    """What happens on the host: a count of evaluations, and what to do at the one that was chosen."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.calls, self.at, self.action = 0, 0, lambda: None

    def __call__(self, values: dict) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return {"largest": float(values["loss"].max())}


host = Host()
line = experiment = foldax.Experiment(Config, learner, dataset, summarize=host, name="line")  # a file like any other
SPACE = {"learning_rate": [0.1, 1e30], "target": [100.0, 4.0, 8.0]}
COUNT = 12  # members, with two seeds


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    host.forget()
    yield
    host.forget()


def swept(experiment: foldax.Experiment = line, space: dict | None = None, **options: Any) -> foldax.Sweep:
    return foldax.sweep(experiment, SPACE if space is None else space, **{"verbose": False} | options)


def terminate() -> None:
    """Does at once what a SIGTERM does when the main thread comes to it (real ones: tests/sweeps/test_command.py)."""
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    handler(signal.SIGTERM, None)


def same(first: foldax.Sweep, second: foldax.Sweep) -> None:
    """The same tables in all bits, but for the seconds."""
    seconds = ["seconds"]
    assert_frame_equal(first.results.drop(columns=seconds), second.results.drop(columns=seconds), check_exact=True)
    assert_frame_equal(first.curves, second.curves, check_exact=True)
    on_disk = [pandas.read_parquet(one.path / "results.parquet").drop(columns=seconds) for one in (first, second)]
    assert_frame_equal(*on_disk, check_exact=True)
    assert_frame_equal(*(pandas.read_parquet(one.path / "curves.parquet") for one in (first, second)), check_exact=True)


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "lock"
    }


def records(path: Path) -> dict[int, dict]:
    lines = map(json.loads, (path / "members.jsonl").read_text().splitlines())
    return {one["number"]: one for one in lines}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, foldax.Sweep]:
    """An uninterrupted sweep of either way, and how many evaluations it took."""
    made, calls = {}, {}
    for way in WAYS:
        host.forget()
        made[way] = swept(way=way, seeds=2, sweep_dir=tmp_path_factory.mktemp("sweeps") / way)
        calls[way] = host.calls
    made["calls"] = calls
    return made


# What a sweep leaves behind


def test_the_facts_are_all_there(whole: dict) -> None:
    for way in WAYS:
        sweep = whole[way]
        facts = json.loads((sweep.path / "sweep.json").read_text())
        assert facts == json.loads(json.dumps(sweep.facts))
        assert facts["experiment"] == "line"
        assert facts["file"] == str(Path(__file__).resolve())
        assert facts["search"] == "grid"
        assert facts["space"] == SPACE
        assert facts["fields"] == ["learning_rate", "target"]
        assert (facts["seeds"], facts["monitor"], facts["mode"]) == (2, "distance", "min")
        assert facts["config"] == foldax.to_json(Config())
        assert (facts["backend"], len(facts["devices"]), facts["status"]) == ("cpu", 2, "finished")
        assert facts["data_fingerprint"] == dataset(Config()).info.fingerprint
        structural = {"steps": 18, "width": "[4]", "size": 3, "noise.kind": "normal"}
        assert facts["groups"] == [{"structural": structural, "members": COUNT, "way": way}]
        assert facts["member_steps"] == sweep.results["steps_done"].sum()
        assert facts["member_steps_per_second"] > 0
        assert 0 <= facts["compile_seconds"] <= 2 * facts["seconds"]
        assert facts["started"] <= facts["ended"]
        assert {"command", "python", "versions", "git"} <= facts.keys()
        assert isinstance(facts["programs"], int)


def test_results_have_a_row_for_each_member(whole: dict) -> None:
    for way in WAYS:
        sweep = whole[way]
        on_disk = pandas.read_parquet(sweep.path / "results.parquet")
        assert_frame_equal(on_disk, sweep.results, check_exact=True)
        assert list(on_disk["member"]) == list(range(COUNT))
        assert set(on_disk["group"]) == {0}
        assert list(on_disk["seed"]) == [0, 1] * 6
        assert list(on_disk["learning_rate"]) == [rate for rate in SPACE["learning_rate"] for _ in range(6)]
        assert set(on_disk["width"]) == {"[4]"}
        assert set(on_disk["noise.scale"]) == {0.01}
        assert list(on_disk["status"]) == ["finished"] * 2 + ["stopped early"] * 4 + ["not finite"] * 6
        assert list(on_disk["steps_done"][:6]) == [18, 18, 6, 6, 10, 10]
        assert list(on_disk["best_step"][:6]) == [18, 18, 4, 4, 8, 8]
        lost = on_disk["status"] == "not finite"
        assert on_disk["best_step"].isna().equals(lost)
        assert on_disk["state_sha256"].isna().equals(lost)
        assert (on_disk["state_sha256"].dropna().str.len() == 64).all()
        metrics = {
            f"{split}/{name}" for split in ("validation", "test") for name in ("loss", "distance", "largest")
        } | {"train/loss"}
        assert {name for name in on_disk if "/" in name} == metrics
        assert all(on_disk[name].dtype == np.float64 and on_disk[name].isna().equals(lost) for name in metrics)
        fields = set(foldax.to_json(Config())) - {"noise"}
        others = {
            "member",
            "group",
            "status",
            "steps_done",
            "best_step",
            "seconds",
            "state_sha256",
            "noise.scale",
            "noise.kind",
        }
        assert set(on_disk) == fields | metrics | others
        for name in ("member", "group", "seed", "steps", "steps_done"):
            assert on_disk[name].dtype.kind == "i", name
        assert (on_disk["seconds"] > 0).all()


def test_curves_are_the_lines_of_every_log(whole: dict) -> None:
    for way in WAYS:
        sweep = whole[way]
        on_disk = pandas.read_parquet(sweep.path / "curves.parquet")
        assert_frame_equal(on_disk, sweep.curves, check_exact=True)
        assert list(on_disk) == ["member", "step", "split", "metric", "value"]
        assert [on_disk[name].dtype.kind for name in ("member", "step", "value")] == ["i", "i", "f"]
        one = on_disk[(on_disk["member"] == 4)]
        assert list(one[one["split"] == "train"]["step"]) == [5, 10]
        distances = one[one["metric"] == "distance"]
        assert list(zip(distances["step"], distances["value"])) == [(2, 6), (4, 4), (6, 2), (8, 0), (10, 2)]


def test_a_sweep_folder_keeps_nothing_that_is_not_needed(whole: dict) -> None:
    for way in WAYS:
        files = {file for file in contents(whole[way].path) if not file.startswith("figures/")}
        assert files <= {"sweep.json", "results.parquet", "curves.parquet", "members.jsonl", "report.html"}


def test_a_sweep_without_a_folder_makes_one_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [swept(space={"target": [2.0]}, config=Config(steps=3)) for _ in range(2)]
    assert [one.path.resolve() for one in made] == sorted((tmp_path / "runs" / "line").iterdir())
    assert all(re.fullmatch(r"sweep-\d{8}-\d{6}-[0-9a-f]{6}(-2)?", one.path.name) for one in made)


def test_without_saving_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for way in WAYS:
        sweep = swept(space={"target": [2.0, 4.0]}, way=way, save=False, config=Config(steps=7, checkpoint_every=1))
        assert sweep.path is None
        assert len(sweep.results) == 2
    assert not list(tmp_path.iterdir())


def test_a_sweep_may_run_in_a_thread(tmp_path: Path) -> None:
    made: list[foldax.Sweep] = []
    thread = threading.Thread(target=lambda: made.append(swept(space={"target": [2.0]}, sweep_dir=tmp_path / "s")))
    thread.start()
    thread.join()
    assert made[0].facts["status"] == "finished"


@pytest.mark.parametrize(
    ("space", "columns"),
    [
        ({"checkpoint_every": [5, "1m"]}, {"checkpoint_every": ["5", "1m"]}),
        ({"size": [3, (2, 4)]}, {"size": ["3", "[2, 4]"]}),
        ({"patience": [None, 3]}, {"patience": [None, 3]}),
        ({"noise": [Noise(scale=0.5), Noise(kind="b")]}, {"noise.scale": [0.5, 0.01], "noise.kind": ["normal", "b"]}),
        ({"keep": ["last"]}, {"best_step": [None]}),
        ({"width": [[4], (5,)]}, {"width": ["[4]", "[5]"], "group": [0, 1]}),
    ],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_whatever_is_swept_fits_into_the_tables(tmp_path: Path, space: dict, columns: dict) -> None:
    config = Config(steps=2, evaluate_every=0, checkpoint_every=0)
    sweep = swept(space=space, config=config, sweep_dir=tmp_path / "s")
    on_disk = pandas.read_parquet(tmp_path / "s" / "results.parquet")
    assert_frame_equal(on_disk, sweep.results)
    for name, values in columns.items():
        found = [None if pandas.isna(value) else value for value in on_disk[name]]
        assert found == values or list(map(str, found)) == values
    again = swept(space=space, config=config, sweep_dir=tmp_path / "s", resume=True)
    same(sweep, again)


def test_a_field_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    @foldax.config
    class Named(Config):
        group: int = 7
        member: str = "a"
        seconds: float = 0.5
        status: str = "b"

    with contextlib.suppress(ConfigError):  # to refuse such a field, in words, is as good
        sweep = swept(line._replace(config=Named), {"target": [2.0, 4.0]}, config=Named(steps=2), save=False)
        assert list(sweep.results["member"]) == [0, 1]
        assert list(sweep.results["group"]) == [0, 0]
        assert set(sweep.results["status"]) == {"finished"}


def test_swept_steps_stay_apart_from_steps_done(tmp_path: Path) -> None:
    sweep = swept(space={"steps": [12, 24], "target": [4.0]}, sweep_dir=tmp_path / "s")
    assert [config.steps for config in sweep.configs] == [12, 24]
    assert list(sweep.results["steps"]) == [12, 24]
    assert list(sweep.results["steps_done"]) == [6, 6]


# Resuming


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [0.02, 0.4, 0.7])
def test_an_interrupted_sweep_goes_on_to_the_same_tables(tmp_path: Path, whole: dict, way: str, share: float) -> None:
    path = tmp_path / "cut"
    host.at, host.action = 1 + int(share * whole["calls"][way]), terminate
    with pytest.raises(
        Interrupted, match=rf"stopped with \d+ of {COUNT} members done; go on with: foldax resume .*{path}"
    ):
        swept(way=way, seeds=2, sweep_dir=path)
    before, calls = records(path), host.calls
    facts = json.loads((path / "sweep.json").read_text())
    assert facts["status"] == "interrupted"
    assert facts["member_steps"] == sum(one["steps"] for one in before.values())
    assert set(pandas.read_parquet(path / "results.parquet").get("member", [])) == set(before)
    assert len(before) < COUNT
    host.forget()
    resumed = swept(way=way, seeds=2, sweep_dir=path, resume=True)
    same(whole[way], resumed)
    after = records(path)
    assert {number: after[number] for number in before} == before, "finished members were run again"
    assert calls + host.calls <= whole["calls"][way] + COUNT, "it did not go on from where it was"
    assert resumed.facts["status"] == "finished"
    assert resumed.facts["member_steps"] == whole[way].facts["member_steps"]
    assert not [file for file in contents(path) if file.startswith("members/")]


@pytest.mark.parametrize(
    ("members_at_once", "targets"), [(5, [100.0, 4.0, 8.0]), (8, [4.0, 100.0, 8.0]), (None, [4.0, 8.0, 100.0])], ids=str
)
def test_an_interrupted_fast_sweep_goes_on_whatever_was_dropped(
    tmp_path: Path, members_at_once: int | None, targets: list[float]
) -> None:
    space = {"learning_rate": SPACE["learning_rate"], "target": targets}
    options = dict(space=space, way="fast", seeds=2, members_at_once=members_at_once)
    first = swept(sweep_dir=tmp_path / "whole", **options)
    whole = host.calls
    for share in (0.4, 0.7):
        host.forget()
        path = tmp_path / f"cut{share}"
        host.at, host.action = int(whole * share), terminate
        with pytest.raises(Interrupted):
            swept(sweep_dir=path, **options)
        calls = host.calls
        host.forget()
        same(first, swept(sweep_dir=path, resume=True, **options))
        assert calls + host.calls <= whole + COUNT, "it did not go on from where it was"


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_interrupted_again_and_again(tmp_path: Path, whole: dict, way: str) -> None:
    path, resume, interruptions = tmp_path / way, False, 0
    while True:
        host.forget()
        host.at, host.action = whole["calls"][way] // 5, terminate
        try:
            sweep = swept(way=way, seeds=2, sweep_dir=path, resume=resume)
            break
        except Interrupted:
            resume, interruptions = True, interruptions + 1
            assert interruptions < 20
    same(whole[way], sweep)
    assert interruptions >= 2


def test_two_devices_may_write_checkpoints_at_the_same_time(tmp_path: Path, whole: dict) -> None:
    for index in range(2):
        path = tmp_path / str(index)
        sweep = swept(way="exact", seeds=2, sweep_dir=path, config=Config(checkpoint_every=1))
        changed = ["seconds", "checkpoint_every"]
        expected = whole["exact"].results.drop(columns=changed)
        assert_frame_equal(sweep.results.drop(columns=changed), expected, check_exact=True)


def test_without_a_folder_an_interruption_says_how_far_it_was() -> None:
    host.at, host.action = 5, terminate
    with pytest.raises(Interrupted, match=r"^stopped with \d of 6 members done$"):
        swept(save=False, way="exact")


@pytest.mark.parametrize(("way", "when"), [("exact", "after"), ("fast", "before"), ("fast", "after")])
def test_a_sweep_killed_at_any_record_goes_on_to_the_same_tables(
    tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch, way: str, when: str
) -> None:
    """Copies of the folder around the moment when an outcome is written stand for kills at that moment."""
    path, add, moments = tmp_path / "killed", Records.add, []

    def copy() -> None:
        target = tmp_path / f"moment{len(moments)}"
        moments.append(target)
        with contextlib.suppress(shutil.Error):  # what is renamed meanwhile is not there in either form
            shutil.copytree(path, target)

    def watched(self: Records, found: Any) -> None:
        if when == "before":
            copy()
        add(self, found)
        if when == "after":
            copy()

    monkeypatch.setattr(Records, "add", watched)
    swept(way=way, seeds=2, sweep_dir=path)
    monkeypatch.undo()
    assert len(moments) == COUNT
    for index in (5, 8, COUNT - 1):
        before = records(moments[index])
        resumed = swept(way=way, seeds=2, sweep_dir=moments[index], resume=True)
        same(whole[way], resumed)
        after = records(moments[index])
        assert {number: after[number] for number in before} == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [2, 10_000])
def test_a_record_that_was_cut_off_is_made_again(tmp_path: Path, whole: dict, way: str, cut: int) -> None:
    path = tmp_path / "cut"
    shutil.copytree(whole[way].path, path)
    lines = (path / "members.jsonl").read_text().splitlines(keepends=True)
    (path / "members.jsonl").write_text("".join(lines[:-1]) + lines[-1][: max(0, len(lines[-1]) - cut)])
    same(whole[way], swept(way=way, seeds=2, sweep_dir=path, resume=True))
    assert len(records(path)) == COUNT


@pytest.mark.parametrize("way", WAYS)
def test_resuming_a_finished_sweep_runs_and_loses_nothing(tmp_path: Path, whole: dict, way: str) -> None:
    path = tmp_path / "again"
    shutil.copytree(whole[way].path, path)
    before = json.loads((path / "sweep.json").read_text())
    again = swept(way=way, seeds=2, sweep_dir=path, resume=True)
    assert host.calls == 0
    same(whole[way], again)
    after = json.loads((path / "sweep.json").read_text())
    for name in ("seconds", "compile_seconds", "programs", "member_steps", "member_steps_per_second", "groups"):
        assert after[name] == before[name], name


def test_a_failed_sweep_keeps_what_it_has_and_goes_on_once_mended(tmp_path: Path, whole: dict) -> None:
    def fail() -> None:
        raise ValueError("no such luck")

    for way in WAYS:
        path = tmp_path / way
        host.forget()
        host.at, host.action = whole["calls"][way] // 2, fail
        with pytest.raises(ExperimentError, match="no such luck"):
            swept(way=way, seeds=2, sweep_dir=path)
        facts = json.loads((path / "sweep.json").read_text())
        assert facts["status"].startswith("failed: the experiment's own code failed")
        host.forget()
        same(whole[way], swept(way=way, seeds=2, sweep_dir=path, resume=True))


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sweep of either way that was interrupted in its middle."""
    paths = {}
    for way in WAYS:
        host.forget()
        host.at, host.action = 20, terminate
        paths[way] = tmp_path_factory.mktemp("halfway") / way
        with pytest.raises(Interrupted):
            swept(way=way, seeds=2, sweep_dir=paths[way])
    host.forget()
    return paths


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"space": {"learning_rate": [0.1, 0.2]}}, ConfigError, "started with another space"),
        ({"space": dict(reversed(SPACE.items()))}, ConfigError, "another"),  # other numbers for the members
        ({"seeds": 3}, ConfigError, "another seeds"),
        ({"samples": 9}, ConfigError, "another search, samples|another"),
        ({"config": Config(steps=25)}, ConfigError, "another config"),
        ({"config": Config(seed=1)}, ConfigError, "another config"),
        ({"experiment": line._replace(name="other")}, RunError, "sweep of another experiment, 'line', not of 'other'"),
        ({"resume": False}, RunError, "holds a run already; choose another --sweep-dir, or `foldax resume"),
        ({"way": "other"}, ConfigError, "way: 'other' is neither 'exact' nor 'fast'"),
        ({"members_at_once": 0}, ConfigError, "members_at_once: 0 is too small"),
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
def test_what_does_not_fit_a_folder_is_refused_and_changes_nothing(
    tmp_path: Path, halfway: dict[str, Path], changes: dict, error: type, words: str
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(halfway["exact"], path)
    before = contents(path)
    options = {"experiment": line, "way": "exact", "seeds": 2, "sweep_dir": path, "resume": True} | changes
    with pytest.raises(error, match=words) as raised:
        swept(options.pop("experiment"), options.pop("space", None), **options)
    assert "\n" not in str(raised.value)
    assert contents(path) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", [*WAYS, None])
def test_resuming_the_other_way_is_refused_or_loses_nothing(
    tmp_path: Path, halfway: dict[str, Path], whole: dict, way: str, other: str | None
) -> None:
    path = tmp_path / "other"
    shutil.copytree(halfway[way], path)
    before = contents(path)
    try:
        resumed = swept(way=other, seeds=2, sweep_dir=path, resume=True)
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
        same(whole[way], resumed)
    if refusal:
        assert "way" in refusal
        assert contents(path) == before
    assert not list(path.rglob("damaged-*"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_another_process_has(halfway: dict[str, Path], resume: bool) -> None:
    before = contents(halfway["exact"])
    with (
        folder.lock(halfway["exact"]),
        pytest.raises(RunError, match=rf"in use by process {os.getpid()}; .*--sweep-dir"),
    ):
        swept(way="exact", seeds=2, sweep_dir=halfway["exact"], resume=resume)
    assert contents(halfway["exact"]) == before


def test_a_run_folder_is_no_sweep_folder_and_the_other_way_round(tmp_path: Path, halfway: dict[str, Path]) -> None:
    foldax.train(line, Config(steps=2), run_dir=tmp_path / "run", verbose=False)
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        swept(sweep_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"no sweep\.json"):
        swept(sweep_dir=tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    shutil.copytree(halfway["exact"], tmp_path / "sweep")
    with pytest.raises(RunError, match="sweep"):
        foldax.train(line, Config(steps=2), run_dir=tmp_path / "sweep", verbose=False)
    assert contents(tmp_path / "sweep") == contents(halfway["exact"])


def test_resuming_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="resume: say which sweep folder"):
        swept(resume=True)
    with pytest.raises(RunError, match=r"gone is not a .*folder: it has no sweep\.json"):
        swept(sweep_dir=tmp_path / "gone", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        swept(sweep_dir=tmp_path / "file")


def test_another_config_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a config of class Config, got Training"):
        swept(space={"steps": [2, 3]}, config=foldax.Training(), save=False)


def test_a_whole_batch_on_several_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="devices: a sweep gives whole members to each device"):
        swept(config=Config(devices=2), save=False)


# Random draws, and reproducing members


@pytest.mark.parametrize("rates", ["log:1.2345678e-3:1.2345678e-1", foldax.Range(1 / 3, 2 / 3)], ids=str)
def test_random_draws_resume_and_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: Any) -> None:
    options: dict[str, Any] = dict(space={"learning_rate": rates, "target": [4.0, 8.0]}, samples=5, way="exact")
    first = swept(sweep_dir=tmp_path / "whole", **options)
    assert first.facts["search"] == "random"
    assert len(first.results) == 5
    host.forget()
    host.at, host.action = 12, terminate
    with pytest.raises(Interrupted):
        swept(sweep_dir=tmp_path / "cut", **options)
    options["space"] = json.loads((tmp_path / "cut" / "sweep.json").read_text())["space"]  # as `foldax resume` does
    same(first, swept(sweep_dir=tmp_path / "cut", resume=True, **options))
    assert reproduce_member(tmp_path / "cut", 3)
    assert "DIFFERS" not in capsys.readouterr().out


def test_every_member_can_be_reproduced(whole: dict, capsys: pytest.CaptureFixture[str]) -> None:
    path = whole["exact"].path
    for number in (0, 2, 5):
        assert reproduce_member(path, number)
        out = capsys.readouterr().out
        assert out.endswith("reproduced: all bits are the same\n")
        for name in ("steps", "best_step", "state_sha256", "train/loss", "validation/largest", "test/distance"):
            assert re.search(rf"^{name} +identical$", out, re.MULTILINE)
    with pytest.raises(RunError, match=r"member 6 .* became not finite at step"):
        reproduce_member(path, 6)
    for number in (COUNT, -1, None):
        with pytest.raises(ConfigError, match=r"is no member of .*it has the members 0 to 11"):
            reproduce_member(path, number)


def test_a_member_that_is_not_done_cannot_be_reproduced(halfway: dict[str, Path]) -> None:
    done = records(halfway["exact"])
    missing = next(number for number in range(COUNT) if number not in done)
    with pytest.raises(RunError, match=f"member {missing} of .* is not done; `foldax resume"):
        reproduce_member(halfway["exact"], missing)


def test_programs_are_dropped_before_they_hold_all_memory_mappings(monkeypatch) -> None:
    held, most = compiled.mappings()
    assert 0 <= held < most
    space = {"width": [(4,), (5,), (6,)]}
    monkeypatch.setattr(compiled, "mappings", lambda: (20, 100))
    first = swept(space=space, save=False)
    before = compiled.traces["advance"]
    swept(space=space, save=False)
    assert compiled.traces["advance"] == before
    monkeypatch.setattr(compiled, "mappings", lambda: (30, 100))
    again = swept(space=space, save=False)
    assert compiled.traces["advance"] == before + 3
    assert_frame_equal(first.results.drop(columns="seconds"), again.results.drop(columns="seconds"), check_exact=True)
