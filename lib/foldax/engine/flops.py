"""Floating-point operations of a traced program, before XLA optimises it."""

import math
from typing import Any

import jax


def count_flops(jaxpr: Any) -> float:
    """Counts the operations of a jaxpr's matrix products and convolutions, two for each multiplication.

    The body of a loop counts as often as it runs, where that is known (`scan`); XLA's own cost analysis counts it once.

    >>> import jax.numpy as jnp
    >>> count_flops(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))).jaxpr)
    48.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        # [.., M, K] x [.., K, N]: two operations per element of the output and contracted index.
        if name == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            # Each output element is a dot product with all weights of one output channel.
            numbers, kernel = settings["dimension_numbers"], equation.invars[1].aval.shape
            weights_per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * weights_per_output
        counts = [count_flops(inner) for inner in inner_jaxprs(equation)]
        # A `cond` runs one of its branches, at most the largest; an equation with several programs of another kind,
        # such as `custom_vjp`, runs the first.
        total += (max(counts[:1] if name != "cond" else counts, default=0.0)) * settings.get("length", 1)
    return total


def inner_jaxprs(equation: Any) -> list[Any]:
    """Lists the jaxprs among the settings of an equation, such as the body of a loop."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]
