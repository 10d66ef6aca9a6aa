"""The loop of a recurrent layer over time, whose gradients are made as in cuDNN.

Differentiated as it stands, such a loop adds up the kernel's gradient step by step: thin products, each of which reads
and writes the whole sum. Here it is one product after the loop, of all states with all that came back to them; and
what comes back to a state is a product with the transposed kernel, which is transposed once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Carry = tuple[jax.Array, ...]  # each [B, width]; the first one is the output
Step = Callable[[Carry, jax.Array, jax.Array], Carry]  # (carry, inputs, hidden state times kernel) -> carry


class Loop(NamedTuple):
    """What is static about a loop."""

    step: Step
    reverse: bool = False  # from the last step to the first
    remat: bool = False  # computes a step anew in the backward pass


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(
    loop: Loop,
    kernel: jax.Array,
    inputs: jax.Array,
    begin: Carry,
    real: jax.Array | None = None,
    starts: jax.Array | None = None,
) -> tuple[Carry, jax.Array]:
    """Returns the carry after the last step and the outputs `[T, B, width]`.

    Differentiates in reverse, as often as wanted; not in forward mode (`jvp`).

    Args:
      loop: the step, and how it is repeated.
      kernel: `[width, columns]`, which the hidden state is multiplied by.
      inputs: `[T, B, columns or more]`; a step must add the first columns to the product.
      begin: the carry before the first step.
      real: bool `[T, B]`; other steps are padding: they change nothing, and give zeros. None: all are real.
      starts: bool `[T, B]`, where the carry starts anew from zeros. None: nowhere.
    """
    return _run(loop, kernel, inputs, begin, real, starts)[0]


def _run(loop: Loop, kernel: jax.Array, inputs: jax.Array, begin: Carry, real: Any, starts: Any) -> tuple[Any, Any]:
    """Returns also the hidden states `[T, B, width]` before every step."""
    turned = kernel.T

    def one(carry: Carry, now: tuple[jax.Array, Any, Any]) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
        inputs, real, starts = now
        before = carry if starts is None else jax.tree.map(lambda c: jnp.where(starts[:, None], 0, c), carry)
        after = loop.step(before, inputs, _product(before[0], kernel, turned))
        if real is None:
            return after, (after[0], before[0])
        after = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), after, carry)
        return after, (jnp.where(real[:, None], after[0], 0), before[0])

    body = jax.checkpoint(one, prevent_cse=False) if loop.remat else one
    end, (outputs, states) = lax.scan(body, begin, (inputs, real, starts), reverse=loop.reverse)
    return (end, outputs), states


def _forward(loop: Loop, kernel: jax.Array, inputs: jax.Array, begin: Carry, real: Any, starts: Any) -> tuple[Any, Any]:
    def run(inputs: jax.Array, begin: Carry) -> tuple[Any, Any]:
        return _run(loop, kernel, inputs, begin, real, starts)

    results, pull, states = jax.vjp(run, inputs, begin, has_aux=True)
    return results, (pull, states, kernel)


def _backward(loop: Loop, saved: Any, back: Any) -> tuple[Any, ...]:
    pull, states, kernel = saved
    inputs, begin = pull(back)
    width, columns = kernel.shape
    gates = inputs[..., :columns].reshape(-1, columns)
    gradient = lax.dot_general(states.reshape(-1, width), gates, (((0,), (0,)), ((), ())))
    return gradient, inputs, begin, None, None


recurrence.defvjp(_forward, _backward)


@jax.custom_vjp
def _product(hidden: jax.Array, kernel: jax.Array, turned: jax.Array) -> jax.Array:
    """Returns `hidden @ kernel`; its gradient is a product with the kernel that was transposed before the loop."""
    return hidden @ kernel


def _product_forward(hidden: jax.Array, kernel: jax.Array, turned: jax.Array) -> tuple[jax.Array, Any]:
    return hidden @ kernel, (hidden, turned)


def _product_backward(saved: Any, back: jax.Array) -> tuple[jax.Array, ...]:
    hidden, turned = saved
    return back @ turned, hidden.T @ back, jnp.zeros_like(turned)  # within `recurrence` only the first one is needed


_product.defvjp(_product_forward, _product_backward)
