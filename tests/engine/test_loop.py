"""The driver: the result of a run does not depend on chunks, sources of data and interruptions."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

import foldax
from foldax.engine import compiled, evaluation, loop
from foldax.engine.checkpoint import Checkpoints
from foldax.engine.setup import make_program
from foldax.engine.state_leaves import host_arrays
from foldax.errors import ConfigError, ExperimentError
from tests.conftest import Config, tiny, tiny_dataset, tiny_learner


def final_arrays(result: foldax.Result) -> dict[str, np.ndarray]:
    return host_arrays(result.final_state)


def assert_same(first: foldax.Result, second: foldax.Result) -> None:
    chex.assert_trees_all_equal(final_arrays(first), final_arrays(second))
    assert first.metrics["test"] == second.metrics["test"]


@pytest.fixture(scope="module")
def plain() -> foldax.Result:
    return foldax.train(tiny, Config(), save=False, verbose=False)


@pytest.mark.parametrize("log_every", [1, 5, 12, 100])
def test_log_every_changes_no_bit(plain: foldax.Result, log_every: int) -> None:
    assert_same(plain, foldax.train(tiny, Config(log_every=log_every), save=False, verbose=False))


def test_log_lines_are_means_over_their_steps(plain: foldax.Result) -> None:
    each = foldax.train(tiny, Config(log_every=1), save=False, verbose=False)
    losses = [line["loss"] for line in each.history if line["split"] == "train"]
    lines = [line for line in plain.history if line["split"] == "train"]
    assert [line["step"] for line in lines] == [4, 8, 12]
    for index, line in enumerate(lines):
        assert line["loss"] == pytest.approx(np.mean(losses[4 * index : 4 * index + 4]), rel=1e-5)


def test_evaluation_is_the_mean_over_every_example_once(plain: foldax.Result) -> None:
    learner, key = plain.learner, jax.random.key(0)
    examples = plain.examples("test")
    values = learner.evaluate(plain.state, {k: np.asarray(v) for k, v in examples.items()}, key)
    assert len(examples["targets"]) == plain.info.num_examples["test"] == 32
    assert plain.metrics["test"]["loss"] == pytest.approx(float(np.mean(values.metrics["loss"])), rel=1e-5)


def test_step_dispatch_agrees_with_the_loop(plain: foldax.Result) -> None:
    stepwise = foldax.train(tiny, Config(dispatch="step"), save=False, verbose=False)
    chex.assert_trees_all_close(final_arrays(plain), final_arrays(stepwise), rtol=1e-4, atol=1e-5)


def test_two_devices_agree_with_one(plain: foldax.Result) -> None:
    shared = foldax.train(tiny, Config(mesh="data=2"), save=False, verbose=False)
    chex.assert_trees_all_close(final_arrays(plain), final_arrays(shared), rtol=1e-3, atol=1e-4)


def test_a_new_rate_seed_or_log_period_compiles_nothing(plain: foldax.Result) -> None:
    before = dict(compiled.trace_counts)
    other = Config(seed=3, learning_rate=0.5, dropout=0, log_every=7, checkpoint_every=3, evaluate_every=5, patience=9)
    foldax.train(tiny, other, save=False, verbose=False)
    assert compiled.trace_counts == before


def test_weakly_typed_states_compile_once() -> None:
    def learner(config: Config, info: None) -> foldax.Learner:
        return foldax.Learner(
            init=lambda key, examples: {"time": jax.numpy.asarray(0), "total": jax.numpy.asarray(0.0)},
            update=lambda state, batch, key: (
                {"time": state["time"] + 1, "total": state["total"] * 0.5 + 1},
                {"loss": state["total"]},
            ),
            evaluate=lambda state, batch, key: {"loss": state["total"][None]},
        )

    before = dict(compiled.trace_counts)
    foldax.train(foldax.Experiment(Config, learner, name="weak"), Config(), save=False, verbose=False)
    assert {name: count - before[name] for name, count in compiled.trace_counts.items()} == {
        "initial_fold": 1,
        "advance": 1,
    }


def test_predictions_compile_once(plain: foldax.Result) -> None:
    inputs = plain.examples("test")["inputs"]
    plain.predict(inputs)
    assert plain._predict._cache_size() == 1
    plain.predict(inputs, seed=1)
    assert plain._predict._cache_size() == 1


def test_several_devices_without_a_dataset_to_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="mesh: .data=2. takes 2 devices, but this run has neither a dataset nor env"):
        make_program(with_losses([0.0]), Config(mesh="data=2"), None)


def test_two_devices_get_the_data_once() -> None:
    shared = foldax.train(tiny, Config(mesh="data=2"), save=False, verbose=False)
    block = next(shared.dataset.train.blocks(0, 0))
    assert all(len(array.sharding.device_set) == 2 for array in block.data.values())


def with_losses(losses: list[float]) -> foldax.Experiment:
    """Evaluations go through `losses`, one per update; the state is the number of updates."""
    table = np.asarray(losses, np.float32)

    def learner(config: Config, info: None) -> foldax.Learner:
        return foldax.Learner(
            init=lambda key, examples: np.int32(0) + jax.numpy.int32(0),
            update=lambda state, batch, key: (state + 1, {"loss": jax.numpy.float32(0)}),
            evaluate=lambda state, batch, key: {"loss": jax.numpy.asarray(table)[state][None]},
        )

    return foldax.Experiment(Config, learner, name="with_losses")


def test_early_stopping_waits_for_patience_and_restores_the_best_state() -> None:
    experiment = with_losses([9, 5, 3, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1])
    config = Config(steps=12, evaluate_every=1, log_every=100, patience=3)
    result = foldax.train(experiment, config, save=False, verbose=False)
    assert (result.status, result.step, result.best_step) == ("stopped early", 5, 2)
    assert (int(result.state), int(result.final_state)) == (2, 5)
    assert result.metrics["validation"]["loss"] == 3
    assert [line["step"] for line in result.history if line["split"] == "validation"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_mode_chooses_the_best_and_keep_the_returned_state(mode: str, best: int) -> None:
    experiment = with_losses([0, 5, 3, 4, 6, 5])
    config = Config(steps=5, evaluate_every=1, mode=mode)
    assert foldax.train(experiment, config, save=False, verbose=False).best_step == best
    last = foldax.train(experiment, dataclasses.replace(config, keep="last"), save=False, verbose=False)
    assert last.best_step is None
    assert int(last.state) == 5


def test_a_nan_evaluation_is_never_the_best() -> None:
    result = foldax.train(
        with_losses([0, np.nan, 3, np.nan, 4, 5]), Config(steps=5, evaluate_every=1), save=False, verbose=False
    )
    assert result.best_step == 2


def test_a_nan_evaluation_is_named_when_it_happens_and_in_the_status() -> None:
    warnings = []
    experiment, config = with_losses([0, np.nan, 3, np.nan, 4, np.inf]), Config(steps=5, evaluate_every=1, keep="last")
    result = loop.fit(experiment, config, loop.Callbacks(warn=warnings.append))
    assert warnings == ["validation metric 'loss' is nan at step 1, which is never the best"]
    assert result.status == "finished (validation loss is nan at step 1; test loss is inf at step 5)"


def test_a_run_that_keeps_its_last_state_needs_no_monitor() -> None:
    config = Config(steps=3, evaluate_every=1, monitor="accuracy", keep="last")
    result = foldax.train(with_losses([0, 1, 2, 3]), config, save=False, verbose=False)
    assert (result.best_step, result.metrics["validation"]) == (None, {"loss": 3})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patience": 2, "evaluate_every": 2}, "in 4 steps there are only 2 evaluations (evaluate_every: 2)"),
        ({"patience": 1, "evaluate_every": 0}, "in 4 steps there are only 1 evaluations (evaluate_every: 0)"),
        ({"patience": 3, "evaluate_every": 1}, None),
        ({"evaluate_every": 0}, None),
    ],
)
def test_patience_that_cannot_run_out_is_told(changes: dict, reason: str | None) -> None:
    warnings = []
    loop.fit(with_losses([5, 4, 3, 2, 1]), Config(steps=4, **changes), loop.Callbacks(warn=warnings.append))
    assert warnings == ([f"patience: {changes['patience']} has no effect, as {reason}"] if reason else [])


def test_an_average_of_count_0_is_not_logged() -> None:
    def learner(config: Config, info: None) -> foldax.Learner:
        def update(state: jax.Array, batch: None, key: jax.Array) -> tuple[jax.Array, dict]:
            finished = (state % 6 == 5).astype(np.float32)
            return state + 1, {"return": foldax.Average(10.0 * finished, finished)}

        return foldax.Learner(
            lambda key, examples: jax.numpy.int32(0), update, lambda s, b, k: {"loss": jax.numpy.zeros(1)}
        )

    result = foldax.train(foldax.Experiment(Config, learner, name="absent"), Config(), save=False, verbose=False)
    lines = [{k: v for k, v in line.items() if k != "split"} for line in result.history if line["split"] == "train"]
    assert lines == [{"step": 4}, {"step": 8, "return": 10.0}, {"step": 12, "return": 10.0}]
    # Absent from the last line: the newest value counts.
    shorter = foldax.train(result.experiment, Config(steps=9, log_every=6), save=False, verbose=False)
    last = [line for line in shorter.history if line["split"] == "train"][-1]
    assert (last["step"], "return" in last) == (9, False)
    assert shorter.metrics["train"] == {"return": 10.0}


@pytest.mark.parametrize("source", ["device", "stream"])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, source: str, stop: int) -> None:
    experiment = tiny._replace(dataset=lambda config: tiny_dataset(config, source), name="tiny")
    config = Config(steps=30, evaluate_every=10, log_every=5)
    whole = loop.fit(experiment, config)
    steps = []
    checkpoints = Checkpoints(tmp_path)
    hooks = loop.Callbacks(
        progress=steps.append, stop_requested=lambda: bool(steps) and max(steps) >= stop, checkpoints=checkpoints
    )
    first = loop.fit(experiment, config, hooks)
    assert first.status == "interrupted"
    assert first.step < config.steps
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    second = loop.fit(experiment, config, loop.Callbacks(checkpoints=checkpoints))
    checkpoints.close()
    assert second.status == "finished"
    assert_same(whole, second)


def fit_in(folder: Path, experiment: foldax.Experiment, config: Config, **hooks) -> foldax.Result:
    """Runs or resumes an experiment with checkpoints in a folder."""
    checkpoints = Checkpoints(folder)
    try:
        return loop.fit(experiment, config, loop.Callbacks(checkpoints=checkpoints, **hooks))
    finally:
        checkpoints.close()


@pytest.mark.parametrize(("failing_call", "step"), [(2, 6), (4, 12), (5, 18)], ids=["first", "log line", "last"])
def test_an_error_in_an_evaluation_loses_no_step_and_no_line(tmp_path: Path, failing_call: int, step: int) -> None:
    calls = []

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        calls.append(None)
        if len(calls) == failing_call:
            raise OSError("the scorer is gone")
        return {"score": -float(values["loss"].mean())}

    experiment, config = tiny._replace(summarize=summarize), Config(steps=18, monitor="score", mode="max")
    lines, warnings = [], []
    with pytest.raises(foldax.FoldaxError, match="the scorer is gone"):
        fit_in(tmp_path, experiment, config, log=lambda *line: lines.append(line), warn=warnings.append)
    assert warnings == [f"the state of step {step} was saved before the error below; `foldax resume` goes on from it"]
    resumed = fit_in(tmp_path, experiment, config, log=lambda *line: lines.append(line))
    whole = loop.fit(experiment, config)
    assert_same(whole, resumed)
    assert resumed.best_step == whole.best_step
    assert [(step, split) for step, split, _ in lines] == [(line["step"], line["split"]) for line in whole.history]


def test_an_error_in_the_data_saves_the_steps_before_it(tmp_path: Path) -> None:
    class Failing:
        """Training data that cannot be read any more from their second block on."""

        def __init__(self, train: Any) -> None:
            self.feed, self.examples, self._blocks = train.feed, train.examples, train.blocks

        def blocks(self, *args):
            yield next(self._blocks(*args))
            raise ConnectionError("the data server is gone")

    dataset = tiny_dataset(Config(), "stream")
    config = Config(steps=600, evaluate_every=0)
    with (
        pytest.raises(foldax.FoldaxError, match="server is gone"),
        contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
    ):
        loop.fit(tiny, config, loop.Callbacks(checkpoints=checkpoints), dataset._replace(train=Failing(dataset.train)))
    (saved,) = [int(path.name) for path in tmp_path.iterdir()]
    assert saved == next(dataset.train.blocks(0, 0)).end


def test_monitor_and_mode_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    experiment = with_losses([9, 1, 5, 3, 4, 2, 6])
    config, seen, warnings = Config(steps=6, evaluate_every=1), [], []
    stop = dict(progress=seen.append, stop_requested=lambda: bool(seen) and seen[-1] >= 2)
    first = fit_in(tmp_path, experiment, config, **stop)
    assert first.status == "interrupted"
    changed = dataclasses.replace(config, mode="max")
    result = fit_in(tmp_path, experiment, changed, warn=warnings.append)
    assert warnings == ["monitor was 'loss' (min), is 'loss' (max): earlier evaluations do not count"]
    assert result.best_step == 6


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    config = Config(steps=24, checkpoint_every=5)
    whole = foldax.train(tiny, config, run_dir=tmp_path / "whole", verbose=False)

    def stop_late(result: foldax.Result) -> dict:
        raise KeyboardInterrupt

    interrupted = tiny._replace(figures=stop_late)
    with pytest.raises(KeyboardInterrupt):
        foldax.train(interrupted, config, run_dir=tmp_path / "cut", verbose=False)
    resumed = foldax.train(tiny, config, run_dir=tmp_path / "cut", resume=True, verbose=False)
    assert_same(whole, resumed)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut")]
    for key in ("state_sha256", "train", "validation", "test", "steps", "best_step"):
        assert results[0][key] == results[1][key]


def test_a_profile_can_be_opened_by_tensorboard(tmp_path: Path) -> None:
    foldax.train(tiny, Config(steps=40, log_every=2, profile=True), run_dir=tmp_path / "run", verbose=False)
    traces = list((tmp_path / "run" / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert len(traces) == 1
    profile = jax.profiler.ProfileData.from_file(str(traces[0]))
    assert any("CPU" in plane.name for plane in profile.planes)


def test_predict_gives_the_logits_of_evaluate(plain: foldax.Result) -> None:
    inputs = plain.examples("test")["inputs"]
    values = plain.learner.evaluate(plain.state, plain.examples("test"), jax.random.key(0))
    np.testing.assert_allclose(plain.predict(inputs), values.outputs["logits"], rtol=1e-5, atol=1e-5)


def test_no_key_is_used_twice() -> None:
    with jax.debug_key_reuse(True):
        assert loop.fit(tiny, Config(steps=2)).status == "finished"


@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
def test_the_device_holds_the_state_the_best_one_and_on_accelerators_one_copy_to_be_saved(
    monkeypatch, platform
) -> None:
    size, in_states, saved = 4 * 250_000, [], []

    class Store:
        def is_saving(self) -> bool:
            return False

        def save(self, step: int, tree: Any, meta: dict, finite: str = "") -> None:
            kind = jax.Array if platform == "cpu" else np.ndarray
            assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(tree))
            saved.append((step, tree[0].state[0], tree[1].state[0]))

        def wait(self) -> None:
            pass

        def restore(self, like: Any) -> None:
            pass

    def learner(config: Config, info: None) -> foldax.Learner:
        return foldax.Learner(
            init=lambda key, examples: jax.numpy.zeros(size // 4),
            update=lambda state, batch, key: (state + 1, {"loss": state[0]}),
            evaluate=lambda state, batch, key: {"loss": -state[:1]},
        )

    def live_bytes() -> int:
        # Arrays that were copied to the host have an alias on the CPU.
        whole = [array for array in jax.live_arrays() if len(array.sharding.device_set) == 1]
        return sum({array.unsafe_buffer_pointer(): array.nbytes for array in whole}.values())

    monkeypatch.setattr(
        compiled, "is_in_accelerator_memory", lambda array: platform != "cpu" and isinstance(array, jax.Array)
    )
    before = live_bytes()
    config = Config(steps=5, evaluate_every=1, checkpoint_every=1)
    hooks = loop.Callbacks(checkpoints=Store(), progress=lambda step: in_states.append((live_bytes() - before) / size))
    loop.fit(foldax.Experiment(Config, learner), config, hooks)
    # The last chunk is read, and its copy is on the host, when no further one was dispatched. The memory of CPUs is the
    # host's: it has two copies of both states, that which is saved and that of the chunk after it.
    np.testing.assert_allclose(in_states, [6] * 5 if platform == "cpu" else [3, 3, 3, 3, 2], atol=0.1)
    assert saved == [(step, step, step) for step in range(1, 6)]


def test_values_for_figures_are_collected_at_the_end_only(monkeypatch) -> None:
    blocks, evaluate_split = [], evaluation.evaluate_split

    def spy(*args, **kwargs):
        split = evaluate_split(*args, **kwargs)
        blocks.append(len(split.blocks))
        return split

    monkeypatch.setattr(evaluation, "evaluate_split", spy)
    experiment = with_losses([3, 2, 1, 0])._replace(figures=lambda result: {})
    result = loop.fit(experiment, Config(steps=3, evaluate_every=1))
    assert blocks == [0, 0, 0, 1, 1]
    assert result.values["test"]["loss"] == [0]


def test_summarize_gets_every_example_in_order_and_can_be_monitored() -> None:
    calls = []

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        calls.append(values)
        return {"score": float(len(calls))}

    experiment = tiny._replace(summarize=summarize)
    config = Config(monitor="score", mode="max")
    dataset = tiny_dataset(config)
    result = foldax.train(experiment, config, dataset=dataset, save=False, verbose=False)
    assert result.best_step == 12
    np.testing.assert_array_equal(calls[-1]["targets"], result.examples("test")["targets"])
    assert calls[0]["logits"].shape == (32, 2)


def test_a_learner_that_ignores_info_can_be_rebuilt() -> None:
    assert isinstance(tiny_learner(Config(), tiny_dataset(Config()).info), foldax.Learner)


def learner_with(update) -> foldax.Experiment:
    def init(key, examples):
        return {"count": jax.numpy.int32(0)}

    return foldax.Experiment(Config, lambda config, info: foldax.Learner(init, update, init), name="wrong")


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (learner_with(lambda s, b, k: s), r"must return \(state, metrics\)"),
        (learner_with(lambda s, b, k: ({**s, "more": s["count"]}, {})), r"\['more'\] was nothing, and became int32"),
        (learner_with(lambda s, b, k: ({"count": s["count"] + 0.5}, {})), r"was int32\[\], and became float32\[\]"),
        (learner_with(lambda s, b, k: (s, {"loss": jax.numpy.zeros(3)})), "scalars or Averages as metrics; 'loss'"),
        (tiny._replace(dataset=lambda config: {"inputs": 1}), "`dataset` returned dict"),
        (tiny._replace(learner=lambda config, info: None), "`learner` returned NoneType"),
    ],
)
def test_broken_promises_are_named(experiment: foldax.Experiment, message: str) -> None:
    with pytest.raises(foldax.FoldaxError, match=message):
        foldax.train(experiment, Config(), save=False, verbose=False)


def test_an_environment_that_is_made_in_a_trace_is_named() -> None:
    def learner(config: Config, info: Any) -> foldax.Learner:
        np.asarray(jax.numpy.ones(3))  # as in the constructors of pgx and Jumanji
        return tiny_learner(config, info)

    with pytest.raises(foldax.FoldaxError, match="own code failed:(.|\n)*make the environment outside and hand it in"):
        foldax.train(tiny._replace(learner=learner), Config(), save=False, verbose=False)


def test_a_config_field_without_a_type_is_refused() -> None:
    with pytest.raises(foldax.FoldaxError, match=r"learning_rate: float = 0\.1"):

        @foldax.config
        class Forgotten(foldax.Training):
            learning_rate = 0.1


def with_sets(config: Config, **values: float) -> foldax.data.Dataset:
    """The tiny dataset, with named evaluation sets: its test split with other inputs."""
    dataset = tiny_dataset(config)
    base = dataset.splits["test"].examples()
    sets = {name: {**base, "inputs": np.full_like(base["inputs"], value)} for name, value in values.items()}
    return foldax.data.from_arrays(dataset.train.examples(), batch_size=config.batch_size, evaluation=sets)


def test_named_sets_are_evaluated_beside_validation_and_can_be_monitored(tmp_path: Path) -> None:
    config = Config(steps=12, evaluate_every=4, monitor="ood/loss", mode="max")
    dataset = with_sets(config, ood=0.0, far=3.0)
    result = foldax.train(tiny, config, dataset=dataset, run_dir=tmp_path / "run", verbose=False)
    assert set(result.metrics) == {"train", "validation", "test", "ood", "far"}
    steps = {name: [line["step"] for line in result.history if line["split"] == name] for name in result.metrics}
    assert steps.pop("train") == [4, 8, 12]
    assert steps == {"validation": [4, 8, 12], "test": [], "ood": [4, 8, 12], "far": [4, 8, 12]}
    losses = {line["step"]: line["loss"] for line in result.history if line["split"] == "ood"}
    assert result.best_step == max(losses, key=losses.__getitem__)
    assert result.metrics["ood"]["loss"] == pytest.approx(losses[result.best_step], rel=1e-6)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["evaluation"]["ood"] == result.metrics["ood"]


def test_a_named_set_is_evaluated_where_there_is_no_validation_split() -> None:
    config = Config(steps=8, evaluate_every=4)
    dataset = tiny_dataset(config)
    options = {
        "batch_size": config.batch_size,
        "validation": 0,
        "test": 0,
        "evaluation": {"ood": dataset.splits["test"]},
    }
    only = foldax.data.from_arrays(dataset.train.examples(), **options)
    result = foldax.train(tiny, config, dataset=only, save=False, verbose=False)
    assert result.best_step is None
    assert [line["step"] for line in result.history if line["split"] == "ood"] == [4, 8]


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("ood/los", "monitor: there is no ood metric 'los'; did you mean 'loss'? (there are: "),
        ("odd/loss", "monitor: there is no validation metric 'odd/loss'; did you mean 'loss'? (there are: "),
        ("test/loss", "monitor: there is no validation metric 'test/loss'; did you mean 'loss'? (there are: "),
    ],
)
def test_a_monitor_that_does_not_exist(monitor: str, message: str) -> None:
    config = Config(monitor=monitor)
    with pytest.raises(ConfigError) as caught:
        foldax.train(tiny, config, dataset=with_sets(config, ood=0.0), save=False, verbose=False)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("dispatch", "where"), [("loop", "while"), ("step", "log")])
def test_jax_finds_nans_in_a_run(dispatch: str, where: str) -> None:
    """JAX repeats a program that gave NaN on the same arrays, so none of them may be donated."""

    def learner(config: Config, info: None) -> foldax.Learner:
        return foldax.Learner(
            init=lambda key, examples: jax.numpy.float32(3),
            update=lambda state, batch, key: (state - 1, {"loss": jax.numpy.log(state - 0.5)}),
            evaluate=lambda state, batch, key: {"loss": state[None]},
        )

    experiment, config = foldax.Experiment(Config, learner), Config(steps=3, evaluate_every=1, dispatch=dispatch)
    with jax.debug_nans(True):
        assert foldax.train(experiment, config, save=False, verbose=False).step == 3
        with pytest.raises(
            (FloatingPointError, ExperimentError), match=rf"invalid value \(nan\) encountered in {where}"
        ):
            foldax.train(experiment, dataclasses.replace(config, steps=6), save=False, verbose=False)
