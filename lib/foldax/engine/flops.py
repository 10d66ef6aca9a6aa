"""Floating-point operations of the mathematics of a traced program: those that any implementation has to compute.

The utilisation of a device is relative to these (Chowdhery et al., 2022, appendix B). So they leave out results that
nothing uses, what the backward pass computes again to save memory, products with padding, and code of one platform.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

# Operations whose outputs are their inputs.
COPIES = ("optimization_barrier", "name", "copy", "copy_p", "sharding_constraint")


def count_flops(jaxpr: Any) -> float:
    """Counts the operations of a jaxpr's matrix products and convolutions, two for each multiplication.

    The body of a loop counts as often as it runs, where that is known (`scan`), and once in a `while` loop.

    Args:
      jaxpr: closed or open.

    >>> import jax.numpy as jnp
    >>> count_flops(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))).jaxpr)
    48.0
    """
    jaxpr, _ = _open(jaxpr)
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    values = _Values()
    return _count(used, [values.new() for _ in used.invars], values)[0]


def inner_jaxprs(equation: Any) -> list[Any]:
    """Lists the jaxprs among the settings of an equation, such as the body of a loop."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


class _Values:
    """Numbers of values: two operations of one kind on the same inputs have the same outputs.

    So what is computed again has a number already (hash-consing, as compilers eliminate common subexpressions).
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, list[int]] = {}
        self._numbers = itertools.count()
        self._items: dict[int, int] = {}
        self._shards: dict[tuple[int, str], int] = {}
        self.platforms: set[int] = set()  # numbers of platforms, which choose branches

    def new(self) -> int:
        return next(self._numbers)

    def of(self, key: Hashable) -> int:
        return self.known.setdefault(key, [self.new()])[0]

    def stack(self, item: int, length: int) -> int:
        """The array of all values that `item` has in a loop."""
        stacked = self.of(("stack", item, length))
        self._items[stacked] = item
        return stacked

    def item(self, array: int) -> int:
        """The value that an array has at the current iteration of a loop over it."""
        return self._items.get(array, self.of(("item", array)))

    def whole(self, shard: int, spec: str) -> int:
        """The array whose shards on all devices a value is."""
        array = self.of(("whole", shard, spec))
        self._shards[array, spec] = shard
        return array

    def shard(self, array: int, spec: str) -> int:
        """The shard that a device has of an array."""
        known = self._shards.get((array, spec))
        return self.of(("shard", array, spec)) if known is None else known


def _count(jaxpr: Any, inputs: Sequence[int], values: _Values) -> tuple[float, list[int]]:
    """Returns the operations of a jaxpr that were not counted so far, and the numbers of its outputs."""
    jaxpr, constants = _open(jaxpr)
    numbers = dict(zip(jaxpr.invars, inputs)) | {
        variable: values.of(("constant", id(constant))) for variable, constant in zip(jaxpr.constvars, constants)
    }

    def number(atom: Any) -> int:
        if hasattr(atom, "val"):
            return values.of(("literal", repr(atom.val), str(atom.aval)))
        return numbers.setdefault(atom, values.new())

    total = 0.0
    for equation in jaxpr.eqns:
        flops, outputs = _count_equation(equation, [number(atom) for atom in equation.invars], values)
        total += flops
        numbers.update(zip(equation.outvars, outputs))
    return total, [number(atom) for atom in jaxpr.outvars]


def _count_equation(equation: Any, inputs: list[int], values: _Values) -> tuple[float, list[int]]:
    name, inner = equation.primitive.name, inner_jaxprs(equation)
    if name in COPIES:
        return 0.0, inputs
    if name == "scan":
        return _count_scan(equation, inputs, values)
    if name == "cond":
        return _count_branches(inner, inputs, values)
    if name == "shard_map":
        return _count_shards(equation, inputs, values)
    if name == "platform_index":
        values.platforms.add(number := values.new())
        return 0.0, [number]
    # An equation with several programs, such as `custom_vjp`, runs the first; `jit` and `checkpoint` have one.
    if inner and name not in ("while", "pallas_call") and len(_open(inner[0])[0].invars) == len(inputs):
        return _count(inner[0], inputs, values)
    try:
        # A kernel that is computed again has a new jaxpr, of the same text.
        settings = (str(inner[0]), _num_programs(equation)) if name == "pallas_call" else equation.params.items()
        key: Hashable = (name, frozenset(settings), tuple(inputs))
        known = None if equation.effects else values.known.get(key)
    except TypeError:  # settings that have no hash
        key, known = object(), None
    if known is not None:
        return 0.0, known
    values.known[key] = [values.new() for _ in equation.outvars]
    flops = _product_flops(equation)
    if inner:
        body = equation.params["body_jaxpr"] if name == "while" else inner[0]
        fresh = [values.new() for _ in _open(body)[0].invars]
        flops += _count(body, fresh, values)[0] * _num_programs(equation)
    return flops, values.known[key]


def _count_scan(equation: Any, inputs: list[int], values: _Values) -> tuple[float, list[int]]:
    """Counts the body of a `scan` as often as it runs.

    The arrays that the scan of a forward pass stacks are those over which the scan of its backward pass runs, so
    that what this one computes again is found.
    """
    length, body = equation.params["length"], equation.params["jaxpr"]
    # Constants and carry have the same shape in the loop; the arrays over which it runs have an axis less there.
    inner = _open(body)[0]
    num_items = sum(outside.aval.ndim > inside.aval.ndim for outside, inside in zip(equation.invars, inner.invars))
    num_carry = sum(outside.aval.ndim == inside.aval.ndim for outside, inside in zip(equation.outvars, inner.outvars))
    num_consts = len(inputs) - num_items - num_carry
    loop = ("scan", length, *inputs)
    carry = [values.of((loop, index)) for index in range(num_carry)]
    items = [values.item(array) for array in inputs[num_consts + num_carry :]]
    flops, outputs = _count(body, [*inputs[:num_consts], *carry, *items], values)
    last = [values.of(("last", loop, output)) for output in outputs[:num_carry]]
    return flops * length, last + [values.stack(output, length) for output in outputs[num_carry:]]


def _count_branches(branches: list[Any], inputs: list[int], values: _Values) -> tuple[float, list[int]]:
    """Counts the branch of a `cond` with the most operations; of code for several platforms the default, the last."""
    if inputs[0] in values.platforms:
        return _count(branches[-1], inputs[1:], values)
    known, counts, outputs = values.known, [], []
    for branch in branches:
        values.known = dict(known)  # one branch does not compute again what another does
        flops, branch_outputs = _count(branch, inputs[1:], values)
        counts.append(flops)
        outputs.append(branch_outputs)
        known = known | values.known
    values.known = known
    return max(counts), [values.of(("cond", inputs[0], *alternatives)) for alternatives in zip(*outputs)]


def _count_shards(equation: Any, inputs: list[int], values: _Values) -> tuple[float, list[int]]:
    """Counts the program of a `shard_map` on every device of its mesh, unless the same shards were computed before."""
    settings = equation.params
    specs, out_specs = (settings.get(f"{side}_specs", settings.get(f"{side}_names")) for side in ("in", "out"))
    shards = [values.shard(number, str(spec)) for number, spec in zip(inputs, specs)]
    flops, outputs = _count(inner_jaxprs(equation)[0], shards, values)
    wholes = [values.whole(output, str(spec)) for output, spec in zip(outputs, out_specs)]
    return flops * _num_programs(equation), wholes


def _num_programs(equation: Any) -> int:
    """How often the program in an equation runs: on every device of a mesh, or at every place of a kernel's grid."""
    settings = equation.params
    if equation.primitive.name == "shard_map":
        manual = settings.get("manual_axes") or settings["mesh"].axis_names
        return math.prod(settings["mesh"].shape[axis] for axis in manual)
    if equation.primitive.name == "pallas_call":
        return math.prod(size for size in settings["grid_mapping"].grid if isinstance(size, int))
    return 1


def _product_flops(equation: Any) -> float:
    """Operations of a matrix product or convolution, else 0."""
    name, settings = equation.primitive.name, equation.params
    if name == "dot_general":
        # [.., M, K] x [.., K, N]: two operations per element of the output and contracted index.
        (contracted, _), _ = settings["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name not in ("conv_general_dilated", "convolution"):
        return 0.0
    inputs, kernel, outputs = (atom.aval.shape for atom in (*equation.invars, *equation.outvars))
    if name == "convolution":  # that of `models`, whose layout is [B, ..., C]
        strides, padding, input_dilation, kernel_dilation, _ = settings["geometry"]
        specs = [(0, len(inputs) - 1, *range(1, len(inputs) - 1))] * 3
        specs[1] = (len(inputs) - 1, len(inputs) - 2, *range(len(inputs) - 2))
    else:
        strides, padding = settings["window_strides"], settings["padding"]
        input_dilation, kernel_dilation = settings["lhs_dilation"], settings["rhs_dilation"]
        specs = settings["dimension_numbers"]
    # Batch and features of the output, input channels of the kernel, and pairs of positions on each spatial axis.
    total = 2.0 * outputs[specs[2][0]] * outputs[specs[2][1]] * kernel[specs[1][1]]
    for axis, (low, _) in enumerate(padding):
        sizes = [shape[spec[axis + 2]] for shape, spec in zip((inputs, kernel, outputs), specs)]
        total *= _num_pairs(sizes, strides[axis], low, (input_dilation[axis], kernel_dilation[axis]))
    return total


def _num_pairs(sizes: Sequence[int], stride: int, low: int, dilation: tuple[int, int]) -> int:
    """Pairs of an output's and a kernel's position that meet an input, neither padding nor a gap between inputs.

    There are as many in the gradients of a convolution by its inputs and by its kernel.

    Args:
      sizes: of inputs, kernel and outputs on one axis.
      stride: of the kernel.
      low: padding before the first input.
      dilation: of inputs and kernel.
    """
    inputs, kernel, outputs = sizes
    positions = np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None, :] * dilation[1]
    inside = (positions >= 0) & (positions <= (inputs - 1) * dilation[0])
    return int((inside & (positions % dilation[0] == 0)).sum())


def _open(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Separates a closed jaxpr from its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())
