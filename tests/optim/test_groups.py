"""Parameter groups by path: rates, optimizers of their own, frozen leaves, and layer-wise decay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import models, optim
from foldax.errors import ConfigError

PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    "Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}
SGD = optax.sgd(1.0)


def updates_of(optimizer, params=PARAMS, gradient=1.0, steps=1):
    state = optimizer.init(params)
    for _ in range(steps):
        gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
        updates, state = optimizer.update(gradients, state, params)
    return updates, state


def factors(optimizer, params=PARAMS):
    """Returns the learning rate of each leaf by path."""
    actual = jax.tree_util.tree_leaves_with_path(updates_of(optimizer, params)[0])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): -np.asarray(leaf) for path, leaf in actual}


def test_groups_have_rates_optimizers_or_are_frozen() -> None:
    groups = {"Conv_0": "frozen", r"Dense_\d/bias": 0.5, "Dense_1": optax.scale(-7.0)}
    updates, _ = updates_of(optim.parameter_groups(SGD, groups, default=2.0))
    expected = {"Conv_0": (0, 0), "Dense_0": (-2.0, -0.5), "Dense_1": (-7.0, -0.5)}
    for name, (kernel, bias) in expected.items():
        np.testing.assert_array_equal(updates[name]["kernel"], jnp.full_like(PARAMS[name]["kernel"], kernel))
        np.testing.assert_array_equal(updates[name]["bias"], jnp.full_like(PARAMS[name]["bias"], bias))


def test_a_pattern_ends_at_a_slash_and_the_first_counts() -> None:
    params = {"Dense_1": {"kernel": jnp.ones(2)}, "Dense_10": {"kernel": jnp.ones(2)}}
    actual = factors(optim.parameter_groups(SGD, {"Dense_1": 0.5, "Dense_1.*": 0.25}), params)
    assert actual["Dense_1/kernel"][0] == 0.5
    assert actual["Dense_10/kernel"][0] == 0.25


def test_frozen_leaves_keep_their_bits_and_have_no_state() -> None:
    optimizer = optim.parameter_groups(
        optim.build(optim.Optimizer(name="adamw", weight_decay=0.5, clip_norm=1.0), 5),
        {"Dense_0": None, "Conv_0/bias": "frozen"},
    )
    updates, state = updates_of(optimizer, steps=3)
    moved = optax.apply_updates(PARAMS, updates)
    for group, leaf in (("Dense_0", "kernel"), ("Dense_0", "bias"), ("Conv_0", "bias")):
        np.testing.assert_array_equal(moved[group][leaf], PARAMS[group][leaf])
    assert (moved["Conv_0"]["kernel"] != PARAMS["Conv_0"]["kernel"]).all()
    assert (3, 4) not in {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (4, 2) in {leaf.shape for leaf in jax.tree.leaves(state)}


def test_frozen_leaves_do_not_count_in_the_clipped_norm_and_rates_do_not_split_it() -> None:
    optimizer = optim.parameter_groups(
        optax.chain(optax.clip_by_global_norm(1.0), SGD), {"Conv_0": "frozen", "Dense_0": 3.0}
    )
    updates, _ = updates_of(optimizer)
    trained = 3 * 4 + 4 + 4 * 2 + 2
    np.testing.assert_allclose(updates["Dense_1"]["bias"], -1 / np.sqrt(trained), rtol=1e-6)
    np.testing.assert_allclose(updates["Dense_0"]["bias"], -3 / np.sqrt(trained), rtol=1e-6)


def test_traced_rates_compile_once() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(rate, decay):
        grouped = optim.parameter_groups(optax.adam(0.1), {"Dense_0": rate})
        return updates_of(optim.layer_decay(grouped, decay, ("Conv_0", "Dense")))[0]

    plain = updates_of(optax.adam(0.1))[0]
    for rate, decay in ((0.5, 0.25), (2.0, 0.5)):
        updates = run(jnp.float32(rate), jnp.float32(decay))
        for name, factor in {"Conv_0": decay**2, "Dense_0": rate * decay, "Dense_1": 1.0}.items():
            np.testing.assert_allclose(updates[name]["kernel"], factor * plain[name]["kernel"], rtol=1e-6)


def test_leaves_that_a_learner_took_out_stay_none() -> None:
    params = {**PARAMS, "Conv_0": {"kernel": None, "bias": None}}
    grouped = optim.parameter_groups(optax.adamw(1.0), {"Conv_0": "frozen", "Dense_0": 0.5})
    optimizer = optim.layer_decay(grouped, 0.5, ("Conv_0", "Dense"))
    updates, _ = updates_of(optimizer, params, steps=2)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    plain, _ = updates_of(optax.adamw(1.0), params, steps=2)
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], 0.25 * plain["Dense_0"]["kernel"], rtol=1e-6)
    inner = optim.parameter_groups(SGD, {"Conv_0/kernel": 0.5})
    actual = updates_of(optim.parameter_groups(inner, {"Conv_0": "frozen"}))[0]  # one grouping inside another
    assert not actual["Conv_0"]["kernel"].any()


@pytest.mark.parametrize("name", ["adamw", "muon", "lars", "adafactor"])
def test_every_kind_of_optimizer_can_be_grouped(name) -> None:
    optimizer = optim.build(optim.Optimizer(name=name, weight_decay=0.1, clip_norm=1.0, accumulate_steps=2), 6)
    grouped = optim.parameter_groups(optimizer, {"Conv_0": 0.5})
    plain, expected = (updates_of(one, steps=2)[0] for one in (optimizer, grouped))
    np.testing.assert_allclose(expected["Conv_0"]["kernel"], 0.5 * plain["Conv_0"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(expected["Dense_0"]["kernel"], plain["Dense_0"]["kernel"], rtol=1e-6)
    assert plain["Conv_0"]["kernel"].any()


def test_extra_arguments_reach_the_optimizer() -> None:
    optimizer = optim.parameter_groups(optax.chain(SGD, optax.contrib.reduce_on_plateau(patience=1)), {"Dense_0": 0.5})
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(PARAMS, state, PARAMS, value=jnp.float32(1.0))
    np.testing.assert_array_equal(updates["Dense_0"]["bias"], -0.5 * jnp.ones(4))


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_of_a_vision_transformer_is_that_of_beit(scan) -> None:
    model = models.ViT(3, depth=3, width=8, num_heads=2, scan_layers=scan)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    order = ("Conv_0|class_token|positions", "blocks", ".*")
    actual = factors(optim.layer_decay(SGD, 0.5, order, stacked=("blocks",) if scan else ()), params)
    # BEiT's: decay ** (layers + 1 - level), levels counted from the embedding, 0, to the head.
    np.testing.assert_array_equal(actual["positions"], np.full_like(actual["positions"], 0.5**4))
    assert actual["output/kernel"][0, 0] == actual["LayerNorm_0/scale"][0] == 1.0
    for layer in range(3):
        for leaf in ("attention/output/kernel", "LayerNorm_0/scale"):
            rates = actual[f"blocks/Block_0/{leaf}"][layer] if scan else actual[f"blocks_{layer}/Block_0/{leaf}"]
            np.testing.assert_allclose(rates, 0.5 ** (3 - layer), rtol=1e-6)


def test_layers_are_counted_by_number_and_not_by_name() -> None:
    params = {f"Dense_{i}": {"kernel": jnp.ones((2, 2))} for i in range(12)}
    actual = factors(optim.layer_decay(SGD, 0.5, ("Dense",)), params)
    for i in range(12):
        assert actual[f"Dense_{i}/kernel"][0, 0] == 0.5 ** (11 - i)


def test_patterns_without_parameters_are_errors() -> None:
    with pytest.raises(ConfigError, match="parameter_groups: .*'Dens_0'; did you mean 'Dense_0'"):
        optim.parameter_groups(SGD, {"Dens_0": 0.5}).init(PARAMS)
    with pytest.raises(ConfigError, match=r"parameter_groups: '\(' is no regular expression"):
        optim.parameter_groups(SGD, {"(": 0.5}).init(PARAMS)
    with pytest.raises(ConfigError, match="'Dense_0' is 'forzen', neither"):
        optim.parameter_groups(SGD, {"Dense_0": "forzen"})
    with pytest.raises(ConfigError, match="layer_decay: .*'Cov_0'; did you mean 'Conv_0'"):
        optim.layer_decay(SGD, 0.5, ("Cov_0", "Dense", ".*")).init(PARAMS)
    with pytest.raises(ConfigError, match="layer_decay: order has no level for Dense_1/bias, Dense_1/kernel"):
        optim.layer_decay(SGD, 0.5, ("Conv_0", "Dense_0")).init(PARAMS)
    with pytest.raises(ConfigError, match=r"layer_decay: '\(' is no regular expression"):
        optim.layer_decay(SGD, 0.5, ("(", ".*")).init(PARAMS)
    with pytest.raises(ConfigError, match="'blocks' is stacked, but is not in order"):
        optim.layer_decay(SGD, 0.5, ("Conv_0",), stacked=("blocks",))
