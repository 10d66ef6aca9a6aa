"""Activation functions by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError, nearest

Activation = str | Callable[[jax.Array], jax.Array]


def prelu(x: jax.Array) -> jax.Array:
    """A leaky ReLU whose slope is learned (He et al., 2015), one per layer from 0.25; inside a compact module only."""
    return nn.PReLU(negative_slope_init=0.25)(x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "celu": nn.celu,
    "elu": nn.elu,
    "gelu": nn.gelu,  # approximated with tanh, as in Flax
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "hard_sigmoid": nn.hard_sigmoid,
    "hard_silu": nn.hard_silu,
    "hard_swish": nn.hard_swish,
    "hard_tanh": nn.hard_tanh,
    "identity": jax.nn.identity,
    "leaky_relu": nn.leaky_relu,  # slope 0.01
    "log_sigmoid": nn.log_sigmoid,
    "mish": jax.nn.mish,
    "prelu": prelu,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "relu_squared": lambda x: jnp.square(nn.relu(x)),
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "sine": jnp.sin,
    "softplus": nn.softplus,
    "softsign": nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "swish": nn.swish,
    "tanh": nn.tanh,
}
"""Every one is elementwise and keeps its input's shape."""


def activation(kind: Activation) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of that name, or the function that was given; call it inside a compact module.

    Another slope or scale is a function: `functools.partial(nn.leaky_relu, negative_slope=0.2)`.

    Raises:
      ConfigError: for an unknown name.
    """
    if callable(kind):
        return kind
    if kind not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ConfigError(f"activation: there is no {kind!r}{nearest(str(kind), ACTIVATIONS)} (known: {names})")
    return ACTIVATIONS[kind]
