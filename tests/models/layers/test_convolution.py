"""The convolution equals JAX's: outputs, both gradients, second order, batched and in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from foldax.models import Conv, ConvTranspose, convolution


def channels_last(rank):
    spatial = tuple(range(1, rank - 1))
    last = (0, rank - 1, *spatial)
    return lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)


def random_arrays(shape, kernel, features, dtype=jnp.float32):
    first, second = jax.random.split(jax.random.key(0))
    rhs = jax.random.normal(second, (*kernel, shape[-1], features), dtype)
    return jax.random.normal(first, shape, dtype), rhs


def sum_of_sines(conv, *args, **options):
    def scalar(lhs, rhs):
        return jnp.sin(conv(lhs, rhs, *args, dimension_numbers=channels_last(lhs.ndim), **options)).sum()

    return scalar


def assert_same_gradients(lhs, rhs, *args, tolerance=2e-4, **options):
    ours, native = (
        jax.jit(jax.value_and_grad(sum_of_sines(conv, *args, **options), (0, 1)))(lhs, rhs)
        for conv in (convolution, lax.conv_general_dilated)
    )
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(native), strict=True):
        assert mine.dtype == theirs.dtype
        mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * (1 + np.abs(theirs).max()))


@st.composite
def cases(draw):
    count = draw(st.integers(1, 2))
    per_side = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(count))  # noqa: E731
    kernel, strides, dilation = per_side(1, 4), per_side(1, 3), per_side(1, 2)
    padding = draw(
        st.one_of(
            st.sampled_from(["SAME", "VALID"]), st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * count)
        )
    )
    reach = [(size - 1) * step + 3 for size, step in zip(kernel, dilation, strict=True)]
    image = tuple(length + draw(st.integers(0, 4)) for length in reach)
    channels, features = draw(st.sampled_from([1, 3, 40])), draw(st.sampled_from([1, 5]))
    return (2, *image, channels), kernel, features, strides, padding, dilation


@given(cases())
@settings(max_examples=10, deadline=None, database=None, derandomize=True)
def test_gradients_are_those_of_jax(case):
    shape, kernel, features, strides, padding, dilation = case
    assert_same_gradients(*random_arrays(shape, kernel, features), strides, padding, rhs_dilation=dilation)


def test_three_dimensions():
    assert_same_gradients(*random_arrays((2, 5, 4, 6, 2), (2, 3, 1), 3), (2, 1, 1), "SAME")


def test_bfloat16():
    case = random_arrays((2, 6, 6, 3), (3, 3), 4, jnp.bfloat16)
    assert_same_gradients(*case, (1, 1), "SAME", tolerance=0.05)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_input_dilation(strides):
    case = random_arrays((2, 5, 4, 3), (3, 2), 4)
    assert_same_gradients(*case, strides, ((2, 1), (0, 1)), lhs_dilation=(2, 3), rhs_dilation=(1, 2))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((-1, 3), (2, 0))])
@pytest.mark.parametrize("dilations", [((1, 1), (1, 1)), ((2, 1), (1, 2))])
def test_few_channels(padding, dilations):
    padding = ((1, 1), (0, 2)) if isinstance(padding, str) and max(dilations[0]) > 1 else padding
    case = random_arrays((3, 6, 7, 9), (3, 2), 8)
    assert_same_gradients(*case, (1, 1), padding, lhs_dilation=dilations[0], rhs_dilation=dilations[1])


def test_grouped_convolutions_are_passed_on_to_jax():
    lhs, rhs = random_arrays((2, 6, 6, 4), (3, 3), 4)
    assert_same_gradients(lhs, rhs[:, :, :2], (1, 1), "SAME", feature_group_count=2)


def test_errors_of_jax_are_kept():
    with pytest.raises(ValueError, match="transposed convolution"):
        convolution(*random_arrays((2, 6, 1), (3,), 1), (1,), "SAME", (2,), dimension_numbers=channels_last(3))


def test_other_layouts_are_passed_on_to_jax():
    lhs, rhs = random_arrays((2, 3, 6, 6), (2, 3), 3)  # JAX's default: [B, C, H, W] and [features, C, ...]
    rhs = jnp.ones((4, 3, 2, 2))
    native = lax.conv_general_dilated(lhs, rhs, (1, 1), "VALID")
    np.testing.assert_array_equal(convolution(lhs, rhs, (1, 1), "VALID"), native)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_gradient_of_a_gradient_norm(strides):
    """A gradient penalty (as in WGAN-GP) needs reverse over reverse."""
    lhs, rhs = random_arrays((2, 6, 5, 2), (3, 2), 3)

    def penalty(conv):
        slope = jax.grad(sum_of_sines(conv, strides, "SAME"))
        return jax.jit(jax.grad(lambda lhs, rhs: jnp.square(slope(lhs, rhs)).sum(), (0, 1)))(lhs, rhs)

    for mine, theirs in zip(penalty(convolution), penalty(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axes", [None, (0, None), (None, 0), (0, 0)])
def test_forward_mode_of_values_and_of_gradients_also_batched(axes):
    lhs, rhs = random_arrays((2, 6, 5, 2), (3, 2), 3)

    def tangents(conv):
        function = sum_of_sines(conv, (2, 1), "SAME")
        if axes is not None:
            function = (lambda f: lambda *args: jax.vmap(f, axes)(*args).sum())(function)
        args = [
            x if axis is None else jnp.stack([x, 2 * x])
            for x, axis in zip((lhs, rhs), axes or (None, None), strict=True)
        ]
        # The value's tangent, the gradients, and their tangents (forward over reverse)
        both = jax.jit(lambda *args: jax.jvp(jax.value_and_grad(function, (0, 1)), args, args))
        return jax.tree.leaves(both(*args))

    for mine, theirs in zip(tangents(convolution), tangents(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_batched_over_kernels_in_a_scan():
    lhs, _ = random_arrays((2, 5, 5, 2), (3, 3), 3)
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 3))

    def descend(conv, rhs):
        gradient = jax.grad(sum_of_sines(conv, (1, 1), "SAME"), 1)
        return lax.scan(lambda rhs, _: (rhs - 0.01 * gradient(lhs, rhs), None), rhs, None, length=3)[0]

    batched = jax.jit(jax.vmap(lambda rhs: descend(convolution, rhs)))(kernels)
    alone = jax.jit(lambda rhs: descend(lax.conv_general_dilated, rhs))
    for mine, kernel in zip(batched, kernels, strict=True):
        np.testing.assert_allclose(mine, alone(kernel), rtol=1e-4, atol=1e-4)


def test_gradient_depends_on_the_platform():
    """On the CPU the kernel gradient is made of matrix products, elsewhere of convolutions only."""
    gradient = jax.jit(jax.grad(sum_of_sines(convolution, (1, 1), "SAME"), 1)).trace(
        *random_arrays((2, 6, 6, 2), (3, 3), 4)
    )
    lowered = {name: gradient.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
    products = {name: text.count("stablehlo.dot_general") for name, text in lowered.items()}
    assert products["cpu"] > 0
    assert products["cuda"] == 0


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1, ((2, 1), (0, 1))])
def test_conv_equals_flax_conv(padding, strides):
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 2))
    ours, flax = (make(4, (3, 3), strides, padding) for make in (Conv, nn.Conv))
    variables = flax.init(jax.random.key(1), x)
    np.testing.assert_array_equal(ours.apply(variables, x), flax.apply(variables, x))
    assert jax.tree.structure(ours.init(jax.random.key(1), x)) == jax.tree.structure(variables)


@pytest.mark.parametrize(("kernel", "strides"), [((3, 4), (2, 2)), ((2, 5), (3, 1))])
def test_transposed_conv_equals_flax_transposed_conv(kernel, strides):
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 2))
    flax = nn.ConvTranspose(5, kernel, strides)
    variables = flax.init(jax.random.key(1), x)
    expected = flax.apply(variables, x)
    np.testing.assert_allclose(ConvTranspose(5, kernel, strides).apply(variables, x), expected, rtol=1e-5, atol=1e-5)
