"""The scan of a recurrent cell over time, with weight gradients computed after the scan, as in cuDNN.

Differentiated as written, such a scan accumulates the gradient of the recurrent kernel step by step: thin products,
each of which reads and writes the whole sum. Here it is a single product after the scan, of all hidden states with all
gate gradients. The gradient of a hidden state is a product with the transposed kernel, which is transposed only once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

Carry = tuple[Array, ...]  # each [B, width]; the first is the hidden state, which is the output of a step
Step = Callable[[Carry, Array, Array], Carry]  # (carry, projected inputs, hidden state @ kernel) -> carry
Flags = Array | None  # bool [T, B]
Results = tuple[Carry, Array]  # the last carry, and outputs [T, B, width]


class ScanSettings(NamedTuple):
    """Static settings of `scan_cell`.

    Attributes:
      step: the cell, `(carry, projected inputs, hidden state @ kernel) -> carry`.
      reverse: whether to run from the last step to the first.
      remat: whether to recompute each step in the backward pass instead of storing its activations.
    """

    step: Step
    reverse: bool = False
    remat: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_cell(
    settings: ScanSettings, kernel: Array, inputs: Array, initial_carry: Carry, mask: Flags = None, resets: Flags = None
) -> Results:
    """Runs a recurrent cell over time.

    Reverse mode works to any order; forward mode (`jvp`) does not.

    Args:
      settings: the cell, and how it is run.
      kernel: recurrent kernel `[width, gates * width]`.
      inputs: projected inputs `[T, B, gates * width or more]`; the cell must add the first `gates * width` columns to
        the product of hidden state and kernel.
      initial_carry: carry before the first step.
      mask: bool `[T, B]`, False for padding, which keeps the carry and outputs zeros. None: no padding.
      resets: bool `[T, B]`, True where the carry is set to zeros before the step. None: no resets.

    Returns:
      The carry after the last step, and the outputs `[T, B, width]`.

    >>> cumulative_sum = ScanSettings(lambda carry, inputs, product: (inputs + product,))
    >>> carry, outputs = scan_cell(cumulative_sum, jnp.eye(1), jnp.ones((3, 2, 1)), (jnp.zeros((2, 1)),))
    >>> outputs[:, 0, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    return _run(settings, kernel, inputs, initial_carry, mask, resets)[0]


def _run(
    settings: ScanSettings, kernel: Array, inputs: Array, initial_carry: Carry, mask: Flags, resets: Flags
) -> tuple[Results, Array]:
    """Returns the results, and the hidden state before every step, `[T, B, width]`."""
    chex.assert_rank([kernel, inputs], [2, 3])
    chex.assert_shape([x for x in (mask, resets) if x is not None], inputs.shape[:2])
    # Transposed outside of the scan, for the gradient in `_product_backward`.
    transposed = kernel.T

    def scan_step(carry: Carry, step_inputs: tuple[Array, Flags, Flags]) -> tuple[Carry, tuple[Array, Array]]:
        inputs, mask, resets = step_inputs
        before = carry if resets is None else jax.tree.map(lambda c: jnp.where(resets[:, None], 0, c), carry)
        after = settings.step(before, inputs, _product(before[0], kernel, transposed))
        # Padding keeps the carry, without a reset, and outputs zeros.
        if mask is None:
            return after, (after[0], before[0])
        after = jax.tree.map(lambda new, old: jnp.where(mask[:, None], new, old), after, carry)
        return after, (jnp.where(mask[:, None], after[0], 0), before[0])

    body = jax.checkpoint(scan_step, prevent_cse=False) if settings.remat else scan_step
    last, (outputs, states) = lax.scan(body, initial_carry, (inputs, mask, resets), reverse=settings.reverse)
    return (last, outputs), states


def _forward(
    settings: ScanSettings, kernel: Array, inputs: Array, initial_carry: Carry, mask: Flags, resets: Flags
) -> tuple[Results, tuple[Any, ...]]:
    def run(inputs: Array, initial_carry: Carry) -> tuple[Results, Array]:
        return _run(settings, kernel, inputs, initial_carry, mask, resets)

    # The kernel is held constant here: its gradient is computed by `_backward` after the scan.
    results, pullback, states = jax.vjp(run, inputs, initial_carry, has_aux=True)
    return results, (pullback, states, kernel)


def _backward(settings: ScanSettings, residuals: tuple[Any, ...], output_gradients: Results) -> tuple[Any, ...]:
    pullback, states, kernel = residuals
    input_gradient, carry_gradient = pullback(output_gradients)
    width, columns = kernel.shape
    # The cell adds `hidden @ kernel` to the first columns of the inputs, so both have the same gradient.
    gate_gradients = input_gradient[..., :columns].reshape(-1, columns)
    kernel_gradient = lax.dot_general(states.reshape(-1, width), gate_gradients, (((0,), (0,)), ((), ())))
    return kernel_gradient, input_gradient, carry_gradient, None, None


scan_cell.defvjp(_forward, _backward)


@jax.custom_vjp
def _product(hidden: Array, kernel: Array, transposed: Array) -> Array:
    """Multiplies `hidden @ kernel`; its gradient uses the kernel that was transposed before the scan."""
    return hidden @ kernel


def _product_forward(hidden: Array, kernel: Array, transposed: Array) -> tuple[Array, tuple[Array, Array]]:
    return hidden @ kernel, (hidden, transposed)


def _product_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, ...]:
    hidden, transposed = residuals
    # `scan_cell` uses the first gradient only; the others complete the rule for higher orders.
    return gradient @ transposed, hidden.T @ gradient, jnp.zeros_like(transposed)


_product.defvjp(_product_forward, _product_backward)
