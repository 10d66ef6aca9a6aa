"""How a network's numbers describe the return of an action: by its mean, or by its distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax.errors import ConfigError


class Head(NamedTuple):
    """What the last `width` numbers of a network stand for: a description of an action's return.

    Attributes:
      width: how many.
      mean: `outputs [..., width] -> [...]`.
      loss: `(outputs [B, width], next outputs [B, width], reward [B], discount [B]) -> (loss [B], surprise [B])`: how
        far the return of an action is from the reward and the discounted return of the next one, as it is descended
        (gradients reach the outputs alone), and as priorities are made of it (Schaul et al., 2016).
    """

    width: int
    mean: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def expected(delta: float | None = None) -> Head:
    """Describes returns by their mean: half the square of the error, or with a `delta` Huber's loss.

    Huber's loss is the paper's, whose rewards are from -1 to 1 (Mnih et al., 2015). Where returns are large, its tails
    learn medians: in CartPole the few last steps of episodes are outvoted by the others, and values grow without end.
    What surprises is the error itself, not its square.
    """

    def loss(
        outputs: jax.Array, after: jax.Array, reward: jax.Array, discount: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        error = outputs[:, 0] - jax.lax.stop_gradient(reward + discount * after[:, 0])
        value = 0.5 * jnp.square(error) if delta is None else optax.huber_loss(error, delta=delta)
        return value, jnp.abs(error)

    return Head(1, lambda outputs: outputs[..., 0], loss)


def categorical(atoms: int = 51, low: float = -10.0, high: float = 10.0) -> Head:
    """Describes returns by logits of `atoms` values from `low` to `high` (C51: Bellemare et al., 2017).

    The loss, which also is what surprises (Hessel et al., 2018), is the divergence from the target, in nats.

    Raises:
      ConfigError: there are fewer than two, or no room between them.
    """
    if atoms < 2 or not low < high:
        raise ConfigError(f"categorical: {atoms} atoms from {low} to {high} must be 2 or more, from less to more")
    support, gap = jnp.linspace(low, high, atoms), (high - low) / (atoms - 1)

    def projected(after: jax.Array, reward: jax.Array, discount: jax.Array) -> jax.Array:
        """Returns the probabilities `[B, atoms]` of the next return's, moved, and shared by the nearest two atoms."""
        moved = jnp.clip(reward[:, None] + discount[:, None] * support[None, :], low, high)
        # Each atom has of each moved one what is left of 1 after their distance in gaps.
        near = jnp.clip(1 - jnp.abs(moved[:, None, :] - support[None, :, None]) * (1 / gap), 0.0, 1.0)
        return (near * jax.nn.softmax(after)[:, None, :]).sum(axis=-1)

    def loss(
        outputs: jax.Array, after: jax.Array, reward: jax.Array, discount: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        target = jax.lax.stop_gradient(projected(after, reward, discount))
        divergence = optax.kl_divergence(jax.nn.log_softmax(outputs), target)
        return divergence, divergence

    return Head(atoms, lambda outputs: jax.nn.softmax(outputs) @ support, loss)


def quantiles(count: int = 32, delta: float = 1.0) -> Head:
    """Describes returns by `count` quantiles, each of the same probability (QR-DQN: Dabney et al., 2018).

    Raises:
      ConfigError: there is none.
    """
    if count < 1:
        raise ConfigError(f"quantiles: {count} must be 1 or more")
    middles = (jnp.arange(count) + 0.5) * (1 / count)

    def loss(
        outputs: jax.Array, after: jax.Array, reward: jax.Array, discount: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        target = jax.lax.stop_gradient(reward[:, None] + discount[:, None] * after)
        apart = target[:, None, :] - outputs[:, :, None]
        weights = jnp.abs(middles[None, :, None] - (apart < 0))
        value = (weights * optax.huber_loss(apart, delta=delta) * (1 / delta)).mean(axis=-1).sum(axis=-1)
        return value, value

    return Head(count, lambda outputs: outputs.mean(axis=-1), loss)


def chosen(outputs: jax.Array, actions: jax.Array) -> jax.Array:
    """Returns the numbers `[B, width]` of the actions int `[B]` among `[B, A, width]`."""
    return jnp.take_along_axis(outputs, actions[:, None, None], axis=1)[:, 0]


def best(head: Head, outputs: Any) -> jax.Array:
    """Returns the actions int32 `[B]` of the largest mean."""
    return head.mean(outputs).argmax(axis=-1).astype(jnp.int32)
