"""Learners of sequences: known answers, and padding that changes nothing."""

import functools

import chex
import hypothesis.strategies as st
import jax
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
    """Bigram model: logits `[B, T, 7]` of the next token that depend on the token `[B, T]` alone."""

    vocabulary_size: int = 7

    @nn.compact
    def __call__(self, x, *, mask=None, train=False):
        return nn.Embed(7, 7, embedding_init=nn.initializers.normal(1.0))(x)


def bigram_nats(state, tokens):
    table = np.asarray(state.params["Embed_0"]["embedding"], np.float64)
    return (np.log(np.exp(table).sum(1))[:, None] - table)[tokens[:, :-1], tokens[:, 1:]]


def mean(average):
    return float(average.total.sum() / average.count.sum())


def test_language_model_measures_every_token_but_the_first():
    learner = learners.language_model(Embedding(), optax.sgd(0.0), token_bytes=np.arange(7))
    state = learner.init(KEY, {"inputs": TOKENS})
    evaluated, outputs = learner.evaluate(state, {"inputs": TOKENS}, KEY)
    expected = bigram_nats(state, TOKENS)
    np.testing.assert_allclose(outputs["nats"], expected, rtol=1e-5)
    assert mean(evaluated["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    bits_per_byte = expected.sum() / np.log(2) / TOKENS[:, 1:].sum()
    assert mean(evaluated["bits_per_byte"]) == pytest.approx(bits_per_byte, rel=1e-5)
    log_loss = sklearn_metrics.log_loss(
        TOKENS[:, 1:].ravel(),
        jax.nn.softmax(learner.predict(state, TOKENS[:, :-1], KEY)).reshape(-1, 7),
        labels=range(7),
    )
    assert mean(evaluated["loss"]) == pytest.approx(log_loss, rel=1e-5)
    perplexity = learners.perplexity(jax.tree.map(np.asarray, outputs))["perplexity"]
    assert perplexity == pytest.approx(np.exp(expected.mean()), rel=1e-5)
    _, metrics = learner.update(state, {"inputs": TOKENS}, KEY)
    assert float(metrics["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(mean(evaluated["accuracy"]), rel=1e-6)


def test_language_model_predicts_no_padding_no_first_token_of_a_segment_and_none_without_weight():
    learner = learners.language_model(Embedding(), optax.sgd(0.0))
    mask = np.array([[1, 1, 1, 2, 2, 2, 0, 0, 0]] * 5)
    weights = np.ones((5, 9), np.float32)
    weights[0, 4] = 0
    batch = {"inputs": TOKENS, "mask": mask, "weights": weights}
    state = learner.init(KEY, batch)
    evaluated, outputs = learner.evaluate(state, batch, KEY)
    counted = np.array([[1, 1, 0, 1, 1, 0, 0, 0]] * 5, bool)
    counted[0, 3] = False
    np.testing.assert_array_equal(outputs["loss_mask"], counted)
    expected = bigram_nats(state, TOKENS)
    assert mean(evaluated["loss"]) == pytest.approx(expected[counted].mean(), rel=1e-5)
    _, metrics = learner.update(state, batch, KEY)
    assert float(metrics["loss"]) == pytest.approx(expected[counted].mean(), rel=1e-5)


def test_microbatches_of_different_lengths_average_to_the_whole_batch():
    mask = (np.arange(9)[None, :] < np.array([9, 2, 5, 3])[:, None]).astype(np.int32)
    batch = {"inputs": TOKENS[:4], "mask": mask}
    results = []
    for microbatches in (1, 4):
        learner = learners.language_model(Embedding(), optax.sgd(1.0), microbatches=microbatches)
        state, metrics = learner.update(learner.init(KEY, batch), batch, KEY)
        results.append((state.params, metrics["loss"]))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


MODELS = {
    "transformer": Transformer(
        3, vocabulary_size=7, width=8, depth=1, num_heads=2, causal=True, pooling="last", max_length=16
    ),
    "recurrent": Recurrent(3, hidden=(6,), vocabulary_size=7, pooling="mean", bidirectional=True),
}
LEARNERS = {name: learners.sequence_classifier(model, optax.sgd(0.1)) for name, model in MODELS.items()}


@functools.cache
def initial_state_and_evaluate(name):
    """Programs and states are shared by all examples of hypothesis."""
    state = LEARNERS[name].init(KEY, {"inputs": TOKENS, "targets": np.zeros(5, np.int32)})
    return state, jax.jit(LEARNERS[name].evaluate)


def evaluated_logits(name, inputs, mask):
    state, evaluate = initial_state_and_evaluate(name)
    batch = {"inputs": inputs, "mask": mask, "targets": np.arange(len(inputs)) % 3}
    return evaluate(state, batch, KEY).outputs["logits"]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([1, 3, 4]), min_size=2, max_size=2), st.sampled_from([4, 6]), st.integers(0, 6))
def test_padding_never_changes_the_logits(name, lengths, size, fill):
    tokens = np.full((len(lengths), size), fill, np.int32)
    mask = np.arange(size)[None, :] < np.array(lengths)[:, None]
    tokens[mask] = np.random.RandomState(sum(lengths)).randint(0, 7, mask.sum())
    together = evaluated_logits(name, tokens, mask.astype(np.int32))
    for row, length in enumerate(lengths):
        unpadded = np.concatenate([tokens[row : row + 1, :length]] * 3)  # a batch of another size, without padding
        alone = evaluated_logits(name, unpadded, np.ones(unpadded.shape, np.int32))
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_step_classifier_counts_real_steps():
    learner = learners.step_classifier(Embedding(), optax.sgd(0.0))
    batch = {
        "inputs": TOKENS,
        "targets": TOKENS[:, ::-1].copy(),
        "mask": (np.arange(9) < 4)[None, :] * np.ones((5, 1), int),
    }
    state = learner.init(KEY, batch)
    evaluated, outputs = learner.evaluate(state, batch, KEY)
    flat = np.asarray(outputs["logits"])[:, :4].reshape(-1, 7)
    expected = sklearn_metrics.log_loss(batch["targets"][:, :4].ravel(), jax.nn.softmax(flat), labels=range(7))
    assert mean(evaluated["loss"]) == pytest.approx(expected, rel=1e-5)
    accuracy = sklearn_metrics.accuracy_score(batch["targets"][:, :4].ravel(), flat.argmax(1))
    assert mean(evaluated["accuracy"]) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (learners.language_model, {"inputs": TOKENS.astype(np.float32)}, "integer tokens"),
        (learners.step_classifier, {"inputs": TOKENS, "targets": np.zeros(5, np.int32)}, r"\[B, T\]"),
        (learners.forecaster, {"inputs": TOKENS, "targets": TOKENS}, r"\[B, T, C\]"),
        (learners.language_model, {"tokens": TOKENS}, "'inputs' is missing"),
    ],
)
def test_mistakes_in_batches_are_errors_that_name_them(make, batch, message):
    with pytest.raises(ExperimentError, match=message):
        make(Embedding(), optax.sgd(0.1)).init(KEY, batch)


def test_mistakes_in_options_are_errors_that_name_them():
    with pytest.raises(ExperimentError, match="pooling"):
        learners.sequence_classifier(Recurrent(3, vocabulary_size=7), optax.sgd(0.1))
    with pytest.raises(ExperimentError, match="there is no option 'agument'"):
        learners.classifier(Embedding(), optax.sgd(0.1), agument=None)
