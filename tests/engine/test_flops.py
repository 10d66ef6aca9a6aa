"""Floating-point operations of a traced program equal those counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from foldax import models
from foldax.engine.flops import count_flops


def gradient_flops(model, inputs, **options) -> float:
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def loss(variables):
        return jnp.square(model.apply(variables, inputs, **options)).sum()

    return count_flops(jax.make_jaxpr(jax.grad(loss))(variables))


def test_flops_of_loops_and_convolutions_are_counted() -> None:
    def program(x, w, k):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]
        image = jax.lax.conv_general_dilated(
            jnp.ones((2, 4, 4, 5)), k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x), image

    jaxpr = jax.make_jaxpr(program)(jnp.ones((7, 8)), jnp.ones((8, 8)), jnp.ones((3, 3, 5, 6)))
    # Of 12 pairs of an output's and a kernel's position on each axis, 2 meet padding.
    product, convolution = 2 * 7 * 8 * 8, 2 * 2 * (12 - 2) ** 2 * 5 * 6
    assert count_flops(jaxpr.jaxpr) == 4 * product + convolution
    gradient = jax.make_jaxpr(jax.grad(lambda w, x: jnp.square(x @ w).sum()))(jnp.ones((8, 8)), jnp.ones((7, 8)))
    assert count_flops(gradient.jaxpr) == 2 * product


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("shape", "dilation"), [((8, 9), (1, 1)), ((5, 4), (2, 2))])
def test_a_convolution_counts_as_in_xla_and_so_do_its_gradients(strides, shape, dilation) -> None:
    layout, inputs, kernel = ("NHWC", "HWIO", "NHWC"), jnp.ones((2, *shape, 3)), jnp.ones((3, 3, 3, 4))
    options = dict(lhs_dilation=dilation, dimension_numbers=layout)
    padding = [(1, 2), (0, 1)]

    def native(inputs, kernel):
        return lax.conv_general_dilated(inputs, kernel, strides, padding, **options)

    def ours(inputs, kernel):
        return models.layers.convolution.convolution(inputs, kernel, strides, padding, **options)

    forward = jax.jit(native).lower(inputs, kernel).cost_analysis()["flops"]
    for function in (native, ours):
        assert count_flops(jax.make_jaxpr(function)(inputs, kernel)) == forward
        # On whichever platform: our gradient on the CPU multiplies more.
        for argument in (0, 1):
            loss = lambda *inputs, function=function: function(*inputs).sum()  # noqa: E731
            assert count_flops(jax.make_jaxpr(jax.grad(loss, argument))(inputs, kernel)) == forward


@pytest.mark.parametrize("scan", [False, True])
def test_what_the_backward_pass_computes_again_does_not_count(scan: bool) -> None:
    tokens, shape = jnp.ones((2, 8), int), dict(width=16, depth=3, num_heads=2, max_length=8, scan_layers=scan)
    counts = [
        gradient_flops(models.Transformer(32, 32, causal=True, remat=remat, **shape), tokens) for remat in (False, True)
    ]
    # Parameters of the products times tokens, and attention, forward and twice that backward.
    products = (3 * 12 * 16**2 + 16 * 32) * 16
    attention = 3 * 2 * (2 * 8 * 8 * 16)
    assert counts == [6 * (products + attention)] * 2


def test_a_loop_that_is_computed_again_does_not_count() -> None:
    class Network(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (3, 4, 4))

            def layer(x, kernel):
                return lax.scan(lambda h, x: (jnp.tanh(h @ kernel + x),) * 2, jnp.zeros((2, 4)), x)[1]

            layer = jax.checkpoint(layer) if self.remat else layer
            return lax.scan(lambda x, kernel: (layer(x, kernel), None), x, kernel)[0]

    counts = [gradient_flops(Network(remat), jnp.ones((5, 2, 4))) for remat in (False, True)]
    assert counts == [3 * 3 * 5 * (2 * 2 * 4 * 4)] * 2


def test_a_recurrent_network_counts_without_results_that_nothing_uses() -> None:
    batch, steps, width, features = 2, 4, 8, 3
    layer = 2 * batch * steps * (2 * width) * 4 * width
    output = 2 * batch * steps * width * features
    model = models.Recurrent(features, (width, width), vocabulary_size=9)
    assert gradient_flops(model, jnp.ones((batch, steps), int)) == 3 * (2 * layer + output)


def test_a_program_on_several_devices_counts_on_all() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    product = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data"))
    assert count_flops(jax.make_jaxpr(product)(jnp.ones((8, 2)), jnp.ones((2, 3)))) == 2 * 8 * 2 * 3


def test_what_several_devices_compute_again_to_save_memory_does_not_count() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def double(kernel: jax.Array) -> jax.Array:
        return 2 * kernel

    def layer(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        # Two programs, of which one gets what the other makes, or both in one.
        kernel = jax.shard_map(double, mesh=mesh, in_specs=spec(), out_specs=spec())(kernel)
        product = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data"))
        return jnp.tanh(product(inputs, kernel))

    arguments = jnp.ones((8, 2)), jnp.ones((2, 3))
    plain, again = (
        count_flops(jax.make_jaxpr(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) ** 2), argnums=(0, 1)))(*arguments))
        for f in (layer, jax.checkpoint(layer))
    )
    assert plain == again == 3 * 2 * 8 * 2 * 3
