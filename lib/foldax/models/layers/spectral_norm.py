"""Spectral normalisation of any network's kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from foldax.errors import ConfigError

Vectors = dict[tuple[str, ...], jax.Array]


@dataclasses.dataclass(frozen=True)
class SpectralNorm:
    """A network whose every kernel is divided by its largest singular value (Miyato et al., 2018).

    It has `init` and `apply` like the network that it wraps, whose parameters it keeps as they are; kernels are those
    leaves, as matrices `[inputs, outputs]`. The left singular vectors, `[outputs]` by kernel, are in the collection
    "spectral" and get better by power iterations in every call with `train=True` in which that may change. Stacked
    kernels (`scan_layers`) would be taken for one matrix.

    Attributes:
      network: any with Flax's `init` and `apply`.
      iterations: of the power method in every call.
    """

    network: Any
    iterations: int = 1

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"iterations: {self.iterations} must be 1 or more")

    def init(self, rngs: Any, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Returns the network's variables, and the vectors after 15 iterations from random ones."""
        variables = dict(self.network.init(rngs, *inputs, **options))
        key, vectors = rngs["params"] if isinstance(rngs, Mapping) else rngs, {}
        for index, (path, kernel) in enumerate(_kernels(variables["params"]).items()):
            start = jax.random.normal(jax.random.fold_in(key, index), kernel.shape[-1:])
            vectors[path] = power(kernel, start, 15)[1]
        if not vectors:
            raise ConfigError("SpectralNorm: the network has no kernel")
        return {**variables, "spectral": traverse_util.unflatten_dict(vectors)}

    def apply(self, variables: Any, *inputs: Any, train: bool = False, mutable: Any = False, **options: Any) -> Any:
        """Applies the network with normalised kernels; `mutable` is False or a list of collections."""
        params, vectors = normalized(variables["params"], variables["spectral"], self.iterations)
        inner = {name: value for name, value in variables.items() if name != "spectral"} | {"params": params}
        if mutable is False:
            return self.network.apply(inner, *inputs, train=train, **options)
        others = [name for name in mutable if name != "spectral"]
        outputs, changed = self.network.apply(inner, *inputs, train=train, mutable=others, **options)
        if "spectral" in mutable:
            changed = {**changed, "spectral": vectors if train else variables["spectral"]}
        return outputs, changed


def normalized(params: Any, vectors: Any, iterations: int = 1) -> tuple[Any, Any]:
    """Returns parameters whose kernels are divided by their largest singular values, and the vectors that say which.

    Args:
      params: nested dictionaries; leaves called "kernel" `[..., outputs]` are normalised.
      vectors: the same with `[outputs]` for every kernel.
      iterations: of the power method, from `vectors`.
    """
    flat, found = dict(traverse_util.flatten_dict(params)), {}
    begin = traverse_util.flatten_dict(vectors)
    for path, kernel in _kernels(params).items():
        sigma, found[path] = power(kernel, begin[path], iterations)
        flat[path] = kernel * jnp.reciprocal(jnp.where(sigma > 0, sigma, 1.0))
    return traverse_util.unflatten_dict(flat), traverse_util.unflatten_dict(found)


def power(kernel: jax.Array, vector: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest singular value of a kernel `[..., N]` as power iterations from `[N]` find it, and its vector.

    Gradients are those of the value alone: the singular vectors count as constants.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed, right = jax.lax.stop_gradient(matrix), vector
    left = jnp.zeros(matrix.shape[0], matrix.dtype)
    for _ in range(iterations):
        left = _unit(fixed @ right)
        right = _unit(left @ fixed)
    return left @ matrix @ right, right


def _unit(vector: jax.Array) -> jax.Array:
    return vector * jax.lax.rsqrt(jnp.square(vector).sum() + 1e-24)


def _kernels(params: Any) -> Vectors:
    flat = traverse_util.flatten_dict(params)
    return {path: leaf for path, leaf in flat.items() if path[-1] == "kernel" and leaf.ndim > 1}
