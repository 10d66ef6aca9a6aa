"""Initialisers of kernels by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.nn import initializers

from foldax.errors import ConfigError, nearest

Initializer = str | Callable[..., jax.Array]

INITIALIZERS: dict[str, Callable[..., jax.Array]] = {
    "glorot_normal": initializers.glorot_normal(),
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
    "he_uniform": initializers.he_uniform(),
    "lecun_normal": initializers.lecun_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "normal": initializers.normal(0.01),
    "orthogonal": initializers.orthogonal(),
    "zeros": initializers.zeros,
}
"""Variances: Glorot 2 / (fan in + fan out) (Glorot & Bengio, 2010), He 2 / fan in (He et al., 2015), LeCun 1 / fan in
(LeCun et al., 1998; Flax's default), "normal" 0.01 squared; "orthogonal" is Saxe et al. (2014)."""


def initializer(kind: Initializer) -> Callable[..., jax.Array]:
    """Returns the initialiser of that name, or the function `(key, shape, dtype) -> array` that was given.

    Another scale is a function, and may be traced: `jax.nn.initializers.normal(config.std)`.

    Raises:
      ConfigError: for an unknown name.
    """
    if callable(kind):
        return kind
    if kind not in INITIALIZERS:
        names = ", ".join(INITIALIZERS)
        raise ConfigError(f"initializer: there is no {kind!r}{nearest(str(kind), INITIALIZERS)} (known: {names})")
    return INITIALIZERS[kind]
