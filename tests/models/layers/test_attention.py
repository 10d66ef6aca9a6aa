"""Attention on the CPU equals JAX's function: outputs and gradients, as a whole and in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.models.layers.attention import MIN_BLOCK_LENGTH, dot_product_attention
from tests.models.shared import assert_close


def arrays(batch, length, steps, heads, kv_heads, size, dtype=np.float32):
    random = np.random.default_rng(length)
    shapes = [(batch, length, heads, size), *((batch, steps, kv_heads, size),) * 2, (batch, length, heads, size)]
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def outputs_and_gradients(function, inputs, mask, causal):
    """Outputs, and the gradients of the inputs for the last array as output gradient."""
    *inputs, output_gradient = inputs

    @jax.jit
    def both(mask, output_gradient, *inputs):
        outputs, pullback = jax.vjp(lambda *inputs: function(*inputs, mask, causal), *inputs)
        return outputs, pullback(output_gradient)

    return both(mask, output_gradient, *inputs)


def native(query, key, value, mask, causal):
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def segment_mask(batch, length):
    """Mask of two packed sequences per row, so that every query attends to some key."""
    segments = np.arange(length)[None] >= np.arange(1, batch + 1)[:, None] * length // (batch + 1)
    return (segments[:, :, None] == segments[:, None, :])[:, None]


@pytest.mark.parametrize(
    ("shape", "causal", "masked"),
    [
        ((2, 5, 5, 2, 2, 4), True, False),
        ((2, 5, 7, 4, 2, 4), False, True),
        ((1, 6, 6, 3, 1, 2), False, False),
        ((2, 2 * MIN_BLOCK_LENGTH, 2 * MIN_BLOCK_LENGTH, 2, 1, 4), True, False),  # two blocks
        ((2, 2 * MIN_BLOCK_LENGTH + 3, 2 * MIN_BLOCK_LENGTH + 3, 2, 2, 4), True, True),
        ((1, 5 * MIN_BLOCK_LENGTH + 2, 5 * MIN_BLOCK_LENGTH + 2, 2, 2, 4), True, False),  # the maximum number of blocks
    ],
)
def test_outputs_and_gradients_equal_those_of_jax(shape, causal, masked):
    mask = None
    if masked:  # packed rows, or padding that is the same for all queries
        mask = (
            segment_mask(*shape[:2]) if causal else np.arange(shape[2])[None, None, None] < np.array([[[[4]]], [[[7]]]])
        )
    inputs = arrays(*shape)
    assert_close(
        outputs_and_gradients(dot_product_attention, inputs, mask, causal),
        outputs_and_gradients(native, inputs, mask, causal),
        1e-3,
        1e-5,
    )


def test_bfloat16_is_as_accurate_as_in_jax():
    inputs = arrays(2, 2 * MIN_BLOCK_LENGTH, 2 * MIN_BLOCK_LENGTH, 2, 1, 8, jnp.bfloat16)
    exact = outputs_and_gradients(native, [x.astype(jnp.float32) for x in inputs], None, True)
    ours, theirs = (outputs_and_gradients(function, inputs, None, True) for function in (dot_product_attention, native))
    for mine, other, truth in zip(*map(jax.tree.leaves, (ours, theirs, exact)), strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [np.abs(x.astype(jnp.float32) - truth).mean() for x in (mine, other)]
        assert errors[0] <= 1.5 * errors[1]


def test_masked_keys_have_no_weight():
    query, key, value, _ = arrays(1, 3, 3, 1, 1, 2)
    value = value.at[0, 2].set(1e30)
    outputs = dot_product_attention(query * 1e3, key * 1e3, value, np.array([[[[True, True, False]]]]))
    assert np.abs(outputs).max() < 10


def test_other_platforms_use_the_function_of_jax(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = arrays(1, 3, 3, 1, 1, 2)[:3]
    ours, theirs = (
        str(jax.make_jaxpr(lambda *x, f=f: f(*x, None, True))(*inputs)) for f in (dot_product_attention, native)
    )
    assert ours == theirs
