"""Classifiers and regressors: what they learn, report and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from foldax.errors import ConfigError, ExperimentError
from foldax.learners import classifier, gaussian_regressor, losses, regressor
from foldax.learners.tasks import penalty
from foldax.models import CNN, MLP

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (12, 5))
BATCH = {"inputs": INPUTS, "targets": jnp.arange(12) % 3}
BINARY = {"inputs": INPUTS, "targets": jnp.arange(12) % 2}
NUMBERS = {"inputs": INPUTS, "targets": 100 + 20 * INPUTS[:, 0]}
LINEAR = MLP((3,))


def fit(learner, batch, steps):
    """Returns the state after some updates on one batch, and the metrics of every step."""

    def run(batch):
        state = learner.init(KEY, batch)
        keys = jax.random.split(KEY, steps)
        return jax.lax.scan(lambda state, key: learner.update(state, batch, key), state, keys)

    return jax.jit(run)(batch)


def test_classifier_learns_a_batch_by_heart():
    learner = classifier(MLP((32, 3)), optax.adam(0.02))
    state, metrics = fit(learner, BATCH, 200)
    assert metrics["accuracy"][-1] == 1.0
    assert metrics["loss"][-1] < 0.05
    assert set(metrics) == {"loss", "accuracy", "gradient_norm"}
    values = learner.evaluate(state, BATCH, KEY)
    assert values["accuracy"].shape == values["loss"].shape == (12,)
    assert values["targets"].dtype == jnp.int32
    np.testing.assert_array_equal(values["logits"], learner.predict(state, INPUTS, KEY))


@pytest.mark.parametrize("width", [(), (1,)])
@pytest.mark.parametrize(("loss", "low"), [(losses.sigmoid_cross_entropy, 0), (losses.hinge, -1)])
def test_one_logit_classifies_two_classes(width, loss, low):
    class OneLogit(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return MLP((32, 1))(x).reshape(x.shape[0], *width)

    batch = {**BINARY, "targets": jnp.where(BINARY["targets"] == 0, low, 1)}
    learner = classifier(OneLogit(), optax.adam(0.02), loss=loss)
    state, metrics = fit(learner, batch, 150)
    assert metrics["accuracy"][-1] == 1.0
    values = learner.evaluate(state, batch, KEY)
    assert values["logits"].shape == (12, 1)
    np.testing.assert_array_equal(values["logits"][:, 0] > 0, batch["targets"] > 0)
    assert values["accuracy"].mean() == 1.0


def test_many_labels_count_each():
    batch = {"inputs": INPUTS, "targets": jnp.ones((12, 3), int)}
    learner = classifier(LINEAR, optax.sgd(0.0), loss=losses.sigmoid_cross_entropy)
    values = learner.evaluate(learner.init(KEY, batch), batch, KEY)
    np.testing.assert_allclose(values["accuracy"], (values["logits"] > 0).mean(axis=1), rtol=1e-6)


def test_class_weights_are_the_sample_weights_of_sklearn():
    given = np.array([1.0, 5.0, 0.5])
    learner = classifier(LINEAR, optax.sgd(0.0), class_weights=given)
    state, metrics = fit(learner, {**BATCH, "targets": BATCH["targets"].at[:3].set(1)}, 1)
    classes = np.asarray(BATCH["targets"].at[:3].set(1))
    probabilities = softmax(np.asarray(learner.predict(state, INPUTS, KEY), float), axis=1)
    expected = sklearn_metrics.log_loss(classes, probabilities, sample_weight=given[classes])
    assert metrics["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_smoothing_and_weights_are_for_training_only():
    plain, shaped = (
        classifier(LINEAR, optax.sgd(0.0), **options)
        for options in ({}, {"label_smoothing": 0.5, "class_weights": jnp.array([1.0, 2.0, 3.0])})
    )
    state, metrics = fit(shaped, BATCH, 1)
    np.testing.assert_array_equal(shaped.evaluate(state, BATCH, KEY)["loss"], plain.evaluate(state, BATCH, KEY)["loss"])
    assert metrics["loss"][0] != pytest.approx(float(plain.evaluate(state, BATCH, KEY)["loss"].mean()))


def test_penalties_have_their_closed_form():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([7.0]), "scale": jnp.array([3.0])}
    params["layers"] = {"bias": jnp.ones((2, 2))}  # of layers that are stacked for a scan
    value, gradient = jax.value_and_grad(penalty)(params, l1=0.1, l2=0.5)
    assert value == pytest.approx(0.1 * 3 + 0.5 * 0.5 * 5)
    np.testing.assert_allclose(gradient["kernel"], [[0.1 + 0.5, -0.1 - 1.0]], rtol=1e-6)
    assert gradient["bias"] == gradient["scale"] == 0.0
    assert not gradient["layers"]["bias"].any()


def test_penalty_is_reported_beside_the_loss_and_learned():
    without, _ = fit(classifier(LINEAR, optax.sgd(0.1)), BATCH, 1)
    learner = classifier(LINEAR, optax.sgd(0.1), l2=0.5)
    start = jax.jit(learner.init)(KEY, BATCH).params["Dense_0"]
    state, metrics = fit(learner, BATCH, 1)
    moved = state.params["Dense_0"]["kernel"] - without.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(moved, -0.1 * 0.5 * start["kernel"], atol=1e-6)
    assert metrics["penalty"][0] == pytest.approx(0.25 * float(jnp.square(start["kernel"]).sum()), rel=1e-5)


def test_accumulation_equals_the_whole_batch_with_class_weights():
    options = {"class_weights": jnp.array([1.0, 5.0, 0.5]), "l1": 0.01}
    whole, metrics = fit(classifier(LINEAR, optax.sgd(0.5), **options), BATCH, 3)
    parts, accumulated = fit(classifier(LINEAR, optax.sgd(0.5), accumulate=4, **options), BATCH, 3)
    for mine, theirs in zip(jax.tree.leaves((parts, accumulated)), jax.tree.leaves((whole, metrics)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_running_statistics_move_and_are_used():
    learner = classifier(MLP((4, 3), normalization="batch"), optax.sgd(0.0))
    batch = {**BATCH, "inputs": INPUTS + 5.0}
    start = learner.init(KEY, batch)
    state, _ = fit(learner, batch, 1)
    before, after = (s.model_state["batch_stats"]["BatchNorm_0"]["mean"] for s in (start, state))
    hidden = (batch["inputs"] @ start.params["Dense_0"]["kernel"]).mean(axis=0)
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * hidden, rtol=1e-4, atol=1e-5)
    one = {name: values[:1] for name, values in batch.items()}
    whole = learner.evaluate(state, batch, KEY)["logits"]
    np.testing.assert_allclose(learner.evaluate(state, one, KEY)["logits"], whole[:1], rtol=1e-5)
    assert not np.allclose(learner.evaluate(start, batch, KEY)["logits"], whole)


def test_evaluation_has_no_dropout_and_training_has():
    learner = classifier(MLP((64, 3), dropout=jnp.float32(0.5)), optax.sgd(0.0))
    state, metrics = fit(learner, BATCH, 2)
    assert metrics["loss"][0] != metrics["loss"][1]
    first, second = (learner.evaluate(state, BATCH, jax.random.key(i)) for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_evaluation_uses_the_moving_average():
    learner = classifier(LINEAR, optax.sgd(1.0), ema_decay=0.9)
    state, _ = fit(learner, BATCH, 5)
    plain = classifier(LINEAR, optax.sgd(1.0))
    averaged = state._replace(params=state.ema_params, ema_params=None)
    expected = plain.evaluate(averaged, BATCH, KEY)["logits"]
    np.testing.assert_array_equal(learner.evaluate(state, BATCH, KEY)["logits"], expected)
    assert not np.allclose(plain.predict(state._replace(ema_params=None), INPUTS, KEY), expected)


def test_a_new_rate_compiles_nothing():
    traces = []

    @jax.jit
    def train(settings, batch):
        traces.append(1)
        rate, drop, smoothing = settings
        model = CNN(3, (2,), dense=(4,), dropout=drop, normalization="batch")
        learner = classifier(
            model, optax.adamw(rate, weight_decay=rate), label_smoothing=smoothing, l1=rate, ema_decay=drop
        )
        state = learner.init(KEY, batch)
        return jax.lax.scan(lambda s, k: learner.update(s, batch, k), state, jax.random.split(KEY, 2))

    batch = {"inputs": jnp.ones((4, 4, 4, 1), jnp.uint8), "targets": jnp.arange(4) % 3}
    slow, fast = (train(tuple(map(jnp.float32, values)), batch)[0] for values in ((1e-3, 0.1, 0.1), (1e-1, 0.5, 0.2)))
    assert len(traces) == 1
    assert not np.allclose(*(state.params["MLP_0"]["Dense_1"]["kernel"] for state in (slow, fast)))


def test_preprocess_is_used_everywhere():
    learner = classifier(LINEAR, optax.sgd(0.0), preprocess=lambda x: x[:, :2] / 255.0)
    batch = {**BATCH, "inputs": jnp.full((12, 5), 255, jnp.uint8)}
    state, _ = fit(learner, batch, 1)
    assert state.params["Dense_0"]["kernel"].shape == (2, 3)
    expected = state.params["Dense_0"]["kernel"].sum(axis=0) + state.params["Dense_0"]["bias"]
    np.testing.assert_allclose(learner.predict(state, batch["inputs"], KEY)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(learner.evaluate(state, batch, KEY)["logits"][0], expected, rtol=1e-5)


def test_a_model_need_not_be_of_flax():
    class Linear:
        def init(self, rngs, inputs, train):
            return {"params": {"w": jnp.zeros((inputs.shape[1], 3))}}

        def apply(self, variables, inputs, train, rngs=None, mutable=False):
            outputs = inputs @ variables["params"]["w"]
            return outputs if mutable is False else (outputs, {})

    _, metrics = fit(classifier(Linear(), optax.sgd(0.1)), BATCH, 3)
    assert metrics["loss"][0] == pytest.approx(np.log(3))
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_regressor_learns_standardised_targets_and_reports_in_their_units():
    targets = NUMBERS["targets"]
    learner = regressor(MLP((1,)), optax.adam(0.1), target_mean=targets.mean(), target_std=targets.std())
    state, metrics = fit(learner, NUMBERS, 200)
    np.testing.assert_allclose(learner.predict(state, INPUTS, KEY)[:, 0], targets, rtol=0.01)
    assert metrics["loss"][0] * targets.var() == pytest.approx(float(metrics["squared_error"][0]), rel=1e-4)
    values = learner.evaluate(state, NUMBERS, KEY)
    np.testing.assert_array_equal(values["targets"], targets[:, None])
    difference = np.asarray(values["predictions"] - values["targets"])[:, 0]
    np.testing.assert_allclose(values["squared_error"], difference**2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values["absolute_error"], np.abs(difference), rtol=1e-4, atol=1e-6)


def test_regressor_of_several_outputs():
    targets = jnp.stack([INPUTS[:, 0], 100 + 50 * INPUTS[:, 1]], axis=1)
    learner = regressor(
        MLP((2,)), optax.adam(0.1), loss=losses.huber, target_mean=targets.mean(0), target_std=targets.std(0)
    )
    state, metrics = fit(learner, {"inputs": INPUTS, "targets": targets}, 200)
    np.testing.assert_allclose(learner.predict(state, INPUTS, KEY), targets, atol=1.0)
    assert metrics["absolute_error"][-1] < 0.5


@pytest.mark.parametrize(
    ("make", "batch", "said"),
    [
        (lambda: classifier(LINEAR, optax.sgd(0.1)), {"inputs": INPUTS}, "'targets' is missing"),
        (lambda: classifier(LINEAR, optax.sgd(0.1)), (INPUTS, INPUTS), "got a tuple"),
        (lambda: classifier(MLP((1,)), optax.sgd(0.1)), BATCH, "two classes or more"),
        (lambda: classifier(LINEAR, optax.sgd(0.1)), NUMBERS, "integer classes"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), accumulate=5), BATCH, "accumulate=5"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), class_weights=jnp.ones(3)), NUMBERS, "class_weights"),
        (lambda: classifier(LINEAR, optax.sgd(0.1), loss=losses.hinge, label_smoothing=0.1), BATCH, "hinge"),
        (lambda: regressor(LINEAR, optax.sgd(0.1)), NUMBERS, "must match"),
    ],
)
def test_mistakes_are_named(make, batch, said):
    with pytest.raises(ExperimentError, match=said):
        fit(make(), batch, 1)


def test_frozen_parameters_stay_and_cost_nothing():
    model, frozen = CNN(3, (4,), dense=(4,), normalization="batch"), ("Conv_0", "BatchNorm_0")
    batch = {"inputs": jax.random.normal(KEY, (12, 8, 8, 1)), "targets": BATCH["targets"]}
    flops, states = {}, {}
    for patterns in ((), frozen):
        learner = classifier(model, optax.adamw(0.1, weight_decay=0.5), ema_decay=0.5, frozen=patterns)
        states[patterns] = learner.init(KEY, batch)
        compiled = jax.jit(learner.update).lower(states[patterns], batch, KEY).compile()
        states[(*patterns, "after")], _ = compiled(states[patterns], batch, KEY)
        flops[patterns] = compiled.cost_analysis()["flops"]
    before, after = states[frozen], states[(*frozen, "after")]
    jax.tree.map(np.testing.assert_array_equal, before.params["Conv_0"], after.params["Conv_0"])
    statistics = before.model_state["batch_stats"], after.model_state["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, *(tree["BatchNorm_0"] for tree in statistics))
    assert not np.array_equal(*(tree["MLP_0"]["BatchNorm_0"]["mean"] for tree in statistics))
    assert not np.array_equal(*(state.params["MLP_0"]["Dense_1"]["kernel"] for state in (before, after)))
    moments = jax.tree.leaves(before.optimizer_state[0].mu)
    assert sum(leaf.size for leaf in moments) < sum(leaf.size for leaf in jax.tree.leaves(before.params))
    forward = 2 * 12 * 64 * 9 * 4  # of the convolution; its kernel's gradient would cost as much again
    assert flops[()] - flops[frozen] > forward


def test_a_frozen_pattern_without_parameters_is_an_error_that_names_some():
    with pytest.raises(ConfigError, match=r"'Dense_7'.*there are Dense_0, Dense_0/bias"):
        classifier(LINEAR, optax.sgd(0.1), frozen=("Dense_7",)).init(KEY, BATCH)
    with pytest.raises(ConfigError, match="no regular expression"):
        classifier(LINEAR, optax.sgd(0.1), frozen=("Dense_(",)).init(KEY, BATCH)


def test_augmentation_acts_while_training_only_and_on_its_own_key():
    def shifted(key, batch):
        return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, (1, 1))}

    plain, augmented = (classifier(LINEAR, optax.sgd(0.0), augment=augment) for augment in (None, shifted))
    state = plain.init(KEY, BATCH)
    losses_ = [float(augmented.update(state, BATCH, jax.random.key(i))[1]["loss"]) for i in (0, 0, 1)]
    assert losses_[0] == losses_[1] != losses_[2]
    jax.tree.map(np.testing.assert_array_equal, *(made.evaluate(state, BATCH, KEY) for made in (plain, augmented)))


def test_mixed_targets_train_on_shares_and_count_the_larger_one():
    def mixed(key, batch):
        shares = 0.7 * jax.nn.one_hot(batch["targets"], 3) + 0.3 * jax.nn.one_hot(batch["targets"][::-1], 3)
        return {**batch, "targets": shares}

    learner = classifier(LINEAR, optax.sgd(0.0), augment=mixed)
    state = learner.init(KEY, BATCH)
    _, metrics = learner.update(state, BATCH, KEY)
    logits = np.asarray(learner.predict(state, INPUTS, KEY), float)
    shares = np.asarray(mixed(KEY, BATCH)["targets"])
    assert metrics["loss"] == pytest.approx(-(shares * np.log(softmax(logits, axis=1))).sum(1).mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == np.asarray(BATCH["targets"])).mean())


def test_gaussian_regressor_learns_mean_and_spread():
    noise = 3.0 * jax.random.normal(jax.random.key(1), (4000,))
    batch = {"inputs": jnp.ones((4000, 1)), "targets": 50.0 + noise}
    learner = gaussian_regressor(MLP((2,)), optax.adam(0.05), interval=0.8, target_mean=40.0, target_std=10.0)
    state, metrics = fit(learner, batch, 400)
    values = learner.evaluate(state, batch, KEY)
    mean, std = float(batch["targets"].mean()), float(batch["targets"].std())
    np.testing.assert_allclose(values["predictions"][:, 0], mean, rtol=1e-2)
    np.testing.assert_allclose(values["std"][:, 0], std, rtol=2e-2)
    assert metrics["loss"][-1] == pytest.approx(np.log(std / 10) + 0.5 * np.log(2 * np.pi * np.e), abs=0.01)
    assert values["coverage"].mean() == pytest.approx(0.8, abs=0.03)
    assert values["interval_width"].mean() == pytest.approx(2 * 1.2816 * std, rel=3e-2)
    predicted = learner.predict(state, batch["inputs"][:2], KEY)
    np.testing.assert_array_equal(predicted["std"], values["std"][:2])
