"""Recurrent networks against plain NumPy loops: cells, layers, directions, masks, segments, carries, pooling."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from foldax.errors import ConfigError
from foldax.models import Recurrent
from tests.models.shared import assert_close, random_variables

CELLS = ["rnn", "lstm", "gru"]
B, T, C = 3, 7, 2
KEYS = jax.random.split(jax.random.key(0))


def inputs(seed=1, shape=(B, T, C)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def step_by_hand(cell, params, x, carry):
    """One step of one sequence, by the equations of the papers."""
    weights, bias, state = params["input"]["kernel"], params["input"]["bias"], params["kernel"]
    width = state.shape[0]
    w, b, u = (np.split(part, part.shape[-1] // width, axis=-1) for part in (weights, bias, state))
    h = carry[0]
    if cell == "rnn":
        return (np.tanh(x @ w[0] + b[0] + h @ u[0]),)
    if cell == "lstm":
        i, f, o = (expit(x @ w[gate] + b[gate] + h @ u[gate]) for gate in (0, 1, 3))
        c = f * carry[1] + i * np.tanh(x @ w[2] + b[2] + h @ u[2])
        return o * np.tanh(c), c
    r, z = (expit(x @ w[gate] + b[gate] + h @ u[gate]) for gate in (0, 1))
    n = np.tanh(x @ w[2] + b[2] + r * (h @ u[2] + params["candidate_bias"]))
    return ((1 - z) * n + z * h,)


def layer_by_hand(cell, params, x, segments, reverse=False):
    """One layer over one sequence `[T, C]`, skipping padding; `segments` `[T]` as in a mask."""
    width = params["kernel"].shape[0]
    outputs, zeros = np.zeros((len(x), width)), (np.zeros(width),) * (2 if cell == "lstm" else 1)
    carry, segment = zeros, None
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        if segments[t] == 0:
            continue
        if segment is not None and segments[t] != segment:
            carry = zeros
        segment = segments[t]
        carry = step_by_hand(cell, params, x[t], carry)
        outputs[t] = carry[0]
    return outputs, carry


def network_by_hand(model, params, x, segments):
    """All layers and the output over one sequence; returns its outputs `[T, features]` and the carry."""
    carries = []
    for index in range(len(model.hidden)):
        forward, carry = layer_by_hand(model.cell, params[f"layer_{index}"], x, segments)
        carries.append(carry)
        if model.bidirectional:
            backward, _ = layer_by_hand(model.cell, params[f"backward_{index}"], x, segments, reverse=True)
            forward = np.concatenate([forward, backward], axis=-1)
        x = forward
    return x @ params["output"]["kernel"] + params["output"]["bias"], carries


MASKS = {
    "whole": np.ones((B, T), int),
    "padded": np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5]),
    "packed": np.array([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0], [0, 4, 4, 0, 4, 2, 2]]),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_network_equals_a_plain_loop(cell, bidirectional):
    model = Recurrent(3, (4, 5), cell, bidirectional)
    x = inputs()
    variables = random_variables(model, x)
    apply = jax.jit(lambda mask: model.apply(variables, x, mask=mask))
    for segments in MASKS.values():
        expected = [network_by_hand(model, variables["params"], *pair)[0] for pair in zip(x, segments)]
        np.testing.assert_allclose(apply(segments), expected, rtol=1e-4, atol=1e-5)


def test_bool_mask_marks_padding_only():
    model = Recurrent(3, (4,), "rnn", bidirectional=True)
    x = inputs()
    apply = jax.jit(functools.partial(model.apply, random_variables(model, x), x))
    assert_close(apply(mask=MASKS["packed"] != 0), apply(mask=(MASKS["packed"] != 0).astype(int)))


@pytest.mark.parametrize("cell", CELLS)
def test_a_split_sequence_continues_from_its_carry(cell):
    model = Recurrent(3, (4, 5), cell)
    x = inputs()
    variables = random_variables(model, x)
    apply = jax.jit(lambda x, carry, mask=None: model.apply(variables, x, carry=carry, mask=mask))
    whole, end = apply(x, model.initial_carry(B))
    by_hand = [network_by_hand(model, variables["params"], row, np.ones(T))[1] for row in x]
    for layer, carry in enumerate(end):
        for part, array in enumerate(carry):
            assert_close(array, np.array([row[layer][part] for row in by_hand]), 1e-4, 1e-5)
    assert_close(whole, np.array([network_by_hand(model, variables["params"], row, np.ones(T))[0] for row in x]), 1e-4)
    first, between = apply(x[:, :4], model.initial_carry(B))
    second, last = apply(x[:, 4:], between)
    assert_close((np.concatenate([first, second], axis=1), last), (np.asarray(whole), end))


def test_padding_keeps_the_carry_and_the_first_segment_continues_from_it():
    model = Recurrent(3, (4,), "gru")
    x = inputs()
    variables = random_variables(model, x)
    apply = jax.jit(lambda x, mask, carry: model.apply(variables, x, mask=mask, carry=carry))
    carry = jax.tree.map(lambda leaf: leaf + 0.5, model.initial_carry(B))
    _, after = apply(x, np.zeros((B, T), bool), carry)
    chex.assert_trees_all_equal(after, carry)
    segments = np.array([[7] * 4 + [8] * 3, [0] + [7] * 3 + [8] * 3, [7] * 3 + [0] * 4])
    outputs, _ = apply(x, segments, carry)
    zeros = apply(x, segments, model.initial_carry(B))[0]
    assert (np.abs(outputs - zeros).max(axis=-1) > 1e-4).tolist() == (segments == 7).tolist()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_pooling_ignores_padding(pooling, bidirectional):
    model = Recurrent(None, (4,), "rnn", bidirectional, pooling=pooling)
    x, mask = inputs(), MASKS["padded"]
    variables = random_variables(model, x)
    outputs = np.asarray(jax.jit(Recurrent(None, (4,), "rnn", bidirectional).apply)(variables, x, mask=mask))
    pooled = jax.jit(lambda mask: model.apply(variables, x, mask=mask))(mask)
    for row, steps, vector in zip(outputs, mask != 0, pooled):
        real = row[steps]
        by_hand = {"mean": real.mean(0), "max": real.max(0), "last": np.concatenate([real[-1, :4], real[0, 4:]])}
        assert_close(vector, by_hand[pooling])


@st.composite
def lengths(draw):
    return draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)), draw(st.integers(0, 3))


@functools.cache
def padded_network(cell, batch, length):
    model = Recurrent(3, (4,), cell, bidirectional=cell != "lstm", vocabulary_size=5)
    variables = random_variables(model, np.zeros((1, 1), int))
    return jax.jit(lambda tokens, mask: model.apply(variables, tokens, mask=mask))


@settings(max_examples=15, deadline=None)
@given(case=lengths(), cell=st.sampled_from(["lstm", "gru"]), seed=st.integers(0, 1000))
def test_padding_has_no_influence(case, cell, seed):
    sizes, extra = case
    random, total = np.random.default_rng(seed), 9
    tokens = random.integers(0, 5, (6, total))
    mask = np.zeros((6, total), int)
    for row, size in enumerate(sizes):
        mask[row, extra : extra + size] = 1
    outputs = padded_network(cell, 6, total)(tokens, mask)
    other = np.where(mask == 1, tokens, -1)  # not a token
    np.testing.assert_array_equal(padded_network(cell, 6, total)(other, mask), outputs)
    for row, size in enumerate(sizes):
        alone = np.full((1, total), 4)
        alone[0, :size] = tokens[row, extra : extra + size]
        lone = padded_network(cell, 1, total)(alone, (np.arange(total) < size)[None])
        assert_close(outputs[row, extra : extra + size], lone[0, :size])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_ignore_nan_in_padding_and_equal_those_with_remat(cell):
    x, mask = inputs(), MASKS["packed"]
    x = np.where(mask[..., None] != 0, x, np.nan)
    variables = random_variables(Recurrent(3, (4,), cell), x)

    def gradient(remat):
        model = Recurrent(3, (4,), cell, remat=remat)
        loss = jax.jit(jax.grad(lambda variables: jnp.square(model.apply(variables, x, mask=mask)).sum()))
        return loss(variables)

    plain = gradient(False)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(plain))
    assert_close(gradient(True), plain)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_first_and_second_order_equal_finite_differences(cell):
    model, x = Recurrent(2, (3,), cell, pooling="last"), inputs()
    variables = random_variables(model, x)
    random = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), variables)

    def loss(variables):
        return jnp.square(model.apply(variables, x, mask=MASKS["packed"])).sum()

    def squared_gradient_norm(variables):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(jax.grad(loss)(variables)))

    for function in (loss, squared_gradient_norm):

        @jax.jit
        def both(step, function=function):
            value, gradient = jax.value_and_grad(function)(
                jax.tree.map(lambda a, b: a + step * b, variables, direction)
            )
            return value, sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))

        (high, _), (low, _), (_, slope) = both(3e-3), both(-3e-3), both(0.0)
        np.testing.assert_allclose(slope, (high - low) / 6e-3, rtol=3e-2, atol=1e-2)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_computes_with_float32_parameters(cell):
    x = inputs()
    model, exact = (Recurrent(3, (8,), cell, dtype=dtype) for dtype in (jnp.bfloat16, None))
    variables = random_variables(exact, x, scale=0.3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    outputs, carry = jax.jit(model.apply)(variables, x, carry=model.initial_carry(B))
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype("bfloat16")}
    difference = np.abs(outputs - jax.jit(exact.apply)(variables, x)).max()
    assert 1e-5 < difference < 0.05  # differs by rounding to 8 bits only


def test_initial_forget_bias_is_one_and_recurrent_kernels_are_orthogonal():
    params = Recurrent(3, (6,), "lstm").init(jax.random.key(0), inputs())["params"]["layer_0"]
    np.testing.assert_array_equal(params["input"]["bias"].reshape(4, 6), [[0] * 6, [1] * 6, [0] * 6, [0] * 6])
    for gate in np.split(np.asarray(params["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(6), atol=1e-5)


def test_traced_dropout_is_active_between_layers_in_training_only():
    x = inputs()
    variables = random_variables(Recurrent(None, (8, 8), "rnn"), x)

    @jax.jit
    def outputs(rate, key):
        model = Recurrent(None, (8, 8), "rnn", dropout=rate)
        return model.apply(variables, x, train=True, rngs={"dropout": key}), model.apply(variables, x)

    first, second, none = (outputs(*case) for case in [(0.5, KEYS[0]), (0.5, KEYS[1]), (0.0, KEYS[0])])
    assert np.any(first[0] != second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert_close(none[0], first[1])


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"cell": "lsmt"}, {}, "no 'lsmt'; did you mean 'lstm'"),
        ({"hidden": ()}, {}, "at least one layer"),
        ({"pooling": "median"}, {}, "'last', 'mean' or 'max'"),
        ({"bidirectional": True}, {"decode": True}, "backwards"),
        ({"hidden": (4, 4)}, {"carry": ((np.zeros((B, 4)),) * 2,)}, "2 layers need one each .*, got 1"),
        ({}, {"mask": np.ones((B, T + 1))}, r"mask must be \[3, 7\] like the inputs, got \[3, 8\]"),
        ({"vocabulary_size": 5}, {}, r"integer tokens \[B, T\], got float32\[3, 7, 2\]"),
        ({}, {"x": np.zeros((B, T))}, r"floats \[B, T, C\], got float64\[3, 7\]"),
        ({}, {"x": np.zeros((B, T), int)}, "need a vocabulary_size"),
        ({"vocabulary_size": 5}, {"x": np.array([[0, 1, 5]])}, r"token 5 at \[0, 2\] is not in the vocabulary, 0 to 4"),
        ({"vocabulary_size": 5}, {"x": np.array([[0, -1]])}, r"token -1 at \[0, 1\]"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(options, args, message):
    args = {"x": inputs(), **args}
    with pytest.raises(ConfigError, match=message):
        Recurrent(2, **{"hidden": (4,), **options}).init(jax.random.key(0), args.pop("x"), **args)


@pytest.mark.parametrize("token", [5, -1])
def test_an_unknown_token_gives_nan_in_compiled_code(token):
    model = Recurrent(2, (4,), vocabulary_size=5)
    variables = random_variables(model, np.zeros((2, 3), int))
    outputs = np.asarray(jax.jit(model.apply)(variables, np.array([[0, 1, 2], [0, token, 2]])))
    assert np.isfinite(outputs[0]).all()
    assert np.isnan(outputs[1, 1:]).all()
