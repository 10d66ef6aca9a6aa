"""How many floating-point operations a traced program takes, before XLA changes anything."""

from __future__ import annotations

import math
from typing import Any

import jax


def operations_of(program: Any) -> float:
    """Returns the operations of a program's products and convolutions, two for each multiplication.

    Those in a loop count as often as it runs, if that is known (a `scan`; XLA's own count has its body once).
    """
    total = 0.0
    for equation in program.eqns:
        name, settings = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            numbers, kernel = settings["dimension_numbers"], equation.invars[1].aval.shape
            weights = math.prod(kernel) // kernel[numbers.rhs_spec[0]]  # of one output
            total += 2 * math.prod(equation.outvars[0].aval.shape) * weights
        inner = [leaf for leaf in jax.tree.leaves(list(settings.values()), is_leaf=is_program) if is_program(leaf)]
        counts = [operations_of(getattr(leaf, "jaxpr", leaf)) for leaf in inner]
        # Of several branches one runs; of several programs of another kind, such as a custom gradient's, the first.
        total += (max(counts[:1] if name != "cond" else counts, default=0.0)) * settings.get("length", 1)
    return total


def is_program(value: Any) -> bool:
    """Whether a value among an operation's settings is a program."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
