"""Transformers against plain NumPy loops: attention, masks, segments, positions, cache; options; invalid input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.errors import ConfigError
from foldax.models import Transformer
from tests.models.shared import assert_close, parameter_count, random_variables

B, T, S, V = 3, 7, 5, 11
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
FLOATS = np.random.default_rng(1).normal(size=(B, T, 2)).astype(np.float32)
CONTEXT = np.random.default_rng(2).normal(size=(B, S, 6)).astype(np.float32)
CONTEXT_MASK = np.array([[1] * 5, [1, 1, 0, 0, 0], [0, 1, 0, 1, 1]])
MASKS = {
    "whole": np.ones((B, T), int),
    "padded": np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5]),
    "packed": np.array([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0], [0, 4, 4, 0, 4, 2, 2]]),
}
MODELS = {
    "encoder": Transformer(3, width=8, depth=2, num_heads=2),
    "decoder": Transformer(
        V, V, 8, 1, 4, 2, causal=True, positions="learned", max_length=9, tie_embeddings=True, mlp_width=5
    ),
    "modern": Transformer(
        V, V, 8, 1, 4, 1, causal=True, normalization="rms", gated=True, activation="silu", use_bias=False
    ),
    "translator": Transformer(V, V, 8, 2, 2, causal=True, cross_attention=True),
    "bag": Transformer(4, V, 8, 1, 2, positions=None, activation="relu"),
}


def arguments(name):
    """Arguments of a model: its inputs, and the context if it reads one."""
    x = FLOATS if name == "encoder" else TOKENS
    return x, {"context": CONTEXT, "context_mask": CONTEXT_MASK} if name == "translator" else {}


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def normalized(params, x):
    if "bias" not in params:
        return x / np.sqrt((x**2).mean() + 1e-6) * params["scale"]
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * params["scale"] + params["bias"]


def activated(name, x):
    tanh = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return {"gelu": tanh, "silu": x / (1 + np.exp(-x)), "relu": np.maximum(x, 0)}[name]


def rotated(head, position):
    """A head's features as complex numbers, rotated by the position times decreasing frequencies."""
    half = len(head) // 2
    numbers = head[:half] + 1j * head[half:]
    numbers = numbers * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([numbers.real, numbers.imag])


def attention(model, params, queries, sources, visible, positions=None):
    """Attention of one sequence: query after query, head after head; `visible[t]` lists the keys of step t."""
    size, kv_heads = model.width // model.num_heads, model.num_kv_heads or model.num_heads
    keys, values = np.split(np.array([dense(params["key_value"], row) for row in sources]), 2, axis=-1)
    outputs = np.zeros((len(queries), model.width))
    for t, row in enumerate(queries):
        for head in range(model.num_heads):
            query = dense(params["query"], row).reshape(model.num_heads, size)[head]
            shared = head // (model.num_heads // kv_heads)
            mine = [keys[s].reshape(kv_heads, size)[shared] for s in visible[t]]
            if positions is not None:
                query, mine = rotated(query, positions[t]), [rotated(k, positions[s]) for k, s in zip(mine, visible[t])]
            weights = np.exp([query @ key / np.sqrt(size) for key in mine])
            for weight, s in zip(weights / weights.sum(), visible[t]):
                outputs[t, head * size : (head + 1) * size] += weight * values[s].reshape(kv_heads, size)[shared]
    return np.array([dense(params["output"], row) for row in outputs])


def block(model, params, x, visible, positions, context, context_visible):
    norms = iter(params[name] for name in sorted(params) if "Norm" in name)

    def normed():
        norm = next(norms)
        return np.array([normalized(norm, row) for row in x])

    x = x + attention(model, params["attention"], *(normed(),) * 2, visible, positions)
    if model.cross_attention:
        x = x + attention(model, params["cross_attention"], normed(), context, [context_visible] * len(x))
    y = normed()
    hidden = activated(model.activation, dense(params["mlp_in"], y))
    hidden = hidden * dense(params["mlp_gate"], y) if model.gated else hidden
    return x + dense(params["mlp_out"], hidden)


def network_by_hand(model, params, x, segments, context=None, context_mask=()):
    """Outputs `[T, features]` for one sequence; those at padding are undefined."""
    steps, positions = range(len(x)), np.zeros(len(x), int)
    for t in steps:
        positions[t] = sum(segments[s] == segments[t] for s in range(t))
    visible = [
        [s for s in steps if segments[s] == segments[t] != 0 and (s <= t or not model.causal)] or [t] for t in steps
    ]
    x = dense(params["input"], x) if model.vocabulary_size is None else params["embedding"]["embedding"][x]
    if model.positions == "learned":
        x = x + params["positions"]["embedding"][positions]
    rotations = positions if model.positions == "rotary" else None
    for index in range(model.depth):
        x = block(
            model, params[f"blocks_{index}"]["Block_0"], x, visible, rotations, context, np.flatnonzero(context_mask)
        )
    last = params["LayerNorm_0" if model.normalization == "layer" else "RMSNorm_0"]
    x = np.array([normalized(last, row) for row in x])
    return x @ params["embedding"]["embedding"].T if model.tie_embeddings else dense(params["output"], x)


@pytest.mark.parametrize("name", MODELS)
def test_network_equals_a_plain_loop(name):
    model, (x, extra) = MODELS[name], arguments(name)
    variables = random_variables(model, x, **extra)
    apply = jax.jit(lambda mask: model.apply(variables, x, mask=mask, **extra))
    for mask in MASKS.values():
        rows = [
            network_by_hand(model, variables["params"], *row)
            for row in zip(x, mask, *((CONTEXT, CONTEXT_MASK) if extra else ()))
        ]
        real = mask != 0
        assert_close(np.asarray(apply(mask))[real], np.array(rows)[real], 1e-3, 1e-4)


def stacked(params, depth):
    """Stacks the parameters of unrolled blocks, as scanned blocks expect them."""
    rest = {name: leaves for name, leaves in params.items() if not name.startswith("blocks")}
    blocks = [params[f"blocks_{index}"] for index in range(depth)]
    return rest | {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


@pytest.mark.parametrize(("name", "scan_layers"), [("decoder", False), ("translator", True)])
def test_cached_logits_equal_those_of_the_whole_sequence(name, scan_layers):
    model, (x, extra) = MODELS[name], arguments(name)
    row = random_variables(model, x, **extra)["params"]
    whole = jax.jit(model.apply)({"params": row}, x, **extra)
    contexts = (CONTEXT, CONTEXT_MASK) if extra else ()
    assert_close(
        whole, np.array([network_by_hand(model, row, *r) for r in zip(x, MASKS["whole"], *contexts)]), 1e-3, 1e-4
    )
    model = model.clone(scan_layers=scan_layers)
    params = stacked(row, model.depth) if scan_layers else row
    shapes = jax.eval_shape(functools.partial(model.init, decode=True, **extra), jax.random.key(0), x)
    assert jax.tree.map(np.shape, shapes["params"]) == jax.tree.map(np.shape, params)
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["cache"])
    variables = {"params": params}
    append = jax.jit(lambda cache, x: model.apply(variables | cache, x, decode=True, mutable="cache", **extra))
    parts, cache = [], {"cache": cache}
    for start, end in [(0, 4), (4, 5), (5, 6), (6, 7)]:
        logits, cache = append(cache, x[:, start:end])
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), np.asarray(whole), 1e-4, 1e-5)


def test_scanned_and_remat_blocks_equal_unrolled_blocks():
    model = MODELS["modern"].clone(depth=2)
    row = random_variables(model, TOKENS)["params"]

    def loss_and_gradient(params, **options):
        variant = model.clone(**options)
        shapes = jax.eval_shape(variant.init, jax.random.key(0), TOKENS)["params"]
        assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)
        loss = lambda params: (variant.apply({"params": params}, TOKENS, mask=MASKS["packed"]) ** 2).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    value, gradient = loss_and_gradient(row)
    assert_close(loss_and_gradient(row, remat=True), (value, gradient), 1e-4, 1e-5)
    scanned = loss_and_gradient(stacked(row, 2), scan_layers=True, remat=True)
    assert_close(scanned, (value, stacked(gradient, 2)), 1e-4, 1e-5)


def test_remat_policies_save_the_products_that_jax_says():
    """The number of matrix products of a gradient: those that are not saved are computed once more."""
    policies = [False, "everything_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable"]

    def products(remat):
        model = MODELS["modern"].clone(remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        loss = lambda params: model.apply(params, TOKENS).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    plain, everything, dots, dense_layers, nothing = map(products, policies)
    assert plain == everything == dots < dense_layers < nothing == products(True)
    with pytest.raises(ConfigError, match="remat: 'full' is unknown"):
        products("full")


def test_program_size_of_scanned_blocks_does_not_depend_on_depth():
    def equations(depth):
        model = Transformer(V, V, 8, depth, 2, causal=True, scan_layers=True, remat=True)
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        loss = lambda params: model.apply(params, TOKENS).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(" = ")

    assert equations(200) == equations(3)


@functools.cache
def padded_network(name):
    model = MODELS[name].clone(pooling="mean" if name == "bag" else None)
    variables = random_variables(model, TOKENS)
    return jax.jit(lambda tokens, mask: model.apply(variables, tokens, mask=mask))


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    shift=st.integers(0, 3),
    name=st.sampled_from(["modern", "bag"]),
    seed=st.integers(0, 1000),
)
def test_padding_and_other_sequences_have_no_influence(sizes, shift, name, seed):
    random, apply = np.random.default_rng(seed), padded_network(name)
    tokens, mask = random.integers(0, V, (5, 9)), np.zeros((5, 9), bool)
    for row, size in enumerate(sizes):
        mask[row, shift : shift + size] = True
    outputs = np.asarray(apply(tokens, mask))
    other = np.where(mask, tokens, random.choice([-1, V, 10**6, 0]))
    real = mask if name == "modern" else mask.any(axis=1)
    np.testing.assert_array_equal(np.asarray(apply(other, mask))[real], outputs[real])
    for row, size in enumerate(sizes):  # alone, at the start
        alone = np.full((5, 9), V - 1)
        alone[0, :size] = tokens[row, shift : shift + size]
        lone = np.asarray(apply(alone, np.arange(45).reshape(5, 9) < size))[0]
        mine = outputs[row] if name == "bag" else outputs[row, shift : shift + size]
        assert_close(mine, lone if name == "bag" else lone[:size], 1e-4, 1e-4)


def test_gradients_ignore_nan_in_padding():
    x = np.where(MASKS["packed"][..., None] != 0, FLOATS, np.nan)
    model = MODELS["encoder"]
    loss = lambda variables: jnp.square(model.apply(variables, x, mask=MASKS["packed"])).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(random_variables(model, x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_padding_of_the_context_has_no_influence_and_an_empty_context_adds_only_the_bias():
    model, (x, extra) = MODELS["translator"], arguments("translator")
    variables = random_variables(model, x, **extra)
    apply = jax.jit(lambda context, mask: model.apply(variables, x, context=context, context_mask=mask))
    outputs = apply(CONTEXT, CONTEXT_MASK)
    nan = np.where(CONTEXT_MASK[..., None] != 0, CONTEXT, np.nan)
    np.testing.assert_array_equal(apply(nan, CONTEXT_MASK), outputs)
    empty = np.zeros_like(CONTEXT_MASK)
    np.testing.assert_array_equal(apply(CONTEXT, empty), apply(2 * CONTEXT, empty))


def test_bfloat16_computes_with_float32_parameters():
    exact = MODELS["modern"]
    model = exact.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    variables = random_variables(exact, TOKENS, scale=0.3)
    outputs, expected = (jax.jit(variant.apply)(variables, TOKENS) for variant in (model, exact))
    assert outputs.dtype == jnp.float32
    assert 1e-5 < np.abs(outputs - expected).max() < 0.05 * np.abs(expected).max()


def test_traced_dropout_is_active_in_training_only():
    variables = random_variables(MODELS["bag"], TOKENS, scale=0.3)

    @jax.jit
    def outputs(rate, key):
        model = MODELS["bag"].clone(dropout=rate)
        return model.apply(variables, TOKENS, train=True, rngs={"dropout": key}), model.apply(variables, TOKENS)

    keys = jax.random.split(jax.random.key(0))
    first, second, none = (outputs(*case) for case in [(0.5, keys[0]), (0.5, keys[1]), (0.0, keys[0])])
    assert np.any(first[0] != second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert_close(none[0], first[1], 1e-4)


def test_gpt2_has_the_published_number_of_parameters():
    model = Transformer(
        50_257, 50_257, 768, 12, 12, causal=True, positions="learned", tie_embeddings=True, max_length=1024
    )
    assert parameter_count(model, np.zeros((1, 8), int)) == 124_439_808


def test_grouped_keys_and_values_have_fewer_parameters():
    whole, grouped = (
        parameter_count(Transformer(None, width=32, depth=1, num_heads=8, num_kv_heads=heads), FLOATS)
        for heads in (None, 2)
    )
    assert whole - grouped == (32 + 1) * 2 * (8 - 2) * 4


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"num_heads": 3}, {}, "num_heads: 3 must divide the width, 8"),
        ({"num_heads": 8}, {}, "rotary positions rotate pairs, but 8 / 8 is odd"),
        ({"num_heads": 4, "num_kv_heads": 3}, {}, "num_kv_heads: 3 must divide them"),
        ({"positions": "sine"}, {}, "'sine' is unknown; choose None, 'rotary' or 'learned'"),
        ({"normalization": "batch"}, {}, "'batch' is not available here; choose 'layer' or 'rms'"),
        ({"pooling": "first"}, {}, "'first' is unknown; choose None, 'last', 'mean' or 'max'"),
        ({"activation": "gelou"}, {}, "no 'gelou'; did you mean 'gelu'"),
        ({"max_length": 6}, {}, "7 steps are more than its max_length, 6"),
        ({"max_length": 6, "positions": "learned"}, {}, "7 steps are more than its max_length, 6"),
        ({"tie_embeddings": True, "features": 5}, {}, "5 features must be the vocabulary's size, 11"),
        ({"tie_embeddings": True, "vocabulary_size": None}, {"x": FLOATS}, "vocabulary's size, None"),
        ({}, {"decode": True}, "decode needs a causal model"),
        ({"causal": True}, {"decode": True, "mask": MASKS["padded"]}, "without a mask"),
        ({}, {"mask": np.ones((B, T + 1))}, r"mask must be \[3, 7\] like the inputs, got \[3, 8\]"),
        ({}, {"context": CONTEXT}, "with cross_attention=False it takes no context"),
        ({"cross_attention": True}, {}, "with cross_attention=True it needs a context"),
        ({"cross_attention": True}, {"context": CONTEXT[:2]}, r"context must be \[3, S, C\], got \[2, 5, 6\]"),
        (
            {"cross_attention": True},
            {"context": CONTEXT, "context_mask": MASKS["whole"]},
            r"context's mask must be \[3, 5\], got \[3, 7\]",
        ),
        ({}, {"x": FLOATS}, r"integer tokens \[B, T\], got float32\[3, 7, 2\]"),
        ({}, {"x": TOKENS[0]}, r"integer tokens \[B, T\], got int"),
        ({"vocabulary_size": None}, {"x": TOKENS}, "need a vocabulary_size"),
        ({"vocabulary_size": None}, {"x": FLOATS[0]}, r"floats \[B, T, C\], got float32\[7, 2\]"),
        ({"vocabulary_size": 5}, {"x": np.array([[0, 4, 5]])}, r"token 5 at \[0, 2\] is not in the vocabulary, 0 to 4"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(options, args, message):
    options = {"features": V, "vocabulary_size": V, "width": 8, "depth": 1, "num_heads": 2, **options}
    args = {"x": TOKENS, **args}
    x = args.pop("x")
    with pytest.raises(ConfigError, match=message):
        Transformer(**options).init(jax.random.key(0), x, **args)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_padding_of_the_vocabulary_is_no_token_and_has_no_logit(tie_embeddings):
    plain = Transformer(V, V, 8, 1, 2, tie_embeddings=tie_embeddings)
    padded = plain.clone(vocabulary_multiple=13)
    variables = random_variables(padded, TOKENS)
    rows = [leaf.shape for leaf in jax.tree.leaves(variables) if 13 in leaf.shape]
    assert len(rows) == (1 if tie_embeddings else 3)
    cut = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf[:V] if "embedding" in str(path) else leaf[..., :V] if "output'" in str(path[1]) else leaf
        ),
        variables,
    )
    logits = jax.jit(padded.apply)(variables, TOKENS)
    assert logits.shape == (B, T, V)
    np.testing.assert_array_equal(logits, jax.jit(plain.apply)(cut, TOKENS))
    assert np.isnan(jax.jit(padded.apply)(variables, np.array([[1, V]]))).any()
    hidden = padded.apply(variables, TOKENS, return_hidden=True)
    assert_close(padded.apply({"params": hidden.output_params}, hidden.states, method="logits"), logits)
    with pytest.raises(ConfigError, match="vocabulary_multiple: 0"):
        plain.clone(vocabulary_multiple=0).init(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("token", [V, -1])
def test_an_unknown_token_gives_nan_in_compiled_code(token):
    tokens = np.where(np.arange(T) == 4, token, TOKENS)
    outputs = np.asarray(jax.jit(MODELS["modern"].apply)(random_variables(MODELS["modern"], TOKENS), tokens))
    assert np.isnan(outputs[:, 4]).all()
