"""Masks, segments, tokens and pooling of sequence networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.errors import ConfigError
from foldax.models import check_tokens, pool_sequence
from foldax.models.layers.sequences import segment_attention_mask, segment_positions, segment_starts

MASKS = st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=2, max_size=2)


def positions_by_hand(row):
    """Counts real steps; a segment id other than that of the last real step starts a new segment."""
    positions, starts, last, count = [], [], None, -1
    for number in row:
        starts.append(number not in (0, last))
        if number:
            count, last = 0 if number != last else count + 1, number
        positions.append(count)
    return positions, starts


@settings(max_examples=50, deadline=None)
@given(rows=MASKS)
def test_segment_functions_equal_a_plain_loop(rows):
    mask = np.array(rows)
    positions, starts = (np.array(parts) for parts in zip(*map(positions_by_hand, rows)))
    np.testing.assert_array_equal(segment_starts(mask), starts)
    np.testing.assert_array_equal(np.asarray(segment_positions(mask))[mask != 0], positions[mask != 0])
    visible = (mask[:, :, None] == mask[:, None, :]) & (mask != 0)[:, None, :]
    np.testing.assert_array_equal(segment_attention_mask(mask, mask), visible)


@pytest.mark.parametrize("kind", ["last", "mean", "max"])
def test_pooling_ignores_padding(kind):
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32) - 10  # below what replaces padding
    mask = np.array([[0, 1, 2, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    pooled = pool_sequence(np.where(mask[..., None] != 0, x, np.nan), kind, mask)
    expected = [{"last": row[-1], "mean": row.mean(0), "max": row.max(0)}[kind] for row in (x[0, 1:3], x[1])]
    np.testing.assert_allclose(pooled, [*expected, [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(pool_sequence(x, kind)[1], expected[1], rtol=1e-6)


def test_mean_of_many_bfloat16_steps_is_exact():
    x = jnp.where(jnp.arange(1003) % 2 == 0, 1, 3).astype(jnp.bfloat16)[None, :, None]
    pooled = pool_sequence(x, "mean", np.arange(1003)[None] < 1002)
    assert pooled.dtype == jnp.bfloat16
    assert float(pooled[0, 0]) == 2.0


def test_concrete_tokens_are_checked_and_traced_ones_are_not():
    check_tokens(np.array([[0, 4]]), 5, "tokens")
    check_tokens(np.zeros((0, 3), int), 5, "tokens")
    jax.jit(lambda tokens: check_tokens(tokens, 5, "tokens"))(np.array([[7]]))
    with pytest.raises(ConfigError, match=r"tokens: token 300 at \[1, 0\] is not in the vocabulary, 0 to 255"):
        check_tokens(np.array([[255], [300]]), 256, "tokens")
