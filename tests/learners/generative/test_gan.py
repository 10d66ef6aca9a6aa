"""Generative adversarial networks: losses by hand, gradients by finite differences, and distributions that are learned."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners, models
from foldax.errors import ConfigError, ExperimentError
from foldax.learners.generative.gan import (
    discriminator_loss,
    discriminator_losses,
    generate_images,
    generator_loss,
    generator_losses,
    gradient_penalty,
)

KEY = jax.random.key(0)
SHAPE = (2, 3, 1)
RANDOM = np.random.RandomState(0)
BATCH = {"inputs": RANDOM.randn(12, *SHAPE).astype(np.float32), "targets": np.arange(12) % 3}


def make_model(classes=3, **changes):
    options = dict(shape=SHAPE, latent_size=2, num_classes=classes, **changes)
    return learners.GAN(models.MLP((8, 6)), models.MLP((8, classes or 1), "tanh"), **options)


def make_learner(model=None, learning_rate=0.05, **options):
    return learners.gan(model or make_model(), optax.adam(learning_rate), optax.sgd(learning_rate), **options)


# -- losses ----------------------------------------------------------------------------------------


def test_losses_match_the_papers():
    real, fake = RANDOM.randn(7), RANDOM.randn(7)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = {
        "non_saturating": (-np.log(sigmoid(real)) - np.log(1 - sigmoid(fake)), -np.log(sigmoid(fake))),
        "wasserstein": (fake - real, -fake),
        "hinge": (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake), -fake),
    }
    for objective, (discriminator, generator) in expected.items():
        np.testing.assert_allclose(
            discriminator_losses(objective, jnp.asarray(real), jnp.asarray(fake)), discriminator, 1e-5
        )
        np.testing.assert_allclose(generator_losses(objective, jnp.asarray(fake)), generator, 1e-5)


def reference_loss(weights, real, fake, labels, epsilon, penalty_weight):
    """WGAN-GP loss of a network with one hidden tanh layer, in NumPy's float64."""
    first, bias, last, offset = weights

    def scores_and_slopes(x):
        hidden = np.tanh(x @ first + bias)
        selected = last[:, labels].T
        return (hidden * selected).sum(axis=1) + offset[labels], ((1 - hidden**2) * selected) @ first.T

    interpolates = epsilon * real + (1 - epsilon) * fake
    norms = np.linalg.norm(scores_and_slopes(interpolates)[1], axis=1)
    wasserstein = (scores_and_slopes(fake)[0] - scores_and_slopes(real)[0]).mean()
    return wasserstein + penalty_weight * ((norms - 1) ** 2).mean()


def test_the_gradient_of_the_penalised_loss_matches_finite_differences():
    model, penalty_weight = make_model(), 7.0
    params = model.discriminator.init(KEY, jnp.zeros((1, *SHAPE)))["params"]
    fake = RANDOM.randn(12, *SHAPE).astype(np.float32)
    batch = {"real": BATCH["inputs"], "fake": fake, "labels": jnp.asarray(BATCH["targets"])}
    loss = discriminator_loss(model, "wasserstein", penalty_weight)
    gradients, (_, metrics) = jax.jit(jax.grad(loss, has_aux=True))(params, {}, batch, KEY)

    epsilon = np.float64(jax.random.uniform(jax.random.split(KEY, 3)[1], (12, 1, 1, 1))).reshape(12, 1)
    rows = [np.float64(x).reshape(12, -1) for x in (BATCH["inputs"], fake)]
    layers = [params["Dense_0"], params["Dense_1"]]
    weights = [np.float64(layer[name]) for layer in layers for name in ("kernel", "bias")]
    inputs = (*rows, BATCH["targets"], epsilon, penalty_weight)
    assert float(metrics["discriminator_loss"]) == pytest.approx(reference_loss(weights, *inputs), rel=1e-5)
    ours = [gradients[layer][name] for layer in ("Dense_0", "Dense_1") for name in ("kernel", "bias")]
    for index, array in enumerate(weights):
        expected = np.zeros_like(array)
        for position in np.ndindex(array.shape):
            losses = []
            for step in (1e-6, -1e-6):
                moved = [other.copy() for other in weights]
                moved[index][position] += step
                losses.append(reference_loss(moved, *inputs))
            expected[position] = (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(ours[index], expected, rtol=1e-4, atol=1e-5)


def test_the_penalty_gradient_of_a_convolutional_discriminator_matches_finite_differences():
    model = models.CNN(1, (4,), dense=(8,), activation="tanh", pooling="mean")
    images = jnp.asarray(RANDOM.randn(6, 4, 4, 1), jnp.float32)
    params = model.init(KEY, images)["params"]

    @jax.jit
    def loss(params):
        return gradient_penalty(lambda x: model.apply({"params": params}, x)[:, 0], images).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    leaves, treedef = jax.tree.flatten(params)
    for index in range(4):
        keys = jax.random.split(jax.random.key(index), len(leaves))
        direction = treedef.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
        ahead, behind = (
            loss(jax.tree.map(lambda p, w, s=step: p + s * w, params, direction)) for step in (0.005, -0.005)
        )
        expected = float(ahead - behind) / 0.01
        pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
        assert sum(float((g * w).sum()) for g, w in pairs) == pytest.approx(expected, rel=0.02, abs=2e-3)


# -- updates ---------------------------------------------------------------------------------------


def reference_update(model, state, key, steps, penalty_weight):
    """An update with several discriminator steps in a Python loop."""
    keys = jax.random.split(key, 4)
    size, discriminator = 12 // steps, state.discriminator
    optimizer = optax.sgd(0.05)
    loss = jax.jit(jax.grad(discriminator_loss(model, "wasserstein", penalty_weight), has_aux=True))
    for index, step_key in enumerate(jax.random.split(keys[1], steps)):
        rows = slice(index * size, (index + 1) * size)
        part = {"real": BATCH["inputs"][rows], "labels": jnp.asarray(BATCH["targets"][rows], jnp.int32)}
        latent_key, loss_key = jax.random.split(step_key)
        part["fake"], _ = generate_images(model, {"params": state.generator.params}, part["labels"], latent_key)
        gradients = loss(discriminator.params, {}, part, loss_key)[0]
        updates, _ = optimizer.update(gradients, optimizer.init(discriminator.params))
        discriminator = discriminator._replace(params=optax.apply_updates(discriminator.params, updates))
    loss = jax.jit(jax.grad(generator_loss(model, "wasserstein", discriminator), has_aux=True))
    gradients = loss(state.generator.params, {}, part, keys[2])[0]
    updates, _ = optax.adam(0.05).update(gradients, state.generator.optimizer_state)
    return optax.apply_updates(state.generator.params, updates), discriminator.params


def test_several_discriminator_steps_in_one_update_match_a_loop():
    model = make_model()
    learner = make_learner(model, objective="wasserstein", gradient_penalty_weight=5.0, discriminator_steps=3)
    state = learner.init(KEY, BATCH)
    after, metrics = jax.jit(learner.update)(state, BATCH, jax.random.key(7))
    generator, discriminator = reference_update(model, state, jax.random.key(7), 3, 5.0)
    chex.assert_trees_all_close(after.generator.params, generator, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(after.discriminator.params, discriminator, rtol=1e-4, atol=1e-5)
    names = {"loss", "score_gap", "gradient_penalty", "discriminator_loss", "generator_loss", "gradient_norm"}
    assert metrics.keys() == names


def test_both_networks_use_the_class():
    model = make_model()
    learner = make_learner(model)
    state = learner.init(KEY, BATCH)
    images, latents = BATCH["inputs"][:3], jnp.ones((3, 2))
    outputs = model.discriminator.apply({"params": state.discriminator.params}, images)
    scores, _ = model.score({"params": state.discriminator.params}, images, jnp.array([2, 0, 1]), mutable=[])
    np.testing.assert_allclose(scores, [outputs[0, 2], outputs[1, 0], outputs[2, 1]])
    generated = learner.predict(state, {"inputs": jnp.array([0, 1, 1]), "latents": latents}, KEY)
    assert not np.allclose(generated[0], generated[1], atol=1e-3)
    np.testing.assert_allclose(generated[1], generated[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("non_saturating", {}),
        ("wasserstein", dict(gradient_penalty_weight=10.0, discriminator_steps=4)),
        ("hinge", {"spectral_norm": True}),
    ],
    ids=["non-saturating", "WGAN-GP", "hinge with spectral normalisation"],
)
def test_a_generator_learns_the_distribution_of_each_class(objective, options):
    """Two classes in the plane: normal around (1, -1) and (-2, 1), with standard deviations of 0.2."""
    targets = np.arange(256) % 2
    centers = np.array([[1.0, -1.0], [-2.0, 1.0]])
    inputs = (centers[targets] + 0.2 * np.random.RandomState(0).randn(256, 2)).astype(np.float32)
    discriminator = models.MLP((32, 32, 2), "leaky_relu")
    if options.pop("spectral_norm", False):
        discriminator = models.SpectralNorm(discriminator)
    model = learners.GAN(models.MLP((32, 32, 2)), discriminator, (2,), 2, 2)
    optimizers = (
        optax.adam(optax.cosine_decay_schedule(5e-3, 1500 * k), b1=0.0, b2=0.9)
        for k in (1, options.get("discriminator_steps", 1))
    )
    learner = learners.gan(model, *optimizers, objective=objective, ema_decay=0.99, samples_per_example=4, **options)
    batch = {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}

    @jax.jit
    def train(state):
        def update(state, step):
            rows = jax.random.permutation(jax.random.fold_in(KEY, step), 256)[:128]
            part = {name: leaf[rows] for name, leaf in batch.items()}
            state, metrics = learner.update(state, part, jax.random.fold_in(KEY, step))
            return state, metrics["loss"]

        return jax.lax.scan(update, state, jnp.arange(1500))

    state, losses = train(learner.init(KEY, batch))
    assert losses[-50:].mean() < 0.5 * losses[:5].mean()
    samples = learner.evaluate(state, batch, KEY).outputs["samples"]
    assert samples.shape == (256, 4, 2)
    for label in (0, 1):
        of_class = np.asarray(samples)[targets == label].reshape(-1, 2)
        np.testing.assert_allclose(of_class.mean(axis=0), centers[label], atol=0.5)
        assert 0.02 < of_class.std(axis=0).min() < of_class.std(axis=0).max() < 0.6


def test_evaluation_and_prediction_use_averaged_parameters_and_data_units():
    learner = make_learner(
        make_model(output_activation=jnp.tanh), ema_decay=0.9, samples_per_example=2, postprocess=lambda x: 8 * (x + 1)
    )
    state, _ = jax.jit(learner.update)(learner.init(KEY, BATCH), BATCH, KEY)
    untrained = state._replace(
        generator=state.generator._replace(params=jax.tree.map(jnp.zeros_like, state.generator.params))
    )
    for call in (learner.evaluate, lambda *rest: {"images": learner.predict(rest[0], BATCH["targets"], KEY)}):
        chex.assert_trees_all_equal(call(state, BATCH, KEY), call(untrained, BATCH, KEY))
    metrics, outputs = learner.evaluate(state, BATCH, KEY)
    assert metrics.keys() == {"loss"}
    assert outputs.keys() == {"samples", "targets"}
    assert 0 < float(outputs["samples"].min()) < float(outputs["samples"].max()) < 16


def test_batch_statistics_of_the_generator_change_in_its_own_step():
    model = make_model()._replace(generator=models.MLP((8, 6), normalization="batch"))
    learner = make_learner(model, discriminator_steps=2)
    state = learner.init(KEY, BATCH)
    after, _ = jax.jit(learner.update)(state, BATCH, jax.random.key(3))
    labels = jnp.asarray(BATCH["targets"][6:])
    latents = jax.random.normal(
        jax.random.split(jax.random.split(jax.random.split(jax.random.key(3), 4)[2])[0])[0], (6, 2)
    )
    layer = state.generator.params["Dense_0"]
    sums = np.asarray(model.generator_inputs(latents, labels)) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    running_mean = after.generator.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(running_mean, 0.1 * sums.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert learner.evaluate(after, BATCH, KEY).metrics["loss"].shape == (12,)


def test_an_unconditional_gan_needs_no_classes():
    learner = make_learner(make_model(None))
    batch = {"inputs": BATCH["inputs"]}
    state, _ = jax.jit(learner.update)(learner.init(KEY, batch), batch, KEY)
    metrics, outputs = learner.evaluate(state, batch, KEY)
    assert metrics.keys() == {"loss"}
    assert not outputs
    images = learner.predict(state, jnp.arange(5), KEY)
    np.testing.assert_array_equal(images, learner.predict(state, jnp.zeros(5, jnp.int32), KEY))
    assert images.shape == (5, *SHAPE)


def init_and_update(model=None, batch=BATCH, **options):
    learner = make_learner(model, **options)
    return learner.update(learner.init(KEY, batch), batch, KEY)


INVALID = [
    (lambda: make_learner(objective="wassertein"), "there is no 'wassertein'; did you mean 'wasserstein'"),
    (lambda: make_learner(discriminator_steps=0), "discriminator_steps: 0 must be 1 or more"),
    (lambda: make_learner(samples_per_example=-1), "samples_per_example: -1 must be 0 or more"),
    (lambda: make_learner(make_model()._replace(latent_size=0)), "latent_size: 0"),
    (lambda: init_and_update(discriminator_steps=5), "5 does not divide a batch of 12"),
    (lambda: init_and_update(make_model()._replace(shape=(2, 2, 1))), r"inputs must be .* of shape \(2, 2, 1\)"),
    (
        lambda: init_and_update(make_model()._replace(generator=models.MLP((5,)))),
        r"the generator outputs \[5\], images are \[2, 3, 1\]",
    ),
    (
        lambda: init_and_update(make_model()._replace(discriminator=models.MLP((1,)))),
        r"the discriminator must output \[24, 3\], got \[24, 1\]",
    ),
    (
        lambda: init_and_update(make_model()._replace(discriminator=models.MLP((8, 3), normalization="batch"))),
        "uses batch normalisation",
    ),
    (lambda: init_and_update(batch={"inputs": BATCH["inputs"]}), "'targets' is missing"),
    (
        lambda: make_learner().predict(make_learner().init(KEY, BATCH), BATCH["inputs"], KEY),
        r"predict takes class labels, int \[B\]",
    ),
    (
        lambda: make_learner().predict(
            make_learner().init(KEY, BATCH), {"inputs": jnp.arange(2), "latents": jnp.ones((2, 3))}, KEY
        ),
        r"latents must be \[2, 2\], got \[2, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), INVALID, ids=[message for _, message in INVALID])
def test_invalid_input_raises_a_helpful_error(call, message):
    with pytest.raises((ConfigError, ExperimentError), match=message):
        call()
