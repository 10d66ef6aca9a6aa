"""Parameter groups by path: a learning rate, an optimizer or no update at all for each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from chex import Numeric

from foldax.errors import ConfigError
from foldax.parameter_paths import check_patterns, matches, path_name

FROZEN = "frozen"
Leaves: TypeAlias = Mapping[str, Any]  # arrays by path; None or `optax.MaskedNode` for leaves that a caller took out
Treatment: TypeAlias = Numeric | optax.GradientTransformation | str | None  # of the parameters of a group


def parameter_groups(
    optimizer: optax.GradientTransformation, groups: Mapping[str, Treatment], default: Treatment = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer that treats groups of parameters differently.

    Args:
      optimizer: updates all leaves with a rate; it sees them together, so that it clips the norm of them all.
      groups: treatment by regular expression over paths such as "Dense_0/kernel", matched from the start up to a "/" or
        the end; the first match counts. A treatment is a factor of the learning rate, which may be traced; an optimizer
        of the group's own; or "frozen" (or None): no updates and no optimizer state. With
        `learners.classifier(..., frozen=...)` gradients of frozen parameters are not computed either.
      default: treatment of all other leaves.

    Raises:
      ConfigError: a treatment is none of these; at `init`, a pattern matches nothing.

    >>> groups = {"embedding": "frozen", "output": 10.0, r".*/bias": optax.sgd(0.1)}
    >>> one = jnp.ones(1)
    >>> params = {"embedding": one, "hidden": {"bias": one, "kernel": one}, "output": one}
    >>> optimizer = parameter_groups(optax.sgd(1.0), groups)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> jax.tree.map(lambda leaf: round(float(leaf[0]), 3), updates)
    {'embedding': 0.0, 'hidden': {'bias': -0.1, 'kernel': -1.0}, 'output': -10.0}
    """
    # The labels are keys of the optimizer's state.
    transforms: dict[str, Any] = {"rate": optimizer, FROZEN: optax.set_to_zero()}
    labels: dict[str, str] = {}
    rates: dict[str, Numeric] = {}
    # The pattern "" stands for all other leaves.
    for pattern, treatment in {**groups, "": default}.items():
        labels[pattern] = FROZEN if treatment is None or isinstance(treatment, str) else "rate"
        if isinstance(treatment, str) and treatment != FROZEN:
            allowed = f"neither a rate, an optimizer nor {FROZEN!r}"
            raise ConfigError(f"parameter_groups: {pattern!r} is {treatment!r}, {allowed}")
        # An optimizer of its own has its own label, hence its own state.
        if hasattr(treatment, "init"):
            labels[pattern] = f"pattern {pattern}"
            transforms[labels[pattern]] = treatment
        elif labels[pattern] == "rate":
            rates[pattern] = treatment

    def group(path: str) -> str:
        # The first match counts, as documented.
        return next((pattern for pattern in groups if matches([pattern], path)), "")

    def label(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: labels[group(path_name(path))], params)

    def factors(leaves: Leaves) -> dict[str, Numeric]:
        check_patterns(groups, leaves, "parameter_groups")
        return {path: rates.get(group(path), 1.0) for path in leaves}

    return _scale_updates(optax.partition(transforms, label), factors)


def layer_decay(
    optimizer: optax.GradientTransformation, decay: Numeric, order: Sequence[str], stacked: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer whose learning rate decays layer by layer, from the output to the input.

    Fine-tuning should change the layers near the input least (Howard & Ruder, 2018; Clark et al., 2020).

    Args:
      optimizer: the optimizer of the last layer.
      decay: factor of the rate from one layer to the layer below it, between 0 and 1; may be traced.
      order: regular expressions over paths, from the input to the output; the first match counts. Layers in a list are
        counted one by one: "blocks" stands for "blocks_0", "blocks_1", ... in the order of their numbers.
      stacked: entries of `order` whose leaves `[layers, ...]` are stacked for a scan.

    Raises:
      ConfigError: an entry of `stacked` is missing in `order`; at `init`, an entry of `order` matches nothing, or a
        leaf matches no entry.

    >>> params = {"embedding": jnp.ones(1), "blocks_0": jnp.ones(1), "blocks_1": jnp.ones(1), "output": jnp.ones(1)}
    >>> optimizer = layer_decay(optax.sgd(1.0), 0.5, ("embedding", "blocks", "output"))
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> jax.tree.map(lambda leaf: float(leaf[0]), updates)
    {'blocks_0': -0.25, 'blocks_1': -0.5, 'embedding': -0.125, 'output': -1.0}
    """
    for pattern in stacked:
        if pattern not in order:
            raise ConfigError(f"layer_decay: {pattern!r} is stacked, but is not in order ({', '.join(order)})")

    def factors(leaves: Leaves) -> dict[str, Numeric]:
        levels = _levels(leaves, order, stacked)
        # Levels without leaves do not count, so that the rate decays once per layer that exists.
        existing = sorted({level for of_leaf in levels.values() for level in of_leaf})
        distance = {level: len(existing) - 1 - index for index, level in enumerate(existing)}  # to the last level

        def factor(path: str) -> Numeric:
            distances = [distance[level] for level in levels[path]]
            if len(distances) == 1:
                return decay ** distances[0]
            # A stacked leaf has a level, and so a power, for each of its layers.
            powers = jnp.power(jnp.asarray(decay, jnp.float32), jnp.asarray(distances, jnp.float32))
            return powers.reshape(-1, *[1] * (leaves[path].ndim - 1))

        return {path: factor(path) for path in leaves}

    return _scale_updates(optimizer, factors)


def _levels(leaves: Leaves, order: Sequence[str], stacked: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Returns the levels (index in `order`, number of the layer) of each leaf: one, or one per layer if stacked."""
    expressions = [rf"(?:{pattern})(?:_(\d+))?(?:/|$)" for pattern in order]
    unused = set(order)
    levels: dict[str, list[tuple[int, int]]] = {}
    for path, leaf in leaves.items():
        for index, pattern in enumerate(order):
            try:
                match = re.match(expressions[index], path)
            except re.error:
                match = None  # reported by check_patterns below
            if match is None:
                continue
            # Every entry of `order` that matches is used, even if an earlier one already names the leaf.
            unused.discard(pattern)
            number = match.groups()[-1]
            layers = range(leaf.shape[0]) if pattern in stacked and hasattr(leaf, "shape") else [int(number or 0)]
            # `setdefault` keeps the first match.
            levels.setdefault(path, [(index, layer) for layer in layers])
    check_patterns(unused, leaves, "layer_decay")
    missing = [path for path in leaves if path not in levels]
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise ConfigError(f"layer_decay: order has no level for {listed}; end it with '.*' to match all other leaves")
    return levels


def _scale_updates(
    optimizer: optax.GradientTransformation, factors: Callable[[Leaves], Mapping[str, Numeric]]
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of an optimizer by a factor for each path."""

    def init(params: optax.Params) -> optax.OptState:
        factors(_leaves(params))  # raises its errors at `init`
        return inner.init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        scales = factors(_leaves(updates))
        updates, state = inner.update(updates, state, params, **extra_args)

        def scale(path: Sequence[Any], leaf: jax.Array) -> jax.Array:
            factor = scales[path_name(path)]
            # A factor of 1 leaves the leaf alone, and the program without a multiplication.
            return leaf if isinstance(factor, float) and factor == 1.0 else leaf * jnp.asarray(factor, leaf.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates), state

    inner = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(init, update)


def _leaves(tree: optax.Params) -> dict[str, Any]:
    """Returns all leaves by path, also those taken out: None by a learner, `MaskedNode` by Optax."""

    def is_taken_out(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode)

    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_taken_out)}
