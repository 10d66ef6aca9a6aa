"""Autoencoders: principal components where they are linear, what corruption hides, and what sparsity costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.decomposition import PCA

from foldax import augment, learners
from foldax.errors import ConfigError
from foldax.models import CNN, MLP, Autoencoder, Upsampler

KEY = jax.random.key(0)
ROWS = np.random.RandomState(0).randn(64, 6).astype(np.float32) * np.array([3, 2, 1, 0.5, 0.3, 0.1], np.float32)
LINEAR = Autoencoder(MLP((2,)), MLP((6,)), (6,))


def zeros(key, batch):
    return {**batch, "inputs": jnp.zeros_like(batch["inputs"])}


def first_values(**options):
    """The metrics of a first update, the values of an evaluation before it, and the state before it."""
    learner = learners.autoencoder(LINEAR, optax.sgd(0.1), **options)
    state, batch = learner.init(KEY, {"inputs": ROWS}), {"inputs": ROWS, "targets": np.arange(64)}
    return learner.update(state, batch, KEY)[1], learner.evaluate(state, batch, KEY), state


def test_a_linear_one_finds_what_principal_components_find():
    learner = learners.autoencoder(LINEAR, optax.adam(optax.cosine_decay_schedule(0.05, 800)))
    state, batch = learner.init(KEY, {"inputs": ROWS}), {"inputs": jnp.asarray(ROWS)}
    train = jax.jit(lambda state: jax.lax.fori_loop(0, 800, lambda i, s: learner.update(s, batch, KEY)[0], state))
    values = learner.evaluate(train(state), batch, KEY)
    pca = PCA(2).fit(ROWS)
    best = np.square(pca.inverse_transform(pca.transform(ROWS)) - ROWS).mean()
    assert float(values["squared_error"].mean()) == pytest.approx(best, rel=1e-3)


def test_the_error_is_of_each_input_and_targets_are_passed_on():
    _, values, state = first_values()
    coded = LINEAR.apply({"params": state.params}, ROWS)
    np.testing.assert_allclose(values["squared_error"], np.square(coded.outputs - ROWS).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(values["codes"], coded.codes)
    np.testing.assert_array_equal(values["targets"], np.arange(64))


def test_what_corruption_hid_is_to_be_given_back():
    metrics, clean, state = first_values(corruption=zeros)
    from_nothing = LINEAR.apply({"params": state.params}, jnp.zeros_like(ROWS)).outputs
    expected = np.square(from_nothing - ROWS).mean()
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(clean["loss"], first_values()[1]["loss"])
    _, corrupted, _ = first_values(corruption=zeros, corrupted_evaluation=True)
    assert float(corrupted["loss"].mean()) == pytest.approx(float(expected), rel=1e-5)


def test_what_is_augmented_is_to_be_given_back_as_it_is_then():
    metrics, _, state = first_values(augment=zeros, corruption=augment.noise(0.0))
    outputs = LINEAR.apply({"params": state.params}, jnp.zeros_like(ROWS)).outputs
    assert float(metrics["squared_error"]) == pytest.approx(float(jnp.square(outputs).mean()), rel=1e-5)


def test_sparsity_adds_the_mean_of_what_codes_are():
    metrics, values, _ = first_values(sparsity=0.5)
    activity = np.abs(values["codes"]).mean()
    assert float(metrics["activity"]) == pytest.approx(activity, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["squared_error"]) + 0.5 * activity, rel=1e-5)


def test_outputs_are_finished_and_predicted_in_the_shape_of_images():
    images = np.random.RandomState(0).rand(3, 8, 8, 1).astype(np.float32)
    model = Autoencoder(CNN(5, (4,), dense=()), Upsampler((8, 8, 1), (6, 4)), (8, 8, 1))
    loss = learners.losses.sigmoid_cross_entropy
    learner = learners.autoencoder(model, optax.sgd(0.1), loss=loss, finish=jax.nn.sigmoid)
    state = learner.init(KEY, {"inputs": images})
    values, coded = learner.evaluate(state, {"inputs": images}, KEY), learner.predict(state, images, KEY)
    assert coded.outputs.shape == images.shape
    assert coded.codes.shape == (3, 5)
    np.testing.assert_array_equal(values["reconstructions"], coded.outputs)
    p = np.asarray(coded.outputs, np.float64)
    by_hand = -(images * np.log(p) + (1 - images) * np.log(1 - p)).mean((1, 2, 3))
    np.testing.assert_allclose(values["loss"], by_hand, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Autoencoder(MLP((2,)), MLP((5,)), (6,)), "the decoder gives"),
        (Autoencoder(MLP((2,)), MLP((6,)), (7,)), "inputs must be"),
        (Autoencoder(MLP((2,)), Upsampler((6, 1, 1), (4, 4)), (6,)), "which 4 must divide"),
    ],
)
def test_what_does_not_fit_says_so(model, said):
    with pytest.raises(ConfigError, match=said):
        model.init(KEY, ROWS)
