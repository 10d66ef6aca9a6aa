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
    tree = tree.at[nodes].set(priorities)
    for _ in range((len(tree) // 2).bit_length() - 1):
        nodes = nodes // 2
        tree = tree.at[nodes].set(tree[2 * nodes] + tree[2 * nodes + 1])
    return tree


def draw(tree: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Returns places int32 `[count]`, each drawn from its own equal share of the sum, in proportion to priorities."""
    shares = (jnp.arange(count) + jax.random.uniform(key, (count,))) * (1.0 / count)
    rest, nodes = shares * tree[1], jnp.ones(count, jnp.int32)
    for _ in range((len(tree) // 2).bit_length() - 1):
        left = tree[2 * nodes]
        # Never into an empty subtree, where rounding would lead.
        right = (rest >= left) & (tree[2 * nodes + 1] > 0)
        nodes, rest = 2 * nodes + right, jnp.where(right, rest - left, jnp.minimum(rest, left))
    return nodes - len(tree) // 2


def probabilities(tree: jax.Array, places: jax.Array) -> jax.Array:
    """Returns how probable it is that a draw is each of the places `[B]`."""
    return tree[places + len(tree) // 2] * jnp.reciprocal(jnp.maximum(tree[1], jnp.finfo(jnp.float32).tiny))
