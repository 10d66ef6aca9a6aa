"""What is said of a pixel: of which other pixels it may depend, and of which it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.models import Neighbours

KEY = jax.random.key(0)


@pytest.mark.parametrize(("shape", "reach"), [((4, 5, 1), 1), ((3, 4, 2), 2), ((3, 3, 3), 1), ((6, 2, 1), 3)])
def test_a_pixel_depends_on_those_before_it_within_reach_and_on_no_others(shape, reach):
    height, width, channels = shape
    count = height * width * channels
    model = Neighbours(2, shape, reach, width=4)
    decoded, pixels = jax.random.normal(KEY, (1, 4 * count)), jax.random.normal(KEY, (1, count))
    variables = model.init(KEY, decoded, pixels)
    by_pixel = jax.jacobian(lambda pixels: model.apply(variables, decoded, pixels)[0])(pixels)[:, :, 0]
    found = np.abs(by_pixel).max(axis=1) > 0  # [of which is said, on which it depends]
    places = [(i // (width * channels), i % (width * channels)) for i in range(count)]
    expected = [
        [
            0 <= row - other <= reach and abs(place - beside) <= reach * channels and (other < row or beside < place)
            for other, beside in places
        ]
        for row, place in places
    ]
    np.testing.assert_array_equal(found, np.array(expected))


def test_the_decoder_speaks_of_each_pixel_by_itself():
    model = Neighbours(1, (2, 3, 1), width=4)
    decoded, pixels = jax.random.normal(KEY, (1, 24)), jnp.zeros((1, 6))
    variables = model.init(KEY, decoded, pixels)
    by_number = jax.jacobian(lambda decoded: model.apply(variables, decoded, pixels)[0, :, 0])(decoded)[:, 0]
    np.testing.assert_array_equal(np.abs(by_number) > 0, np.repeat(np.eye(6), 4, axis=1))


def test_the_scale_is_that_of_the_pixels():
    decoded, pixels = jnp.zeros((2, 36)), jax.random.uniform(KEY, (2, 9))
    variables = Neighbours(3, (3, 3, 1), width=4).init(KEY, decoded, pixels)
    one = Neighbours(3, (3, 3, 1), width=4).apply(variables, decoded, pixels)
    other = Neighbours(3, (3, 3, 1), width=4, scale=16.0).apply(variables, decoded, 16 * pixels)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("decoded", "pixels"), [((2, 35), (2, 9)), ((2, 36), (2, 8))])
def test_other_shapes_say_so(decoded, pixels):
    with pytest.raises(ConfigError, match="have 9 pixels, of each of which the decoder gives 4 numbers, got"):
        Neighbours(3, (3, 3, 1), width=4).init(KEY, jnp.zeros(decoded), jnp.zeros(pixels))
