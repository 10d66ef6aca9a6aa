"""The linear probe and kNN against scikit-learn on the same features, the memory bank, and stopped gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from foldax import learners, models
from foldax.errors import ConfigError, ExperimentError
from foldax.learner import Evaluation, Learner
from foldax.learners.wrappers import probe

KEY = jax.random.key(0)
RNG = np.random.RandomState(0)
CLASSES = RNG.randint(0, 3, 90)
ROWS = (RNG.randn(90, 4) + 1.2 * np.eye(4)[CLASSES]).astype(np.float32) * np.array([1, 5, 0.2, 1], np.float32)
BATCH = {"inputs": jnp.asarray(ROWS), "targets": jnp.asarray(CLASSES)}


def identity_learner():
    """A learner that learns nothing, and whose features are the inputs."""

    def evaluate(state, batch, key):
        return Evaluation({"loss": batch["inputs"].sum(axis=1)}, {"features": batch["inputs"]})

    return Learner(lambda key, examples: jnp.zeros(()), lambda s, b, k: (s, {"loss": s}), evaluate, lambda s, x, k: x)


@pytest.fixture(scope="module")
def trained():
    learner = learners.with_probe(
        identity_learner(), 3, optax.adam(optax.cosine_decay_schedule(0.1, 600)), memory_size=90, neighbors=7
    )
    state = learner.init(KEY, BATCH)

    @jax.jit
    def train(state):
        return jax.lax.fori_loop(0, 600, lambda step, state: learner.update(state, BATCH, KEY)[0], state)

    return learner, train(state)


def test_the_probe_converges_to_scikit_learns_logistic_regression(trained):
    learner, state = trained
    scaled = StandardScaler().fit_transform(ROWS)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, CLASSES)
    metrics = learner.evaluate(state, BATCH, KEY).metrics
    log_probabilities = theirs.predict_log_proba(scaled)[np.arange(90), CLASSES]
    np.testing.assert_allclose(metrics["probe_loss"], -log_probabilities, atol=5e-3)
    assert float(metrics["probe_accuracy"].mean()) == pytest.approx(theirs.score(scaled, CLASSES))
    assert 0.5 < theirs.score(scaled, CLASSES) < 1  # the classes overlap, so the optimum is unique


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.07), (7, 0.07), (7, 1e6), (20, 0.5)])
def test_votes_of_neighbours_equal_those_of_scikit_learn(neighbors, temperature):
    bank = probe.MemoryBank(BATCH["inputs"], BATCH["targets"], jnp.int32(90))
    queries = RNG.randn(50, 4).astype(np.float32)
    votes = np.asarray(probe.knn_votes(bank, jnp.asarray(queries), 3, neighbors, temperature))
    theirs = KNeighborsClassifier(neighbors, metric="cosine", weights=lambda d: np.exp(-d / temperature))
    expected = theirs.fit(ROWS, CLASSES).predict_proba(queries)
    np.testing.assert_allclose(votes / votes.sum(axis=1, keepdims=True), expected, rtol=1e-3, atol=1e-4)


def test_evaluation_reports_the_accuracy_of_each_example(trained):
    learner, state = trained
    metrics = learner.evaluate(state, BATCH, KEY).metrics
    votes = probe.knn_votes(state.memory_bank, BATCH["inputs"], 3, 7, 0.07)
    np.testing.assert_array_equal(metrics["knn_accuracy"], (np.asarray(votes).argmax(1) == CLASSES).astype(np.float32))
    np.testing.assert_allclose(metrics["loss"], ROWS.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(learner.predict(state, BATCH["inputs"], KEY), ROWS)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(3, 9), batch=st.integers(1, 3), updates=st.integers(0, 12))
def test_the_memory_bank_holds_the_last_examples(size, batch, updates):
    bank = probe.MemoryBank(jnp.zeros((size, 1)), jnp.zeros(size, jnp.int32), jnp.int32(0))
    added = np.arange(1, updates * batch + 1)
    for index in range(updates):
        new = added[index * batch : (index + 1) * batch]
        bank = probe.add_to_bank(bank, jnp.asarray(new[:, None], jnp.float32), jnp.asarray(new, jnp.int32))
    filled = int(min(bank.count, size))
    assert filled == min(len(added), size)
    assert sorted(np.asarray(bank.targets)[:filled].tolist()) == added[len(added) - filled :].tolist()
    np.testing.assert_array_equal(bank.features[:, 0], bank.targets)
    assert int(bank.count) < 2 * size + batch


def test_empty_slots_of_the_memory_bank_have_no_weight():
    bank = probe.MemoryBank(jnp.zeros((8, 4)), jnp.zeros(8, jnp.int32), jnp.int32(0))
    np.testing.assert_array_equal(probe.knn_votes(bank, BATCH["inputs"], 3, 5, 0.07), np.zeros((90, 3)))
    bank = probe.add_to_bank(bank, BATCH["inputs"][:3], jnp.asarray([2, 2, 1]))
    votes = np.asarray(probe.knn_votes(bank, BATCH["inputs"], 3, 5, 1e6))
    np.testing.assert_allclose(votes, np.broadcast_to([0, 1, 2], (90, 3)), rtol=1e-4)
    ours = probe.standardize(bank, BATCH["inputs"])
    np.testing.assert_allclose(ours, (ROWS - ROWS[:3].mean(0)) / np.sqrt(ROWS[:3].var(0) + 1e-5), rtol=1e-3, atol=1e-4)


def test_labels_do_not_change_the_learner():
    inner = learners.autoencoder(models.Autoencoder(models.MLP((2,)), models.MLP((4,)), (4,)), optax.sgd(0.1))
    learner = learners.with_probe(inner, 3, optax.sgd(0.1), features="latents", memory_size=90)
    shuffled = {**BATCH, "targets": BATCH["targets"][::-1]}
    after = [learner.update(learner.init(KEY, BATCH), batch, KEY)[0] for batch in (BATCH, shuffled)]
    chex.assert_trees_all_equal(after[0].learner, after[1].learner)
    assert not np.array_equal(after[0].linear["kernel"], after[1].linear["kernel"])
    alone, _ = inner.update(inner.init(KEY, BATCH), BATCH, jax.random.split(KEY)[0])
    chex.assert_trees_all_equal(after[0].learner, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_classes=None), "num_classes=None must be 2 or more"),
        (dict(neighbors=9, memory_size=8), "1 to memory_size, 8"),
        (dict(neighbors=0), "neighbors: 0"),
    ],
)
def test_numbers_out_of_range_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        learners.with_probe(identity_learner(), **{"num_classes": 3, "optimizer": optax.sgd(0.1), **options})


def test_batches_that_do_not_fit_are_errors():
    small = learners.with_probe(identity_learner(), 3, optax.sgd(0.1), memory_size=20)
    with pytest.raises(ConfigError, match="memory_size: 20 is smaller than a batch of 90"):
        small.update(small.init(KEY, BATCH), BATCH, KEY)
    with pytest.raises(ExperimentError, match=r"no 'latents' \[B, D\] \(it returns loss \[1\], features \[1, 4\]\)"):
        learners.with_probe(identity_learner(), 3, optax.sgd(0.1), features="latents").init(KEY, BATCH)
    with pytest.raises(ExperimentError, match='integer "targets"'):
        small.init(KEY, {"inputs": BATCH["inputs"]})
