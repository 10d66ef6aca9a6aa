"""FCN and patches: plain loops, published sizes, and padding without influence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.errors import ConfigError
from foldax.models import FCN, PatchNetwork, Recurrent
from tests.models.shared import assert_close, parameter_count, random_variables

KEY = jax.random.key(0)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """One sequence `[T, C]`, padded with zeros to keep its length, by loops."""
    size, steps = len(kernel), len(x)
    padded = np.concatenate([np.zeros(((size - 1) // 2, x.shape[1])), x, np.zeros((size // 2, x.shape[1]))])
    return np.stack([sum(padded[t + k] @ kernel[k] for k in range(size)) for t in range(steps)])


def plain_fcn(x: np.ndarray, params: dict, residual: bool, pool_size: int) -> np.ndarray:
    """Without normalisation; stages of one convolution, or of two with a shortcut."""
    convolutions = iter(range(99))

    def convolved(x: np.ndarray) -> np.ndarray:
        own = params[f"Conv_{next(convolutions)}"]
        return plain_convolution(x, own["kernel"]) + own["bias"]

    for stage in range(2):
        if stage:
            x = np.stack([x[i : i + pool_size].max(axis=0) for i in range(0, len(x), pool_size)])
        y = convolved(x)
        if residual:
            y = convolved(np.maximum(y, 0))
            y = y + (convolved(x) if x.shape[1] != y.shape[1] else x)
        x = np.maximum(y, 0)
    return x.mean(axis=0) @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("residual", [False, True])
def test_fcn_equals_a_plain_loop(residual: bool) -> None:
    sizes = ((3, 2), (2, 3)) if residual else (4, 3)
    model = FCN(2, (3, 3), sizes, residual, pool_size=3, normalization=None)
    x = random(2, 7, 2)
    variables = random_variables(model, x)
    expected = np.stack([plain_fcn(one, variables["params"], residual, 3) for one in x])
    assert_close(np.asarray(model.apply(variables, x)), expected.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_published_networks_have_the_layers_of_their_paper() -> None:
    """Wang, Yan & Oates, 2017: one channel, two classes; biases are those of the normalisation."""
    fcn = 8 * 128 + 5 * 128 * 256 + 3 * 256 * 128 + 2 * (128 + 256 + 128) + 128 * 2 + 2
    assert parameter_count(FCN(2), random(1, 50, 1)) == fcn
    first = (8 * 1 + 5 * 64 + 3 * 64 + 1) * 64
    second = (8 * 64 + 5 * 128 + 3 * 128 + 64) * 128
    third = (8 + 5 + 3) * 128 * 128
    norms = 2 * (4 * 64 + 4 * 128 + 3 * 128)
    model = FCN(2, (64, 128, 128), ((8, 5, 3),) * 3, residual=True)
    assert parameter_count(model, random(1, 50, 1)) == first + second + third + norms + 128 * 2 + 2


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_gradients_with_padding_are_finite(kind) -> None:
    """Also where all of a row is padding, of which no statistics can be computed."""
    model, x, mask = FCN(2, (4, 4), (2, 3), pool_size=2, normalization=kind), random(3, 9, 2), np.ones((3, 9), int)
    mask[0, 5:] = mask[1] = 0
    variables = model.init(KEY, x)
    gradients = jax.jit(jax.grad(lambda variables: model.apply(variables, x, mask=mask).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    alone = model.apply(variables, x[:1, :5])
    assert_close(model.apply(variables, x, mask=mask)[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "residual", "activation"), [(None, False, "gelu"), ("batch", True, "relu")])
def test_padding_has_no_influence(kind, residual, activation) -> None:
    """On neither outputs nor running statistics, whatever its values and however long it is."""
    model = FCN(2, (3, 3), ((2,), (3, 1)), residual, 2, normalization=kind, activation=activation)
    x = random(3, 9, 2)
    variables = model.init(KEY, x)
    state = [name for name in variables if name != "params"]

    @jax.jit
    def outputs_and_statistics(x, mask):
        outputs = model.apply(variables, x, mask=mask)
        return outputs, model.apply(variables, x, mask=mask, train=True, mutable=state)

    @settings(max_examples=20, deadline=None)
    @given(lengths=st.lists(st.integers(1, 9), min_size=3, max_size=3), filler=st.sampled_from([-1.0, 1e9, np.nan]))
    def holds(lengths, filler) -> None:
        mask = np.arange(9)[None, :] < np.array(lengths)[:, None]
        longer = np.pad(np.where(mask[..., None], x, filler), ((0, 0), (0, 3), (0, 0)), constant_values=filler)
        padded = outputs_and_statistics(longer.astype(np.float32), np.pad(mask, ((0, 0), (0, 3))))
        assert_close(padded, outputs_and_statistics(np.where(mask[..., None], x, 0), mask), rtol=1e-4, atol=1e-5)

    holds()


@pytest.mark.parametrize(
    ("model", "shape", "mask", "message"),
    [
        (FCN(2), (1, 5), None, r"FCN: .*\[B, T, C\]"),
        (FCN(2), (1, 5, 1), (1, 4), r"mask must be \[1, 5\]"),
        (FCN(2, (4, 4)), (1, 5, 1), None, "kernel_sizes"),
        (PatchNetwork(FCN(2), 2, 3), (1, 5, 1), None, "stride, 3"),
        (PatchNetwork(FCN(2), 2, 0), (1, 5, 1), None, "stride, 0"),
        (PatchNetwork(FCN(2), 2, 2), (1, 5), None, r"PatchNetwork: .*\[B, T, C\]"),
    ],
)
def test_invalid_inputs_raise_helpful_errors(model, shape, mask, message) -> None:
    with pytest.raises(ConfigError, match=message):
        model.init(KEY, random(*shape), mask=None if mask is None else np.ones(mask, int))


class Identity:
    """A network that returns its inputs and mask."""

    def __call__(self, x, *, mask=None, train=False):
        return x, mask


def test_patches_concatenate_consecutive_steps() -> None:
    x, patches = jnp.arange(14.0).reshape(1, 7, 2), PatchNetwork(Identity(), 4, 2)
    mask = jnp.array([[1, 1, 1, 1, 1, 0, 0]])
    read, none = patches.apply({}, x)
    assert none is None
    np.testing.assert_array_equal(read[0], [np.arange(8), np.arange(4, 12), [*range(8, 14), 0, 0]])
    read, real = patches.apply({}, x, mask=mask)
    np.testing.assert_array_equal(read[0], [np.arange(8), [*range(4, 10), 0, 0], [8, 9, *[0] * 6]])
    np.testing.assert_array_equal(real, [[True, True, False]])  # the third holds no new step


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 11), more=st.integers(0, 9), size=st.integers(1, 5), data=st.data())
def test_padding_adds_no_patch(length, more, size, data) -> None:
    patches = PatchNetwork(Identity(), size, data.draw(st.integers(1, size)))
    x, mask = random(1, length, 2), np.ones((1, length), int)
    padded = np.pad(x, ((0, 0), (0, more), (0, 0)), constant_values=np.nan)
    (read, real), (expected, _) = (
        patches.apply({}, padded, mask=np.pad(mask, ((0, 0), (0, more)))),
        patches.apply({}, x),
    )
    assert real.sum() == expected.shape[1]
    np.testing.assert_array_equal(read[:, : expected.shape[1]], expected)
    assert real[:, : expected.shape[1]].all()


def test_the_network_receives_patches_and_their_mask() -> None:
    x = random(1, 7, 2)
    model, plain = (
        PatchNetwork(Recurrent(2, (3,), "gru", pooling="mean"), 4, 2),
        Recurrent(2, (3,), "gru", pooling="mean"),
    )
    variables = random_variables(model, x)
    read, mask = PatchNetwork(Identity(), 4, 2).apply({}, x, mask=np.array([[1, 1, 1, 1, 1, 0, 0]]))
    outputs = model.apply(variables, x, mask=np.array([[1, 1, 1, 1, 1, 0, 0]]))
    assert_close(outputs, plain.apply({"params": variables["params"]["network"]}, read, mask=mask))
