"""Members of a sweep: what each gives is what its lone run gives, whichever way they run."""

import dataclasses
import functools
from collections import Counter
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
from foldax.engine.checkpoint import state_digest
from foldax.errors import ConfigError, ExperimentError, NonFiniteError
from foldax.sweeps.exact import Lanes
from foldax.sweeps.plan import plan
from foldax.sweeps.space import check_space
from tests.conftest import Config, tiny, tiny_arrays, tiny_dataset

WAYS = ("exact", "fast")
EVENTS: list[tuple[str, str]] = []  # what JAX has traced and compiled, as (event, function)


def note(event: str, duration: float, **about: Any) -> None:
    EVENTS.append((event.split("/")[-1], str(about.get("fun_name"))))


jax.monitoring.register_event_duration_secs_listener(note)


@functools.cache
def alone(experiment: foldax.Experiment, config: Any) -> foldax.Result | NonFiniteError:
    try:
        return foldax.train(experiment, config, save=False, verbose=False)
    except NonFiniteError as error:
        return error


def swept(experiment: foldax.Experiment, space: dict | None = None, **options: Any) -> foldax.Sweep:
    return foldax.sweep(experiment, space, **{"save": False, "verbose": False} | options)


def lines(sweep: foldax.Sweep, member: int) -> dict[tuple[int, str, str], float]:
    rows = sweep.curves[sweep.curves["member"] == member]
    return {(step, split, metric): value for _, step, split, metric, value in rows.itertuples(index=False)}


def same_as_alone(experiment: foldax.Experiment, sweep: foldax.Sweep) -> None:
    """Every member has the state, the status and the metrics of its lone run, in all bits."""
    assert list(sweep.results["member"]) == list(range(len(sweep.configs)))
    for number, config in enumerate(sweep.configs):
        lone, row = alone(experiment, config), sweep.results.iloc[number]
        assert row["seed"] == config.seed
        if isinstance(lone, NonFiniteError):
            assert (row["status"], row["steps_done"]) == ("not finite", lone.step)
            assert row.filter(like="/").isna().all()
            assert pandas.isna(row["state_sha256"])
            continue
        best_step = None if pandas.isna(row["best_step"]) else row["best_step"]
        assert (row["status"], row["steps_done"], best_step) == (lone.status, lone.step, lone.best_step), number
        assert row["state_sha256"] == state_digest(lone.final), number
        metrics = {f"{split}/{k}": v for split, values in lone.metrics.items() for k, v in values.items()}
        assert {k: v for k, v in row.items() if "/" in k and not np.isnan(v)} == metrics
        history = {
            (line["step"], line["split"], k): v
            for line in lone.history
            for k, v in line.items()
            if k not in ("step", "split")
        }
        assert lines(sweep, number) == history


# A learner whose every number is exact, so that both ways must agree with lone runs to the last bit


@foldax.config
class Count(foldax.Training):
    steps: int = 24
    log_every: int = 5
    evaluate_every: int = 1
    target: float = 100.0  # where the evaluated loss is 0
    breaks: float = 100.0  # the step whose loss is not finite
    width: int = 3


def counting(config: Count, info: None) -> foldax.Learner:
    """Counts its steps and sums random integers."""

    def init(key: jax.Array, examples: None) -> dict[str, jax.Array]:
        return {"count": jnp.int32(0), "sum": jax.random.randint(key, (config.width,), 0, 1000)}

    def update(state: dict, batch: None, key: jax.Array) -> tuple[dict, dict]:
        new = {"count": state["count"] + 1, "sum": state["sum"] + jax.random.randint(key, (config.width,), 0, 1000)}
        return new, {
            "loss": jnp.where(state["count"] == config.breaks, jnp.nan, 1.0),
            "odd": foldax.Average(state["count"].astype(jnp.float32), (state["count"] % 6 == 5).astype(jnp.float32)),
        }

    def evaluate(state: dict, batch: None, key: jax.Array) -> dict[str, jax.Array]:
        distance = jnp.abs(state["count"] - config.target)
        return {"loss": distance[None], "draw": jax.random.randint(key, (4,), 0, 64).astype(jnp.float32)}

    return foldax.Learner(init, update, evaluate)


count = foldax.Experiment(Count, counting, name="count")
LATE = {"target": [3.0, 100.0, 7.0, 14.0], "breaks": [100.0, 4.0, 11.0]}


@pytest.mark.parametrize("way", WAYS)
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
def test_statuses_steps_states_and_logs_are_those_of_lone_runs(way: str, changes: dict) -> None:
    same_as_alone(count, swept(count, LATE, config=Count(**changes), way=way))


def test_the_cases_above_hold_what_they_should() -> None:
    results = swept(count, LATE, config=Count(patience=2), way="fast").results
    assert Counter(results["status"]) == {"stopped early": 5, "not finite": 6, "finished": 1}
    assert sorted(set(results["steps_done"])) == [4, 5, 9, 11, 16, 24]


@pytest.mark.parametrize("members_at_once", [1, 3, 5, 100])
def test_fast_members_may_be_any_number_at_once(members_at_once: int) -> None:
    space = {"target": [3.0, 9.0, 30.0, 5.0, 31.0, 4.0, 100.0]}
    same_as_alone(count, swept(count, space, config=Count(patience=2), way="fast", members_at_once=members_at_once))


@pytest.mark.parametrize("stopping", [range(1, 6), range(6), [0, 5]], ids=str)
def test_members_that_stop_are_dropped_and_the_others_go_on(stopping: Any) -> None:
    targets = [2.0 + number if number in stopping else 50.0 + number for number in range(6)]
    sweep = swept(count, {"target": targets}, config=Count(patience=1, steps=40), way="fast")
    same_as_alone(count, sweep)


def test_a_member_that_never_was_finite() -> None:
    for way in WAYS:
        sweep = swept(count, {"breaks": [0.0, 100.0]}, way=way)
        same_as_alone(count, sweep)
        assert list(sweep.results["steps_done"]) == [0, 24]
        assert set(sweep.curves["member"]) == {1}


def test_all_members_not_finite() -> None:
    for way in WAYS:
        sweep = swept(count, {"breaks": [2.0, 0.0, 9.0]}, config=Count(evaluate_every=0), way=way)
        assert list(sweep.results["status"]) == ["not finite"] * 3
        assert list(sweep.results["steps_done"]) == [2, 0, 9]
        assert sweep.facts["status"] == "finished"


def test_members_of_one_step() -> None:
    for way in WAYS:
        same_as_alone(count, swept(count, {"target": [0.0, 1.0, 2.0]}, config=Count(steps=1), way=way))


@pytest.mark.parametrize("way", WAYS)
def test_step_dispatch(way: str) -> None:
    config = Count(dispatch="step", steps=7, log_every=3, patience=2)
    same_as_alone(count, swept(count, {"target": [2.0, 9.0]}, config=config, way=way))


@pytest.mark.parametrize("way", WAYS)
def test_driver_fields_may_differ_between_members(way: str) -> None:
    space = {"log_every": [1, 4], "patience": [None, 2], "evaluate_every": [0, 3]}
    sweep = swept(count, space, config=Count(target=4.0), way=way)
    same_as_alone(count, sweep)
    if way == "exact":
        assert len(sweep.facts["groups"]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_structural_fields_make_groups_and_members_keep_their_order(way: str) -> None:
    sweep = swept(count, {"target": [2.0, 8.0], "width": [3, 2], "steps": [4, 6]}, seeds=2, way=way)
    same_as_alone(count, sweep)
    assert list(sweep.results["group"]) == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert [group["members"] for group in sweep.facts["groups"]] == [4] * 4
    assert [group["structural"] for group in sweep.facts["groups"]] == [
        {"steps": steps, "width": width} for width in (3, 2) for steps in (4, 6)
    ]


def watching(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {"distance": float(values["loss"].max()) + 1, "draws": float(values["draw"].sum())}


@pytest.mark.parametrize("way", WAYS)
def test_what_summarize_makes_can_be_monitored(way: str) -> None:
    experiment = count._replace(summarize=watching)
    config = Count(monitor="distance", patience=2, evaluate_every=2)
    sweep = swept(experiment, {"target": [4.0, 100.0, 6.0]}, seeds=2, config=config, way=way)
    same_as_alone(experiment, sweep)
    assert list(sweep.results["best_step"]) == [4, 4, 24, 24, 6, 6]
    assert "validation/draws" in sweep.results
    assert sweep.results["test/draws"].nunique() > 1


@pytest.mark.parametrize("way", WAYS)
def test_a_learner_may_keep_keys_and_empty_arrays_in_its_state(way: str) -> None:
    def learner(config: Count, info: None) -> foldax.Learner:
        made = counting(config, info)

        def update(state: tuple, batch: None, key: jax.Array) -> tuple:
            new, metrics = made.update(state[0], batch, key)
            return (new, jax.random.fold_in(state[1], 1), state[2]), metrics

        def evaluate(state: tuple, batch: None, key: jax.Array) -> dict:
            return made.evaluate(state[0], batch, key)

        return foldax.Learner(lambda key, _: (made.init(key, None), key, jnp.zeros((0, 2))), update, evaluate)

    experiment = foldax.Experiment(Count, learner, name="keys")
    config = Count(patience=1)
    same_as_alone(experiment, swept(experiment, {"target": [2.0, 100.0, 3.0, 4.0]}, config=config, way=way))


# Programs


@foldax.config
class Decay(Config):
    weight_decay: float = 1e-2


def fresh(config: type = Decay) -> foldax.Experiment:
    """Returns an experiment that no program has been compiled for yet."""

    def learner(config: Decay, info: data.Info) -> foldax.Learner:
        model = models.MLP((*config.hidden, info.num_classes))
        optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        return learners.classifier(model, optimizer, preprocess=info.standardize)

    return foldax.Experiment(config, learner, tiny_dataset, name="fresh")


RATES = {"learning_rate": [1e-3, 3e-3, 1e-2], "weight_decay": [0.0, 1e-3, 1e-1]}


@pytest.mark.parametrize(("space", "groups"), [(RATES, 1), ({**RATES, "hidden": [(4,), (5,)]}, 2)], ids=["one", "two"])
def test_a_group_is_one_program_compiled_once_for_each_device(space: dict, groups: int) -> None:
    before, first = compiled.traces["advance"], len(EVENTS)
    sweep = swept(fresh(), space, seeds=2, way="exact")
    seen = Counter(EVENTS[first:])
    assert len(sweep.results) == 18 * groups
    assert len(sweep.facts["groups"]) == sweep.facts["programs"] == groups
    assert compiled.traces["advance"] - before == groups
    assert seen["jaxpr_trace_duration", "advance"] == groups
    for name in ("start", "advance", "evaluate", "observe"):
        assert 0 < seen["backend_compile_duration", f"jit({name})"] <= groups * jax.device_count(), name


@pytest.mark.parametrize(("space", "groups"), [(RATES, 1), ({**RATES, "hidden": [(4,), (5,)]}, 2)], ids=["one", "two"])
def test_a_fast_group_is_one_program_compiled_once(space: dict, groups: int) -> None:
    before, first = compiled.traces["advance"], len(EVENTS)
    sweep = swept(fresh(), space, seeds=2, way="fast")
    seen = Counter(EVENTS[first:])
    assert len(sweep.results) == 18 * groups
    assert len(sweep.facts["groups"]) == sweep.facts["programs"] == groups
    assert compiled.traces["advance"] - before == groups
    for name in ("_start", "_advance", "_evaluate", "_observe"):
        assert seen["backend_compile_duration", f"jit({name})"] == groups, name


def test_a_sweep_and_lone_runs_share_a_program() -> None:
    jax.clear_caches()  # else the sweep may, to make room for itself, drop what the lone run has compiled
    experiment = fresh()
    config = Decay(steps=3)
    alone(experiment, config)
    first = len(EVENTS)
    swept(experiment, {"learning_rate": [0.1, 0.2]}, seeds=2, config=config, way="exact", members_at_once=1)
    again = Counter(EVENTS[first:])
    assert again["jaxpr_trace_duration", "advance"] == 0
    assert again["backend_compile_duration", "jit(advance)"] <= 1  # JAX knows a device that was asked for as another


def test_a_plan_runs_nothing() -> None:
    first = compiled.traces["advance"]
    made = plan(tiny, Config(), check_space(Config(), {"hidden": [(3,), (2,)], "learning_rate": [1, 2]}), seeds=3)
    assert compiled.traces["advance"] == first
    assert [len(group.members) for group in made.groups] == [6, 6]
    assert made.fields == ["hidden", "learning_rate"]
    assert [member.number for member in made.groups[1].members] == list(range(6, 12))
    assert all(group.way == "exact" and group.at_once == 2 for group in made.groups)


# Exact: the bits of lone runs


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


@pytest.mark.parametrize("members_at_once", [None, 1])
def test_members_with_dropout_on_two_devices(members_at_once: int | None) -> None:
    space = {"learning_rate": [0.3, 1e-3, 0.017], "dropout": [0.0, 0.37]}
    same_as_alone(tiny, swept(tiny, space, seeds=2, way="exact", members_at_once=members_at_once))


def test_members_with_batch_normalization() -> None:
    same_as_alone(cnn, swept(cnn, {"learning_rate": [0.3, 1e-3, 0.017]}, seeds=2, way="exact"))


@pytest.mark.parametrize("experiment", [unevaluated, untested], ids=["validation", "test"])
def test_members_without_a_split(experiment: foldax.Experiment) -> None:
    sweep = swept(experiment, {"learning_rate": [0.3, 1e-3]}, way="exact")
    same_as_alone(experiment, sweep)
    assert not any(name.startswith("validation/" if experiment is unevaluated else "test/") for name in sweep.results)


@pytest.mark.parametrize("way", WAYS)
def test_members_whose_data_streams_run_exactly(way: str) -> None:
    sweep = swept(streaming, {"learning_rate": [0.3, 1e-3]}, way=way)
    same_as_alone(streaming, sweep)
    assert [group["way"] for group in sweep.facts["groups"]] == ["exact"]


def test_members_dispatched_step_by_step() -> None:
    same_as_alone(tiny, swept(tiny, {"learning_rate": [0.3, 1e-3, 0.1]}, config=Config(dispatch="step"), way="exact"))


def test_a_classifier_that_stops_early_and_one_that_diverges() -> None:
    config = Config(steps=30, evaluate_every=2, log_every=7, patience=2)
    sweep = swept(tiny, {"learning_rate": [1e-3, 1e38, 0.7, 0.1]}, seeds=2, config=config, way="exact")
    same_as_alone(tiny, sweep)
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
def test_a_dataset_that_depends_on_a_rate_is_loaded_for_each(read: str) -> None:
    loaded: list[float] = []

    def dataset(config: Noisy) -> data.Dataset:
        noise = float(READS[read](config))
        loaded.append(noise)
        arrays = tiny_arrays()
        return data.from_arrays({**arrays, "inputs": arrays["inputs"] + noise}, batch_size=16)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    made = plan(experiment, Noisy(), {"noise": [0.0, 0.25]}, seeds=2)
    assert {0.0, 0.25} == set(loaded)
    for group in made.groups:
        for member in group.members:
            assert member.dataset.info.fingerprint == dataset(member.config).info.fingerprint
    if read in ("attribute", "getattr", "branch"):
        assert len(loaded) == 2 + 4


def test_members_with_data_of_their_own() -> None:
    def dataset(config: Noisy) -> data.Dataset:
        arrays = tiny_arrays()
        noise = np.random.RandomState(0).randn(*arrays["inputs"].shape) * config.noise
        return data.from_arrays({**arrays, "inputs": arrays["inputs"] + noise}, batch_size=16)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    space = {"noise": [0.0, 0.25], "learning_rate": [0.1, 0.01]}
    sweep = swept(experiment, space, way="exact")
    same_as_alone(experiment, sweep)
    assert list(sweep.results["group"]) == [0, 0, 1, 1]


def test_a_dataset_is_loaded_once_for_all_who_share_it() -> None:
    loaded = []

    def dataset(config: Noisy) -> data.Dataset:
        loaded.append(config.batch_size)
        return tiny_dataset(config)

    experiment = foldax.Experiment(Noisy, tiny.learner, dataset, name="noisy")
    plan(experiment, Noisy(), {"noise": [0.0, 0.25], "batch_size": [8, 16], "hidden": [(3,), (4,)]}, seeds=3)
    assert loaded == [8, 16]


# Fast: agreement with lone runs to rounding


def test_fast_members_agree_with_lone_runs_over_the_first_ten_steps() -> None:
    config = Config(steps=10, log_every=1, evaluate_every=0)
    sweep = swept(tiny, {"learning_rate": [0.03, 1e-3, 0.017]}, config=config, way="fast")
    assert [group["way"] for group in sweep.facts["groups"]] == ["fast"]
    for number, config in enumerate(sweep.configs):
        lone, theirs = alone(tiny, config), lines(sweep, number)
        for line in lone.history:
            for name in line.keys() - {"step", "split"}:
                assert theirs[line["step"], line["split"], name] == pytest.approx(line[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("experiment", [unevaluated, untested], ids=["validation", "test"])
def test_fast_members_without_a_split(experiment: foldax.Experiment) -> None:
    sweep = swept(experiment, {"learning_rate": [0.03, 1e-3]}, way="fast")
    for number, config in enumerate(sweep.configs):
        lone = alone(experiment, config)
        assert lone.metrics.keys() == {name.split("/")[0] for name in sweep.results if "/" in name}
        for split, metrics in lone.metrics.items():
            assert sweep.results.iloc[number][f"{split}/loss"] == pytest.approx(metrics["loss"], rel=1e-3)


def test_fast_members_stop_where_their_lone_runs_do() -> None:
    config = Config(steps=40, evaluate_every=2, log_every=2, patience=2, dropout=0.0)
    sweep = swept(tiny, {"learning_rate": [1e-3, 1e38, 0.7, 0.1, 0.3]}, seeds=2, config=config, way="fast")
    lone = [alone(tiny, config) for config in sweep.configs]
    steps = [one.step for one in lone]
    close = [
        abs(theirs - step) <= 2 * config.evaluate_every for theirs, step in zip(sweep.results["steps_done"], steps)
    ]
    assert np.mean(close) >= 0.8, (steps, list(sweep.results["steps_done"]))
    assert set(sweep.results["status"]) == {"finished", "stopped early", "not finite"}
    assert [isinstance(one, NonFiniteError) for one in lone] == list(sweep.results["status"] == "not finite")
    for one, row in zip(lone, sweep.results.itertuples()):
        if isinstance(one, foldax.Result) and (one.step, one.best_step) == (row.steps_done, row.best_step):
            theirs = sweep.results.iloc[row.member]
            assert theirs["test/loss"] == pytest.approx(one.metrics["test"]["loss"], rel=0.1, abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_member_that_is_not_finite_changes_no_bit_of_the_others(way: str) -> None:
    config = Config(steps=12, dropout=0.2)
    both = swept(tiny, {"learning_rate": [0.01, 1e38, 0.1]}, config=config, way=way)
    calm = swept(tiny, {"learning_rate": [0.01, 0.02, 0.1]}, config=config, way=way)
    assert list(both.results["status"]) == ["finished", "not finite", "finished"]
    assert list(both.results["state_sha256"][[0, 2]]) == list(calm.results["state_sha256"][[0, 2]])
    for number in (0, 2):
        assert lines(both, number) == lines(calm, number)
        assert both.results.iloc[number].filter(like="/").equals(calm.results.iloc[number].filter(like="/"))


def test_a_fast_sweep_repeats_its_bits() -> None:
    first, second = (swept(tiny, {"learning_rate": [0.03, 1e-3, 0.2]}, seeds=2, way="fast") for _ in range(2))
    assert list(first.results["state_sha256"]) == list(second.results["state_sha256"])
    assert first.curves.equals(second.curves)


# Interrupted lanes and learners that fail


@pytest.mark.parametrize("way", WAYS)
def test_a_misspelt_monitor_ends_the_sweep_in_words(way: str) -> None:
    with pytest.raises(ConfigError, match="monitor: there is no validation metric 'los'; did you mean 'loss'"):
        swept(count, {"target": [1.0, 2.0, 3.0]}, config=Count(monitor="los"), way=way)


@pytest.mark.parametrize("way", WAYS)
def test_a_learner_that_needs_a_number_is_told_which(way: str) -> None:
    def learner(config: Count, info: None) -> foldax.Learner:
        return counting(config, info) if config.target > 0 else counting(config, None)

    with pytest.raises(ExperimentError, match="needs `target` as a Python number"):
        swept(foldax.Experiment(Count, learner, name="needs"), {"target": [1.0, 2.0]}, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_a_learner_that_fails_on_the_host_ends_all_lanes(way: str) -> None:
    def fails(values: dict) -> dict:
        raise ValueError("no such luck")

    with pytest.raises(ExperimentError, match="no such luck"):
        swept(count._replace(summarize=fails), {"target": [1.0, 2.0, 3.0, 4.0, 5.0]}, way=way)


def test_lanes_give_each_item_to_one_device_in_order_and_stop_at_a_failure() -> None:
    seen: list[int] = []
    lanes = Lanes(count, jax.devices())
    lanes.each(range(20), lambda item, device: seen.append(item))
    assert sorted(seen) == list(range(20))
    done: list[int] = []

    def work(item: int, device: jax.Device) -> None:
        if item == 3:
            raise ValueError("third")
        done.append(item)

    with pytest.raises(ValueError, match="third"):
        lanes.each(iter(range(10_000_000)), work)
    assert lanes.interrupted()
    assert {0, 1, 2} <= set(done)
    lanes = Lanes(count, jax.devices(), lambda: True)
    lanes.each([1], lambda item, device: pytest.fail("was asked to stop"))
