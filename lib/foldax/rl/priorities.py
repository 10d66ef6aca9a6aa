"""Priorities of a ring of places, in a tree of sums: drawing and changing take time O(log size) (Schaul et al., 2016).

The tree is float32 `[2 * size]` with a size that is a power of two: node 1 is the root, the children of node i are 2 i
and 2 i + 1, and the leaves, the priorities, are the last `size` nodes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def empty(size: int) -> jax.Array:
    """Returns a tree for `size` places or more, none of which can be drawn yet."""
    return jnp.zeros(2 * (1 << max(0, size - 1).bit_length()))


def changed(tree: jax.Array, places: jax.Array, priorities: jax.Array) -> jax.Array:
    """Returns the tree with the priorities float `[B]` >= 0 at places int `[B]`; of equal places one counts."""
    nodes = places + len(tree) // 2

    def up(_: int, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tree, nodes = level
        nodes = nodes // 2
        return tree.at[nodes].set(tree[2 * nodes] + tree[2 * nodes + 1]), nodes

    return jax.lax.fori_loop(0, _depth(tree), up, (tree.at[nodes].set(priorities), nodes))[0]


def draw(tree: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Returns places int32 `[count]`, each drawn from its own equal share of the sum, in proportion to priorities."""
    shares = (jnp.arange(count) + jax.random.uniform(key, (count,))) * (1.0 / count)

    def down(_: int, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, nodes = level
        left = tree[2 * nodes]
        # Never into an empty subtree, where rounding would lead.
        right = (rest >= left) & (tree[2 * nodes + 1] > 0)
        return jnp.where(right, rest - left, jnp.minimum(rest, left)), 2 * nodes + right

    start = (shares * tree[1], jnp.ones(count, jnp.int32))
    return jax.lax.fori_loop(0, _depth(tree), down, start)[1] - len(tree) // 2


def probabilities(tree: jax.Array, places: jax.Array) -> jax.Array:
    """Returns how probable it is that a draw is each of the places `[B]`."""
    return tree[places + len(tree) // 2] * jnp.reciprocal(jnp.maximum(tree[1], jnp.finfo(jnp.float32).tiny))


def _depth(tree: jax.Array) -> int:
    return (len(tree) // 2).bit_length() - 1
