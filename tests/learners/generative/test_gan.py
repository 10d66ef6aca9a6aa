"""Generative adversarial networks: losses by hand, gradients by finite differences, and a game that is won."""

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
    energy_score,
    generated,
    generator_loss,
    generator_losses,
    penalty,
)

KEY = jax.random.key(0)
SHAPE = (2, 3, 1)
RANDOM = np.random.RandomState(0)
BATCH = {"inputs": RANDOM.randn(12, *SHAPE).astype(np.float32), "targets": np.arange(12) % 3}


def pair(classes=3, **changes):
    options = dict(shape=SHAPE, codes=2, num_classes=classes, **changes)
    return learners.GAN(models.MLP((8, 6)), models.MLP((8, classes or 1), "tanh"), **options)


def made(model=None, rate=0.05, **options):
    return learners.gan(model or pair(), optax.adam(rate), optax.sgd(rate), **options)


# -- losses ----------------------------------------------------------------------------------------


def test_losses_are_those_of_the_papers():
    real, fake = RANDOM.randn(7), RANDOM.randn(7)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = {
        "non_saturating": (-np.log(sigmoid(real)) - np.log(1 - sigmoid(fake)), -np.log(sigmoid(fake))),
        "wasserstein": (fake - real, -fake),
        "hinge": (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake), -fake),
    }
    for game, (discriminator, generator) in expected.items():
        np.testing.assert_allclose(
            discriminator_losses(game, jnp.asarray(real), jnp.asarray(fake)), discriminator, 1e-5
        )
        np.testing.assert_allclose(generator_losses(game, jnp.asarray(fake)), generator, 1e-5)


def test_the_energy_score_is_that_of_a_loop():
    draws, real = RANDOM.randn(4, 3, *SHAPE), RANDOM.randn(4, *SHAPE)

    def apart(one, other):
        return np.sqrt(np.mean((one - other) ** 2))

    expected = [
        np.mean([apart(draw, truth) for draw in some])
        - 0.5 * np.mean([apart(some[i], some[j]) for i in range(3) for j in range(3) if i != j])
        for some, truth in zip(draws, real, strict=True)
    ]
    np.testing.assert_allclose(energy_score(jnp.asarray(draws), jnp.asarray(real)), expected, rtol=1e-5)


def test_the_energy_score_is_least_for_the_true_distribution():
    real = jnp.asarray(RANDOM.randn(4000, 2))
    score = lambda scale, shift: float(energy_score(jnp.asarray(RANDOM.randn(4000, 2, 2)) * scale + shift, real).mean())  # noqa: E731
    true = score(1.0, 0.0)
    assert all(true < score(*other) - 0.01 for other in ((0.0, 0.0), (0.6, 0.0), (1.6, 0.0), (1.0, 0.5)))


def reference(weights, real, fake, labels, share, weight):
    """Wasserstein's loss with penalty of a network of one layer of tanh, in NumPy's float64."""
    first, bias, last, offset = weights

    def run(x):
        hidden = np.tanh(x @ first + bias)
        chosen = last[:, labels].T
        return (hidden * chosen).sum(axis=1) + offset[labels], ((1 - hidden**2) * chosen) @ first.T

    between = share * real + (1 - share) * fake
    slopes = np.linalg.norm(run(between)[1], axis=1)
    return (run(fake)[0] - run(real)[0]).mean() + weight * ((slopes - 1) ** 2).mean()


def test_the_gradient_of_the_penalised_loss_is_that_of_finite_differences():
    model, weight = pair(), 7.0
    params = model.discriminator.init(KEY, jnp.zeros((1, *SHAPE)))["params"]
    fake = RANDOM.randn(12, *SHAPE).astype(np.float32)
    batch = {"real": BATCH["inputs"], "generated": fake, "labels": jnp.asarray(BATCH["targets"])}
    loss = discriminator_loss(model, "wasserstein", weight)
    gradients, (_, metrics) = jax.jit(jax.grad(loss, has_aux=True))(params, {}, batch, KEY)

    share = np.float64(jax.random.uniform(jax.random.split(KEY, 3)[1], (12, 1, 1, 1))).reshape(12, 1)
    rows = [np.float64(x).reshape(12, -1) for x in (BATCH["inputs"], fake)]
    layers = [params["Dense_0"], params["Dense_1"]]
    weights = [np.float64(layer[name]) for layer in layers for name in ("kernel", "bias")]
    inputs = (*rows, BATCH["targets"], share, weight)
    assert float(metrics["discriminator_loss"]) == pytest.approx(reference(weights, *inputs), rel=1e-5)
    found = [gradients[layer][name] for layer in ("Dense_0", "Dense_1") for name in ("kernel", "bias")]
    for index, array in enumerate(weights):
        expected = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            either = []
            for step in (1e-6, -1e-6):
                moved = [other.copy() for other in weights]
                moved[index][place] += step
                either.append(reference(moved, *inputs))
            expected[place] = (either[0] - either[1]) / 2e-6
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)


def test_the_penalty_of_a_convolutional_critic_has_the_gradient_of_finite_differences():
    model = models.CNN(1, (4,), dense=(8,), activation="tanh", pooling="mean")
    images = jnp.asarray(RANDOM.randn(6, 4, 4, 1), jnp.float32)
    params = model.init(KEY, images)["params"]

    @jax.jit
    def loss(params):
        return penalty(lambda x: model.apply({"params": params}, x)[:, 0], images).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    leaves, treedef = jax.tree.flatten(params)
    for index in range(4):
        keys = jax.random.split(jax.random.key(index), len(leaves))
        way = treedef.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
        ahead, behind = (loss(jax.tree.map(lambda p, w, s=step: p + s * w, params, way)) for step in (0.005, -0.005))
        expected = float(ahead - behind) / 0.01
        found = sum(float((g * w).sum()) for g, w in zip(jax.tree.leaves(gradients), jax.tree.leaves(way), strict=True))
        assert found == pytest.approx(expected, rel=0.02, abs=2e-3)


# -- updates ---------------------------------------------------------------------------------------


def by_hand(model, state, key, steps, weight):
    """An update with several of the discriminator's steps, one after another."""
    keys = jax.random.split(key, 4)
    size, judge = 12 // steps, state.discriminator
    optimizer = optax.sgd(0.05)
    loss = jax.jit(jax.grad(discriminator_loss(model, "wasserstein", weight), has_aux=True))
    for index, turn in enumerate(jax.random.split(keys[1], steps)):
        rows = slice(index * size, (index + 1) * size)
        part = {"real": BATCH["inputs"][rows], "labels": jnp.asarray(BATCH["targets"][rows], jnp.int32)}
        first, second = jax.random.split(turn)
        part["generated"], _ = generated(model, state.generator.params, {}, part["labels"], first)
        gradients = loss(judge.params, {}, part, second)[0]
        updates, _ = optimizer.update(gradients, optimizer.init(judge.params))
        judge = judge._replace(params=optax.apply_updates(judge.params, updates))
    loss = jax.jit(jax.grad(generator_loss(model, "wasserstein", judge), has_aux=True))
    gradients = loss(state.generator.params, {}, part, keys[2])[0]
    updates, _ = optax.adam(0.05).update(gradients, state.generator.optimizer_state)
    return optax.apply_updates(state.generator.params, updates), judge.params


def test_several_steps_within_one_update_are_those_of_a_loop():
    model = pair()
    learner = made(model, game="wasserstein", gradient_penalty=5.0, discriminator_steps=3)
    state = learner.init(KEY, BATCH)
    after, metrics = jax.jit(learner.update)(state, BATCH, jax.random.key(7))
    generator, discriminator = by_hand(model, state, jax.random.key(7), 3, 5.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after.generator.params, generator)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after.discriminator.params, discriminator
    )
    names = {"loss", "margin", "gradient_penalty", "discriminator_loss", "generator_loss", "gradient_norm"}
    assert metrics.keys() == names


def test_both_are_told_the_class():
    model = pair()
    learner = made(model)
    state = learner.init(KEY, BATCH)
    images, codes = BATCH["inputs"][:3], jnp.ones((3, 2))
    said = model.discriminator.apply({"params": state.discriminator.params}, images)
    scores, _ = model.scores({"params": state.discriminator.params}, images, jnp.array([2, 0, 1]), mutable=[])
    np.testing.assert_allclose(scores, [said[0, 2], said[1, 0], said[2, 1]])
    shown = learner.predict(state, {"inputs": jnp.array([0, 1, 1]), "codes": codes}, KEY)
    assert not np.allclose(shown[0], shown[1], atol=1e-3)
    np.testing.assert_allclose(shown[1], shown[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("non_saturating", {}),
        ("wasserstein", dict(gradient_penalty=10.0, discriminator_steps=4)),
        ("hinge", {"spectral": True}),
    ],
    ids=["non-saturating", "WGAN-GP", "hinge with spectral normalisation"],
)
def test_a_generator_learns_the_distribution_of_each_class(game, options):
    """Two classes of two numbers: normal around (1, -1) and (-2, 1), with deviations of 0.2."""
    targets = np.arange(256) % 2
    centers = np.array([[1.0, -1.0], [-2.0, 1.0]])
    inputs = (centers[targets] + 0.2 * np.random.RandomState(0).randn(256, 2)).astype(np.float32)
    judge = models.MLP((32, 32, 2), "leaky_relu")
    judge = models.SpectralNorm(judge) if options.pop("spectral", False) else judge
    model = learners.GAN(models.MLP((32, 32, 2)), judge, (2,), 2, 2)
    optimizers = (
        optax.adam(optax.cosine_decay_schedule(5e-3, 1500 * k), b1=0.0, b2=0.9)
        for k in (1, options.get("discriminator_steps", 1))
    )
    learner = learners.gan(model, *optimizers, game=game, ema_decay=0.99, samples=4, **options)
    batch = {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}

    @jax.jit
    def train(state):
        def one(state, step):
            rows = jax.random.permutation(jax.random.fold_in(KEY, step), 256)[:128]
            part = {name: leaf[rows] for name, leaf in batch.items()}
            state, metrics = learner.update(state, part, jax.random.fold_in(KEY, step))
            return state, metrics["loss"]

        return jax.lax.scan(one, state, jnp.arange(1500))

    state, losses = train(learner.init(KEY, batch))
    assert losses[-50:].mean() < 0.5 * losses[:5].mean()
    values = learner.evaluate(state, batch, KEY)
    assert values["samples"].shape == (256, 4, 2)
    for label in (0, 1):
        drawn = np.asarray(values["samples"])[targets == label].reshape(-1, 2)
        np.testing.assert_allclose(drawn.mean(axis=0), centers[label], atol=0.5)
        assert 0.02 < drawn.std(axis=0).min() < drawn.std(axis=0).max() < 0.6


def test_evaluation_and_prediction_use_the_average_and_the_datas_units():
    learner = made(pair(bound=jnp.tanh), ema_decay=0.9, samples=2, finish=lambda x: 8 * (x + 1))
    state, _ = jax.jit(learner.update)(learner.init(KEY, BATCH), BATCH, KEY)
    nobody = state._replace(
        generator=state.generator._replace(params=jax.tree.map(jnp.zeros_like, state.generator.params))
    )
    for call in (learner.evaluate, lambda *rest: {"images": learner.predict(rest[0], BATCH["targets"], KEY)}):
        one, other = call(state, BATCH, KEY), call(nobody, BATCH, KEY)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    values = learner.evaluate(state, BATCH, KEY)
    assert values.keys() == {"loss", "samples", "targets"}
    assert 0 < float(values["samples"].min()) < float(values["samples"].max()) < 16


def test_statistics_of_the_generator_move_with_its_own_step():
    model = pair()._replace(generator=models.MLP((8, 6), normalization="batch"))
    learner = made(model, discriminator_steps=2)
    state = learner.init(KEY, BATCH)
    after, _ = jax.jit(learner.update)(state, BATCH, jax.random.key(3))
    labels = jnp.asarray(BATCH["targets"][6:])
    codes = jax.random.normal(
        jax.random.split(jax.random.split(jax.random.split(jax.random.key(3), 4)[2])[0])[0], (6, 2)
    )
    layer = state.generator.params["Dense_0"]
    sums = np.asarray(model.told(codes, labels)) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    moved = after.generator.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * sums.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert learner.evaluate(after, BATCH, KEY)["loss"].shape == (12,)


def test_nobody_needs_classes():
    learner = made(pair(None))
    batch = {"inputs": BATCH["inputs"]}
    state, _ = jax.jit(learner.update)(learner.init(KEY, batch), batch, KEY)
    assert learner.evaluate(state, batch, KEY).keys() == {"loss"}
    images = learner.predict(state, jnp.arange(5), KEY)
    np.testing.assert_array_equal(images, learner.predict(state, jnp.zeros(5, jnp.int32), KEY))
    assert images.shape == (5, *SHAPE)


def wrong(model=None, batch=BATCH, **options):
    learner = made(model, **options)
    return learner.update(learner.init(KEY, batch), batch, KEY)


BAD = [
    (lambda: made(game="wassertein"), "there is no 'wassertein'; did you mean 'wasserstein'"),
    (lambda: made(discriminator_steps=0), "discriminator_steps: 0 must be 1 or more"),
    (lambda: made(samples=-1), "samples: -1 must be 0 or more"),
    (lambda: made(pair()._replace(codes=0)), "codes: 0"),
    (lambda: wrong(discriminator_steps=5), "5 does not divide a batch of 12"),
    (lambda: wrong(pair()._replace(shape=(2, 2, 1))), r"inputs must be .* of shape \(2, 2, 1\)"),
    (
        lambda: wrong(pair()._replace(generator=models.MLP((5,)))),
        r"the generator gives \[5\] and images are \[2, 3, 1\]",
    ),
    (
        lambda: wrong(pair()._replace(discriminator=models.MLP((1,)))),
        r"the discriminator must give \[24, 3\], got \[24, 1\]",
    ),
    (
        lambda: wrong(pair()._replace(discriminator=models.MLP((8, 3), normalization="batch"))),
        "has batch normalisation",
    ),
    (lambda: wrong(batch={"inputs": BATCH["inputs"]}), "'targets' is missing"),
    (lambda: made().predict(made().init(KEY, BATCH), BATCH["inputs"], KEY), r"predict takes classes, integers \[B\]"),
    (
        lambda: made().predict(made().init(KEY, BATCH), {"inputs": jnp.arange(2), "codes": jnp.ones((2, 3))}, KEY),
        r"codes must be \[2, 2\], got \[2, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_says_what_is_wrong(call, said):
    with pytest.raises((ConfigError, ExperimentError), match=said):
        call()
