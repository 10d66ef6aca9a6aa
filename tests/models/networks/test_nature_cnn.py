"""The Atari encoder has the sizes of the paper, and accepts frames in both layouts."""

import jax
import jax.numpy as jnp
import numpy as np

from foldax.models import NatureCNN


def test_it_has_the_papers_parameters_and_accepts_both_layouts():
    last, first = NatureCNN(), NatureCNN(channels_first=True)
    images = jax.ShapeDtypeStruct((2, 84, 84, 4), jnp.uint8)
    shapes = jax.eval_shape(last.init, jax.random.key(0), images)
    kernels = [8 * 8 * 4 * 32 + 32, 4 * 4 * 32 * 64 + 64, 3 * 3 * 64 * 64 + 64, 7 * 7 * 64 * 512 + 512]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(kernels)
    small = dict(features=3, channels=(2, 2))
    pixels = jax.random.randint(jax.random.key(1), (2, 20, 20, 4), 0, 256).astype(jnp.uint8)
    last, first = NatureCNN(**small), NatureCNN(**small, channels_first=True)
    variables = last.init(jax.random.key(0), pixels)
    features = last.apply(variables, pixels)
    assert features.shape == (2, 3)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, first.apply(variables, jnp.moveaxis(pixels, -1, 1)), rtol=1e-6)
