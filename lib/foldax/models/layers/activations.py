"""Activation functions by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError, did_you_mean

Activation = str | Callable[[jax.Array], jax.Array]


def prelu(x: jax.Array) -> jax.Array:
    """Parametric ReLU (He et al., 2015): a leaky ReLU with one learned slope per layer, initially 0.25.

    Creates a parameter, so it must be called inside a compact module. Keeps the shape of `x`.
    """
    return nn.PReLU(negative_slope_init=0.25)(x)


# Flax's gelu is the tanh approximation, and its leaky_relu has a slope of 0.01.
FLAX_NAMES = ["celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu"]
FLAX_NAMES += ["log_sigmoid", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "swish", "tanh"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {name: getattr(nn, name) for name in FLAX_NAMES}
ACTIVATIONS |= {"gelu_exact": functools.partial(nn.gelu, approximate=False), "identity": jax.nn.identity}
ACTIVATIONS |= {"mish": jax.nn.mish, "prelu": prelu, "relu_squared": lambda x: jnp.square(nn.relu(x)), "sine": jnp.sin}
ACTIVATIONS |= {"softsign": nn.soft_sign, "squareplus": jax.nn.squareplus}
ACTIVATIONS = dict(sorted(ACTIVATIONS.items()))
"""Elementwise functions by name; each keeps the shape of its input."""


def activation(kind: Activation) -> Callable[[jax.Array], jax.Array]:
    """Looks up an activation function by name; a function is returned as it is.

    Args:
      kind: a name of `ACTIVATIONS`, or a function. For another slope or scale, pass a function:
        `functools.partial(nn.leaky_relu, negative_slope=0.2)`.

    Returns:
      An elementwise function; call it inside a compact module, because "prelu" has a parameter.

    Raises:
      ConfigError: the name is unknown.

    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return look_up("activation", kind, ACTIVATIONS)


def look_up(field: str, kind: Any, known: Mapping[str, Any]) -> Any:
    """Looks up the value of a field by name; a function is returned as it is.

    Args:
      field: name of the field, the start of the error message.
      kind: a name in `known`, or a function.
      known: values by name.

    Raises:
      ConfigError: the name is unknown.

    >>> look_up("size", "small", {"small": 1, "large": 2})
    1
    """
    if callable(kind):
        return kind
    if kind not in known:
        raise ConfigError(f"{field}: there is no {kind!r}{did_you_mean(str(kind), known)} (known: {', '.join(known)})")
    return known[kind]
