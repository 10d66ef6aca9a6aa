"""Groups of parameters by path: a rate, a transformation or nothing at all for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ConfigError
from foldax.parameter_paths import check_patterns, matches, name_of

FROZEN = "frozen"
Leaves = Mapping[str, Any]  # by path; what is frozen elsewhere has a path and no array


def by_path(
    optimizer: optax.GradientTransformation, groups: Mapping[str, Any], default: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that treats groups of parameters differently.

        by_path(optimizer, {"embedding": "frozen", "output": 10.0, r".*/bias": optax.sgd(0.1)})

    Args:
      optimizer: of all leaves with a rate; it sees them together, so that it clips the norm of them all.
      groups: by regular expression over paths such as "Dense_0/kernel", from the start up to a "/" or the end (the
        first that matches counts): a number that multiplies the learning rate, which may be traced; a
        `GradientTransformation`; or "frozen" (or None), which leaves them as they are and keeps no optimizer state
        of them. `learners.classifier(..., frozen=...)` computes no gradients of them either.
      default: the same for all other leaves.

    Raises:
      ConfigError: a value is none of these; at `init`, a pattern matches nothing (names what is near).
    """
    transforms: dict[str, Any] = {"rate": optimizer, FROZEN: optax.set_to_zero()}
    labels: dict[str, str] = {}
    rates: dict[str, Any] = {}
    for pattern, value in {**groups, "": default}.items():
        labels[pattern] = FROZEN if value is None or isinstance(value, str) else "rate"
        if isinstance(value, str) and value != FROZEN:
            raise ConfigError(f"by_path: {pattern!r} is {value!r}, neither a rate, a transformation nor {FROZEN!r}")
        if hasattr(value, "init"):
            labels[pattern] = f"pattern {pattern}"
            transforms[labels[pattern]] = value
        elif labels[pattern] == "rate":
            rates[pattern] = value

    def group(path: str) -> str:
        return next((pattern for pattern in groups if matches([pattern], path)), "")

    def label(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: labels[group(name_of(path))], params)

    def factors(leaves: Leaves) -> dict[str, Any]:
        check_patterns(groups, leaves, "by_path")
        return {path: rates.get(group(path), 1.0) for path in leaves}

    return _scaled(optax.partition(transforms, label), factors)


def depth_decay(
    optimizer: optax.GradientTransformation, decay: Any, order: Sequence[str], stacked: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose rate is `decay` times as high at each level below the last one.

    Fine-tuning should change least what is near the input (Howard & Ruder, 2018; Clark et al., 2020).

        depth_decay(optimizer, 0.75, ("embedding|positions", "blocks", "LayerNorm_0|output"))

    Args:
      optimizer: of the last level, as it is.
      decay: factor of the rate from one level to the one below it; may be traced.
      order: a regular expression over paths for each level, from the input to the output (the first that matches
        counts). Layers in a list are a level each: "blocks" is "blocks_0", "blocks_1", ... by their numbers.
      stacked: those of `order` whose leaves `[layers, ...]` are stacked for a scan: a level for each layer.

    Raises:
      ConfigError: `stacked` has what `order` has not; at `init`, an entry of `order` matches nothing, or a leaf
        has no level.
    """
    for pattern in stacked:
        if pattern not in order:
            raise ConfigError(f"depth_decay: {pattern!r} is stacked, but is not in order ({', '.join(order)})")

    def factors(leaves: Leaves) -> dict[str, Any]:
        levels = _levels(leaves, order, stacked)
        last = sorted({level for own in levels.values() for level in own})
        below = {level: len(last) - 1 - index for index, level in enumerate(last)}

        def factor(path: str) -> Any:
            own = [below[level] for level in levels[path]]
            if len(own) == 1:
                return decay ** own[0]
            powers = jnp.power(jnp.asarray(decay, jnp.float32), jnp.asarray(own, jnp.float32))
            return powers.reshape(-1, *[1] * (leaves[path].ndim - 1))

        return {path: factor(path) for path in leaves}

    return _scaled(optimizer, factors)


def _levels(leaves: Leaves, order: Sequence[str], stacked: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Returns each leaf's levels (index in `order`, number of the layer): one, or all layers' that it stacks."""
    expressions = [rf"(?:{pattern})(?:_(\d+))?(?:/|$)" for pattern in order]
    unused = set(order)
    found: dict[str, list[tuple[int, int]]] = {}
    for path, leaf in leaves.items():
        for index, pattern in enumerate(order):
            try:
                match = re.match(expressions[index], path)
            except re.error:
                match = None  # check_patterns says so below
            if match is None:
                continue
            unused.discard(pattern)
            number = match.groups()[-1]
            layers = range(leaf.shape[0]) if pattern in stacked and hasattr(leaf, "shape") else [int(number or 0)]
            found.setdefault(path, [(index, layer) for layer in layers])
    check_patterns(unused, leaves, "depth_decay")
    lost = [path for path in leaves if path not in found]
    if lost:
        shown = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        raise ConfigError(f"depth_decay: order has no level for {shown} (a last '.*' is for what is left)")
    return found


def _scaled(
    optimizer: optax.GradientTransformation, factors: Callable[[Leaves], Mapping[str, Any]]
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with its updates multiplied by a factor for each path."""

    def init(params: Any) -> Any:
        factors(_leaves(params))  # for its errors
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        scales = factors(_leaves(updates))
        updates, state = inner.update(updates, state, params, **extra)

        def scale(path: Any, leaf: jax.Array) -> jax.Array:
            factor = scales[name_of(path)]
            return leaf if isinstance(factor, float) and factor == 1.0 else leaf * jnp.asarray(factor, leaf.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates), state

    inner = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(init, update)


def _leaves(tree: Any) -> dict[str, Any]:
    """Returns all leaves by path, and what was taken out: None by a learner, `MaskedNode` by Optax."""

    def taken_out(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode)

    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=taken_out)}
