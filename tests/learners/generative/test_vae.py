"""Variational autoencoders: closed forms, and bounds on a likelihood that is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import integrate, stats

from foldax import learners
from foldax.errors import ConfigError
from foldax.learners import VAE
from foldax.learners.generative import likelihoods
from foldax.models import MLP, LocalAutoregressiveHead

KEY = jax.random.key(0)
NOISE = 0.5


def linear_data(count=256):
    """Rows of probabilistic PCA (Tipping & Bishop, 1999), whose exact log likelihood is a normal density."""
    rng = np.random.RandomState(0)
    weights = rng.randn(4, 2)
    rows = rng.randn(count, 2) @ weights.T + NOISE * rng.randn(count, 4)
    exact = stats.multivariate_normal(np.zeros(4), weights @ weights.T + NOISE**2 * np.eye(4)).logpdf(rows)
    return rows.astype(np.float32), weights, exact


def exact_posterior_vae():
    """A linear VAE with the data's own decoder and the best factorised posterior as its encoder."""
    rows, weights, exact = linear_data()
    inverse = np.linalg.inv(weights.T @ weights + NOISE**2 * np.eye(2))
    deviations = np.sqrt(1 / np.diag(np.linalg.inv(NOISE**2 * inverse)))  # of the best factorised posterior
    params = {
        "encoder": {
            "Dense_0": {
                "kernel": jnp.asarray(np.concatenate([weights @ inverse, np.zeros((4, 2))], axis=1), jnp.float32),
                "bias": jnp.asarray([0, 0, *np.log(deviations)], jnp.float32),
            }
        },
        "decoder": {"Dense_0": {"kernel": jnp.asarray(weights.T, jnp.float32), "bias": jnp.zeros(4)}},
    }
    model = VAE(MLP((4,)), MLP((4,)), likelihoods.gaussian(NOISE))
    return model, params, rows, exact


@pytest.fixture(scope="module")
def bounds():
    model, params, rows, exact = exact_posterior_vae()
    learner = learners.vae(model, optax.sgd(0.0), importance_samples=500)
    state = learner.init(KEY, {"inputs": rows})._replace(params=params)
    return jax.jit(learner.evaluate)(state, {"inputs": rows}, KEY).metrics, exact


def test_the_elbo_is_below_the_exact_likelihood_and_importance_weighting_closes_the_gap(bounds):
    metrics, exact = bounds
    elbo, iwae = float(metrics["elbo"].mean()), float(metrics["iwae_bound"].mean())
    assert elbo < iwae < exact.mean() + 0.01
    assert iwae == pytest.approx(exact.mean(), abs=0.02)


def test_bits_per_dimension_convert_the_bounds(bounds):
    metrics, _ = bounds
    np.testing.assert_allclose(metrics["bits_per_dimension"], -metrics["elbo"] / (4 * np.log(2)), rtol=1e-5)
    iwae_bits = -metrics["iwae_bound"] / (4 * np.log(2))
    np.testing.assert_allclose(metrics["iwae_bits_per_dimension"], iwae_bits, rtol=1e-5)


def test_grey_values_have_no_bits_under_a_bernoulli_likelihood():
    learner = learners.vae(VAE(MLP((2,)), MLP((2,)), likelihoods.bernoulli()), optax.sgd(0.1), importance_samples=2)
    batch = {"inputs": jnp.array([[0.0, 1.0], [0.0, 0.5]])}
    state = learner.init(KEY, batch)
    metrics = learner.evaluate(state, batch, KEY).metrics
    for name, bound in (("bits_per_dimension", "elbo"), ("iwae_bits_per_dimension", "iwae_bound")):
        assert metrics[name].count.tolist() == [1, 0]
        np.testing.assert_allclose(metrics[name].total, [-metrics[bound][0] / (2 * np.log(2)), 0], rtol=1e-6)
    assert "bits_per_dimension" not in learner.update(state, batch, KEY)[1]


def test_training_reaches_the_exact_likelihood_of_linear_data():
    _, _, rows, exact = exact_posterior_vae()
    encoder = MLP(
        (4,), kernel_init=nn.initializers.normal(0.01)
    )  # its outputs are exponentiated: start with deviations near 1
    model = VAE(encoder, MLP((4,)), likelihoods.gaussian(NOISE))
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(0.02, 1500)))
    learner = learners.vae(model, optimizer, importance_samples=500)
    state, batch = learner.init(KEY, {"inputs": rows}), {"inputs": jnp.asarray(rows)}

    @jax.jit
    def train(state):
        def update(step, state):
            return learner.update(state, batch, jax.random.fold_in(KEY, step))[0]

        return jax.lax.fori_loop(0, 1500, update, state)

    metrics = learner.evaluate(train(state), batch, KEY).metrics
    assert float(metrics["iwae_bound"].mean()) == pytest.approx(exact.mean(), abs=0.1)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-0.4, 2.0)])
def test_the_kl_divergence_equals_its_integral(mean, std):
    encoder = MLP((2,))
    model = VAE(encoder, MLP((1,)), likelihoods.gaussian(1.0))
    params = model.init({"params": KEY, "dropout": KEY}, jnp.zeros((1, 1)))["params"]
    params["encoder"]["Dense_0"] = {"kernel": jnp.zeros((1, 2)), "bias": jnp.asarray([mean, np.log(std)], jnp.float32)}
    terms = model.apply({"params": params}, jnp.zeros((1, 1)), rngs={"dropout": KEY})
    posterior, prior = stats.norm(mean, std), stats.norm()

    def density(z):
        return posterior.pdf(z) * (posterior.logpdf(z) - prior.logpdf(z))

    expected, _ = integrate.quad(density, mean - 12 * std, mean + 12 * std)
    assert float(terms.kl[0, 0]) == pytest.approx(expected, abs=1e-5)


def test_log_probs_match_scipy():
    rng = np.random.RandomState(0)
    continuous, levels, bits = rng.randn(3, 5), rng.randint(0, 4, (3, 5)), rng.randint(0, 2, (3, 5))
    outputs = rng.randn(3, 5, 4)
    probabilities = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    cases = {
        "bernoulli": (likelihoods.bernoulli(), 1, bits, stats.bernoulli(1 / (1 + np.exp(-outputs[..., 0]))).logpmf),
        "gaussian": (likelihoods.gaussian(0.7), 1, continuous, stats.norm(outputs[..., 0], 0.7).logpdf),
        "gaussian with learned std": (
            likelihoods.gaussian(),
            2,
            continuous,
            stats.norm(outputs[..., 0], np.exp(outputs[..., 1])).logpdf,
        ),
    }
    for name, (likelihood, num_parameters, inputs, logpdf) in cases.items():
        assert likelihood.num_parameters == num_parameters
        ours = likelihood.log_prob(jnp.asarray(outputs[..., :num_parameters]), jnp.asarray(inputs))
        np.testing.assert_allclose(ours, logpdf(inputs).sum(-1), rtol=1e-5, err_msg=name)
    ours = likelihoods.categorical(4).log_prob(jnp.asarray(outputs), jnp.asarray(levels))
    expected = np.log(np.take_along_axis(probabilities, levels[..., None], -1)).sum((1, 2))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    mean = likelihoods.categorical(4).mean(jnp.asarray(outputs))
    np.testing.assert_allclose(mean, probabilities @ np.arange(4), rtol=1e-5)


@pytest.mark.parametrize("num_mixtures", [1, 3])
def test_discretized_logistic_matches_scipy(num_mixtures):
    levels, likelihood = 17, likelihoods.discretized_logistic(17, num_mixtures)
    outputs = np.random.RandomState(0).randn(5, 4, likelihood.num_parameters) * 0.8
    means, log_scales = outputs[..., :num_mixtures], outputs[..., num_mixtures : 2 * num_mixtures]
    logits = outputs[..., 2 * num_mixtures :] if num_mixtures > 1 else np.zeros_like(means)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    edges = np.concatenate([[-np.inf], np.arange(levels - 1) + 0.5, [np.inf]])[:, None, None, None]
    below = (stats.logistic(8 + 8 * means, 8 * np.exp(log_scales)).cdf(edges) * weights).sum(-1)
    expected = np.diff(below, axis=0)  # [levels, 5, 4]

    def log_prob(level):
        return likelihood.log_prob(jnp.asarray(outputs).reshape(20, 1, -1), jnp.full((20, 1), level))

    ours = np.exp(jax.lax.map(log_prob, jnp.arange(levels, dtype=jnp.float32))).reshape(expected.shape)
    np.testing.assert_allclose(ours.sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-6)
    mean = likelihood.mean(jnp.asarray(outputs))
    np.testing.assert_allclose(mean, np.einsum("lbn,l->bn", expected, np.arange(levels)), rtol=1e-4)


def test_a_discretized_logistic_of_256_levels_can_be_sure_of_one():
    parameters = jnp.array([[[0.0, -20.0]]])  # the mean is between the levels 127 and 128
    parameters = parameters.at[..., 0].set(0.5 / 127.5)
    log_prob = likelihoods.discretized_logistic(256).log_prob(parameters, jnp.array([[128.0]]))
    # The authors' bound on the log scale is -7: tanh(0.5 / scale / 2) with the scale in levels.
    np.testing.assert_allclose(np.exp(log_prob), np.tanh(0.25 / (127.5 * np.exp(-7))), rtol=1e-4)
    assert np.exp(log_prob) > 0.97


def test_a_discretized_logistic_far_from_the_input_still_has_a_gradient():
    likelihood = likelihoods.discretized_logistic(17)
    outputs = jnp.asarray([[[-20.0, -6.0]], [[20.0, -9.0]], [[0.0, 9.0]]])
    gradient = jax.grad(lambda outputs: likelihood.log_prob(outputs, jnp.full((3, 1), 9.0)).sum())(outputs)
    assert np.isfinite(gradient).all()
    assert float(gradient[0, 0, 0]) > 0 > float(gradient[1, 0, 0])


LIKELIHOODS = [likelihoods.bernoulli(), likelihoods.gaussian(0.5), likelihoods.categorical(3)]


@pytest.mark.parametrize(
    "likelihood", [*LIKELIHOODS, likelihoods.discretized_logistic(5), likelihoods.discretized_logistic(5, 2)]
)
def test_samples_average_to_the_mean(likelihood):
    outputs = jnp.resize(jnp.asarray([0.3, -1.0, 0.6]), likelihood.num_parameters)
    outputs = jnp.broadcast_to(outputs, (4000, 1, likelihood.num_parameters))
    samples = likelihood.sample(KEY, outputs)
    assert float(samples.mean()) == pytest.approx(float(likelihood.mean(outputs)[0, 0]), abs=0.05)


def test_free_nats_bound_the_kl_in_the_loss_from_below():
    model, params, rows, _ = exact_posterior_vae()
    losses = {}
    for free in (0.0, 10.0):
        learner = learners.vae(model, optax.sgd(0.0), free_nats=free)
        state = learner.init(KEY, {"inputs": rows})._replace(params=params)
        _, losses[free] = learner.update(state, {"inputs": rows}, KEY)
    difference = float(losses[10.0]["loss"] - losses[0.0]["loss"])
    assert difference == pytest.approx(2 * 10.0 - float(losses[0.0]["kl"]), rel=1e-4)
    assert float(losses[10.0]["elbo"]) == pytest.approx(float(losses[0.0]["elbo"]), rel=1e-5)


def test_a_conditional_vae_uses_the_class():
    rows, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    model = VAE(MLP((8, 2)), MLP((8, 3)), likelihoods.bernoulli(), num_classes=3)
    learner = learners.vae(model, optax.adam(0.05))
    batch = {"inputs": rows, "targets": labels}
    state = learner.init(KEY, batch)
    state = jax.lax.fori_loop(0, 300, lambda i, s: learner.update(s, batch, jax.random.fold_in(KEY, i))[0], state)
    np.testing.assert_allclose(learner.predict(state, batch, KEY), rows, atol=0.1)
    with pytest.raises(ConfigError, match="needs labels"):
        model.init({"params": KEY, "dropout": KEY}, rows)
    with pytest.raises(ConfigError, match='a conditional VAE takes {"inputs", "targets"}'):
        learner.predict(state, rows, KEY)


def autoregressive_vae():
    """Binary images 2 x 2 x 1, each pixel of which depends on the preceding pixels and on one latent."""
    head = LocalAutoregressiveHead(1, (2, 2, 1), context_radius=1, width=3, activation="tanh")
    model = VAE(MLP((2,)), MLP((12,)), likelihoods.bernoulli(), neighbours=head)
    params = model.init({"params": KEY, "dropout": KEY}, jnp.zeros((1, 2, 2, 1)))["params"]
    return model, {"params": jax.tree.map(lambda leaf: 3 * leaf, params)}


def test_probabilities_of_all_images_given_a_latent_sum_to_one_and_samples_follow_them():
    model, variables = autoregressive_vae()
    images = jnp.asarray(list(np.ndindex(2, 2, 2, 2)), jnp.float32)
    decoded = model.apply(variables, jnp.ones((16, 1)), method=VAE.decode)
    parameters = model.apply(variables, decoded, images, method=VAE.likelihood_parameters)
    probabilities = np.exp(model.likelihood.log_prob(parameters, images))
    assert probabilities.sum() == pytest.approx(1.0, rel=1e-5)
    samples = learners.decode_images(model, variables, jnp.ones((4000, 1)), (2, 2, 1), key=KEY)
    counts = np.bincount(np.asarray(samples).reshape(-1, 4).astype(int) @ [8, 4, 2, 1], minlength=16)
    expected = probabilities.astype(np.float64)
    assert stats.chisquare(counts, 4000 * expected / expected.sum()).pvalue > 1e-3


def test_samples_per_example_are_of_the_class_of_the_example():
    rows, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    model = VAE(MLP((2,)), MLP((3,)), likelihoods.bernoulli(), num_classes=3)
    learner = learners.vae(model, optax.sgd(0.0), samples_per_example=5)
    state = learner.init(KEY, {"inputs": rows, "targets": labels})
    kernel = jnp.concatenate([jnp.zeros((1, 3)), 60 * jnp.eye(3) - 30])  # the class alone decides
    state = state._replace(params={**state.params, "decoder": {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(3)}}})
    outputs = jax.jit(learner.evaluate)(state, {"inputs": rows, "targets": labels}, KEY).outputs
    np.testing.assert_array_equal(outputs["samples"], np.broadcast_to(rows[:, None], (4, 5, 3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: likelihoods.gaussian(0.0), "above 0"),
        (lambda: likelihoods.categorical(1), "at least 2"),
        (lambda: likelihoods.discretized_logistic(17, 0), "0 mixtures 1 or more"),
        (lambda: learners.vae(MLP((1,)), None, importance_samples=-1), "0 or more"),
        (lambda: learners.vae(MLP((1,)), None, samples_per_example=-1), "0 or more"),
    ],
)
def test_invalid_settings_raise_a_config_error(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
