"""Promises of a learner: `evaluate` returns one value per example, and a run that breaks this ends before it starts."""

import contextlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import foldax
from foldax.engine.contracts import check_evaluation, check_logits, check_summary, check_update
from foldax.errors import ConfigError, ExperimentError, NonFiniteError
from foldax.learner import Average, Evaluation
from tests.conftest import Config, tiny, tiny_arrays, tiny_learner

ONE_VALUE = (
    "one value per example, reported as a mean. Return values of other shapes or dtypes as `outputs` of a "
    "foldax.Evaluation"
)
LOSS = jnp.zeros(16)

BROKEN = [
    (
        {"loss": jnp.float32(0.5)},
        f"`evaluate`: metric 'loss' is float32[], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        {"loss": LOSS, "accuracy": jnp.zeros(8)},
        f"`evaluate`: metric 'accuracy' is float32[8], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        {"loss": LOSS, "logits": jnp.zeros((16, 3))},
        f"`evaluate`: metric 'logits' is float32[16, 3], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        {"correct": jnp.zeros(16, jnp.int32)},
        f"`evaluate`: metric 'correct' is int32[16], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        {"correct": jnp.zeros(16, bool)},
        f"`evaluate`: metric 'correct' is bool[16], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        {"loss": Average(jnp.zeros(16), jnp.float32(16))},
        f"`evaluate`: metric 'loss' is float32[], expected float[16] or an Average of it: {ONE_VALUE}",
    ),
    (
        Evaluation({"loss": LOSS}, {"samples": jnp.zeros((4, 8, 8))}),
        "`evaluate`: output 'samples' is float32[4, 8, 8], expected [16, ...]: one value per example",
    ),
    (
        Evaluation({"loss": LOSS}, {"step": jnp.int32(3)}),
        "`evaluate`: output 'step' is int32[], expected [16, ...]: one value per example",
    ),
    (
        Evaluation({"loss": LOSS}, {"loss": LOSS}),
        "`evaluate` returns 'loss' both as a metric and as an output; rename one of them",
    ),
    (LOSS, "`evaluate` must return a foldax.Evaluation or a dict of metrics; it returned ArrayImpl"),
]


@pytest.mark.parametrize(("result", "message"), BROKEN, ids=[message[:60] for _, message in BROKEN])
def test_a_broken_evaluation_names_the_value_and_both_shapes(result: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=f"^{re.escape(message)}$"):
        check_evaluation(result, batch_size=16)
    if isinstance(result, dict):  # a dict of metrics and `metrics=` follow the same rule
        with pytest.raises(ExperimentError, match=f"^{re.escape(message)}$"):
            check_evaluation(Evaluation(result), batch_size=16)


def test_an_evaluation_has_float_metrics_or_averages_and_any_outputs_per_example() -> None:
    tokens = Average(jnp.zeros(16), jnp.ones(16, jnp.int32))
    outputs = {"targets": jnp.zeros(16, jnp.int32), "logits": jnp.zeros((16, 3)), "correct": np.zeros(16, bool)}
    evaluation = check_evaluation(Evaluation({"loss": LOSS.astype(jnp.bfloat16), "bits": tokens}, outputs), 16)
    assert evaluation.values.keys() == {"loss", "bits", "targets", "logits", "correct"}
    assert check_evaluation({"loss": LOSS}, 16) == Evaluation({"loss": LOSS})


def test_without_a_dataset_all_values_share_the_number_of_episodes() -> None:
    returns = {"return": jnp.zeros(5), "length": jnp.zeros(5)}
    assert check_evaluation(Evaluation(returns, {"actions": jnp.zeros((5, 7))}), None).metrics == returns
    assert check_evaluation({}, None) == Evaluation({})
    for result, message in [
        ({"return": jnp.zeros(5), "length": jnp.zeros(4)}, "metric 'length' is float32[4], expected float[5]"),
        ({"return": jnp.float32(0)}, "metric 'return' is float32[], expected float[B]"),
        ({"length": jnp.float32(0), "return": jnp.zeros(5)}, "metric 'length' is float32[], expected float[5]"),
        (Evaluation(returns, {"actions": jnp.zeros((7, 5))}), "output 'actions' is float32[7, 5], expected [5, ...]"),
    ]:
        with pytest.raises(ExperimentError, match=re.escape(message)):
            check_evaluation(result, None)


def with_evaluate(evaluate: Any, **changes: Any) -> foldax.Experiment:
    """The tiny experiment with another `evaluate`, and an `update` that must never run."""

    def update(state: Any, batch: Any, key: jax.Array) -> Any:
        jax.debug.callback(lambda: pytest.fail("the run took a step"))
        return state, {"loss": jnp.float32(0)}

    def learner(config: Config, info: Any) -> foldax.Learner:
        return tiny_learner(config, info)._replace(update=update, evaluate=evaluate)

    return tiny._replace(learner=learner, name="with_evaluate", **changes)


@pytest.mark.parametrize("mesh", ["data=1", "data=2"])
def test_a_run_with_a_broken_evaluation_ends_before_its_first_step(mesh: str) -> None:
    experiment = with_evaluate(lambda state, batch, key: {"loss": batch["inputs"].mean()})
    with pytest.raises(ExperimentError, match=re.escape("metric 'loss' is float32[], expected float[16]")):
        foldax.train(experiment, Config(mesh=mesh), save=False, verbose=False)


@pytest.mark.parametrize(("logits", "problem"), [(1, None), (2, None), (5, "5 logits, the targets have 2 classes")])
def test_the_logits_of_a_classifier_are_as_many_as_the_classes(logits: int, problem: str | None) -> None:
    evaluation = Evaluation({"loss": LOSS}, {"logits": jnp.zeros((16, logits))})
    info = tiny.dataset(Config()).info
    with pytest.raises(ExperimentError, match=problem) if problem else contextlib.nullcontext():
        check_logits(evaluation, info)
    check_logits(evaluation, None)


def test_too_few_logits_end_a_run_before_its_first_step() -> None:
    def dataset(config: Config) -> foldax.data.Dataset:
        arrays = tiny_arrays()
        arrays["targets"] = np.arange(160) % 4
        return foldax.data.from_arrays(arrays, batch_size=16, validation=0.2)

    def learner(config: Config, info: Any) -> foldax.Learner:
        return foldax.learners.classifier(foldax.models.MLP((2,)), optax.adam(0.1))

    with pytest.raises(ExperimentError, match="2 logits, the targets have 4 classes; give the network `info.num_clas"):
        foldax.train(tiny._replace(dataset=dataset, learner=learner), Config(), save=False, verbose=False)


def test_a_reward_that_is_not_finite_is_blamed_on_the_environment() -> None:
    def update(state: Any, batch: Any, key: jax.Array) -> Any:
        reward = jnp.where(state < 3, 1.0, jnp.nan)
        metrics = {"loss": reward, "return": Average(reward, jnp.float32(0))}
        return state + 1, metrics

    def agent(config: Any, info: Any) -> foldax.Learner:
        evaluate = lambda state, batch, key: {"return": jnp.zeros(2)}  # noqa: E731
        return foldax.Learner(lambda key, examples: jnp.int32(0), update, evaluate)

    config = foldax.RLTraining(environment_steps=40, num_envs=2, rollout_steps=2)
    with pytest.raises(NonFiniteError, match="step 3. The environment gave a reward that is not finite") as error:
        foldax.train(foldax.Experiment(foldax.RLTraining, agent, name="agent"), config, save=False, verbose=False)
    assert "learning rate" not in str(error.value)


def test_a_sweep_with_a_broken_evaluation_ends_before_its_first_step() -> None:
    experiment = with_evaluate(lambda state, batch, key: {"loss": batch["inputs"].mean()})
    for execution in ("exact", "fast"):
        with pytest.raises(ExperimentError, match=re.escape("metric 'loss' is float32[], expected float[16]")):
            foldax.sweep(experiment, {}, seeds=2, config=Config(), execution=execution, save=False, verbose=False)


def test_an_agent_with_a_broken_evaluation_ends_before_its_first_step() -> None:
    experiment = with_evaluate(lambda state, batch, key: {"return": jnp.float32(1)}, dataset=None)
    learner = experiment.learner
    info = tiny.dataset(Config()).info
    agent = experiment._replace(
        learner=lambda config, _: learner(config, info)._replace(init=lambda key, examples: jnp.zeros(2))
    )
    with pytest.raises(ExperimentError, match=re.escape("metric 'return' is float32[], expected float[B]")):
        foldax.train(agent, Config(), save=False, verbose=False)


def test_summarize_and_figures_receive_metrics_and_outputs_in_one_dict() -> None:
    def evaluate(state: Any, batch: Any, key: jax.Array) -> Evaluation:
        inputs = batch["inputs"]
        return Evaluation({"loss": inputs[:, 0], "bits": Average(inputs[:, 1], jnp.ones(len(inputs)))}, dict(batch))

    received = {}

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        received.update(values)
        return {"spread": float(values["inputs"].std())}

    def learner(config: Config, info: Any) -> foldax.Learner:
        return tiny_learner(config, info)._replace(evaluate=evaluate)

    result = foldax.train(tiny._replace(learner=learner, summarize=summarize), Config(), save=False, verbose=False)
    assert received.keys() == {"loss", "bits", "inputs", "targets"}
    assert result.values["test"]["inputs"].shape == (32, 6)
    assert result.metrics["test"].keys() == {"loss", "bits", "spread"}
    np.testing.assert_array_equal(received["bits"], result.examples("test")["inputs"][:, 1])


@pytest.mark.parametrize("name", ["step", "split"])
def test_a_metric_with_the_name_of_another_field_of_the_log_ends_a_run_before_its_first_step(name: str) -> None:
    message = f"cannot be named {name!r}, as lines of the log have 'step' and 'split' beside their metrics; rename it"
    with pytest.raises(ExperimentError, match=re.escape(f"`update`: a metric {message}")):
        check_update(LOSS, (LOSS, {name: jnp.float32(7)}))
    with pytest.raises(ExperimentError, match=re.escape(f"`evaluate`: a metric {message}")):
        check_evaluation({"loss": LOSS, name: LOSS}, 16)
    with pytest.raises(ExperimentError, match=re.escape(f"`summarize`: a metric {message}")):
        check_summary({name: 7.0}, {"loss"})


def loss_of_inputs(state: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
    return {"loss": batch["inputs"][:, 0]}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "`summarize` must return a dict of metrics, floats by name; it returned NoneType"),
        ({"auroc": np.ones(3)}, "`summarize`: metric 'auroc' is float64[3], expected one float"),
        ({"auroc": "high"}, "`summarize`: metric 'auroc' is str, expected one float"),
        ({"loss": -1.0}, "`summarize` returns 'loss', which `evaluate` reports already; rename one of them"),
    ],
    ids=str,
)
def test_a_run_with_a_broken_summarize_ends_before_its_first_step(result: Any, message: str) -> None:
    experiment = with_evaluate(loss_of_inputs, summarize=lambda values: result)
    with pytest.raises(ExperimentError, match=f"^{re.escape(message)}$"):
        foldax.train(experiment, Config(), save=False, verbose=False)


@pytest.mark.parametrize(("summarize", "known"), [(None, "loss"), (lambda values: {"auroc": 0.5}, "loss, auroc")])
def test_a_misspelt_monitor_ends_a_run_before_its_first_step(summarize: Any, known: str) -> None:
    experiment = with_evaluate(loss_of_inputs, summarize=summarize)
    message = re.escape(f"monitor: there is no validation metric 'lost'; did you mean 'loss'? (there are: {known})")
    with pytest.raises(ConfigError, match=message):
        foldax.train(experiment, Config(monitor="lost"), save=False, verbose=False)


def test_a_sweep_with_a_misspelt_monitor_ends_before_its_first_step() -> None:
    experiment, config = with_evaluate(loss_of_inputs), Config(monitor="lost")
    for execution in ("exact", "fast"):
        with pytest.raises(ConfigError, match="there is no validation metric 'lost'"):
            foldax.sweep(experiment, {}, seeds=2, config=config, execution=execution, save=False, verbose=False)
