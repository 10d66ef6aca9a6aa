"""The network of policy-gradient learners: what to do, and what to expect."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Dense
from foldax.models.networks.recurrent import CellKind, Recurrent


class Opinion(NamedTuple):
    """What an `ActorCritic` says of observations.

    Attributes:
      policy: `[B, A]`, logits of A actions, or means of A numbers.
      log_std: `[B, A]`, log deviations of these numbers, or None for actions that are chosen among A.
      value: `[B]`, the discounted return that is expected.
    """

    policy: jax.Array
    log_std: jax.Array | None
    value: jax.Array


class ActorCritic(nn.Module):
    """Two networks of dense layers, which share nothing but an encoder if there is one: `[B, ...]` to `Opinion`.

    Orthogonal kernels, scaled so that all actions are about equally likely at first (Andrychowicz et al., 2021).

    Attributes:
      actions: A.
      continuous: whether actions are numbers; their deviations do not depend on what is observed.
      hidden: widths of the hidden layers of both.
      activation: a name of `ACTIVATIONS` or a function.
      encoder: any network `[B, ...]` to `[B, D]` that comes before both; None: observations are flattened.
    """

    actions: int
    continuous: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    encoder: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Opinion:
        x = jnp.asarray(x, jnp.float32)
        x = x.reshape(x.shape[0], -1) if self.encoder is None else self.encoder(x, train=train)

        def head(kind: str, features: int, scale: float) -> jax.Array:
            y = x
            for index, width in enumerate(self.hidden):
                y = activation(self.activation)(_dense(width, math.sqrt(2), f"{kind}_{index}")(y))
            return _dense(features, scale, f"{kind}_output")(y)

        policy = head("actor", self.actions, 0.01)
        return Opinion(policy, _deviations(self, policy), head("critic", 1, 1.0)[:, 0])


class RecurrentActorCritic(nn.Module):
    """Dense layers and a recurrent one, shared by actor and critic: `[B, T, ...]` to an `Opinion` of every step.

    It also gives the memory after the last step, with which the sequence can go on.

    Attributes:
      actions: A.
      continuous: whether actions are numbers; their deviations do not depend on what is observed.
      hidden: widths of the dense layers before the recurrent one.
      width: of the recurrent layer.
      cell: "rnn", "lstm" or "gru".
      activation: a name of `ACTIVATIONS` or a function.
      encoder: any network `[B, ...]` to `[B, D]` that comes first; None: observations are flattened.
    """

    actions: int
    continuous: bool = False
    hidden: tuple[int, ...] = (64,)
    width: int = 64
    cell: CellKind = "lstm"
    activation: Activation = "tanh"
    encoder: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: Any = None, starts: jax.Array | None = None, *, train: bool = False
    ) -> tuple[Opinion, Any]:
        """Applies the network.

        Args:
          x: `[B, T, ...]`.
          memory: before the first step, as a call or `initial_memory` gave it; None: an episode begins there.
          starts: bool `[B, T]`, where an episode begins, and so the memory of nothing; None: nowhere. Of the first step
            it is not asked: what it begins with is `memory`.
          train: whether an encoder trains.
        """
        batch, length = x.shape[:2]
        x = jnp.asarray(x, jnp.float32).reshape(batch * length, *x.shape[2:])
        x = x.reshape(len(x), -1) if self.encoder is None else self.encoder(x, train=train)
        for index, width in enumerate(self.hidden):
            x = activation(self.activation)(_dense(width, math.sqrt(2), f"hidden_{index}")(x))
        carry = self.initial_memory(batch) if memory is None else memory
        # Episodes are numbered as segments of the sequence: the first one goes on from the memory.
        mask = None if starts is None else 1 + jnp.cumsum(starts.astype(jnp.int32), axis=1)
        recurrent = Recurrent(None, (self.width,), self.cell, name="recurrent")
        x, carry = recurrent(x.reshape(batch, length, -1), mask=mask, carry=carry, train=train)
        policy = _dense(self.actions, 0.01, "actor_output")(x)
        return Opinion(policy, _deviations(self, policy), _dense(1, 1.0, "critic_output")(x)[..., 0]), carry

    def initial_memory(self, batch_size: int) -> Any:
        """Returns the memory of `batch_size` sequences before their first step."""
        return Recurrent(None, (self.width,), self.cell, parent=None).initial_carry(batch_size)


def _dense(features: int, scale: float, name: str) -> Any:
    return Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)


def _deviations(module: Any, policy: jax.Array) -> jax.Array | None:
    """Returns log deviations `[..., A]` that depend on nothing, in the module's scope; None for choices."""
    if not module.continuous:
        return None
    free = module.param("log_std", nn.initializers.zeros, (1, module.actions))
    return jnp.broadcast_to(free.reshape(*[1] * (policy.ndim - 1), -1), policy.shape)
