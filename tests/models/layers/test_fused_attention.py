"""Fused attention: the kernel of a TPU, interpreted, against the plain formula; which inputs a kernel takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType

from foldax.errors import ConfigError
from foldax.models.layers.attention import dot_product_attention
from foldax.models.layers.fused_attention import fused_attention


def heads(batch=1, length=128, num_heads=2, size=8, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(num_heads).normal(size=(batch, length, num_heads, size)), dtype)


def test_the_kernel_of_a_tpu_equals_the_plain_formula():
    query, key, value = heads(num_heads=2), heads(num_heads=1), heads(num_heads=1) + 1

    def outputs_and_gradients(attention):
        outputs, pullback = jax.vjp(attention, query, key, value)
        return outputs, pullback(query)

    with pltpu.force_tpu_interpret_mode():
        actual = jax.jit(outputs_and_gradients, static_argnums=0)(
            lambda *args: fused_attention(*args, None, True, "tpu")
        )
    expected = outputs_and_gradients(functools.partial(dot_product_attention, causal=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), actual, expected)


def test_the_kernel_of_a_tpu_runs_on_the_part_of_each_device():
    """XLA cannot divide a kernel: without `shard_map`, each device would gather the whole batch."""

    def specs(batch, num_heads):
        args = heads(batch, num_heads=4), *[heads(batch, num_heads=num_heads)] * 2
        with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)):
            jaxpr = jax.make_jaxpr(lambda *args: fused_attention(*args, None, True, "tpu"))(*args)
        (equation,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "shard_map"]
        return set(map(tuple, equation.params["in_specs"][-3:]))  # after those of the kernel's constants

    assert specs(4, 2) == {(("data", "fsdp"), None, "tensor", None)}
    assert specs(3, 1) == {(None, None, None, None)}


@pytest.mark.parametrize(
    ("platform", "options", "masked", "is_fused"),
    [
        ("tpu", {}, False, True),
        ("tpu", {}, True, False),
        ("tpu", {"length": 100}, False, False),
        ("gpu", {"dtype": jnp.bfloat16}, True, True),
        ("gpu", {"dtype": jnp.bfloat16, "length": 101}, True, False),
        ("gpu", {"dtype": jnp.bfloat16, "size": 256}, False, False),
        ("gpu", {}, False, False),
        ("cpu", {}, False, False),
    ],
)
def test_each_kernel_takes_the_inputs_that_it_can(platform, options, masked, is_fused, monkeypatch):
    def attention_of_jax(query, key, value, *, mask, is_causal, implementation):
        assert (implementation, is_causal) == ("cudnn", True)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention_of_jax)
    args = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in [heads(**options)] * 3]
    mask = jax.ShapeDtypeStruct((1, 1, 1, args[0].shape[1]), bool) if masked else None
    outputs = jax.eval_shape(lambda *args: fused_attention(*args, True, platform), *args, mask)
    assert (outputs is not None) == is_fused


def test_without_a_kernel_the_outputs_have_the_bits_of_the_plain_formula():
    query = heads()
    fused, plain = (dot_product_attention(query, query, query, None, True, name) for name in ("fused", "xla"))
    np.testing.assert_array_equal(fused, plain)
    with pytest.raises(ConfigError, match="attention_implementation: 'flash' is unknown"):
        dot_product_attention(query, query, query, implementation="flash")
