"""SimCLR and BYOL: losses against plain loops, the target as a moving average, and pairs of views."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import augment, learners
from foldax.errors import ConfigError
from foldax.learners.self_supervised import views
from foldax.learners.self_supervised.byol import projection_std
from foldax.models import MLP, ProjectionNetwork
from foldax.runs.transfer.parameters import parameters_of

KEY = jax.random.key(0)
ROWS = np.random.RandomState(0).randn(12, 5).astype(np.float32)
BATCH = {"inputs": ROWS, "targets": np.arange(12) % 3}
MODEL = ProjectionNetwork(MLP((6,)), MLP((4,), normalization="batch"), MLP((4,)))
VIEWS = augment.gaussian_noise(0.3)


def nt_xent_by_loops(first, second, temperature):
    """NT-Xent as equation 1 of the paper states it, one pair of views after another."""
    projections = [row / np.linalg.norm(row) for row in [*first, *second]]
    count, losses = len(first), []
    for i in range(2 * count):
        j = i + count if i < count else i - count
        terms = [np.exp(projections[i] @ projections[k] / temperature) for k in range(2 * count) if k != i]
        losses.append(-np.log(np.exp(projections[i] @ projections[j] / temperature) / sum(terms)))
    return np.array(losses)


@settings(max_examples=20, deadline=None)
@given(count=st.sampled_from([2, 3, 8]), temperature=st.floats(0.1, 5.0), seed=st.integers(0, 1000))
def test_nt_xent_equals_plain_loops(count, temperature, seed):
    first, second = np.random.RandomState(seed).randn(2, count, 4)
    ours = jax.jit(learners.nt_xent)(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32), temperature)
    np.testing.assert_allclose(ours, nt_xent_by_loops(first, second, temperature), rtol=2e-4, atol=2e-5)


def test_known_values_of_nt_xent():
    """Identical views of all images: log(2 B - 1); orthogonal pairs at a low temperature: 0."""
    same, orthogonal = jnp.ones((4, 3)), jnp.eye(4)
    np.testing.assert_allclose(learners.nt_xent(same, same, 0.5), np.log(7), rtol=1e-6)
    np.testing.assert_allclose(learners.nt_xent(orthogonal, orthogonal * 5, 0.01), 0.0, atol=1e-6)
    np.testing.assert_allclose(learners.nt_xent(orthogonal, orthogonal, 1.0), np.log(np.e + 6) - 1, rtol=1e-5)


def test_the_gradient_of_nt_xent_is_that_of_finite_differences():
    first, second = np.random.RandomState(1).randn(2, 3, 4)
    gradient = jax.grad(lambda x: learners.nt_xent(x, jnp.asarray(second), 0.7).sum())(jnp.asarray(first))
    for index in np.ndindex(first.shape):
        step = np.zeros_like(first)
        step[index] = 1e-5
        above, below = (nt_xent_by_loops(first + sign * step, second, 0.7).sum() for sign in (1, -1))
        assert float(gradient[index]) == pytest.approx((above - below) / 2e-5, abs=2e-3)


def test_the_gradient_of_nt_xent_by_the_temperature_is_that_of_finite_differences():
    first, second = jax.random.normal(KEY, (2, 5, 3))

    def loss(temperature):
        return learners.nt_xent(first, second, temperature).mean()

    difference = (loss(0.501) - loss(0.499)) / 0.002
    np.testing.assert_allclose(jax.grad(loss)(0.5), difference, rtol=1e-2)


def test_views_of_an_image_are_adjacent_and_differ():
    pairs = views.make_view_pairs(VIEWS)(KEY, BATCH)
    first, second = views.split_views(pairs["inputs"])
    chex.assert_equal_shape([first, second, ROWS])
    for view in (first, second):
        assert 0 < np.abs(view - ROWS).max() < 2
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(pairs["targets"], np.repeat(BATCH["targets"], 2))


def test_an_update_of_simclr_descends_the_loss_of_the_two_views():
    learner = learners.simclr(MODEL, optax.sgd(0.1), views=lambda key, batch: batch, temperature=0.3)
    state = jax.jit(learner.init)(KEY, BATCH)
    after, metrics = jax.jit(learner.update)(state, BATCH, KEY)
    variables = {"params": state.params, **state.model_state}
    output, _ = MODEL.apply(variables, ROWS, train=True, mutable=["batch_stats"])
    z = np.asarray(output.projections, np.float64)
    assert float(metrics["loss"]) == pytest.approx(nt_xent_by_loops(z, z, 0.3).mean(), rel=1e-3)
    assert float(metrics["alignment"]) == pytest.approx(0.0, abs=1e-6)
    assert float(jax.jit(learner.update)(after, BATCH, KEY)[1]["loss"]) < float(metrics["loss"])


@pytest.mark.parametrize("make", [learners.simclr, learners.byol])
def test_evaluation_returns_features_projections_and_alignment(make):
    learner = make(MODEL, optax.sgd(0.1), views=VIEWS)
    state = jax.jit(learner.init)(KEY, BATCH)
    result, output = jax.jit(learner.evaluate)(state, BATCH, KEY), jax.jit(learner.predict)(state, ROWS, KEY)
    np.testing.assert_array_equal(result.outputs["features"], output.features)
    np.testing.assert_array_equal(result.outputs["projections"], output.projections)
    chex.assert_shape(result.outputs["features"], (12, 6))
    alignment = result.metrics["alignment"]
    assert 0 < float(alignment.min()) < float(alignment.max()) <= 4


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_alignment_is_two_minus_twice_the_cosine(scale):
    first, second = np.random.RandomState(2).randn(2, 5, 3).astype(np.float32)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = 2 - 2 * (first * second).sum(1) / lengths
    np.testing.assert_allclose(views.alignment(jnp.asarray(first * scale), jnp.asarray(second)), expected, rtol=1e-4)


def test_byol_predicts_the_target_projection_of_the_other_view():
    learner = learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, momentum=0.9)
    state = jax.jit(learner.init)(KEY, BATCH)
    target_params = jax.tree.map(lambda leaf: leaf + 0.1, state.target_params)
    state = state._replace(target_params=target_params)
    after, metrics = jax.jit(learner.update)(state, BATCH, KEY)
    pairs = views.make_view_pairs(VIEWS)(jax.random.split(KEY, 4)[1], BATCH)["inputs"]

    def output(params):
        variables = {"params": params, **state.online.model_state}
        return MODEL.apply(variables, pairs, train=True, mutable=["batch_stats"])[0]

    predictions = np.asarray(output(state.online.params).predictions, np.float64)
    targets = np.asarray(output(target_params).projections, np.float64)
    lengths = [np.linalg.norm(predictions[i]) * np.linalg.norm(targets[i ^ 1]) for i in range(len(predictions))]
    cosines = [predictions[i] @ targets[i ^ 1] / length for i, length in enumerate(lengths)]
    assert float(metrics["loss"]) == pytest.approx(4 - 2 * np.sum(cosines) / len(ROWS), rel=1e-4)
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, target_params, after.online.params)
    chex.assert_trees_all_close(after.target_params, expected, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1


def test_no_gradient_reaches_the_target_network():
    """With a learning rate of 0, only the target moves, and only towards the online network."""
    learner = learners.byol(MODEL, optax.sgd(0.0), views=VIEWS, momentum=0.5)
    state = jax.jit(learner.init)(KEY, BATCH)
    after, _ = jax.jit(learner.update)(state, BATCH, KEY)
    chex.assert_trees_all_equal(after.online.params, state.online.params)
    chex.assert_trees_all_equal(after.target_params, state.online.params)


def test_another_run_starts_from_the_online_network():
    batch = {"inputs": jnp.asarray(np.random.RandomState(0).randn(6, 3), jnp.float32)}
    state = learners.byol(MODEL, optax.sgd(0.1), views=VIEWS).init(KEY, batch)
    state = state._replace(target_params=jax.tree.map(jnp.zeros_like, state.target_params))
    named, params = parameters_of(state), parameters_of({"params": state.online.params})
    chex.assert_trees_all_equal({name: named[name] for name in params}, params)


def test_the_target_momentum_rises_to_one():
    momentum = learners.byol_momentum_schedule(0.99, 100)
    assert [float(momentum(jnp.int32(step))) for step in (0, 50, 100, 200)] == pytest.approx([0.99, 0.995, 1.0, 1.0])
    schedule = learners.byol_momentum_schedule(0.0, 10)  # with a momentum of 0, the target is the online network
    learner = learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, momentum=schedule)
    after, _ = jax.jit(learner.update)(jax.jit(learner.init)(KEY, BATCH), BATCH, KEY)
    chex.assert_trees_all_equal(after.target_params, after.online.params)


def test_projection_std_detects_a_collapse():
    assert float(projection_std(jnp.ones((5, 4)))[0]) == 0.0
    assert float(projection_std(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]]))[0]) == pytest.approx(1 / np.sqrt(2))


@pytest.mark.parametrize("make", [learners.simclr, learners.byol])
def test_microbatches_may_not_split_a_pair_of_views(make):
    learner, nine_images = make(MODEL, optax.sgd(0.1), views=VIEWS, microbatches=6), {"inputs": ROWS[:9]}
    with pytest.raises(ConfigError, match="microbatches must divide the number of images: 6 and 9"):
        learner.update(learner.init(KEY, nine_images), nine_images, KEY)


def test_wrong_settings_are_errors():
    one = {"inputs": ROWS[:1]}
    learner = learners.simclr(MODEL, optax.sgd(0.1), views=VIEWS)
    with pytest.raises(ConfigError, match="simclr: a batch of one image has no negatives; batch_size"):
        learner.update(learner.init(KEY, one), one, KEY)
    learner = learners.simclr(MODEL, optax.sgd(0.1), views=VIEWS, microbatches=12)
    with pytest.raises(ConfigError, match="microbatches"):
        learner.update(learner.init(KEY, BATCH), BATCH, KEY)
    with pytest.raises(ConfigError, match="has no predictor"):
        learners.byol(ProjectionNetwork(MLP((6,)), MLP((4,))), optax.sgd(0.1), views=VIEWS)
    with pytest.raises(ConfigError, match="ema_decay cannot be set"):
        learners.byol(MODEL, optax.sgd(0.1), views=VIEWS, ema_decay=0.9)
