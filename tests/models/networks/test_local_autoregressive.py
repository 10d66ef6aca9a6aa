"""The autoregressive head: which pixels and features each output depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.models import LocalAutoregressiveHead

KEY = jax.random.key(0)


@pytest.mark.parametrize(("shape", "context_radius"), [((4, 5, 1), 1), ((3, 4, 2), 2), ((3, 3, 3), 1), ((6, 2, 1), 3)])
def test_outputs_depend_on_preceding_pixels_within_the_context_radius_and_no_others(shape, context_radius):
    height, width, channels = shape
    count = height * width * channels
    model = LocalAutoregressiveHead(2, shape, context_radius, width=4)
    decoded, pixels = jax.random.normal(KEY, (1, 4 * count)), jax.random.normal(KEY, (1, count))
    variables = model.init(KEY, decoded, pixels)
    by_pixel = jax.jacobian(lambda pixels: model.apply(variables, decoded, pixels)[0])(pixels)[:, :, 0]
    dependence = np.abs(by_pixel).max(axis=1) > 0  # [output pixel, input pixel]
    positions = [(i // (width * channels), i % (width * channels)) for i in range(count)]
    expected = [
        [
            0 <= row - other_row <= context_radius
            and abs(column - other_column) <= context_radius * channels
            and (other_row < row or other_column < column)
            for other_row, other_column in positions
        ]
        for row, column in positions
    ]
    np.testing.assert_array_equal(dependence, np.array(expected))


def test_decoder_features_of_a_pixel_affect_its_own_outputs_only():
    model = LocalAutoregressiveHead(1, (2, 3, 1), width=4)
    decoded, pixels = jax.random.normal(KEY, (1, 24)), jnp.zeros((1, 6))
    variables = model.init(KEY, decoded, pixels)
    by_feature = jax.jacobian(lambda decoded: model.apply(variables, decoded, pixels)[0, :, 0])(decoded)[:, 0]
    np.testing.assert_array_equal(np.abs(by_feature) > 0, np.repeat(np.eye(6), 4, axis=1))


def test_scale_divides_the_pixels():
    decoded, pixels = jnp.zeros((2, 36)), jax.random.uniform(KEY, (2, 9))
    variables = LocalAutoregressiveHead(3, (3, 3, 1), width=4).init(KEY, decoded, pixels)
    one = LocalAutoregressiveHead(3, (3, 3, 1), width=4).apply(variables, decoded, pixels)
    other = LocalAutoregressiveHead(3, (3, 3, 1), width=4, scale=16.0).apply(variables, decoded, 16 * pixels)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("decoded", "pixels"), [((2, 35), (2, 9)), ((2, 36), (2, 8))])
def test_wrong_shapes_raise_a_helpful_error(decoded, pixels):
    with pytest.raises(ConfigError, match="have 9 pixels with 4 decoder features each, got"):
        LocalAutoregressiveHead(3, (3, 3, 1), width=4).init(KEY, jnp.zeros(decoded), jnp.zeros(pixels))
