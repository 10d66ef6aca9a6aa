"""`foldax.sweep`: its folder, its tables, and resuming after an interruption or a kill at any moment."""

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
from foldax.sweeps.records import ResultStore
from foldax.sweeps.reproduce import reproduce_member

EXECUTIONS = ("exact", "fast")


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


class EvaluationHook:
    """Counts evaluations on the host, and calls `action` at evaluation number `at`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.calls, self.at, self.action = 0, 0, lambda: None

    def __call__(self, values: dict) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return {"largest": float(values["loss"].max())}


evaluation_hook = EvaluationHook()
line = experiment = foldax.Experiment(
    Config, learner, dataset, summarize=evaluation_hook, name="line"
)  # a file like any other
SPACE = {"learning_rate": [0.1, 1e30], "target": [100.0, 4.0, 8.0]}
NUM_MEMBERS = 12  # members, with two seeds


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    evaluation_hook.reset()
    yield
    evaluation_hook.reset()


def run_sweep(experiment: foldax.Experiment = line, space: dict | None = None, **options: Any) -> foldax.SweepResult:
    return foldax.sweep(experiment, SPACE if space is None else space, **{"verbose": False} | options)


def terminate() -> None:
    """Does at once what a SIGTERM does when the main thread comes to it (real ones: tests/sweeps/test_command.py)."""
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    handler(signal.SIGTERM, None)


def assert_same_tables(first: foldax.SweepResult, second: foldax.SweepResult) -> None:
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
def finished_sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, foldax.SweepResult]:
    """An uninterrupted sweep of either execution, and its number of evaluations."""
    sweeps, calls = {}, {}
    for execution in EXECUTIONS:
        evaluation_hook.reset()
        sweeps[execution] = run_sweep(
            execution=execution, seeds=2, sweep_dir=tmp_path_factory.mktemp("sweeps") / execution
        )
        calls[execution] = evaluation_hook.calls
    sweeps["calls"] = calls
    return sweeps


# Files and tables


def test_metadata_is_complete(finished_sweeps: dict) -> None:
    for execution in EXECUTIONS:
        sweep = finished_sweeps[execution]
        metadata = json.loads((sweep.path / "sweep.json").read_text())
        assert metadata == json.loads(json.dumps(sweep.metadata))
        assert metadata["experiment"] == "line"
        assert metadata["file"] == str(Path(__file__).resolve())
        assert metadata["search"] == "grid"
        assert metadata["space"] == SPACE
        assert metadata["fields"] == ["learning_rate", "target"]
        assert (metadata["seeds"], metadata["monitor"], metadata["mode"]) == (2, "distance", "min")
        assert metadata["config"] == foldax.to_json(Config())
        assert (metadata["backend"], len(metadata["devices"]), metadata["status"]) == ("cpu", 2, "finished")
        assert metadata["data_fingerprint"] == dataset(Config()).info.fingerprint
        structural = {"steps": 18, "width": "(4,)", "size": 3, "noise.kind": "normal"}
        assert metadata["groups"] == [{"structural": structural, "members": NUM_MEMBERS, "execution": execution}]
        assert metadata["member_steps"] == sweep.results["steps_done"].sum()
        assert metadata["member_steps_per_second"] > 0
        assert 0 <= metadata["compile_seconds"] <= 2 * metadata["seconds"]
        assert metadata["started"] <= metadata["ended"]
        assert {"command", "python", "versions", "git"} <= metadata.keys()
        assert isinstance(metadata["programs"], int)


def test_results_have_a_row_for_each_member(finished_sweeps: dict) -> None:
    for execution in EXECUTIONS:
        sweep = finished_sweeps[execution]
        on_disk = pandas.read_parquet(sweep.path / "results.parquet")
        assert_frame_equal(on_disk, sweep.results, check_exact=True)
        assert list(on_disk["member"]) == list(range(NUM_MEMBERS))
        assert set(on_disk["group"]) == {0}
        assert list(on_disk["seed"]) == [0, 1] * 6
        assert list(on_disk["learning_rate"]) == [rate for rate in SPACE["learning_rate"] for _ in range(6)]
        assert set(on_disk["width"]) == {"(4,)"}
        assert set(on_disk["noise.scale"]) == {0.01}
        assert list(on_disk["status"]) == ["finished"] * 2 + ["stopped early"] * 4 + ["not finite"] * 6
        assert list(on_disk["steps_done"][:6]) == [18, 18, 6, 6, 10, 10]
        assert list(on_disk["best_step"][:6]) == [18, 18, 4, 4, 8, 8]
        not_finite = on_disk["status"] == "not finite"
        assert on_disk["best_step"].isna().equals(not_finite)
        assert on_disk["state_sha256"].isna().equals(not_finite)
        assert (on_disk["state_sha256"].dropna().str.len() == 64).all()
        metrics = {
            f"{split}/{name}" for split in ("validation", "test") for name in ("loss", "distance", "largest")
        } | {"train/loss"}
        assert {name for name in on_disk if "/" in name} == metrics
        assert all(on_disk[name].dtype == np.float64 and on_disk[name].isna().equals(not_finite) for name in metrics)
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


def test_curves_hold_every_log_line(finished_sweeps: dict) -> None:
    for execution in EXECUTIONS:
        sweep = finished_sweeps[execution]
        on_disk = pandas.read_parquet(sweep.path / "curves.parquet")
        assert_frame_equal(on_disk, sweep.curves, check_exact=True)
        assert list(on_disk) == ["member", "step", "split", "metric", "value"]
        assert [on_disk[name].dtype.kind for name in ("member", "step", "value")] == ["i", "i", "f"]
        one = on_disk[(on_disk["member"] == 4)]
        assert list(one[one["split"] == "train"]["step"]) == [5, 10]
        distances = one[one["metric"] == "distance"]
        assert list(zip(distances["step"], distances["value"])) == [(2, 6), (4, 4), (6, 2), (8, 0), (10, 2)]


def test_finished_sweep_folder_holds_no_temporary_files(finished_sweeps: dict) -> None:
    for execution in EXECUTIONS:
        files = {file for file in contents(finished_sweeps[execution].path) if not file.startswith("figures/")}
        assert files <= {"sweep.json", "results.parquet", "curves.parquet", "members.jsonl", "report.html"}


def test_sweep_dir_defaults_to_a_new_folder_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweeps = [run_sweep(space={"target": [2.0]}, config=Config(steps=3)) for _ in range(2)]
    assert [one.path.resolve() for one in sweeps] == sorted((tmp_path / "runs" / "line").iterdir())
    assert all(re.fullmatch(r"sweep-\d{8}-\d{6}-[0-9a-f]{6}(-2)?", one.path.name) for one in sweeps)


def test_save_false_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for execution in EXECUTIONS:
        sweep = run_sweep(
            space={"target": [2.0, 4.0]}, execution=execution, save=False, config=Config(steps=7, checkpoint_every=1)
        )
        assert sweep.path is None
        assert len(sweep.results) == 2
    assert not list(tmp_path.iterdir())


def test_sweep_runs_in_a_thread(tmp_path: Path) -> None:
    sweeps: list[foldax.SweepResult] = []
    thread = threading.Thread(
        target=lambda: sweeps.append(run_sweep(space={"target": [2.0]}, sweep_dir=tmp_path / "s"))
    )
    thread.start()
    thread.join()
    assert sweeps[0].metadata["status"] == "finished"


@pytest.mark.parametrize(
    ("space", "columns"),
    [
        ({"checkpoint_every": [5, "1m"]}, {"checkpoint_every": ["5", "1m"]}),
        ({"size": [3, (2, 4)]}, {"size": ["3", "(2, 4)"]}),
        ({"patience": [None, 3]}, {"patience": [None, 3]}),
        ({"noise": [Noise(scale=0.5), Noise(kind="b")]}, {"noise.scale": [0.5, 0.01], "noise.kind": ["normal", "b"]}),
        ({"keep": ["last"]}, {"best_step": [None]}),
        ({"width": [[4], (5,)]}, {"width": ["(4,)", "(5,)"], "group": [0, 1]}),
    ],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_tables_hold_any_type_of_swept_field(tmp_path: Path, space: dict, columns: dict) -> None:
    config = Config(steps=2, evaluate_every=0, checkpoint_every=0)
    sweep = run_sweep(space=space, config=config, sweep_dir=tmp_path / "s")
    on_disk = pandas.read_parquet(tmp_path / "s" / "results.parquet")
    assert_frame_equal(on_disk, sweep.results)
    for name, values in columns.items():
        cells = [None if pandas.isna(value) else value for value in on_disk[name]]
        assert cells == values or list(map(str, cells)) == values
    again = run_sweep(space=space, config=config, sweep_dir=tmp_path / "s", resume=True)
    assert_same_tables(sweep, again)


def test_field_with_the_name_of_a_column_works_or_is_refused(tmp_path: Path) -> None:
    @foldax.config
    class Named(Config):
        group: int = 7
        member: str = "a"
        seconds: float = 0.5
        status: str = "b"

    with contextlib.suppress(ConfigError):  # to refuse such a field, in words, is as good
        sweep = run_sweep(line._replace(config=Named), {"target": [2.0, 4.0]}, config=Named(steps=2), save=False)
        assert list(sweep.results["member"]) == [0, 1]
        assert list(sweep.results["group"]) == [0, 0]
        assert set(sweep.results["status"]) == {"finished"}


def test_swept_steps_and_steps_done_are_different_columns(tmp_path: Path) -> None:
    sweep = run_sweep(space={"steps": [12, 24], "target": [4.0]}, sweep_dir=tmp_path / "s")
    assert [config.steps for config in sweep.configs] == [12, 24]
    assert list(sweep.results["steps"]) == [12, 24]
    assert list(sweep.results["steps_done"]) == [6, 6]


# Resuming


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("fraction", [0.02, 0.4, 0.7])
def test_interrupted_sweep_resumes_to_the_same_tables(
    tmp_path: Path, finished_sweeps: dict, execution: str, fraction: float
) -> None:
    path = tmp_path / "cut"
    evaluation_hook.at, evaluation_hook.action = 1 + int(fraction * finished_sweeps["calls"][execution]), terminate
    with pytest.raises(
        Interrupted, match=rf"stopped with \d+ of {NUM_MEMBERS} members done; go on with: foldax resume .*{path}"
    ):
        run_sweep(execution=execution, seeds=2, sweep_dir=path)
    before, calls = records(path), evaluation_hook.calls
    metadata = json.loads((path / "sweep.json").read_text())
    assert metadata["status"] == "interrupted"
    assert metadata["member_steps"] == sum(one["steps"] for one in before.values())
    assert set(pandas.read_parquet(path / "results.parquet").get("member", [])) == set(before)
    assert len(before) < NUM_MEMBERS
    evaluation_hook.reset()
    resumed = run_sweep(execution=execution, seeds=2, sweep_dir=path, resume=True)
    assert_same_tables(finished_sweeps[execution], resumed)
    after = records(path)
    assert {number: after[number] for number in before} == before, "finished members were run again"
    assert calls + evaluation_hook.calls <= finished_sweeps["calls"][execution] + NUM_MEMBERS, (
        "finished steps were computed again"
    )
    assert resumed.metadata["status"] == "finished"
    assert resumed.metadata["member_steps"] == finished_sweeps[execution].metadata["member_steps"]
    assert not [file for file in contents(path) if file.startswith("members/")]


@pytest.mark.parametrize(
    ("max_concurrent", "targets"), [(5, [100.0, 4.0, 8.0]), (8, [4.0, 100.0, 8.0]), (None, [4.0, 8.0, 100.0])], ids=str
)
def test_interrupted_fast_sweep_resumes_after_members_were_dropped(
    tmp_path: Path, max_concurrent: int | None, targets: list[float]
) -> None:
    space = {"learning_rate": SPACE["learning_rate"], "target": targets}
    options = dict(space=space, execution="fast", seeds=2, max_concurrent=max_concurrent)
    first = run_sweep(sweep_dir=tmp_path / "whole", **options)
    total_calls = evaluation_hook.calls
    for fraction in (0.4, 0.7):
        evaluation_hook.reset()
        path = tmp_path / f"cut{fraction}"
        evaluation_hook.at, evaluation_hook.action = int(total_calls * fraction), terminate
        with pytest.raises(Interrupted):
            run_sweep(sweep_dir=path, **options)
        calls = evaluation_hook.calls
        evaluation_hook.reset()
        assert_same_tables(first, run_sweep(sweep_dir=path, resume=True, **options))
        assert calls + evaluation_hook.calls <= total_calls + NUM_MEMBERS, "finished steps were computed again"


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_sweep_interrupted_repeatedly_resumes_to_the_same_tables(
    tmp_path: Path, finished_sweeps: dict, execution: str
) -> None:
    path, resume, interruptions = tmp_path / execution, False, 0
    while True:
        evaluation_hook.reset()
        evaluation_hook.at, evaluation_hook.action = finished_sweeps["calls"][execution] // 5, terminate
        try:
            sweep = run_sweep(execution=execution, seeds=2, sweep_dir=path, resume=resume)
            break
        except Interrupted:
            resume, interruptions = True, interruptions + 1
            assert interruptions < 20
    assert_same_tables(finished_sweeps[execution], sweep)
    assert interruptions >= 2


def test_two_devices_may_write_checkpoints_at_the_same_time(tmp_path: Path, finished_sweeps: dict) -> None:
    for index in range(2):
        path = tmp_path / str(index)
        sweep = run_sweep(execution="exact", seeds=2, sweep_dir=path, config=Config(checkpoint_every=1))
        changed = ["seconds", "checkpoint_every"]
        expected = finished_sweeps["exact"].results.drop(columns=changed)
        assert_frame_equal(sweep.results.drop(columns=changed), expected, check_exact=True)


def test_interruption_without_a_folder_states_the_progress() -> None:
    evaluation_hook.at, evaluation_hook.action = 5, terminate
    with pytest.raises(Interrupted, match=r"^stopped with \d of 6 members done$"):
        run_sweep(save=False, execution="exact")


@pytest.mark.parametrize(("execution", "when"), [("exact", "after"), ("fast", "before"), ("fast", "after")])
def test_sweep_killed_at_any_result_resumes_to_the_same_tables(
    tmp_path: Path, finished_sweeps: dict, monkeypatch: pytest.MonkeyPatch, execution: str, when: str
) -> None:
    """Copies of the folder before and after a result is written stand for kills at that moment."""
    path, add, moments = tmp_path / "killed", ResultStore.add, []

    def copy() -> None:
        target = tmp_path / f"moment{len(moments)}"
        moments.append(target)
        with contextlib.suppress(shutil.Error):  # a file that is being renamed may be missing under both names
            shutil.copytree(path, target)

    def copy_around_add(self: ResultStore, result: Any) -> None:
        if when == "before":
            copy()
        add(self, result)
        if when == "after":
            copy()

    monkeypatch.setattr(ResultStore, "add", copy_around_add)
    run_sweep(execution=execution, seeds=2, sweep_dir=path)
    monkeypatch.undo()
    assert len(moments) == NUM_MEMBERS
    for index in (5, 8, NUM_MEMBERS - 1):
        before = records(moments[index])
        resumed = run_sweep(execution=execution, seeds=2, sweep_dir=moments[index], resume=True)
        assert_same_tables(finished_sweeps[execution], resumed)
        after = records(moments[index])
        assert {number: after[number] for number in before} == before


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("cut", [2, 10_000])
def test_truncated_result_is_computed_again(tmp_path: Path, finished_sweeps: dict, execution: str, cut: int) -> None:
    path = tmp_path / "cut"
    shutil.copytree(finished_sweeps[execution].path, path)
    lines = (path / "members.jsonl").read_text().splitlines(keepends=True)
    (path / "members.jsonl").write_text("".join(lines[:-1]) + lines[-1][: max(0, len(lines[-1]) - cut)])
    assert_same_tables(finished_sweeps[execution], run_sweep(execution=execution, seeds=2, sweep_dir=path, resume=True))
    assert len(records(path)) == NUM_MEMBERS


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_resuming_a_finished_sweep_trains_nothing_and_keeps_tables(
    tmp_path: Path, finished_sweeps: dict, execution: str
) -> None:
    path = tmp_path / "again"
    shutil.copytree(finished_sweeps[execution].path, path)
    before = json.loads((path / "sweep.json").read_text())
    again = run_sweep(execution=execution, seeds=2, sweep_dir=path, resume=True)
    assert evaluation_hook.calls == 0
    assert_same_tables(finished_sweeps[execution], again)
    after = json.loads((path / "sweep.json").read_text())
    for name in ("seconds", "compile_seconds", "programs", "member_steps", "member_steps_per_second", "groups"):
        assert after[name] == before[name], name


def test_a_sweep_of_a_version_without_some_fields_resumes(tmp_path: Path, finished_sweeps: dict) -> None:
    path = tmp_path / "earlier"
    shutil.copytree(finished_sweeps["exact"].path, path)
    recorded = json.loads((path / "sweep.json").read_text())
    del recorded["config"]["checkpoints"]
    (path / "sweep.json").write_text(json.dumps(recorded))
    assert_same_tables(finished_sweeps["exact"], run_sweep(execution="exact", seeds=2, sweep_dir=path, resume=True))


def test_failed_sweep_keeps_results_and_resumes(tmp_path: Path, finished_sweeps: dict) -> None:
    def fail() -> None:
        raise ValueError("no such luck")

    for execution in EXECUTIONS:
        path = tmp_path / execution
        evaluation_hook.reset()
        evaluation_hook.at, evaluation_hook.action = finished_sweeps["calls"][execution] // 2, fail
        with pytest.raises(ExperimentError, match="no such luck"):
            run_sweep(execution=execution, seeds=2, sweep_dir=path)
        metadata = json.loads((path / "sweep.json").read_text())
        assert metadata["status"] == "failed: the experiment's own code failed: ValueError: no such luck"
        evaluation_hook.reset()
        assert_same_tables(
            finished_sweeps[execution], run_sweep(execution=execution, seeds=2, sweep_dir=path, resume=True)
        )


@pytest.fixture(scope="module")
def interrupted_sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An interrupted sweep of either execution."""
    paths = {}
    for execution in EXECUTIONS:
        evaluation_hook.reset()
        evaluation_hook.at, evaluation_hook.action = 20, terminate
        paths[execution] = tmp_path_factory.mktemp("halfway") / execution
        with pytest.raises(Interrupted):
            run_sweep(execution=execution, seeds=2, sweep_dir=paths[execution])
    evaluation_hook.reset()
    return paths


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"space": {"learning_rate": [0.1, 0.2]}}, ConfigError, "started with another space"),
        ({"space": dict(reversed(SPACE.items()))}, ConfigError, "another"),  # other numbers for the members
        ({"seeds": 3}, ConfigError, "another seeds"),
        ({"samples": 4}, ConfigError, "another search, samples|another"),
        ({"config": Config(steps=25)}, ConfigError, "another config"),
        ({"config": Config(seed=1)}, ConfigError, "another config"),
        ({"experiment": line._replace(name="other")}, RunError, "sweep of another experiment, 'line', not of 'other'"),
        ({"resume": False}, RunError, "holds a run already; choose another --sweep-dir, or `foldax resume"),
        ({"execution": "other"}, ConfigError, "execution: 'other' is neither 'exact' nor 'fast'"),
        ({"max_concurrent": 0}, ConfigError, "max_concurrent: 0 is too small"),
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
def test_options_that_differ_from_the_folder_are_refused(
    tmp_path: Path, interrupted_sweeps: dict[str, Path], changes: dict, error: type, words: str
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(interrupted_sweeps["exact"], path)
    before = contents(path)
    options = {"experiment": line, "execution": "exact", "seeds": 2, "sweep_dir": path, "resume": True} | changes
    with pytest.raises(error, match=words) as raised:
        run_sweep(options.pop("experiment"), options.pop("space", None), **options)
    assert "\n" not in str(raised.value)
    assert contents(path) == before


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("other", [*EXECUTIONS, None])
def test_resuming_with_the_other_execution_is_refused_or_keeps_tables(
    tmp_path: Path, interrupted_sweeps: dict[str, Path], finished_sweeps: dict, execution: str, other: str | None
) -> None:
    path = tmp_path / "other"
    shutil.copytree(interrupted_sweeps[execution], path)
    before = contents(path)
    try:
        resumed = run_sweep(execution=other, seeds=2, sweep_dir=path, resume=True)
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert_same_tables(finished_sweeps[execution], resumed)
    if refusal:
        assert "execution" in refusal
        assert contents(path) == before
    assert not list(path.rglob("damaged-*"))


def test_resume_auto_starts_goes_on_and_returns_the_tables(
    tmp_path: Path, interrupted_sweeps: dict[str, Path], finished_sweeps: dict
) -> None:
    shutil.copytree(interrupted_sweeps["exact"], tmp_path / "cut")
    for name in ("new", "cut", "cut"):
        sweep = run_sweep(execution="exact", seeds=2, sweep_dir=tmp_path / name, resume="auto")
        assert_same_tables(finished_sweeps["exact"], sweep)
    with pytest.raises(ConfigError, match="started with another seeds"):
        run_sweep(execution="exact", seeds=3, sweep_dir=tmp_path / "cut", resume="auto")


@pytest.mark.parametrize("resume", [True, False])
def test_folder_in_use_by_another_process_is_refused(interrupted_sweeps: dict[str, Path], resume: bool) -> None:
    before = contents(interrupted_sweeps["exact"])
    with (
        folder.lock(interrupted_sweeps["exact"]),
        pytest.raises(RunError, match=rf"in use by process {os.getpid()}; .*--sweep-dir"),
    ):
        run_sweep(execution="exact", seeds=2, sweep_dir=interrupted_sweeps["exact"], resume=resume)
    assert contents(interrupted_sweeps["exact"]) == before


def test_run_folders_and_sweep_folders_are_not_confused(tmp_path: Path, interrupted_sweeps: dict[str, Path]) -> None:
    foldax.train(line, Config(steps=2), run_dir=tmp_path / "run", verbose=False)
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        run_sweep(sweep_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"no sweep\.json"):
        run_sweep(sweep_dir=tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    shutil.copytree(interrupted_sweeps["exact"], tmp_path / "sweep")
    with pytest.raises(RunError, match="sweep"):
        foldax.train(line, Config(steps=2), run_dir=tmp_path / "sweep", verbose=False)
    assert contents(tmp_path / "sweep") == contents(interrupted_sweeps["exact"])


def test_resuming_without_a_sweep_folder_is_an_error(tmp_path: Path) -> None:
    for resume in (True, "auto"):
        with pytest.raises(RunError, match="resume: say which sweep folder"):
            run_sweep(resume=resume)
    with pytest.raises(RunError, match=r"gone is not a .*folder: it has no sweep\.json"):
        run_sweep(sweep_dir=tmp_path / "gone", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        run_sweep(sweep_dir=tmp_path / "file")


def test_config_of_another_class_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected a config of class Config, got Training"):
        run_sweep(space={"steps": [2, 3]}, config=foldax.Training(), save=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"execution": "fast"}, "'data=2' divides each member, but a vmapped program .* --exact trains members one"),
        ({"search": foldax.SuccessiveHalving()}, "members of SuccessiveHalving move between devices, and 'data=2' div"),
        ({"space": {"mesh": ["data=1", "data=2"]}, "execution": "fast"}, "'data=2' divides each member"),
        ({"config": Config(mesh="fsdp=4")}, "'fsdp=4' takes 4 devices, but this machine has 2"),
    ],
    ids=["fast", "search", "swept", "machine"],
)
def test_members_that_cannot_be_divided_are_an_error(options: dict, words: str) -> None:
    config = {} if "space" in options else {"config": Config(mesh="data=2")}
    with pytest.raises(ConfigError, match=f"^mesh: {words}"):
        run_sweep(**{"space": {}, "save": False} | config | options)


def test_divided_members_resume_and_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = dict(space={"learning_rate": [0.1, 0.2]}, config=Config(mesh="data=2", target=8.0))
    first = run_sweep(sweep_dir=tmp_path / "whole", **options)
    evaluation_hook.reset()
    evaluation_hook.at, evaluation_hook.action = 6, terminate
    with pytest.raises(Interrupted):
        run_sweep(sweep_dir=tmp_path / "cut", **options)
    assert_same_tables(first, run_sweep(sweep_dir=tmp_path / "cut", resume=True, **options))
    assert reproduce_member(tmp_path / "cut", 1)
    assert "DIFFERS" not in capsys.readouterr().out


# Random samples, and reproducing members


@pytest.mark.parametrize("rates", ["log:1.2345678e-3:1.2345678e-1", foldax.Range(1 / 3, 2 / 3)], ids=str)
def test_random_samples_resume_and_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: Any) -> None:
    options: dict[str, Any] = dict(space={"learning_rate": rates, "target": [4.0, 8.0]}, samples=5, execution="exact")
    first = run_sweep(sweep_dir=tmp_path / "whole", **options)
    assert first.metadata["search"] == "random"
    assert len(first.results) == 5
    evaluation_hook.reset()
    evaluation_hook.at, evaluation_hook.action = 12, terminate
    with pytest.raises(Interrupted):
        run_sweep(sweep_dir=tmp_path / "cut", **options)
    options["space"] = json.loads((tmp_path / "cut" / "sweep.json").read_text())["space"]  # as `foldax resume` does
    assert_same_tables(first, run_sweep(sweep_dir=tmp_path / "cut", resume=True, **options))
    assert reproduce_member(tmp_path / "cut", 3)
    assert "DIFFERS" not in capsys.readouterr().out


def test_every_member_can_be_reproduced(finished_sweeps: dict, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished_sweeps["exact"].path
    for number in (0, 2, 5):
        assert reproduce_member(path, number)
        out = capsys.readouterr().out
        assert out.endswith("reproduced: all bits are the same\n")
        for name in ("steps", "best_step", "state_sha256", "train/loss", "validation/largest", "test/distance"):
            assert re.search(rf"^{name} +identical$", out, re.MULTILINE)
    with pytest.raises(RunError, match=r"member 6 .* became not finite at step"):
        reproduce_member(path, 6)
    problems = {NUM_MEMBERS: "there is no member 12", -1: "there is no member -1", None: "give its number"}
    for number, problem in problems.items():
        with pytest.raises(ConfigError, match=f"--member: {problem}; .* has the members 0 to 11"):
            reproduce_member(path, number)


def test_reproducing_an_unfinished_member_is_an_error(interrupted_sweeps: dict[str, Path]) -> None:
    done = records(interrupted_sweeps["exact"])
    missing = next(number for number in range(NUM_MEMBERS) if number not in done)
    with pytest.raises(RunError, match=f"member {missing} of .* is not done; `foldax resume"):
        reproduce_member(interrupted_sweeps["exact"], missing)


def test_programs_are_dropped_near_the_map_limit(monkeypatch) -> None:
    held, most = compiled.memory_mappings()
    assert 0 <= held < most
    space = {"width": [(4,), (5,), (6,)]}
    monkeypatch.setattr(compiled, "memory_mappings", lambda: (20, 100))
    first = run_sweep(space=space, save=False)
    before = compiled.trace_counts["advance"]
    run_sweep(space=space, save=False)
    assert compiled.trace_counts["advance"] == before
    monkeypatch.setattr(compiled, "memory_mappings", lambda: (30, 100))
    again = run_sweep(space=space, save=False)
    assert compiled.trace_counts["advance"] == before + 3
    assert_frame_equal(first.results.drop(columns="seconds"), again.results.drop(columns="seconds"), check_exact=True)
