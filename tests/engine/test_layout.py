"""Runs over several devices: which array is divided where, and that nothing but the layout changes."""

import functools
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import foldax
from foldax import data, laws, learners, mesh, models
from foldax.engine import compiled, loop, setup
from foldax.engine import fold as folds
from foldax.engine import layout as layouts
from foldax.engine.layout import Layout
from foldax.engine.state import Callbacks
from foldax.errors import ConfigError, ExperimentError
from tests.conftest import Config, tiny, tiny_dataset
from tests.rl.environments import choice


def make_layout(text: str, threshold: int = 0, rules: tuple = ()) -> Layout:
    """A layout over eight devices that need not exist."""
    sizes = mesh.mesh_sizes(text, 8)
    return Layout(AbstractMesh(tuple(sizes.values()), mesh.AXES, axis_types=(AxisType.Auto,) * 3), rules, threshold)


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=8", (8, 1, 1)),
        (" fsdp = 4 , data=2", (2, 4, 1)),
        ("fsdp=-1", (1, 8, 1)),
        ("data=2,tensor=-1", (2, 1, 4)),
        ("data=3", (3, 1, 1)),
    ],
)
def test_the_sizes_of_a_mesh(text: str, sizes: tuple[int, ...]) -> None:
    assert tuple(mesh.mesh_sizes(text, 8).values()) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fspd=2", "'fspd=2' has no axis of a mesh in 'fspd=2'; did you mean 'fsdp'?"),
        ("2", "has no axis of a mesh in '2'"),
        ("", "has no axis of a mesh"),
        ("data=0", "'0' is no size of 'data'"),
        ("data=²", "'²' is no size of 'data'"),
        ("data", "'' is no size of 'data'"),
        ("data=2,data=2", "must name each axis once"),
        ("data=-1,fsdp=-1", "have one -1 at most"),
        ("data=4,fsdp=4", "takes 16 devices, but this machine has 8"),
        ("data=3,fsdp=-1", "3 devices do not divide those that -1 shares out"),
    ],
)
def test_what_is_no_mesh_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        mesh.mesh_sizes(text, 8)


def test_devices_that_make_no_grid_are_an_error(monkeypatch) -> None:
    def make_mesh(*args: Any, **kwargs: Any) -> None:
        raise AssertionError  # as JAX does for three of the four TPUs of a host

    monkeypatch.setattr(jax, "make_mesh", make_mesh)
    with pytest.raises(ConfigError, match="the first 3 of the 4 devices are no complete grid"):
        layouts.make_mesh("data=3", [None] * 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15}, "data (2) and fsdp (1) of 'data=2' do not divide the batch size, 15"),
        ({"batch_size": 16, "mesh": "data=4"}, "'data=4' takes 4 devices, but this machine has 2"),
    ],
)
def test_a_batch_that_devices_do_not_divide_is_an_error(changes: dict, message: str) -> None:
    config = Config(**{"mesh": "data=2", **changes})
    with pytest.raises(ConfigError, match=re.escape(message)):
        setup.make_program(tiny, config, tiny_dataset(config))


def test_environments_that_devices_do_not_divide_are_an_error() -> None:
    def agent(config: foldax.RLTraining, info: None) -> foldax.Learner:
        return foldax.Learner(min, min, min, environment_steps=foldax.learner.EnvironmentSteps(0, 6))

    config = foldax.RLTraining(num_envs=3, rollout_steps=2, mesh="data=2")
    with pytest.raises(ConfigError, match=re.escape("do not divide the num_envs, 3, into equal parts")):
        setup.make_program(foldax.Experiment(foldax.RLTraining, agent), config, None)


@pytest.mark.parametrize(
    ("rule", "message"),
    [(("kernel", (None, "tenser")), "the axis 'tenser'; did you mean 'tensor'?"), (("(", ()), "no regular expression")],
)
def test_a_rule_that_cannot_be_kept_is_an_error(rule: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(message)):
        make_layout("fsdp=8").with_rules([rule])


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/mlp_in/kernel", (16, 64), P("fsdp", "tensor")),
        ("optimizer_state/0/mu/blocks/mlp_in/kernel", (3, 16, 64), P(None, "fsdp", "tensor")),
        ("params/mlp_in/kernel", (16, 7), P("fsdp", None)),  # the rule does not fit
        ("params/mlp_in/kernel", (64,), P("fsdp")),
        ("params/other/kernel", (16, 32), P(None, "fsdp")),  # the largest axis
        ("params/other/kernel", (6, 4, 7), P(None, "fsdp", None)),
        ("params/other/kernel", (6, 7), P(None, None)),
        ("params/other/bias", (4,), P(None)),  # too small
        ("step", (), P()),
        ("state/environment_state/observation", (8, 3), P(("data", "fsdp"), None)),
        ("state/environment_state/episode_return", (9,), P(None)),
    ],
)
def test_the_layout_of_an_array(path: str, shape: tuple[int, ...], spec: P) -> None:
    layout = make_layout("data=1,fsdp=4,tensor=2", 8, ((r"mlp_in/kernel$", (None, "tensor")),))
    assert layout.spec(path, shape) == spec


def state_share(model: Any, inputs: jax.ShapeDtypeStruct) -> float:
    """Fraction of the bytes of a classifier's state, with Adam, that one of eight devices holds."""
    optimizer = optax.adam(1e-3)
    learner = learners.classifier(model, optimizer)
    batch = {"inputs": inputs, "targets": jax.ShapeDtypeStruct(inputs.shape[:1], jnp.int32)}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    layout = make_layout("fsdp=8", 2**10, learner.sharding_rules)
    shardings = jax.tree.leaves(layout.shardings(state), is_leaf=lambda x: isinstance(x, NamedSharding))
    leaves = jax.tree.leaves(state)
    whole = sum(leaf.dtype.itemsize * leaf.size for leaf in leaves)
    parts = [math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize for s, leaf in zip(shardings, leaves)]
    return sum(parts) / whole


def test_a_device_holds_its_share_of_the_state() -> None:
    image = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    transformer = models.Transformer(64, width=64, depth=3, num_heads=4, pooling="mean", scan_layers=True)
    series = jax.ShapeDtypeStruct((8, 10, 3), jnp.float32)
    assert state_share(transformer, series) < 0.15
    assert state_share(models.Recurrent(8, (128, 128), "lstm", pooling="last"), series) < 0.15
    assert state_share(models.ResNet(10, depth=20), image) < 0.2


# -- runs ------------------------------------------------------------------------------------------


def language_dataset(config: Config) -> data.Dataset:
    tokens = np.random.RandomState(0).randint(0, 12, (72, 9))
    return data.from_arrays({"inputs": tokens}, batch_size=config.batch_size, vocabulary_size=12)


def language_model(config: Config, info: data.Info) -> foldax.Learner:
    model = models.Transformer(vocabulary_size=12, width=16, depth=2, num_heads=2, causal=True, scan_layers=True)
    return learners.language_model(model.clone(features=12), optax.adam(config.learning_rate))


language = foldax.Experiment(Config, language_model, language_dataset, name="language")


def test_one_device_emits_no_constraint() -> None:
    run = setup.start_run(language, Config(), Callbacks(), None)
    assert run.program.layout is None
    assert run.program.num_devices == 1
    arguments = run.arguments
    step = functools.partial(folds.advance_one_step, run.program)
    jaxpr = jax.make_jaxpr(step)(arguments["config"], arguments["seed"], run.fold, run.block.data, jnp.int32(0))
    assert "sharding_constraint" not in str(jaxpr)


def test_rows_that_fill_up_a_device_reach_neither_init_nor_batches() -> None:
    inputs = np.arange(1.0, 100.0, dtype=np.float32)[:, None]

    def dataset(config: Config) -> data.Dataset:
        return data.from_arrays({"inputs": inputs}, batch_size=2, validation=0, test=0)

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        def update(state: Any, batch: Any, key: Any) -> Any:
            return {**state, "seen": state["seen"] + batch["inputs"].sum()}, {"loss": jnp.float32(0)}

        init = lambda key, examples: {"sum": examples["inputs"].sum(), "seen": jnp.float32(0)}  # noqa: E731
        return foldax.Learner(init, update, lambda state, batch, key: {"loss": batch["inputs"][:, 0]})

    experiment = foldax.Experiment(Config, learner, dataset, name="sums")
    run = setup.start_run(experiment, Config(mesh="data=2", steps=49, keep="last"), Callbacks(), None)
    array = run.block.data["inputs"]
    assert array.shape == (100, 1)
    assert [len(shard.data) for shard in array.addressable_shards] == [50, 50]
    assert len(run.dataset.train.examples()["inputs"]) == 99
    loop.advance(run, 49)  # one epoch, of which the last, incomplete batch is dropped
    state = jax.device_get(run.fold.state)
    assert state["sum"] == inputs.sum()
    assert inputs.sum() - state["seen"] in inputs


def test_an_agent_acts_in_each_environment_on_one_device() -> None:
    @foldax.config
    class AgentConfig(foldax.RLTraining):
        environment_steps: int = 64
        num_envs: int = 4
        rollout_steps: int = 4
        learning_rate: float = 1e-2

    def agent(config: AgentConfig, info: None) -> foldax.Learner:
        settings = learners.PPOSettings(num_epochs=1, num_minibatches=2, evaluation_episodes=2, evaluation_steps=6)
        model, optimizer = models.ActorCritic(2, hidden=(8,)), optax.adam(config.learning_rate)
        sizes = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps)
        return learners.ppo(choice(), model, optimizer, settings, **sizes)

    subject = laws.make_subject(foldax.Experiment(AgentConfig, agent, name="agent"))
    assert laws.sharding(subject) is None
    state = subject.start_run(mesh="data=2").fold.state.environment_state
    assert [len(shard.data) for shard in state.episode_return.addressable_shards] == [2, 2]


@pytest.fixture(scope="module", params=["fsdp=2", "tensor=2"])
def divided(request: pytest.FixtureRequest) -> Any:
    """A run of a language model on two devices before its first step, in which small arrays are divided, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "MIN_DIVIDED_SIZE", 16)
        yield setup.start_run(language, Config(mesh=request.param), Callbacks(), None)


def test_a_divided_run_agrees_with_one_device_is_donated_and_compiles_once(divided: Any) -> None:
    one = setup.start_run(language, Config(), Callbacks(), None)
    kernel = divided.fold.state.params["blocks"]["Block_0"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    loop.advance(one, 3)
    before, shardings = dict(compiled.trace_counts), jax.tree.map(lambda x: x.sharding, divided.fold)
    for end in (1, 3):
        leaves = jax.tree.leaves(divided.fold)
        loop.advance(divided, end)
        divided.step = end
        assert all(leaf.is_deleted() for leaf in leaves)
    assert compiled.trace_counts["advance"] == before["advance"] + 1
    assert jax.tree.map(lambda x: x.sharding, divided.fold) == shardings
    chex.assert_trees_all_close(
        jax.device_get(one.fold.state), jax.device_get(divided.fold.state), rtol=1e-3, atol=1e-4
    )


def test_no_device_gathers_the_batch(divided: Any) -> None:
    arguments = {name: divided.arguments[name] for name in ("config", "seed", "data")}
    zero = np.int32(0)
    bounds = dict(stopped=divided.best.stopped, block_start=zero, until=zero, log_every=np.int32(1))
    advance = jax.jit(folds.advance, static_argnames="program")
    text = advance.lower(divided.program, fold=divided.fold, **arguments, **bounds).compile().as_text()
    gathered = re.findall(r"= (\S+) all-gather", text)
    # Activations are [16, 9, ...] or [144, ...]; no parameter is.
    assert gathered
    assert not [shape for shape in gathered if re.search(r"\b(144|16,9)\b", shape)]
