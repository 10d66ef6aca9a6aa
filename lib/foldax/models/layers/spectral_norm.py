"""Spectral normalisation of the kernels of any network (Miyato et al., 2018)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import VariableDict

from foldax.errors import ConfigError, check_positive

Mutable = Literal[False] | list[str]


@dataclasses.dataclass(frozen=True)
class SpectralNorm:
    """Wraps a network and divides each of its kernels by its largest singular value (Miyato et al., 2018).

    The wrapped network has the same `init` and `apply`, and its parameters are stored unchanged. A kernel is a
    parameter called "kernel", taken as a matrix `[inputs, outputs]`. Its right singular vector `[outputs]` is kept in
    the collection "spectral", and refined by power iteration in every call with `train=True` that lists the collection
    as mutable. Stacked kernels (`scan_layers`) are not supported: a stack would count as one matrix.

    Attributes:
      network: a module, or any object with Flax's `init` and `apply`.
      power_iterations: iterations of the power method per call.

    Raises:
      ConfigError: `power_iterations` is below 1.

    >>> from foldax import models
    >>> critic, images = models.SpectralNorm(models.MLP((16, 1))), jnp.ones((2, 4, 4, 1))
    >>> variables = critic.init(jax.random.key(0), images)
    >>> critic.apply(variables, images).shape, sorted(variables)
    ((2, 1), ['params', 'spectral'])
    """

    network: nn.Module
    power_iterations: int = 1

    def __post_init__(self) -> None:
        check_positive(power_iterations=self.power_iterations)

    def init(self, rngs: chex.PRNGKey | Mapping[str, chex.PRNGKey], *inputs: Any, **options: Any) -> VariableDict:
        """Initialises the network, and the singular vectors by 15 power iterations from random ones."""
        variables = dict(self.network.init(rngs, *inputs, **options))
        key, vectors = rngs["params"] if isinstance(rngs, Mapping) else rngs, {}
        for index, (path, kernel) in enumerate(_kernels(variables["params"]).items()):
            start = jax.random.normal(jax.random.fold_in(key, index), kernel.shape[-1:])
            vectors[path] = power_iteration(kernel, start, 15)[1]
        if not vectors:
            raise ConfigError("SpectralNorm: the network has no kernel to normalise")
        return {**variables, "spectral": traverse_util.unflatten_dict(vectors)}

    def apply(
        self, variables: VariableDict, *inputs: Any, train: bool = False, mutable: Mutable = False, **options: Any
    ) -> Any:
        """Applies the network with normalised kernels; `mutable` is False or a list of collections."""
        spectral = variables["spectral"]
        params, vectors = normalize_kernels(variables["params"], spectral, self.power_iterations)
        inner = {name: value for name, value in variables.items() if name != "spectral"} | {"params": params}
        if mutable is False:
            return self.network.apply(inner, *inputs, train=train, **options)
        others = [name for name in mutable if name != "spectral"]
        outputs, changed = self.network.apply(inner, *inputs, train=train, mutable=others, **options)
        if "spectral" in mutable:
            changed = {**changed, "spectral": vectors if train else spectral}
        return outputs, changed


def normalize_kernels(
    params: VariableDict, vectors: VariableDict, power_iterations: int = 1
) -> tuple[VariableDict, VariableDict]:
    """Divides every kernel by its largest singular value.

    Args:
      params: nested dictionaries; leaves called "kernel", `[..., outputs]`, are normalised.
      vectors: the same tree with a right singular vector `[outputs]` per kernel.
      power_iterations: iterations of the power method, starting from `vectors`.

    Returns:
      The parameters with normalised kernels, and the refined vectors.

    >>> params, vectors = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}, {"kernel": jnp.array([1.0, 0.0])}
    >>> normalize_kernels(params, vectors)[0]["kernel"].tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    flat, refined = dict(traverse_util.flatten_dict(params)), {}
    flat_vectors = traverse_util.flatten_dict(vectors)
    for path, kernel in _kernels(params).items():
        # A kernel of zeros stays as it is.
        sigma, refined[path] = power_iteration(kernel, flat_vectors[path], power_iterations)
        flat[path] = kernel * jnp.reciprocal(jnp.where(sigma > 0, sigma, 1.0))
    return traverse_util.unflatten_dict(flat), traverse_util.unflatten_dict(refined)


def power_iteration(kernel: jax.Array, vector: jax.Array, power_iterations: int) -> tuple[jax.Array, jax.Array]:
    """Estimates the largest singular value of a kernel by power iteration (Miyato et al., 2018, algorithm 1).

    Args:
      kernel: `[..., outputs]`, taken as a matrix `[inputs, outputs]`.
      vector: initial right singular vector `[outputs]`.
      power_iterations: number of iterations, at least 1.

    Returns:
      The singular value, a scalar whose gradient treats both singular vectors as constants, and the right singular
      vector `[outputs]`.

    >>> sigma, _ = power_iteration(jnp.diag(jnp.array([3.0, 1.0])), jnp.ones(2), 20)
    >>> round(float(sigma), 4)
    3.0
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    chex.assert_shape(vector, matrix.shape[1:])
    constant, right = jax.lax.stop_gradient(matrix), vector
    left = jnp.zeros(matrix.shape[0], matrix.dtype)
    # u = W v / |W v|, v = W^T u / |W^T u|; then sigma = u^T W v.
    for _ in range(power_iterations):
        left = _unit(constant @ right)
        right = _unit(left @ constant)
    return left @ matrix @ right, right


def _unit(vector: jax.Array) -> jax.Array:
    return vector * jax.lax.rsqrt(jnp.square(vector).sum() + 1e-24)


def _kernels(params: VariableDict) -> dict[tuple[str, ...], jax.Array]:  # by path in the tree of parameters
    flat = traverse_util.flatten_dict(params)
    return {path: leaf for path, leaf in flat.items() if path[-1] == "kernel" and leaf.ndim > 1}
