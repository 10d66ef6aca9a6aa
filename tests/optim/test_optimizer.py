"""Optimizers from configs equal the Optax chains written by hand; their floats are traced."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import foldax
from foldax import cli, data, learners, models, optim
from foldax.config_fields import field_types
from foldax.configuration import traced_config, without_driver_fields
from foldax.errors import ConfigError
from foldax.optim.optimizer import RULES, SCHEDULES, _hidden_matrices
from foldax.sweeps import command
from foldax.sweeps.space import enumerate_overrides, member_configs, structure
from tests.conftest import tiny_arrays

PARAMS = {
    "Dense_0": {"kernel": jnp.asarray(np.random.RandomState(0).randn(5, 4), jnp.float32), "bias": jnp.ones(4)},
    "blocks": {"kernel": jnp.full((2, 3, 3), 0.5), "bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3))},
    "output": {"kernel": jnp.full((4, 2), 0.5)},
    "gone": None,
}
KERNELS = {
    "Dense_0": {"kernel": True, "bias": False},
    "blocks": {"kernel": True, "bias": False, "scale": False},
    "output": {"kernel": True},
    "gone": None,
}
RATE, DECAY, CLIP = 0.03, 0.1, 0.7
BETAS = dict(beta1=0.8, beta2=0.95)
ADAM = dict(**BETAS, epsilon=1e-3)
OPTAX_ADAM = dict(b1=0.8, b2=0.95, eps=1e-3)


def l2(rule):
    return optax.chain(optax.add_decayed_weights(DECAY, KERNELS), rule)


def rates():
    return optax.linear_schedule(RATE, 0.2 * RATE, 4)


# The fields of each optimizer, and the same optimizer by hand with Python hyperparameters.
BY_HAND = {
    "sgd": ({}, lambda: l2(optax.sgd(rates()))),
    "momentum": (dict(momentum=0.7), lambda: l2(optax.sgd(rates(), momentum=0.7))),
    "nesterov": (dict(momentum=0.7), lambda: l2(optax.sgd(rates(), momentum=0.7, nesterov=True))),
    "rmsprop": (
        dict(momentum=0.7, beta2=0.95, epsilon=1e-3),
        lambda: l2(optax.rmsprop(rates(), 0.95, 1e-3, momentum=0.7)),
    ),
    "adagrad": (dict(epsilon=1e-3), lambda: l2(optax.adagrad(rates(), eps=1e-3))),
    "adadelta": (dict(beta2=0.95, epsilon=1e-3), lambda: l2(optax.adadelta(rates(), 0.95, 1e-3))),
    "adam": (ADAM, lambda: l2(optax.adam(rates(), **OPTAX_ADAM))),
    "adamw": (ADAM, lambda: optax.adamw(rates(), **OPTAX_ADAM, weight_decay=DECAY, mask=KERNELS)),
    "nadam": (ADAM, lambda: l2(optax.nadam(rates(), **OPTAX_ADAM))),
    "nadamw": (ADAM, lambda: optax.nadamw(rates(), **OPTAX_ADAM, weight_decay=DECAY, mask=KERNELS)),
    "adamax": (ADAM, lambda: l2(optax.adamax(rates(), **OPTAX_ADAM))),
    "adamaxw": (ADAM, lambda: optax.adamaxw(rates(), **OPTAX_ADAM, weight_decay=DECAY, mask=KERNELS)),
    "amsgrad": (ADAM, lambda: l2(optax.amsgrad(rates(), **OPTAX_ADAM))),
    "radam": (ADAM, lambda: l2(optax.radam(rates(), **OPTAX_ADAM))),
    "adabelief": (ADAM, lambda: l2(optax.adabelief(rates(), **OPTAX_ADAM))),
    "yogi": (ADAM, lambda: l2(optax.yogi(rates(), **OPTAX_ADAM))),
    "adan": (ADAM, lambda: optax.adan(rates(), **OPTAX_ADAM, weight_decay=DECAY, mask=KERNELS)),
    "lion": (BETAS, lambda: optax.lion(rates(), 0.8, 0.95, weight_decay=DECAY, mask=KERNELS)),
    "lamb": (ADAM, lambda: optax.lamb(rates(), **OPTAX_ADAM, weight_decay=DECAY, mask=KERNELS)),
    "lars": (
        dict(momentum=0.7, epsilon=1e-3),
        lambda: optax.lars(rates(), DECAY, KERNELS, eps=1e-3, trust_ratio_mask=KERNELS, momentum=0.7),
    ),
    "muon": (
        dict(momentum=0.9, **ADAM),
        lambda: contrib.muon(
            rates(),
            beta=0.9,
            adam_b1=0.8,
            adam_b2=0.95,
            eps=1e-3,
            weight_decay=DECAY,
            weight_decay_mask=optim.decay_mask,
            muon_weight_dimension_numbers=_hidden_matrices,
        ),
    ),
    "adafactor": (
        dict(momentum=0.7, epsilon=1e-3),
        lambda: optax.adafactor(
            rates(),
            momentum=0.7,
            eps=1e-3,
            weight_decay_rate=lambda count: DECAY * rates()(count),
            weight_decay_mask=KERNELS,
        ),
    ),
}


def loss(params, target):
    return sum(jnp.sum(jnp.square(leaf - target) * (1 + 0.1 * i)) for i, leaf in enumerate(jax.tree.leaves(params)))


def descend(optimizer, params=PARAMS):
    """Takes twelve steps towards alternating targets, so that signs of gradients change."""

    def step(carry, target):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, target), state, params)
        return (optax.apply_updates(params, updates), state), None

    targets = jnp.asarray(np.random.RandomState(2).randn(12), jnp.float32)
    return jax.lax.scan(step, (params, optimizer.init(params)), targets)[0][0]


def assert_close(actual, expected, rtol=2e-5, atol=2e-6) -> None:
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_equals_optax_by_hand_and_traces_once(name) -> None:
    hyperparameters, by_hand = BY_HAND[name]
    config = optim.Optimizer(
        name=name,
        learning_rate=RATE,
        schedule="linear",
        final_fraction=0.2,
        weight_decay=DECAY,
        clip_norm=CLIP,
        **hyperparameters,
    )
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(config):
        return descend(optim.build(config, 4))

    actual = run(traced_config(config))
    expected = jax.jit(lambda: descend(optax.chain(optax.clip_by_global_norm(CLIP), by_hand())))()
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(actual["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"], rtol=1e-4)
    for field in ("learning_rate", "final_fraction", "weight_decay", *hyperparameters):  # each has an effect
        other = run(traced_config(dataclasses.replace(config, **{field: 0.6 * getattr(config, field)})))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), actual, other)
        assert not jax.tree.all(same), field


def test_muon_updates_hidden_matrices_and_adam_all_else() -> None:
    matrix, vector = jnp.ones((3, 2)), jnp.ones(2)
    dense = {"kernel": matrix, "bias": vector}
    block = {"query": dense, "output": dense, "norm": {"scale": jnp.ones((3, 2))}}  # stacked norms have rank 2
    params = {"Embed_0": {"embedding": matrix}, "blocks_0": block, "Dense_0": dense, "output": dense}

    def muon_paths(params):
        leaves = jax.tree_util.tree_leaves_with_path(optim.build(optim.Optimizer(name="muon"), 4).init(params))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        return {name.split("/mu/")[1] for name in names if "muon" in name and "/mu/" in name}

    assert muon_paths(params) == {"blocks_0/query/kernel", "blocks_0/output/kernel", "Dense_0/kernel"}
    assert muon_paths({f"Dense_{i}": dense for i in range(11)}) == {f"Dense_{i}/kernel" for i in range(10)}
    assert muon_paths({"Dense_0": dense, "Dense_1": {"kernel": None, "bias": None}}) == {"Dense_0/kernel"}


def test_noise_scales_and_tokens_do_not_decay() -> None:
    params = {"kernel": 0, "kernel_std": 0, "class_token": 0, "mask_token": 0, "positions": 0, "embedding": 0}
    mask = optim.decay_mask(jax.tree.map(lambda _: jnp.ones((1, 2, 3)), params))
    assert {name for name, decays in mask.items() if decays} == {"kernel", "positions", "embedding"}


@pytest.mark.parametrize("name", ["momentum", "adamw", "lars", "adafactor"])
def test_fields_that_are_none_are_the_defaults_of_optax(name) -> None:
    rule = RULES[name]
    no_decay = {rule.weight_decay: 0.0} if rule.weight_decay else {}
    masks = {"trust_ratio_mask": KERNELS} if name == "lars" else {}
    expected = jax.jit(lambda: descend(rule.factory(RATE, **no_decay, **masks)))()
    actual = jax.jit(lambda config: descend(optim.build(config, 4)))(
        traced_config(optim.Optimizer(name=name, learning_rate=RATE))
    )
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_the_function_of_its_name(name) -> None:
    hyperparameters = {
        "piecewise": dict(milestones=(0.25, 0.5), factor=0.3),
        "restarts": dict(num_cycles=2, cycle_growth=2.0),
    }
    config = optim.Optimizer(schedule=name, learning_rate=0.3, warmup_fraction=0.25, **hyperparameters.get(name, {}))
    rate = optim.build_schedule(config, 12)
    expected = SCHEDULES[name](0.3, 12, warmup_fraction=0.25, **hyperparameters.get(name, {}))
    counts = jnp.arange(12)
    np.testing.assert_array_equal(jax.vmap(rate)(counts), jax.vmap(expected)(counts))


def test_names_of_the_config_are_those_of_the_tables() -> None:
    hints = field_types(optim.Optimizer)
    assert hints["name"].__args__ == tuple(RULES)
    assert hints["schedule"].__args__ == tuple(SCHEDULES)
    assert BY_HAND.keys() == RULES.keys()


def test_weight_decay_acts_on_kernels_only_whether_stacked_or_not() -> None:
    assert optim.decay_mask(PARAMS) == KERNELS
    for scan in (False, True):
        model = models.ViT(3, depth=2, width=8, num_heads=2, scan_layers=scan)
        params = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))["params"]
        acts = jax.tree_util.tree_leaves_with_path(optim.decay_mask(params))
        names = {path[-1].key for path, leaf in acts if leaf}
        left = {path[-1].key for path, leaf in acts if not leaf}
        assert names == {"kernel", "positions"}
        assert left == {"bias", "scale", "class_token"}


@pytest.mark.parametrize(
    "name", ["momentum", "nesterov", "adam", "adamw", "nadamw", "amsgrad", "lion", "muon", "adafactor"]
)
def test_moving_averages_are_stored_in_bfloat16_and_parameters_in_float32(name) -> None:
    fields = {"momentum": 0.9} if name == "adafactor" else {}
    updated, sizes = {}, {}
    for dtype in (None, "bfloat16"):
        optimizer = optim.build(optim.Optimizer(name=name, learning_rate=RATE, mu_dtype=dtype, **fields), 12)
        state = jax.eval_shape(optimizer.init, PARAMS)
        sizes[dtype] = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16)
        updated[dtype] = jax.eval_shape(functools.partial(descend, optimizer))
    # One value for each parameter, but for those without a momentum.
    assert sizes[None] == 0 < sizes["bfloat16"] <= sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert updated["bfloat16"] == updated[None]


def test_biases_do_not_decay() -> None:
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    optimizer = optim.build(optim.Optimizer(name="adamw", learning_rate=0.5, weight_decay=0.5), 3)
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    expected = jax.tree.map(lambda p, acts: -0.25 * p if acts else 0 * p, PARAMS, KERNELS)
    assert_close(updates, expected)


def test_gradients_are_clipped_by_value_or_by_norm() -> None:
    gradients = jax.tree.map(lambda p: 3.0 * jnp.ones_like(p), PARAMS)

    def norm(**clip):
        optimizer = optim.build(optim.Optimizer(name="sgd", learning_rate=1.0, **clip), 3)
        return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]

    assert float(optax.tree.norm(norm(clip_norm=0.5))) == pytest.approx(0.5)
    assert_close(norm(clip_value=0.2), jax.tree.map(lambda p: jnp.full_like(p, -0.2), PARAMS))
    assert_close(norm(clip_norm=1e6), jax.tree.map(jnp.negative, gradients))


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_accumulated_steps_equal_the_larger_batch(name) -> None:
    batch = jnp.asarray(np.random.RandomState(1).randn(24, 5), jnp.float32)
    config = optim.Optimizer(name=name, learning_rate=0.1, schedule="linear", weight_decay=0.1, clip_norm=0.5)

    def run(config, size):
        def step(carry, part):
            params, state = carry
            gradients = jax.grad(lambda p: jnp.square(part @ p["Dense_0"]["kernel"] - 1.0).mean())(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        optimizer = optim.build(config, 24 // size)
        parts = batch.reshape(-1, size, 5)
        return jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), parts)[0][0]

    expected = jax.jit(lambda config: run(config, 8))(traced_config(config))
    actual = jax.jit(lambda config: run(config, 2))(traced_config(dataclasses.replace(config, accumulate_steps=4)))
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(actual["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"])


def test_wrong_fields_are_errors_that_name_them() -> None:
    with pytest.raises(ConfigError, match="Optimizer.name: .*'adammw'.*did you mean 'adamw'"):
        optim.Optimizer(name="adammw")
    with pytest.raises(ConfigError, match="Optimizer.schedule: .*did you mean 'cosine'"):
        optim.Optimizer(schedule="cosin")
    with pytest.raises(ConfigError, match="'learning_rat'; did you mean 'learning_rate'"):
        optim.Optimizer(learning_rat=1.0)
    with pytest.raises(ConfigError, match="Optimizer.beta1: the optimizer 'momentum' has no such field .*momentum"):
        optim.build(optim.Optimizer(name="momentum", beta1=0.9), 3)
    with pytest.raises(
        ConfigError, match="Optimizer.power: the schedule 'cosine' has no such.*final_fraction, warmup_fraction"
    ):
        optim.build(optim.Optimizer(schedule="cosine", power=2.0), 3)
    with pytest.raises(ConfigError, match="Optimizer.final_fraction: the schedule 'constant' has no such"):
        optim.build(optim.Optimizer(final_fraction=0.1), 3)
    with pytest.raises(ConfigError, match="Optimizer.mu_dtype: the optimizer 'lamb' has no such field"):
        optim.build(optim.Optimizer(name="lamb", mu_dtype="bfloat16"), 3)
    for field, value in [
        ("learning_rate", -1.0),
        ("warmup_fraction", 1.5),
        ("beta2", -0.1),
        ("accumulate_steps", 0),
        ("num_cycles", 0),
    ]:
        with pytest.raises(ConfigError, match=f"Optimizer.{field}: .*out of range.*must be"):
            optim.Optimizer(**{field: value})
    with pytest.raises(ConfigError, match=r"Optimizer.milestones: 2.0 is out of range"):
        optim.Optimizer(milestones=(0.5, 2.0))
    with pytest.raises(ConfigError, match="nan"):
        optim.Optimizer(learning_rate=float("nan"))


@foldax.config
class Config(foldax.Training):
    steps: int = 12
    log_every: int = 4
    optimizer: optim.Optimizer = optim.Optimizer(
        learning_rate=3e-3, schedule="cosine", warmup_fraction=0.1, clip_norm=1.0
    )


def dataset(config):
    return data.from_arrays(tiny_arrays(), batch_size=16)


def learner(config, info):
    return learners.classifier(models.MLP((8, info.num_classes)), optim.build(config.optimizer, config.steps))


nested = foldax.Experiment(Config, learner, dataset, name="nested")


def test_an_experiment_trains_with_a_nested_optimizer_and_runs_again_without_a_new_program() -> None:
    first = foldax.train(nested, Config(), save=False, verbose=False)
    rate = dataclasses.replace(Config().optimizer, learning_rate=0.1)
    second = foldax.train(nested, Config(optimizer=rate), save=False, verbose=False)
    assert second.metrics["train"]["loss"] < first.metrics["train"]["loss"]
    assert jax.tree.structure(without_driver_fields(Config())) == jax.tree.structure(
        without_driver_fields(Config(optimizer=rate))
    )


def test_the_command_line_sets_its_fields(capsys) -> None:
    config = cli.parse_config(nested, ["--optimizer.learning-rate", "1e-2", "--optimizer.name", "lion"])
    assert config.optimizer.learning_rate == 1e-2
    assert config.optimizer.name == "lion"
    assert config.optimizer.clip_norm == 1.0
    config = cli.parse_config(nested, ["--optimizer.milestones", "0.3", "0.6", "--optimizer.clip-norm", "None"])
    assert config.optimizer.milestones == (0.3, 0.6)
    assert config.optimizer.clip_norm is None
    with pytest.raises(ConfigError, match="--optimizer.learning-rat.*did you mean '--optimizer.learning-rate'"):
        cli.parse_config(nested, ["--optimizer.learning-rat", "1"])
    with pytest.raises(ConfigError, match="adanw"):
        cli.parse_config(nested, ["--optimizer.name", "adanw"])
    with pytest.raises(SystemExit):
        cli.parse_config(nested, ["--help"])
    text = capsys.readouterr().out
    assert "--optimizer.learning-rate float" in text
    assert "Peak of the learning-rate schedule" in " ".join(text.replace("│", " ").split())


def test_a_sweep_varies_its_fields_in_one_program_for_each_name() -> None:
    texts = [
        "--optimizer.learning-rate",
        "1e-3",
        "1e-2",
        "--optimizer.name",
        "sgd",
        "adamw",
        "--optimizer.final-fraction=0.5",
    ]
    config, space = command._split_space(nested, {"optimizer.warmup_fraction": "uniform:0:0.5"}, texts, 1)
    assert config.optimizer.final_fraction == 0.5
    sampled = member_configs(config, enumerate_overrides(space, samples=5), seeds=1)
    assert len({one.optimizer.warmup_fraction for one in sampled}) == 5
    del space["optimizer.warmup_fraction"]
    assert len({structure(one) for one in member_configs(config, enumerate_overrides(space), seeds=2)}) == 2
    swept = foldax.sweep(nested, {"optimizer.learning_rate": [1e-4, 1e-1]}, config=Config(), save=False, verbose=False)
    assert swept.metadata["programs"] <= 1  # none where the process has it already
    assert swept.results["train/loss"].nunique() == 2
