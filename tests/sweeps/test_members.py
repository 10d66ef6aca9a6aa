"""Members of a sweep: each has the results of its single run, in both kinds of execution."""

import dataclasses
import functools
import pickle
from collections import Counter
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest

import foldax
from foldax import data, learners, models
from foldax.engine import compiled
from foldax.engine.layout import Layout, make_mesh
from foldax.engine.state_leaves import state_digest
from foldax.errors import ConfigError, ExperimentError, NonFiniteError
from foldax.sweeps import exact
from foldax.sweeps.exact import DeviceWorkers
from foldax.sweeps.plan import DatasetCache, make_plan
from foldax.sweeps.space import parse_space
from tests.conftest import Config, tiny, tiny_arrays, tiny_dataset

EXECUTIONS = ("exact", "fast")
EVENTS: list[tuple[str, str]] = []  # what JAX has traced and compiled, as (event, function)


def record_event(event: str, duration: float, **about: Any) -> None:
    EVENTS.append((event.split("/")[-1], str(about.get("fun_name"))))


jax.monitoring.register_event_duration_secs_listener(record_event)


@functools.cache
def single_run(experiment: foldax.Experiment, config: Any) -> foldax.Result | NonFiniteError:
    try:
        return foldax.train(experiment, config, save=False, verbose=False)
    except NonFiniteError as error:
        return error


def run_sweep(experiment: foldax.Experiment, space: dict | None = None, **options: Any) -> foldax.SweepResult:
    return foldax.sweep(experiment, space, **{"save": False, "verbose": False} | options)


def curve_values(sweep: foldax.SweepResult, member: int) -> dict[tuple[int, str, str], float]:
    rows = sweep.curves[sweep.curves["member"] == member]
    return {(step, split, metric): value for _, step, split, metric, value in rows.itertuples(index=False)}


def assert_equal_single_runs(experiment: foldax.Experiment, sweep: foldax.SweepResult) -> None:
    """Asserts that every member has the state, status and metrics of its single run, bit for bit."""
    assert list(sweep.results["member"]) == list(range(len(sweep.configs)))
    for number, config in enumerate(sweep.configs):
        single, row = single_run(experiment, config), sweep.results.iloc[number]
        assert row["seed"] == config.seed
        if isinstance(single, NonFiniteError):
            assert (row["status"], row["steps_done"]) == ("not finite", single.step)
            assert row.filter(like="/").isna().all()
            assert pandas.isna(row["state_sha256"])
            continue
        best_step = None if pandas.isna(row["best_step"]) else row["best_step"]
        assert (row["status"], row["steps_done"], best_step) == (single.status, single.step, single.best_step), number
        assert row["state_sha256"] == state_digest(single.final_state), number
        metrics = {f"{split}/{k}": v for split, values in single.metrics.items() for k, v in values.items()}
        assert {k: v for k, v in row.items() if "/" in k and not np.isnan(v)} == metrics
        history = {
            (line["step"], line["split"], k): v
            for line in single.history
            for k, v in line.items()
            if k not in ("step", "split")
        }
        assert curve_values(sweep, number) == history


# A learner with exact arithmetic, so that both kinds of execution must equal single runs bit for bit


@foldax.config
class Count(foldax.Training):
    steps: int = 24
    log_every: int = 5
    evaluate_every: int = 1
    target: float = 100.0  # where the evaluated loss is 0
    nan_step: float = 100.0  # the step whose loss is not finite
    width: int = 3


def counting(config: Count, info: None) -> foldax.Learner:
    """Counts its steps and sums random integers."""

    def init(key: jax.Array, examples: None) -> dict[str, jax.Array]:
        return {"count": jnp.int32(0), "sum": jax.random.randint(key, (config.width,), 0, 1000)}

    def update(state: dict, batch: None, key: jax.Array) -> tuple[dict, dict]:
        new = {"count": state["count"] + 1, "sum": state["sum"] + jax.random.randint(key, (config.width,), 0, 1000)}
        return new, {
            "loss": jnp.where(state["count"] == config.nan_step, jnp.nan, 1.0),
            "odd": foldax.Average(state["count"].astype(jnp.float32), (state["count"] % 6 == 5).astype(jnp.float32)),
        }

    def evaluate(state: dict, batch: None, key: jax.Array) -> dict[str, jax.Array]:
        distance = jnp.abs(state["count"] - config.target)
        return {
            "loss": jnp.broadcast_to(distance, (4,)),
            "draw": jax.random.randint(key, (4,), 0, 64).astype(jnp.float32),
        }

    return foldax.Learner(init, update, evaluate)


count = foldax.Experiment(Count, counting, name="count")
STOPPING_SPACE = {"target": [3.0, 100.0, 7.0, 14.0], "nan_step": [100.0, 4.0, 11.0]}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patience": 2},
        {"patience": 2, "mode": "max"},
        {"patience": 1, "evaluate_every": 4, "log_every": 1},
        {"patience": 3, "keep": "last", "evaluate_every": 2},
        {"patience": 1, "evaluate_every": 0},
        {"evaluate_every": 5, "log_every": 100},
        {"monitor": "draw", "patience": 2, "evaluate_every": 3},
    ],
    ids=str,
)
def test_statuses_steps_states_and_logs_equal_single_runs(execution: str, changes: dict) -> None:
    assert_equal_single_runs(count, run_sweep(count, STOPPING_SPACE, config=Count(**changes), execution=execution))


def test_cases_above_cover_every_status() -> None:
    results = run_sweep(count, STOPPING_SPACE, config=Count(patience=2), execution="fast").results
    assert Counter(results["status"]) == {"stopped early": 5, "not finite": 6, "finished": 1}
    assert sorted(set(results["steps_done"])) == [4, 5, 9, 11, 16, 24]


@pytest.mark.parametrize("max_concurrent", [1, 3, 5, 100])
def test_fast_members_do_not_depend_on_max_concurrent(max_concurrent: int) -> None:
    space = {"target": [3.0, 9.0, 30.0, 5.0, 31.0, 4.0, 100.0]}
    assert_equal_single_runs(
        count, run_sweep(count, space, config=Count(patience=2), execution="fast", max_concurrent=max_concurrent)
    )


@pytest.mark.parametrize("stopping", [range(1, 6), range(6), [0, 5]], ids=str)
def test_frozen_members_are_dropped_and_others_train_on(stopping: Any) -> None:
    targets = [2.0 + number if number in stopping else 50.0 + number for number in range(6)]
    sweep = run_sweep(count, {"target": targets}, config=Count(patience=1, steps=40), execution="fast")
    assert_equal_single_runs(count, sweep)


def test_member_not_finite_from_the_first_step() -> None:
    for execution in EXECUTIONS:
        sweep = run_sweep(count, {"nan_step": [0.0, 100.0]}, execution=execution)
        assert_equal_single_runs(count, sweep)
        assert list(sweep.results["steps_done"]) == [0, 24]
        assert set(sweep.curves["member"]) == {1}


def test_all_members_not_finite() -> None:
    for execution in EXECUTIONS:
        sweep = run_sweep(count, {"nan_step": [2.0, 0.0, 9.0]}, config=Count(evaluate_every=0), execution=execution)
        assert list(sweep.results["status"]) == ["not finite"] * 3
        assert list(sweep.results["steps_done"]) == [2, 0, 9]
        assert sweep.metadata["status"] == "finished"


def test_members_of_one_step() -> None:
    for execution in EXECUTIONS:
        assert_equal_single_runs(
            count, run_sweep(count, {"target": [0.0, 1.0, 2.0]}, config=Count(steps=1), execution=execution)
        )


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_step_dispatch(execution: str) -> None:
    config = Count(dispatch="step", steps=7, log_every=3, patience=2)
    assert_equal_single_runs(count, run_sweep(count, {"target": [2.0, 9.0]}, config=config, execution=execution))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_driver_fields_may_differ_between_members(execution: str) -> None:
    space = {"log_every": [1, 4], "patience": [None, 2], "evaluate_every": [0, 3]}
    sweep = run_sweep(count, space, config=Count(target=4.0), execution=execution)
    assert_equal_single_runs(count, sweep)
    if execution == "exact":
        assert len(sweep.metadata["groups"]) == 1


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_structural_fields_make_groups_and_members_keep_their_order(execution: str) -> None:
    sweep = run_sweep(count, {"target": [2.0, 8.0], "width": [3, 2], "steps": [4, 6]}, seeds=2, execution=execution)
    assert_equal_single_runs(count, sweep)
    assert list(sweep.results["group"]) == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert [group["members"] for group in sweep.metadata["groups"]] == [4] * 4
    assert [group["structural"] for group in sweep.metadata["groups"]] == [
        {"steps": steps, "width": width} for width in (3, 2) for steps in (4, 6)
    ]


def host_summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {"distance": float(values["loss"].max()) + 1, "draws": float(values["draw"].sum())}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_summarized_metrics_can_be_monitored(execution: str) -> None:
    experiment = count._replace(summarize=host_summary)
    config = Count(monitor="distance", patience=2, evaluate_every=2)
    sweep = run_sweep(experiment, {"target": [4.0, 100.0, 6.0]}, seeds=2, config=config, execution=execution)
    assert_equal_single_runs(experiment, sweep)
    assert list(sweep.results["best_step"]) == [4, 4, 24, 24, 6, 6]
    assert "validation/draws" in sweep.results
    assert sweep.results["test/draws"].nunique() > 1


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_state_may_hold_keys_and_empty_arrays(execution: str) -> None:
    def learner(config: Count, info: None) -> foldax.Learner:
        plan = counting(config, info)

        def update(state: tuple, batch: None, key: jax.Array) -> tuple:
            new, metrics = plan.update(state[0], batch, key)
            return (new, jax.random.fold_in(state[1], 1), state[2]), metrics

        def evaluate(state: tuple, batch: None, key: jax.Array) -> dict:
            return plan.evaluate(state[0], batch, key)

        return foldax.Learner(lambda key, _: (plan.init(key, None), key, jnp.zeros((0, 2))), update, evaluate)

    experiment = foldax.Experiment(Count, learner, name="keys")
    config = Count(patience=1)
    assert_equal_single_runs(
        experiment, run_sweep(experiment, {"target": [2.0, 100.0, 3.0, 4.0]}, config=config, execution=execution)
    )


# Programs


@foldax.config
class Decay(Config):
    weight_decay: float = 1e-2


def uncompiled_experiment(config: type = Decay) -> foldax.Experiment:
    """An experiment for which no program has been compiled yet."""

    def learner(config: Decay, info: data.Info) -> foldax.Learner:
        model = models.MLP((*config.hidden, info.num_classes))
        optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        return learners.classifier(model, optimizer, preprocess=info.standardize)

    return foldax.Experiment(config, learner, tiny_dataset, name="fresh")


RATES = {"learning_rate": [1e-3, 3e-3, 1e-2], "weight_decay": [0.0, 1e-3, 1e-1]}


@pytest.mark.parametrize(("space", "groups"), [(RATES, 1), ({**RATES, "hidden": [(4,), (5,)]}, 2)], ids=["one", "two"])
def test_a_group_is_one_program_compiled_once_for_each_device(space: dict, groups: int) -> None:
    before, first = compiled.trace_counts["advance"], len(EVENTS)
    sweep = run_sweep(uncompiled_experiment(), space, seeds=2, execution="exact")
    events = Counter(EVENTS[first:])
    assert len(sweep.results) == 18 * groups
    assert len(sweep.metadata["groups"]) == sweep.metadata["programs"] == groups
    assert compiled.trace_counts["advance"] - before == groups
    assert events["jaxpr_trace_duration", "advance"] == groups
    for name in ("initial_fold", "advance", "evaluate", "update_best"):
        assert 0 < events["backend_compile_duration", f"jit({name})"] <= groups * jax.device_count(), name


@pytest.mark.parametrize(("space", "groups"), [(RATES, 1), ({**RATES, "hidden": [(4,), (5,)]}, 2)], ids=["one", "two"])
def test_a_fast_group_is_one_program_compiled_once(space: dict, groups: int) -> None:
    before, first = compiled.trace_counts["advance"], len(EVENTS)
    sweep = run_sweep(uncompiled_experiment(), space, seeds=2, execution="fast")
    events = Counter(EVENTS[first:])
    assert len(sweep.results) == 18 * groups
    assert len(sweep.metadata["groups"]) == sweep.metadata["programs"] == groups
    assert compiled.trace_counts["advance"] - before == groups
    for name in ("_initial_fold", "_advance", "_evaluate", "_update_best"):
        assert events["backend_compile_duration", f"jit({name})"] == groups, name


def test_sweep_and_single_runs_share_a_program() -> None:
    jax.clear_caches()  # else the sweep may drop the program of the single run near the map limit
    experiment = uncompiled_experiment()
    config = Decay(steps=3)
    single_run(experiment, config)
    first = len(EVENTS)
    run_sweep(experiment, {"learning_rate": [0.1, 0.2]}, seeds=2, config=config, execution="exact", max_concurrent=1)
    again = Counter(EVENTS[first:])
    assert again["jaxpr_trace_duration", "advance"] == 0
    assert (
        again["backend_compile_duration", "jit(advance)"] <= 1
    )  # the default device and the same one by name are different to JAX


def test_make_plan_compiles_nothing_and_keeps_no_data_on_devices() -> None:
    first, size = compiled.trace_counts["advance"], tiny_dataset(Config()).train.examples()["inputs"].shape
    before = {id(array) for array in jax.live_arrays() if array.shape == size}
    plan = make_plan(tiny, Config(), parse_space(Config(), {"hidden": [(3,), (2,)], "learning_rate": [1, 2]}), seeds=3)
    assert compiled.trace_counts["advance"] == first
    assert {id(array) for array in jax.live_arrays() if array.shape == size} <= before
    assert [len(group.members) for group in plan.groups] == [6, 6]
    assert plan.fields == ["hidden", "learning_rate"]
    assert [member.number for member in plan.groups[1].members] == list(range(6, 12))
    assert all(group.execution == "exact" and group.max_concurrent == 2 for group in plan.groups)


# Exact execution: bit for bit as single runs


def images(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    arrays = {"inputs": rng.randint(0, 17, (96, 6, 6, 1)).astype(np.uint8), "targets": rng.randint(0, 3, 96)}
    return data.from_arrays(arrays, batch_size=config.batch_size, validation=0.2, test=0.2)


def convolutional(config: Config, info: data.Info) -> foldax.Learner:
    model = models.CNN(3, (4,), dense=(8,), normalization="batch", dropout=config.dropout, conv_dropout=config.dropout)
    return learners.classifier(model, optax.sgd(config.learning_rate, momentum=0.9), preprocess=info.standardize)


cnn = foldax.Experiment(Config, convolutional, images, name="cnn")
streaming = tiny._replace(dataset=lambda config: tiny_dataset(config, "stream"), name="streaming")
unevaluated = tiny._replace(
    dataset=lambda config: data.from_arrays(tiny_arrays(), batch_size=config.batch_size, validation=0, test=0.2)
)
untested = tiny._replace(
    dataset=lambda config: data.from_arrays(tiny_arrays(), batch_size=config.batch_size, validation=0.2, test=0)
)


@pytest.mark.parametrize("max_concurrent", [None, 1])
def test_members_with_dropout_on_two_devices(max_concurrent: int | None) -> None:
    space = {"learning_rate": [0.3, 1e-3, 0.017], "dropout": [0.0, 0.37]}
    assert_equal_single_runs(tiny, run_sweep(tiny, space, seeds=2, execution="exact", max_concurrent=max_concurrent))


def test_members_that_are_divided_over_two_devices() -> None:
    sweep = run_sweep(tiny, {"learning_rate": [0.3, 1e-3]}, seeds=2, config=Config(mesh="data=2"))
    assert_equal_single_runs(tiny, sweep)
    assert sweep.metadata["programs"] == 1
    divided = Layout(make_mesh("data=2")).batch_sharding
    placed = tiny_dataset(Config()).to(divided)
    assert placed.to(divided).train is placed.train  # all members share the arrays


def test_the_plan_gives_disjoint_meshes_to_members(monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = make_plan(tiny, Config(mesh="data=-1"), {}, seeds=3).groups
    assert (group.execution, group.max_concurrent, group.devices_per_member) == ("exact", 1, 2)
    space = parse_space(Config(), {"mesh": ["data=1", "fsdp=2"]})
    groups = make_plan(tiny, Config(), space, seeds=3).groups
    assert [(group.max_concurrent, group.devices_per_member) for group in groups] == [(2, 1), (1, 2)]
    # Meshes of machines with more devices, which need not exist.
    monkeypatch.setattr(jax, "local_devices", lambda: list("abcdefg"))
    monkeypatch.setattr(jax, "local_device_count", lambda: 7)
    monkeypatch.setattr(exact, "make_mesh", lambda text, devices: "".join(devices))
    assert exact.worker_devices() == [None, *"bcdefg"]
    assert exact.worker_devices("data=2") == ["ab", "cd", "ef"]
    assert exact.worker_devices("data=2,fsdp=2") == ["abcd"]
    assert exact.worker_devices("data=-1") == ["abcdefg"]


def test_members_with_batch_normalization() -> None:
    assert_equal_single_runs(cnn, run_sweep(cnn, {"learning_rate": [0.3, 1e-3, 0.017]}, seeds=2, execution="exact"))


@pytest.mark.parametrize("experiment", [unevaluated, untested], ids=["validation", "test"])
def test_exact_members_without_a_split(experiment: foldax.Experiment) -> None:
    sweep = run_sweep(experiment, {"learning_rate": [0.3, 1e-3]}, execution="exact")
    assert_equal_single_runs(experiment, sweep)
    assert not any(name.startswith("validation/" if experiment is unevaluated else "test/") for name in sweep.results)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_streamed_data_makes_execution_exact(execution: str) -> None:
    sweep = run_sweep(streaming, {"learning_rate": [0.3, 1e-3]}, execution=execution)
    assert_equal_single_runs(streaming, sweep)
    assert [group["execution"] for group in sweep.metadata["groups"]] == ["exact"]


def test_members_with_step_dispatch() -> None:
    assert_equal_single_runs(
        tiny, run_sweep(tiny, {"learning_rate": [0.3, 1e-3, 0.1]}, config=Config(dispatch="step"), execution="exact")
    )


def test_classifiers_that_stop_early_or_diverge() -> None:
    config = Config(steps=30, evaluate_every=2, log_every=7, patience=2)
    sweep = run_sweep(tiny, {"learning_rate": [1e-3, 1e38, 0.7, 0.1]}, seeds=2, config=config, execution="exact")
    assert_equal_single_runs(tiny, sweep)
    assert {"finished", "stopped early", "not finite"} == set(sweep.results["status"])


# Datasets


@foldax.config
class Noisy(Config):
    noise: float = 0.0
    scales: tuple[float, ...] = (1.0,)


READS = {
    "attribute": lambda config: config.noise,
    "getattr": lambda config: getattr(config, "noise"),  # noqa: B009
    "asdict": lambda config: dataclasses.asdict(config)["noise"],
    "replace": lambda config: dataclasses.replace(config, steps=1).noise,
    "to_json": lambda config: foldax.to_json(config)["noise"],
    "vars": lambda config: vars(config)["noise"],
    "equality": lambda config: 0.25 * (config == dataclasses.replace(config, noise=0.25)),
    "hash": lambda config: 0.25 * (foldax.config_hash(config) != foldax.config_hash(Noisy(seed=config.seed))),
    "branch": lambda config: config.noise if config.batch_size == 16 else 0.0,
}


@pytest.mark.parametrize("read", READS)
def test_dataset_that_depends_on_a_swept_field_is_loaded_per_value(read: str) -> None:
    loaded: list[float] = []

    def dataset(config: Noisy) -> data.Dataset:
        noise = float(READS[read](config))
        loaded.append(noise)
        arrays = tiny_arrays()
        return data.from_arrays({**arrays, "inputs": arrays["inputs"] + noise}, batch_size=16)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    plan = make_plan(experiment, Noisy(), {"noise": [0.0, 0.25]}, seeds=2)
    assert {0.0, 0.25} == set(loaded)
    for group in plan.groups:
        for member in group.members:
            assert member.dataset.info.fingerprint == dataset(member.config).info.fingerprint
    if read in ("attribute", "getattr", "branch"):
        assert len(loaded) == 2 + 4


def test_dataset_that_keeps_its_config_is_loaded_per_config() -> None:
    def dataset(config: Noisy) -> Any:
        return SimpleNamespace(splits={}, read_late=lambda: config.noise, config=config)

    load = DatasetCache(foldax.Experiment(Noisy, tiny.learner, dataset))
    first, other, again = (load(Noisy(noise=noise)) for noise in (0.0, 0.25, 0.0))
    assert (first.read_late(), other.read_late()) == (0.0, 0.25)
    assert again is first
    assert type(other.config) is Noisy
    assert pickle.loads(pickle.dumps(other.config)) == Noisy(noise=0.25)


def test_members_with_different_datasets() -> None:
    def dataset(config: Noisy) -> data.Dataset:
        arrays = tiny_arrays()
        noise = np.random.RandomState(0).randn(*arrays["inputs"].shape) * config.noise
        return data.from_arrays({**arrays, "inputs": arrays["inputs"] + noise}, batch_size=16)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    space = {"noise": [0.0, 0.25], "learning_rate": [0.1, 0.01]}
    sweep = run_sweep(experiment, space, execution="exact")
    assert_equal_single_runs(experiment, sweep)
    assert list(sweep.results["group"]) == [0, 0, 1, 1]


def test_dataset_is_loaded_once_for_configs_that_share_it() -> None:
    loaded = []

    def dataset(config: Noisy) -> data.Dataset:
        loaded.append(config.batch_size)
        return tiny_dataset(config)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    make_plan(experiment, Noisy(), {"noise": [0.0, 0.25], "batch_size": [8, 16], "hidden": [(3,), (4,)]}, seeds=3)
    assert loaded == [8, 16]


# Fast execution: agreement with single runs to rounding


def test_fast_members_agree_with_single_runs_over_ten_steps() -> None:
    config = Config(steps=10, log_every=1, evaluate_every=0)
    sweep = run_sweep(tiny, {"learning_rate": [0.03, 1e-3, 0.017]}, config=config, execution="fast")
    assert [group["execution"] for group in sweep.metadata["groups"]] == ["fast"]
    for number, config in enumerate(sweep.configs):
        single, member_values = single_run(tiny, config), curve_values(sweep, number)
        for line in single.history:
            for name in line.keys() - {"step", "split"}:
                assert member_values[line["step"], line["split"], name] == pytest.approx(line[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("experiment", [unevaluated, untested], ids=["validation", "test"])
def test_fast_members_without_a_split(experiment: foldax.Experiment) -> None:
    sweep = run_sweep(experiment, {"learning_rate": [0.03, 1e-3]}, execution="fast")
    for number, config in enumerate(sweep.configs):
        single = single_run(experiment, config)
        assert single.metrics.keys() == {name.split("/")[0] for name in sweep.results if "/" in name}
        for split, metrics in single.metrics.items():
            assert sweep.results.iloc[number][f"{split}/loss"] == pytest.approx(metrics["loss"], rel=1e-3)


def test_fast_members_stop_where_single_runs_do() -> None:
    config = Config(steps=40, evaluate_every=2, log_every=2, patience=2, dropout=0.0)
    sweep = run_sweep(tiny, {"learning_rate": [1e-3, 1e38, 0.7, 0.1, 0.3]}, seeds=2, config=config, execution="fast")
    single = [single_run(tiny, config) for config in sweep.configs]
    steps = [one.step for one in single]
    close = [
        abs(member_values - step) <= 2 * config.evaluate_every
        for member_values, step in zip(sweep.results["steps_done"], steps)
    ]
    assert np.mean(close) >= 0.8, (steps, list(sweep.results["steps_done"]))
    assert set(sweep.results["status"]) == {"finished", "stopped early", "not finite"}
    assert [isinstance(one, NonFiniteError) for one in single] == list(sweep.results["status"] == "not finite")
    for one, row in zip(single, sweep.results.itertuples()):
        if isinstance(one, foldax.Result) and (one.step, one.best_step) == (row.steps_done, row.best_step):
            member_values = sweep.results.iloc[row.member]
            assert member_values["test/loss"] == pytest.approx(one.metrics["test"]["loss"], rel=0.1, abs=1e-3)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_member_that_is_not_finite_changes_no_bit_of_others(execution: str) -> None:
    config = Config(steps=12, dropout=0.2)
    both = run_sweep(tiny, {"learning_rate": [0.01, 1e38, 0.1]}, config=config, execution=execution)
    calm = run_sweep(tiny, {"learning_rate": [0.01, 0.02, 0.1]}, config=config, execution=execution)
    assert list(both.results["status"]) == ["finished", "not finite", "finished"]
    assert list(both.results["state_sha256"][[0, 2]]) == list(calm.results["state_sha256"][[0, 2]])
    for number in (0, 2):
        assert curve_values(both, number) == curve_values(calm, number)
        assert both.results.iloc[number].filter(like="/").equals(calm.results.iloc[number].filter(like="/"))


def test_fast_sweep_is_reproducible_bit_for_bit() -> None:
    first, second = (run_sweep(tiny, {"learning_rate": [0.03, 1e-3, 0.2]}, seeds=2, execution="fast") for _ in range(2))
    assert list(first.results["state_sha256"]) == list(second.results["state_sha256"])
    assert first.curves.equals(second.curves)


# Errors


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_misspelt_monitor_is_a_config_error(execution: str) -> None:
    with pytest.raises(ConfigError, match="monitor: there is no validation metric 'los'; did you mean 'loss'"):
        run_sweep(count, {"target": [1.0, 2.0, 3.0]}, config=Count(monitor="los"), execution=execution)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_branching_on_a_traced_field_is_an_error_that_names_it(execution: str) -> None:
    def learner(config: Count, info: None) -> foldax.Learner:
        return counting(config, info) if config.target > 0 else counting(config, None)

    with pytest.raises(ExperimentError, match="needs `target` as a Python number"):
        run_sweep(foldax.Experiment(Count, learner, name="needs"), {"target": [1.0, 2.0]}, execution=execution)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_error_on_the_host_stops_all_workers(execution: str) -> None:
    def fails(values: dict) -> dict:
        raise ValueError("no such luck")

    with pytest.raises(ExperimentError, match="no such luck"):
        run_sweep(count._replace(summarize=fails), {"target": [1.0, 2.0, 3.0, 4.0, 5.0]}, execution=execution)


def test_device_workers_run_each_item_once_and_stop_at_an_error() -> None:
    events: list[int] = []
    workers = DeviceWorkers(count, jax.devices())
    workers.run_all(range(20), lambda item, device: events.append(item))
    assert sorted(events) == list(range(20))
    done: list[int] = []

    def work(item: int, device: jax.Device) -> None:
        if item == 3:
            raise ValueError("third")
        done.append(item)

    with pytest.raises(ValueError, match="third"):
        workers.run_all(iter(range(10_000_000)), work)
    assert workers.stop_requested()
    assert {0, 1, 2} <= set(done)
    workers = DeviceWorkers(count, jax.devices(), lambda: True)
    workers.run_all([1], lambda item, device: pytest.fail("was asked to stop"))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_members_are_evaluated_on_named_sets_and_compared_by_them(execution: str) -> None:
    def dataset(config: Count) -> foldax.data.Dataset:
        arrays, ood = {"inputs": np.zeros((40, 2))}, {"inputs": np.zeros((4, 2))}
        return foldax.data.from_arrays(arrays, batch_size=8, evaluate_batch_size=4, evaluation={"ood": ood})

    experiment = foldax.Experiment(Count, counting, dataset, name="named_sets")
    config = Count(steps=6, monitor="ood/loss")
    sweep = run_sweep(experiment, {"target": [2.0, 4.0]}, config=config, execution=execution)
    assert sweep.results["ood/loss"].tolist() == [0.0, 0.0]
    assert sweep.results["best_step"].tolist() == [2, 4]
    steps = [step for step, split, metric in curve_values(sweep, 0) if (split, metric) == ("ood", "loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
