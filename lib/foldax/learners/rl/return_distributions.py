"""Representations of an action's return: its expectation, a categorical distribution (C51) or quantiles (QR-DQN)."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer

from foldax.errors import ConfigError
from foldax.models import mask_values

Outputs = Float[Array, "B K"]
Values = Float[Array, " B"]
TDLoss = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""`(outputs [B, K], next_outputs [B, K], rewards [B], discounts [B]) -> (losses [B], td_errors [B])`."""


class ReturnDistribution(NamedTuple):
    """A representation of the return of an action by K network outputs.

    Attributes:
      num_outputs: K, the number of network outputs per action.
      mean: expected return of outputs, `[..., K] -> [...]`.
      loss: distance of outputs from their Bellman target, `(outputs [B, K], next_outputs [B, K], rewards [B], discounts
        [B]) -> (losses [B], td_errors [B])`. Gradients flow through `outputs` only. The TD errors are at least 0 up to
        rounding, and become the priorities of prioritised replay (Schaul et al., 2016).
    """

    num_outputs: int
    mean: Callable[[Array], Array]
    loss: TDLoss


def expectation(huber_delta: float | None = None) -> ReturnDistribution:
    """Represents a return by its expectation, one output per action, with the squared or Huber TD error as loss.

    The Huber loss is that of Mnih et al. (2015), who clip rewards to [-1, 1]. Where returns are large, its linear tails
    estimate medians: in CartPole the few terminal transitions are outvoted by all others and the values diverge.

    Args:
      huber_delta: absolute TD error above which the Huber loss is linear; None takes half the squared error.

    Returns:
      The representation with K = 1; its TD errors are absolute values.

    >>> outputs, next_outputs, one = jnp.array([[1.0]]), jnp.array([[2.0]]), jnp.ones(1)
    >>> losses, td_errors = expectation().loss(outputs, next_outputs, rewards=0.5 * one, discounts=one)
    >>> float(losses[0]), float(td_errors[0])  # 1.0 is 1.5 below 0.5 + 1.0 * 2.0
    (1.125, 1.5)
    """

    def loss(outputs: Outputs, next_outputs: Outputs, rewards: Values, discounts: Values) -> tuple[Values, Values]:
        _check_shapes(outputs, next_outputs, rewards, discounts)
        # Q(s, a) - (r + gamma Q(s', a'))
        td_errors = outputs[:, 0] - jax.lax.stop_gradient(rewards + discounts * next_outputs[:, 0])
        losses = 0.5 * jnp.square(td_errors) if huber_delta is None else optax.huber_loss(td_errors, delta=huber_delta)
        return losses, jnp.abs(td_errors)

    return ReturnDistribution(1, lambda outputs: outputs[..., 0], loss)


def categorical(num_atoms: int = 51, v_min: float = -10.0, v_max: float = 10.0) -> ReturnDistribution:
    """Represents a return by the logits of a categorical distribution over fixed atoms (C51: Bellemare et al., 2017).

    The loss is the Kullback-Leibler divergence from the projected Bellman target, in nats. It also serves as TD error,
    as in Rainbow (Hessel et al., 2018).

    Args:
      num_atoms: K, number of equally spaced atoms, at least 2.
      v_min: return of the lowest atom; lower returns are clipped to it.
      v_max: return of the highest atom; higher returns are clipped to it.

    Returns:
      The representation with K = `num_atoms`.

    Raises:
      ConfigError: there are fewer than two atoms, or `v_min` is not below `v_max`.

    >>> float(categorical(num_atoms=3, v_min=0.0, v_max=2.0).mean(jnp.zeros(3)))
    1.0
    """
    if num_atoms < 2 or not v_min < v_max:
        needed = "there must be at least 2, and v_min below v_max"
        raise ConfigError(f"categorical: {num_atoms} atoms from {v_min} to {v_max}; {needed}")
    # Support of the distribution: z_1 = v_min to z_K = v_max
    atoms, spacing = jnp.linspace(v_min, v_max, num_atoms), (v_max - v_min) / (num_atoms - 1)

    def project(next_outputs: Outputs, rewards: Values, discounts: Values) -> Outputs:
        """Distributes each Bellman-updated atom over its two neighbours, `[B, K]` (algorithm 1)."""
        updated_atoms = jnp.clip(rewards[:, None] + discounts[:, None] * atoms[None, :], v_min, v_max)
        # The weight of a fixed atom falls linearly from 1 to 0 within one spacing of the updated atom.
        distances = jnp.abs(updated_atoms[:, None, :] - atoms[None, :, None])
        weights = jnp.clip(1 - distances * (1 / spacing), 0.0, 1.0)
        return (weights * jax.nn.softmax(next_outputs)[:, None, :]).sum(axis=-1)

    def loss(outputs: Outputs, next_outputs: Outputs, rewards: Values, discounts: Values) -> tuple[Values, Values]:
        _check_shapes(outputs, next_outputs, rewards, discounts)
        target = jax.lax.stop_gradient(project(next_outputs, rewards, discounts))
        # Minimising the divergence or the cross-entropy is the same, but only the divergence is 0 at the target.
        kl = optax.kl_divergence(jax.nn.log_softmax(outputs), target)
        return kl, kl

    return ReturnDistribution(num_atoms, lambda outputs: jax.nn.softmax(outputs) @ atoms, loss)


def quantiles(num_quantiles: int = 32, huber_delta: float = 1.0) -> ReturnDistribution:
    """Represents a return by equally likely quantiles, with the quantile Huber loss (QR-DQN: Dabney et al., 2018).

    Args:
      num_quantiles: K, number of quantiles, at least 1.
      huber_delta: absolute error above which the loss is linear, the paper's kappa.

    Returns:
      The representation with K = `num_quantiles`; the loss also serves as TD error.

    Raises:
      ConfigError: there are fewer than 1 quantile.

    >>> float(quantiles(4).mean(jnp.array([0.0, 1.0, 2.0, 5.0])))
    2.0
    """
    if num_quantiles < 1:
        raise ConfigError(f"quantiles: num_quantiles is {num_quantiles}; it must be at least 1")
    # Quantile levels: midpoints of K intervals of equal probability (lemma 2)
    midpoints = (jnp.arange(num_quantiles) + 0.5) * (1 / num_quantiles)

    def loss(outputs: Outputs, next_outputs: Outputs, rewards: Values, discounts: Values) -> tuple[Values, Values]:
        _check_shapes(outputs, next_outputs, rewards, discounts)
        target = jax.lax.stop_gradient(rewards[:, None] + discounts[:, None] * next_outputs)
        # Every quantile of the prediction (axis 1) is compared with every sample of the target (axis 2): equation 10.
        errors = target[:, None, :] - outputs[:, :, None]
        # Asymmetric weights: each output estimates the quantile of its own level.
        weights = jnp.abs(midpoints[None, :, None] - (errors < 0))
        huber = optax.huber_loss(errors, delta=huber_delta)
        losses = (weights * huber * (1 / huber_delta)).mean(axis=-1).sum(axis=-1)
        return losses, losses

    return ReturnDistribution(num_quantiles, lambda outputs: outputs.mean(axis=-1), loss)


def outputs_of_actions(outputs: Float[Array, "B A K"], actions: Integer[Array, " B"]) -> Outputs:
    """Selects the outputs `[B, K]` of actions int `[B]` from the outputs `[B, A, K]` of all actions.

    >>> outputs_of_actions(jnp.arange(6.0).reshape(2, 3, 1), jnp.array([2, 0])).tolist()
    [[2.0], [3.0]]
    """
    chex.assert_rank([outputs, actions], [3, 1])
    return jnp.take_along_axis(outputs, actions[:, None, None], axis=1)[:, 0]


def greedy_actions(
    return_distribution: ReturnDistribution,
    outputs: Float[Array, "*B A K"],
    legal_actions: Bool[Array, "*B A"] | None = None,
) -> Integer[Array, "*B"]:
    """Selects the actions int32 `[B]` of the highest expected return from the outputs `[B, A, K]` of all actions.

    Args:
      return_distribution: what the K outputs represent.
      outputs: of all actions, `[B, A, K]`.
      legal_actions: the actions to select from, bool `[B, A]`; None: all.

    >>> greedy_actions(expectation(), jnp.array([[[0.0], [3.0], [1.0]]])).tolist()
    [1]
    """
    return mask_values(return_distribution.mean(outputs), legal_actions).argmax(axis=-1).astype(jnp.int32)


def _check_shapes(outputs: Array, next_outputs: Array, rewards: Array, discounts: Array) -> None:
    chex.assert_rank([outputs, rewards], [2, 1])
    chex.assert_equal_shape([outputs, next_outputs])
    chex.assert_equal_shape([rewards, discounts])
    chex.assert_equal_shape_prefix([outputs, rewards], 1)
