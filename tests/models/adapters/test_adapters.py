"""Modules of Flax NNX and Equinox compute, train, save, load, predict and export as Linen modules do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import foldax
from foldax import augment, data, learners, models
from foldax.errors import ExperimentError
from foldax.models.adapters.checks import check_model
from tests.conftest import Config, tiny_arrays, tiny_dataset
from tests.models.adapters import networks
from tests.rl.environments import choice, continuous

ADAPTED = {"nnx": networks.from_nnx, "equinox": networks.from_equinox}
BATCH = {name: array[:16] for name, array in tiny_arrays().items()}


class Stack(nn.Module):
    layers: tuple


def as_equinox(params: dict) -> dict:
    """Parameters of the Linen network by the names, and in the layout, of Equinox."""
    dense = {name: {"weight": params[name]["kernel"].T, "bias": params[name]["bias"]} for name in ("hidden", "output")}
    return {**dense, "norm": {"weight": params["norm"]["scale"], "bias": params["norm"]["bias"]}}


# Computation


@pytest.mark.parametrize("library", ADAPTED)
def test_with_the_parameters_of_linen_steps_are_those_of_linen(library) -> None:
    translate = as_equinox if library == "equinox" else lambda params: params
    ours, theirs = (learners.classifier(model, optax.sgd(0.1)) for model in (ADAPTED[library](6, 2), networks.Linen(2)))
    expected = theirs.init(jax.random.key(0), BATCH)
    state = ours.init(jax.random.key(0), BATCH)._replace(params=translate(expected.params))
    for _ in range(2):
        state, metrics = jax.jit(ours.update)(state, BATCH, jax.random.key(1))
        expected, expected_metrics = jax.jit(theirs.update)(expected, BATCH, jax.random.key(1))
        np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, translate(expected.params))
    if library == "nnx":  # Equinox corrects the bias of its running statistics
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.model_state, expected.model_state)
        outputs, expected_outputs = (
            learner.predict(s, BATCH["inputs"], jax.random.key(0)) for learner, s in ((ours, state), (theirs, expected))
        )
        np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-5, atol=1e-6)


def test_variables_have_the_paths_of_the_modules() -> None:
    def shapes(model):
        return jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 6))))

    assert shapes(networks.from_nnx(6, 2)) == shapes(networks.Linen(2))
    variables = shapes(networks.from_equinox(6, 2))
    assert variables["params"]["hidden"] == {"weight": (8, 6), "bias": (8,)}
    assert variables["state"] == {"norm": {"batch_counter": (), "batch_state_index": {"0": (8,), "1": (8,)}}}
    assert variables["constants"] == {"noise_key": ()}


@pytest.mark.parametrize("library", ADAPTED)
def test_dropout_follows_the_mode_and_the_key(library) -> None:
    model = ADAPTED[library](6, 2, rate=0.5)
    variables = model.init(jax.random.key(0), BATCH["inputs"])

    def outputs(seed: int, train: bool):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, BATCH["inputs"], train=train, rngs=rngs, mutable=["batch_stats", "state"])[0]

    np.testing.assert_array_equal(outputs(0, False), outputs(1, False))
    np.testing.assert_array_equal(outputs(0, False), model.apply(variables, BATCH["inputs"]))
    np.testing.assert_array_equal(outputs(0, True), outputs(0, True))
    assert not np.array_equal(outputs(0, True), outputs(1, True))
    assert not np.array_equal(outputs(0, True), outputs(0, False))


@pytest.mark.parametrize("library", ADAPTED)
def test_initial_parameters_are_a_function_of_the_key(library) -> None:
    model = ADAPTED[library](6, 2)
    first, same, other = (model.init(jax.random.key(seed), BATCH["inputs"])["params"] for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, same)))
    assert not np.array_equal(jax.tree.leaves(first["hidden"])[1], jax.tree.leaves(other["hidden"])[1])


def test_a_traced_rate_of_equinox_is_no_parameter() -> None:
    @jax.jit
    def outputs(rate):
        model = networks.from_equinox(6, 2, rate)
        variables = model.init(jax.random.key(0), BATCH["inputs"])
        assert sorted(variables["params"]) == ["hidden", "norm", "output"]
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(variables, BATCH["inputs"], train=True, rngs=rngs, mutable=["state"])[0]

    assert not np.array_equal(outputs(0.1), outputs(0.9))


def test_arguments_and_attributes_of_a_module() -> None:
    class Denoiser(eqx.Module):
        linear: eqx.nn.Linear
        num_classes: int = 3

        def __call__(self, x, *, times, labels):
            return self.linear(x.ravel()).reshape(x.shape) * times + labels

    class Mode(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.offset = jnp.arange(2.0)[None]  # a constant

        def __call__(self, x, train: bool):
            return x * self.scale[...] + self.offset + train

    model = models.from_equinox(lambda key: Denoiser(eqx.nn.Linear(4, 4, key=key)))
    learner = learners.diffusion(model, optax.adam(1e-3), shape=(2, 2, 1))
    batch = {"inputs": jnp.zeros((5, 2, 2, 1)), "targets": jnp.zeros(5, jnp.int32)}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    assert jax.eval_shape(learner.update, state, batch, jax.random.key(0))[1]["loss"].shape == ()
    assert (learner.sampler.num_classes, getattr(model, "vocabulary_size", None)) == (3, None)
    mode = models.from_nnx(Mode)
    variables = mode.init(jax.random.key(0), jnp.ones((1, 2)))
    assert list(variables) == ["params"]
    assert mode.apply(variables, jnp.ones((1, 2)), train=True).tolist() == [[2.0, 3.0]]


# Learners


def experiment(library: str, **options) -> foldax.Experiment:
    def learner(config: Config, info: data.Info) -> foldax.Learner:
        model = ADAPTED[library](6, info.num_classes, rate=0.1, **options)
        settings = dict(ema_decay=0.9, microbatches=2, frozen=("hidden",), l2=1e-4)
        return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize, **settings)

    return foldax.Experiment(Config, learner, tiny_dataset, name=library)


@pytest.mark.parametrize(("library", "options"), [("nnx", {}), ("equinox", {"noise_scale": 0.1})], ids=ADAPTED)
def test_a_classifier_trains_saves_loads_predicts_and_exports(library, options, tmp_path) -> None:
    adapted = experiment(library, **options)
    result = foldax.train(adapted, Config(steps=40, learning_rate=0.05), run_dir=tmp_path / "r", verbose=False)
    assert result.metrics["test"]["loss"] < 0.6
    loaded, inputs = foldax.load_run(tmp_path / "r", adapted), BATCH["inputs"]
    np.testing.assert_array_equal(loaded.predict(inputs), result.predict(inputs))
    foldax.export(loaded, tmp_path / "export", platforms=("cpu",), verbose=False)  # compares the program's outputs


@pytest.mark.parametrize("library", ADAPTED)
def test_agents_take_adapted_networks(library) -> None:
    class QNetworkNNX(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)[..., None]

    class QNetworkEquinox(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            return self.linear(x)[:, None]

    make = {
        "nnx": models.from_nnx(QNetworkNNX),
        "equinox": models.from_equinox(lambda key: QNetworkEquinox(eqx.nn.Linear(3, 2, key=key))),
    }
    settings = learners.DQNSettings(batch_size=4)
    counts = dict(environment_steps=100, rollout_steps=2, learning_starts=8)
    agent = learners.dqn(choice(), make[library], optax.adam(1e-3), settings, **counts)
    state = jax.eval_shape(agent.init, jax.random.key(0), None)
    assert jax.eval_shape(agent.update, state, None, jax.random.key(0))[1]["loss"].shape == ()
    stateful = learners.dqn(choice(), ADAPTED[library](3, 2), optax.adam(1e-3), settings, **counts)
    with pytest.raises(ExperimentError, match=r"needs the collection .* \(agents keep parameters alone"):
        jax.eval_shape(stateful.init, jax.random.key(0), None)


def test_networks_of_several_parts_take_adapted_ones() -> None:
    def dense(inputs: int, outputs: int):
        return models.from_nnx(lambda rngs: nnx.Linear(inputs, outputs, rngs=rngs))

    def mlp(inputs: int, outputs: int):
        return models.from_equinox(lambda key: eqx.nn.MLP(inputs, outputs, 4, 1, key=key))

    class ActorCritic(eqx.Module):
        actor: eqx.nn.Linear
        critic: eqx.nn.Linear

        def __call__(self, x):
            return models.ActorCriticOutput(models.Categorical(self.actor(x)), self.critic(x)[0])

    def actor_critic(key):
        return ActorCritic(eqx.nn.Linear(3, 2, key=key), eqx.nn.Linear(3, 1, key=key))

    optimizer, noise = optax.adam(1e-3), augment.gaussian_noise(0.1)
    vae = learners.VAE(dense(6, 4), mlp(2, 6), learners.likelihoods.gaussian(0.5))
    heads = models.ProjectionNetwork(mlp(6, 4), dense(4, 3), dense(3, 3))
    gan = learners.GAN(mlp(2, 6), dense(6, 1), shape=(6,), latent_size=2)
    agent = learners.ppo(choice(), models.from_equinox(actor_critic), optimizer, num_envs=4, rollout_steps=4)
    made = (
        (learners.vae(vae, optimizer), BATCH),
        (learners.byol(heads, optimizer, views=noise), BATCH),
        (learners.autoencoder(models.Autoencoder(dense(6, 2), mlp(2, 6), (6,)), optimizer), BATCH),
        (learners.gan(gan, optimizer, optimizer), BATCH),
        (agent, None),
    )
    for learner, batch in made:
        state = jax.eval_shape(learner.init, jax.random.key(0), batch)
        updated, _ = jax.eval_shape(learner.update, state, batch, jax.random.key(1))
        assert jax.tree.structure(updated) == jax.tree.structure(state)


# Errors


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        (nnx.Linear(6, 2, rngs=nnx.Rngs(0)), r"models\.from_nnx\(lambda rngs: Linear"),
        (eqx.nn.Linear(6, 2, key=jax.random.key(0)), r"models\.from_equinox\(lambda key: Linear"),
    ],
    ids=ADAPTED,
)
def test_a_module_without_adapter_is_refused_by_name(module, remedy) -> None:
    optimizer, likelihood = optax.sgd(0.1), learners.likelihoods.bernoulli()
    made = (
        lambda: learners.classifier(module, optimizer),
        lambda: learners.diffusion(module, optimizer, shape=(2, 2, 1)),
        lambda: learners.byol(module, optimizer, views=augment.gaussian_noise(0.1)),
        lambda: learners.masked_autoencoder(module, optimizer),
        lambda: learners.recurrent_ppo(choice(), module, optimizer, num_envs=4, rollout_steps=4),
        lambda: learners.ppo(choice(), module, optimizer, num_envs=4, rollout_steps=4).init(jax.random.key(0), None),
        lambda: learners.td3(
            continuous(), models.DeterministicActor(1), module, optimizer, optimizer, environment_steps=99
        ).init(jax.random.key(0), None),
    )
    for make in made:
        with pytest.raises(ExperimentError, match=rf"^model: Linear is a module of .* {remedy}"):
            make()
    with pytest.raises(ExperimentError, match=rf"^model\.encoder: Linear .* {remedy}"):
        learners.vae(learners.VAE(module, models.MLP((6,)), likelihood), optimizer)
    with pytest.raises(ExperimentError, match=rf"^model\.network: Linear .* {remedy}"):
        check_model(models.SpectralNorm(module))
    for adapter in (models.from_nnx, models.from_equinox):
        with pytest.raises(ExperimentError, match=rf"takes a function that builds the module: {remedy}"):
            adapter(module)
    adapter = models.from_nnx if isinstance(module, nnx.Module) else models.from_equinox
    with pytest.raises(ExperimentError, match="the function must return an .*Module, got a int"):
        adapter(lambda _: 3).init(jax.random.key(0), jnp.ones((1, 6)))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ExperimentError, match="a function is no model: pass a Flax Linen module"):
        check_model(lambda x: x)
    with pytest.raises(ExperimentError, match=r"model\.layers\[0\]: Linear"):
        check_model(Stack((nnx.Linear(1, 1, rngs=nnx.Rngs(0)),)))
