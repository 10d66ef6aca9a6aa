"""Every learner keeps the laws, and every law catches a learner that breaks it."""

import functools
import importlib.util
import itertools
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

import foldax
from foldax import augment, data, laws, learners, models, rl
from foldax.engine import setup
from foldax.learners import losses
from tests.conftest import EXPERIMENTS, Config, shrunk, tiny, tiny_dataset, tiny_learner
from tests.models.adapters import networks
from tests.rl.environments import choice, continuous, recall


def images(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    arrays = {"inputs": rng.randint(0, 17, (96, 6, 6, 1)).astype(np.uint8), "targets": rng.randint(0, 3, 96)}
    return data.from_arrays(arrays, batch_size=config.batch_size, validation=0.2, test=0.2)


def continuous_targets(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    inputs = rng.randn(128, 4).astype(np.float32)
    return data.from_arrays({"inputs": inputs, "targets": inputs[:, 0] * 3 + 1}, batch_size=config.batch_size)


def convolutional(config: Config, info: data.Info) -> foldax.Learner:
    model = models.CNN(3, (4,), dense=(8,), normalization="batch", dropout=config.dropout, conv_dropout=config.dropout)
    return learners.classifier(
        model,
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(config.learning_rate, momentum=0.9)),
        preprocess=info.standardize,
        label_smoothing=config.dropout,
        class_weights=jnp.array([1.0, 2.0, 0.5]),
        l2=config.learning_rate * 0.1,
        ema_decay=0.9,
        microbatches=2,
    )


def regression(config: Config, info: data.Info) -> foldax.Learner:
    return learners.regressor(
        models.MLP((8, 1)),
        optax.MultiSteps(optax.adam(config.learning_rate), every_k_schedule=2),
        loss=losses.huber,
        preprocess=info.standardize,
        target_mean=info.target_mean,
        target_std=info.target_std,
        l1=config.learning_rate * 0.01,
    )


def bandit(config: Config, info: None) -> foldax.Learner:
    means = jnp.array([0.1, 0.9, 0.5])

    def update(state, batch, key):
        arm = jnp.where(jax.random.bernoulli(key, 0.3), jax.random.randint(key, (), 0, 3), state.argmax())
        reward = means[arm] + 0.1 * jax.random.normal(key)
        state = state.at[arm].add(config.learning_rate * (reward - state[arm]))
        finished = jnp.float32(arm == 1)
        return state, {"loss": (reward - state[arm]) ** 2, "return": foldax.Average(reward * finished, finished)}

    def evaluate(state, batch, key):
        rewards = means[state.argmax()] + 0.1 * jax.random.normal(key, (4,))
        return {"return": rewards, "loss": -rewards}

    return foldax.Learner(lambda key, examples: jnp.zeros(3), update, evaluate)


def packed_tokens(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    tokens = np.cumsum(rng.randint(0, 2, (96, 9)), axis=1) % 5
    mask = np.where(np.arange(9)[None, :] < rng.randint(4, 9, (96, 1)), 1 + (np.arange(9)[None, :] > 3), 0)
    return data.from_arrays({"inputs": tokens, "mask": mask}, batch_size=config.batch_size)


def packed_language_model(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Transformer(
        vocabulary_size=5,
        width=8,
        depth=2,
        num_heads=2,
        num_kv_heads=1,
        causal=True,
        tie_embeddings=True,
        dropout=config.dropout,
        scan_layers=True,
    )
    optimizer = optax.adam(config.learning_rate)
    return learners.language_model(model, optimizer, token_bytes=np.arange(1, 6), label_smoothing=config.dropout)


def padded_series(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    inputs = rng.randn(96, 7, 2).astype(np.float32).cumsum(axis=1)
    mask = (np.arange(7)[None, :] < rng.randint(3, 8, (96, 1))).astype(np.int32)
    arrays = {"inputs": inputs, "mask": mask, "targets": rng.randint(0, 3, 96)}
    return data.from_arrays(arrays, batch_size=config.batch_size)


def add_noise(key: jax.Array, batch: dict) -> dict:
    return {**batch, "inputs": batch["inputs"] + 0.1 * jax.random.normal(key, batch["inputs"].shape)}


def recurrent_classifier(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Recurrent(3, (5, 5), "gru", bidirectional=True, pooling="last", dropout=config.dropout)
    optimizer = optax.adam(config.learning_rate)
    return learners.sequence_classifier(model, optimizer, augment=add_noise, frozen=("backward_0", "layer_1/input"))


def forecast_windows(config: Config) -> data.Dataset:
    walks = np.random.RandomState(0).randn(128, 9, 1).astype(np.float32).cumsum(axis=1) + 50
    return data.from_arrays({"inputs": walks[:, :6], "targets": walks[:, 6:, 0]}, batch_size=config.batch_size)


def forecasting(config: Config, info: data.Info) -> foldax.Learner:
    return learners.forecaster(models.MLP((8, 6), dropout=config.dropout), optax.adam(config.learning_rate))


def gaussian_regression(config: Config, info: data.Info) -> foldax.Learner:
    target_statistics = dict(target_mean=info.target_mean, target_std=info.target_std)
    model = models.MLP((8, 2), dropout=config.dropout, residual=True)
    return learners.gaussian_regressor(model, optax.adam(config.learning_rate), ema_decay=0.9, **target_statistics)


def denoising_autoencoder(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Autoencoder(models.MLP((8, 2), dropout=config.dropout), models.MLP((8, 4)), (4,))
    options = dict(corruption=add_noise, corrupt_evaluation=True, sparsity_coefficient=config.learning_rate)
    return learners.autoencoder(model, optax.adam(config.learning_rate), preprocess=info.standardize, **options)


def variational(config: Config, info: data.Info) -> foldax.Learner:
    likelihood, encoder = learners.likelihoods.discretized_logistic(17), models.MLP((8, 4), dropout=config.dropout)
    head = models.LocalAutoregressiveHead(2, info.shapes["inputs"], context_radius=1, width=3, scale=16)
    model = learners.VAE(encoder, models.MLP((8, 3 * 36)), likelihood, 3, head, info.standardize)
    options = dict(beta=0.9, free_nats=0.01, importance_samples=3, samples_per_example=2, ema_decay=0.9)
    return learners.vae(model, optax.adam(config.learning_rate), **options)


def flow_matching(config: Config, info: data.Info) -> foldax.Learner:
    model = models.DiT(1, 2, 8, 2, 2, num_classes=3, dropout=config.dropout, scan_layers=True)
    sampler = learners.SamplerSettings(3, eta=config.dropout, guidance_scale=1.5)
    return learners.diffusion(
        model,
        optax.adam(config.learning_rate),
        shape=(6, 6, 1),
        noise_schedule=learners.noise_schedule.flow(10),
        prediction_type="flow",
        sampler=sampler,
        class_dropout_prob=config.dropout,
        samples_per_example=2,
        num_levels=17,
        num_evaluation_times=3,
        preprocess=lambda x: jnp.asarray(x, jnp.float32) * (1 / 8) - 1.0,
        ema_decay=0.9,
    )


def adversarial(config: Config, info: data.Info) -> foldax.Learner:
    discriminator = models.SpectralNorm(models.MLP((8, 3), "tanh", dropout=config.dropout))
    model = learners.GAN(models.MLP((8, 36)), discriminator, (6, 6, 1), latent_size=2, num_classes=3)
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    options = dict(objective="wasserstein", gradient_penalty_weight=config.dropout, discriminator_steps=2)
    options |= dict(ema_decay=0.9, samples_per_example=3)
    return learners.gan(model, *optimizers, preprocess=info.standardize, **options)


def minibatch_kmeans(config: Config, info: data.Info) -> foldax.Learner:
    return learners.kmeans.minibatch_kmeans(4, preprocess=info.standardize)


@foldax.config
class MonitoredByNeighbors(Config):
    monitor = "knn_accuracy"  # contrastive losses have no value for a single example
    mode = "max"


@foldax.config
class MonitoredByReturn(Config):
    monitor = "return"
    mode = "max"


def adam_with_large_eps(config: Config) -> optax.GradientTransformation:
    """Adam that ignores gradients which are rounding errors, as those of a bias before batch normalization."""
    return optax.adam(config.learning_rate, eps=1e-5)


def with_small_probe(learner: foldax.Learner, config: Config) -> foldax.Learner:
    return learners.with_probe(
        learner, 3, optax.adam(config.learning_rate), memory_size=40, neighbors=5, temperature=config.dropout + 0.1
    )


def contrastive(config: Config, info: data.Info) -> foldax.Learner:
    encoder = models.MLP((8, 6), dropout=config.dropout, normalization="batch")
    model, views = models.ProjectionNetwork(encoder, models.MLP((8, 4))), augment.gaussian_noise(2.0)
    options = dict(views=views, temperature=config.dropout + 0.3, preprocess=info.standardize, microbatches=2)
    return with_small_probe(learners.simclr(model, adam_with_large_eps(config), **options), config)


def bootstrapped(config: Config, info: data.Info) -> foldax.Learner:
    heads = [models.MLP((8, 4), normalization="batch") for _ in range(2)]
    model = models.ProjectionNetwork(models.MLP((8, 6)), *heads)
    momentum = learners.byol_momentum_schedule(config.dropout + 0.8, config.steps)
    options = dict(views=augment.gaussian_noise(2.0), momentum=momentum, preprocess=info.standardize)
    return with_small_probe(learners.byol(model, optax.sgd(config.learning_rate, momentum=0.9), **options), config)


def masked(config: Config, info: data.Info) -> foldax.Learner:
    sizes = dict(patch_size=2, visible_patches=4, width=8, depth=1, num_heads=2, decoder_width=4, decoder_heads=2)
    model = models.MaskedAutoencoder((6, 6, 1), **sizes, dropout=config.dropout)
    optimizer = adam_with_large_eps(config)
    options = dict(normalize_patches=True, preprocess=info.standardize, ema_decay=0.9)
    return with_small_probe(learners.masked_autoencoder(model, optimizer, **options), config)


def gaussian_mixture(config: Config, info: data.Info) -> foldax.Learner:
    return learners.mixture.stepwise_em(3, preprocess=info.standardize, regularization=config.learning_rate)


def few_labels(config: Config, info: data.Info) -> foldax.Learner:
    return learners.subset(tiny_learner(config, info), 6, info)


AGENT = dict(evaluation_episodes=3, evaluation_steps=6)  # in environments of a few steps
ROLLOUTS = dict(num_envs=4, rollout_steps=4)
EPOCHS = dict(num_epochs=2, num_minibatches=2, **AGENT)


def ppo_normalized(config: Config, info: None) -> foldax.Learner:
    settings = learners.PPOSettings(
        clip_range=config.dropout + 0.1,
        value_clip_range=None,
        entropy_coefficient=config.dropout,
        discount=1 - config.dropout,
        normalize_observations=True,
        normalize_rewards=True,
        **EPOCHS,
    )
    model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.adam(config.learning_rate)
    return learners.ppo(choice(), model, optimizer, settings, **ROLLOUTS)


def ppo_continuous(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.ActorCritic(1, continuous=True, hidden=(8,)), optax.adam(config.learning_rate)
    return learners.ppo(continuous(), model, optimizer, learners.PPOSettings(**EPOCHS), **ROLLOUTS)


def recurrent_ppo(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.RecurrentActorCritic(2, hidden=(4,), width=4), optax.adam(config.learning_rate)
    settings = learners.PPOSettings(gae_lambda=1 - config.dropout, **EPOCHS)
    return learners.recurrent_ppo(recall(3), model, optimizer, settings, **ROLLOUTS)


def a2c(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.rmsprop(config.learning_rate)
    settings = learners.A2CSettings(entropy_coefficient=config.dropout, **AGENT)
    return learners.a2c(choice(), model, optimizer, settings, num_envs=4)


def reinforce(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.adam(config.learning_rate)
    settings = learners.ReinforceSettings(discount=1 - config.dropout, **AGENT)
    return learners.reinforce(choice(), model, optimizer, settings, num_envs=4, episode_steps=5)


def pqn(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.QNetwork(2, hidden=(8,), normalization="layer"), optax.radam(config.learning_rate)
    settings = learners.PQNSettings(num_minibatches=2, final_epsilon=config.dropout, **AGENT)
    return learners.pqn(choice(), model, optimizer, settings, environment_steps=200, **ROLLOUTS)


OFF_POLICY = dict(num_envs=2, rollout_steps=3, learning_starts=20)
REPLAY = learners.ReplaySettings(capacity=35)  # full within the laws' steps


def double_dqn(config: Config, info: None) -> foldax.Learner:
    settings = learners.DQNSettings(
        batch_size=16, replay=REPLAY, final_epsilon=config.dropout, target_update_period=12, double=True, **AGENT
    )
    model, optimizer = models.QNetwork(2, hidden=(8,)), optax.adam(config.learning_rate)
    return learners.dqn(choice(), model, optimizer, settings, environment_steps=100, **OFF_POLICY)


def rainbow(config: Config, info: None) -> foldax.Learner:
    exponents = dict(priority_exponent=0.5, importance_exponent=1 - config.dropout)
    replay = learners.ReplaySettings(capacity=35, n_steps=3, prioritized=True, **exponents)
    noisy = dict(final_epsilon=0.0, exploration_fraction=0.0)
    settings = learners.DQNSettings(
        batch_size=16, replay=replay, target_update_period=12, double=True, **noisy, **AGENT
    )
    model, optimizer = models.QNetwork(2, 5, (8, 8), dueling=True, noisy=True), optax.adam(config.learning_rate)
    returns = learners.return_distributions.categorical(5, -1.0, 3.0)
    options = dict(environment_steps=100, return_distribution=returns, **OFF_POLICY)
    return learners.dqn(choice(), model, optimizer, settings, **options)


def sac(config: Config, info: None) -> foldax.Learner:
    networks = models.GaussianActor(1, (8,)), models.TwinCritic((8,))
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    settings = learners.SACSettings(batch_size=16, replay=REPLAY, gradient_steps=2, tau=config.dropout, **AGENT)
    return learners.sac(continuous(), *networks, *optimizers, settings, **OFF_POLICY)


def td3(config: Config, info: None) -> foldax.Learner:
    networks = models.DeterministicActor(1, (8,)), models.TwinCritic((8,))
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    settings = learners.TD3Settings(batch_size=16, replay=REPLAY, exploration_noise=config.dropout, **AGENT)
    return learners.td3(continuous(), *networks, *optimizers, settings, **OFF_POLICY)


def alphazero(config: Config, info: None) -> foldax.Learner:
    counts = dict(num_simulations=3, evaluation_simulations=2, evaluation_games=2, past_update_period=4)
    settings = learners.AlphaZeroSettings(
        random_move_fraction=config.dropout, num_epochs=1, num_minibatches=2, **counts
    )
    model, optimizer = models.ActorCritic(9, hidden=(8,)), optax.adam(config.learning_rate)
    return learners.alphazero(rl.tic_tac_toe(), model, optimizer, settings, **ROLLOUTS)


def nnx_classifier(config: Config, info: data.Info) -> foldax.Learner:
    # Dropout of Flax NNX branches on its rate, which cannot be traced.
    return learners.classifier(networks.from_nnx(6, info.num_classes, 0.1), optax.adam(config.learning_rate))


def equinox_classifier(config: Config, info: data.Info) -> foldax.Learner:
    model = networks.from_equinox(6, info.num_classes, config.dropout, noise_scale=0.1)
    return learners.classifier(model, optax.adam(config.learning_rate))


LEARNERS = {
    "classifier": tiny,
    "convolutional": foldax.Experiment(Config, convolutional, images, name="convolutional"),
    "regressor": foldax.Experiment(Config, regression, continuous_targets, name="regressor"),
    "language_model": foldax.Experiment(Config, packed_language_model, packed_tokens, name="language_model"),
    "sequence_classifier": foldax.Experiment(Config, recurrent_classifier, padded_series, name="sequence_classifier"),
    "forecaster": foldax.Experiment(Config, forecasting, forecast_windows, name="forecaster"),
    "gaussian_regressor": foldax.Experiment(Config, gaussian_regression, continuous_targets, name="gaussian_regressor"),
    "autoencoder": foldax.Experiment(Config, denoising_autoencoder, continuous_targets, name="autoencoder"),
    "vae": foldax.Experiment(Config, variational, images, name="vae"),
    "diffusion": foldax.Experiment(Config, flow_matching, images, name="diffusion"),
    "gan": foldax.Experiment(Config, adversarial, images, name="gan"),
    "kmeans": foldax.Experiment(Config, minibatch_kmeans, images, name="kmeans"),
    "simclr": foldax.Experiment(MonitoredByNeighbors, contrastive, images, name="simclr"),
    "byol": foldax.Experiment(MonitoredByNeighbors, bootstrapped, images, name="byol"),
    "masked_autoencoder": foldax.Experiment(Config, masked, images, name="masked_autoencoder"),
    "mixture": foldax.Experiment(Config, gaussian_mixture, images, name="mixture"),
    "subset": foldax.Experiment(Config, few_labels, tiny_dataset, name="subset"),
    "nnx": foldax.Experiment(Config, nnx_classifier, tiny_dataset, name="nnx"),
    "equinox": foldax.Experiment(Config, equinox_classifier, tiny_dataset, name="equinox"),
    "bandit": foldax.Experiment(Config, bandit, name="bandit"),
    "ppo": foldax.Experiment(MonitoredByReturn, ppo_normalized, name="ppo"),
    "ppo_continuous": foldax.Experiment(MonitoredByReturn, ppo_continuous, name="ppo_continuous"),
    "recurrent_ppo": foldax.Experiment(MonitoredByReturn, recurrent_ppo, name="recurrent_ppo"),
    "a2c": foldax.Experiment(MonitoredByReturn, a2c, name="a2c"),
    "reinforce": foldax.Experiment(MonitoredByReturn, reinforce, name="reinforce"),
    "pqn": foldax.Experiment(MonitoredByReturn, pqn, name="pqn"),
    "dqn": foldax.Experiment(MonitoredByReturn, double_dqn, name="dqn"),
    "rainbow": foldax.Experiment(MonitoredByReturn, rainbow, name="rainbow"),
    "sac": foldax.Experiment(MonitoredByReturn, sac, name="sac"),
    "td3": foldax.Experiment(MonitoredByReturn, td3, name="td3"),
    "alphazero": foldax.Experiment(MonitoredByReturn, alphazero, name="alphazero"),
    "streaming": tiny._replace(dataset=lambda config: tiny_dataset(config, "stream"), name="streaming"),
}
RESUMABLE_OR_BATCH_LAWS = ("resume", "sweep", "chunking", "learning")  # which host environments cannot satisfy
DATASET_LAWS = ("coverage", "learning", "sharding")  # of examples and batches
AGENT_LAWS = ("resume", "sweep", "tracing", "coverage", "learning")
EXEMPT = {("streaming", "sweep")}  # a stream cannot be vmapped
EXEMPT |= {(name, law) for name, experiment in LEARNERS.items() if experiment.dataset is None for law in DATASET_LAWS}


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("name", LEARNERS)
def test_learner_satisfies_the_law(name: str, law: str) -> None:
    if name == "alphazero" and importlib.util.find_spec("mctx") is None:
        pytest.skip("mctx is not installed: pip install 'foldax[games]'")
    does_not_apply = laws.LAWS[law](laws.make_subject(LEARNERS[name]))
    assert (does_not_apply is not None) == ((name, law) in EXEMPT), does_not_apply


@functools.lru_cache(maxsize=1)  # the laws of an experiment follow one another, and share its programs
def experiment_subject(path: Path) -> laws.Subject:
    return laws.make_subject(*shrunk(path))


# Programs of agents take long to compile: only the laws that an experiment could break, as its learner has all. In
# tests/experiments every experiment finishes.
EXPERIMENT_LAWS = [
    (path, law)
    for path in EXPERIMENTS
    if path.stem != "alphazero_connect_four"  # that of tic-tac-toe has the same learner
    for law in (AGENT_LAWS if path.parent.name == "rl" else laws.LAWS)
    if law != "finishes"
]


@pytest.mark.parametrize(("path", "law"), EXPERIMENT_LAWS, ids=[f"{path.stem}-{law}" for path, law in EXPERIMENT_LAWS])
def test_experiment_satisfies_the_law(path: Path, law: str) -> None:
    subject = experiment_subject(path)
    exempt = subject.dataset is None and law in DATASET_LAWS
    exempt |= setup.nonresumable_reason(subject.dataset) is not None and law in RESUMABLE_OR_BATCH_LAWS
    # A vmapped sweep needs a dataset on the device; an exact one is checked in any case.
    exempt |= isinstance(subject.dataset and subject.dataset.train, data.BatchSource) and law == "sweep"
    assert (laws.LAWS[law](subject) is not None) == exempt


# -- learners that break one law each --------------------------------------------------------------


def wrapped(update=None, evaluate=None, learner=tiny_learner) -> foldax.Experiment:
    """The tiny experiment with a wrapped update or evaluate, or with another learner."""

    def make(config: Config, info: data.Info) -> foldax.Learner:
        inner = learner(config, info)
        outer = inner if update is None else inner._replace(update=update(inner))
        return outer if evaluate is None else outer._replace(evaluate=evaluate(inner))

    return foldax.Experiment(Config, make, tiny_dataset, name="broken")


def shift_parameters(state, amount):
    return state._replace(params=jax.tree.map(lambda x: x + amount, state.params))


def draws_from_numpy(learner):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        return shift_parameters(state, np.float32(np.random.uniform(1e-3, 2e-3))), metrics

    return update


calls = {"count": 0}


def counts_on_the_host(learner):
    def count(_):
        calls["count"] += 1
        return np.float32(calls["count"] * 1e-3)

    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        number = io_callback(count, jax.ShapeDtypeStruct((), jnp.float32), metrics["loss"], ordered=True)
        return shift_parameters(state, number), metrics

    return update


def reads_the_clock(learner):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        now = io_callback(
            lambda _: np.float32(time.perf_counter_ns() % 1000 * 1e-6),
            jax.ShapeDtypeStruct((), jnp.float32),
            metrics["loss"],
        )
        return shift_parameters(state, now), metrics

    return update


def amplifies_rounding(learner):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        chaos = jnp.sin(1e7 * batch["inputs"].astype(jnp.float32).mean() * metrics["loss"])
        return shift_parameters(state, chaos), metrics

    return update


def branches_on_dropout(config, info):
    if config.dropout > 0:
        return tiny_learner(config, info)
    return tiny_learner(config, info)


def ascends_the_loss(config, info):
    return learners.classifier(models.MLP((8, 2)), optax.sgd(-config.learning_rate), preprocess=info.standardize)


def evaluates_with_batch_statistics(learner):
    def evaluate(state, batch, key):
        result = learner.evaluate(state, batch, key)
        loss = result.metrics["loss"]
        return result.with_values(metrics={"loss": loss - loss.mean()})

    return evaluate


def evaluates_the_first_example(learner):
    def evaluate(state, batch, key):
        return foldax.Evaluation({"loss": learner.evaluate(state, batch, key).metrics["loss"][:1]})

    return evaluate


def predicts_with_numpy(config, info):
    return tiny_learner(config, info)._replace(predict=lambda state, inputs, key: np.asarray(inputs).sum())


BROKEN = {
    "purity": (wrapped(draws_from_numpy), "two runs with the same seed differ.*from something other than its key"),
    "chunking": (wrapped(reads_the_clock), "one chunk of 10 steps and four smaller ones differ"),
    "resume": (wrapped(counts_on_the_host), "resumed differs from an uninterrupted one.*not in its state"),
    "sweep": (wrapped(counts_on_the_host), "member 0 of a sweep differs from the same run alone"),
    "sharding": (wrapped(amplifies_rounding), "after 3 steps on 2 devices.*more than rounding"),
    "tracing": (wrapped(learner=branches_on_dropout), r"needs `dropout` as a Python number.*foldax\.structural"),
    "coverage": (
        wrapped(evaluate=evaluates_with_batch_statistics),
        "'loss' of an example depends on the other examples",
    ),
    "learning": (wrapped(learner=ascends_the_loss), "it does not learn"),
    "finishes": (wrapped(learner=predicts_with_numpy), "predict cannot be exported"),
}


def test_sharding_allows_noise_in_a_bias_before_batch_normalization() -> None:
    def normalized(config: Config, info: data.Info) -> foldax.Learner:
        model = models.MLP((64, 3), normalization="batch")
        # Without `eps`, Adam turns the rounding errors of a gradient of zero into whole steps.
        return learners.classifier(model, optax.adam(1e-4, eps=1e-30), preprocess=info.standardize)

    subject = laws.make_subject(foldax.Experiment(Config, normalized, images))
    one, two = (laws._train(subject.start_run(mesh=f"data={count}"), [3]) for count in (1, 2))
    assert abs(one["params.Dense_0.bias"] - two["params.Dense_0.bias"]).max() > 1e-4
    assert laws.sharding(subject) is None


@pytest.mark.parametrize("law", laws.LAWS)
def test_law_catches_a_broken_learner(law: str) -> None:
    experiment, sentence = BROKEN[law]
    with pytest.raises(foldax.FoldaxError, match=f"(?s){sentence}"):
        laws.LAWS[law](laws.make_subject(experiment))


def test_a_state_that_is_one_array_has_a_name_in_the_laws() -> None:
    with pytest.raises(laws.LawBroken, match="they differ, in `state` at least: why"):
        laws._check_same_bits({"": np.zeros(2)}, {"": np.ones(2)}, "they differ", "why")


def test_coverage_catches_values_that_are_not_per_example() -> None:
    with pytest.raises(foldax.FoldaxError, match="one value per example"):
        laws.coverage(laws.make_subject(wrapped(evaluate=evaluates_the_first_example)))


@pytest.mark.parametrize(
    ("loop_seconds", "rounds", "advice"),
    [([9.0] * 9, 3, "9.0 times"), ([1.0] * 9, 3, None), ([3.0] * 6 + [1.0] * 3, 7, None), ([2.0] * 9, 9, "2.0 times")],
)
def test_the_other_dispatch_is_advised_only_where_no_timing_of_the_loop_is_short(
    loop_seconds: list[float], rounds: int, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = itertools.chain.from_iterable((0.0, loop, 0.0, 1.0) for loop in loop_seconds)
    clock = itertools.accumulate(durations)
    trained: list[str] = []
    monkeypatch.setattr(laws, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(laws, "_train", lambda run, _: trained.append(run.dispatch))
    subject: Any = types.SimpleNamespace(
        dataset=None, start_run=lambda dispatch: types.SimpleNamespace(step=2, dispatch=dispatch)
    )
    found = laws.faster_dispatch(subject)
    assert trained == ["loop", "step"] * (1 + rounds)
    assert found is None if advice is None else advice in str(found)
