"""Residual networks: published sizes, a plain loop over layers, scanned blocks, options, invalid input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax.errors import ConfigError
from foldax.models import ResNet
from foldax.models.networks.resnet import block_counts
from tests.models.shared import assert_close, parameter_count, random_variables

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_imagenet_networks_have_the_published_parameters(depth, count):
    model = ResNet(1000, depth, stem="imagenet", scan_layers=True)
    assert parameter_count(model, np.zeros((1, 224, 224, 3), np.float32), train=False) == count


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73), (1202, 19.4)]
)
def test_cifar_networks_have_the_published_parameters(depth, millions):  # He et al. (2016), table 6
    model = ResNet(10, depth, shortcut="pad", scan_layers=True)
    count = parameter_count(model, np.zeros((1, 32, 32, 3), np.float32))
    assert abs(count / 1e6 - millions) <= 0.005 if millions < 10 else 0.05


@pytest.mark.parametrize(("depth", "millions"), [(164, 1.7), (1001, 10.2)])
def test_preactivation_networks_have_the_published_parameters(depth, millions):  # "Identity mappings", table 4
    model = ResNet(10, depth, "bottleneck", preactivation=True, scan_layers=True)
    count = parameter_count(model, np.zeros((1, 32, 32, 3), np.float32))
    assert millions - 0.05 <= count / 1e6 < millions + 0.13


@pytest.mark.parametrize(
    ("depth", "kind", "blocks"), [(8, "basic", 1), (11, "bottleneck", 1), (20, "basic", 3), (1001, "bottleneck", 111)]
)
def test_depth_counts_layers(depth, kind, blocks):
    assert block_counts(depth, "cifar") == (kind, (blocks,) * 3)
    assert 1 + 3 * blocks * {"basic": 2, "bottleneck": 3}[kind] + 1 == depth


def test_depth_is_the_number_of_kernels():
    params = jax.eval_shape(ResNet(10, 20, shortcut="pad").init, jax.random.key(0), IMAGES)["params"]
    assert sum("kernel" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)) == 20


def convolved(params, x, stride=1):
    size = params["kernel"].shape[0]
    pads = [(size // 2, size // 2)] * (x.ndim - 2)
    numbers = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, params["kernel"], (stride,) * (x.ndim - 2), pads, dimension_numbers=numbers)


def normalized(params, x):
    """Batch statistics of this batch."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"].reshape(shape) + params["bias"].reshape(shape)


def block_by_hand(params, x, strides, preactivation, shortcut):
    """Convolutions `Conv_0`, `Conv_1`, ... in the order of creation; that of the shortcut comes first."""
    convs, norms = ([params[k] for k in sorted(params) if kind in k] for kind in ("Conv", "Norm"))
    short, y = x, x
    if preactivation:
        y = np.maximum(normalized(norms.pop(0), x), 0)
    widens = max(strides) > 1 or x.shape[-1] != convs[-1]["kernel"].shape[-1]
    if widens and shortcut == "projection":
        short = convolved(convs.pop(0), y if preactivation else x, max(strides))
        short = short if preactivation else normalized(norms.pop(0), short)
    elif widens:
        step = max(strides)
        short = (y if preactivation else x)[:, ::step, ::step]
        short = np.pad(short, [(0, 0)] * 3 + [(0, convs[-1]["kernel"].shape[-1] - x.shape[-1])])
    for index, (conv, stride) in enumerate(zip(convs, strides)):
        if preactivation and index:
            y = np.maximum(normalized(norms.pop(0), y), 0)
        y = convolved(conv, y, stride)
        if not preactivation:
            y = normalized(norms.pop(0), y)
            y = np.maximum(y, 0) if index + 1 < len(convs) else y
    return y + short if preactivation else np.maximum(y + short, 0)


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize(("block", "preactivation"), [("basic", False), ("bottleneck", True)])
def test_network_equals_a_plain_loop_over_its_layers(block, preactivation, shortcut):
    model = ResNet(3, (2, 1), block, width=4, shortcut=shortcut, preactivation=preactivation)
    variables = random_variables(model, IMAGES, scale=0.3)
    params = variables["params"]
    statistics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0), IMAGES))
    variables["batch_stats"] = statistics["batch_stats"]
    outputs, _ = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, IMAGES)
    x = convolved(params["Conv_0"], IMAGES)
    x = x if preactivation else np.maximum(normalized(params["BatchNorm_0"], x), 0)
    for name, stride in [("first_0_0", 1), ("stage_0_0", 1), ("first_1_0", 2)]:
        strides = [stride, 1] if block == "basic" else [1, stride, 1]
        x = block_by_hand(params[name]["Block_0"], x, strides, preactivation, shortcut)
    x = np.maximum(normalized(params["BatchNorm_0"], x), 0) if preactivation else x
    expected = x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    assert_close(np.asarray(outputs), np.asarray(expected), 1e-3, 1e-4)


def test_scanned_and_remat_blocks_equal_unrolled_blocks():
    model = ResNet(3, (3, 3), width=4, preactivation=True)
    unrolled = random_variables(model, IMAGES, scale=0.3)["params"]

    def stacked(tree):
        rest = {name: leaves for name, leaves in tree.items() if not name.startswith("stage")}
        blocks = {f"stage_{s}": [tree[f"stage_{s}_{index}"] for index in range(2)] for s in range(2)}
        return rest | {name: jax.tree.map(lambda *leaves: np.stack(leaves), *pair) for name, pair in blocks.items()}

    def loss_statistics_gradient(params, **options):
        variant = model.clone(**options)
        shapes = jax.eval_shape(variant.init, jax.random.key(0), IMAGES)
        assert jax.tree.map(np.shape, shapes["params"]) == jax.tree.map(np.shape, params)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["batch_stats"])

        def loss(params):
            variables = {"params": params, "batch_stats": zeros}
            outputs, changed = variant.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
            return (outputs**2).mean(), changed["batch_stats"]

        (value, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return value, statistics, gradient

    value, statistics, gradient = loss_statistics_gradient(unrolled)
    scanned = loss_statistics_gradient(stacked(unrolled), scan_layers=True, remat=True)
    assert_close(scanned, (value, stacked(statistics), stacked(gradient)), 1e-3, 1e-4)
    assert_close(loss_statistics_gradient(unrolled, remat=True), (value, statistics, gradient), 1e-4, 1e-5)


def test_branches_start_at_zero():
    model = ResNet(10, (2, 1), "bottleneck", width=2, zero_init_residual=True)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    norms = [params[name]["Block_0"] for name in ("first_0_0", "stage_0_0", "first_1_0")]
    zeros = {
        (block, name)
        for block, layers in enumerate(norms)
        for name in layers
        if "Norm" in name and not layers[name]["scale"].any()
    }
    # The normalisation of a shortcut comes first.
    assert zeros == {(0, "BatchNorm_3"), (1, "BatchNorm_2"), (2, "BatchNorm_3")}
    with pytest.raises(ConfigError, match="zero_init_residual"):
        jax.eval_shape(model.clone(preactivation=True).init, jax.random.key(0), IMAGES)


def test_program_size_of_scanned_blocks_does_not_depend_on_depth():
    def equations(depth):
        model = ResNet(10, depth, "bottleneck", preactivation=True, width=2, scan_layers=True)
        variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)

        def loss(variables):
            return model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables)).count(" = ")

    assert equations(1001) == equations(29)


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 5, 7, 1), (2, 4, 5, 6, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "imagenet", "shortcut": "pad", "dtype": jnp.bfloat16},
        {"preactivation": True, "normalization": "group", "block": "bottleneck", "activation": "prelu"},
        {"normalization": None, "shortcut": "pad", "dropout": 0.5},
    ],
)
def test_sequences_images_and_volumes_of_any_size_are_accepted(shape, options):
    model = ResNet(3, (1, 2), width=8, **options)

    def apply(x):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = model.init(rngs, x)
        return variables, model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    variables, outputs = jax.eval_shape(apply, jnp.zeros(shape))
    assert outputs.shape == (2, 3)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert ("batch_stats" in variables) == ("normalization" not in options)


def test_a_sequence_equals_an_image_of_one_row():
    model = ResNet(3, (1, 1), width=4, normalization="layer", shortcut="pad", preactivation=True)
    x = IMAGES[:, 0]  # [B, T, C]
    variables = random_variables(model, x, scale=0.3)

    def widened(kernel):  # [size, C, D] in the middle row of [size, size, C, D]
        if kernel.ndim < 3:
            return kernel
        return (
            np.zeros((kernel.shape[0], *kernel.shape), np.float32)
            + np.where(np.arange(kernel.shape[0]) == kernel.shape[0] // 2, 1, 0).reshape(-1, 1, 1, 1) * kernel[None]
        )

    image = {"params": jax.tree.map(widened, variables["params"])}
    assert_close(jax.jit(model.apply)(variables, x), jax.jit(model.apply)(image, x[:, None]), 1e-4, 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, r"depth: 21 is neither 6n \+ 2 .* nor 9n \+ 2"),
        ({"depth": 2}, "depth: 2 is neither"),
        ({"depth": 14, "block": "bottleneck"}, "depth: 14 is neither"),
        ({"depth": 20, "stem": "imagenet"}, "no ImageNet ResNet-20 .*; there are 18 .basic."),
        ({"depth": 18, "stem": "imagenet", "block": "bottleneck"}, "no ImageNet ResNet-18 of bottleneck blocks"),
        ({"depth": ()}, "one block or more for each stage"),
        ({"depth": (2, 0)}, "one block or more for each stage"),
        ({"stem": "mnist"}, "'mnist' is unknown; choose 'cifar' or 'imagenet'"),
        ({"block": "wide"}, "'wide' is unknown; choose None, 'basic' or 'bottleneck'"),
        ({"shortcut": "zero"}, "'zero' is unknown; choose 'projection' or 'pad'"),
        ({"normalization": "instance"}, "'instance' is unknown"),
        ({"x": IMAGES[0, 0]}, r"images \[B, H, W, C\]"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(options, message):
    x = options.pop("x", IMAGES)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(ResNet(**{"features": 3, "depth": 8, **options}).init, jax.random.key(0), x)
