"""Floating-point operations of a traced program equal those counted by hand."""

import jax
import jax.numpy as jnp

from foldax.engine.flops import count_flops


def test_flops_of_loops_and_convolutions_are_counted() -> None:
    def program(x, w, k):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]
        image = jax.lax.conv_general_dilated(
            jnp.ones((2, 4, 4, 5)), k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x), image

    jaxpr = jax.make_jaxpr(program)(jnp.ones((7, 8)), jnp.ones((8, 8)), jnp.ones((3, 3, 5, 6)))
    product, convolution = 2 * 7 * 8 * 8, 2 * (2 * 4 * 4 * 6) * (3 * 3 * 5)
    assert count_flops(jaxpr.jaxpr) == 4 * product + convolution
    gradient = jax.make_jaxpr(jax.grad(lambda w, x: jnp.square(x @ w).sum()))(jnp.ones((8, 8)), jnp.ones((7, 8)))
    assert count_flops(gradient.jaxpr) == 2 * product
