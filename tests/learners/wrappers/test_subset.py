"""Class-balanced subsets: sampled with the run's key, and the only examples that the learner sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import data, learners, models
from foldax.errors import ExperimentError
from foldax.learner import Learner

KEY = jax.random.key(0)
ARRAYS = {"inputs": np.arange(120, dtype=np.float32)[:, None], "targets": np.arange(120) % 3}
DATASET = data.from_arrays(ARRAYS, batch_size=10, validation=0.1, test=0.1)
SPLIT = DATASET.train.examples()


def counting_learner():
    """A learner whose state counts how often it saw each input."""

    def init(key, examples):
        return jnp.zeros(120, jnp.int32)

    def update(state, batch, key):
        return state.at[batch["inputs"][:, 0].astype(jnp.int32)].add(1), {"loss": 0.0}

    return Learner(init, update, lambda state, batch, key: {})


def counts(learner, seed, updates):
    state = learner.init(jax.random.key(seed), SPLIT)
    batch = {name: values[:10] for name, values in SPLIT.items()}
    for index in range(updates):
        state, _ = learner.update(state, batch, jax.random.key(index))
    return np.asarray(state.learner)


@pytest.mark.parametrize(("examples_per_class", "updates"), [(2, 6), (7, 40)])
def test_the_learner_sees_only_the_subset_and_each_example_about_equally_often(examples_per_class, updates):
    times_seen = counts(learners.subset(counting_learner(), examples_per_class, DATASET.info), 0, updates)
    chosen = np.flatnonzero(times_seen)
    assert times_seen.sum() == 10 * updates
    assert len(chosen) == 3 * examples_per_class
    assert np.bincount(chosen % 3).tolist() == [examples_per_class] * 3
    assert set(chosen) <= set(np.asarray(SPLIT["inputs"])[:, 0].astype(int))
    if examples_per_class == 2:  # 6 examples in batches of 10: once or twice in each
        assert times_seen[chosen].min() >= updates
        assert times_seen[chosen].max() <= 2 * updates


def test_another_seed_draws_another_subset():
    learner = learners.subset(counting_learner(), 4, DATASET.info)
    assert not np.array_equal(counts(learner, 0, 20) > 0, counts(learner, 1, 20) > 0)
    np.testing.assert_array_equal(counts(learner, 0, 20), counts(learner, 0, 20))


def test_a_subset_of_a_classifier_evaluates_and_predicts_as_the_classifier():
    inner = learners.classifier(models.MLP((3,)), optax.sgd(0.1))
    learner = learners.subset(inner, 3, DATASET.info)
    state = learner.init(KEY, SPLIT)
    batch = {name: values[:4] for name, values in SPLIT.items()}
    chex.assert_trees_all_equal(learner.evaluate(state, batch, KEY), inner.evaluate(state.learner, batch, KEY))
    np.testing.assert_array_equal(
        learner.predict(state, batch["inputs"], KEY), inner.predict(state.learner, batch["inputs"], KEY)
    )


def test_subsets_that_the_split_cannot_provide_are_errors():
    with pytest.raises(ExperimentError, match="at most"):
        learners.subset(counting_learner(), 41, DATASET.info)
    streamed = data.from_arrays(ARRAYS, batch_size=10, validation=0.1, test=0.1, source="stream")
    with pytest.raises(ExperimentError, match="on the device"):
        learners.subset(counting_learner(), 2, streamed.info).init(KEY, streamed.train.examples())
