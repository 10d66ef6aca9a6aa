"""Learners of sequences: known answers, and padding that changes nothing."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from sklearn import metrics as sklearn_metrics

from foldax import learners
from foldax.errors import ExperimentError
from foldax.models import Recurrent, Transformer

KEY = jax.random.key(0)
TOKENS = np.random.RandomState(0).randint(1, 7, (5, 9)).astype(np.int32)


class Embedding(nn.Module):
    """Says of a token what comes next, whatever was before it: `[B, T]` to `[B, T, 7]`."""

    vocabulary_size: int = 7

    @nn.compact
    def __call__(self, x, *, mask=None, train=False):
        return nn.Embed(7, 7, embedding_init=nn.initializers.normal(1.0))(x)


class Constant(nn.Module):
    """Gives the same outputs for whatever inputs."""

    outputs: tuple[float, ...]

    @nn.compact
    def __call__(self, x, *, train=False):
        self.param("unused", nn.initializers.zeros, ())
        return jnp.broadcast_to(jnp.asarray(self.outputs, jnp.float32), (x.shape[0], len(self.outputs)))


def nats(state, tokens):
    table = np.asarray(state.params["Embed_0"]["embedding"], np.float64)
    return (np.log(np.exp(table).sum(1))[:, None] - table)[tokens[:, :-1], tokens[:, 1:]]


def mean(average):
    return float(average.total.sum() / average.count.sum())


def test_language_model_measures_every_token_but_the_first():
    learner = learners.language_model(Embedding(), optax.sgd(0.0), token_bytes=np.arange(7))
    state = learner.init(KEY, {"inputs": TOKENS})
    values = learner.evaluate(state, {"inputs": TOKENS}, KEY)
    expected = nats(state, TOKENS)
    np.testing.assert_allclose(values["nats"], expected, rtol=1e-5)
    assert mean(values["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert mean(values["bits_per_byte"]) == pytest.approx(expected.sum() / np.log(2) / TOKENS[:, 1:].sum(), rel=1e-5)
    log_loss = sklearn_metrics.log_loss(
        TOKENS[:, 1:].ravel(),
        jax.nn.softmax(learner.predict(state, TOKENS[:, :-1], KEY)).reshape(-1, 7),
        labels=range(7),
    )
    assert mean(values["loss"]) == pytest.approx(log_loss, rel=1e-5)
    numbers = {name: np.asarray(values[name]) for name in ("nats", "real")}
    assert learners.perplexity(numbers)["perplexity"] == pytest.approx(np.exp(expected.mean()), rel=1e-5)
    _, metrics = learner.update(state, {"inputs": TOKENS}, KEY)
    assert float(metrics["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(mean(values["accuracy"]), rel=1e-6)


def test_language_model_predicts_no_padding_no_first_token_of_a_segment_and_none_without_weight():
    learner = learners.language_model(Embedding(), optax.sgd(0.0))
    mask = np.array([[1, 1, 1, 2, 2, 2, 0, 0, 0]] * 5)
    weights = np.ones((5, 9), np.float32)
    weights[0, 4] = 0
    batch = {"inputs": TOKENS, "mask": mask, "weights": weights}
    state = learner.init(KEY, batch)
    values = learner.evaluate(state, batch, KEY)
    counted = np.array([[1, 1, 0, 1, 1, 0, 0, 0]] * 5, bool)
    counted[0, 3] = False
    np.testing.assert_array_equal(values["real"], counted)
    expected = nats(state, TOKENS)
    assert mean(values["loss"]) == pytest.approx(expected[counted].mean(), rel=1e-5)
    _, metrics = learner.update(state, batch, KEY)
    assert float(metrics["loss"]) == pytest.approx(expected[counted].mean(), rel=1e-5)


def test_microbatches_of_different_lengths_add_up_to_the_whole_batch():
    mask = (np.arange(9)[None, :] < np.array([9, 2, 5, 3])[:, None]).astype(np.int32)
    batch = {"inputs": TOKENS[:4], "mask": mask}
    states = []
    for accumulate in (1, 4):
        learner = learners.language_model(Embedding(), optax.sgd(1.0), accumulate=accumulate)
        state, metrics = learner.update(learner.init(KEY, batch), batch, KEY)
        states.append((state.params, metrics["loss"]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *states)


MODELS = {
    "transformer": Transformer(
        3, vocabulary_size=7, width=8, depth=1, num_heads=2, causal=True, pooling="last", max_length=16
    ),
    "recurrent": Recurrent(3, hidden=(6,), vocabulary_size=7, pooling="mean", bidirectional=True),
}
LEARNERS = {name: learners.sequence_classifier(model, optax.sgd(0.1)) for name, model in MODELS.items()}
STATES = {}


def evaluated(name, inputs, mask):
    """Evaluates with programs and states that all examples of a test share."""
    learner = LEARNERS[name]
    if name not in STATES:
        first = {"inputs": TOKENS, "targets": np.zeros(5, np.int32)}
        STATES[name] = (learner.init(KEY, first), jax.jit(learner.evaluate))
    state, evaluate = STATES[name]
    return evaluate(state, {"inputs": inputs, "mask": mask, "targets": np.arange(len(inputs)) % 3}, KEY)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([1, 3, 4]), min_size=2, max_size=2), st.sampled_from([4, 6]), st.integers(0, 6))
def test_padding_never_changes_a_metric(name, lengths, size, fill):
    tokens = np.full((len(lengths), size), fill, np.int32)
    mask = np.arange(size)[None, :] < np.array(lengths)[:, None]
    tokens[mask] = np.random.RandomState(sum(lengths)).randint(0, 7, mask.sum())
    together = evaluated(name, tokens, mask.astype(np.int32))
    for row, length in enumerate(lengths):
        shown = np.concatenate([tokens[row : row + 1, :length]] * 3)  # a batch of another size, and no padding
        alone = evaluated(name, shown, np.ones(shown.shape, np.int32))
        np.testing.assert_allclose(together["logits"][row], alone["logits"][0], rtol=1e-4, atol=1e-5)


def test_step_classifier_counts_real_steps():
    learner = learners.step_classifier(Embedding(), optax.sgd(0.0))
    batch = {
        "inputs": TOKENS,
        "targets": TOKENS[:, ::-1].copy(),
        "mask": (np.arange(9) < 4)[None, :] * np.ones((5, 1), int),
    }
    state = learner.init(KEY, batch)
    values = learner.evaluate(state, batch, KEY)
    flat = np.asarray(values["logits"])[:, :4].reshape(-1, 7)
    expected = sklearn_metrics.log_loss(batch["targets"][:, :4].ravel(), jax.nn.softmax(flat), labels=range(7))
    assert mean(values["loss"]) == pytest.approx(expected, rel=1e-5)
    right = sklearn_metrics.accuracy_score(batch["targets"][:, :4].ravel(), flat.argmax(1))
    assert mean(values["accuracy"]) == pytest.approx(right)


@pytest.mark.parametrize("scale", ["window", "last", None])
def test_forecaster_standardises_each_context_by_itself(scale):
    contexts = np.random.RandomState(1).randn(4, 6, 1).astype(np.float32) * 3 + 10
    targets = np.random.RandomState(2).randn(4, 2).astype(np.float32) * 3 + 10
    learner = learners.forecaster(Constant((0.5, -1.0, 0.0, 1.0)), optax.sgd(0.0), scale=scale, interval=0.8)
    batch = {"inputs": contexts, "targets": targets}
    state = learner.init(KEY, batch)
    values = learner.evaluate(state, batch, KEY)
    std = contexts.std(axis=1) if scale else np.ones((4, 1))
    location = {"window": contexts.mean(axis=1), "last": contexts[:, -1], None: np.zeros((4, 1))}[scale]
    mean_, std_ = location + std * np.array([[0.5, -1.0]]), std * np.exp([[0.0, 1.0]])
    np.testing.assert_allclose(values["predictions"], mean_, rtol=1e-5)
    np.testing.assert_allclose(values["std"], std_, rtol=1e-5)
    np.testing.assert_allclose(values["absolute_error"], np.abs(mean_ - targets).mean(1), rtol=1e-5)
    np.testing.assert_allclose(values["coverage"], (np.abs(mean_ - targets) < 1.2815516 * std_).mean(1))
    scaled = (targets - mean_) / std_
    expected = 0.5 * scaled**2 + np.log(std_ / std) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(values["loss"], expected.mean(1), rtol=1e-4)


def test_forecaster_of_a_constant_context_is_finite():
    learner = learners.forecaster(Constant((0.5, 0.0)), optax.sgd(0.1))
    batch = {"inputs": np.full((2, 5, 1), 7.0, np.float32), "targets": np.full((2, 1), 7.0, np.float32)}
    state = learner.init(KEY, batch)
    np.testing.assert_allclose(learner.predict(state, batch["inputs"], KEY)["mean"], 7.5)
    assert np.isfinite(learner.update(state, batch, KEY)[1]["loss"])


@pytest.mark.parametrize(
    ("make", "batch", "said"),
    [
        (learners.language_model, {"inputs": TOKENS.astype(np.float32)}, "integer tokens"),
        (learners.step_classifier, {"inputs": TOKENS, "targets": np.zeros(5, np.int32)}, r"\[B, T\]"),
        (learners.forecaster, {"inputs": TOKENS, "targets": TOKENS}, r"\[B, T, C\]"),
        (learners.language_model, {"tokens": TOKENS}, "'inputs' is missing"),
    ],
)
def test_mistakes_are_named(make, batch, said):
    with pytest.raises(ExperimentError, match=said):
        make(Embedding(), optax.sgd(0.1)).init(KEY, batch)


def test_settings_out_of_range_are_named():
    with pytest.raises(ExperimentError, match="interval"):
        learners.forecaster(Constant((0.0,)), optax.sgd(0.1), interval=1.0)
    with pytest.raises(ExperimentError, match="scale"):
        learners.forecaster(Constant((0.0,)), optax.sgd(0.1), scale="windw")
    with pytest.raises(ExperimentError, match="pooling"):
        learners.sequence_classifier(Recurrent(3, vocabulary_size=7), optax.sgd(0.1))
    with pytest.raises(ExperimentError, match="there is no option 'agument'"):
        learners.classifier(Embedding(), optax.sgd(0.1), agument=None)
