"""Sum tree of priorities: sampling and updating take O(log size) (Schaul et al., 2016, appendix B.2.1).

The tree is a float32 array `[2 * size]`, where `size` is a power of two. Node 1 is the root, nodes 2 i and 2 i + 1 are
the children of node i, and the last `size` nodes are the leaves, which hold the priorities. Every inner node holds the
sum of its children.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

STRATIFIED_DEPTH = 12
"""Levels that a sample descends by one stratified number; 24 bits of float32 cannot address many more leaves."""


def init(size: int) -> Float[Array, " nodes"]:
    """Creates a tree with at least `size` leaves, all of priority 0.

    >>> init(3).shape  # rounded up to 4 leaves
    (8,)
    """
    return jnp.zeros(2 * (1 << max(0, size - 1).bit_length()))


def update(
    tree: Float[Array, " nodes"], indices: Integer[Array, " B"], priorities: Float[Array, " B"]
) -> Float[Array, " nodes"]:
    """Sets the priorities of some leaves, and the sums above them.

    Args:
      tree: float32 `[2 * size]`.
      indices: int `[B]`, leaves from 0 to size - 1; of the priorities of a repeated index, one is kept.
      priorities: float `[B]`, at least 0.

    Returns:
      The tree with the new priorities.

    >>> float(update(init(4), jnp.array([0, 2]), jnp.array([1.0, 3.0]))[1])  # the root is the sum
    4.0
    """
    chex.assert_rank([tree, indices, priorities], 1)
    nodes = indices + len(tree) // 2

    # Level by level from the leaves to the root; repeated parents are written with the same sum.
    def update_parents(_: jax.Array, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tree, nodes = level
        nodes = nodes // 2
        return tree.at[nodes].set(tree[2 * nodes] + tree[2 * nodes + 1]), nodes

    return jax.lax.fori_loop(0, _depth(tree), update_parents, (tree.at[nodes].set(priorities), nodes))[0]


def sample(tree: Float[Array, " nodes"], key: chex.PRNGKey, batch_size: int) -> Integer[Array, " {batch_size}"]:
    """Samples leaves in proportion to their priorities, stratified over equal parts of the sum.

    Args:
      tree: float32 `[2 * size]` with at least one priority above 0.
      key: randomness of the sample.
      batch_size: B, the number of samples.

    Returns:
      Leaf indices int32 `[B]`; leaves of priority 0 are never sampled.

    >>> tree = update(init(4), jnp.array([0, 2]), jnp.array([1.0, 3.0]))
    >>> sample(tree, jax.random.key(0), 4).tolist()
    [0, 2, 2, 2]
    """
    key, level_key = jax.random.split(key) if _depth(tree) > STRATIFIED_DEPTH else (key, None)
    # One uniform value in each of B equal parts of the total
    parts = jnp.arange(batch_size, dtype=jnp.float32)
    fractions = (parts + jax.random.uniform(key, (batch_size,))) * (1.0 / batch_size)

    def descend(_: jax.Array, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        remainder, nodes = level
        left = tree[2 * nodes]
        # Rounding could lead into a subtree whose priorities are all 0, so such a subtree is never entered.
        go_right = (remainder >= left) & (tree[2 * nodes + 1] > 0)
        return jnp.where(go_right, remainder - left, jnp.minimum(remainder, left)), 2 * nodes + jnp.int32(go_right)

    root = (fractions * tree[1], jnp.ones(batch_size, jnp.int32))
    _, nodes = jax.lax.fori_loop(0, min(_depth(tree), STRATIFIED_DEPTH), descend, root)
    if level_key is not None:
        # Below, a new number at each level decides between two subtrees, so that every leaf has its probability.
        def choose(nodes: jax.Array, key: chex.PRNGKey) -> tuple[jax.Array, None]:
            left, right = tree[2 * nodes], tree[2 * nodes + 1]
            go_right = jax.random.uniform(key, (batch_size,)) * (left + right) >= left
            return 2 * nodes + jnp.int32(go_right & (right > 0)), None

        nodes, _ = jax.lax.scan(choose, nodes, jax.random.split(level_key, _depth(tree) - STRATIFIED_DEPTH))
    return nodes - len(tree) // 2


def probabilities(tree: Float[Array, " nodes"], indices: Integer[Array, " B"]) -> Float[Array, " B"]:
    """Computes the probabilities float32 `[B]` of sampling the leaves int `[B]`.

    >>> probabilities(update(init(4), jnp.array([0, 2]), jnp.array([1.0, 3.0])), jnp.array([0, 1, 2])).tolist()
    [0.25, 0.0, 0.75]
    """
    return tree[indices + len(tree) // 2] * jnp.reciprocal(jnp.maximum(tree[1], jnp.finfo(jnp.float32).tiny))


def _depth(tree: jax.Array) -> int:
    return (len(tree) // 2).bit_length() - 1
