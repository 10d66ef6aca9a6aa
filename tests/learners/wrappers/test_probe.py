"""Probe and neighbours against scikit-learn's on the same features; the memory; what no gradient may reach."""

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
from foldax.learner import Learner
from foldax.learners.wrappers import probe

KEY = jax.random.key(0)
RNG = np.random.RandomState(0)
CLASSES = RNG.randint(0, 3, 90)
ROWS = (RNG.randn(90, 4) + 1.2 * np.eye(4)[CLASSES]).astype(np.float32) * np.array([1, 5, 0.2, 1], np.float32)
BATCH = {"inputs": jnp.asarray(ROWS), "targets": jnp.asarray(CLASSES)}


def fixed():
    """A learner that learns nothing, and whose features are the inputs."""

    def evaluate(state, batch, key):
        return {"loss": batch["inputs"].sum(axis=1), "features": batch["inputs"]}

    return Learner(lambda key, examples: jnp.zeros(()), lambda s, b, k: (s, {"loss": s}), evaluate, lambda s, x, k: x)


@pytest.fixture(scope="module")
def trained():
    learner = learners.probed(fixed(), 3, optax.adam(optax.cosine_decay_schedule(0.1, 600)), memory=90, neighbors=7)
    state = learner.init(KEY, BATCH)

    @jax.jit
    def train(state):
        return jax.lax.fori_loop(0, 600, lambda step, state: learner.update(state, BATCH, KEY)[0], state)

    return learner, train(state)


def test_the_probe_becomes_scikit_learns_logistic_regression(trained):
    learner, state = trained
    scaled = StandardScaler().fit_transform(ROWS)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, CLASSES)
    values = learner.evaluate(state, BATCH, KEY)
    log_probabilities = theirs.predict_log_proba(scaled)[np.arange(90), CLASSES]
    np.testing.assert_allclose(values["probe_loss"], -log_probabilities, atol=5e-3)
    assert float(values["probe_accuracy"].mean()) == pytest.approx(theirs.score(scaled, CLASSES))
    assert 0.5 < theirs.score(scaled, CLASSES) < 1  # the classes overlap, so that there is one best


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.07), (7, 0.07), (7, 1e6), (20, 0.5)])
def test_neighbours_vote_as_scikit_learns_do(neighbors, temperature):
    memory = probe.Memory(BATCH["inputs"], BATCH["targets"], jnp.int32(90))
    others = RNG.randn(50, 4).astype(np.float32)
    votes = np.asarray(probe.vote(memory, jnp.asarray(others), 3, neighbors, temperature))
    theirs = KNeighborsClassifier(neighbors, metric="cosine", weights=lambda d: np.exp(-d / temperature))
    shares = theirs.fit(ROWS, CLASSES).predict_proba(others)
    np.testing.assert_allclose(votes / votes.sum(axis=1, keepdims=True), shares, rtol=1e-3, atol=1e-4)


def test_an_evaluation_says_who_was_right(trained):
    learner, state = trained
    values = learner.evaluate(state, BATCH, KEY)
    votes = probe.vote(state.memory, BATCH["inputs"], 3, 7, 0.07)
    np.testing.assert_array_equal(values["knn_accuracy"], (np.asarray(votes).argmax(1) == CLASSES).astype(np.float32))
    np.testing.assert_allclose(values["loss"], ROWS.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(learner.predict(state, BATCH["inputs"], KEY), ROWS)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(3, 9), batch=st.integers(1, 3), updates=st.integers(0, 12))
def test_the_memory_holds_the_last_ones(size, batch, updates):
    memory = probe.Memory(jnp.zeros((size, 1)), jnp.zeros(size, jnp.int32), jnp.int32(0))
    seen = np.arange(1, updates * batch + 1)
    for index in range(updates):
        new = seen[index * batch : (index + 1) * batch]
        memory = probe.remember(memory, jnp.asarray(new[:, None], jnp.float32), jnp.asarray(new, jnp.int32))
    filled = int(min(memory.count, size))
    assert filled == min(len(seen), size)
    assert sorted(np.asarray(memory.targets)[:filled].tolist()) == seen[len(seen) - filled :].tolist()
    np.testing.assert_array_equal(memory.features[:, 0], memory.targets)
    assert int(memory.count) < 2 * size + batch


def test_what_is_not_there_yet_has_no_vote_and_no_part_in_the_scale():
    memory = probe.Memory(jnp.zeros((8, 4)), jnp.zeros(8, jnp.int32), jnp.int32(0))
    np.testing.assert_array_equal(probe.vote(memory, BATCH["inputs"], 3, 5, 0.07), np.zeros((90, 3)))
    memory = probe.remember(memory, BATCH["inputs"][:3], jnp.asarray([2, 2, 1]))
    votes = np.asarray(probe.vote(memory, BATCH["inputs"], 3, 5, 1e6))
    np.testing.assert_allclose(votes, np.broadcast_to([0, 1, 2], (90, 3)), rtol=1e-4)
    ours = probe.standardized(memory, BATCH["inputs"])
    np.testing.assert_allclose(ours, (ROWS - ROWS[:3].mean(0)) / np.sqrt(ROWS[:3].var(0) + 1e-5), rtol=1e-3, atol=1e-4)


def test_labels_change_nothing_that_the_learner_learns():
    inner = learners.autoencoder(models.Autoencoder(models.MLP((2,)), models.MLP((4,)), (4,)), optax.sgd(0.1))
    learner = learners.probed(inner, 3, optax.sgd(0.1), features="codes", memory=90)
    shuffled = {**BATCH, "targets": BATCH["targets"][::-1]}
    after = [learner.update(learner.init(KEY, BATCH), batch, KEY)[0] for batch in (BATCH, shuffled)]
    jax.tree.map(np.testing.assert_array_equal, after[0].learner, after[1].learner)
    assert not np.array_equal(after[0].linear["kernel"], after[1].linear["kernel"])
    alone, _ = inner.update(inner.init(KEY, BATCH), BATCH, jax.random.split(KEY)[0])
    jax.tree.map(np.testing.assert_array_equal, after[0].learner, alone)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(num_classes=None), "two classes or more"),
        (dict(neighbors=9, memory=8), "1 to the memory's number of examples, 8"),
        (dict(neighbors=0), "neighbors: 0"),
    ],
)
def test_wrong_numbers_say_so(options, said):
    with pytest.raises(ConfigError, match=said):
        learners.probed(fixed(), **{"num_classes": 3, "optimizer": optax.sgd(0.1), **options})


def test_what_does_not_fit_says_so():
    small = learners.probed(fixed(), 3, optax.sgd(0.1), memory=20)
    with pytest.raises(ConfigError, match="memory: 20 examples are fewer than a batch of 90"):
        small.update(small.init(KEY, BATCH), BATCH, KEY)
    with pytest.raises(ExperimentError, match=r"no 'codes' \[B, D\] \(it gives loss \[1\], features \[1, 4\]\)"):
        learners.probed(fixed(), 3, optax.sgd(0.1), features="codes").init(KEY, BATCH)
    with pytest.raises(ExperimentError, match='integer "targets"'):
        small.init(KEY, {"inputs": BATCH["inputs"]})
