"""Every learner keeps the laws, and every law catches a learner that breaks it."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

import foldax
from foldax import augment, data, laws, learners, models
from foldax.engine import loop
from foldax.learners import losses
from tests.conftest import EXPERIMENTS, Config, shrunk, tiny, tiny_dataset, tiny_learner
from tests.rl.environments import choice, continuous, recall


def images(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    arrays = {"inputs": rng.randint(0, 17, (96, 6, 6, 1)).astype(np.uint8), "targets": rng.randint(0, 3, 96)}
    return data.from_arrays(arrays, batch_size=config.batch_size, validation=0.2, test=0.2)


def numbers(config: Config) -> data.Dataset:
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
        accumulate=2,
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


def language(config: Config, info: data.Info) -> foldax.Learner:
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


def series(config: Config) -> data.Dataset:
    rng = np.random.RandomState(0)
    inputs = rng.randn(96, 7, 2).astype(np.float32).cumsum(axis=1)
    mask = (np.arange(7)[None, :] < rng.randint(3, 8, (96, 1))).astype(np.int32)
    arrays = {"inputs": inputs, "mask": mask, "targets": rng.randint(0, 3, 96)}
    return data.from_arrays(arrays, batch_size=config.batch_size)


def noisy(key: jax.Array, batch: dict) -> dict:
    return {**batch, "inputs": batch["inputs"] + 0.1 * jax.random.normal(key, batch["inputs"].shape)}


def recurrent(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Recurrent(3, (5, 5), "gru", bidirectional=True, pooling="last", dropout=config.dropout)
    optimizer = optax.adam(config.learning_rate)
    return learners.sequence_classifier(model, optimizer, augment=noisy, frozen=("backward_0", "layer_1/input"))


def futures(config: Config) -> data.Dataset:
    walks = np.random.RandomState(0).randn(128, 9, 1).astype(np.float32).cumsum(axis=1) + 50
    return data.from_arrays({"inputs": walks[:, :6], "targets": walks[:, 6:, 0]}, batch_size=config.batch_size)


def forecasting(config: Config, info: data.Info) -> foldax.Learner:
    return learners.forecaster(models.MLP((8, 6), dropout=config.dropout), optax.adam(config.learning_rate))


def uncertain(config: Config, info: data.Info) -> foldax.Learner:
    facts = dict(target_mean=info.target_mean, target_std=info.target_std)
    model = models.MLP((8, 2), dropout=config.dropout, residual=True)
    return learners.gaussian_regressor(model, optax.adam(config.learning_rate), ema_decay=0.9, **facts)


def denoising(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Autoencoder(models.MLP((8, 2), dropout=config.dropout), models.MLP((8, 4)), (4,))
    options = dict(corruption=noisy, corrupted_evaluation=True, sparsity=config.learning_rate)
    return learners.autoencoder(model, optax.adam(config.learning_rate), preprocess=info.standardize, **options)


def variational(config: Config, info: data.Info) -> foldax.Learner:
    likelihood, encoder = learners.likelihoods.discretized_logistic(17), models.MLP((8, 4), dropout=config.dropout)
    near = models.Neighbours(2, info.shapes["inputs"], reach=1, width=3, scale=16)
    model = learners.VAE(encoder, models.MLP((8, 3 * 36)), likelihood, 3, near, info.standardize)
    options = dict(beta=0.9, free_nats=0.01, importance_samples=3, samples=2, ema_decay=0.9)
    return learners.vae(model, optax.adam(config.learning_rate), **options)


def denoised(config: Config, info: data.Info) -> foldax.Learner:
    model = models.DiT(1, 2, 8, 2, 2, num_classes=3, dropout=config.dropout, scan_layers=True)
    how = learners.Sampler(3, eta=config.dropout, guidance=1.5)
    process = learners.processes.flow(10)
    options = dict(unconditional_rate=config.dropout, samples=2, levels=17, evaluation_times=3, ema_decay=0.9)
    options |= dict(prediction="velocity", preprocess=lambda x: x * (1 / 8) - 1.0)
    optimizer = optax.adam(config.learning_rate)
    return learners.diffusion(model, optimizer, shape=(6, 6, 1), process=process, sampler=how, **options)


def adversarial(config: Config, info: data.Info) -> foldax.Learner:
    critic = models.SpectralNorm(models.MLP((8, 3), "tanh", dropout=config.dropout))
    model = learners.GAN(models.MLP((8, 36)), critic, (6, 6, 1), codes=2, num_classes=3)
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    options = dict(game="wasserstein", gradient_penalty=config.dropout, discriminator_steps=2, ema_decay=0.9, samples=3)
    return learners.gan(model, *optimizers, preprocess=info.standardize, **options)


def clusters(config: Config, info: data.Info) -> foldax.Learner:
    return learners.kmeans.minibatch(4, preprocess=info.standardize)


@foldax.config
class ByNeighbors(Config):
    monitor = "knn_accuracy"  # contrastive losses are of batches
    mode = "max"


def steady(config: Config) -> optax.GradientTransformation:
    """Adam that makes nothing of gradients that only rounding tells from 0, as before a batch normalisation."""
    return optax.adam(config.learning_rate, eps=1e-5)


def measured(learner: foldax.Learner, config: Config) -> foldax.Learner:
    return learners.probed(
        learner, 3, optax.adam(config.learning_rate), memory=40, neighbors=5, temperature=config.dropout + 0.1
    )


def contrasting(config: Config, info: data.Info) -> foldax.Learner:
    encoder = models.MLP((8, 6), dropout=config.dropout, normalization="batch")
    model, views = models.Projected(encoder, models.MLP((8, 4))), augment.noise(2.0)
    options = dict(views=views, temperature=config.dropout + 0.3, preprocess=info.standardize, accumulate=2)
    return measured(learners.simclr(model, steady(config), **options), config)


def foretelling(config: Config, info: data.Info) -> foldax.Learner:
    heads = [models.MLP((8, 4), normalization="batch") for _ in range(2)]
    model, decay = models.Projected(models.MLP((8, 6)), *heads), learners.slowing(config.dropout + 0.8, config.steps)
    options = dict(views=augment.noise(2.0), decay=decay, preprocess=info.standardize)
    return measured(learners.byol(model, optax.sgd(config.learning_rate, momentum=0.9), **options), config)


def hiding(config: Config, info: data.Info) -> foldax.Learner:
    sizes = dict(patch_size=2, visible=4, width=8, depth=1, num_heads=2, decoder_width=4, decoder_heads=2)
    model = models.MaskedAutoencoder((6, 6, 1), **sizes, dropout=config.dropout)
    optimizer = steady(config)
    options = dict(normalized=True, preprocess=info.standardize, ema_decay=0.9)
    return measured(learners.masked_autoencoder(model, optimizer, **options), config)


def gaussians(config: Config, info: data.Info) -> foldax.Learner:
    return learners.mixture.stepwise(3, preprocess=info.standardize, regularization=config.learning_rate)


def few(config: Config, info: data.Info) -> foldax.Learner:
    return learners.subset(tiny_learner(config, info), 6, info)


AGENT = dict(evaluation_episodes=3, evaluation_steps=6)  # in worlds of a few steps


def proximal(config: Config, info: None) -> foldax.Learner:
    surrogate = learners.Surrogate(config.dropout + 0.1, None, config.dropout)
    settings = dict(num_envs=4, rollout_steps=4, epochs=2, minibatches=2, surrogate=surrogate, **AGENT)
    settings |= dict(discount=1 - config.dropout, scale_observations=True, scale_rewards=True)
    return learners.ppo(choice(), models.ActorCritic(2, hidden=(8,)), optax.adam(config.learning_rate), **settings)


def proximal_numbers(config: Config, info: None) -> foldax.Learner:
    model = models.ActorCritic(1, continuous=True, hidden=(8,))
    settings = dict(num_envs=4, rollout_steps=4, epochs=2, minibatches=2, **AGENT)
    return learners.ppo(continuous(), model, optax.adam(config.learning_rate), **settings)


def proximal_with_memory(config: Config, info: None) -> foldax.Learner:
    model = models.RecurrentActorCritic(2, hidden=(4,), width=4)
    settings = dict(num_envs=4, rollout_steps=4, epochs=2, minibatches=2, trace_decay=1 - config.dropout, **AGENT)
    return learners.recurrent_ppo(recall(3), model, optax.adam(config.learning_rate), **settings)


def advantage(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.rmsprop(config.learning_rate)
    return learners.a2c(choice(), model, optimizer, num_envs=4, entropy_weight=config.dropout, **AGENT)


def whole_episodes(config: Config, info: None) -> foldax.Learner:
    model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.adam(config.learning_rate)
    return learners.reinforce(
        choice(), model, optimizer, num_envs=4, episode_steps=5, discount=1 - config.dropout, **AGENT
    )


def parallel(config: Config, info: None) -> foldax.Learner:
    model = models.QNetwork(2, hidden=(8,), normalization="layer")
    settings = dict(num_envs=4, rollout_steps=4, minibatches=2, epsilon=config.dropout, epsilon_steps=100.0, **AGENT)
    return learners.pqn(choice(), model, optax.radam(config.learning_rate), **settings)


REMEMBERING = dict(num_envs=2, rollout_steps=3, start=20, batch_size=16, **AGENT)  # full within the laws' steps


def remembering(config: Config, info: None) -> foldax.Learner:
    settings = dict(
        memory=learners.Memory(35), epsilon=config.dropout, epsilon_steps=50.0, target_period=12, double=True
    )
    optimizer = optax.adam(config.learning_rate)
    return learners.dqn(choice(), models.QNetwork(2, hidden=(8,)), optimizer, **settings, **REMEMBERING)


def rainbow(config: Config, info: None) -> foldax.Learner:
    memory, head = learners.Memory(35, 3, True, 0.5, 1 - config.dropout), learners.heads.categorical(5, -1.0, 3.0)
    model = models.QNetwork(2, 5, (8, 8), dueling=True, noisy=True)
    settings = dict(memory=memory, head=head, epsilon=0.0, epsilon_steps=0.0, target_period=12, double=True)
    return learners.dqn(choice(), model, optax.adam(config.learning_rate), **settings, **REMEMBERING)


def soft(config: Config, info: None) -> foldax.Learner:
    networks = models.GaussianActor(1, (8,)), models.TwinCritic((8,))
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    settings = dict(memory=learners.Memory(35), descents=2, target_rate=config.dropout, **REMEMBERING)
    return learners.sac(continuous(), *networks, *optimizers, **settings)


def delayed(config: Config, info: None) -> foldax.Learner:
    networks = models.Actor(1, (8,)), models.TwinCritic((8,))
    optimizers = optax.adam(config.learning_rate), optax.adam(config.learning_rate)
    settings = dict(memory=learners.Memory(35), noise=learners.Noise(config.dropout), **REMEMBERING)
    return learners.td3(continuous(), *networks, *optimizers, **settings)


LEARNERS = {
    "classifier": tiny,
    "convolutional": foldax.Experiment(Config, convolutional, images, name="convolutional"),
    "regressor": foldax.Experiment(Config, regression, numbers, name="regressor"),
    "language_model": foldax.Experiment(Config, language, packed_tokens, name="language_model"),
    "sequence_classifier": foldax.Experiment(Config, recurrent, series, name="sequence_classifier"),
    "forecaster": foldax.Experiment(Config, forecasting, futures, name="forecaster"),
    "gaussian_regressor": foldax.Experiment(Config, uncertain, numbers, name="gaussian_regressor"),
    "autoencoder": foldax.Experiment(Config, denoising, numbers, name="autoencoder"),
    "vae": foldax.Experiment(Config, variational, images, name="vae"),
    "diffusion": foldax.Experiment(Config, denoised, images, name="diffusion"),
    "gan": foldax.Experiment(Config, adversarial, images, name="gan"),
    "kmeans": foldax.Experiment(Config, clusters, images, name="kmeans"),
    "simclr": foldax.Experiment(ByNeighbors, contrasting, images, name="simclr"),
    "byol": foldax.Experiment(ByNeighbors, foretelling, images, name="byol"),
    "masked_autoencoder": foldax.Experiment(Config, hiding, images, name="masked_autoencoder"),
    "mixture": foldax.Experiment(Config, gaussians, images, name="mixture"),
    "subset": foldax.Experiment(Config, few, tiny_dataset, name="subset"),
    "bandit": foldax.Experiment(Config, bandit, name="bandit"),
    "ppo": foldax.Experiment(Config, proximal, name="ppo"),
    "ppo_of_numbers": foldax.Experiment(Config, proximal_numbers, name="ppo_of_numbers"),
    "recurrent_ppo": foldax.Experiment(Config, proximal_with_memory, name="recurrent_ppo"),
    "a2c": foldax.Experiment(Config, advantage, name="a2c"),
    "reinforce": foldax.Experiment(Config, whole_episodes, name="reinforce"),
    "pqn": foldax.Experiment(Config, parallel, name="pqn"),
    "dqn": foldax.Experiment(Config, remembering, name="dqn"),
    "rainbow": foldax.Experiment(Config, rainbow, name="rainbow"),
    "sac": foldax.Experiment(Config, soft, name="sac"),
    "td3": foldax.Experiment(Config, delayed, name="td3"),
    "streaming": tiny._replace(dataset=lambda config: tiny_dataset(config, "stream"), name="streaming"),
}
OF_BITS_OR_BATCHES = ("resume", "sweep", "chunking", "learning")  # what environments on the host cannot keep
WITHOUT_DATASET = ("coverage", "learning")  # laws of examples and batches
OF_AGENTS = ("resume", "sweep", "tracing", *WITHOUT_DATASET)
EXEMPT = {("streaming", "sweep")}  # data on the host
EXEMPT |= {(name, law) for name, made in LEARNERS.items() if made.dataset is None for law in WITHOUT_DATASET}


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("name", LEARNERS)
def test_learner_keeps_the_law(name: str, law: str) -> None:
    skipped = laws.LAWS[law](laws.subject(LEARNERS[name]))
    assert (skipped is not None) == ((name, law) in EXEMPT), skipped


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_keeps_all_laws(path: Path) -> None:
    experiment, config = shrunk(path)
    subject = laws.subject(experiment, config)
    # Of agents, whose programs take long to compile, what an experiment adds to its learner, which keeps all laws above.
    agent = isinstance(config, foldax.Interaction)
    for name, law in laws.LAWS.items():
        if agent and name not in OF_AGENTS:
            continue
        exempt = subject.dataset is None and name in WITHOUT_DATASET
        exempt |= loop.unsaved(subject.dataset) is not None and name in OF_BITS_OR_BATCHES
        assert (law(subject) is not None) == exempt, name


# -- learners that break one law each --------------------------------------------------------------


def changed(update=None, evaluate=None, learner=None) -> foldax.Experiment:
    """The tiny experiment with a wrapped update or evaluate."""

    def make(config: Config, info: data.Info) -> foldax.Learner:
        made = (learner or tiny_learner)(config, info)
        if update is not None:
            made = made._replace(update=update(made, config))
        return made._replace(evaluate=evaluate(made)) if evaluate is not None else made

    return foldax.Experiment(Config, make, tiny_dataset, name="broken")


def nudged(state, amount):
    return state._replace(params=jax.tree.map(lambda x: x + amount, state.params))


def impure(learner, config):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        return nudged(state, np.float32(np.random.uniform(1e-3, 2e-3))), metrics

    return update


calls = {"count": 0}


def remembers_on_the_host(learner, config):
    def count(_):
        calls["count"] += 1
        return np.float32(calls["count"] * 1e-3)

    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        seen = io_callback(count, jax.ShapeDtypeStruct((), jnp.float32), metrics["loss"], ordered=True)
        return nudged(state, seen), metrics

    return update


def looks_at_the_clock(learner, config):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        now = io_callback(
            lambda _: np.float32(time.perf_counter_ns() % 1000 * 1e-6),
            jax.ShapeDtypeStruct((), jnp.float32),
            metrics["loss"],
        )
        return nudged(state, now), metrics

    return update


def amplifies_rounding(learner, config):
    def update(state, batch, key):
        state, metrics = learner.update(state, batch, key)
        chaos = jnp.sin(1e7 * batch["inputs"].astype(jnp.float32).mean() * metrics["loss"])
        return nudged(state, chaos), metrics

    return update


def needs_a_number(config, info):
    if config.dropout > 0:
        return tiny_learner(config, info)
    return tiny_learner(config, info)


def climbs(config, info):
    return learners.classifier(models.MLP((8, 2)), optax.sgd(-config.learning_rate), preprocess=info.standardize)


def evaluates_with_batch_statistics(learner):
    def evaluate(state, batch, key):
        values = learner.evaluate(state, batch, key)
        return {**values, "loss": values["loss"] - values["loss"].mean()}

    return evaluate


def evaluates_one_number(learner):
    return lambda state, batch, key: {"loss": learner.evaluate(state, batch, key)["loss"][:1]}


BROKEN = {
    "purity": (changed(impure), "two runs with the same seed differ.*randomness that is not its key's"),
    "chunking": (changed(looks_at_the_clock), "one chunk of 10 steps and four smaller ones differ"),
    "resume": (changed(remembers_on_the_host), "resumed differs from an uninterrupted one.*not in its state"),
    "sweep": (changed(remembers_on_the_host), "member 0 of a sweep differs from the same run alone"),
    "sharding": (changed(amplifies_rounding), "after 3 steps on 2 devices.*more than rounding"),
    "tracing": (changed(learner=needs_a_number), r"needs `dropout` as a Python number.*foldax\.structural"),
    "coverage": (
        changed(evaluate=evaluates_with_batch_statistics),
        "'loss' of an example depends on the other examples",
    ),
    "learning": (changed(learner=climbs), "it does not learn"),
}


@pytest.mark.parametrize("law", laws.LAWS)
def test_law_catches_a_broken_learner(law: str) -> None:
    experiment, sentence = BROKEN[law]
    with pytest.raises(foldax.FoldaxError, match=f"(?s){sentence}"):
        laws.LAWS[law](laws.subject(experiment))


def test_coverage_catches_values_that_are_not_per_example() -> None:
    with pytest.raises(laws.LawBroken, match="one value per example"):
        laws.coverage(laws.subject(changed(evaluate=evaluates_one_number)))
