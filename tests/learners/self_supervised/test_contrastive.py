"""SimCLR and BYOL: losses against plain loops, the target as a moving average, and views that pair up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import augment, learners
from foldax.errors import ConfigError
from foldax.learners.self_supervised import simclr
from foldax.learners.self_supervised.byol import spread
from foldax.models import MLP, Projected

KEY = jax.random.key(0)
ROWS = np.random.RandomState(0).randn(12, 5).astype(np.float32)
BATCH = {"inputs": ROWS, "targets": np.arange(12) % 3}
MODEL = Projected(MLP((6,)), MLP((4,), normalization="batch"), MLP((4,)))
VIEWS = augment.noise(0.3)


def loop(first, second, temperature):
    """NT-Xent as equation 1 of the paper says it, one pair of views after another."""
    views = [row / np.linalg.norm(row) for row in [*first, *second]]
    count, found = len(first), []
    for i in range(2 * count):
        j = i + count if i < count else i - count
        terms = [np.exp(views[i] @ views[k] / temperature) for k in range(2 * count) if k != i]
        found.append(-np.log(np.exp(views[i] @ views[j] / temperature) / sum(terms)))
    return np.array(found)


@settings(max_examples=20, deadline=None)
@given(count=st.sampled_from([2, 3, 8]), temperature=st.floats(0.1, 5.0), seed=st.integers(0, 1000))
def test_nt_xent_is_the_loop(count, temperature, seed):
    first, second = np.random.RandomState(seed).randn(2, count, 4)
    ours = jax.jit(simclr.nt_xent)(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32), temperature)
    np.testing.assert_allclose(ours, loop(first, second, temperature), rtol=2e-4, atol=2e-5)


def test_known_values_of_nt_xent():
    """Views that are all the same cost log(2 B - 1); pairs at right angles to all else, at a low temperature, nothing."""
    same, apart = jnp.ones((4, 3)), jnp.eye(4)
    np.testing.assert_allclose(simclr.nt_xent(same, same, 0.5), np.log(7), rtol=1e-6)
    np.testing.assert_allclose(simclr.nt_xent(apart, apart * 5, 0.01), 0.0, atol=1e-6)
    np.testing.assert_allclose(simclr.nt_xent(apart, apart, 1.0), np.log(np.e + 6) - 1, rtol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    first, second = np.random.RandomState(1).randn(2, 3, 4)
    gradient = jax.grad(lambda x: simclr.nt_xent(x, jnp.asarray(second), 0.7).sum())(jnp.asarray(first))
    for place in np.ndindex(first.shape):
        step = np.zeros_like(first)
        step[place] = 1e-5
        difference = loop(first + step, second, 0.7).sum() - loop(first - step, second, 0.7).sum()
        assert float(gradient[place]) == pytest.approx(difference / 2e-5, abs=2e-3)


def test_views_of_an_image_lie_side_by_side_and_differ():
    both = simclr.pairs(VIEWS)(KEY, BATCH)
    first, second = simclr.apart(both["inputs"])
    assert first.shape == ROWS.shape
    for view in (first, second):
        assert 0 < np.abs(view - ROWS).max() < 2
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(both["targets"], np.repeat(BATCH["targets"], 2))


def test_an_update_descends_the_loss_of_its_two_views():
    learner = learners.simclr(MODEL, optax.sgd(0.1), views=lambda key, batch: batch, temperature=0.3)
    state = jax.jit(learner.init)(KEY, BATCH)
    after, metrics = jax.jit(learner.update)(state, BATCH, KEY)
    variables = {"params": state.params, **state.model_state}
    made, _ = MODEL.apply(variables, ROWS, train=True, mutable=["batch_stats"])
    z = np.asarray(made.projections, np.float64)
    assert float(metrics["loss"]) == pytest.approx(loop(z, z, 0.3).mean(), rel=1e-3)
    assert float(metrics["alignment"]) == pytest.approx(0.0, abs=1e-6)
    assert float(jax.jit(learner.update)(after, BATCH, KEY)[1]["loss"]) < float(metrics["loss"])


@pytest.mark.parametrize("make", [learners.simclr, learners.byol])
def test_evaluation_gives_features_projections_and_how_far_views_are_apart(make):
    learner = make(MODEL, optax.sgd(0.1), views=VIEWS)
    state = jax.jit(learner.init)(KEY, BATCH)
    values, made = jax.jit(learner.evaluate)(state, BATCH, KEY), jax.jit(learner.predict)(state, ROWS, KEY)
    np.testing.assert_array_equal(values["features"], made.features)
    np.testing.assert_array_equal(values["projections"], made.projections)
    assert values["features"].shape == (12, 6)
    assert 0 < float(values["alignment"].min()) < float(values["alignment"].max()) <= 4


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_distance_of_normalised_views_is_two_minus_twice_the_cosine(scale):
    first, second = np.random.RandomState(2).randn(2, 5, 3).astype(np.float32)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = 2 - 2 * (first * second).sum(1) / lengths
    np.testing.assert_allclose(simclr.alignment(first * scale, second), expected, rtol=1e-4)


def test_byol_foretells_what_the_target_makes_of_the_other_view():
    learner = learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, decay=0.9)
    state = jax.jit(learner.init)(KEY, BATCH)
    target = jax.tree.map(lambda leaf: leaf + 0.1, state.online.ema_params)
    state = state._replace(online=state.online._replace(ema_params=target))
    after, metrics = jax.jit(learner.update)(state, BATCH, KEY)
    both = simclr.pairs(VIEWS)(jax.random.split(KEY, 4)[1], BATCH)["inputs"]

    def outputs(params):
        variables = {"params": params, **state.online.model_state}
        return MODEL.apply(variables, both, train=True, mutable=["batch_stats"])[0]

    told = np.asarray(outputs(state.online.params).predictions, np.float64)
    goals = np.asarray(outputs(target).projections, np.float64)
    cosines = [
        told[i] @ goals[i ^ 1] / np.linalg.norm(told[i]) / np.linalg.norm(goals[i ^ 1]) for i in range(len(told))
    ]
    assert float(metrics["loss"]) == pytest.approx(4 - 2 * np.sum(cosines) / len(ROWS), rel=1e-4)
    for new, old, average in zip(*map(jax.tree.leaves, (after.online.params, target, after.online.ema_params))):
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1


def test_no_gradient_reaches_the_target():
    """With a rate of 0 nothing moves but the target, and it only towards the online network."""
    learner = learners.byol(MODEL, optax.sgd(0.0), views=VIEWS, decay=0.5)
    state = jax.jit(learner.init)(KEY, BATCH)
    after, _ = jax.jit(learner.update)(state, BATCH, KEY)
    jax.tree.map(np.testing.assert_array_equal, after.online.params, state.online.params)
    jax.tree.map(np.testing.assert_array_equal, after.online.ema_params, state.online.params)


def test_the_targets_decay_rises_to_one():
    decay = learners.slowing(0.99, 100)
    assert [float(decay(jnp.int32(step))) for step in (0, 50, 100, 200)] == pytest.approx([0.99, 0.995, 1.0, 1.0])
    learner = learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, decay=learners.slowing(0.0, 10))
    after, _ = jax.jit(learner.update)(
        jax.jit(learner.init)(KEY, BATCH), BATCH, KEY
    )  # a decay of 0: the target is the online network
    jax.tree.map(np.testing.assert_array_equal, after.online.ema_params, after.online.params)


def test_spread_tells_a_collapse():
    assert float(spread(jnp.ones((5, 4)))[0]) == 0.0
    assert float(spread(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]]))[0]) == pytest.approx(1 / np.sqrt(2))


def test_wrong_settings_say_so():
    one = {"inputs": ROWS[:1]}
    learner = learners.simclr(MODEL, optax.sgd(0.1), views=VIEWS)
    with pytest.raises(ConfigError, match="a batch of one image has no other to tell it from; batch_size"):
        learner.update(learner.init(KEY, one), one, KEY)
    parts = learners.simclr(MODEL, optax.sgd(0.1), views=VIEWS, accumulate=12)
    with pytest.raises(ConfigError, match="accumulate"):
        parts.update(parts.init(KEY, BATCH), BATCH, KEY)
    with pytest.raises(ConfigError, match="needs a predictor"):
        learners.byol(Projected(MLP((6,)), MLP((4,))), optax.sgd(0.1), views=VIEWS)
    with pytest.raises(ConfigError, match="ema_decay is `decay` here"):
        learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, ema_decay=0.9)
