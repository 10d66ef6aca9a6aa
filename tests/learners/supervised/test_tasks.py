"""Learners of tasks: options that every network has, and a learner of one's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from foldax import Evaluation
from foldax.errors import ConfigError
from foldax.learners import Task, classifier, input_function, network_learner
from foldax.learners.tasks import INPUTS_AND_TARGETS, weight_penalty
from foldax.models import CNN, MLP
from foldax.models.layers.building_blocks import normalization
from tests.learners.supervised.shared import CLASSES, INPUTS, KEY, LINEAR, fit


@pytest.mark.parametrize("quantile", [0.1, 0.9])
def test_a_learner_of_ones_own_learns_a_conditional_quantile(quantile):
    """Quantile regression (Koenker & Bassett, 1978): of targets uniform in [x, x + 1] the quantile q is x + q."""

    def pinball(outputs, batch):
        error = batch["targets"] - outputs[:, 0]
        return {"loss": jnp.maximum(quantile * error, (quantile - 1) * error)}

    def evaluate(outputs, batch):
        covered = (batch["targets"] <= outputs[:, 0]).astype(jnp.float32)
        return Evaluation(pinball(outputs, batch) | {"coverage": covered}, {"predictions": outputs[:, 0]})

    task = Task(INPUTS_AND_TARGETS, input_function(), pinball, evaluate, lambda outputs, batch: outputs[:, 0])
    learner = network_learner(MLP((1,)), optax.adam(0.02), task, ema_decay=0.9)
    inputs, noise = jax.random.normal(KEY, (1000, 1)), jax.random.uniform(jax.random.key(1), (1000,))
    batch = {"inputs": inputs, "targets": inputs[:, 0] + noise}
    state, metrics = fit(learner, batch, 400)
    assert metrics.keys() == {"loss", "gradient_norm"}
    np.testing.assert_allclose(
        learner.predict(state, jnp.array([[-1.0], [2.0]]), KEY), [quantile - 1, quantile + 2], atol=0.1
    )
    evaluated, outputs = learner.evaluate(state, batch, KEY)
    assert evaluated["coverage"].mean() == pytest.approx(quantile, abs=0.03)
    assert outputs["predictions"].shape == (1000,)


def test_a_task_without_evaluation_reports_its_training_metrics():
    task = Task(("inputs",), input_function(), lambda outputs, batch: {"loss": jnp.square(outputs).sum(axis=1)})
    learner = network_learner(LINEAR, optax.sgd(0.1), task)
    state = learner.init(KEY, {"inputs": INPUTS})
    evaluated = learner.evaluate(state, {"inputs": INPUTS}, KEY)
    np.testing.assert_allclose(
        evaluated["loss"], jnp.square(learner.predict(state, INPUTS, KEY)).sum(axis=1), rtol=1e-6
    )


def test_penalties_have_their_closed_form():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([7.0]), "scale": jnp.array([3.0])}
    params["layers"] = {"bias": jnp.ones((2, 2))}  # layers stacked for a scan
    value, gradient = jax.value_and_grad(weight_penalty)(params, l1=0.1, l2=0.5)
    assert value == pytest.approx(0.1 * 3 + 0.5 * 0.5 * 5)
    np.testing.assert_allclose(gradient["kernel"], [[0.1 + 0.5, -0.1 - 1.0]], rtol=1e-6)
    assert gradient["bias"] == gradient["scale"] == 0.0
    assert not gradient["layers"]["bias"].any()


def test_penalty_is_reported_beside_the_loss_and_minimised():
    without, _ = fit(classifier(LINEAR, optax.sgd(0.1)), CLASSES, 1)
    learner = classifier(LINEAR, optax.sgd(0.1), l2=0.5)
    start = jax.jit(learner.init)(KEY, CLASSES).params["Dense_0"]
    state, metrics = fit(learner, CLASSES, 1)
    difference = state.params["Dense_0"]["kernel"] - without.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(difference, -0.1 * 0.5 * start["kernel"], atol=1e-6)
    assert metrics["penalty"][0] == pytest.approx(0.25 * float(jnp.square(start["kernel"]).sum()), rel=1e-5)


def test_running_statistics_are_updated_and_used():
    learner = classifier(MLP((4, 3), normalization="batch"), optax.sgd(0.0))
    batch = {**CLASSES, "inputs": INPUTS + 5.0}
    start = learner.init(KEY, batch)
    state, _ = fit(learner, batch, 1)
    before, after = (s.model_state["batch_stats"]["BatchNorm_0"]["mean"] for s in (start, state))
    hidden = (batch["inputs"] @ start.params["Dense_0"]["kernel"]).mean(axis=0)
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * hidden, rtol=1e-4, atol=1e-5)
    one = {name: values[:1] for name, values in batch.items()}
    whole = learner.evaluate(state, batch, KEY).outputs["logits"]
    np.testing.assert_allclose(learner.evaluate(state, one, KEY).outputs["logits"], whole[:1], rtol=1e-5)
    assert not np.allclose(learner.evaluate(start, batch, KEY).outputs["logits"], whole)


def test_evaluation_has_no_dropout_and_training_has():
    learner = classifier(MLP((64, 3), dropout=jnp.float32(0.5)), optax.sgd(0.0))
    state, metrics = fit(learner, CLASSES, 2)
    assert metrics["loss"][0] != metrics["loss"][1]
    chex.assert_trees_all_equal(*(learner.evaluate(state, CLASSES, jax.random.key(i)) for i in range(2)))


def test_evaluation_uses_the_moving_average():
    learner = classifier(LINEAR, optax.sgd(1.0), ema_decay=0.9)
    state, _ = fit(learner, CLASSES, 5)
    plain = classifier(LINEAR, optax.sgd(1.0))
    with_ema_params = state._replace(params=state.ema_params, ema_params=None)
    expected = plain.evaluate(with_ema_params, CLASSES, KEY).outputs["logits"]
    np.testing.assert_array_equal(learner.evaluate(state, CLASSES, KEY).outputs["logits"], expected)
    assert not np.allclose(plain.predict(state._replace(ema_params=None), INPUTS, KEY), expected)


def test_a_new_rate_compiles_nothing():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(settings, batch):
        rate, drop, smoothing = settings
        model = CNN(3, (2,), dense=(4,), dropout=drop, normalization="batch")
        learner = classifier(
            model, optax.adamw(rate, weight_decay=rate), label_smoothing=smoothing, l1=rate, ema_decay=drop
        )
        state = learner.init(KEY, batch)
        return jax.lax.scan(lambda s, k: learner.update(s, batch, k), state, jax.random.split(KEY, 2))

    batch = {"inputs": jnp.ones((4, 4, 4, 1), jnp.uint8), "targets": jnp.arange(4) % 3}
    slow, fast = (train(tuple(map(jnp.float32, values)), batch)[0] for values in ((1e-3, 0.1, 0.1), (1e-1, 0.5, 0.2)))
    assert not np.allclose(*(state.params["MLP_0"]["Dense_1"]["kernel"] for state in (slow, fast)))


def test_inputs_are_preprocessed_in_training_evaluation_and_prediction():
    learner = classifier(LINEAR, optax.sgd(0.0), preprocess=lambda x: x[:, :2] / 255.0)
    batch = {**CLASSES, "inputs": jnp.full((12, 5), 255, jnp.uint8)}
    state, _ = fit(learner, batch, 1)
    assert state.params["Dense_0"]["kernel"].shape == (2, 3)
    expected = state.params["Dense_0"]["kernel"].sum(axis=0) + state.params["Dense_0"]["bias"]
    np.testing.assert_allclose(learner.predict(state, batch["inputs"], KEY)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(learner.evaluate(state, batch, KEY).outputs["logits"][0], expected, rtol=1e-5)


def test_a_model_need_not_be_a_flax_module():
    class Linear:
        def init(self, rngs, inputs, train):
            return {"params": {"w": jnp.zeros((inputs.shape[1], 3))}}

        def apply(self, variables, inputs, train, rngs=None, mutable=False):
            outputs = inputs @ variables["params"]["w"]
            return outputs if mutable is False else (outputs, {})

    _, metrics = fit(classifier(Linear(), optax.sgd(0.1)), CLASSES, 3)
    assert metrics["loss"][0] == pytest.approx(np.log(3))
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_frozen_parameters_stay_and_cost_no_gradients():
    model, frozen = CNN(3, (4,), dense=(4,), normalization="batch"), ("Conv_0", "BatchNorm_0")
    batch = {"inputs": jax.random.normal(KEY, (12, 8, 8, 1)), "targets": CLASSES["targets"]}
    flops, states = {}, {}
    for patterns in ((), frozen):
        learner = classifier(model, optax.adamw(0.1, weight_decay=0.5), ema_decay=0.5, frozen=patterns)
        states[patterns] = learner.init(KEY, batch)
        compiled = jax.jit(learner.update).lower(states[patterns], batch, KEY).compile()
        states[(*patterns, "after")], _ = compiled(states[patterns], batch, KEY)
        flops[patterns] = compiled.cost_analysis()["flops"]
    before, after = states[frozen], states[(*frozen, "after")]
    chex.assert_trees_all_equal(before.params["Conv_0"], after.params["Conv_0"])
    statistics = before.model_state["batch_stats"], after.model_state["batch_stats"]
    chex.assert_trees_all_equal(*(tree["BatchNorm_0"] for tree in statistics))
    assert not np.array_equal(*(tree["MLP_0"]["BatchNorm_0"]["mean"] for tree in statistics))
    assert not np.array_equal(*(state.params["MLP_0"]["Dense_1"]["kernel"] for state in (before, after)))
    moments = jax.tree.leaves(before.optimizer_state[0].mu)
    assert sum(leaf.size for leaf in moments) < sum(leaf.size for leaf in jax.tree.leaves(before.params))
    forward = 2 * 12 * 64 * 9 * 4  # of the convolution; its kernel's gradient would cost as much again
    assert flops[()] - flops[frozen] > forward


def test_a_frozen_module_runs_as_in_evaluation():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            x = MLP((5, 4), dropout=0.5, normalization="batch", name="encoder")(x, train=train)
            return nn.Dense(3)(normalization("batch", 4, train)(x))

    frozen, optimizer = ("encoder", "BatchNorm_0"), optax.sgd(0.1)
    learner = classifier(Network(), optimizer, frozen=frozen, microbatches=2)
    before = learner.init(KEY, CLASSES)
    statistics = jax.tree.map(lambda leaf: leaf + 0.5, before.model_state)  # not those of any batch
    before = before._replace(model_state=statistics)
    after, metrics = jax.jit(learner.update)(before, CLASSES, KEY)
    chex.assert_trees_all_equal(after.model_state, statistics)

    def loss(head):
        params = {**before.params, "Dense_0": head}
        logits = Network().apply({"params": params, **statistics}, CLASSES["inputs"], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, CLASSES["targets"]).mean()

    value, gradients = jax.value_and_grad(loss)(before.params["Dense_0"])
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    step = jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, before.params["Dense_0"], gradients)
    chex.assert_trees_all_close(after.params["Dense_0"], step, rtol=1e-5)


def test_a_frozen_pattern_without_parameters_is_an_error_that_names_some():
    with pytest.raises(ConfigError, match=r"'Dense_7'.*there are Dense_0, Dense_0/bias"):
        classifier(LINEAR, optax.sgd(0.1), frozen=("Dense_7",)).init(KEY, CLASSES)
    with pytest.raises(ConfigError, match="no regular expression"):
        classifier(LINEAR, optax.sgd(0.1), frozen=("Dense_(",)).init(KEY, CLASSES)


def test_augmentation_acts_in_training_only_and_on_its_own_key():
    def shift(key, batch):
        return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, (1, 1))}

    plain, augmented = (classifier(LINEAR, optax.sgd(0.0), augment=augment) for augment in (None, shift))
    state = plain.init(KEY, CLASSES)
    train_losses = [float(augmented.update(state, CLASSES, jax.random.key(i))[1]["loss"]) for i in (0, 0, 1)]
    assert train_losses[0] == train_losses[1] != train_losses[2]
    chex.assert_trees_all_equal(*(learner.evaluate(state, CLASSES, KEY) for learner in (plain, augmented)))
