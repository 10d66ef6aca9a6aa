"""Autoencoders against principal components, their corruption and augmentation, and the cost of sparsity."""

import chex
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


def erase(key, batch):
    return {**batch, "inputs": jnp.zeros_like(batch["inputs"])}


def first_update_and_evaluation(**options):
    """The metrics of a first update, the evaluation before it, and the state before it."""
    learner = learners.autoencoder(LINEAR, optax.sgd(0.1), **options)
    state, batch = learner.init(KEY, {"inputs": ROWS}), {"inputs": ROWS, "targets": np.arange(64)}
    return learner.update(state, batch, KEY)[1], learner.evaluate(state, batch, KEY), state


def test_a_linear_autoencoder_finds_the_principal_components():
    learner = learners.autoencoder(LINEAR, optax.adam(optax.cosine_decay_schedule(0.05, 800)))
    state, batch = learner.init(KEY, {"inputs": ROWS}), {"inputs": jnp.asarray(ROWS)}
    train = jax.jit(lambda state: jax.lax.fori_loop(0, 800, lambda i, s: learner.update(s, batch, KEY)[0], state))
    errors = learner.evaluate(train(state), batch, KEY).metrics["squared_error"]
    pca = PCA(2).fit(ROWS)
    best = np.square(pca.inverse_transform(pca.transform(ROWS)) - ROWS).mean()
    assert float(errors.mean()) == pytest.approx(best, rel=1e-3)


def test_evaluation_reports_the_error_of_each_input_and_returns_latents_and_targets():
    _, result, state = first_update_and_evaluation()
    output = LINEAR.apply({"params": state.params}, ROWS)
    expected = np.square(output.reconstruction - ROWS).mean(1)
    np.testing.assert_allclose(result.metrics["squared_error"], expected, rtol=1e-5)
    np.testing.assert_array_equal(result.outputs["latents"], output.latents)
    np.testing.assert_array_equal(result.outputs["targets"], np.arange(64))


def test_corrupted_inputs_are_compared_to_the_clean_ones():
    metrics, clean, state = first_update_and_evaluation(corruption=erase)
    reconstruction = LINEAR.apply({"params": state.params}, jnp.zeros_like(ROWS)).reconstruction
    expected = np.square(reconstruction - ROWS).mean()
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(clean.metrics["loss"], first_update_and_evaluation()[1].metrics["loss"])
    _, corrupted, _ = first_update_and_evaluation(corruption=erase, corrupt_evaluation=True)
    assert float(corrupted.metrics["loss"].mean()) == pytest.approx(float(expected), rel=1e-5)


def test_augmented_inputs_are_their_own_targets():
    metrics, _, state = first_update_and_evaluation(augment=erase, corruption=augment.gaussian_noise(0.0))
    reconstruction = LINEAR.apply({"params": state.params}, jnp.zeros_like(ROWS)).reconstruction
    assert float(metrics["squared_error"]) == pytest.approx(float(jnp.square(reconstruction).mean()), rel=1e-5)


def test_sparsity_adds_the_mean_absolute_latent_to_the_loss():
    metrics, result, _ = first_update_and_evaluation(sparsity_coefficient=0.5)
    latent_l1 = np.abs(result.outputs["latents"]).mean()
    assert float(metrics["latent_l1"]) == pytest.approx(latent_l1, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["squared_error"]) + 0.5 * latent_l1, rel=1e-5)


def test_reconstructions_are_postprocessed_and_have_the_shape_of_images():
    images = np.random.RandomState(0).rand(3, 8, 8, 1).astype(np.float32)
    model = Autoencoder(CNN(5, (4,), dense=()), Upsampler((8, 8, 1), (6, 4)), (8, 8, 1))
    loss = learners.losses.sigmoid_cross_entropy
    learner = learners.autoencoder(model, optax.sgd(0.1), loss=loss, postprocess=jax.nn.sigmoid)
    state = learner.init(KEY, {"inputs": images})
    result, output = learner.evaluate(state, {"inputs": images}, KEY), learner.predict(state, images, KEY)
    chex.assert_equal_shape([output.reconstruction, images])
    chex.assert_shape(output.latents, (3, 5))
    np.testing.assert_array_equal(result.outputs["reconstructions"], output.reconstruction)
    p = np.asarray(output.reconstruction, np.float64)
    by_hand = -(images * np.log(p) + (1 - images) * np.log(1 - p)).mean((1, 2, 3))
    np.testing.assert_allclose(result.metrics["loss"], by_hand, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Autoencoder(MLP((2,)), MLP((5,)), (6,)), "the decoder outputs"),
        (Autoencoder(MLP((2,)), MLP((6,)), (7,)), "inputs must be"),
        (Autoencoder(MLP((2,)), Upsampler((6, 1, 1), (4, 4)), (6,)), "divisible by 4"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(model, message):
    with pytest.raises(ConfigError, match=message):
        model.init(KEY, ROWS)
