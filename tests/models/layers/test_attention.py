"""Attention's form for the CPU is JAX's function: outputs and gradients, in one piece and in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.models.layers.attention import BLOCK, dot_product_attention
from tests.models.shared import assert_close


def arrays(batch, length, steps, heads, shared, size, dtype=np.float32):
    random = np.random.default_rng(length)
    shapes = [(batch, length, heads, size), *((batch, steps, shared, size),) * 2, (batch, length, heads, size)]
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def outcome(function, inputs, mask, causal):
    """Outputs, and gradients for what comes back for them."""
    *inputs, back = inputs

    @jax.jit
    def both(mask, back, *inputs):
        outputs, pull = jax.vjp(lambda *inputs: function(*inputs, mask, causal), *inputs)
        return outputs, pull(back)

    return both(mask, back, *inputs)


def native(query, key, value, mask, causal):
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def segments(batch, length):
    """Two packed sequences in each row, so that everybody sees somebody."""
    numbers = np.arange(length)[None] >= np.arange(1, batch + 1)[:, None] * length // (batch + 1)
    return (numbers[:, :, None] == numbers[:, None, :])[:, None]


@pytest.mark.parametrize(
    ("shape", "causal", "masked"),
    [
        ((2, 5, 5, 2, 2, 4), True, False),
        ((2, 5, 7, 4, 2, 4), False, True),
        ((1, 6, 6, 3, 1, 2), False, False),
        ((2, 2 * BLOCK, 2 * BLOCK, 2, 1, 4), True, False),  # two blocks
        ((2, 2 * BLOCK + 3, 2 * BLOCK + 3, 2, 2, 4), True, True),
        ((1, 5 * BLOCK + 2, 5 * BLOCK + 2, 2, 2, 4), True, False),  # as many blocks as there may be
    ],
)
def test_outputs_and_gradients_are_those_of_jax(shape, causal, masked):
    mask = None
    if masked:  # packed rows, or padding that is the same for all queries
        mask = segments(*shape[:2]) if causal else np.arange(shape[2])[None, None, None] < np.array([[[[4]]], [[[7]]]])
    inputs = arrays(*shape)
    assert_close(
        outcome(dot_product_attention, inputs, mask, causal), outcome(native, inputs, mask, causal), 1e-3, 1e-5
    )


def test_bfloat16_is_as_exact_as_in_jax():
    inputs = arrays(2, 2 * BLOCK, 2 * BLOCK, 2, 1, 8, jnp.bfloat16)
    exact = outcome(native, [x.astype(jnp.float32) for x in inputs], None, True)
    ours, theirs = (outcome(function, inputs, None, True) for function in (dot_product_attention, native))
    for mine, other, truth in zip(*map(jax.tree.leaves, (ours, theirs, exact)), strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [np.abs(x.astype(jnp.float32) - truth).mean() for x in (mine, other)]
        assert errors[0] <= 1.5 * errors[1]


def test_what_is_masked_gets_no_weight_at_all():
    query, key, value, _ = arrays(1, 3, 3, 1, 1, 2)
    value = value.at[0, 2].set(1e30)
    outputs = dot_product_attention(query * 1e3, key * 1e3, value, np.array([[[[True, True, False]]]]))
    assert np.abs(outputs).max() < 10


def test_other_platforms_get_the_function_of_jax(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = arrays(1, 3, 3, 1, 1, 2)[:3]
    ours, theirs = (
        str(jax.make_jaxpr(lambda *x, f=f: f(*x, None, True))(*inputs)) for f in (dot_product_attention, native)
    )
    assert ours == theirs
