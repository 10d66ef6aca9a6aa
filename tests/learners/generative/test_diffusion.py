"""Diffusion: closed forms of the processes, samplers against exact denoisers, and a bound on a known likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foldax import learners, models
from foldax.errors import ConfigError, ExperimentError
from foldax.learners.generative import noise_schedule
from foldax.models.networks.denoisers import condition

KEY = jax.random.key(0)
PROCESSES = {"cosine": noise_schedule.cosine, "linear": noise_schedule.linear, "flow": noise_schedule.flow}
MEAN, STD = 0.3, 0.5


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_goes_from_data_to_noise(name):
    process = PROCESSES[name](100)
    assert (process.signal[0], process.noise[0]) == (1, 0)
    assert (np.diff(process.signal) < 0).all()
    assert (np.diff(process.noise) >= 0).all()
    assert process.signal[-1] < 0.01
    assert process.noise[-1] == pytest.approx(1, abs=1e-4)
    if name != "flow":
        np.testing.assert_allclose(process.signal**2 + process.noise**2, 1, atol=1e-6)


def test_the_linear_schedule_is_that_of_the_paper():
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(noise_schedule.linear().signal[1:] ** 2, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "velocity", "sample"])
@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_predicted_tells_data_and_noise(name, prediction):
    process = PROCESSES[name](20)
    x, noise = jax.random.normal(KEY, (2, 8, 3))
    times = jnp.array([1, 2, 5, 8, 10, 13, 16, 18])
    noisy = noise_schedule.perturbed(process, x, noise, times)
    outputs = noise_schedule.target(process, prediction, x, noise, times)
    for found, wanted in zip(
        noise_schedule.separated(process, prediction, noisy, outputs, times), (x, noise), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize("name", PROCESSES)
@given(times=st.tuples(st.integers(1, 29), st.integers(1, 29)).filter(lambda pair: pair[0] != pair[1]))
@settings(max_examples=20, deadline=None)
def test_the_posterior_is_that_of_two_gaussians(name, times):
    """Bayes' rule by hand: a prior of what was, given the data, and a likelihood of what is, given what was."""
    earlier, time = sorted(times)
    process = PROCESSES[name](30)
    (s, n), (s_then, n_then) = ((float(process.signal[t]), float(process.noise[t])) for t in (time, earlier))
    x, noisy = 0.7, -0.4
    kept, added = s / s_then, n**2 - (s / s_then * n_then) ** 2
    precision = 1 / n_then**2 + kept**2 / added
    mean = (s_then * x / n_then**2 + kept * noisy / added) / precision
    given_x, given_noisy = jnp.full((1, 1), x), jnp.full((1, 1), noisy)
    found = noise_schedule.posterior(process, given_x, given_noisy, jnp.array([time]), jnp.array([earlier]))
    np.testing.assert_allclose([found[0][0, 0], found[1][0, 0]], [mean, precision**-0.5], rtol=2e-3)


def test_the_posterior_of_neighbours_is_the_papers():
    """Equations 6 and 7 of Ho et al. (2020), with the betas as they are there."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas = np.cumprod(1 - betas)
    t = 400  # the paper's, from 1 on
    beta, now, before = betas[t - 1], alphas[t - 1], alphas[t - 2]
    mean = before**0.5 * beta / (1 - now) * 0.7 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * -0.4
    std = ((1 - before) / (1 - now) * beta) ** 0.5
    x, noisy = jnp.full((1, 1), 0.7), jnp.full((1, 1), -0.4)
    found = noise_schedule.posterior(noise_schedule.linear(), x, noisy, jnp.array([t]), jnp.array([t - 1]))
    np.testing.assert_allclose([found[0][0, 0], found[1][0, 0]], [mean, std], rtol=1e-3)


def exact_denoiser(process, prediction):
    """Gives what the best network says of data that are normal with MEAN and STD."""

    def denoise(noisy, times):
        signal, noise = noise_schedule.at(process, times, noisy.ndim)
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        x = MEAN + gain * (noisy - signal * MEAN)
        rest = (noisy - signal * x) / noise
        return noise_schedule.target(process, prediction, x, rest, times)

    return denoise


def ddpm(process, key, start):
    """The sampler of Ho et al. (2020), as a plain loop over all steps."""
    noisy, denoise = start, exact_denoiser(process, "epsilon")
    for t in range(process.steps, 0, -1):
        times = jnp.full(len(noisy), t)
        x, _ = noise_schedule.separated(process, "epsilon", noisy, denoise(noisy, times), times)
        mean, std = noise_schedule.posterior(process, x, noisy, times, times - 1)
        noisy = mean + std * jax.random.normal(jax.random.fold_in(key, t), noisy.shape)
    return noisy


def test_all_steps_with_all_noise_are_ddpm_in_distribution():
    process = noise_schedule.cosine(50)
    start, other = jax.random.normal(KEY, (2, 4000, 1))
    ours = noise_schedule.sample(exact_denoiser(process, "epsilon"), process, "epsilon", KEY, start, steps=50, eta=1.0)
    theirs = jax.jit(lambda start: ddpm(process, jax.random.key(1), start))(other)
    assert stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > 0.01
    assert stats.kstest((np.ravel(ours) - MEAN) / np.std(ours), "norm").pvalue > 0.01
    assert float(ours.mean()) == pytest.approx(MEAN, abs=0.03)


@pytest.mark.parametrize(("name", "prediction"), [("cosine", "v"), ("flow", "velocity")])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_an_exact_denoiser_are_the_data(name, prediction, eta):
    process, start = PROCESSES[name](200), jax.random.normal(KEY, (4000, 1))
    made = noise_schedule.sample(
        exact_denoiser(process, prediction), process, prediction, KEY, start, steps=100, eta=eta
    )
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(made.std()) == pytest.approx(STD, rel=0.06)


def test_without_noise_steps_are_eulers_for_a_flow():
    process, start = noise_schedule.flow(8), jax.random.normal(KEY, (5, 3))
    denoise = exact_denoiser(process, "velocity")
    x = start
    for t in range(8, 0, -1):
        x = x - denoise(x, jnp.full(5, t)) / 8
    np.testing.assert_allclose(noise_schedule.sample(denoise, process, "velocity", KEY, start, steps=8), x, atol=1e-5)


class Normal(nn.Module):
    """The best network for independent normal numbers: nothing of it is learned."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, x, times, labels=None, *, train=False):
        self.param("nothing", nn.initializers.zeros, (1,))
        process = noise_schedule.cosine(1000)
        return exact_denoiser(process, "v")(x, jnp.int32(jnp.round(times * 1000)))


def test_the_bound_is_near_a_likelihood_that_is_known():
    """Levels of a normal distribution: the entropy of the levels is exact, and the bound is above it, not far."""
    levels, rng = 17, np.random.RandomState(0)
    edges = (np.arange(levels + 1) - 8.5) / 8
    edges[[0, -1]] = -np.inf, np.inf
    shares = np.diff(stats.norm(MEAN, STD).cdf(edges))
    inputs = rng.choice(levels, (64, 32), p=shares).astype(np.int32)
    learner = learners.diffusion(
        Normal(), optax.sgd(0.0), shape=(32,), process=noise_schedule.cosine(1000), levels=levels,
        evaluation_times=1000, preprocess=lambda x: x / 8 - 1.0,
    )  # fmt: skip
    batch = {"inputs": jnp.asarray(inputs)}
    values = jax.jit(learner.evaluate)(learner.init(KEY, batch), batch, KEY)
    exact = -np.log2(shares[inputs]).mean()
    assert exact - 0.02 < float(values["bits_per_dimension"].mean()) < exact + 0.35


def tiny(num_classes=3, **options):
    model = models.DiT(1, 2, 8, 1, 2, num_classes=num_classes)
    settings = dict(shape=(4, 4, 1), process=noise_schedule.cosine(10), sampler=learners.Sampler(3))
    return learners.diffusion(model, optax.adam(1e-2), **{**settings, **options})


BATCH = {"inputs": np.zeros((6, 4, 4, 1), np.float32), "targets": np.arange(6) % 3}


def test_samples_have_the_data_s_shape_and_heed_class_and_guidance():
    learner = tiny(samples=2)
    state = learner.init(KEY, BATCH)
    state = state._replace(params=jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), state.params))
    values = jax.jit(learner.evaluate)(state, BATCH, KEY)
    assert values["samples"].shape == (6, 2, 4, 4, 1)
    assert values["loss"].shape == (6,)
    ones, twos = (learner.predict(state, jnp.full(4, label), KEY) for label in (1, 2))
    assert ones.shape == (4, 4, 4, 1)
    assert not np.allclose(ones, twos, atol=1e-3)
    by_one = tiny(sampler=learners.Sampler(3, guidance=1.0)).predict(state, jnp.full(4, 1), KEY)
    np.testing.assert_allclose(by_one, ones, atol=1e-5)
    by_none = [tiny(sampler=learners.Sampler(3, guidance=0.0)).predict(state, jnp.full(4, k), KEY) for k in (1, 2)]
    np.testing.assert_allclose(by_none[0], by_none[1], atol=1e-6)


@pytest.mark.parametrize(("rate", "learned"), [(0.0, [True, True, False, False]), (1.0, [False, False, False, True])])
def test_the_class_is_told_as_often_as_is_said(rate, learned):
    learner, batch = tiny(unconditional_rate=rate), {**BATCH, "targets": np.arange(6) % 2}
    state = first = learner.init(KEY, batch)
    for _ in range(3):  # the first steps only open the gates, which are closed at first
        state, _ = learner.update(state, batch, KEY)
    before, after = (each.params["classes"]["embedding"] for each in (first, state))
    np.testing.assert_array_equal((before != after).any(axis=1), learned)


@pytest.mark.parametrize(
    "make",
    [lambda n: models.UNet(1, (8, 8), num_heads=2, num_classes=n), lambda n: models.DiT(2, 2, 8, 2, 2, num_classes=n)],
)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_networks_give_images_and_heed_time_and_class(make, num_classes):
    model, x = make(num_classes), jax.random.normal(KEY, (2, 4, 4, 1))
    labels = None if num_classes is None else jnp.array([0, 3])
    variables = model.init(KEY, x, jnp.zeros(2), labels)
    variables = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(KEY, w.shape), variables)

    def apply(times, labels):
        return np.asarray(model.apply(variables, x, times, labels))

    first = apply(jnp.zeros(2), labels)
    assert first.shape == (2, 4, 4, model.features)
    assert not np.allclose(first, apply(jnp.ones(2), labels), atol=1e-3)
    if num_classes is not None:
        assert not np.allclose(first, apply(jnp.zeros(2), jnp.array([1, 3])), atol=1e-3)


def test_stacked_blocks_are_as_many():
    x, count = jnp.zeros((1, 4, 4, 1)), {}
    for scan in (False, True):
        params = models.DiT(1, 2, 8, 3, 2, scan_layers=scan).init(KEY, x, jnp.zeros(1))["params"]
        count[scan] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count[False] == count[True]


def test_bad_input_is_told():
    with pytest.raises(ConfigError, match="guidance: the model has no num_classes"):
        tiny(None, sampler=learners.Sampler(3, guidance=2.0))
    with pytest.raises(ConfigError, match="11 steps must be from 1 to the process's 10"):
        tiny(sampler=learners.Sampler(11))
    with pytest.raises(ConfigError, match="'noise' is none of 'epsilon', 'v', 'velocity' and 'sample'"):
        tiny(prediction="noise")
    with pytest.raises(ConfigError, match="does not tell the data where all is noise"):
        tiny(process=noise_schedule.flow(10), prediction="epsilon")
    with pytest.raises(ConfigError, match="levels: 1 must be 2 or more"):
        tiny(levels=1)
    with pytest.raises(ConfigError, match="steps: 0 must be 1 or more"):
        noise_schedule.cosine(0)
    learner = tiny()
    with pytest.raises(ExperimentError, match=r"of shape \(4, 4, 1\), got \[1, 8, 8, 1\]"):
        learner.init(KEY, {**BATCH, "inputs": np.zeros((6, 8, 8, 1))})
    with pytest.raises(ExperimentError, match="'targets' is missing"):
        learner.init(KEY, {"inputs": BATCH["inputs"]})
    with pytest.raises(ExperimentError, match=r"samples are of classes, int \[B\]; got float32\[2, 4\]"):
        learner.predict(learner.init(KEY, BATCH), jnp.zeros((2, 4)), KEY)
    with pytest.raises(ConfigError, match="takes labels, and one without takes none"):
        condition(jnp.zeros(2), jnp.zeros(2, int), None, 8)
    with pytest.raises(ConfigError, match="2 levels need images whose sides 2 divides"):
        models.UNet(1, (8, 8)).init(KEY, jnp.zeros((1, 5, 4, 1)), jnp.zeros(1))
