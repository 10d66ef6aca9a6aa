"""Kernel initialisers by name."""

from collections.abc import Callable

import jax
from jax.nn import initializers

from foldax.models.layers.activations import look_up

Initializer = str | Callable[..., jax.Array]

SCALED = ("glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform")
INITIALIZERS: dict[str, Callable[..., jax.Array]] = {name: getattr(initializers, name)() for name in SCALED}
INITIALIZERS |= {"normal": initializers.normal(0.01), "orthogonal": initializers.orthogonal()}
INITIALIZERS |= {"zeros": initializers.zeros}
"""Initialisers by name. Variances: Glorot 2 / (fan_in + fan_out) (Glorot & Bengio, 2010), He 2 / fan_in (He et al.,
2015), LeCun 1 / fan_in (LeCun et al., 1998; Flax's default), "normal" 0.01 ** 2; "orthogonal" is Saxe et al. (2014)."""


def initializer(kind: Initializer) -> Callable[..., jax.Array]:
    """Looks up a kernel initialiser by name; a function is returned as it is.

    Args:
      kind: a name of `INITIALIZERS`, or a function `(key, shape, dtype) -> array`. For another scale, which may be
        traced, pass a function: `jax.nn.initializers.normal(config.std)`.

    Returns:
      A function `(key, shape, dtype) -> array`.

    Raises:
      ConfigError: the name is unknown.

    >>> initializer("he_normal")(jax.random.key(0), (3, 5)).shape
    (3, 5)
    """
    return look_up("initializer", kind, INITIALIZERS)
