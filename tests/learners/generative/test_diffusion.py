"""Diffusion: closed forms of noise schedules, samplers with exact denoisers, and a bound on a known likelihood."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foldax import augment, learners, models
from foldax.errors import ConfigError, ExperimentError
from foldax.learners.generative import noise_schedule
from foldax.models.networks.denoisers import embed_conditioning

KEY = jax.random.key(0)
SCHEDULES = {"cosine": noise_schedule.cosine, "linear": noise_schedule.linear, "flow": noise_schedule.flow}
MEAN, STD = 0.3, 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_noise_schedule_goes_from_data_to_noise(name):
    schedule = SCHEDULES[name](100)
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    assert (np.diff(schedule.alpha) < 0).all()
    assert (np.diff(schedule.sigma) >= 0).all()
    assert schedule.alpha[-1] < 0.01
    assert schedule.sigma[-1] == pytest.approx(1, abs=1e-4)
    if name != "flow":
        np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, atol=1e-6)


def test_the_linear_schedule_matches_the_paper():
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(noise_schedule.linear().alpha[1:] ** 2, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["noise", "v", "flow", "x0"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_predictions_determine_data_and_noise(name, prediction_type):
    schedule = SCHEDULES[name](20)
    x, noise = jax.random.normal(KEY, (2, 8, 3))
    times = jnp.array([1, 2, 5, 8, 10, 13, 16, 18])
    noisy = noise_schedule.add_noise(schedule, x, noise, times)
    outputs = noise_schedule.prediction_target(schedule, prediction_type, x, noise, times)
    estimates = noise_schedule.predict_x0_and_noise(schedule, prediction_type, noisy, outputs, times)
    chex.assert_trees_all_close(estimates, (x, noise), rtol=1e-7, atol=2e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@given(times=st.tuples(st.integers(1, 29), st.integers(1, 29)).filter(lambda pair: pair[0] != pair[1]))
@settings(max_examples=20, deadline=None)
def test_the_posterior_follows_bayes_rule(name, times):
    """The posterior by hand: q(x_s | x_0) is the prior and q(x_t | x_s) the likelihood, both normal."""
    earlier, time = sorted(times)
    schedule = SCHEDULES[name](30)
    (alpha, sigma), (alpha_s, sigma_s) = ((float(schedule.alpha[t]), float(schedule.sigma[t])) for t in (time, earlier))
    x, noisy = 0.7, -0.4
    alpha_ts, variance_ts = alpha / alpha_s, sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    precision = 1 / sigma_s**2 + alpha_ts**2 / variance_ts
    mean = (alpha_s * x / sigma_s**2 + alpha_ts * noisy / variance_ts) / precision
    arrays = jnp.full((1, 1), x), jnp.full((1, 1), noisy), jnp.array([time]), jnp.array([earlier])
    ours = noise_schedule.posterior(schedule, *arrays)
    np.testing.assert_allclose([ours[0][0, 0], ours[1][0, 0]], [mean, precision**-0.5], rtol=2e-3)


def test_the_posterior_of_adjacent_times_matches_the_paper():
    """Equations 6 and 7 of Ho et al. (2020), with the paper's betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas = np.cumprod(1 - betas)
    t = 400  # the paper's, from 1 on
    beta, now, before = betas[t - 1], alphas[t - 1], alphas[t - 2]
    mean = before**0.5 * beta / (1 - now) * 0.7 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * -0.4
    std = ((1 - before) / (1 - now) * beta) ** 0.5
    x, noisy = jnp.full((1, 1), 0.7), jnp.full((1, 1), -0.4)
    ours = noise_schedule.posterior(noise_schedule.linear(), x, noisy, jnp.array([t]), jnp.array([t - 1]))
    np.testing.assert_allclose([ours[0][0, 0], ours[1][0, 0]], [mean, std], rtol=1e-3)


def exact_denoiser(schedule, prediction_type):
    """The optimal network for normal data with MEAN and STD."""

    def denoise(noisy, times):
        alpha, sigma = noise_schedule.coefficients_at(schedule, times, noisy.ndim)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x = MEAN + gain * (noisy - alpha * MEAN)
        epsilon = (noisy - alpha * x) / sigma
        return noise_schedule.prediction_target(schedule, prediction_type, x, epsilon, times)

    return denoise


def ddpm(schedule, key, start):
    """The sampler of Ho et al. (2020), as a plain loop over all steps."""
    noisy, denoise = start, exact_denoiser(schedule, "noise")
    for t in range(schedule.steps, 0, -1):
        times = jnp.full(len(noisy), t)
        x, _ = noise_schedule.predict_x0_and_noise(schedule, "noise", noisy, denoise(noisy, times), times)
        mean, std = noise_schedule.posterior(schedule, x, noisy, times, times - 1)
        noisy = mean + std * jax.random.normal(jax.random.fold_in(key, t), noisy.shape)
    return noisy


def test_ddim_with_all_steps_and_eta_one_matches_ddpm_in_distribution():
    schedule = noise_schedule.cosine(50)
    start, other = jax.random.normal(KEY, (2, 4000, 1))
    ours = noise_schedule.sample_ddim(
        exact_denoiser(schedule, "noise"), schedule, "noise", KEY, start, num_inference_steps=50, eta=1.0
    )
    reference = jax.jit(lambda start: ddpm(schedule, jax.random.key(1), start))(other)
    assert stats.ks_2samp(np.ravel(ours), np.ravel(reference)).pvalue > 0.01
    assert stats.kstest((np.ravel(ours) - MEAN) / np.std(ours), "norm").pvalue > 0.01
    assert float(ours.mean()) == pytest.approx(MEAN, abs=0.03)


@pytest.mark.parametrize(("name", "prediction_type"), [("cosine", "v"), ("flow", "flow")])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_an_exact_denoiser_follow_the_data(name, prediction_type, eta):
    schedule, start = SCHEDULES[name](200), jax.random.normal(KEY, (4000, 1))
    samples = noise_schedule.sample_ddim(
        exact_denoiser(schedule, prediction_type),
        schedule,
        prediction_type,
        KEY,
        start,
        num_inference_steps=100,
        eta=eta,
    )
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(samples.std()) == pytest.approx(STD, rel=0.06)


def test_deterministic_sampling_of_a_flow_is_eulers_method():
    schedule, start = noise_schedule.flow(8), jax.random.normal(KEY, (5, 3))
    denoise = exact_denoiser(schedule, "flow")
    x = start
    for t in range(8, 0, -1):
        x = x - denoise(x, jnp.full(5, t)) / 8
    np.testing.assert_allclose(
        noise_schedule.sample_ddim(denoise, schedule, "flow", KEY, start, num_inference_steps=8), x, atol=1e-5
    )


class Normal(nn.Module):
    """The optimal network for independent normal pixels; it has nothing to learn."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, x, times, labels=None, *, train=False):
        self.param("unused", nn.initializers.zeros, (1,))
        schedule = noise_schedule.cosine(1000)
        return exact_denoiser(schedule, "v")(x, jnp.int32(jnp.round(times * 1000)))


def test_the_bound_is_close_to_a_known_likelihood():
    """Levels of a discretised normal distribution, whose entropy is exact and a little below the bound."""
    num_levels, rng = 17, np.random.RandomState(0)
    edges = (np.arange(num_levels + 1) - 8.5) / 8
    edges[[0, -1]] = -np.inf, np.inf
    probabilities = np.diff(stats.norm(MEAN, STD).cdf(edges))
    inputs = rng.choice(num_levels, (64, 32), p=probabilities).astype(np.int32)
    learner = learners.diffusion(
        Normal(), optax.sgd(0.0), shape=(32,), noise_schedule=noise_schedule.cosine(1000), num_levels=num_levels,
        num_evaluation_times=1000, preprocess=lambda x: x / 8 - 1.0,
    )  # fmt: skip
    batch = {"inputs": jnp.asarray(inputs)}
    metrics = jax.jit(learner.evaluate)(learner.init(KEY, batch), batch, KEY).metrics
    exact = -np.log2(probabilities[inputs]).mean()
    assert exact - 0.02 < float(metrics["bits_per_dimension"].mean()) < exact + 0.35


def make_learner(num_classes=3, **options):
    model = models.DiT(1, 2, 8, 1, 2, num_classes=num_classes)
    settings = dict(shape=(4, 4, 1), noise_schedule=noise_schedule.cosine(10), sampler=learners.SamplerSettings(3))
    return learners.diffusion(model, optax.adam(1e-2), **{**settings, **options})


BATCH = {"inputs": np.zeros((6, 4, 4, 1), np.float32), "targets": np.arange(6) % 3}


def test_samples_have_the_shape_of_the_data_and_depend_on_class_and_guidance():
    learner = make_learner(samples_per_example=2)
    state = learner.init(KEY, BATCH)
    state = state._replace(params=jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), state.params))
    metrics, outputs = jax.jit(learner.evaluate)(state, BATCH, KEY)
    assert outputs["samples"].shape == (6, 2, 4, 4, 1)
    assert metrics["loss"].shape == (6,)
    ones, twos = (jax.jit(learner.predict)(state, jnp.full(4, label), KEY) for label in (1, 2))
    assert ones.shape == (4, 4, 4, 1)
    assert not np.allclose(ones, twos, atol=1e-3)
    scale_one = make_learner(sampler=learners.SamplerSettings(3, guidance_scale=1.0)).predict(
        state, jnp.full(4, 1), KEY
    )
    np.testing.assert_allclose(scale_one, ones, atol=1e-5)
    without_class = make_learner(sampler=learners.SamplerSettings(3, guidance_scale=0.0))
    same = [without_class.predict(state, jnp.full(4, label), KEY) for label in (1, 2)]
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)


@pytest.mark.parametrize(("rate", "learned"), [(0.0, [True, True, False, False]), (1.0, [False, False, False, True])])
def test_class_dropout_replaces_labels_by_the_null_label(rate, learned):
    learner, batch = make_learner(class_dropout_prob=rate), {**BATCH, "targets": np.arange(6) % 2}
    update, state = jax.jit(learner.update), learner.init(KEY, batch)
    first = state
    for _ in range(3):  # the first steps only open the gates, which start at 0
        state, _ = update(state, batch, KEY)
    before, after = (state.params["classes"]["embedding"] for state in (first, state))
    np.testing.assert_array_equal((before != after).any(axis=1), learned)


def test_a_conditional_model_refuses_soft_targets():
    learner = make_learner(augment=augment.mixup(0.4, num_classes=3))
    with pytest.raises(ExperimentError, match=r"labels must be int \[B\], got float32\[6, 3\]"):
        learner.update(learner.init(KEY, BATCH), BATCH, KEY)


@pytest.mark.parametrize(
    "build",
    [lambda n: models.UNet(1, (8, 8), num_heads=2, num_classes=n), lambda n: models.DiT(2, 2, 8, 2, 2, num_classes=n)],
)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_denoisers_output_images_and_depend_on_time_and_class(build, num_classes):
    model, x = build(num_classes), jax.random.normal(KEY, (2, 4, 4, 1))
    labels = None if num_classes is None else jnp.array([0, 3])
    variables = jax.jit(model.init)(KEY, x, jnp.zeros(2), labels)
    program = jax.jit(model.apply)
    variables = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(KEY, w.shape), variables)

    def apply(times, labels):
        return np.asarray(program(variables, x, times, labels))

    first = apply(jnp.zeros(2), labels)
    assert first.shape == (2, 4, 4, model.features)
    assert not np.allclose(first, apply(jnp.ones(2), labels), atol=1e-3)
    if num_classes is not None:
        assert not np.allclose(first, apply(jnp.zeros(2), jnp.array([1, 3])), atol=1e-3)


def test_scanned_blocks_have_as_many_parameters():
    x, count = jnp.zeros((1, 4, 4, 1)), {}
    for scan in (False, True):
        params = models.DiT(1, 2, 8, 3, 2, scan_layers=scan).init(KEY, x, jnp.zeros(1))["params"]
        count[scan] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count[False] == count[True]


def test_invalid_input_raises_a_helpful_error():
    with pytest.raises(ConfigError, match="guidance_scale: the model has no num_classes"):
        make_learner(None, sampler=learners.SamplerSettings(3, guidance_scale=2.0))
    with pytest.raises(ConfigError, match="num_inference_steps: 11 must be from 1 to the noise schedule's 10 steps"):
        make_learner(sampler=learners.SamplerSettings(11))
    with pytest.raises(ConfigError, match="'epsilon' is none of 'noise', 'x0', 'v' and 'flow'"):
        make_learner(prediction_type="epsilon")
    with pytest.raises(ConfigError, match="does not determine the data"):
        make_learner(noise_schedule=noise_schedule.flow(10), prediction_type="noise")
    with pytest.raises(ConfigError, match="num_levels: 1 must be 2 or more"):
        make_learner(num_levels=1)
    with pytest.raises(ConfigError, match="steps: 0 must be 1 or more"):
        noise_schedule.cosine(0)
    learner = make_learner()
    with pytest.raises(ExperimentError, match=r"of shape \(4, 4, 1\), got \[1, 8, 8, 1\]"):
        learner.init(KEY, {**BATCH, "inputs": np.zeros((6, 8, 8, 1))})
    with pytest.raises(ExperimentError, match="'targets' is missing"):
        learner.init(KEY, {"inputs": BATCH["inputs"]})
    with pytest.raises(ExperimentError, match=r"predict: labels must be int \[B\], got float32\[2, 4\]"):
        learner.predict(learner.init(KEY, BATCH), jnp.zeros((2, 4)), KEY)
    with pytest.raises(ConfigError, match="takes labels if and only if it has num_classes"):
        embed_conditioning(jnp.zeros(2), jnp.zeros(2, int), None, 8)
    with pytest.raises(ConfigError, match=r"2 resolutions need images \[B, H, W, C\] with sides divisible by 2"):
        models.UNet(1, (8, 8)).init(KEY, jnp.zeros((1, 5, 4, 1)), jnp.zeros(1))
